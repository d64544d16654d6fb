//! Arithmetic only: loops over slices and arrays that know shapes and strides, and nothing of ONNX.

pub mod broadcast;
pub mod conv;
pub mod gemm;
pub mod integer;
pub mod math;
pub mod normalize;
pub mod number;
pub mod pool;
pub mod real;
pub mod recurrent;
pub mod reduce;
pub mod requantize;
mod simd;
pub mod softmax;
pub mod strided;
pub mod window;
