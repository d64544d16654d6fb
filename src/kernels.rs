//! Arithmetic only: loops over slices and arrays that know shapes and strides, and nothing of ONNX.

pub mod strided;
