//! Operators that take integers and their scales as inputs: QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger.
//!
//! See <https://onnx.ai/onnx/operators/onnx__QLinearConv.html> and
//! <https://onnx.ai/onnx/operators/onnx__MatMulInteger.html>.

use std::sync::Arc;

use ndarray::Axis;

use super::conv::{Conv, Convolution};
use super::gemm::MatMul;
use super::integer;
use super::operand::elements;
use super::quantize::{Dequantize, Quantize};
use super::slots::{known, optional, required};
use super::{Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Operand, Scales, Unit};
use crate::ir::{Array, DType, Nd, TensorType};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "QLinearConv", since: 10, parse: |a| Ok(Arc::new(QLinearConv(Conv::read(a)?))) },
    OpDef { domain: ONNX, name: "QLinearMatMul", since: 10, parse: |_| Ok(Arc::new(QLinearMatMul)) },
    OpDef { domain: ONNX, name: "ConvInteger", since: 10, parse: |a| Ok(Arc::new(ConvInteger(Conv::read(a)?))) },
    OpDef { domain: ONNX, name: "MatMulInteger", since: 10, parse: |_| Ok(Arc::new(MatMulInteger)) },
];

const ALONG_ROWS: Dequantize = Dequantize { axis: 0, block_size: 0, output_dtype: None };
const ALONG_COLUMNS: Dequantize = Dequantize { axis: 1, block_size: 0, output_dtype: None };
const WHOLE: Quantize = Quantize { saturate: true, axis: 1, block_size: 0, output_dtype: None };

/// The operand in slots `first` (integers), `first + 1` (scale) and `first + 2` (zero point).
fn operand(inputs: &[Option<Array>], first: usize, like: &Dequantize) -> Result<Operand, Fault> {
    let (x, scale) = (required(inputs, first)?, Array::from(required(inputs, first + 1)?.to_f32()?));
    let scales = like.scales(x.dtype(), &scale, optional(inputs, first + 2));
    let scales = scales.ok_or_else(|| Fault::unimplemented("scales that are neither scalars nor vectors"))?;
    Ok(Operand::Integer(scales, Some(x.clone())))
}

/// The output's parameters in slots 6 and 7, and the kernel's result on inputs 0 and 3.
fn run(
    inputs: &[Option<Array>],
    operands: Vec<Option<Operand>>,
    kernel: impl Fn(&Unit) -> Option<Box<dyn Kernel>>,
) -> Result<Vec<Array>, Fault> {
    let y = WHOLE.params(&Array::from(required(inputs, 6)?.to_f32()?), optional(inputs, 7));
    let y = y.ok_or_else(|| Fault::unimplemented("more than one output scale"))?;
    let unit = Unit { inputs: operands, outputs: vec![Some(y)] };
    let kernel = kernel(&unit).ok_or_else(|| Fault::unimplemented("this choice of types and scales"))?;
    kernel.run(&[optional(inputs, 0).cloned(), optional(inputs, 3).cloned()])
}

/// The type of the output with parameters in slot 7.
fn typed(inputs: &[Option<Fact>], dims: Option<Vec<crate::ir::Dim>>) -> Vec<Option<TensorType>> {
    vec![known(inputs, 7).map(|zero| TensorType { dtype: zero.dtype, dims })]
}

/// Conv between quantized tensors.
#[derive(Debug, Clone)]
pub struct QLinearConv(pub Conv);

impl Op for QLinearConv {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        Ok(typed(inputs, self.0.infer_dims(x, known(inputs, 3))?))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, w) = (operand(inputs, 0, &ALONG_COLUMNS)?, operand(inputs, 3, &ALONG_ROWS)?);
        let bias = optional(inputs, 8).map(|bias| {
            let factors = match (&x, &w) {
                (Operand::Integer(x, _), Operand::Integer(w, _)) => {
                    w.scales.iter().map(|s| x.scales[0] * s).collect()
                }
                _ => Vec::new(),
            };
            let zero_points = vec![0; factors.len()];
            let axis = (factors.len() > 1).then_some(0);
            Operand::Integer(Scales { dtype: DType::I32, scales: factors, zero_points, axis }, Some(bias.clone()))
        });
        run(inputs, vec![Some(x), Some(w), bias], |unit| integer::conv::prepare(&self.0, unit))
    }
}

/// MatMul between quantized tensors.
#[derive(Debug, Clone, Copy)]
pub struct QLinearMatMul;

impl Op for QLinearMatMul {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = |slot| known(inputs, slot).and_then(|t: &TensorType| t.dims.as_deref());
        Ok(typed(inputs, MatMul::infer_dims(dims(0), dims(3))?))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let operands = vec![Some(operand(inputs, 0, &ALONG_ROWS)?), Some(operand(inputs, 3, &ALONG_COLUMNS)?)];
        run(inputs, operands, integer::product::matmul)
    }
}

/// The integers less their zero point: one for all, or one for each index along `axis`.
fn centred(x: &Array, zero: Option<&Array>, axis: usize) -> Result<Nd<i32>, Fault> {
    let wide = |a: &Array| match a {
        Array::U8(a) => Ok(a.map(|&v| i32::from(v)).into_shared()),
        Array::I8(a) => Ok(a.map(|&v| i32::from(v)).into_shared()),
        other => Err(Fault::new(format!("expected 8-bit integers, found {}", other.dtype()))),
    };
    let mut x = wide(x)?;
    let Some(zero) = zero else { return Ok(x) };
    let zero = wide(zero)?;
    if zero.len() == 1 {
        let zero = zero.iter().next().copied().unwrap_or(0);
        x.mapv_inplace(|v| v - zero);
        return Ok(x);
    }
    let mut shape = vec![1; x.ndim()];
    match shape.get_mut(axis) {
        Some(extent) if zero.ndim() == 1 => *extent = zero.len(),
        // A zero point for each row of each matrix has the tensor's rank.
        _ => shape = zero.shape().to_vec(),
    }
    let zero = zero.into_shape_with_order(shape)?;
    match zero.broadcast(x.raw_dim()) {
        Some(zero) => Ok((&x - &zero).into_shared()),
        None => fail!("zero points {:?} do not fit {:?}", zero.shape(), x.shape()),
    }
}

/// Slices and their shape.
type Part<'a> = (&'a [f32], &'a [usize]);

/// Sums of products of small integers by the kernels for real numbers, which are exact as long as every sum is below 2²⁴:
/// the axes that are summed over are taken in parts that short, each index of which stands for `terms` products. `None` if
/// even one index is too much, or if there would have to be parts of a tensor that has to be `whole`.
fn exact(
    (x, along_x): (&Nd<i32>, usize),
    (w, along_w): (&Nd<i32>, usize),
    (terms, whole): (usize, bool),
    product: impl Fn(Part, Part) -> Result<(Vec<f32>, Vec<usize>), Fault>,
) -> Result<Option<Array>, Fault> {
    const EXACT: u64 = 1 << 24;
    let largest = |a: &Nd<i32>| a.iter().map(|v| u64::from(v.unsigned_abs())).max().unwrap_or(0).max(1);
    let most = EXACT / (largest(x) * largest(w)) / terms.max(1) as u64;
    let (step, length) = (usize::try_from(most).unwrap_or(usize::MAX), w.len_of(Axis(along_w)));
    let fits = whole || x.len_of(Axis(along_x)) == length;
    if step == 0 || length == 0 || !fits || (whole && step < length) {
        return Ok(None);
    }
    let real = |a: &Nd<i32>, axis: usize, from: usize, to: usize| {
        let part = if whole { a.view() } else { a.slice_axis(Axis(axis), (from..to).into()) };
        part.map(|&v| v as f32).as_standard_layout().into_owned()
    };
    let mut sums: Option<(Vec<i32>, Vec<usize>)> = None;
    for from in (0..length).step_by(step) {
        let to = from.saturating_add(step).min(length);
        let (x, w) = (real(x, along_x, from, to), real(w, along_w, from, to));
        let (x_slice, w_slice) = (x.as_slice().unwrap_or_default(), w.as_slice().unwrap_or_default());
        let (part, shape) = product((x_slice, x.shape()), (w_slice, w.shape()))?;
        match &mut sums {
            None => sums = Some((part.into_iter().map(|v| v as i32).collect(), shape)),
            Some((sums, _)) => sums.iter_mut().zip(part).for_each(|(s, v)| *s = s.wrapping_add(v as i32)),
        }
    }
    sums.map(|(sums, shape)| Array::new(&shape, sums)).transpose()
}

/// Conv of integers with 32-bit sums.
#[derive(Debug, Clone)]
pub struct ConvInteger(pub Conv);

impl Op for ConvInteger {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = self.0.infer_dims(x, known(inputs, 1))?;
        Ok(vec![Some(TensorType { dtype: DType::I32, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = centred(required(inputs, 0)?, optional(inputs, 2), 1)?;
        let w = centred(required(inputs, 1)?, optional(inputs, 3), 0)?;
        let taps = w.shape().iter().skip(2).product();
        if x.ndim() > 2 && x.ndim() == w.ndim() {
            let product = |x: Part, w: Part| self.0.compute(x, w, None);
            if let Some(y) = exact((&x, 1), (&w, 1), (taps, self.0.group != 1), product)? {
                return Ok(vec![y]);
            }
        }
        let (y, shape) = self.0.compute((elements(&x)?, x.shape()), (elements(&w)?, w.shape()), None)?;
        Ok(vec![Array::new(&shape, y)?])
    }
}

/// MatMul of integers with 32-bit sums.
#[derive(Debug, Clone, Copy)]
pub struct MatMulInteger;

impl Op for MatMulInteger {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = |slot| known(inputs, slot).and_then(|t: &TensorType| t.dims.as_deref());
        let dims = MatMul::infer_dims(dims(0), dims(1))?;
        Ok(vec![Some(TensorType { dtype: DType::I32, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let rows = required(inputs, 0)?.rank().saturating_sub(2);
        let a = centred(required(inputs, 0)?, optional(inputs, 2), rows)?;
        let b = required(inputs, 1)?;
        let b = centred(b, optional(inputs, 3), b.rank().saturating_sub(1))?;
        if a.ndim() > 1 && b.ndim() > 1 && a.shape().last() == b.shape().get(b.ndim() - 2) {
            let axes = (a.ndim() - 1, b.ndim() - 2);
            if let Some(y) = exact((&a, axes.0), (&b, axes.1), (1, false), MatMul::compute)? {
                return Ok(vec![y]);
            }
        }
        let (y, shape) = MatMul::compute((elements(&a)?, a.shape()), (elements(&b)?, b.shape()))?;
        Ok(vec![Array::new(&shape, y)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(shape: &[usize], seed: u32) -> Array {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        Array::new(shape, (0..shape.iter().product()).map(|_| next()).collect::<Vec<u8>>()).unwrap()
    }

    /// The sums of the plain loop, in parts and at once.
    #[test]
    fn parts_add_up_exactly() {
        let zero = Some(Array::scalar(117u8));
        for (m, k, n) in [(3, 5, 4), (2, 1000, 7), (1, 257, 1), (4, 256, 3)] {
            let (a, b) = (bytes(&[2, m, k], 1), bytes(&[k, n], 2));
            let (x, w) = (centred(&a, zero.as_ref(), 1).unwrap(), centred(&b, zero.as_ref(), 1).unwrap());
            let (plain, shape) =
                MatMul::compute((elements(&x).unwrap(), x.shape()), (elements(&w).unwrap(), w.shape())).unwrap();
            let found = MatMulInteger.float(&[Some(a), Some(b), zero.clone(), zero.clone()]).unwrap();
            assert_eq!(found, [Array::new(&shape, plain).unwrap()], "{m} {k} {n}");
        }
        for (channels, group, kernel) in [(3, 1, 3), (600, 1, 3), (8, 8, 3), (600, 2, 1), (2, 1, 19)] {
            let attributes = [crate::ir::attribute::int("group", group as i64)];
            let mut attrs = crate::ops::Attrs::new(&attributes, 10, 4, 1);
            let conv = ConvInteger(Conv::read(&mut attrs).unwrap());
            let (x, w) = (bytes(&[2, channels, 20, 21], 3), bytes(&[8, channels / group, kernel, kernel], 4));
            let (cx, cw) = (centred(&x, zero.as_ref(), 1).unwrap(), centred(&w, zero.as_ref(), 0).unwrap());
            let whole = ((elements(&cx).unwrap(), cx.shape()), (elements(&cw).unwrap(), cw.shape()));
            let (plain, shape) = conv.0.compute(whole.0, whole.1, None).unwrap();
            let found = conv.float(&[Some(x), Some(w), zero.clone(), zero.clone()]).unwrap();
            assert_eq!(found, [Array::new(&shape, plain).unwrap()], "{channels} {group} {kernel}");
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_a_fault() {
        let attrs = crate::ops::Attrs::new(&[], 10, 4, 1);
        let conv = ConvInteger(Conv::read(&mut { attrs }).unwrap());
        assert!(conv.float(&[Some(bytes(&[1, 3, 4, 4], 1)), Some(bytes(&[2, 5, 1, 1], 2))]).is_err());
        assert!(MatMulInteger.float(&[Some(bytes(&[2, 3], 1)), Some(bytes(&[5, 2], 2))]).is_err());
    }

    #[test]
    fn backend_cases() {
        crate::ops::backend_tests::run("qlinear");
    }
}
