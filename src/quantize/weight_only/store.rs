//! Writing quantized weights into the graph.

use bytes::Bytes;

use crate::error::Fault;
use crate::ir::{Array, Attribute, DType, Graph, Tensor, TensorType, Value, ValueId, attribute};
use crate::passes::node;
use crate::proto::TensorProto;

/// A weight in integers, with what DequantizeLinear needs to make real numbers of it.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The integers.
    pub elements: Tensor,
    /// Scale: one, a vector along `axis`, or blocked.
    pub scale: Array,
    /// Zero point in the shape of the scale.
    pub zero: Tensor,
    /// Axis of DequantizeLinear.
    pub axis: Option<i64>,
    /// Elements along the axis that share a scale; 0: not blocked.
    pub block: usize,
}

impl Packed {
    /// One byte an element.
    pub fn bytes(
        dtype: DType,
        shape: &[usize],
        elements: Vec<u8>,
        scale: Array,
        zero: Array,
        axis: Option<i64>,
    ) -> Result<Self, Fault> {
        let (elements, zero) = (raw(dtype, shape, elements)?, Tensor::from_array(&zero));
        Ok(Self { elements, scale, zero, axis, block: 0 })
    }

    fn attributes(&self) -> Vec<Attribute> {
        let axis = self.axis.map(|a| attribute::int("axis", a));
        let block = (self.block > 0).then(|| attribute::int("block_size", self.block as i64));
        axis.into_iter().chain(block).collect()
    }
}

/// A tensor from the bytes of its payload.
pub fn raw(dtype: DType, shape: &[usize], payload: Vec<u8>) -> Result<Tensor, Fault> {
    let proto = TensorProto {
        dims: shape.iter().map(|&d| d as i64).collect(),
        data_type: Some(dtype.to_onnx()),
        raw_data: Some(Bytes::from(payload)),
        ..Default::default()
    };
    Tensor::from_proto(proto, None)
}

struct Constants {
    elements: ValueId,
    scale: ValueId,
    zero: ValueId,
}

fn constants(graph: &mut Graph, name: &str, packed: &Packed) -> Constants {
    Constants {
        elements: graph.add_constant(&format!("{name}_quantized"), packed.elements.clone()),
        scale: graph.add_constant(&format!("{name}_scale"), Tensor::from_array(&packed.scale)),
        zero: graph.add_constant(&format!("{name}_zero_point"), packed.zero.clone()),
    }
}

/// A constant becomes the output of a DequantizeLinear, under its own name.
pub fn define(graph: &mut Graph, value: ValueId, packed: Packed) {
    let name = graph.name(value).to_string();
    let made = constants(graph, &name, &packed);
    let first = graph.uses(value).iter().map(|u| graph.node(u.node).rank).min().unwrap_or(0);
    graph.value_mut(value).constant = None;
    graph.constants.retain(|&c| c != value);
    let mut dequantize = node("DequantizeLinear", format!("{name}_DequantizeLinear"), packed.attributes(), 3);
    dequantize.rank = first;
    graph.add_node(dequantize, &[Some(made.elements), Some(made.scale), Some(made.zero)], &[Some(value)]);
}

/// `Gather(table)` becomes `DequantizeLinear(Gather(integer table))` for each Gather; other readers, if any, keep the
/// float table.
pub fn gather(graph: &mut Graph, value: ValueId, packed: Packed) {
    let name = graph.name(value).to_string();
    let made = constants(graph, &name, &packed);
    for usage in graph.uses(value) {
        let id = usage.node;
        let (true, Some(output)) = (graph.node(id).is("Gather"), graph.output(id, 0)) else { continue };
        let label = graph.name(output).to_string();
        let dtype = packed.elements.dtype();
        let ty = graph.ty(output).cloned().map(|t| TensorType { dtype, ..t });
        let rows = graph.add_fresh(&format!("{label}_quantized"), Value { ty, ..Value::default() });
        graph.rewire(id, 0, Some(made.elements));
        graph.set_output(id, 0, rows);
        let mut dequantize =
            node("DequantizeLinear", format!("{label}_DequantizeLinear"), packed.attributes(), 3);
        dequantize.rank = graph.node(id).rank;
        graph.add_node(dequantize, &[Some(rows), Some(made.scale), Some(made.zero)], &[Some(output)]);
    }
    graph.remove_value_if_dead(value);
}
