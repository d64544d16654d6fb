//! What operators exchange at run time. Nearly always that is a tensor; ONNX also has sequences of tensors and
//! optional values. An optional value that is there is that value itself.

use super::Array;
use crate::error::Fault;

/// A value at run time.
#[derive(Debug, Clone, PartialEq)]
pub enum Datum {
    /// A tensor.
    Tensor(Array),
    /// Tensors in order.
    Sequence(Vec<Array>),
    /// An optional value that is not there.
    Absent,
}

impl Datum {
    /// The tensor, or a fault that says what it is instead.
    pub fn tensor(self) -> Result<Array, Fault> {
        match self {
            Self::Tensor(array) => Ok(array),
            other => Err(format!("expected a tensor, found {}", other.describe()).into()),
        }
    }

    /// The tensor, or a fault that says what it is instead.
    pub fn as_tensor(&self) -> Result<&Array, Fault> {
        match self {
            Self::Tensor(array) => Ok(array),
            other => Err(format!("expected a tensor, found {}", other.describe()).into()),
        }
    }

    /// The sequence, or a fault that says what it is instead.
    pub fn as_sequence(&self) -> Result<&[Array], Fault> {
        match self {
            Self::Sequence(arrays) => Ok(arrays),
            other => Err(format!("expected a sequence, found {}", other.describe()).into()),
        }
    }

    /// What it is, in a few words.
    pub fn describe(&self) -> String {
        match self {
            Self::Tensor(array) => array.tensor_type().to_string(),
            Self::Sequence(arrays) => format!("a sequence of {}", arrays.len()),
            Self::Absent => "an absent value".into(),
        }
    }
}

impl From<Array> for Datum {
    fn from(array: Array) -> Self {
        Self::Tensor(array)
    }
}
