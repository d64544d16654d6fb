//! Attributes: `name: type = value`, the type being optional where the value shows it.

use bytes::Bytes;

use super::super::scan::{Literal, Parse, Scanner};
use super::super::{attribute_type, elements, is_special_float, starts_type};
use super::{empty_tensor, graph, type_proto};
use crate::proto::{AttributeProto, GraphProto, TensorProto, TypeProto, attribute_proto::AttributeType};

/// `<name = value, …>`, or nothing.
pub(super) fn attributes(s: &mut Scanner) -> Parse<Vec<AttributeProto>> {
    if s.peek() != Some('<') {
        return Ok(Vec::new());
    }
    s.list("<", ">", |s| {
        let name = s.name("the name of an attribute")?;
        attribute(s, name)
    })
}

/// What follows the name of an attribute.
pub(super) fn attribute(s: &mut Scanner, name: String) -> Parse<AttributeProto> {
    let mut attribute = AttributeProto { name: Some(name), ..Default::default() };
    if s.eat(":") {
        let mark = s.mark();
        let word = s.word("an attribute type")?;
        let Some(kind) = attribute_type(word) else {
            return s.fail_at(mark, format!("there is no attribute type `{word}`"));
        };
        attribute.set_type(kind);
    }
    s.expect("=")?;
    let mark = s.mark();
    if s.eat("@") {
        attribute.ref_attr_name = Some(s.name("the name of an attribute")?);
    } else if s.peek() == Some('[') {
        s.list("[", "]", |s| {
            let mark = s.mark();
            let value = value(s, attribute.r#type() == AttributeType::Floats)?;
            settle_type(s, mark, &mut attribute, value.types().1)?;
            value.append_to(&mut attribute);
            Ok(())
        })?;
        if !attribute.r#type().as_str_name().ends_with('S') {
            return s.fail_at(mark, "an empty list needs a list type: `name: ints = []`");
        }
    } else {
        let value = value(s, attribute.r#type() == AttributeType::Float)?;
        settle_type(s, mark, &mut attribute, value.types().0)?;
        value.store_in(&mut attribute);
    }
    Ok(attribute)
}

/// The first value gives an undeclared attribute its type; later ones must agree with it.
fn settle_type(s: &Scanner, mark: usize, attribute: &mut AttributeProto, kind: AttributeType) -> Parse<()> {
    let declared = attribute.r#type();
    if declared != AttributeType::Undefined && declared != kind {
        let name = |kind: AttributeType| kind.as_str_name().to_ascii_lowercase();
        return s.fail_at(mark, format!("expected {}, found {}", name(declared), name(kind)));
    }
    attribute.set_type(kind);
    Ok(())
}

/// One attribute value, or one element of a list.
enum Value {
    Float(f32),
    Int(i64),
    Text(Bytes),
    Tensor(TensorProto),
    Graph(GraphProto),
    Type(TypeProto),
}

impl Value {
    /// The attribute's type if it holds this value alone, and if it holds a list of such values.
    fn types(&self) -> (AttributeType, AttributeType) {
        match self {
            Value::Float(_) => (AttributeType::Float, AttributeType::Floats),
            Value::Int(_) => (AttributeType::Int, AttributeType::Ints),
            Value::Text(_) => (AttributeType::String, AttributeType::Strings),
            Value::Tensor(_) => (AttributeType::Tensor, AttributeType::Tensors),
            Value::Graph(_) => (AttributeType::Graph, AttributeType::Graphs),
            Value::Type(_) => (AttributeType::TypeProto, AttributeType::TypeProtos),
        }
    }

    fn store_in(self, attribute: &mut AttributeProto) {
        match self {
            Value::Float(float) => attribute.f = Some(float),
            Value::Int(int) => attribute.i = Some(int),
            Value::Text(text) => attribute.s = Some(text),
            Value::Tensor(tensor) => attribute.t = Some(tensor),
            Value::Graph(graph) => attribute.g = Some(graph),
            Value::Type(kind) => attribute.tp = Some(kind),
        }
    }

    fn append_to(self, attribute: &mut AttributeProto) {
        match self {
            Value::Float(float) => attribute.floats.push(float),
            Value::Int(int) => attribute.ints.push(int),
            Value::Text(text) => attribute.strings.push(text),
            Value::Tensor(tensor) => attribute.tensors.push(tensor),
            Value::Graph(graph) => attribute.graphs.push(graph),
            Value::Type(kind) => attribute.type_protos.push(kind),
        }
    }
}

fn value(s: &mut Scanner, float_wanted: bool) -> Parse<Value> {
    let mark = s.mark();
    match s.peek_word() {
        Some(word) if starts_type(word) => return type_or_tensor(s),
        Some(word) if !is_special_float(word) => return graph(s).map(Value::Graph),
        _ => {}
    }
    match s.literal()? {
        Literal::Text(_) if s.peek() == Some('(') => {
            s.rewind(mark);
            graph(s).map(Value::Graph)
        }
        Literal::Text(text) => Ok(Value::Text(Bytes::from(text))),
        Literal::Number(number) => match number.int {
            Some(_) if !float_wanted => number.int(s, mark).map(Value::Int),
            _ => number.single(s, mark).map(Value::Float),
        },
    }
}

/// A type, which is a value by itself, or the type, name and elements of a tensor.
fn type_or_tensor(s: &mut Scanner) -> Parse<Value> {
    let mark = s.mark();
    let kind = type_proto(s)?;
    if !matches!(s.peek(), Some('{' | '=' | '"')) && s.peek_word().is_none() {
        return Ok(Value::Type(kind));
    }
    let mut tensor = empty_tensor(s, mark, &kind)?;
    if !s.peek_word().is_some_and(elements::is_fill) {
        tensor.name = s.optional_name()?;
    }
    s.eat("=");
    elements::read(s, &mut tensor)?;
    Ok(Value::Tensor(tensor))
}
