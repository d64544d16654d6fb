//! `qonnx` compiles an fp32 ONNX model into an INT8 one.
#![warn(missing_docs)]

pub mod calibrate;
pub mod error;
pub mod interpret;
pub mod ir;
pub mod kernels;
pub mod onnx;
pub mod ops;
pub mod proto;
