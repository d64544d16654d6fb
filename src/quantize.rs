//! Deciding quantization and writing it into the graph.
//!
//! [`target`] says which operators a runtime computes in integers, and at what cost; [`placement`] chooses the set of
//! nodes that become integer; [`plan`] gives their values scales and zero points from the calibrated ranges;
//! [`insert`] puts QuantizeLinear and DequantizeLinear where the plan says. Nothing here looks at protobuf messages.

pub mod candidate;
pub mod dynamic;
pub mod half;
pub mod insert;
mod network;
pub mod placement;
pub mod plan;
pub mod recurrent;
pub mod target;
pub mod types;
pub mod weight_only;
pub mod weights;

pub use half::Half;
pub use placement::Placement;
pub use plan::Plan;
pub use target::Target;
pub use types::Types;
