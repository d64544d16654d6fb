//! The table of operators: what qonnx can do with each.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use serde::Serialize;

use super::inspect::shown_domain;
use crate::ir::{Op, Rule, attribute};
use crate::ops::{Attrs, FAMILIES, OpDef};
use crate::quantize::Target;

/// The opset for which operators are described.
const OPSET: i64 = 22;

/// One operator.
#[derive(Debug, Clone, Serialize)]
pub struct Operator {
    /// Its domain.
    pub domain: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The family that it is implemented with.
    pub family: &'static str,
    /// Opset versions at which its form changes.
    pub since: Vec<i64>,
    /// Can the interpreter run it?
    pub float: bool,
    /// Has the default target an integer kernel for it?
    pub integer: bool,
    /// Can a training step go through it?
    pub gradient: bool,
    /// How it relates the quantization of its inputs and outputs.
    pub rule: &'static str,
}

/// Every operator, by domain and name.
pub fn operators() -> Vec<Operator> {
    let kernels = Target::named("ort-cpu").map(|t| t.integer).unwrap_or_default();
    let mut table: BTreeMap<(&str, &str), (Operator, &OpDef)> = BTreeMap::new();
    for (family, defs) in FAMILIES {
        for def in *defs {
            let domain = shown_domain(def.domain);
            let new = || {
                let onnx = domain == "ai.onnx";
                let integer = onnx && kernels.contains_key(def.name);
                let (since, name) = (Vec::new(), def.name);
                let operator = Operator {
                    domain,
                    name,
                    family,
                    since,
                    float: true,
                    integer,
                    gradient: false,
                    rule: "float",
                };
                (operator, def)
            };
            let (operator, newest) = table.entry((domain, def.name)).or_insert_with(new);
            operator.since.push(def.since);
            if def.since > newest.since {
                *newest = def;
            }
        }
    }
    let finish = |(mut operator, def): (Operator, &OpDef)| {
        operator.since.sort_unstable();
        if let Some(op) = usual(def) {
            operator.rule = rule(&op.rule());
            operator.gradient = op.gradient().is_some();
        }
        operator
    };
    table.into_values().map(finish).collect()
}

/// The operator with its usual attributes.
fn usual(def: &OpDef) -> Option<Arc<dyn Op>> {
    let attributes = [
        attribute::int("axis", 0),
        attribute::int("to", 1),
        attribute::int("blocksize", 1),
        attribute::int("hidden_size", 1),
        attribute::ints("kernel_shape", [1, 1]),
    ];
    (def.parse)(&mut Attrs::new(&attributes, def.since.max(OPSET), 1, 1)).ok()
}

fn rule(rule: &Rule) -> &'static str {
    match rule {
        Rule::Float => "float",
        Rule::Contraction { .. } => "contraction",
        Rule::SameScale => "same scale",
        Rule::Arithmetic(_) => "arithmetic",
        Rule::FixedRange { .. } => "fixed range",
        Rule::Clamp { .. } => "clamp",
        Rule::Rescale { .. } => "rescale",
    }
}

/// The table in columns.
pub fn text(operators: &[Operator]) -> String {
    let mut text = String::new();
    let mark = |yes: bool| if yes { "yes" } else { "-" };
    let _ = writeln!(
        text,
        "{:32} {:5} {:7} {:8} {:12} {:12} since",
        "operator", "float", "integer", "gradient", "rule", "family"
    );
    for o in operators {
        let (float, integer, gradient) = (mark(o.float), mark(o.integer), mark(o.gradient));
        let name = full_name(o);
        let (rule, family, since) = (o.rule, o.family, versions(o));
        let _ = writeln!(text, "{name:32} {float:5} {integer:7} {gradient:8} {rule:12} {family:12} {since}");
    }
    text
}

/// The table in Markdown.
pub fn markdown(operators: &[Operator]) -> String {
    let mut text = format!("<details><summary>{} operators</summary>\n\n", operators.len());
    text.push_str(
        "| operator | since opset | float | integer | gradient | rule |\n|---|---|---|---|---|---|\n",
    );
    let mark = |yes: bool| if yes { "yes" } else { "" };
    for o in operators {
        let (float, integer, gradient) = (mark(o.float), mark(o.integer), mark(o.gradient));
        let _ = writeln!(
            text,
            "| {} | {} | {float} | {integer} | {gradient} | {} |",
            full_name(o),
            versions(o),
            o.rule
        );
    }
    text + "\n</details>\n"
}

fn full_name(o: &Operator) -> String {
    if o.domain == "ai.onnx" { o.name.into() } else { format!("{}.{}", o.domain, o.name) }
}

fn versions(o: &Operator) -> String {
    o.since.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}
