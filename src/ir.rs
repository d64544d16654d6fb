//! The intermediate representation: values, operators, constants and the graph that holds them.

pub mod affine;
mod array;
pub mod attribute;
mod datum;
mod edit;
mod extent;
mod graph;
pub mod integer;
mod model;
mod op;
mod payload;
mod schedule;
pub mod small;
mod tensor;
mod types;
mod verify;

pub use affine::{QuantParams, limits};
pub(crate) use array::with_array;
pub use array::{Array, Nd};
pub use attribute::Attribute;
pub use datum::Datum;
pub use edit::{Edit, Operand, Refusal};
pub use extent::{Extent, HUGE, Limits};
pub use graph::{Body, Graph, Node, NodeId, Port, Use, Value, ValueId};
pub use model::Model;
pub use op::{After, Control, Fact, Given, Gradient, Hook, Op, Operands, Rule, Run, Runtime};
pub use payload::{Deferred, Floats, Payload};
pub use schedule::schedule;
pub use tensor::Tensor;
pub use types::{DType, Dim, Element, TensorType, element_count};
pub use verify::verify;
