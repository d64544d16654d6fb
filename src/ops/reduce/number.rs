//! The arithmetic of reductions for each element type. Integers wrap; the 16-bit floats are computed as `f32` and
//! truth values as `uint8`.

use super::Kind;
use crate::error::Fault;
use crate::ir::{Array, DType, Element};
use crate::kernels::real::Real;
use crate::kernels::reduce::{fold_axis, per_column};
use crate::ops::operand::rounded;

/// A type that reductions compute in.
pub trait Number: Element + Copy + Default {
    /// 1.
    fn one() -> Self;
    /// Sum.
    fn plus(self, other: Self) -> Self;
    /// Product.
    fn times(self, other: Self) -> Self;
    /// Reduces the middle extent.
    fn reduce(kind: Kind, x: &[Self], extents: (usize, usize, usize)) -> Result<Vec<Self>, Fault>;
    /// An array of this shape.
    fn array(shape: &[usize], elements: Vec<Self>) -> Result<Array, Fault>;
}

macro_rules! integers {
    ($($t:ty),*) => { $(impl Number for $t {
        fn one() -> Self { 1 }
        fn plus(self, other: Self) -> Self { self.wrapping_add(other) }
        fn times(self, other: Self) -> Self { self.wrapping_mul(other) }
        fn array(shape: &[usize], elements: Vec<Self>) -> Result<Array, Fault> { Array::new(shape, elements) }

        fn reduce(kind: Kind, x: &[Self], extents: (usize, usize, usize)) -> Result<Vec<Self>, Fault> {
            let add = <$t>::wrapping_add;
            Ok(match kind {
                Kind::Sum => fold_axis(x, extents, 0, add, add),
                Kind::Mean => {
                    let (mut sums, n) = (fold_axis(x, extents, 0i128, |a, v| a + v as i128, |a, b| a + b), extents.1);
                    sums.iter_mut().for_each(|s| *s = s.checked_div(n as i128).unwrap_or(0));
                    sums.into_iter().map(|s| s as $t).collect()
                }
                Kind::Max => fold_axis(x, extents, <$t>::MIN, <$t>::max, <$t>::max),
                Kind::Min => fold_axis(x, extents, <$t>::MAX, <$t>::min, <$t>::min),
                Kind::Prod => fold_axis(x, extents, 1, <$t>::wrapping_mul, <$t>::wrapping_mul),
                Kind::L1 => fold_axis(x, extents, 0, |a, v| if v < 0 as $t { a.wrapping_sub(v) } else { add(a, v) }, add),
                Kind::SumSquare => fold_axis(x, extents, 0, |a, v| add(a, v.wrapping_mul(v)), add),
                Kind::L2 | Kind::LogSum | Kind::LogSumExp => {
                    let real: Vec<f64> = x.iter().map(|&v| v as f64).collect();
                    f64::reduce(kind, &real, extents)?.into_iter().map(|v| v as $t).collect()
                }
            })
        }
    })* };
}
integers!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! reals {
    ($($t:ty),*) => { $(impl Number for $t {
        fn one() -> Self { 1.0 }
        fn plus(self, other: Self) -> Self { self + other }
        fn times(self, other: Self) -> Self { self * other }
        fn array(shape: &[usize], elements: Vec<Self>) -> Result<Array, Fault> { Array::new(shape, elements) }
        fn reduce(kind: Kind, x: &[Self], extents: (usize, usize, usize)) -> Result<Vec<Self>, Fault> {
            Ok(real(kind, x, extents))
        }
    })* };
}
reals!(f32, f64);

fn real<T: Real>(kind: Kind, x: &[T], extents: (usize, usize, usize)) -> Vec<T> {
    let (_, n, inner) = extents;
    let least = |a: T, v: T| -(-a).maximum(-v);
    match kind {
        Kind::Sum => sums(x, extents, |v| v),
        Kind::Mean => each(sums(x, extents, |v| v), |s| s / T::of(n as f64)),
        Kind::Max => fold_axis(x, extents, -T::INFINITY, T::maximum, T::maximum),
        Kind::Min => fold_axis(x, extents, T::INFINITY, least, least),
        Kind::Prod => fold_axis(x, extents, T::ONE, |a, v| a * v, |a, b| a * b),
        Kind::L1 => sums(x, extents, T::abs),
        Kind::SumSquare => sums(x, extents, |v| v * v),
        Kind::L2 => each(sums(x, extents, |v| v * v), T::sqrt),
        Kind::LogSum => each(sums(x, extents, |v| v), T::ln),
        Kind::LogSumExp => {
            // Powers are taken relative to the greatest, unless that is infinite.
            let greatest = fold_axis(x, extents, -T::INFINITY, T::maximum, T::maximum);
            let offsets = each(greatest, |m| if m.abs() == T::INFINITY { T::ZERO } else { m });
            let mut powers = x.to_vec();
            if !x.is_empty() {
                for (block, offsets) in powers.chunks_exact_mut(n * inner).zip(offsets.chunks_exact(inner)) {
                    per_column(block, offsets, |v, offset| v - offset);
                }
            }
            T::exp_slice(&mut powers);
            let logs = each(sums(&powers, extents, |v| v), T::ln);
            logs.into_iter().zip(offsets).map(|(log, offset)| log + offset).collect()
        }
    }
}

fn sums<T: Real>(x: &[T], extents: (usize, usize, usize), f: impl Fn(T) -> T + Copy) -> Vec<T> {
    fold_axis(x, extents, T::ZERO, |a, v| a + f(v), |a, b| a + b)
}

fn each<T: Copy>(mut values: Vec<T>, f: impl Fn(T) -> T) -> Vec<T> {
    values.iter_mut().for_each(|v| *v = f(*v));
    values
}

/// The array in a type to compute in.
pub fn widened(x: &Array) -> Result<Array, Fault> {
    Ok(match x {
        Array::F16(_) | Array::BF16(_) => Array::F32(x.to_f32()?),
        Array::Bool(flags) => flags.map(|&v| u8::from(v)).into(),
        _ => x.clone(),
    })
}

/// A result in the type of the operand.
pub fn narrowed(y: Array, dtype: DType) -> Array {
    match (&y, dtype) {
        (Array::U8(flags), DType::Bool) => flags.map(|&v| v != 0).into(),
        _ => rounded(y, dtype),
    }
}

/// Evaluates `$body` (an array or a fault) with `$T` as the element type that stands for `$dtype`.
macro_rules! dispatch {
    ($dtype:expr, $T:ident => $body:expr) => {{
        macro_rules! with {
            ($t:ty) => {{
                type $T = $t;
                $body
            }};
        }
        match $dtype {
            crate::ir::DType::F32 => with!(f32),
            crate::ir::DType::F64 => with!(f64),
            crate::ir::DType::I8 => with!(i8),
            crate::ir::DType::I16 => with!(i16),
            crate::ir::DType::I32 => with!(i32),
            crate::ir::DType::I64 => with!(i64),
            crate::ir::DType::U8 => with!(u8),
            crate::ir::DType::U16 => with!(u16),
            crate::ir::DType::U32 => with!(u32),
            crate::ir::DType::U64 => with!(u64),
            other => Err(format!("expected numbers, found {other}").into()),
        }
    }};
}
pub(in crate::ops) use dispatch;
