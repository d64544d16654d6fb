//! Making attributes for new nodes. Attributes of nodes that were read are kept as they came.

use super::Tensor;
/// A named attribute as the file holds it (graph-valued ones without their graphs, see [`Node`](super::Node)).
pub use crate::proto::AttributeProto as Attribute;
use crate::proto::attribute_proto::AttributeType;

fn attribute(name: &str, kind: AttributeType) -> Attribute {
    Attribute { name: Some(name.into()), r#type: Some(kind as i32), ..Default::default() }
}

/// An integer.
pub fn int(name: &str, value: i64) -> Attribute {
    Attribute { i: Some(value), ..attribute(name, AttributeType::Int) }
}

/// A list of integers.
pub fn ints(name: &str, values: impl Into<Vec<i64>>) -> Attribute {
    Attribute { ints: values.into(), ..attribute(name, AttributeType::Ints) }
}

/// A real number.
pub fn float(name: &str, value: f32) -> Attribute {
    Attribute { f: Some(value), ..attribute(name, AttributeType::Float) }
}

/// A list of real numbers.
pub fn floats(name: &str, values: impl Into<Vec<f32>>) -> Attribute {
    Attribute { floats: values.into(), ..attribute(name, AttributeType::Floats) }
}

/// A string.
pub fn string(name: &str, value: &str) -> Attribute {
    Attribute { s: Some(value.to_string().into()), ..attribute(name, AttributeType::String) }
}

/// A tensor.
pub fn tensor(name: &str, value: &Tensor) -> Attribute {
    Attribute { t: Some(value.to_proto()), ..attribute(name, AttributeType::Tensor) }
}
