//! Arithmetic only: loops over slices and arrays that know shapes and strides, and nothing of ONNX.

pub mod conv;
pub mod gemm;
pub mod pool;
pub mod real;
mod simd;
pub mod strided;
pub mod window;
