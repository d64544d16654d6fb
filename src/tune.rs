//! Making the quantized model better by measuring it: which values and weights the outputs can bear in 8 bits, which
//! ranges serve them best, how weights are rounded.
//!
//! Every step is judged by what it does to the outputs of the graph, not by the value it touches.

pub mod distance;
pub mod sensitivity;
