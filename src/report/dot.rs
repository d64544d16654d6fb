//! The graph as a drawing for Graphviz: `qonnx inspect MODEL --dot | dot -Tsvg`.

use std::collections::HashMap;
use std::fmt::Write;

use super::qdq;
use crate::ir::{Graph, NodeId, Port, TensorType, ValueId, schedule};

/// The main graph in the DOT language. Constants are left out; integer tensors are drawn as bold edges.
pub fn dot(graph: &Graph) -> String {
    let mut text = String::from("digraph model {\n  node [shape=box]\n  edge [fontsize=10]\n");
    let order = schedule(graph).unwrap_or_else(|_| graph.nodes().collect());
    let numbers: HashMap<NodeId, usize> = order.iter().enumerate().map(|(index, &id)| (id, index)).collect();
    for (index, &value) in graph.inputs.iter().enumerate().filter(|(_, v)| graph.constant(**v).is_none()) {
        let _ = writeln!(text, "  i{index} [shape=ellipse, label={}]", quoted(graph.name(value)));
        edges(&mut text, graph, value, &format!("i{index}"), &numbers);
    }
    for (index, &id) in order.iter().enumerate() {
        let node = graph.node(id);
        let label = match node.name.as_str() {
            "" => node.op_type.clone(),
            name => format!("{}\n{name}", node.op_type),
        };
        let colour = match () {
            () if qdq::is_quantize(node) || qdq::is_dequantize(node) => ", style=filled, fillcolor=lightblue",
            () if node.unknown.is_some() => ", style=dashed",
            () => "",
        };
        let _ = writeln!(text, "  n{index} [label={}{colour}]", quoted(&label));
        for value in graph.outputs_of(id).into_iter().flatten() {
            edges(&mut text, graph, value, &format!("n{index}"), &numbers);
        }
    }
    for (index, &value) in graph.outputs.iter().enumerate() {
        let _ = writeln!(text, "  o{index} [shape=ellipse, label={}]", quoted(graph.name(value)));
        let from = match graph.producer(value) {
            Some((id, _)) => numbers.get(&id).map(|n| format!("n{n}")),
            None => graph.inputs.iter().position(|&v| v == value).map(|i| format!("i{i}")),
        };
        if let Some(from) = from {
            let _ = writeln!(text, "  {from} -> o{index} [{}]", style(graph, value));
        }
    }
    text + "}\n"
}

fn edges(text: &mut String, graph: &Graph, value: ValueId, from: &str, numbers: &HashMap<NodeId, usize>) {
    for usage in graph.uses(value) {
        let Some(to) = numbers.get(&usage.node) else { continue };
        let dashed = if usage.port == Port::Capture { ", style=dashed" } else { "" };
        let _ = writeln!(text, "  {from} -> n{to} [{}{dashed}]", style(graph, value));
    }
}

fn style(graph: &Graph, value: ValueId) -> String {
    let ty = graph.ty(value).map_or_else(String::new, TensorType::to_string);
    let integer = graph.ty(value).is_some_and(|t| t.dtype.bits() <= 8 && t.dtype.bits() > 0);
    format!("label={}{}", quoted(&ty), if integer { ", penwidth=2" } else { "" })
}

/// A string of the DOT language.
fn quoted(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|c| match c {
            '"' => "\\\"".into(),
            '\\' => "\\\\".into(),
            '\n' => "\\n".into(),
            c if c.is_control() => " ".into(),
            c => c.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}
