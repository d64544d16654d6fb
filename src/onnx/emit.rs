//! From the graph to messages. Emit never thinks: it joins what import split, in the graph's schedule.

use std::collections::HashSet;

use crate::error::{Error, Fault};
use crate::ir::{Dim, Graph, Model, Node, NodeId, Tensor, TensorType, ValueId, schedule};
use crate::proto::tensor_shape_proto::{Dimension, dimension};
use crate::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, type_proto,
};

/// What happens to tensors whose payload lies in another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum External {
    /// They keep referring to it.
    Keep,
    /// The payload moves into the model.
    Inline,
    /// The same, but payloads of initializers of the main graph that are computed when they are wanted are left out, for
    /// whoever writes the message to compute.
    Stream,
}

impl External {
    fn in_bodies(self) -> Self {
        if self == Self::Stream { Self::Inline } else { self }
    }
}

/// Builds the message of a model.
pub fn emit(model: &Model, external: External) -> Result<ModelProto, Error> {
    let mut proto = model.rest.clone();
    // A file may import a domain twice: only what a pass has raised is written anew.
    let domain = |set: &OperatorSetIdProto| set.domain.clone().unwrap_or_default();
    let read =
        |name: &str| proto.opset_import.iter().filter(|s| domain(s) == name).filter_map(|s| s.version).max();
    let raised: Vec<_> =
        model.opsets.iter().filter(|(name, v)| read(name).is_none_or(|old| old < **v)).collect();
    for set in &mut proto.opset_import {
        if let Some((_, version)) = raised.iter().find(|(name, _)| **name == domain(set)) {
            set.version = Some(**version);
        }
    }
    proto.graph = Some(graph(&model.graph, external).map_err(|f| f.at("writing the graph"))?);
    Ok(proto)
}

fn graph(graph: &Graph, external: External) -> Result<GraphProto, Fault> {
    let mut proto = graph.rest.clone();
    for &id in &graph.constants {
        let value = graph.value(id);
        if let Some(tensor) = value.constant.as_ref().or(value.default.as_ref()) {
            proto.initializer.push(named(tensor, &value.name, external));
        }
    }
    for id in schedule(graph)? {
        proto.node.push(node(graph, id, external)?);
    }
    let kept: HashSet<&str> = graph.values().map(|v| graph.name(v)).collect();
    proto.value_info.retain(|info| info.name.as_deref().is_none_or(|n| kept.contains(n)));
    Ok(proto)
}

fn named(tensor: &Tensor, name: &str, external: External) -> TensorProto {
    let mut proto = match external {
        External::Stream => tensor.proto().clone(),
        External::Keep | External::Inline => tensor.to_proto(),
    };
    proto.name = Some(name.into());
    if let (External::Inline | External::Stream, Some(bytes)) = (external, tensor.external()) {
        proto.raw_data = Some(bytes.clone());
        proto.external_data.clear();
        proto.data_location = None;
    }
    proto
}

fn node(graph: &Graph, id: NodeId, external: External) -> Result<NodeProto, Fault> {
    let Node { name, op_type, domain, attributes, bodies, rest, .. } = graph.node(id);
    let names = |slots: Vec<Option<ValueId>>| -> Vec<String> {
        slots.into_iter().map(|v| v.map_or_else(String::new, |v| graph.name(v).into())).collect()
    };
    let mut proto = rest.clone();
    let keep = |old: &mut Option<String>, new: &String| {
        if old.as_deref().unwrap_or_default() != new {
            *old = Some(new.clone());
        }
    };
    keep(&mut proto.name, name);
    keep(&mut proto.op_type, op_type);
    keep(&mut proto.domain, domain);
    proto.input = names(graph.inputs_of(id));
    proto.output = names(graph.outputs_of(id));
    proto.attribute = attributes.clone();
    for body in bodies {
        let inner = self::graph(&body.graph, external.in_bodies())?;
        let Some(attribute) = proto.attribute.get_mut(body.attribute) else {
            return Err(format!("node `{name}` lost the attribute of its body").into());
        };
        match attribute.r#type == Some(AttributeType::Graphs as i32) {
            true => attribute.graphs.push(inner),
            false => attribute.g = Some(inner),
        }
    }
    Ok(proto)
}

/// A declaration of a value's type.
pub fn value_info(name: &str, ty: &TensorType) -> ValueInfoProto {
    let dim = |d: &Dim| Dimension {
        value: match d {
            Dim::Known(n) => Some(dimension::Value::DimValue(*n as i64)),
            Dim::Symbol(s) => Some(dimension::Value::DimParam(s.clone())),
            Dim::Unknown => None,
        },
        denotation: None,
    };
    let shape = ty.dims.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(ty.dtype.to_onnx()), shape };
    let ty = TypeProto { denotation: None, value: Some(type_proto::Value::TensorType(tensor)) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(ty), ..Default::default() }
}
