//! The intermediate representation: values, operators, constants and the graph that holds them.

pub mod affine;
mod array;
pub mod attribute;
mod op;
mod tensor;
mod types;

pub use affine::QuantParams;
pub use array::{Array, Nd};
pub use attribute::Attribute;
pub use op::{Control, Fact, Op, Operands, Rule};
pub use tensor::Tensor;
pub use types::{DType, Dim, Element, TensorType, element_count};
