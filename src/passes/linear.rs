//! Affine maps by channel fold into the linear operator before them.
//!
//! A Conv, ConvTranspose, Gemm or MatMul computes `y = W·x + b`. What follows it by channel, `z = s·y + t`, is
//! `z = (s·W)·x + (s·b + t)`. BatchNormalization at inference is `s = γ / √(σ² + ε)`, `t = β - s·μ`; a product or a
//! sum with a constant is the same with `t = 0` or `s = 1`. Coefficients are computed in `f64`.

mod gate;
mod weights;

use super::{Rewrite, node};
use crate::interpret::node_label;
use crate::ir::{Array, DType, Edit, Graph, NodeId, Operand, Refusal, Tensor, TensorType, ValueId};
use crate::ops::normalize::BatchNormalization;
use weights::Linear;

pub use gate::HardSigmoidToClip;

/// BatchNormalization after a linear operator.
pub struct FoldBatchNormalization;

impl Rewrite for FoldBatchNormalization {
    fn name(&self) -> &'static str {
        "fold-batch-normalization"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let Some(norm) = graph.node(id).op_as::<BatchNormalization>() else { return Ok(None) };
        if graph.outputs_of(id).iter().skip(1).flatten().next().is_some() {
            return Err("it returns statistics: training mode".into());
        }
        let parameter = |slot: usize| -> Option<Vec<f64>> {
            let values = graph.constant_input(id, slot)?.array().ok()?.to_f32().ok()?;
            Some(values.iter().map(|&v| f64::from(v)).collect())
        };
        let (Some(gamma), Some(beta), Some(mean), Some(variance)) =
            (parameter(1), parameter(2), parameter(3), parameter(4))
        else {
            return Err("its parameters are computed".into());
        };
        let scale: Vec<f64> =
            gamma.iter().zip(&variance).map(|(g, v)| g / (v + f64::from(norm.epsilon)).sqrt()).collect();
        let shift: Vec<f64> = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        if scale.iter().chain(&shift).any(|v| !v.is_finite()) {
            return Err("its parameters give infinite coefficients".into());
        }
        let Some(input) = graph.input(id, 0) else { return Ok(None) };
        fold(graph, id, input, &Affine { scale, shift })
    }
}

/// A product with a constant by channel after a linear operator.
pub struct FoldScale;

impl Rewrite for FoldScale {
    fn name(&self) -> &'static str {
        "fold-scale"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let Some((input, factors)) = by_channel(graph, id, "Mul") else { return Ok(None) };
        let shift = vec![0.0; factors.len()];
        fold(graph, id, input, &Affine { scale: factors, shift })
    }
}

/// A sum with a constant by channel after a linear operator that has a bias.
pub struct FoldShift;

impl Rewrite for FoldShift {
    fn name(&self) -> &'static str {
        "fold-shift"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let Some((input, shift)) = by_channel(graph, id, "Add") else { return Ok(None) };
        if graph.producer(input).is_none_or(|(p, _)| graph.node(p).is("MatMul")) {
            return Ok(None); // it has no bias to fold into
        }
        let scale = vec![1.0; shift.len()];
        fold(graph, id, input, &Affine { scale, shift })
    }
}

/// `z = scale·y + shift` by channel; vectors of length 1 hold for every channel.
struct Affine {
    scale: Vec<f64>,
    shift: Vec<f64>,
}

/// For `x ∘ c` with a constant whose elements differ along the channel axis of a linear operator at most: `x` and
/// the elements.
fn by_channel(graph: &Graph, id: NodeId, op_type: &str) -> Option<(ValueId, Vec<f64>)> {
    let node = graph.node(id);
    if !node.is(op_type) || node.unknown.is_some() {
        return None;
    }
    let (a, b) = (graph.input(id, 0)?, graph.input(id, 1)?);
    let (x, c) = if graph.constant(b).is_some() { (a, b) } else { (b, a) };
    let (producer, _) = graph.producer(x)?;
    let convolution = graph.node(producer).is("Conv") || graph.node(producer).is("ConvTranspose");
    let tensor = graph.constant(c)?;
    let rank = match convolution {
        true => graph.constant_input(producer, 1)?.shape().len(),
        false => graph.ty(x).and_then(|t| t.rank()).unwrap_or(1),
    };
    let shape = tensor.shape();
    // Counted from the right, as broadcasting does.
    let channel = if convolution { rank.checked_sub(2)? } else { 0 };
    let varies = |(i, &d): (usize, &usize)| d != 1 && i != channel;
    if shape.len() > rank || shape.iter().rev().enumerate().any(varies) {
        return None;
    }
    let values = tensor.array().ok()?.get::<f32>()?.iter().map(|&v| f64::from(v)).collect();
    Some((x, values))
}

/// Replaces the linear operator that defines `input`, and `id` after it, by one linear operator.
fn fold(graph: &Graph, id: NodeId, input: ValueId, map: &Affine) -> Result<Option<Edit>, Refusal> {
    let Some((producer, _)) = graph.producer(input) else { return Ok(None) };
    let Some(linear) = Linear::of(graph, producer)? else { return Ok(None) };
    let Some(output) = graph.output(id, 0) else { return Ok(None) };
    if graph.ty(input).is_some() && graph.only_use(input).is_none() {
        return Err(format!("`{}` is used elsewhere", graph.name(input)).into());
    }
    let channels = linear.channels();
    let expand = |v: &[f64]| if v.len() == 1 { vec![v[0]; channels] } else { v.to_vec() };
    let (scale, shift) = (expand(&map.scale), expand(&map.shift));
    if scale.len() != channels || shift.len() != channels {
        return Err(format!("{} coefficients for {channels} channels", scale.len().max(shift.len())).into());
    }
    let mut edit = Edit::dropping(&[producer, id]);
    let folded = linear.scaled(&scale, &shift)?;
    match (folded.bias.clone(), linear.takes_bias()) {
        (Some(bias), false) if bias.iter().any(|&b| b != 0.0) => {
            let product = edit.value(&format!("{}_product", graph.name(output)), graph.ty(output).cloned());
            folded.add_node(graph, &mut edit, None, product);
            let bias = edit.constant(&format!("{}_bias", graph.name(output)), vector(bias));
            edit.apply(node("Add", node_label(graph, id), vec![], 2), &[product, bias], output);
        }
        (bias, takes) => folded.add_node(graph, &mut edit, bias.filter(|_| takes), output.into()),
    }
    Ok(Some(edit))
}

fn vector(values: Vec<f32>) -> Tensor {
    Tensor::from_array(&Array::vector(values))
}

/// `MatMul(x, W) + b` with `x` and `W` of rank 2 becomes Gemm, which has an integer kernel with a bias. So does an `x` of
/// higher rank if its shape is known, between two Reshapes: ONNX Runtime would do that too, but keep a float bias, for
/// which it has no integer kernel. A Gemm whose `alpha` or `beta` is not 1 gets them folded into its constants.
pub struct MatMulAddToGemm;

impl Rewrite for MatMulAddToGemm {
    fn name(&self) -> &'static str {
        "matmul-add-to-gemm"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        if let Some(linear) = Linear::of(graph, id)?.filter(Linear::has_factors) {
            let Some(output) = graph.output(id, 0) else { return Ok(None) };
            let ones = vec![1.0; linear.channels()];
            let folded = linear.scaled(&ones, &vec![0.0; ones.len()])?;
            let mut edit = Edit::dropping(&[id]);
            let bias = folded.bias.clone().filter(|_| graph.input(id, 2).is_some());
            folded.add_node(graph, &mut edit, bias, output.into());
            return Ok(Some(edit));
        }
        let Some((product, bias)) = by_channel(graph, id, "Add") else { return Ok(None) };
        let Some((producer, _)) = graph.producer(product) else { return Ok(None) };
        let (Some(x), Some(w), Some(output)) =
            (graph.input(producer, 0), graph.input(producer, 1), graph.output(id, 0))
        else {
            return Ok(None);
        };
        if !graph.node(producer).is("MatMul") || graph.constant(w).is_none() {
            return Ok(None);
        }
        let rank = |v| graph.ty(v).and_then(|t| t.rank());
        let shape = graph.ty(x).and_then(|t| t.shape()).filter(|s| s.len() > 2 && !s.contains(&0));
        let (true, Some(&[depth, channels])) =
            (rank(x) == Some(2) || shape.is_some(), graph.constant(w).map(Tensor::shape))
        else {
            return Ok(None);
        };
        let bias: Vec<f32> = bias.iter().map(|&b| b as f32).collect();
        let bias = if bias.len() == 1 { vec![bias[0]; channels] } else { bias };
        if bias.len() != channels {
            return Ok(None);
        }
        let mut edit = Edit::dropping(&[producer, id]);
        let bias = edit.constant(&format!("{}_bias", graph.name(output)), vector(bias));
        let gemm = node("Gemm", node_label(graph, producer), vec![], 3);
        let Some(mut shape) = shape else {
            edit.apply(gemm, &[x.into(), w.into(), bias], output);
            return Ok(Some(edit));
        };
        let rows: usize = shape[..shape.len() - 1].iter().product();
        let reshape = |edit: &mut Edit, from: Operand, to: Operand, shape: &[usize], what: &str| {
            let name = format!("{}_{what}", graph.name(output));
            let dims = Array::vector(shape.iter().map(|&d| d as i64).collect::<Vec<_>>());
            let dims = edit.constant(&format!("{name}_shape"), Tensor::from_array(&dims));
            edit.apply(node("Reshape", name, vec![], 2), &[from, dims], to);
        };
        let (flat, product) = (format!("{}_rows", graph.name(x)), format!("{}_rows", graph.name(output)));
        let flat = edit.value(&flat, Some(TensorType::known(DType::F32, &[rows, depth])));
        let product = edit.value(&product, Some(TensorType::known(DType::F32, &[rows, channels])));
        reshape(&mut edit, x.into(), flat, &[rows, depth], "flatten");
        edit.apply(gemm, &[flat, w.into(), bias], product);
        if let Some(last) = shape.last_mut() {
            *last = channels;
        }
        reshape(&mut edit, product, output.into(), &shape, "unflatten");
        Ok(Some(edit))
    }
}
