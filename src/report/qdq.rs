//! QuantizeLinear and DequantizeLinear as a reader of a model sees them: parameters, and values through pairs.

use crate::ir::{Array, DType, Graph, Node, NodeId, Port, ValueId};

/// The parameters of a QuantizeLinear or DequantizeLinear node, as far as they are constant.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// Type of the integers.
    pub dtype: DType,
    /// Type of the scales.
    pub scale_dtype: DType,
    /// One scale, or one for each index along `axis`, or for each block.
    pub scales: Vec<f32>,
    /// As many zero points; empty if the node has no such input.
    pub zero_points: Vec<i32>,
    /// The axis that several scales run along.
    pub axis: i64,
    /// Elements that share a scale along `axis`; 0: not blocked.
    pub block: i64,
}

impl Params {
    /// The zero point of scale `index`; 0 if none is given.
    pub fn zero_point(&self, index: usize) -> i32 {
        self.zero_points.get(index).or(self.zero_points.first()).copied().unwrap_or(0)
    }

    /// Do both stand for the same integers? Missing zero points are zeros.
    pub fn same(&self, other: &Self) -> bool {
        let zeros = |p: &Self| (0..p.scales.len()).map(|i| p.zero_point(i)).collect::<Vec<_>>();
        self.dtype == other.dtype && self.scales == other.scales && zeros(self) == zeros(other)
    }

    /// Type, scale and zero point in a few words.
    pub fn shown(&self) -> String {
        match self.scales.as_slice() {
            [scale] => format!("{} scale {scale} zero {}", self.dtype, self.zero_point(0)),
            scales if self.block > 0 => {
                format!("{} {} scales in blocks of {}", self.dtype, scales.len(), self.block)
            }
            scales => format!("{} {} scales along axis {}", self.dtype, scales.len(), self.axis),
        }
    }
}

/// Is the node QuantizeLinear, of ONNX or of ONNX Runtime's own domain?
pub fn is_quantize(node: &Node) -> bool {
    is_either(node, "QuantizeLinear")
}

/// Is the node DequantizeLinear, of ONNX or of ONNX Runtime's own domain?
pub fn is_dequantize(node: &Node) -> bool {
    is_either(node, "DequantizeLinear")
}

fn is_either(node: &Node, op_type: &str) -> bool {
    node.is(op_type) || (node.op_type == op_type && node.domain == "com.microsoft")
}

/// The value if it is constant, be it by a Constant node.
pub fn constant(graph: &Graph, value: ValueId) -> Option<Array> {
    if let Some(tensor) = graph.constant(value) {
        return tensor.array().ok();
    }
    let (id, _) = graph.producer(value)?;
    let node = graph.node(id);
    let op = node.op.as_ref().filter(|_| node.is("Constant") && node.unknown.is_none())?;
    op.float(&[]).ok()?.into_iter().next()
}

/// Is the value constant, of whatever type?
pub fn is_constant(graph: &Graph, value: ValueId) -> bool {
    let by_node = |(id, _): (NodeId, usize)| graph.node(id).is("Constant");
    graph.constant(value).is_some() || graph.producer(value).is_some_and(by_node)
}

/// The parameters of a QuantizeLinear or DequantizeLinear node; `None` if they are computed or not understood.
pub fn params(graph: &Graph, id: NodeId) -> Option<Params> {
    let node = graph.node(id);
    let scale = constant(graph, graph.input(id, 1)?)?;
    let zero = graph.input(id, 2).map(|v| constant(graph, v));
    let int = |name: &str| node.attributes.iter().find(|a| a.name.as_deref() == Some(name)).and_then(|a| a.i);
    let stored = if is_quantize(node) { graph.output(id, 0) } else { graph.input(id, 0) };
    let dtype = match &zero {
        Some(Some(zero)) => zero.dtype(),
        _ => stored.and_then(|v| graph.ty(v)).map_or(DType::U8, |t| t.dtype),
    };
    let zero_points = match zero {
        None => Vec::new(),
        Some(zero) => zero?.to_f32().ok()?.iter().map(|&v| v as i32).collect(),
    };
    Some(Params {
        dtype,
        scale_dtype: scale.dtype(),
        scales: scale.to_f32().ok()?.iter().copied().collect(),
        zero_points,
        axis: int("axis").unwrap_or(1),
        block: int("block_size").unwrap_or(0),
    })
}

/// The DequantizeLinear that defines the value.
pub fn dequantizer(graph: &Graph, value: ValueId) -> Option<NodeId> {
    graph.producer(value).map(|(id, _)| id).filter(|&id| is_dequantize(graph.node(id)))
}

/// The QuantizeLinear that reads the value, if nothing else does and it is no output.
pub fn only_quantizer(graph: &Graph, value: ValueId) -> Option<NodeId> {
    let only = graph.only_use(value).filter(|u| u.port == Port::Input(0))?;
    is_quantize(graph.node(only.node)).then_some(only.node)
}

/// What the DequantizeLinear nodes behind a QuantizeLinear define.
pub fn dequantized(graph: &Graph, quantize: NodeId) -> Vec<ValueId> {
    let Some(stored) = graph.output(quantize, 0) else { return Vec::new() };
    let read = graph.uses(stored).into_iter().filter(|u| u.port == Port::Input(0));
    read.filter(|u| is_dequantize(graph.node(u.node))).filter_map(|u| graph.output(u.node, 0)).collect()
}

/// The value that a DequantizeLinear brings back: the input of the QuantizeLinear before it, or the stored constant.
pub fn original(graph: &Graph, value: ValueId) -> ValueId {
    let stored = dequantizer(graph, value).and_then(|id| graph.input(id, 0));
    let Some(stored) = stored else { return value };
    let quantize = graph.producer(stored).map(|(id, _)| id).filter(|&id| is_quantize(graph.node(id)));
    quantize.and_then(|id| graph.input(id, 0)).unwrap_or(stored)
}
