//! What must hold of every graph, checked after every pass in tests and debug builds and once before writing:
//!
//! * each value has at most one definition: a node, the graph's inputs, a constant, or a graph around it;
//! * each value that is read or returned has one;
//! * no name is empty, none is used twice, none in a body hides one outside;
//! * constants have the type that is declared for them;
//! * nodes depend on each other without a cycle.

use super::{Graph, Model, Port, schedule};

/// Every fault of the model, as lines for the user; empty if there is none.
pub fn verify(model: &Model) -> Vec<String> {
    let mut faults = Vec::new();
    graph(&model.graph, &mut faults);
    faults
}

fn graph(graph: &Graph, faults: &mut Vec<String>) {
    for id in graph.values() {
        let value = graph.value(id);
        let name = &value.name;
        if name.is_empty() {
            faults.push("a value has no name".into());
        }
        let sources = [
            graph.producer(id).is_some(),
            graph.inputs.contains(&id) && value.constant.is_none(),
            value.constant.is_some(),
            value.captured,
        ];
        let defined = sources.iter().filter(|&&s| s).count();
        let read = graph.is_output(id) || !graph.uses(id).is_empty();
        match defined {
            0 if read => faults.push(format!("`{name}` is used, but nothing defines it")),
            0 | 1 => {}
            _ => faults.push(format!("`{name}` is defined more than once")),
        }
        if let (Some(tensor), Some(ty)) = (value.constant.as_ref().or(value.default.as_ref()), &value.ty)
            && tensor.dtype() != ty.dtype
        {
            faults.push(format!("`{name}` is declared {ty}, but its constant is {}", tensor.tensor_type()));
        }
        let ports: Vec<_> = graph.uses(id).into_iter().filter(|u| u.port != Port::Capture).collect();
        if ports.windows(2).any(|w| w[0] == w[1]) {
            faults.push(format!("`{name}` fills one slot twice"));
        }
    }
    if let Err(fault) = schedule(graph) {
        faults.push(fault.to_string());
    }
    for node in graph.nodes() {
        for body in &graph.node(node).bodies {
            self::graph(&body.graph, faults);
        }
    }
}
