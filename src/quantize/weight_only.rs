//! Dynamic-range quantization: weights in `int8`, arithmetic in float, no data needed.
//!
//! Each weight is stored as symmetric `int8` by output channel behind a DequantizeLinear that defines it under its old
//! name: whoever read the weight, in this graph or in a body of If, Loop or Scan, reads it still, and a weight with many
//! readers is stored once. Where a runtime does not fuse the two, the integers are `uint8` with a zero point, along the
//! axis that loses least. With [`blocked`], products store their weight in 4 bits. Tables of Gather are stored as `uint8`
//! and gathered before they are dequantized, so that only the rows that are wanted become real numbers.

pub mod blocked;
pub mod gptq;
mod readers;
mod round;
mod store;

use std::collections::{BTreeMap, BTreeSet};

use self::blocked::{Blocked, Grams};
use self::gptq::Gram;
use self::readers::{Reader, Role, is_fused, readers};
use super::candidate::Filter;
use super::recurrent::WEIGHTS;
use crate::error::Fault;
use crate::ir::{DType, Floats, Graph, NodeId, Tensor, TensorType, ValueId};
use crate::ops;
use crate::ops::gemm::Gemm;

/// Smaller constants are not worth a scale and a node.
const MIN_ELEMENTS: usize = 256;

/// Weights of raw features stay in 16 bits if there are so many times as many others.
const RAW_SHARE: usize = 32;

/// What was done to the weights.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// Nodes that were quantized, as labels.
    pub nodes: BTreeSet<String>,
    /// Beside them, those whose weights are stored in integers while they compute in float.
    pub stored: BTreeSet<String>,
    /// Nodes that keep float weights, and why.
    pub float: Vec<(String, String)>,
}

/// How weights are stored.
#[derive(Debug, Default)]
pub struct Storage {
    /// In 4 bits, if so; else in 8.
    pub blocked: Option<Blocked>,
    /// What the samples say about the inputs of weights in the main graph.
    pub grams: Grams,
    /// Elements of all weights of the main graph; 0: none is stored in 16 bits.
    elements: usize,
}

impl Storage {
    /// In 4 bits if `blocked` is given, by what the samples say; else in 8.
    pub fn new(blocked: Option<Blocked>, grams: Grams) -> Self {
        Self { blocked, grams, elements: 0 }
    }
}

/// Quantizes the weights of a graph and of the bodies in it.
pub fn quantize(graph: &mut Graph, filter: &Filter, mut storage: Storage) -> Result<Stored, Fault> {
    let mut done = Stored::default();
    storage.elements = graph.constants.iter().filter_map(|&c| is_large(graph, c)).map(Tensor::len).sum();
    each_graph(graph, &mut |graph| {
        for value in graph.constants.clone() {
            weight(graph, value, filter, &storage, &mut done)?;
        }
        // What follows are bodies, with ids of their own, and inputs that do not come from outside.
        (storage.grams, storage.elements) = (Grams::new(), 0);
        Ok(())
    })?;
    done.float.retain(|(label, _)| !done.nodes.contains(label));
    Ok(done)
}

/// Beside operators in integers: stores what the float ones read in 8 bits where that costs no time. Those are tables, of
/// which only gathered rows become real numbers, and matrices that float activations are multiplied by, for which ONNX
/// Runtime has a kernel of its own. These recurrent layers as well, unless they weigh raw features.
pub fn quantize_beside(
    graph: &mut Graph,
    filter: &Filter,
    recurrent: &BTreeMap<NodeId, f64>,
) -> Result<Stored, Fault> {
    let mut done = Stored::default();
    for value in graph.constants.clone() {
        let matrix = graph.constant(value).is_some_and(|t| t.shape().len() == 2);
        let cheap = |r: &Reader| match (r.role, r.place) {
            (Role::Table, _) => true,
            (Role::Weight(_), Some((node, 1))) if matrix && graph.node(node).is("MatMul") => true,
            (Role::Weight(_), Some((node, slot))) => {
                recurrent.contains_key(&node) && WEIGHTS.contains(&slot) && !r.weighs_raw_features(graph)
            }
            _ => false,
        };
        let readers = readers(graph, value, filter);
        if !readers.is_empty() && readers.iter().all(cheap) {
            weight(graph, value, filter, &Storage::default(), &mut done)?;
        }
    }
    Ok(done)
}

/// Visits a graph, then the bodies of its nodes. Names made in the graph are kept from its bodies and the other way
/// round.
pub fn each_graph(
    graph: &mut Graph,
    visit: &mut dyn FnMut(&mut Graph) -> Result<(), Fault>,
) -> Result<(), Fault> {
    visit(graph)?;
    let owners: Vec<_> = graph.nodes().filter(|&n| !graph.node(n).bodies.is_empty()).collect();
    for id in owners {
        let names = graph.all_names();
        let mut bodies = std::mem::take(&mut graph.node_mut(id).bodies);
        for body in &mut bodies {
            let hidden: Vec<_> = names.iter().filter(|n| body.graph.find(n).is_none()).cloned().collect();
            body.graph.reserve(hidden);
            each_graph(&mut body.graph, visit)?;
            graph.reserve(body.graph.all_names());
        }
        graph.node_mut(id).bodies = bodies;
    }
    Ok(())
}

/// Is it a constant worth quantizing?
pub fn is_large(graph: &Graph, value: ValueId) -> Option<&Tensor> {
    let tensor = graph.constant(value)?;
    (tensor.dtype() == DType::F32 && tensor.len() >= MIN_ELEMENTS && !graph.is_output(value))
        .then_some(tensor)
}

/// Quantizes one constant if it is a weight.
fn weight(
    graph: &mut Graph,
    value: ValueId,
    filter: &Filter,
    storage: &Storage,
    done: &mut Stored,
) -> Result<(), Fault> {
    let Some(tensor) = is_large(graph, value) else { return Ok(()) };
    let readers = readers(graph, value, filter);
    if readers.iter().all(|r| matches!(r.role, Role::Other)) {
        return Ok(());
    }
    let (tensor, real) = (tensor.clone(), Floats::of(tensor)?);
    let shape = tensor.shape();
    let refusal = readers.iter().find_map(|r| r.refused.clone());
    let refusal =
        refusal.or_else(|| (!round::all_finite(&real)).then(|| "its weight is not finite".to_string()));
    if let Some(reason) = refusal {
        let mut told: Vec<String> = readers.into_iter().map(|r| r.label).collect();
        told.dedup();
        done.float.extend(told.into_iter().map(|label| (label, reason.clone())));
        return Ok(());
    }
    let minor = tensor.len().saturating_mul(RAW_SHARE) <= storage.elements;
    if minor && readers.iter().any(|r| r.weighs_raw_features(graph)) && round::fits_half(&real) {
        let reason = "features from outside may differ in scale by orders: its weight has 16 bits";
        done.float.extend(readers.into_iter().map(|r| (r.label, reason.to_string())));
        store::halve(graph, value, round::halves(&real, shape));
        return Ok(());
    }
    let names = readers.iter().filter(|r| !matches!(r.role, Role::Other)).map(|r| r.label.clone()).collect();
    let four_bits = match storage.blocked {
        Some(blocked) => in_blocks(graph, value, &tensor, &readers, blocked, storage.grams.get(&value))?,
        None => false,
    };
    let axis = readers.iter().find_map(|r| match r.role {
        Role::Weight(axis) => Some(axis),
        _ => None,
    });
    match axis {
        _ if four_bits => {}
        None => store::gather(graph, value, round::table(&real, shape)),
        Some(axis) if readers.iter().any(|r| is_fused(r, graph, shape.len())) => {
            store::define(graph, value, round::symmetric(&real, shape, axis)?);
        }
        Some(axis) => {
            let axes = worthwhile_axes(shape, axis);
            store::define(graph, value, round::closest(&real, shape, &axes)?);
        }
    }
    match storage.blocked {
        Some(_) if !four_bits => done.stored.extend::<Vec<_>>(names),
        _ => done.nodes.extend::<Vec<_>>(names),
    }
    Ok(())
}

/// The axis of the output channels, and the first that counts inputs, unless scales would take a fair share of the file.
fn worthwhile_axes(shape: &[usize], channels: Option<usize>) -> Vec<Option<usize>> {
    const LEAST_PER_SCALE: usize = 64;
    let count: usize = shape.iter().product();
    let other = |&a: &usize| Some(a) != channels && shape[a] >= 8 && count / shape[a] >= LEAST_PER_SCALE;
    let others = (0..shape.len().min(3)).filter(other).map(Some);
    [channels].into_iter().chain(others).collect()
}

/// Stores a weight in 4 bits if all its readers can take it so, and the loss is bearable.
fn in_blocks(
    graph: &mut Graph,
    value: ValueId,
    tensor: &Tensor,
    readers: &[Reader],
    blocked: Blocked,
    gram: Option<&Gram>,
) -> Result<bool, Fault> {
    let &[rows, columns] = tensor.shape() else { return Ok(false) };
    if readers.iter().all(|r| r.role == Role::Table) {
        let table = blocked::table(tensor.array()?.slice::<f32>()?, tensor.shape(), blocked)?;
        let found = table.is_some();
        table.into_iter().for_each(|table| store::gather_halves(graph, value, table));
        return Ok(found);
    }
    if !readers.iter().all(|r| is_fused(r, graph, 2)) {
        return Ok(false);
    }
    let gemms: Vec<NodeId> = readers.iter().filter_map(|r| Some(r.place?.0)).collect();
    let turned = |&id: &NodeId| graph.node(id).op_as::<Gemm>().is_some_and(|g| g.trans_b);
    let extents = match (gemms.iter().all(turned), gemms.iter().any(turned)) {
        (false, true) => return Ok(false), // read both ways
        (true, _) => [columns, rows],
        _ => [rows, columns],
    };
    let transposed = gemms.iter().all(turned);
    let array = tensor.array()?;
    let array = if transposed { array.transposed(&[1, 0])? } else { array };
    let Some(packed) = blocked::matrix(array.slice::<f32>()?, extents, blocked, gram)? else {
        return Ok(false);
    };
    if transposed {
        turn(graph, value, &gemms, &extents)?;
    }
    store::define(graph, value, packed);
    Ok(true)
}

/// Lets Gemm read a weight the other way round: only so ONNX Runtime fuses blocks with the product.
fn turn(graph: &mut Graph, value: ValueId, gemms: &[NodeId], shape: &[usize]) -> Result<(), Fault> {
    for &id in gemms {
        let (inputs, node) = (graph.node(id).inputs, graph.node_mut(id));
        node.attributes.retain(|a| a.name.as_deref() != Some("transB"));
        let attributes = node.attributes.clone();
        if let Some(def) = ops::find(ops::ONNX, "Gemm", 13) {
            node.op = Some((def.parse)(&mut ops::Attrs::new(&attributes, 13, inputs, 1))?);
        }
    }
    graph.value_mut(value).ty = Some(TensorType::known(DType::F32, shape));
    let name = graph.name(value).to_string();
    graph.rest.value_info.retain(|info| info.name.as_deref() != Some(&name));
    Ok(())
}

#[cfg(test)]
mod tests;
