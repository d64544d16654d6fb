//! Float islands: neighbouring operators in float, with the reason for each.

use std::collections::{BTreeMap, BTreeSet};

use super::{Context, Finding, Kernel, Level};
use crate::ir::{Graph, NodeId};
use crate::quantize::insert::label;

/// More nodes than this are counted, not named.
const NAMED: usize = 6;

/// Reports each island of operators in float as one note.
pub fn group(context: &Context, kernels: &[(NodeId, Kernel)], findings: &mut Vec<Finding>) {
    let graph = context.graph;
    let reason = |kernel: &Kernel| match kernel {
        Kernel::Float(why) | Kernel::Broken(why) => Some(why.clone()),
        _ => None,
    };
    let float: BTreeMap<NodeId, String> =
        kernels.iter().filter_map(|(id, k)| Some((*id, reason(k)?))).collect();
    let land: BTreeSet<NodeId> =
        kernels.iter().filter(|(_, k)| reason(k).is_some() || *k == Kernel::Moves).map(|k| k.0).collect();
    let mut seen = BTreeSet::new();
    for (start, _) in kernels.iter().filter(|(id, _)| float.contains_key(id)) {
        if seen.contains(start) {
            continue;
        }
        let island = reach(graph, *start, &land, &mut seen);
        let members: Vec<NodeId> =
            kernels.iter().map(|k| k.0).filter(|id| island.contains(id) && float.contains_key(id)).collect();
        let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for id in &members {
            if let Some(why) = float.get(id) {
                reasons.entry(why).or_default().push(label(graph, *id));
            }
        }
        let shown = reasons.into_iter().map(|(why, nodes)| {
            let more = nodes.len().saturating_sub(NAMED);
            let named: Vec<String> = nodes.into_iter().take(NAMED).collect();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{}{more} ({why})", named.join(", "))
        });
        let place = format!("{}{} operators", context.prefix, members.len());
        let message = shown.collect::<Vec<_>>().join("; ");
        findings.push(Finding { level: Level::Note, kind: "float-island", places: vec![place], message });
    }
}

/// The nodes of `land` that hang together with `start`, through values that no QuantizeLinear or constant interrupts.
fn reach(
    graph: &Graph,
    start: NodeId,
    land: &BTreeSet<NodeId>,
    seen: &mut BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let mut island = BTreeSet::new();
    let mut open = vec![start];
    while let Some(id) = open.pop() {
        if !land.contains(&id) || !seen.insert(id) {
            continue;
        }
        island.insert(id);
        let before = graph.inputs_of(id).into_iter().flatten().filter_map(|v| graph.producer(v)).map(|p| p.0);
        let after = graph.outputs_of(id).into_iter().flatten().flat_map(|v| graph.uses(v)).map(|u| u.node);
        open.extend(before.chain(after).filter(|n| !graph.node(*n).is("Constant")));
    }
    island
}
