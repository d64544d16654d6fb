//! Nodes without effect: Identity, Dropout at inference, casts to the type that is there, dead code.

use std::collections::{HashMap, HashSet};

use super::Rewrite;
use crate::ir::{Edit, Graph, NodeId, Refusal};

/// Gives each node a name of its own: runtimes refuse two nodes of one name. The first keeps it.
pub fn tell_nodes_apart(graph: &mut Graph) {
    let named = |graph: &Graph, id: NodeId| !graph.node(id).name.is_empty();
    let ids: Vec<NodeId> = graph.nodes().filter(|&id| named(graph, id)).collect();
    let mut taken: HashSet<String> = HashSet::new();
    let mut twice = Vec::new();
    for id in ids {
        if !taken.insert(graph.node(id).name.clone()) {
            twice.push(id);
        }
    }
    let mut next: HashMap<String, usize> = HashMap::new();
    for id in twice {
        let name = graph.node(id).name.clone();
        let number = next.entry(name.clone()).or_default();
        let fresh = loop {
            *number += 1;
            let fresh = format!("{name}_{number}");
            if taken.insert(fresh.clone()) {
                break fresh;
            }
        };
        graph.node_mut(id).name = fresh;
    }
}

/// Identity and Dropout pass their input on.
pub struct Identity;

impl Rewrite for Identity {
    fn name(&self) -> &'static str {
        "identity-removal"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let node = graph.node(id);
        if node.unknown.is_some() || !(node.is("Identity") || node.is("Dropout")) {
            return Ok(None);
        }
        if node.is("Dropout") {
            let trains = graph
                .constant_input(id, 2)
                .is_none_or(|t| t.array().ok().and_then(|a| a.item::<bool>().ok()).unwrap_or(true));
            if graph.input(id, 2).is_some() && trains {
                return Err("it may run in training mode".into());
            }
            if graph.output(id, 1).is_some_and(|mask| graph.is_output(mask) || !graph.uses(mask).is_empty()) {
                return Err("its mask is used".into());
            }
        }
        pass_on(graph, id)
    }
}

/// Cast to the same type; Transpose that keeps the order; Pad by nothing; Reshape and Flatten are left alone.
pub struct NoOp;

impl Rewrite for NoOp {
    fn name(&self) -> &'static str {
        "no-op-removal"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let node = graph.node(id);
        if node.unknown.is_some() {
            return Ok(None);
        }
        let same_type = || {
            let (Some(x), Some(y)) = (graph.input(id, 0), graph.output(id, 0)) else { return false };
            matches!((graph.ty(x), graph.ty(y)), (Some(x), Some(y)) if x.dtype == y.dtype)
        };
        let zero_pads = || {
            let pads = graph.constant_input(id, 1).and_then(|t| t.array().ok()?.to_i64().ok());
            pads.is_some_and(|p| p.iter().all(|&v| v == 0))
        };
        match () {
            () if node.is("Cast") && same_type() => pass_on(graph, id),
            () if node.is("Pad") && zero_pads() => pass_on(graph, id),
            () => Ok(None),
        }
    }
}

/// Lets the readers of the first output read the first input.
fn pass_on(graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
    let (Some(input), Some(output)) = (graph.input(id, 0), graph.output(id, 0)) else { return Ok(None) };
    let mut edit = Edit::dropping(&[id]);
    edit.forward(output, input);
    Ok(Some(edit))
}

/// Nodes that nobody reads.
pub struct Dead;

impl Rewrite for Dead {
    fn name(&self) -> &'static str {
        "dead-code"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let idle = |v| graph.uses(v).is_empty() && !graph.is_output(v);
        let dead = graph.outputs_of(id).into_iter().flatten().all(idle);
        Ok(dead.then(|| Edit::dropping(&[id])))
    }
}

/// Removes constants that nobody reads.
pub fn unused_constants(graph: &mut Graph) {
    for id in graph.constants.clone() {
        graph.remove_value_if_dead(id);
    }
}
