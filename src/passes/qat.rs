//! Models that were trained with quantization, as their exporters write them.
//!
//! A learned scale is kept as it is, whatever its form: real weights behind QuantizeLinear (PyTorch) become integers;
//! integer Clips for fewer bits or narrow ranges (Brevitas QCDQ) move into the real numbers before QuantizeLinear, or into
//! the constants; the nodes of the QONNX dialect become QuantizeLinear and DequantizeLinear; BatchNormalization that was
//! left behind a quantized weight goes into its scales; weights that were rounded and stored as real numbers (tf2onnx)
//! become integers again; biases become 32-bit integers.

mod bias;
mod dialect;
mod lattice;
mod moved;
mod norm;

pub use bias::IntegerBias;
pub use dialect::QonnxDialect;
pub use lattice::LatticeWeight;
pub use moved::MoveIntegers;
pub use norm::FoldIntoQuantized;

use super::{Rewrite, node};
use crate::interpret::node_label;
use crate::ir::affine::limits;
use crate::ir::{Array, DType, Edit, Graph, NodeId, Refusal, Tensor, ValueId};
use crate::ops::quantize::{Dequantize, Quantize};

/// Does the pass of this name change how quantized values are written, rather than move them?
pub fn lowers(pass: &str) -> bool {
    let family: [&dyn Rewrite; 6] =
        [&QonnxDialect, &QuantizedConstant, &IntegerClip, &LatticeWeight, &FoldIntoQuantized, &IntegerBias];
    family.iter().any(|rewrite| rewrite.name() == pass)
}

/// QuantizeLinear of a constant.
pub struct QuantizedConstant;

impl Rewrite for QuantizedConstant {
    fn name(&self) -> &'static str {
        "quantized-constant"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let Some(quantize) = graph.node(id).op_as::<Quantize>() else { return Ok(None) };
        let (Some(output), Some(_)) = (graph.output(id, 0), graph.constant_input(id, 0)) else {
            return Ok(None);
        };
        let mut inputs = Vec::new();
        for value in graph.inputs_of(id) {
            let array = match value.map(|v| graph.constant(v)) {
                None => None,
                Some(Some(tensor)) => Some(tensor.array().map_err(|f| f.to_string())?),
                Some(None) => return Err("its scale or zero point is computed".into()),
            };
            inputs.push(array);
        }
        let integers = crate::ir::Op::float(quantize, &inputs).map_err(|f| f.to_string())?.remove(0);
        let mut edit = Edit::dropping(&[id]);
        edit.define(output, Tensor::from_array(&integers));
        Ok(Some(edit))
    }
}

/// A Clip on integers between QuantizeLinear and DequantizeLinear.
pub struct IntegerClip;

impl Rewrite for IntegerClip {
    fn name(&self) -> &'static str {
        "integer-clip"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        if !graph.node(id).is("Clip") {
            return Ok(None);
        }
        let (Some(stored), Some(output)) = (graph.input(id, 0), graph.output(id, 0)) else { return Ok(None) };
        let Some((quantize, _)) =
            graph.producer(stored).filter(|(p, _)| graph.node(*p).op_as::<Quantize>().is_some())
        else {
            return Ok(None);
        };
        let dtype = dtype_of(graph, quantize);
        let Some((low, high)) = limits(dtype) else { return Ok(None) };
        let bound = |slot: usize, whole: i32| match graph.input(id, slot) {
            None => Some(whole),
            Some(v) => integer(graph.constant(v)?),
        };
        let (Some(least), Some(greatest)) = (bound(1, low), bound(2, high)) else {
            return Err("its bounds are computed".into());
        };
        if least <= low && greatest >= high {
            let mut edit = Edit::dropping(&[id]);
            edit.forward(output, stored);
            return Ok(Some(edit));
        }
        if graph.only_use(stored).is_none() {
            return Err(format!("`{}` is used elsewhere", graph.name(stored)).into());
        }
        let (Some(x), Some(scale)) = (graph.input(quantize, 0), graph.input(quantize, 1)) else {
            return Ok(None);
        };
        let Some([scale_value]) = graph
            .constant(scale)
            .and_then(reals)
            .as_deref()
            .map(|s| [s[0]; 1])
            .filter(|_| graph.constant(scale).is_some_and(|t| t.len() == 1))
        else {
            return Err("its scale is not one number".into());
        };
        let zero = match graph.input(quantize, 2) {
            None => 0,
            Some(v) => graph.constant(v).and_then(integer).ok_or("its zero point is computed")?,
        };
        let mut edit = Edit::dropping(&[quantize, id]);
        let name = graph.name(x).to_string();
        let real = |q: i32| Tensor::from_array(&Array::scalar((q - zero) as f32 * scale_value));
        let bounds = [
            edit.constant(&format!("{name}_low"), real(least)),
            edit.constant(&format!("{name}_high"), real(greatest)),
        ];
        let clipped = edit.value(&format!("{name}_clipped"), graph.ty(x).cloned());
        let clip = node("Clip", node_label(graph, id), vec![], 3);
        edit.apply(clip, &[x.into(), bounds[0], bounds[1]], clipped);
        let mut again = graph.node(quantize).clone();
        again.rank = graph.node(id).rank;
        let parameters = graph.inputs_of(quantize).into_iter().skip(1).map(|v| v.map(Into::into));
        edit.node(
            again,
            std::iter::once(Some(clipped)).chain(parameters).collect(),
            vec![Some(output.into())],
        );
        Ok(Some(edit))
    }
}

/// The type that a QuantizeLinear gives.
fn dtype_of(graph: &Graph, quantize: NodeId) -> DType {
    let zero = graph.constant_input(quantize, 2).map(Tensor::dtype);
    let attribute = graph.node(quantize).op_as::<Quantize>().and_then(|q| q.output_dtype);
    zero.or(attribute).unwrap_or(DType::U8)
}

/// A constant of one whole number.
fn integer(tensor: &Tensor) -> Option<i32> {
    match *reals(tensor)?.as_slice() {
        [value] => Some(value as i32),
        _ => None,
    }
}

/// The elements of a constant as real numbers.
fn reals(tensor: &Tensor) -> Option<Vec<f32>> {
    Some(tensor.array().ok()?.to_f32().ok()?.iter().copied().collect())
}

/// A constant behind a DequantizeLinear.
struct Quantized {
    dequantize: NodeId,
    integers: ValueId,
    scales: Vec<f32>,
    /// The axis that several scales run along.
    axis: Option<usize>,
    /// Zero points are 0.
    symmetric: bool,
}

impl Quantized {
    /// What defines a value, if it is a dequantized constant.
    fn of(graph: &Graph, value: ValueId) -> Option<Self> {
        let (dequantize, _) = graph.producer(value)?;
        let op = graph.node(dequantize).op_as::<Dequantize>().filter(|d| d.block_size == 0)?;
        let integers = graph.input(dequantize, 0)?;
        let shape = graph.constant(integers)?.shape();
        let scales = reals(graph.constant_input(dequantize, 1)?)?;
        let zero = graph.input(dequantize, 2).map(|z| reals(graph.constant(z)?));
        let symmetric = zero.is_none_or(|z| z.is_some_and(|z| z.iter().all(|&z| z == 0.0)));
        let axis = match scales.len() {
            1 => None,
            _ => Some(crate::ops::slots::axis(op.axis, shape.len()).ok()?),
        };
        Some(Self { dequantize, integers, scales, axis, symmetric })
    }
}
