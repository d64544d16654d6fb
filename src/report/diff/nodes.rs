//! Nodes: matched, fused, added, removed; attributes and sources of those that both models have.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Change, Side, constants};
use crate::interpret::node_label;
use crate::ir::{Attribute, Graph, Node, NodeId, Port, ValueId, schedule};
use crate::proto::attribute_proto::AttributeType;
use crate::report::inspect::shown_domain;
use crate::report::qdq;

/// Compares the nodes of two graphs, those that quantize left aside.
pub fn compare(a: &Graph, b: &Graph, changes: &mut Vec<Change>) {
    let (xs, ys) = (operators(a), operators(b));
    let matched = matches(a, &xs, b, &ys);
    let taken: BTreeSet<NodeId> = matched.values().copied().collect();
    let backward: BTreeMap<NodeId, NodeId> = matched.iter().map(|(&x, &y)| (y, x)).collect();
    for &x in &xs {
        match matched.get(&x) {
            Some(&y) => pair(a, x, b, y, changes),
            None => {
                let fate = fate(a, x, b, &matched, &backward);
                changes.push(Change::new(Side::Removed, "node", label(a, x), fate));
            }
        }
    }
    for &y in ys.iter().filter(|y| !taken.contains(y)) {
        let sources: Vec<String> = b.inputs_of(y).into_iter().flatten().map(|v| source(b, v)).collect();
        changes.push(Change::new(Side::Added, "node", label(b, y), format!("reads {}", sources.join(", "))));
    }
}

/// The nodes that are no Constant and do not quantize, in order.
fn operators(graph: &Graph) -> Vec<NodeId> {
    let mut order = schedule(graph).unwrap_or_else(|_| graph.nodes().collect());
    order.retain(|&id| {
        let node = graph.node(id);
        !(qdq::is_quantize(node) || qdq::is_dequantize(node) || node.is("Constant"))
    });
    order
}

fn label(graph: &Graph, id: NodeId) -> String {
    format!("{} `{}`", graph.node(id).op_type, node_label(graph, id))
}

fn kind(node: &Node) -> (&str, &str) {
    (shown_domain(&node.domain), &node.op_type)
}

/// Names under which the readers of a node know its outputs: its own, and those on the far side of quantization.
fn results(graph: &Graph, id: NodeId) -> Vec<String> {
    let mut names = Vec::new();
    for value in graph.outputs_of(id).into_iter().flatten() {
        names.push(graph.name(value).to_string());
        for usage in graph.uses(value).into_iter().filter(|u| u.port == Port::Input(0)) {
            if qdq::is_quantize(graph.node(usage.node)) {
                names.extend(qdq::dequantized(graph, usage.node).iter().map(|&v| graph.name(v).to_string()));
            }
        }
    }
    names
}

fn matches(a: &Graph, xs: &[NodeId], b: &Graph, ys: &[NodeId]) -> BTreeMap<NodeId, NodeId> {
    let mut matched = BTreeMap::new();
    let mut taken = BTreeSet::new();
    let mut by_name: HashMap<((&str, &str), &str), Vec<NodeId>> = HashMap::new();
    let mut by_result: HashMap<((&str, &str), String), NodeId> = HashMap::new();
    for &y in ys {
        let node = b.node(y);
        if !node.name.is_empty() {
            by_name.entry((kind(node), &node.name)).or_default().push(y);
        }
        results(b, y).into_iter().for_each(|name| {
            by_result.insert((kind(node), name), y);
        });
    }
    for &x in xs {
        let node = a.node(x);
        let named = by_name.get(&(kind(node), node.name.as_str())).map(Vec::as_slice);
        if let Some(&[y]) = named
            && taken.insert(y)
        {
            matched.insert(x, y);
        }
    }
    for &x in xs.iter().filter(|x| !matched.contains_key(x)).collect::<Vec<_>>() {
        let kind = kind(a.node(x));
        let found = results(a, x).into_iter().find_map(|name| by_result.get(&(kind, name)).copied());
        if let Some(y) = found.filter(|y| taken.insert(*y)) {
            matched.insert(x, y);
        }
    }
    matched
}

/// What became of a node that the second model lacks.
fn fate(
    a: &Graph,
    x: NodeId,
    b: &Graph,
    matched: &BTreeMap<NodeId, NodeId>,
    backward: &BTreeMap<NodeId, NodeId>,
) -> String {
    let into = |y: NodeId| format!("fused into {}", label(b, y));
    if a.inputs_of(x).into_iter().flatten().all(|v| qdq::is_constant(a, v)) {
        return "folded into a constant".into();
    }
    // Along its only readers: an operator that defines the result now, or one that reads the inputs now.
    let mut at = x;
    for _ in 0..=matched.len() {
        let defined = a.outputs_of(at).into_iter().flatten().find_map(|v| b.find(a.name(v)));
        if let Some((y, _)) = defined.and_then(|v| b.producer(qdq::original(b, v))) {
            return match backward.contains_key(&y) {
                true => into(y),
                false => format!("replaced by {}", label(b, y)),
            };
        }
        let Some(next) = a.output(at, 0).and_then(|v| a.only_use(v)) else { break };
        if let Some(&y) = matched.get(&next.node) {
            return into(y);
        }
        at = next.node;
    }
    String::new()
}

/// The name of what an operator reads, on the near side of quantization.
fn source(graph: &Graph, value: ValueId) -> String {
    let original = qdq::original(graph, value);
    match qdq::is_constant(graph, original) {
        true => "a constant".into(),
        false => format!("`{}`", graph.name(original)),
    }
}

/// Compares a node that both models have.
fn pair(a: &Graph, x: NodeId, b: &Graph, y: NodeId, changes: &mut Vec<Change>) {
    let (node, other, name) = (a.node(x), b.node(y), label(a, x));
    let find = |node: &Node, key: &str| {
        node.attributes.iter().find(|t| t.name.as_deref() == Some(key)).map(shown_attribute)
    };
    let keys =
        |node: &Node| -> BTreeSet<String> { node.attributes.iter().filter_map(|t| t.name.clone()).collect() };
    for key in keys(node).union(&keys(other)) {
        if let Some(change) = Change::between("attribute", &name, find(node, key), find(other, key)) {
            changes.push(Change { detail: format!("{key} {}", change.detail), ..change });
        }
    }
    let (xs, ys) = (a.inputs_of(x), b.inputs_of(y));
    for slot in 0..xs.len().max(ys.len()) {
        let (from, to) = (xs.get(slot).copied().flatten(), ys.get(slot).copied().flatten());
        let constant = |graph: &Graph, v: Option<ValueId>| {
            v.is_some_and(|v| qdq::is_constant(graph, qdq::original(graph, v)))
        };
        if constant(a, from) && constant(b, to) {
            if let (Some(from), Some(to)) = (from, to) {
                changes.extend(constants::compare(&name, slot, (a, from), (b, to)));
            }
            continue;
        }
        let known = |graph, v: Option<ValueId>| v.map(|v| source(graph, v));
        let same = match (from, to) {
            (Some(from), Some(to)) => same_value(a, from, b, to),
            (from, to) => from.is_none() && to.is_none(),
        };
        if !same && let Some(change) = Change::between("input", &name, known(a, from), known(b, to)) {
            changes.push(Change { detail: format!("{slot}: {}", change.detail), ..change });
        }
    }
    for (body, other) in node.bodies.iter().zip(&other.bodies) {
        let mut inner = Vec::new();
        super::graph(&body.graph, &other.graph, &mut inner);
        changes.extend(
            inner.into_iter().map(|c| Change { name: format!("{name}/{} {}", body.name, c.name), ..c }),
        );
    }
}

/// Do both names, before or behind quantization, meet?
fn same_value(a: &Graph, from: ValueId, b: &Graph, to: ValueId) -> bool {
    let names =
        |graph: &Graph, v| [graph.name(v).to_string(), graph.name(qdq::original(graph, v)).to_string()];
    let other = names(b, to);
    names(a, from).iter().any(|n| other.contains(n))
}

/// An attribute's value in few words; graphs are compared by themselves.
fn shown_attribute(attribute: &Attribute) -> String {
    let text = |s: &bytes::Bytes| format!("\"{}\"", String::from_utf8_lossy(s));
    match attribute.r#type.and_then(|t| AttributeType::try_from(t).ok()) {
        Some(AttributeType::Float) => attribute.f.unwrap_or(0.0).to_string(),
        Some(AttributeType::Int) => attribute.i.unwrap_or(0).to_string(),
        Some(AttributeType::String) => attribute.s.as_ref().map_or_else(|| "\"\"".into(), text),
        Some(AttributeType::Floats) => format!("{:?}", attribute.floats),
        Some(AttributeType::Ints) => format!("{:?}", attribute.ints),
        Some(AttributeType::Strings) => attribute.strings.iter().map(text).collect::<Vec<_>>().join(", "),
        Some(AttributeType::Graph | AttributeType::Graphs) => "a graph".into(),
        _ => match &attribute.t {
            Some(tensor) => constants::shown_proto(tensor),
            None => "a value of another type".into(),
        },
    }
}
