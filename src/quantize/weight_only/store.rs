//! Writing quantized weights into the graph.

use bytes::Bytes;

use super::blocked::Table;
use crate::error::Fault;
use crate::ir::{Array, Attribute, DType, Graph, NodeId, Tensor, TensorType, Value, ValueId, attribute};
use crate::passes::node;
use crate::proto::TensorProto;

/// A weight in integers, with what DequantizeLinear needs to make real numbers of it.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The integers.
    pub elements: Tensor,
    /// Scale: one, a vector along `axis`, or blocked.
    pub scale: Array,
    /// Zero point in the shape of the scale; `None`: 0.
    pub zero: Option<Tensor>,
    /// Axis of DequantizeLinear.
    pub axis: Option<i64>,
    /// Elements along the axis that share a scale; 0: not blocked.
    pub block: usize,
}

impl Packed {
    /// With a scale and a zero point for all, or for each index along the axis.
    pub fn new(elements: Tensor, scale: Array, zero: Array, axis: Option<i64>) -> Self {
        Self { elements, scale, zero: Some(Tensor::from_array(&zero)), axis, block: 0 }
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

/// The inputs of DequantizeLinear, as constants.
fn constants(graph: &mut Graph, name: &str, packed: &Packed) -> Vec<Option<ValueId>> {
    let elements = graph.add_constant(&format!("{name}_quantized"), packed.elements.clone());
    let scale = graph.add_constant(&format!("{name}_scale"), Tensor::from_array(&packed.scale));
    let zero = packed.zero.clone().map(|zero| graph.add_constant(&format!("{name}_zero_point"), zero));
    [Some(elements), Some(scale)].into_iter().chain(zero.map(Some)).collect()
}

/// A constant becomes the output of a DequantizeLinear, under its own name.
pub fn define(graph: &mut Graph, value: ValueId, packed: Packed) {
    let name = graph.name(value).to_string();
    let made = constants(graph, &name, &packed);
    replace(graph, value, ("DequantizeLinear", packed.attributes()), &made);
}

/// A constant becomes the output of an operator in front of all its readers.
fn replace(
    graph: &mut Graph,
    value: ValueId,
    (op, attributes): (&str, Vec<Attribute>),
    inputs: &[Option<ValueId>],
) {
    let first = graph.uses(value).iter().map(|u| graph.node(u.node).rank).min().unwrap_or(0);
    graph.value_mut(value).constant = None;
    graph.constants.retain(|&c| c != value);
    let label = format!("{}_{op}", graph.name(value));
    let mut made = node(op, label, attributes, inputs.len());
    made.rank = first;
    graph.add_node(made, inputs, &[Some(value)]);
}

/// A constant becomes the output of a Cast from `float16`, under its own name.
pub fn halve(graph: &mut Graph, value: ValueId, halves: Tensor) {
    let made = graph.add_constant(&format!("{}_half", graph.name(value)), halves);
    let to = vec![attribute::int("to", DType::F32.to_onnx().into())];
    replace(graph, value, ("Cast", to), &[Some(made)]);
}

/// `Gather(table)` becomes `DequantizeLinear(Gather(integer table))` for each Gather; other readers, if any, keep the
/// float table. In front of a product the rows are dequantized by arithmetic: ONNX Runtime would take a
/// DequantizeLinear there for quantized activations, which it cannot multiply if channels have scales of their own.
pub fn gather(graph: &mut Graph, value: ValueId, packed: Packed) {
    let name = graph.name(value).to_string();
    let made = constants(graph, &name, &packed);
    for usage in graph.uses(value) {
        let id = usage.node;
        let (true, Some(output)) = (graph.node(id).is("Gather"), graph.output(id, 0)) else { continue };
        let dtype = packed.elements.dtype();
        let ty = graph.ty(output).cloned().map(|t| TensorType { dtype, ..t });
        let label = graph.name(output).to_string();
        let rows = graph.add_fresh(&format!("{label}_quantized"), Value { ty, ..Value::default() });
        graph.rewire(id, 0, made[0]);
        graph.set_output(id, 0, rows);
        let is_product = |id: NodeId| graph.node(id).is("MatMul") || graph.node(id).is("Gemm");
        let multiplied = graph.uses(output).iter().any(|u| is_product(u.node));
        let mut place = Place { rank: graph.node(id).rank, graph, label };
        match (multiplied, made.get(2)) {
            (true, Some(&zero)) => {
                let float = || vec![attribute::int("to", DType::F32.to_onnx().into())];
                let rows = place.apply("Cast", "raised", float(), &[Some(rows)]);
                let zero = place.apply("Cast", "zero_point", float(), &[zero]);
                let centred = place.apply("Sub", "centred", vec![], &[Some(rows), Some(zero)]);
                place.define("Mul", vec![], &[Some(centred), made[1]], output);
            }
            _ => {
                let inputs: Vec<_> = [Some(rows)].into_iter().chain(made[1..].iter().copied()).collect();
                place.define("DequantizeLinear", packed.attributes(), &inputs, output);
            }
        }
    }
    graph.remove_value_if_dead(value);
}

/// The same for a table in 4 bits: the rows that are wanted are unpacked, and each half dequantized block by block.
pub fn gather_halves(graph: &mut Graph, value: ValueId, table: Table) {
    let name = graph.name(value).to_string();
    let stored = graph.add_constant(&format!("{name}_quantized"), table.bytes);
    let scales = table.scales.map(|half| graph.add_constant(&format!("{name}_scale"), half));
    let four = graph.add_constant(&format!("{name}_shift"), Tensor::from_array(&Array::scalar(4u8)));
    let low_bits = graph.add_constant(&format!("{name}_mask"), Tensor::from_array(&Array::scalar(15u8)));
    for usage in graph.uses(value) {
        let id = usage.node;
        let (true, Some(output)) = (graph.node(id).is("Gather"), graph.output(id, 0)) else { continue };
        let (rank, indices, label) =
            (graph.node(id).rank, graph.input(id, 1), graph.name(output).to_string());
        graph.remove_node(id);
        let mut place = Place { rank, graph, label };
        let bytes = place.apply("Gather", "bytes", vec![], &[Some(stored), indices]);
        let [low_scale, high_scale] =
            scales.map(|half| place.apply("Gather", "scale", vec![], &[Some(half), indices]));
        let low = place.apply("BitwiseAnd", "low", vec![], &[Some(bytes), Some(low_bits)]);
        let right = attribute::string("direction", "RIGHT");
        let high = place.apply("BitShift", "high", vec![right], &[Some(bytes), Some(four)]);
        // The zero point has the shape of the scales, which depends on the indices.
        let shape = place.apply("Shape", "blocks", vec![], &[Some(low_scale)]);
        let eight = attribute::tensor("value", &Tensor::from_array(&Array::vector(vec![8u8])));
        let zero = place.apply("ConstantOfShape", "zero_point", vec![eight], &[Some(shape)]);
        let last = || attribute::int("axis", -1);
        let mut real = |half: ValueId, scale: ValueId| {
            let attributes = vec![last(), attribute::int("block_size", table.size as i64)];
            Some(place.apply("DequantizeLinear", "half", attributes, &[Some(half), Some(scale), Some(zero)]))
        };
        let halves = [real(low, low_scale), real(high, high_scale)];
        place.define("Concat", vec![last()], &halves, output);
    }
    graph.remove_value_if_dead(value);
}

/// Where new nodes take the place of an old one.
struct Place<'a> {
    graph: &'a mut Graph,
    /// What their names begin with.
    label: String,
    rank: u64,
}

impl Place<'_> {
    /// A node and its output.
    fn apply(&mut self, op: &str, what: &str, with: Vec<Attribute>, inputs: &[Option<ValueId>]) -> ValueId {
        let output = self.graph.add_fresh(&format!("{}_{what}", self.label), Value::default());
        self.define(op, with, inputs, output);
        output
    }

    /// A node that returns `output`.
    fn define(&mut self, op: &str, with: Vec<Attribute>, inputs: &[Option<ValueId>], output: ValueId) {
        let mut made = node(op, format!("{}_{op}", self.graph.name(output)), with, inputs.len());
        made.rank = self.rank;
        self.graph.add_node(made, inputs, &[Some(output)]);
    }
}
