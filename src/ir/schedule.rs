//! The order in which nodes run and are written: the file's order wherever the dependencies allow.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::{Graph, NodeId};
use crate::error::Fault;

/// Every node after those it depends on, ties broken by `rank` and then by id. A cycle is a fault.
pub fn schedule(graph: &Graph) -> Result<Vec<NodeId>, Fault> {
    let key = |id: NodeId| Reverse((graph.node(id).rank, id));
    let mut waiting: HashMap<NodeId, usize> = HashMap::new();
    let mut ready = BinaryHeap::new();
    let mut total = 0;
    for id in graph.nodes() {
        total += 1;
        let inputs = graph.inputs_of(id).into_iter().flatten().chain(graph.captures_of(id));
        let missing = inputs.filter(|&v| graph.producer(v).is_some()).count();
        if missing == 0 {
            ready.push(key(id));
        }
        waiting.insert(id, missing);
    }
    let mut order = Vec::with_capacity(total);
    while let Some(Reverse((_, id))) = ready.pop() {
        order.push(id);
        for value in graph.outputs_of(id).into_iter().flatten() {
            for usage in graph.uses(value) {
                if let Some(missing) = waiting.get_mut(&usage.node) {
                    *missing -= 1;
                    if *missing == 0 {
                        ready.push(key(usage.node));
                    }
                }
            }
        }
    }
    if order.len() < total {
        let stuck = graph.nodes().find(|id| waiting.get(id).is_some_and(|&m| m > 0));
        let name = stuck.map(|id| graph.node(id).name.clone()).unwrap_or_default();
        return Err(format!("the graph has a cycle through node `{name}`").into());
    }
    Ok(order)
}
