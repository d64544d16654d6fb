//! ONNX models as text, in the syntax of <https://onnx.ai/onnx/repo-docs/Syntax.html>.
//!
//! ```text
//! < ir_version: 8, opset_import: ["" : 17] >
//! block (float[N,3,8,8] x) => (float[N,4,8,8] y) <
//!   float[4,3,3,3] w = random(7, -0.5, 0.5),    # a fill, see below
//!   float[4] b = {0.0, 0.1, 0.2, 0.3},          # an initializer, every element spelt
//!   float[N,4,8,8] c                            # no value: shape information
//! > {
//!   [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
//!   y = com.microsoft.Gelu (c)
//! }
//! ```
//!
//! Two readings of a type are easy to miss: `float x` is a scalar, `float[] x` has an unknown rank.
//! An absent optional input is `""`, or nothing before a comma: `Clip(x, , high)`.
//!
//! # What the parser accepts beyond the syntax
//!
//! * Comments start with `//` as well as with `#`.
//! * A quoted name may stand for a domain, an operator, an attribute or a subgraph.
//! * Lists of tensors, graphs and types are legal attribute values.
//! * A `float16` or `bfloat16` element is a bit pattern when written as an integer (as the syntax has it) and a
//!   number when written with a point or an exponent: `float16[2] h = {15360, 1.0}` holds 1 twice.
//! * In place of `{…}` a tensor may be filled, so that tests need not spell weights:
//!   * `fill(v)` repeats one element;
//!   * `random(seed, low, high)` is a fixed pseudo-random sequence. The `i`-th output `z` of splitmix64 started
//!     at `seed` gives `u = (z >> 11) / 2^53`, the element is `low + (high - low) * u` for floating point, and
//!     `low + floor((high - low + 1) * u)` for integers, both computed in double precision.
//!
//! Elements land in the typed fields (`float_data`, `int32_data`, …), never in `raw_data`. Types narrower than a
//! byte, 8-bit floats among them, are written as the integers that the typed field stores.
//!
//! # What text leaves out
//!
//! Sparse initializers and attributes, quantization annotations, metadata below the model, denotations and doc
//! strings of nodes have no place in the syntax; bytes that are not UTF-8 are replaced. Everything else survives
//! [`print()`] with [`Detail::Full`] followed by [`parse`], up to the choice between `raw_data` and typed fields.

mod elements;
mod parse;
mod print;
mod scan;

#[cfg(test)]
mod tests;

pub use parse::parse;
pub use print::{Detail, print};

use crate::proto::{attribute_proto::AttributeType, tensor_proto::DataType};

/// A text that is not a model: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {message}")]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// What was expected, or what does not hold.
    pub message: String,
}

/// The element type called `name`; the syntax uses the schema's names in lower case.
fn data_type(name: &str) -> Option<DataType> {
    schema_name(name)
        .and_then(|name| DataType::from_str_name(&name))
        .filter(|&kind| kind != DataType::Undefined)
}

/// The attribute type called `name`.
fn attribute_type(name: &str) -> Option<AttributeType> {
    let kind = schema_name(name).and_then(|name| AttributeType::from_str_name(&name));
    kind.filter(|&kind| kind != AttributeType::Undefined)
}

fn schema_name(name: &str) -> Option<String> {
    (!name.bytes().any(|byte| byte.is_ascii_uppercase())).then(|| name.to_ascii_uppercase())
}

/// Whether a type can start with `word`; such a word must be quoted to be a name.
fn starts_type(word: &str) -> bool {
    matches!(word, "seq" | "map" | "optional" | "sparse_tensor" | "opaque") || data_type(word).is_some()
}

/// Whether `word` is a floating-point literal; such a word must be quoted to name a subgraph.
fn is_special_float(word: &str) -> bool {
    ["inf", "infinity", "nan"].iter().any(|special| word.eq_ignore_ascii_case(special))
}
