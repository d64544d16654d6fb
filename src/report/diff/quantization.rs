//! Which values are quantized, and with which parameters.

use indexmap::IndexMap;

use super::{Change, Side};
use crate::ir::{Graph, schedule};
use crate::report::qdq::{self, Params};

/// Compares where two graphs quantize their activations.
pub fn compare(a: &Graph, b: &Graph, changes: &mut Vec<Change>) {
    let (xs, ys) = (activations(a, b), activations(b, a));
    let shown =
        |p: &Option<Params>| p.as_ref().map_or_else(|| "by computed parameters".into(), Params::shown);
    for (name, p) in &xs {
        match ys.get(name) {
            None => changes.push(Change::new(Side::Removed, "quantized", name, shown(p))),
            Some(q) => {
                let detail = match (p, q) {
                    (Some(p), Some(q)) => moved(p, q),
                    (None, None) => None,
                    _ => Some(format!("{} -> {}", shown(p), shown(q))),
                };
                changes.extend(detail.map(|d| Change::new(Side::Changed, "quantized", name, d)));
            }
        }
    }
    for (name, q) in ys.iter().filter(|(name, _)| !xs.contains_key(*name)) {
        changes.push(Change::new(Side::Added, "quantized", name, shown(q)));
    }
}

/// The parameters of each value that a QuantizeLinear reads, under the name that the value has in the other graph too:
/// its own, or that of what comes back. Tools make the other by adding to it, so the shorter is meant.
fn activations(graph: &Graph, other: &Graph) -> IndexMap<String, Option<Params>> {
    let mut found = IndexMap::new();
    for id in schedule(graph).unwrap_or_default() {
        let Some(value) = graph.input(id, 0).filter(|_| qdq::is_quantize(graph.node(id))) else { continue };
        let names = std::iter::once(value).chain(qdq::dequantized(graph, id)).map(|v| graph.name(v));
        let common = names.filter(|n| other.find(n).is_some());
        let name = common.min_by_key(|n| n.len()).unwrap_or(graph.name(value)).to_string();
        found.entry(name).or_insert_with(|| qdq::params(graph, id));
    }
    found
}

/// How parameters moved; `None` if they did not.
pub fn moved(p: &Params, q: &Params) -> Option<String> {
    if p.same(q) && (p.scales.len() < 2 || p.axis == q.axis) {
        return None;
    }
    let mut parts = Vec::new();
    if p.dtype != q.dtype {
        parts.push(format!("{} -> {}", p.dtype, q.dtype));
    }
    match (p.scales.as_slice(), q.scales.as_slice()) {
        (&[s], &[t]) if s != t => parts.push(format!("scale {s} -> {t} ({})", percent(s, t))),
        (s, t) if s.len() != t.len() => parts.push(format!("{} -> {} scales", s.len(), t.len())),
        (s, t) if s != t => {
            let count = s.iter().zip(t).filter(|(s, t)| s != t).count();
            let change = |(s, t): &(&f32, &f32)| (f64::from(**t) / f64::from(**s) - 1.0).abs();
            let most = s.iter().zip(t).max_by(|x, y| change(x).total_cmp(&change(y)));
            let most = most.map_or_else(String::new, |(&s, &t)| percent(s, t));
            parts.push(format!("{count} of {} scales moved, by up to {most}", s.len()));
        }
        _ => {}
    }
    match (p.scales.len(), q.scales.len()) {
        (1, 1) if p.zero_point(0) != q.zero_point(0) => {
            parts.push(format!("zero {} -> {}", p.zero_point(0), q.zero_point(0)));
        }
        (n, m) if n == m && (0..n).any(|i| p.zero_point(i) != q.zero_point(i)) => {
            parts.push("other zero points".into());
        }
        _ => {}
    }
    if p.axis != q.axis && p.scales.len() > 1 {
        parts.push(format!("axis {} -> {}", p.axis, q.axis));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn percent(from: f32, to: f32) -> String {
    format!("{:+.2} %", 100.0 * (f64::from(to) / f64::from(from) - 1.0))
}
