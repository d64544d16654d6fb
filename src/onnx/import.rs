//! From messages to the graph. Import never decides: it splits each message into what the graph models and a `rest`
//! that is carried, so that [`emit`](super::emit) can put the same bytes back together.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::audit::audit;
use super::function;
use crate::error::{Error, Fault};
use crate::ir::{
    Attribute, Body, DType, Dim, Graph, Model, Node, NodeId, Tensor, TensorType, Value, ValueId,
};
use crate::ops::control::Call;
use crate::ops::{self, Attrs, Op};
use crate::proto::tensor_proto::DataLocation;
use crate::proto::tensor_shape_proto::dimension;
use crate::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, type_proto};

/// Gives the payload of a tensor whose data lies in another file.
pub type LoadExternal<'a> = &'a dyn Fn(&TensorProto) -> Result<Bytes, Fault>;

/// Deeper nesting of bodies than this is refused; protobuf's own limit is near 32.
const MAX_DEPTH: usize = 40;

/// Builds the graph of a model.
pub fn import(mut proto: ModelProto, external: LoadExternal) -> Result<Model, Error> {
    let at = |fault: Fault| fault.at("not a usable model");
    if proto.graph.is_none() {
        return Err(at("it holds no graph".into()));
    }
    if proto.ir_version.is_none() || proto.opset_import.is_empty() {
        return Err(at(
            Fault::new("ir_version or opset_import is missing").hint("is it an ONNX file, and whole?")
        ));
    }
    audit(&proto, external).map_err(at)?;
    let Some(graph) = proto.graph.take() else { return Err(at("it holds no graph".into())) };
    let mut model = Model::default();
    for set in &proto.opset_import {
        let version = model.opsets.entry(set.domain.clone().unwrap_or_default()).or_insert(0);
        *version = (*version).max(set.version.unwrap_or(0));
    }
    model.rest = proto;
    let importer = Importer { model: &model, functions: &model.rest.functions, external };
    let (graph, captures) = importer.graph(graph, 0)?;
    if let Some(name) = captures.first() {
        return Err(at(format!("`{name}` is used, but nothing defines it").into()));
    }
    model.graph = graph;
    Ok(model)
}

struct Importer<'a> {
    /// Operator sets and file format.
    model: &'a Model,
    /// The functions that the model defines.
    functions: &'a [FunctionProto],
    external: LoadExternal<'a>,
}

impl Importer<'_> {
    /// The graph, and the names it takes from the graphs around it.
    fn graph(&self, mut proto: GraphProto, depth: usize) -> Result<(Graph, Vec<String>), Error> {
        let place = || format!("graph `{}`", proto.name.as_deref().unwrap_or_default());
        if depth > MAX_DEPTH {
            return Err(Fault::new(format!("subgraphs nest deeper than {MAX_DEPTH}")).at(place()));
        }
        let place = place();
        let mut graph = Graph::default();
        let types = self.declared_types(&proto);
        for input in &proto.input {
            let name = input.name.clone().unwrap_or_default();
            let value = Value { ty: types.get(&name).cloned(), name: name.clone(), ..Value::default() };
            let id = graph.add_value(value).ok_or_else(|| twice(&name).at(&place))?;
            graph.inputs.push(id);
        }
        for tensor in std::mem::take(&mut proto.initializer) {
            self.initializer(&mut graph, tensor).map_err(|f| f.at(&place))?;
        }
        for sparse in &proto.sparse_initializer {
            let name = sparse.values.as_ref().and_then(|v| v.name.clone()).unwrap_or_default();
            let value = Value { name: name.clone(), captured: true, ..Value::default() };
            graph.add_value(value).ok_or_else(|| twice(&name).at(&place))?;
        }
        let nodes = std::mem::take(&mut proto.node);
        for output in nodes.iter().flat_map(|n| &n.output).filter(|n| !n.is_empty()) {
            let value = Value { name: output.clone(), ty: types.get(output).cloned(), ..Value::default() };
            graph.add_value(value).ok_or_else(|| twice(output).at(&place))?;
        }
        let mut captures = Vec::new();
        for (rank, node) in nodes.into_iter().enumerate() {
            self.node(&mut graph, node, rank as u64, depth, &mut captures)?;
        }
        for output in &proto.output {
            let name = output.name.clone().unwrap_or_default();
            let id = value_named(&mut graph, &name, &mut captures);
            graph.outputs.push(id);
        }
        graph.rest = proto;
        Ok((graph, captures))
    }

    fn initializer(&self, graph: &mut Graph, mut proto: TensorProto) -> Result<(), Fault> {
        let name = proto.name.take().unwrap_or_default();
        let within = |fault: Fault| Fault::new(format!("initializer `{name}`: {fault}"));
        let external = match proto.data_location == Some(DataLocation::External as i32) {
            true => Some((self.external)(&proto).map_err(within)?),
            false => None,
        };
        let tensor = Tensor::from_proto(proto, external).map_err(within)?;
        match graph.find(&name) {
            None => {
                let ty = Some(tensor.tensor_type());
                let value = Value { name: name.clone(), ty, constant: Some(tensor), ..Value::default() };
                graph.add_value(value).ok_or_else(|| twice(&name))?;
            }
            Some(id) if !graph.constants.contains(&id) => {
                // Since IR 4 an initializer of an input is a default that the caller may override.
                graph.constants.push(id);
                let slot = graph.value_mut(id);
                slot.ty.get_or_insert_with(|| tensor.tensor_type());
                match self.model.ir_version() < 4 {
                    true => slot.constant = Some(tensor),
                    false => slot.default = Some(tensor),
                }
            }
            Some(_) => return Err(twice(&name)),
        }
        Ok(())
    }

    fn node(
        &self,
        graph: &mut Graph,
        mut proto: NodeProto,
        rank: u64,
        depth: usize,
        captures: &mut Vec<String>,
    ) -> Result<NodeId, Error> {
        let (inputs, outputs) = (std::mem::take(&mut proto.input), std::mem::take(&mut proto.output));
        let mut attributes = std::mem::take(&mut proto.attribute);
        let op_type = proto.op_type.clone().unwrap_or_default();
        let name = proto.name.clone().unwrap_or_default();
        let (bodies, inner) = self
            .bodies(&mut attributes, depth)
            .map_err(|e| e.within(format_args!("node `{name}` ({op_type})")))?;
        let domain = proto.domain.clone().unwrap_or_default();
        let overload = proto.overload.as_deref().unwrap_or_default();
        let (op, unknown) = match self.call(&domain, &op_type, overload, &attributes, depth) {
            None => parse(self.model, &domain, &op_type, &attributes, inputs.len(), outputs.len()),
            Some(Ok(op)) => (Some(op), None),
            Some(Err(error)) => (None, Some(error.to_string())),
        };
        let node = Node {
            name,
            op_type,
            domain,
            attributes,
            op,
            unknown,
            bodies,
            inputs: 0,
            outputs: 0,
            rank,
            rest: proto,
        };
        let mut slot = |name: &String| (!name.is_empty()).then(|| value_named(graph, name, captures));
        let inputs: Vec<_> = inputs.iter().map(&mut slot).collect();
        let outputs: Vec<_> = outputs.iter().map(&mut slot).collect();
        let captured: Vec<ValueId> = inner.iter().map(|n| value_named(graph, n, captures)).collect();
        for body in &node.bodies {
            graph.reserve(body.graph.all_names());
        }
        let id = graph.add_node(node, &inputs, &outputs);
        captured.into_iter().for_each(|v| graph.add_capture(id, v));
        Ok(id)
    }

    /// A call of a function of the model, if it is one.
    fn call(
        &self,
        domain: &str,
        name: &str,
        overload: &str,
        attributes: &[Attribute],
        depth: usize,
    ) -> Option<Result<Arc<dyn Op>, Error>> {
        let called =
            |f: &&FunctionProto| f.domain() == domain && f.name() == name && f.overload() == overload;
        let function = self.functions.iter().find(called)?;
        let within = format!("function `{name}`");
        let mut model = Model::default();
        model.opsets.extend(function.opset_import.iter().map(|o| (o.domain().to_string(), o.version())));
        model.rest.ir_version = self.model.rest.ir_version;
        let importer = Importer { model: &model, functions: self.functions, external: self.external };
        let graph = importer.graph(function::body(function, attributes), depth + 1);
        Some(graph.map_err(|e| e.within(&within)).and_then(|(function, captures)| match captures.first() {
            None => Ok(Arc::new(Call { function }) as Arc<dyn Op>),
            Some(name) => Err(Fault::new(format!("`{name}` is used, but nothing defines it")).at(&within)),
        }))
    }

    /// Takes the graphs out of the attributes; also the names that they capture.
    fn bodies(&self, attributes: &mut [Attribute], depth: usize) -> Result<(Vec<Body>, Vec<String>), Error> {
        let (mut bodies, mut captures) = (Vec::new(), Vec::new());
        for (index, attribute) in attributes.iter_mut().enumerate() {
            let name = attribute.name.clone().unwrap_or_default();
            let several = std::mem::take(&mut attribute.graphs);
            for proto in attribute.g.take().into_iter().chain(several) {
                let (graph, names) = self.graph(proto, depth + 1)?;
                bodies.push(Body { attribute: index, name: name.clone(), graph });
                captures.extend(names);
            }
        }
        captures.sort();
        captures.dedup();
        Ok((bodies, captures))
    }

    fn declared_types(&self, proto: &GraphProto) -> HashMap<String, TensorType> {
        let infos = proto.value_info.iter().chain(&proto.output).chain(&proto.input);
        infos.filter_map(|i| Some((i.name.clone()?, tensor_type(i.r#type.as_ref()?)?))).collect()
    }
}

fn twice(name: &str) -> Fault {
    format!("`{name}` is defined twice").into()
}

/// The value of this name; one that the graph does not define is captured from around it.
fn value_named(graph: &mut Graph, name: &str, captures: &mut Vec<String>) -> ValueId {
    if let Some(id) = graph.find(name) {
        return id;
    }
    captures.push(name.into());
    graph.add_fresh(name, Value { captured: true, ..Value::default() })
}

/// Reads an operator for the opset in force; the second part says why it is not understood.
pub fn parse(
    model: &Model,
    domain: &str,
    op_type: &str,
    attributes: &[Attribute],
    inputs: usize,
    outputs: usize,
) -> (Option<Arc<dyn Op>>, Option<String>) {
    let Some(version) = model.opset(domain) else {
        return (None, Some(format!("no operator set is imported for domain `{domain}`")));
    };
    let Some(def) = ops::find(domain, op_type, version) else {
        let shown = if domain.is_empty() { "ai.onnx" } else { domain };
        return (None, Some(format!("not implemented: {op_type} ({shown}, opset {version})")));
    };
    let mut attrs = Attrs::new(attributes, version, inputs, outputs);
    match (def.parse)(&mut attrs) {
        Err(fault) => (None, Some(fault.to_string())),
        Ok(op) => match attrs.unread().as_slice() {
            [] => (Some(op), None),
            unread => {
                let reason = format!("attribute {} of {op_type} is not known", unread.join(", "));
                (Some(op), Some(reason))
            }
        },
    }
}

/// The tensor type of a declaration; `None` for sequences, maps and the like.
fn tensor_type(proto: &TypeProto) -> Option<TensorType> {
    let Some(type_proto::Value::TensorType(tensor)) = &proto.value else { return None };
    let dtype = DType::from_onnx(tensor.elem_type?)?;
    let dims = tensor.shape.as_ref().map(|shape| {
        let dim = |d: &dimension::Value| match d {
            dimension::Value::DimValue(v) => usize::try_from(*v).map_or(Dim::Unknown, Dim::Known),
            dimension::Value::DimParam(p) if !p.is_empty() => Dim::Symbol(p.clone()),
            dimension::Value::DimParam(_) => Dim::Unknown,
        };
        shape.dim.iter().map(|d| d.value.as_ref().map_or(Dim::Unknown, dim)).collect()
    });
    Some(TensorType { dtype, dims })
}
