//! Where ONNX wants a float32 tensor whatever the model's precision, and where it takes any type.
//!
//! The tables follow the type constraints of opset 22; `since` notes where an older form takes less.

use crate::ir::{Attribute, DType, Node, attribute};

/// What an input slot of an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The precision of the operator.
    Follows,
    /// float32.
    Float,
    /// Any type: the operator converts, or does not look at the elements.
    Any,
}

/// Operators with neither a float16 nor a bfloat16 form.
const FLOAT_ONLY: &[&str] = &[
    "Celu",
    "DynamicQuantizeLinear",
    "NonMaxSuppression",
    "QLinearConv",
    "QLinearMatMul",
    "Range",
    "TfIdfVectorizer",
    "Upsample",
    // Sequences and optionals of tensors have types that are not tracked.
    "ConcatFromSequence",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SequenceMap",
    "SplitToSequence",
];

/// Operators with a float16 form, but no bfloat16 one.
const NO_BFLOAT16: &[&str] = &["Compress", "Einsum", "OneHot", "ReverseSequence", "Shrink", "TopK", "Unique"];

/// Operators that got their float16 form late, and when.
const LATE_FLOAT16: &[(&str, i64)] =
    &[("CumSum", 14), ("DequantizeLinear", 19), ("IsInf", 20), ("QuantizeLinear", 19)];

/// Does ONNX define the operator for this type?
pub fn exists(node: &Node, dtype: DType, version: i64) -> bool {
    let name = node.op_type.as_str();
    let late = LATE_FLOAT16.iter().any(|(late, since)| *late == name && version < *since);
    let missing = dtype == DType::BF16 && NO_BFLOAT16.contains(&name);
    !(FLOAT_ONLY.contains(&name) || late || missing)
}

/// What an input slot asks for.
pub fn input(node: &Node, slot: usize) -> Slot {
    match (node.op_type.as_str(), slot) {
        ("Resize", 1 | 2) => Slot::Float,
        ("Cast" | "CastLike" | "Shape" | "Size" | "NonZero", 0) => Slot::Any,
        _ => Slot::Follows,
    }
}

/// Is an output float32 even where the operator computes in half precision?
pub fn float_output(node: &Node, slot: usize) -> bool {
    node.is("LayerNormalization") && slot > 0
}

/// Changes the attributes that say in which type an operator answers.
pub fn retype(node: &mut Node, dtype: DType) {
    let float = i64::from(DType::F32.to_onnx());
    let named: &[&str] = match node.op_type.as_str() {
        "Cast" => &["to"],
        "EyeLike" | "RandomNormal" | "RandomNormalLike" | "RandomUniform" | "RandomUniformLike"
        | "Bernoulli" => &["dtype"],
        "HannWindow" | "HammingWindow" | "BlackmanWindow" | "MelWeightMatrix" => &["output_datatype"],
        _ => &[],
    };
    let new = |name: &str| attribute::int(name, dtype.to_onnx().into());
    for a in &mut node.attributes {
        let name = a.name.clone().unwrap_or_default();
        if named.contains(&name.as_str()) && a.i == Some(float) {
            *a = new(&name);
        }
    }
    // Types that are not spelt are float32.
    let unspelt = match node.op_type.as_str() {
        "RandomNormal" | "RandomUniform" => Some("dtype"),
        "HannWindow" | "HammingWindow" | "BlackmanWindow" | "MelWeightMatrix" => Some("output_datatype"),
        _ => None,
    };
    if let Some(name) = unspelt.filter(|n| node.attributes.iter().all(|a| a.name.as_deref() != Some(n))) {
        node.attributes.push(new(name));
    }
}

/// The constant that a Constant or ConstantOfShape node holds, as an attribute to convert.
pub fn held(node: &mut Node) -> Option<&mut Attribute> {
    let named: &[&str] = match node.op_type.as_str() {
        "Constant" => &["value", "value_float", "value_floats"],
        "ConstantOfShape" => {
            if node.attributes.iter().all(|a| a.name.as_deref() != Some("value")) {
                let zero = crate::ir::Tensor::from_array(&crate::ir::Array::vector(vec![0f32]));
                node.attributes.push(attribute::tensor("value", &zero));
            }
            &["value"]
        }
        _ => &[],
    };
    node.attributes.iter_mut().find(|a| a.name.as_deref().is_some_and(|n| named.contains(&n)))
}
