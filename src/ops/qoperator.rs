//! ONNX Runtime's own operators between quantized tensors, which its QOperator format uses: QLinearAdd and its kin in the
//! domain `com.microsoft`. Each is an ONNX operator on bytes, with scales and zero points among its inputs.
//!
//! See <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>.

use std::sync::Arc;

use super::quantize::{Dequantize, Quantize};
use super::slots::{optional, required};
use super::{Attrs, Fact, ONNX, Op, OpDef, find};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Operand, Unit};
use crate::ir::{Array, DType, TensorType};

const fn def(name: &'static str, parse: fn(&mut Attrs) -> Result<Arc<dyn Op>, Fault>) -> OpDef {
    OpDef { domain: "com.microsoft", name, since: 1, parse }
}

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    def("QLinearAdd", |a| Quantized::read(a, "Add", BINARY)),
    def("QLinearMul", |a| Quantized::read(a, "Mul", BINARY)),
    def("QLinearSigmoid", |a| Quantized::read(a, "Sigmoid", UNARY)),
    def("QLinearLeakyRelu", |a| Quantized::read(a, "LeakyRelu", UNARY)),
    def("QLinearSoftmax", |a| Quantized::read(a, "Softmax", UNARY)),
    def("QLinearAveragePool", |a| Quantized::read(a, "AveragePool", UNARY)),
    def("QLinearGlobalAveragePool", |a| Quantized::read(a, "GlobalAveragePool", UNARY)),
    def("QLinearConcat", |a| Quantized::read(a, "Concat", CONCAT)),
    def("QLinearWhere", |a| Quantized::read(a, "Where", WHERE)),
];

/// Where the inputs stand. A quantized tensor takes three slots, the parameters of the output two.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Slots in front that are not quantized.
    plain: usize,
    /// The slot of the first quantized tensor.
    first: usize,
    /// How many there are; none: as many as fit.
    tensors: Option<usize>,
    /// The slot of the output's scale.
    output: usize,
}

const UNARY: Layout = Layout { plain: 0, first: 0, tensors: Some(1), output: 3 };
const BINARY: Layout = Layout { plain: 0, first: 0, tensors: Some(2), output: 6 };
const CONCAT: Layout = Layout { plain: 0, first: 2, tensors: None, output: 0 };
const WHERE: Layout = Layout { plain: 1, first: 1, tensors: Some(2), output: 7 };

impl Layout {
    /// The slots of tensors and of what is not quantized, in the order of the ONNX operator.
    fn slots(&self, inputs: usize) -> impl Iterator<Item = usize> {
        let tensors = self.tensors.unwrap_or(inputs.saturating_sub(self.first) / 3);
        let first = self.first;
        (0..self.plain).chain((0..tensors).map(move |i| first + 3 * i))
    }
}

/// An ONNX operator on quantized tensors.
#[derive(Debug)]
pub struct Quantized {
    op: Arc<dyn Op>,
    layout: Layout,
}

impl Quantized {
    fn read(attrs: &mut Attrs, name: &str, layout: Layout) -> Result<Arc<dyn Op>, Fault> {
        if attrs.flag("channels_last", false)? {
            return Err(Fault::unimplemented("channels as the last axis"));
        }
        let version = attrs.int("opset", 13)?; // of Softmax
        let Some(def) = find(ONNX, name, version) else { fail!("there is no {name} in opset {version}") };
        let mut plain = Attrs::new(attrs.attributes, version, attrs.inputs, attrs.outputs);
        let op = (def.parse)(&mut plain)?;
        attrs.read.extend(plain.read);
        Ok(Arc::new(Self { op, layout }))
    }
}

/// The zero point in a slot; if there is none, 0 of this type.
fn zero_point(inputs: &[Option<Array>], slot: usize, dtype: DType) -> Array {
    optional(inputs, slot).cloned().unwrap_or_else(|| match dtype {
        DType::I8 => Array::scalar(0i8),
        _ => Array::scalar(0u8),
    })
}

impl Op for Quantized {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let tensors: Vec<_> =
            self.layout.slots(inputs.len()).map(|slot| inputs.get(slot).copied().flatten()).collect();
        self.op.infer(&tensors)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (mut operands, mut tensors, mut dtype) = (Vec::new(), Vec::new(), DType::U8);
        for slot in self.layout.slots(inputs.len()) {
            let x = required(inputs, slot)?;
            tensors.push(Some(x.clone()));
            if slot < self.layout.plain {
                operands.push(Some(Operand::Plain(None)));
                continue;
            }
            dtype = x.dtype();
            let whole = Dequantize { axis: 1, block_size: 0, output_dtype: None };
            let scales = whole.scales(dtype, required(inputs, slot + 1)?, Some(&zero_point(inputs, slot + 2, dtype)));
            let scales = scales.ok_or_else(|| Fault::unimplemented("scales that are neither scalars nor vectors"))?;
            operands.push(Some(Operand::Integer(scales, None)));
        }
        let (scale, zero) = (self.layout.output, zero_point(inputs, self.layout.output + 1, dtype));
        let whole = Quantize { saturate: true, axis: 1, block_size: 0, output_dtype: None };
        let y = whole.params(required(inputs, scale)?, Some(&zero));
        let y = y.ok_or_else(|| Fault::unimplemented("more than one output scale"))?;
        let kernel = self.op.integer(&Unit { inputs: operands, outputs: vec![Some(y)] });
        kernel.ok_or_else(|| Fault::unimplemented("this choice of types and scales"))?.run(&tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Attribute;
    use crate::ir::attribute::{float, int, ints};

    /// The bytes that an operator gives, and its shape.
    fn run(name: &str, attributes: &[Attribute], inputs: &[Array]) -> (Vec<usize>, Vec<u8>) {
        let def = find("com.microsoft", name, 1).unwrap();
        let mut attrs = Attrs::new(attributes, 1, inputs.len(), 1);
        let op = (def.parse)(&mut attrs).unwrap();
        assert!(attrs.unread().is_empty());
        let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
        let y = op.float(&inputs).unwrap().remove(0);
        (y.shape().to_vec(), y.slice::<u8>().unwrap().to_vec())
    }

    /// A tensor with its scale and zero point.
    fn quantized(shape: &[usize], seed: usize, scale: f32, zero: u8) -> [Array; 3] {
        let bytes = (0..shape.iter().product()).map(|i| ((i * 37 + seed * 101) % 256) as u8).collect();
        [Array::new(shape, bytes).unwrap(), Array::scalar(scale), Array::scalar(zero)]
    }

    fn reals([x, scale, zero]: &[Array; 3]) -> Vec<f32> {
        let (scale, zero) = (scale.item::<f32>().unwrap(), zero.item::<u8>().unwrap());
        x.slice::<u8>().unwrap().iter().map(|&q| (f32::from(q) - f32::from(zero)) * scale).collect()
    }

    /// The bytes stand for these numbers, within half a step, or the end of the range.
    fn stand_for(bytes: &[u8], expected: &[f32], scale: f32, zero: u8) {
        assert_eq!(bytes.len(), expected.len());
        for (&byte, &v) in bytes.iter().zip(expected) {
            let exact = (v / scale + f32::from(zero)).clamp(0.0, 255.0);
            assert!((f32::from(byte) - exact).abs() <= 0.501, "{byte} for {exact}");
        }
    }

    fn output(scale: f32, zero: u8) -> [Array; 2] {
        [Array::scalar(scale), Array::scalar(zero)]
    }

    #[test]
    fn sums_and_products() {
        let (a, b) = (quantized(&[2, 3, 4], 1, 0.1, 90), quantized(&[3, 1], 2, 0.07, 120));
        let (x, y) = (reals(&a), reals(&b));
        let inputs = [&a[..], &b, &output(0.15, 110)].concat();
        let functions: [fn(f32, f32) -> f32; 2] = [|a, b| a + b, |a, b| a * b];
        for (name, f) in ["QLinearAdd", "QLinearMul"].into_iter().zip(functions) {
            let expected: Vec<f32> = x.iter().enumerate().map(|(i, &x)| f(x, y[i / 4 % 3])).collect();
            let (shape, bytes) = run(name, &[], &inputs);
            assert_eq!(shape, [2, 3, 4]);
            stand_for(&bytes, &expected, 0.15, 110);
        }
    }

    #[test]
    fn functions_of_one_tensor() {
        let a = quantized(&[2, 3, 2, 4], 3, 0.05, 130);
        let x = reals(&a);
        let with = |scale, zero| [&a[..], &output(scale, zero)].concat();
        let each = |f: &dyn Fn(f32) -> f32| x.iter().map(|&v| f(v)).collect::<Vec<_>>();
        let (_, bytes) = run("QLinearSigmoid", &[], &with(1.0 / 256.0, 0));
        stand_for(&bytes, &each(&|v| 1.0 / (1.0 + libm::expf(-v))), 1.0 / 256.0, 0);
        let (_, bytes) = run("QLinearLeakyRelu", &[float("alpha", 0.25)], &with(0.04, 70));
        stand_for(&bytes, &each(&|v| if v < 0.0 { 0.25 * v } else { v }), 0.04, 70);
        let shares: Vec<f32> = x
            .chunks(4)
            .flat_map(|row| {
                let sum: f32 = row.iter().map(|&v| libm::expf(v)).sum();
                row.iter().map(move |&v| libm::expf(v) / sum)
            })
            .collect();
        let softmax = [int("axis", -1), int("opset", 13)];
        let (_, bytes) = run("QLinearSoftmax", &softmax, &with(1.0 / 256.0, 0));
        stand_for(&bytes, &shares, 1.0 / 256.0, 0);
        let means: Vec<f32> = x.chunks(8).map(|plane| plane.iter().sum::<f32>() / 8.0).collect();
        let (shape, bytes) = run("QLinearGlobalAveragePool", &[int("channels_last", 0)], &with(0.03, 125));
        assert_eq!(shape, [2, 3, 1, 1]);
        stand_for(&bytes, &means, 0.03, 125);
        let pairs: Vec<f32> = x.chunks(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
        let window = [ints("kernel_shape", [1, 2]), ints("strides", [1, 2])];
        let (shape, bytes) = run("QLinearAveragePool", &window, &with(0.04, 125));
        assert_eq!(shape, [2, 3, 2, 2]);
        stand_for(&bytes, &pairs, 0.04, 125);
    }

    #[test]
    fn tensors_side_by_side_and_by_choice() {
        let (a, b) = (quantized(&[2, 3], 4, 0.1, 90), quantized(&[2, 3], 5, 0.07, 120));
        let (x, y) = (reals(&a), reals(&b));
        let (shape, bytes) =
            run("QLinearConcat", &[int("axis", 1)], &[&output(0.12, 100)[..], &a, &b].concat());
        assert_eq!(shape, [2, 6]);
        stand_for(&bytes, &[&x[..3], &y[..3], &x[3..], &y[3..]].concat(), 0.12, 100);
        let mask = [Array::new(&[2, 1], vec![true, false]).unwrap()];
        let (_, bytes) = run("QLinearWhere", &[], &[&mask[..], &a, &b, &output(0.12, 100)].concat());
        stand_for(&bytes, &[&x[..3], &y[3..]].concat(), 0.12, 100);
    }

    #[test]
    fn channels_last_is_said_to_be_missing() {
        let def = find("com.microsoft", "QLinearAveragePool", 1).unwrap();
        let attributes = [int("channels_last", 1), ints("kernel_shape", [1, 2])];
        let fault = (def.parse)(&mut Attrs::new(&attributes, 1, 5, 1)).unwrap_err();
        assert!(fault.is_unimplemented());
    }
}
