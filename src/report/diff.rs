//! What changed between two models, for a reviewer: nodes, attributes, constants, and where values are quantized.
//!
//! Nodes are matched by operator and name, else by operator and a value that they define; values by name, and a value
//! that is quantized is the same value. Order of nodes, names of constants and encodings of tensors do not matter.

mod constants;
mod nodes;
mod quantization;

use serde::Serialize;

use super::inspect::shown_domain;
use crate::error::one_line;
use crate::ir::{Graph, Model, TensorType, ValueId};
use crate::passes::infer;

/// Which side has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Only the first model.
    Removed,
    /// Only the second model.
    Added,
    /// Both, differently.
    Changed,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Which side has it.
    pub side: Side,
    /// What kind of thing it is: `opset`, `input`, `node`, `attribute`, `quantized`, ...
    pub kind: &'static str,
    /// Which one.
    pub name: String,
    /// What is different.
    pub detail: String,
}

impl Change {
    fn new(side: Side, kind: &'static str, name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { side, kind, name: name.into(), detail: detail.into() }
    }

    /// `from -> to`, with the side that follows from what is there.
    fn between(kind: &'static str, name: &str, from: Option<String>, to: Option<String>) -> Option<Self> {
        match (from, to) {
            (Some(a), Some(b)) if a == b => None,
            (Some(a), Some(b)) => Some(Self::new(Side::Changed, kind, name, format!("{a} -> {b}"))),
            (Some(a), None) => Some(Self::new(Side::Removed, kind, name, a)),
            (None, Some(b)) => Some(Self::new(Side::Added, kind, name, b)),
            (None, None) => None,
        }
    }
}

/// Every difference between two models, from the outside in.
pub fn diff(a: &Model, b: &Model) -> Vec<Change> {
    let (mut x, mut y) = (a.graph.clone(), b.graph.clone());
    infer(&mut x);
    infer(&mut y);
    let mut changes = Vec::new();
    let ir = |m: &Model| Some(m.ir_version().to_string());
    changes.extend(Change::between("ir_version", "", ir(a), ir(b)));
    let domains = a.opsets.keys().chain(b.opsets.keys().filter(|d| !a.opsets.contains_key(*d)));
    for domain in domains {
        let version = |m: &Model| m.opsets.get(domain).map(i64::to_string);
        changes.extend(Change::between("opset", shown_domain(domain), version(a), version(b)));
    }
    metadata(a, b, &mut changes);
    graph(&x, &y, &mut changes);
    changes
}

fn metadata(a: &Model, b: &Model, changes: &mut Vec<Change>) {
    let value = |m: &Model, key: &str| {
        let entry = m.rest.metadata_props.iter().find(|e| e.key.as_deref() == Some(key));
        entry.map(|e| e.value.clone().unwrap_or_default())
    };
    let keys =
        |m: &Model| -> Vec<String> { m.rest.metadata_props.iter().filter_map(|e| e.key.clone()).collect() };
    let own = keys(b).into_iter().filter(|k| value(a, k).is_none()).collect::<Vec<_>>();
    for key in keys(a).into_iter().chain(own) {
        changes.extend(Change::between("metadata", &key, value(a, &key), value(b, &key)));
    }
    let functions = |m: &Model| -> Vec<String> {
        m.rest.functions.iter().map(|f| format!("{}.{}", f.domain(), f.name())).collect()
    };
    if functions(a) != functions(b) {
        let shown = |m| Some(functions(m).join(", "));
        changes.extend(Change::between("functions", "", shown(a), shown(b)));
    }
}

/// The differences between two graphs.
fn graph(a: &Graph, b: &Graph, changes: &mut Vec<Change>) {
    interface("input", a, &a.inputs, b, &b.inputs, changes);
    interface("output", a, &a.outputs, b, &b.outputs, changes);
    nodes::compare(a, b, changes);
    quantization::compare(a, b, changes);
}

fn interface(
    kind: &'static str,
    a: &Graph,
    x: &[ValueId],
    b: &Graph,
    y: &[ValueId],
    changes: &mut Vec<Change>,
) {
    let names = |graph: &Graph, ids: &[ValueId]| -> Vec<String> {
        let open = ids.iter().filter(|&&v| graph.constant(v).is_none());
        open.map(|&v| graph.name(v).to_string()).collect()
    };
    let ty = |graph: &Graph, name: &str, list: &[String]| {
        let found = graph.find(name).filter(|_| list.iter().any(|n| n == name))?;
        Some(graph.ty(found).map_or_else(|| "no tensor".into(), TensorType::to_string))
    };
    let (xs, ys) = (names(a, x), names(b, y));
    for name in xs.iter().chain(ys.iter().filter(|n| !xs.contains(n))) {
        changes.extend(Change::between(kind, name, ty(a, name, &xs), ty(b, name, &ys)));
    }
    let (mut sorted_xs, mut sorted_ys) = (xs.clone(), ys.clone());
    sorted_xs.sort();
    sorted_ys.sort();
    if xs != ys && sorted_xs == sorted_ys {
        changes.extend(Change::between(kind, "order", Some(xs.join(", ")), Some(ys.join(", "))));
    }
}

/// The changes for people: one a line, `-`, `+` or `~`, then the kind, the name and what is different.
pub fn text(changes: &[Change]) -> String {
    let line = |c: &Change| {
        let mark = match c.side {
            Side::Removed => '-',
            Side::Added => '+',
            Side::Changed => '~',
        };
        let name = if c.name.is_empty() { String::new() } else { format!("{}  ", one_line(&c.name)) };
        format!("{mark} {:11} {name}{}", c.kind, one_line(&c.detail)).trim_end().to_string() + "\n"
    };
    changes.iter().map(line).collect()
}
