//! The work of a node, in multiply-accumulates.

use crate::ir::{Graph, NodeId, TensorType, ValueId};

/// Multiply-accumulates of one run of a node, symbolic dimensions taken for 1; 0 for operators that are no sums of
/// products, `None` where a shape is not known.
pub fn macs(graph: &Graph, id: NodeId) -> Option<u64> {
    let input = |slot| graph.input(id, slot).and_then(|v| shape(graph, v));
    let output = || graph.output(id, 0).and_then(|v| shape(graph, v));
    match graph.node(id).op_type.as_str() {
        "Conv" | "FusedConv" | "ConvInteger" => per_output(output()?, input(1)?),
        "QLinearConv" => per_output(output()?, input(3)?),
        // Each element of the input meets the weights of its channel.
        "ConvTranspose" => per_output(input(0)?, input(1)?),
        "MatMul" | "MatMulInteger" | "Gemm" | "FusedMatMul" | "FusedGemm" => {
            product(&input(0)?, output()?, transposed(graph, id))
        }
        "QLinearMatMul" | "QGemm" => product(&input(0)?, output()?, transposed(graph, id)),
        "LSTM" | "GRU" | "RNN" => {
            let (x, w, r) = (input(0)?, input(1)?, input(2)?);
            let steps = x.first()?.saturating_mul(*x.get(1)?);
            Some(steps.saturating_mul(count(&w).saturating_add(count(&r))))
        }
        _ => Some(0),
    }
}

/// Extents, with 1 for symbolic ones; `None` if the rank or an extent is not known at all.
fn shape(graph: &Graph, value: ValueId) -> Option<Vec<u64>> {
    use crate::ir::Dim;
    let extent = |d: &Dim| match d {
        Dim::Known(n) => Some(*n as u64),
        Dim::Symbol(_) => Some(1),
        Dim::Unknown => None,
    };
    let of = |ty: &TensorType| ty.dims.as_ref()?.iter().map(extent).collect();
    graph.ty(value).and_then(of)
}

fn count(shape: &[u64]) -> u64 {
    shape.iter().fold(1, |n, d| n.saturating_mul(*d))
}

/// Every element here takes as many products as one channel of the weight has elements.
fn per_output(elements: Vec<u64>, weight: Vec<u64>) -> Option<u64> {
    let channels = *weight.first()?;
    Some(count(&elements).saturating_mul(count(&weight) / channels.max(1)))
}

/// Every element of the product takes as many products as `a` has columns.
fn product(a: &[u64], product: Vec<u64>, transposed: bool) -> Option<u64> {
    let depth = if transposed { a.first() } else { a.last() };
    Some(count(&product).saturating_mul(*depth?))
}

fn transposed(graph: &Graph, id: NodeId) -> bool {
    let attribute = graph.node(id).attributes.iter().find(|a| a.name.as_deref() == Some("transA"));
    attribute.and_then(|a| a.i).unwrap_or(0) != 0
}
