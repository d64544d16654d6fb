//! Arithmetic only: loops over slices and arrays that know shapes and strides, and nothing of ONNX.

pub mod attention;
pub mod broadcast;
pub mod conv;
pub mod finish;
pub mod fourier;
pub mod gemm;
pub mod integer;
pub mod math;
pub mod normalize;
pub mod number;
pub mod pool;
pub mod product;
pub mod real;
pub mod recurrence;
pub mod recurrent;
pub mod reduce;
pub mod regex;
pub mod requantize;
pub mod sample;
pub mod simd;
pub mod softmax;
pub mod strided;
pub mod sums;
pub mod tile;
pub mod window;
