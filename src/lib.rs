//! `qonnx` compiles an fp32 ONNX model into an INT8 one that ONNX Runtime runs on integer kernels.
//!
//! ```text
//! in.onnx -> proto -> Graph -> passes -> Graph -> interpret + observers -> ranges
//!                                                                            |
//! out.onnx <- proto <- emit <- Graph with Q/DQ <- insert <- plan <- placement, rules, target
//!                                              -> report
//! ```
//!
//! Nothing flows back: import never decides, passes never read files, `quantize` never looks at protobuf, emit never
//! thinks. [`compile()`] is the picture as one function; each module is a room of the house and may use those above it.
#![warn(missing_docs)]

pub mod budget;
pub mod calibrate;
pub mod cli;
pub mod compare;
pub mod compile;
pub mod error;
pub mod interpret;
pub mod ir;
pub mod kernels;
pub mod onnx;
pub mod ops;
pub mod options;
pub mod passes;
#[allow(missing_docs)]
pub mod proto;
pub mod quantize;
pub mod report;
pub mod train;
pub mod tune;

pub use compile::compile;
pub use options::{Mode, Options};
