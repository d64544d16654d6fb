//! Shape and type inference, operator by operator in schedule order. It is never fatal: what cannot be inferred is
//! learnt when the graph is interpreted, and what contradicts itself is reported.

use crate::interpret::node_label;
use crate::ir::{Body, DType, Dim, Fact, Graph, NodeId, TensorType, ValueId, schedule};

/// Infers the types of all values, bodies included. Returns what was found to contradict itself.
pub fn infer(graph: &mut Graph) -> Vec<String> {
    let Ok(order) = schedule(graph) else { return Vec::new() };
    let mut warnings = Vec::new();
    for id in order {
        match node_types(graph, id) {
            Ok(types) => {
                for (value, ty) in graph.outputs_of(id).into_iter().zip(types) {
                    if let (Some(value), Some(ty)) = (value, ty) {
                        let merged = merge(ty, graph.value_mut(value).ty.take());
                        graph.value_mut(value).ty = Some(merged);
                    }
                }
            }
            Err(warning) => warnings.push(warning),
        }
        infer_bodies(graph, id, &mut warnings);
        infer_from_bodies(graph, id);
    }
    warnings
}

fn node_types(graph: &Graph, id: NodeId) -> Result<Vec<Option<TensorType>>, String> {
    let node = graph.node(id);
    let Some(op) = node.op.as_ref().filter(|_| node.unknown.is_none()) else { return Ok(Vec::new()) };
    let inputs = graph.inputs_of(id);
    let fact = |v| Some(Fact { ty: graph.ty(v)?, constant: graph.constant(v) });
    let facts: Vec<Option<Fact>> = inputs.iter().map(|v| v.and_then(fact)).collect();
    op.infer(&facts).map_err(|fault| format!("node `{}` ({}): {fault}", node_label(graph, id), node.op_type))
}

fn infer_bodies(graph: &mut Graph, id: NodeId, warnings: &mut Vec<String>) {
    if graph.node(id).bodies.is_empty() {
        return;
    }
    let known: Vec<(String, Option<TensorType>)> =
        graph.captures_of(id).iter().map(|&v| (graph.name(v).to_string(), graph.ty(v).cloned())).collect();
    let dtype = |v: Option<ValueId>| v.and_then(|v| graph.ty(v)).map(|t| t.dtype);
    let given: Vec<Option<DType>> = graph.inputs_of(id).into_iter().map(dtype).collect();
    let mut bodies = std::mem::take(&mut graph.node_mut(id).bodies);
    for body in &mut bodies {
        // The inputs of a Loop's or Scan's body are those of the node, whatever the body declares.
        for (inner, dtype) in body.graph.inputs.clone().into_iter().zip(&given) {
            let ty = &mut body.graph.value_mut(inner).ty;
            *ty = ty.take().or(dtype.map(TensorType::unranked));
        }
        for (name, ty) in &known {
            if let Some(inner) = body.graph.find(name) {
                body.graph.value_mut(inner).ty = ty.clone();
            }
        }
        warnings.extend(infer(&mut body.graph));
    }
    graph.node_mut(id).bodies = bodies;
}

/// Outputs of control flow have the element types of what the bodies return.
fn infer_from_bodies(graph: &mut Graph, id: NodeId) {
    let skip = usize::from(graph.node(id).is("Loop")); // its body returns the condition first
    for (slot, value) in graph.outputs_of(id).into_iter().enumerate() {
        let Some(value) = value.filter(|&v| graph.ty(v).is_none()) else { continue };
        let returned = |body: &Body| body.graph.ty(*body.graph.outputs.get(slot + skip)?).map(|t| t.dtype);
        let dtype = graph.node(id).bodies.iter().find_map(returned);
        graph.value_mut(value).ty = dtype.map(TensorType::unranked);
    }
}

/// What was inferred, completed by what was declared. A declaration never overrides: files carry wrong ones.
fn merge(inferred: TensorType, declared: Option<TensorType>) -> TensorType {
    let Some(declared) = declared else { return inferred };
    let dims = match (inferred.dims, declared.dims) {
        (Some(a), Some(b)) if a.len() == b.len() => {
            let known = |(a, b): (Dim, Dim)| if a == Dim::Unknown { b } else { a };
            Some(a.into_iter().zip(b).map(known).collect())
        }
        (Some(a), _) => Some(a),
        (None, b) if inferred.dtype == declared.dtype => b,
        (None, _) => None,
    };
    TensorType { dtype: inferred.dtype, dims }
}
