//! Short names of element types, as options take them.

use crate::ir::DType;

/// Integer types and their short names.
const INTEGERS: [(&str, DType); 6] = [
    ("u4", DType::U4),
    ("s4", DType::I4),
    ("u8", DType::U8),
    ("s8", DType::I8),
    ("u16", DType::U16),
    ("s16", DType::I16),
];

/// Types of half precision and their short names.
const HALVES: [(&str, DType); 2] = [("fp16", DType::F16), ("bf16", DType::BF16)];

/// The type with this name among these.
fn named(name: &str, types: &[(&str, DType)]) -> Result<DType, String> {
    let found = types.iter().find(|(known, _)| *known == name).map(|&(_, dtype)| dtype);
    found.ok_or_else(|| format!("there are {}", types.iter().map(|t| t.0).collect::<Vec<_>>().join(", ")))
}

/// An integer type by its short name.
pub fn integer(name: &str) -> Result<DType, String> {
    named(name, &INTEGERS)
}

/// A type of half precision by its short name.
pub fn half_type(name: &str) -> Result<DType, String> {
    named(name, &HALVES)
}

/// The short name of a type.
pub fn short(dtype: DType) -> &'static str {
    INTEGERS.iter().chain(&HALVES).find(|t| t.1 == dtype).map_or("", |t| t.0)
}
