//! Bias correction (Nagel et al. 2019, section 4.2, <https://arxiv.org/abs/1906.04721>): what the rounding of a weight
//! adds to the mean of each output channel, `ΔW·E[x]`, is taken off the bias.
//!
//! The border of a convolution, where padding stands for inputs, is not told apart.

use super::moments::Means;
use crate::error::Fault;
use crate::interpret::node_label;
use crate::ir::{Array, Graph, NodeId, Tensor, ValueId};
use crate::ops::conv::Conv;
use crate::ops::gemm::Gemm;

/// What each output channel of a product adds up to, without bias, if every input is the mean of its channel; `None` for
/// operators and forms that are not handled.
pub fn response(graph: &Graph, id: NodeId, weight: &Array, means: &[f64]) -> Option<Vec<f64>> {
    let (node, shape, w) = (graph.node(id), weight.shape(), weight.slice::<f32>().ok()?);
    if let Some(conv) = node.op_as::<Conv>() {
        let (&outputs, &depth) = (shape.first()?, shape.get(1)?);
        let (taps, group) = (shape[2..].iter().product::<usize>(), conv.group);
        if means.len() != depth * group || outputs % group != 0 || w.is_empty() {
            return None;
        }
        let channel = |(o, kernel): (usize, &[f32])| {
            let own = &means[o / (outputs / group) * depth..][..depth];
            let sum = |taps: &[f32]| taps.iter().map(|&x| f64::from(x)).sum::<f64>();
            kernel.chunks(taps).zip(own).map(|(taps, mean)| sum(taps) * mean).sum()
        };
        return Some(w.chunks(depth * taps).enumerate().map(channel).collect());
    }
    let gemm = node.op_as::<Gemm>();
    let plain = gemm.is_some_and(|g| !g.trans_a && g.alpha == 1.0 && g.beta == 1.0);
    let (&[first, second], true) = (shape, plain || node.is("MatMul")) else { return None };
    let by_row = gemm.is_some_and(|g| g.trans_b);
    let (inputs, outputs) = if by_row { (second, first) } else { (first, second) };
    (means.len() == inputs && inputs > 0).then_some(())?;
    let mut sums = vec![0f64; outputs];
    for (index, &x) in w.iter().enumerate() {
        let (i, o) =
            if by_row { (index % inputs, index / inputs) } else { (index / outputs, index % outputs) };
        sums[o] += f64::from(x) * means[i];
    }
    Some(sums)
}

/// The data input of a product and the axis of it that is summed over.
pub fn depth(graph: &Graph, id: NodeId) -> Option<(ValueId, usize)> {
    let (node, input) = (graph.node(id), graph.input(id, 0)?);
    let last = || graph.ty(input)?.rank()?.checked_sub(1);
    let axis = match node.op_as::<Conv>() {
        Some(_) => 1,
        None => last().filter(|_| node.is("MatMul") || node.is("Gemm"))?,
    };
    Some((input, axis))
}

/// Corrects the biases of products whose weight is a constant in `reference` and dequantized in `graph`, which was made
/// from it. Returns the labels of the nodes.
pub fn correct(reference: &Graph, graph: &mut Graph, means: &Means) -> Result<Vec<String>, Fault> {
    let mut corrected = Vec::new();
    for id in graph.nodes().collect::<Vec<_>>() {
        let (Some((input, axis)), Some(weight)) = (depth(graph, id), graph.input(id, 1)) else { continue };
        let real = reference.has_still(weight, graph).then(|| reference.constant(weight)).flatten();
        let means = means.get(&(graph.name(input).to_string(), axis));
        let (Some(real), Some(means)) = (real, means) else { continue };
        let Some(stored) = dequantized(graph, weight) else { continue };
        let real = real.array()?;
        let (Some(was), Some(is)) = (response(graph, id, &real, means), response(graph, id, &stored, means))
        else {
            continue;
        };
        let shift: Vec<f32> = was.iter().zip(&is).map(|(was, is)| (was - is) as f32).collect();
        if shift.iter().all(|s| s.is_finite()) && add(graph, id, &shift)? {
            corrected.push(node_label(graph, id));
        }
    }
    Ok(corrected)
}

/// What a DequantizeLinear of constants returns.
fn dequantized(graph: &Graph, value: ValueId) -> Option<Array> {
    let (id, _) = graph.producer(value)?;
    let dequantize = graph.node(id).op.as_ref().filter(|_| graph.node(id).is("DequantizeLinear"))?;
    let inputs = graph.inputs_of(id).into_iter().map(|v| graph.constant(v?)?.array().ok());
    let inputs: Vec<Option<Array>> = inputs.map(Some).collect::<Option<_>>()?;
    dequantize.float(&inputs).ok()?.into_iter().next()
}

/// Adds to the bias of a product, which a MatMul has in a following Add; tells whether there is a place for it.
fn add(graph: &mut Graph, id: NodeId, shift: &[f32]) -> Result<bool, Fault> {
    let (place, slot) = if graph.node(id).is("MatMul") {
        let Some(usage) =
            graph.output(id, 0).filter(|&v| !graph.is_output(v)).and_then(|v| graph.only_use(v))
        else {
            return Ok(false);
        };
        let constant = (0..2).find(|&slot| graph.constant_input(usage.node, slot).is_some());
        let (true, Some(slot)) = (graph.node(usage.node).is("Add"), constant) else { return Ok(false) };
        (usage.node, slot)
    } else {
        (id, 2)
    };
    let hint = format!("{}_bias", node_label(graph, id));
    let Some(bias) = graph.input(place, slot) else {
        let made = graph.add_constant(&hint, Tensor::from_array(&Array::vector(shift.to_vec())));
        graph.rewire(place, slot, Some(made));
        return Ok(true);
    };
    let Some(array) = graph.constant(bias).map(Tensor::array).transpose()? else { return Ok(false) };
    let by_channel = array.len() == shift.len() && array.shape().last() == Some(&shift.len());
    let (true, Ok(old)) = (by_channel, array.slice::<f32>()) else { return Ok(false) };
    let new: Vec<f32> = old.iter().zip(shift).map(|(b, s)| b + s).collect();
    let tensor = Tensor::from_array(&Array::new(array.shape(), new)?);
    if graph.only_use(bias).is_some() && !graph.is_output(bias) {
        graph.set_constant(bias, tensor);
    } else {
        let made = graph.add_constant(&hint, tensor);
        graph.rewire(place, slot, Some(made));
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
