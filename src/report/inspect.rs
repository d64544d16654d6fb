//! What is in a model: interface, operators, sizes, work, and how far it is quantized.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::macs::macs;
use super::qdq;
use crate::error::one_line;
use crate::ir::{DType, Graph, NodeId, Port, Tensor, TensorType, ValueId};
use crate::onnx::Source;
use crate::passes::infer;

/// The facts of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Bytes of the file.
    pub size: usize,
    /// First 16 digits of the file's SHA-256.
    pub digest: String,
    /// Version of the file format.
    pub ir_version: i64,
    /// Name and version of the program that wrote it.
    pub producer: String,
    /// Version of each operator set.
    pub opsets: BTreeMap<String, i64>,
    /// Inputs that have no constant value.
    pub inputs: Vec<Interface>,
    /// Outputs.
    pub outputs: Vec<Interface>,
    /// What the model's metadata says.
    pub metadata: BTreeMap<String, String>,
    /// Number of nodes, those in bodies included.
    pub nodes: usize,
    /// Number of elements of constants.
    pub parameters: u64,
    /// Bytes of constants.
    pub parameter_bytes: u64,
    /// Multiply-accumulates of one run, symbolic dimensions taken for 1, bodies for one pass.
    pub macs: u64,
    /// Nodes with multiply-accumulates that could not be counted, for their shapes are not known.
    pub macs_unknown: usize,
    /// By operator, the one with most bytes first.
    pub operators: Vec<Operator>,
    /// Constants by element type, the one with most bytes first.
    pub constants: Vec<Constants>,
    /// How far it is quantized.
    pub quantization: Quantization,
    /// Operators that qonnx does not implement.
    pub not_implemented: Vec<String>,
    /// Where types or shapes contradict each other.
    pub warnings: Vec<String>,
}

/// An input or output.
#[derive(Debug, Clone, Serialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its type in ONNX text syntax; empty if it is no tensor.
    #[serde(rename = "type")]
    pub ty: String,
}

/// One type of operator.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Operator {
    /// Domain and name.
    pub operator: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Elements of the constants that it reads first, be it through DequantizeLinear or a change of shape.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Multiply-accumulates, as far as they can be counted.
    pub macs: u64,
}

/// Constants of one element type.
#[derive(Debug, Clone, Serialize)]
pub struct Constants {
    /// The type in ONNX text syntax.
    pub dtype: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of elements.
    pub elements: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How far a model is quantized.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Quantization {
    /// `float`, `weight-only`, `static (Q/DQ)`, `static (integer operators)`, `dynamic`.
    pub state: &'static str,
    /// Number of QuantizeLinear nodes.
    pub quantize: usize,
    /// Number of DequantizeLinear nodes.
    pub dequantize: usize,
    /// Number of operators that compute on integers by themselves (QLinearConv, MatMulInteger, ...).
    pub integer_operators: usize,
    /// Share of the bytes of constants of 8 bits or fewer an element.
    pub integer_bytes: f64,
}

impl Inspection {
    /// Looks through a model.
    pub fn of(source: &Source) -> Self {
        let model = &source.model;
        let mut graph = model.graph.clone();
        let warnings = infer(&mut graph);
        let mut count = Count::default();
        count.graph(&graph);
        let text = |s: &Option<String>| s.clone().unwrap_or_default();
        let shown = |ids: &[ValueId]| {
            let open = ids.iter().filter(|&&v| graph.constant(v).is_none());
            let ty = |v| graph.ty(v).map_or_else(String::new, TensorType::to_string);
            open.map(|&v| Interface { name: graph.name(v).into(), ty: ty(v) }).collect()
        };
        let bytes: u64 = count.constants.values().map(|c| c.bytes).sum();
        let narrow: u64 =
            count.constants.iter().filter(|(d, _)| (1..=8).contains(&d.bits())).map(|c| c.1.bytes).sum();
        count.quantization.integer_bytes = if bytes == 0 { 0.0 } else { narrow as f64 / bytes as f64 };
        count.quantization.state = count.state();
        let mut operators: Vec<Operator> = count.operators.into_values().collect();
        operators.sort_by(|a, b| b.bytes.cmp(&a.bytes).then(b.macs.cmp(&a.macs)));
        let mut constants: Vec<Constants> = count.constants.into_values().collect();
        constants.sort_by_key(|c| std::cmp::Reverse(c.bytes));
        let properties = model.rest.metadata_props.iter();
        Self {
            size: source.size,
            digest: source.digest.get().to_string(),
            ir_version: model.ir_version(),
            producer: format!("{} {}", text(&model.rest.producer_name), text(&model.rest.producer_version))
                .trim()
                .into(),
            opsets: model.opsets.iter().map(|(d, v)| (shown_domain(d).into(), *v)).collect(),
            inputs: shown(&graph.inputs),
            outputs: shown(&graph.outputs),
            metadata: properties.map(|p| (text(&p.key), text(&p.value))).collect(),
            nodes: operators.iter().map(|o| o.nodes).sum(),
            parameters: constants.iter().map(|c| c.elements).sum(),
            parameter_bytes: bytes,
            macs: operators.iter().map(|o| o.macs).sum(),
            macs_unknown: count.macs_unknown,
            operators,
            constants,
            quantization: count.quantization,
            not_implemented: count.not_implemented.into_keys().collect(),
            warnings,
        }
    }

    /// The facts for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, fact: String| {
            let _ = writeln!(text, "{name:13} {}", one_line(&fact));
        };
        line("file", format!("{} bytes, sha256 {}…", self.size, self.digest));
        let opsets: Vec<String> = self.opsets.iter().map(|(d, v)| format!("{d} {v}")).collect();
        line("format", format!("IR {}, {}", self.ir_version, opsets.join(", ")));
        if !self.producer.is_empty() {
            line("producer", self.producer.clone());
        }
        self.inputs.iter().for_each(|i| line("input", format!("{} {}", i.name, i.ty)));
        self.outputs.iter().for_each(|o| line("output", format!("{} {}", o.name, o.ty)));
        line("parameters", format!("{} in {} bytes", self.parameters, self.parameter_bytes));
        let unknown = match self.macs_unknown {
            0 => String::new(),
            n => format!(", without {n} nodes of unknown shape"),
        };
        line("work", format!("{} multiply-accumulates{unknown}", self.macs));
        let q = &self.quantization;
        let pairs = format!(
            "{} QuantizeLinear, {} DequantizeLinear, {} integer operators",
            q.quantize, q.dequantize, q.integer_operators
        );
        line(
            "quantization",
            format!("{}: {pairs}, {:.0} % of bytes in 8 bits", q.state, 100.0 * q.integer_bytes),
        );
        self.not_implemented.iter().for_each(|n| line("unknown", n.clone()));
        self.warnings.iter().for_each(|w| line("warning", w.clone()));
        let _ = writeln!(
            text,
            "\n{:28} {:>7} {:>12} {:>12} {:>15}",
            "operator", "nodes", "parameters", "bytes", "MACs"
        );
        for o in &self.operators {
            let _ = writeln!(
                text,
                "{:28} {:>7} {:>12} {:>12} {:>15}",
                o.operator, o.nodes, o.parameters, o.bytes, o.macs
            );
        }
        let _ = writeln!(text, "\n{:28} {:>7} {:>12} {:>12}", "constants", "tensors", "elements", "bytes");
        for c in &self.constants {
            let _ = writeln!(text, "{:28} {:>7} {:>12} {:>12}", c.dtype, c.tensors, c.elements, c.bytes);
        }
        text
    }
}

/// A domain by its official name.
pub fn shown_domain(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

fn operator_name(domain: &str, op_type: &str) -> String {
    match domain {
        "" | "ai.onnx" => op_type.into(),
        other => format!("{other}.{op_type}"),
    }
}

/// What is counted on the way through the graphs.
#[derive(Default)]
struct Count {
    operators: BTreeMap<String, Operator>,
    constants: BTreeMap<DType, Constants>,
    quantization: Quantization,
    dynamic: bool,
    macs_unknown: usize,
    not_implemented: BTreeMap<String, ()>,
}

impl Count {
    fn graph(&mut self, graph: &Graph) {
        for id in graph.nodes() {
            let node = graph.node(id);
            let name = operator_name(&node.domain, &node.op_type);
            if let Some(why) = &node.unknown {
                self.not_implemented.insert(why.clone(), ());
            }
            match node.op_type.as_str() {
                _ if qdq::is_quantize(node) => self.quantization.quantize += 1,
                _ if qdq::is_dequantize(node) => self.quantization.dequantize += 1,
                "DynamicQuantizeLinear" | "DynamicQuantizeMatMul" | "DynamicQuantizeLSTM" => {
                    self.dynamic = true
                }
                op if op.starts_with("QLinear") || op.ends_with("Integer") || op == "MatMulNBits" => {
                    self.quantization.integer_operators += 1;
                }
                _ => {}
            }
            let row = self.row(&name);
            row.nodes += 1;
            match macs(graph, id) {
                Some(work) => row.macs = row.macs.saturating_add(work),
                None => self.macs_unknown += 1,
            }
            if let Some(tensor) = value_of_constant(graph, id) {
                let reader = graph.output(id, 0).map_or_else(String::new, |v| reader(graph, v));
                self.constant(&tensor, &reader);
            }
            node.bodies.iter().for_each(|b| self.graph(&b.graph));
        }
        for value in graph.values() {
            if let Some(tensor) = graph.constant(value).or(graph.value(value).default.as_ref()) {
                self.constant(tensor, &reader(graph, value));
            }
        }
    }

    fn row(&mut self, name: &str) -> &mut Operator {
        let new = || Operator { operator: name.into(), ..Operator::default() };
        self.operators.entry(name.into()).or_insert_with(new)
    }

    fn constant(&mut self, tensor: &Tensor, reader: &str) {
        let (elements, bytes, dtype) = (tensor.len() as u64, tensor.byte_len() as u64, tensor.dtype());
        let new = || Constants { dtype: dtype.name(), tensors: 0, elements: 0, bytes: 0 };
        let row = self.constants.entry(dtype).or_insert_with(new);
        (row.tensors, row.elements, row.bytes) =
            (row.tensors + 1, row.elements + elements, row.bytes + bytes);
        let row = self.row(reader);
        (row.parameters, row.bytes) = (row.parameters + elements, row.bytes + bytes);
    }

    fn state(&self) -> &'static str {
        let q = &self.quantization;
        match () {
            () if self.dynamic => "dynamic",
            () if q.integer_operators > 0 && q.quantize == 0 => "weight-only",
            () if q.integer_operators > 0 => "static (integer operators)",
            () if q.quantize > 0 => "static (Q/DQ)",
            () if q.dequantize > 0 => "weight-only",
            () => "float",
        }
    }
}

/// The tensor of a Constant node.
fn value_of_constant(graph: &Graph, id: NodeId) -> Option<Tensor> {
    let value = graph.output(id, 0).filter(|_| graph.node(id).is("Constant"))?;
    qdq::constant(graph, value).map(|array| Tensor::from_array(&array))
}

/// The operator that a constant is for: its first reader, behind those that only change its form.
fn reader(graph: &Graph, value: ValueId) -> String {
    const STEPS: usize = 8;
    let mut value = value;
    let mut name = "(not read)".to_string();
    for _ in 0..STEPS {
        let Some(first) = graph.uses(value).into_iter().next() else { break };
        let node = graph.node(first.node);
        name = operator_name(&node.domain, &node.op_type);
        let form = qdq::is_dequantize(node)
            || qdq::is_quantize(node)
            || ["Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze"]
                .iter()
                .any(|op| node.is(op));
        match graph
            .output(first.node, 0)
            .filter(|&v| form && first.port == Port::Input(0) && !graph.uses(v).is_empty())
        {
            Some(next) => value = next,
            None => break,
        }
    }
    name
}
