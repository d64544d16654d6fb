//! Dynamic-range quantization: weights in `int8`, arithmetic in float, no data needed.
//!
//! Each weight is stored as symmetric `int8` by output channel behind a DequantizeLinear; the file shrinks to about a
//! quarter. Tables of Gather are read as `uint8` rows and only those are dequantized.

use std::collections::BTreeMap;

use super::candidate::Filter;
use super::insert::insert_constant;
use super::weights::{Constant, weight_of};
use crate::error::Fault;
use crate::ir::{Array, DType, Graph, NodeId, QuantParams, Tensor, Value, schedule};
use crate::ops::conv::ConvTranspose;
use crate::ops::gemm::Gemm;
use crate::passes::node;

/// Smaller constants are not worth a scale and a node.
const MIN_ELEMENTS: usize = 256;

/// Quantizes the weights of a graph; the names of the nodes that got integer weights, and why others did not.
pub fn quantize(
    graph: &mut Graph,
    filter: &Filter,
) -> Result<(Vec<NodeId>, BTreeMap<NodeId, String>), Fault> {
    let (mut done, mut float) = (Vec::new(), BTreeMap::new());
    for id in schedule(graph)? {
        let slots = weight_slots(graph, id);
        let mut hit = false;
        for (slot, axis) in slots {
            match plan(graph, id, slot, axis, filter) {
                Ok(None) => {}
                Ok(Some(constant)) => {
                    hit = true;
                    match graph.node(id).is("Gather") {
                        true => quantize_table(graph, id, &constant),
                        false => insert_constant(graph, id, slot, &constant),
                    }
                }
                Err(reason) => {
                    float.insert(id, reason);
                }
            }
        }
        if hit {
            done.push(id);
        }
    }
    Ok((done, float))
}

/// Input slots that hold weights, and the axis that counts output channels.
fn weight_slots(graph: &Graph, id: NodeId) -> Vec<(usize, Option<usize>)> {
    let node = graph.node(id);
    if node.unknown.is_some() || !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Vec::new();
    }
    let rank = |slot| graph.constant_input(id, slot).map_or(0, |t| t.shape().len());
    match node.op_type.as_str() {
        "Conv" => vec![(1, Some(0))],
        "ConvTranspose" => vec![(1, node.op_as::<ConvTranspose>().filter(|c| c.group == 1).map(|_| 1))],
        "Gemm" => vec![(1, node.op_as::<Gemm>().map(|g| usize::from(!g.trans_b)))],
        "MatMul" => vec![(0, None), (1, rank(1).checked_sub(1).filter(|&r| r == 1))],
        "LSTM" | "GRU" | "RNN" => vec![(1, Some(1)), (2, Some(1))],
        "Gather" => vec![(0, None)],
        _ => Vec::new(),
    }
}

fn plan(
    graph: &Graph,
    id: NodeId,
    slot: usize,
    axis: Option<usize>,
    filter: &Filter,
) -> Result<Option<Constant>, String> {
    let Some(tensor) = graph.constant_input(id, slot) else { return Ok(None) };
    if tensor.dtype() != DType::F32 || tensor.len() < MIN_ELEMENTS {
        return Ok(None);
    }
    if let Some(reason) = filter.refuses(graph, id) {
        return Err(reason);
    }
    let array = tensor.array().map_err(|f| f.to_string())?;
    if array.slice::<f32>().is_ok_and(|v| v.iter().any(|x| !x.is_finite())) {
        return Err("its weight is not finite".into());
    }
    let constant = match graph.node(id).is("Gather") {
        true => table(&array),
        false => weight_of(&array, axis.filter(|&a| a < array.rank()), 1.0, &[], false),
    };
    constant.map(Some).map_err(|f| f.to_string())
}

fn table(array: &Array) -> Result<Constant, Fault> {
    let real = array.slice::<f32>()?;
    let bounds = real.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let params = QuantParams::asymmetric(bounds.0, bounds.1, DType::U8);
    let elements =
        Array::new(array.shape(), real.iter().map(|&v| params.quantize(v) as u8).collect::<Vec<u8>>())?;
    Ok(Constant { elements, scales: vec![params.scale], zero_point: params.zero_point, axis: None })
}

/// `Gather(table)` becomes `DequantizeLinear(Gather(uint8 table))`: only the rows that are read are dequantized.
fn quantize_table(graph: &mut Graph, id: NodeId, constant: &Constant) {
    let (Some(original), Some(output)) = (graph.input(id, 0), graph.output(id, 0)) else { return };
    let name = graph.name(original).to_string();
    let tensor = |a: &Array| Tensor::from_array(a);
    let stored = graph.add_constant(&format!("{name}_quantized"), tensor(&constant.elements));
    let scale = graph.add_constant(&format!("{name}_scale"), tensor(&Array::scalar(constant.scales[0])));
    let zero =
        graph.add_constant(&format!("{name}_zero_point"), tensor(&Array::scalar(constant.zero_point as u8)));
    let ty = graph.ty(output).cloned().map(|t| crate::ir::TensorType { dtype: DType::U8, ..t });
    let label = graph.name(output).to_string();
    let rows = graph.add_fresh(&format!("{label}_quantized"), Value { ty, ..Value::default() });
    graph.rewire(id, 0, Some(stored));
    graph.set_output(id, 0, rows);
    graph.remove_value_if_dead(original);
    let mut dequantize = node("DequantizeLinear", format!("{label}_DequantizeLinear"), vec![], 3);
    dequantize.rank = graph.node(id).rank;
    graph.add_node(dequantize, &[Some(rows), Some(scale), Some(zero)], &[Some(output)]);
}
