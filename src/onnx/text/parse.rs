//! The grammar, one function per rule, from the model down to types and nodes.

mod attribute;

use attribute::{attribute, attributes};

use super::scan::{Parse, Scanner};
use super::{ParseError, data_type, elements, starts_type};
use crate::proto::{
    FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

/// Reads a model: an optional header, the graph, then functions.
///
/// Never panics and never recurses without bound; the first error is returned with its place.
pub fn parse(text: &str) -> Result<ModelProto, ParseError> {
    let s = &mut Scanner::new(text);
    let mut model = ModelProto::default();
    if s.peek() == Some('<') {
        s.list("<", ">", |s| header_entry(s, &mut model))?;
    }
    model.graph = Some(graph(s)?);
    while !s.at_end() {
        model.functions.push(function(s)?);
    }
    Ok(model)
}

fn header_entry(s: &mut Scanner, model: &mut ModelProto) -> Parse<()> {
    let mark = s.mark();
    let key = s.word("a model property")?;
    s.expect(":")?;
    match key {
        "ir_version" => model.ir_version = Some(s.int()?),
        "opset_import" => model.opset_import = opsets(s)?,
        "producer_name" => model.producer_name = Some(s.string()?),
        "producer_version" => model.producer_version = Some(s.string()?),
        "domain" => model.domain = Some(s.string()?),
        "model_version" => model.model_version = Some(s.int()?),
        "doc_string" => model.doc_string = Some(s.string()?),
        "metadata_props" => model.metadata_props = string_pairs(s)?,
        _ => return s.fail_at(mark, format!("a model has no property `{key}`")),
    }
    Ok(())
}

fn opsets(s: &mut Scanner) -> Parse<Vec<OperatorSetIdProto>> {
    s.list("[", "]", |s| {
        let domain = Some(s.string()?);
        s.expect(":")?;
        Ok(OperatorSetIdProto { domain, version: Some(s.int()?) })
    })
}

pub(super) fn string_pairs(s: &mut Scanner) -> Parse<Vec<StringStringEntryProto>> {
    s.list("[", "]", |s| {
        let key = Some(s.string()?);
        s.expect(":")?;
        Ok(StringStringEntryProto { key, value: Some(s.string()?) })
    })
}

fn graph(s: &mut Scanner) -> Parse<GraphProto> {
    s.nested(|s| {
        let mut graph = GraphProto { name: Some(s.name("the name of a graph")?), ..Default::default() };
        graph.input = s.list("(", ")", |s| {
            let (info, value) = value_or_initializer(s)?;
            graph.initializer.extend(value);
            Ok(info)
        })?;
        s.expect("=>")?;
        graph.output = s.list("(", ")", value_info)?;
        if s.peek() == Some('<') {
            s.list("<", ">", |s| {
                match value_or_initializer(s)? {
                    (_, Some(value)) => graph.initializer.push(value),
                    (info, None) => graph.value_info.push(info),
                }
                Ok(())
            })?;
        }
        graph.node = nodes(s)?;
        Ok(graph)
    })
}

fn value_or_initializer(s: &mut Scanner) -> Parse<(ValueInfoProto, Option<TensorProto>)> {
    let mark = s.mark();
    let info = value_info(s)?;
    if !s.eat("=") {
        return Ok((info, None));
    }
    let Some(kind) = &info.r#type else {
        return s.fail_at(mark, "an initializer needs a type before its name");
    };
    let mut tensor = empty_tensor(s, mark, kind)?;
    tensor.name = info.name.clone();
    elements::read(s, &mut tensor)?;
    Ok((info, Some(tensor)))
}

fn value_info(s: &mut Scanner) -> Parse<ValueInfoProto> {
    let r#type = if s.peek_word().is_some_and(starts_type) { Some(type_proto(s)?) } else { None };
    Ok(ValueInfoProto { name: Some(s.name("a type or the name of a value")?), r#type, ..Default::default() })
}

fn type_proto(s: &mut Scanner) -> Parse<TypeProto> {
    use type_proto::{Map, Optional, Sequence, SparseTensor, Tensor, Value};
    let mark = s.mark();
    let word = s.word("a type")?;
    if let Some(kind) = data_type(word) {
        let tensor = Tensor { elem_type: Some(kind.into()), shape: shape(s)? };
        return Ok(TypeProto { value: Some(Value::TensorType(tensor)), denotation: None });
    }
    if !starts_type(word) {
        return s.fail_at(mark, format!("there is no type `{word}`"));
    }
    let inner = |s: &mut Scanner| Ok(Some(Box::new(s.nested(type_proto)?)));
    s.expect("(")?;
    let value = match word {
        "seq" => Value::SequenceType(Box::new(Sequence { elem_type: inner(s)? })),
        "optional" => Value::OptionalType(Box::new(Optional { elem_type: inner(s)? })),
        "map" => {
            let key_type = Some(element_type(s)?.into());
            s.expect(",")?;
            Value::MapType(Box::new(Map { key_type, value_type: inner(s)? }))
        }
        "sparse_tensor" => {
            let elem_type = Some(element_type(s)?.into());
            Value::SparseTensorType(SparseTensor { elem_type, shape: shape(s)? })
        }
        _ => Value::OpaqueType(opaque(s)?),
    };
    s.expect(")")?;
    Ok(TypeProto { value: Some(value), denotation: None })
}

/// What stands between the parentheses of `opaque()`, `opaque(name)` or `opaque(domain, name)`.
fn opaque(s: &mut Scanner) -> Parse<type_proto::Opaque> {
    if s.peek() == Some(')') {
        return Ok(type_proto::Opaque::default());
    }
    let first = dotted(s)?;
    if s.eat(",") {
        Ok(type_proto::Opaque { domain: Some(first), name: Some(s.name("a name")?) })
    } else {
        Ok(type_proto::Opaque { domain: None, name: Some(first) })
    }
}

fn element_type(s: &mut Scanner) -> Parse<DataType> {
    let mark = s.mark();
    let word = s.word("an element type")?;
    match data_type(word) {
        Some(kind) => Ok(kind),
        None => s.fail_at(mark, format!("there is no element type `{word}`")),
    }
}

fn dotted(s: &mut Scanner) -> Parse<String> {
    let mut name = s.name("a name")?;
    while s.eat(".") {
        name = format!("{name}.{}", s.name("a name")?);
    }
    Ok(name)
}

/// `[2,N,?]`; nothing at all is rank 0, and `[]` is an unknown rank.
fn shape(s: &mut Scanner) -> Parse<Option<TensorShapeProto>> {
    if s.peek() != Some('[') {
        return Ok(Some(TensorShapeProto::default()));
    }
    let dim = s.list("[", "]", |s| {
        let value = if s.eat("?") {
            None
        } else if let Some(symbol) = s.optional_name()? {
            Some(dimension::Value::DimParam(symbol))
        } else {
            Some(dimension::Value::DimValue(s.int()?))
        };
        Ok(Dimension { value, denotation: None })
    })?;
    Ok((!dim.is_empty()).then_some(TensorShapeProto { dim }))
}

/// A tensor of that type without its elements; its shape must be numbers.
fn empty_tensor(s: &Scanner, mark: usize, kind: &TypeProto) -> Parse<TensorProto> {
    let Some(type_proto::Value::TensorType(type_proto::Tensor { elem_type, shape: Some(shape) })) =
        &kind.value
    else {
        return s.fail_at(mark, "a tensor with elements needs a tensor type of known rank");
    };
    let dims = shape.dim.iter().map(|dim| match dim.value {
        Some(dimension::Value::DimValue(size)) if size >= 0 => Ok(size),
        _ => s.fail_at(mark, "a tensor with elements needs a shape of numbers"),
    });
    Ok(TensorProto { data_type: *elem_type, dims: dims.collect::<Parse<_>>()?, ..Default::default() })
}

fn nodes(s: &mut Scanner) -> Parse<Vec<NodeProto>> {
    s.expect("{")?;
    let mut nodes = Vec::new();
    while !s.eat("}") {
        nodes.push(node(s)?);
    }
    Ok(nodes)
}

fn node(s: &mut Scanner) -> Parse<NodeProto> {
    let mut node = NodeProto::default();
    if s.eat("[") {
        node.name = Some(s.optional_name()?.unwrap_or_default());
        s.expect("]")?;
    }
    node.output = operands(s)?;
    s.expect("=")?;
    let mut op_type = s.name("an operator")?;
    while s.eat(".") {
        node.domain = Some(node.domain.map_or(op_type.clone(), |domain| format!("{domain}.{op_type}")));
        op_type = s.name("an operator")?;
    }
    node.op_type = Some(op_type);
    if s.eat(":") {
        node.overload = Some(s.name("an overload")?);
    }
    node.attribute = attributes(s)?;
    s.expect("(")?;
    node.input = operands(s)?;
    s.expect(")")?;
    if node.attribute.is_empty() {
        node.attribute = attributes(s)?;
    }
    Ok(node)
}

/// Names between commas. Nothing before a comma is an absent operand, nothing after the last one is no operand.
fn operands(s: &mut Scanner) -> Parse<Vec<String>> {
    let mut names = Vec::new();
    loop {
        let name = s.optional_name()?;
        let more = s.eat(",");
        if name.is_some() || more {
            names.push(name.unwrap_or_default());
        }
        if !more {
            return Ok(names);
        }
    }
}

fn function(s: &mut Scanner) -> Parse<FunctionProto> {
    let mut function = FunctionProto::default();
    if s.peek() == Some('<') {
        s.list("<", ">", |s| {
            let mark = s.mark();
            let key = s.word("a function property")?;
            s.expect(":")?;
            match key {
                "opset_import" => function.opset_import = opsets(s)?,
                "doc_string" => function.doc_string = Some(s.string()?),
                "domain" => function.domain = Some(s.string()?),
                "overload" => function.overload = Some(s.string()?),
                _ => return s.fail_at(mark, format!("a function has no property `{key}`")),
            }
            Ok(())
        })?;
    }
    function.name = Some(s.name("the name of a function")?);
    if s.peek() == Some('<') {
        s.list("<", ">", |s| {
            let name = s.name("the name of an attribute")?;
            match s.peek() {
                Some(':' | '=') => function.attribute_proto.push(attribute(s, name)?),
                _ => function.attribute.push(name),
            }
            Ok(())
        })?;
    }
    let value_infos = &mut function.value_info;
    let mut parameter = |s: &mut Scanner| {
        let info = value_info(s)?;
        let name = info.name.clone().unwrap_or_default();
        value_infos.extend(info.r#type.is_some().then_some(info));
        Ok(name)
    };
    function.input = s.list("(", ")", &mut parameter)?;
    s.expect("=>")?;
    function.output = s.list("(", ")", &mut parameter)?;
    if s.peek() == Some('<') {
        function.value_info.extend(s.list("<", ">", value_info)?);
    }
    function.node = nodes(s)?;
    Ok(function)
}
