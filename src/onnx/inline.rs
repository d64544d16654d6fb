//! Model-local functions, put in place of their calls: a runtime does that when it loads a model, and what is inside
//! can then be rewritten like anything else.
//!
//! A value of the body gets the name of the call before its own; inputs and outputs of the function are the values of
//! the call. A function for another version of an operator set than the model's is left as it is.

use std::collections::{BTreeMap, HashSet};

use super::function;
use crate::error::Fault;
use crate::fail;
use crate::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};

/// Deeper calls are taken for a function that calls itself.
const MAX_DEPTH: usize = 32;

/// Domain, name and overload.
type Key = (String, String, String);

/// Replaces every call of a function that the model defines.
pub fn inline(mut model: ModelProto) -> Result<ModelProto, Fault> {
    if model.functions.is_empty() {
        return Ok(model);
    }
    let Some(mut graph) = model.graph.take() else { return Ok(model) };
    let mut functions = BTreeMap::new();
    for function in &model.functions {
        if fits(&mut model.opset_import, function) {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let key = (text(&function.domain), text(&function.name), text(&function.overload));
            functions.insert(key, function.clone());
        }
    }
    let mut names = HashSet::new();
    collect(&graph, &mut names);
    Inliner { functions: &functions, names }.graph(&mut graph, 0)?;
    model.functions.retain(|f| {
        let same = |k: &Key| Some(&k.0) == f.domain.as_ref() && Some(&k.1) == f.name.as_ref();
        !functions.keys().any(same)
    });
    model.graph = Some(graph);
    Ok(model)
}

/// Has the function the model's operator sets? Sets that only the function imports are added.
fn fits(imports: &mut Vec<crate::proto::OperatorSetIdProto>, function: &FunctionProto) -> bool {
    let domain = |d: &Option<String>| d.clone().filter(|d| d != "ai.onnx").unwrap_or_default();
    let mut missing = Vec::new();
    for set in &function.opset_import {
        match imports.iter().find(|i| domain(&i.domain) == domain(&set.domain)) {
            Some(own) if own.version == set.version => {}
            Some(_) => return false,
            None => missing.push(set.clone()),
        }
    }
    imports.extend(missing);
    true
}

/// Every name in a graph and the graphs inside it.
fn collect(graph: &GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.input.iter().filter_map(|i| i.name.clone()));
    names.extend(graph.initializer.iter().filter_map(|i| i.name.clone()));
    for node in &graph.node {
        names.extend(node.output.iter().cloned());
        bodies(node).for_each(|body| collect(body, names));
    }
}

fn bodies(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

struct Inliner<'a> {
    functions: &'a BTreeMap<Key, FunctionProto>,
    names: HashSet<String>,
}

impl Inliner<'_> {
    fn graph(&mut self, graph: &mut GraphProto, depth: usize) -> Result<(), Fault> {
        let nodes = std::mem::take(&mut graph.node);
        let mut infos = Vec::new();
        graph.node = self.nodes(nodes, &mut infos, depth)?;
        graph.value_info.extend(infos);
        Ok(())
    }

    fn nodes(
        &mut self,
        nodes: Vec<NodeProto>,
        infos: &mut Vec<ValueInfoProto>,
        depth: usize,
    ) -> Result<Vec<NodeProto>, Fault> {
        if depth > MAX_DEPTH {
            fail!("functions call each other more than {MAX_DEPTH} deep");
        }
        let mut expanded = Vec::with_capacity(nodes.len());
        for mut node in nodes {
            for attribute in &mut node.attribute {
                for body in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.graph(body, depth)?;
                }
            }
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let key = (text(&node.domain), text(&node.op_type), text(&node.overload));
            match self.functions.get(&key) {
                None => expanded.push(node),
                Some(function) => {
                    let (body, types) = self.call(function, &node);
                    infos.extend(types);
                    expanded.extend(self.nodes(body, infos, depth + 1)?);
                }
            }
        }
        Ok(expanded)
    }

    /// The body of a function for one call.
    fn call(&mut self, function: &FunctionProto, call: &NodeProto) -> (Vec<NodeProto>, Vec<ValueInfoProto>) {
        let first = call.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
        let prefix = call.name.clone().filter(|n| !n.is_empty()).unwrap_or(first);
        let mut renaming = Renaming { names: BTreeMap::new(), prefix, taken: &mut self.names };
        for (slot, formal) in function.input.iter().enumerate() {
            renaming.names.insert(formal.clone(), call.input.get(slot).cloned().unwrap_or_default());
        }
        let mut body = Vec::new();
        for (slot, formal) in function.output.iter().enumerate() {
            let Some(actual) = call.output.get(slot).filter(|o| !o.is_empty()) else { continue };
            match renaming.names.get(formal) {
                // An input that is returned, or a value returned twice, needs a node to define the second name.
                Some(known) => body.push(NodeProto {
                    op_type: Some("Identity".into()),
                    input: vec![known.clone()],
                    output: vec![actual.clone()],
                    ..NodeProto::default()
                }),
                None => {
                    renaming.names.insert(formal.clone(), actual.clone());
                }
            }
        }
        let identities = std::mem::take(&mut body);
        for mut node in function::body(function, &call.attribute).node {
            renaming.node(&mut node);
            body.push(node);
        }
        body.extend(identities);
        let mut infos = Vec::new();
        for info in &function.value_info {
            let name = info.name.as_ref().and_then(|n| renaming.names.get(n)).cloned();
            infos.extend(name.map(|name| ValueInfoProto { name: Some(name), ..info.clone() }));
        }
        (body, infos)
    }
}

/// Names in a function's body and the values that they stand for.
struct Renaming<'a> {
    names: BTreeMap<String, String>,
    prefix: String,
    taken: &'a mut HashSet<String>,
}

impl Renaming<'_> {
    fn name(&mut self, name: &mut String) {
        if name.is_empty() {
            return;
        }
        if let Some(known) = self.names.get(name) {
            name.clone_from(known);
            return;
        }
        let hint = format!("{}/{name}", self.prefix);
        let mut fresh = hint.clone();
        let mut count = 0u64;
        while !self.taken.insert(fresh.clone()) {
            count += 1;
            fresh = format!("{hint}_{count}");
        }
        self.names.insert(std::mem::replace(name, fresh.clone()), fresh);
    }

    fn node(&mut self, node: &mut NodeProto) {
        node.input.iter_mut().chain(&mut node.output).for_each(|n| self.name(n));
        if let Some(name) = node.name.as_mut().filter(|n| !n.is_empty()) {
            *name = format!("{}/{name}", self.prefix);
        }
        for attribute in &mut node.attribute {
            attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(|body| self.body(body));
        }
    }

    fn body(&mut self, graph: &mut GraphProto) {
        let infos = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
        let named = infos.filter_map(|i| i.name.as_mut());
        let weights = graph.initializer.iter_mut().filter_map(|t| t.name.as_mut());
        named.chain(weights).for_each(|n| self.name(n));
        graph.node.iter_mut().for_each(|n| self.node(n));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::Program;
    use crate::ir::Array;
    use crate::onnx::{import, text};

    #[test]
    fn calls_become_their_bodies() {
        let source = "< ir_version: 8, opset_import: [\"\" : 17, \"local\" : 1] >
            g (float[2] x) => (float[2] y, float[2] z) { h = local.twice <by = 3.0> (x)  y = local.twice <by = 2.0> (h)
                z = local.both (x, y) }
            < domain: \"local\", opset_import: [\"\" : 17] > twice <by> (a) => (b)
                { c = Constant <value_float : float = @by> ()  t = Mul (a, c)  b = Identity (t) }
            < domain: \"local\", opset_import: [\"\" : 17, \"local\" : 1] > both (a, b) => (c)
                { t = local.twice <by = 1.0> (a)  c = Add (t, b) }";
        let model = inline(text::parse(source).unwrap()).unwrap();
        assert!(model.functions.is_empty());
        let model = import(model, &|_| Err("no external data".into())).unwrap();
        assert!(crate::ir::verify(&model).is_empty());
        let found = Program::new(&model.graph).unwrap().run(&[Array::vector(vec![1.0f32, 2.0])]).unwrap();
        assert_eq!(found, [Array::vector(vec![6.0f32, 12.0]), Array::vector(vec![7.0f32, 14.0])]);
    }

    #[test]
    fn a_function_that_calls_itself_is_refused() {
        let source = "< ir_version: 8, opset_import: [\"\" : 17, \"local\" : 1] >
            g (float[2] x) => (float[2] y) { y = local.f (x) }
            < domain: \"local\", opset_import: [\"\" : 17, \"local\" : 1] > f (a) => (b) { b = local.f (a) }";
        assert!(inline(text::parse(source).unwrap()).is_err());
    }
}
