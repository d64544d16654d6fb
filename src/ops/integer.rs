//! The integer forms of operators: each reads a [`Unit`](crate::ir::integer::Unit) and makes the kernel that computes
//! it, with weights packed and tables filled. Operators name their form in [`Op::integer`](super::Op::integer).
//!
//! The arithmetic is that of ONNX Runtime's kernels for x86-64 with AVX2 or better, and 32-bit sums that do not
//! saturate. Where other processors differ is told in [`interpret`](crate::interpret#what-is-exact-and-what-is-not).

mod blocks;
pub mod conv;
pub mod elementwise;
pub mod pool;
pub mod product;

use crate::error::Fault;
use crate::fail;
use crate::ir::integer::is_byte;
use crate::ir::{Array, DType, Element, QuantParams, affine};
pub use crate::kernels::integer::elementwise::Function;
use crate::kernels::integer::pack::FLIP;
use crate::kernels::integer::{bytes, finish::ByteRange};

/// What makes bytes of this type unsigned, by exclusive or.
pub fn flip(dtype: DType) -> u8 {
    if dtype == DType::I8 { FLIP } else { 0 }
}

/// The zero point among unsigned bytes.
fn unsigned_zero(params: &QuantParams) -> i32 {
    params.zero_point + i32::from(flip(params.dtype))
}

/// The zero point of a byte type among signed bytes.
pub fn signed_zero(dtype: DType, zero_point: i32) -> i32 {
    if dtype == DType::U8 { zero_point - 128 } else { zero_point }
}

/// What makes bytes of this type signed.
pub fn sign_flip(dtype: DType) -> u8 {
    if dtype == DType::U8 { FLIP } else { 0 }
}

/// All bytes of a type, around its zero point.
fn range(params: &QuantParams) -> ByteRange {
    let (min, max) = affine::limits(params.dtype).unwrap_or((0, 255));
    ByteRange::new(min, max, params.zero_point)
}

/// The bytes of an array that must be of 8-bit integers.
pub fn bytes_of(array: &Array) -> Result<&[u8], Fault> {
    if !is_byte(array.dtype()) {
        fail!("expected 8-bit integers, found {}", array.dtype());
    }
    raw(array)
}

/// The values of an array that must be of 8-bit integers.
pub fn values_of(array: &Array) -> Result<Vec<i32>, Fault> {
    let signed = array.dtype() == DType::I8;
    let value = |&b: &u8| if signed { i32::from(b as i8) } else { i32::from(b) };
    Ok(bytes_of(array)?.iter().map(value).collect())
}

/// The bytes of an array of 8-bit integers.
fn raw(array: &Array) -> Result<&[u8], Fault> {
    match array {
        Array::U8(_) => array.slice::<u8>(),
        _ => Ok(bytes(array.slice::<i8>()?)),
    }
}

/// An array of this 8-bit type from its bytes.
fn from_raw(dtype: DType, shape: &[usize], raw: Vec<u8>) -> Result<Array, Fault> {
    match dtype {
        DType::U8 => Array::new(shape, raw),
        DType::I8 => Array::new(shape, raw.into_iter().map(|b| b as i8).collect()),
        other => fail!("{other} is no 8-bit integer type"),
    }
}

/// The elements of a constant of this type.
fn constant<T: Element>(array: Option<&Array>) -> Option<&[T]> {
    array?.slice::<T>().ok()
}

#[cfg(test)]
mod tests;
