//! Between real numbers and 8- or 16-bit integers: `q = saturate(round_half_even(x / scale) + zero_point)`.
//!
//! x86-64 has a rounding instruction only from SSE4.1 on. Adding and subtracting 1.5 · 2²³ rounds just as well: at
//! that magnitude neighbouring floats lie 1 apart, so the sum itself is rounded to the nearest even integer. It is
//! exact up to 2²², far beyond what 16 bits and their zero point can reach.

use super::simd::{self, Task};
use crate::ir::small::{self, Nibble};

/// An integer type that tensors are quantized to.
pub trait Quantized: Copy + Default + Send + Sync + 'static {
    /// Lowest value.
    const MIN: i32;
    /// Highest value.
    const MAX: i32;
    /// Keeps the low bits.
    fn truncate(value: i32) -> Self;
    /// The same value.
    fn widen(self) -> i32;
}

macro_rules! quantized {
    ($($t:ty),*) => { $(impl Quantized for $t {
        const MIN: i32 = <$t>::MIN as i32;
        const MAX: i32 = <$t>::MAX as i32;
        #[inline(always)]
        fn truncate(value: i32) -> Self { value as $t }
        #[inline(always)]
        fn widen(self) -> i32 { self as i32 }
    })* };
}
quantized!(u8, i8, u16, i16, i32);

macro_rules! nibbles {
    ($($t:ty),*) => { $(
        impl Quantized for $t {
            const MIN: i32 = <$t as Nibble>::MIN as i32;
            const MAX: i32 = <$t as Nibble>::MAX as i32;
            #[inline(always)]
            fn truncate(value: i32) -> Self { Nibble::truncate(value as i8) }
            #[inline(always)]
            fn widen(self) -> i32 { self.to_i8().into() }
        }
        impl Narrow for $t {}
    )* };
}
nibbles!(small::U4, small::I4, small::U2, small::I2);

/// A quantized type whose differences are exact in `f32`.
pub trait Narrow: Quantized {}
impl Narrow for u8 {}
impl Narrow for i8 {}
impl Narrow for u16 {}
impl Narrow for i16 {}

const ROUNDER: f32 = 12_582_912.0; // 1.5 · 2²³

/// The nearest number in `[low, high]`; NaN becomes `low`.
#[inline(always)]
fn limit(v: f32, low: f32, high: f32) -> f32 {
    let v = if v > low { v } else { low };
    if v < high { v } else { high }
}

/// Quantizes real numbers. NaN becomes the lowest value.
pub fn quantize_slice<Q: Narrow>(x: &[f32], scale: f32, zero_point: Q, out: &mut [Q]) {
    simd::run(Quantize { x, scale, zero_point, out });
}

/// The real numbers that quantized ones stand for: `(q - zero_point) * scale`.
pub fn dequantize_slice<Q: Quantized>(q: &[Q], scale: f32, zero_point: Q, out: &mut [f32]) {
    simd::run(Dequantize { q, scale, zero_point, out });
}

/// Quantizes to `[min, max]` and back in one step, with the same result as the two functions above. All three
/// integers must fit in 17 bits, and `zero_point` must lie in `[min, max]`.
pub fn fake_quantize_slice(x: &mut [f32], scale: f32, zero_point: i32, min: i32, max: i32) {
    simd::run(Fake { x, scale, low: (min - zero_point) as f32, high: (max - zero_point) as f32 });
}

/// The way back through [`fake_quantize_slice`] of `x`, given `dy`: what passes to `x`, and the gradients by scale and
/// zero point. Rounding is taken for the identity (the straight-through estimate); what was clipped passes nothing.
pub fn fake_quantize_gradient(
    (x, dy): (&[f32], &[f32]),
    scale: f32,
    zero_point: i32,
    (min, max): (i32, i32),
    dx: &mut [f32],
) -> (f32, f32) {
    let (low, high) = ((min - zero_point) as f32, (max - zero_point) as f32);
    let (mut by_scale, mut by_zero) = (0f64, 0f64);
    for ((x, dy), dx) in x.chunks(LANES * 64).zip(dy.chunks(LANES * 64)).zip(dx.chunks_mut(LANES * 64)) {
        let mut sums = [[0f32; LANES]; 2];
        simd::run(FakeBack { x, dy, dx, scale, low, high, sums: &mut sums });
        by_scale += f64::from(sums[0].iter().sum::<f32>());
        by_zero += f64::from(sums[1].iter().sum::<f32>());
    }
    (by_scale as f32, -scale * by_zero as f32)
}

const LANES: usize = 16;

struct FakeBack<'a> {
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    scale: f32,
    low: f32,
    high: f32,
    /// Of `dy` times the error of rounding or the limit, and of `dy` where it was clipped.
    sums: &'a mut [[f32; LANES]; 2],
}

impl Task for FakeBack<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { x, dy, dx, scale, low, high, sums } = self;
        let [by_scale, by_zero] = sums;
        for ((x, dy), dx) in x.chunks(LANES).zip(dy.chunks(LANES)).zip(dx.chunks_mut(LANES)) {
            for (i, ((&x, &dy), dx)) in x.iter().zip(dy).zip(dx).enumerate() {
                let v = x / scale;
                let q = (limit(v, low, high) + ROUNDER) - ROUNDER;
                // Half a step beyond the limits still rounds to them.
                let inside = v >= low - 0.5 && v <= high + 0.5;
                *dx = if inside { dy } else { 0.0 };
                by_scale[i] += dy * if inside { q - v } else { q };
                by_zero[i] += if inside { 0.0 } else { dy };
            }
        }
    }
}

struct Quantize<'a, Q> {
    x: &'a [f32],
    scale: f32,
    zero_point: Q,
    out: &'a mut [Q],
}

impl<Q: Narrow> Task for Quantize<'_, Q> {
    #[inline(always)]
    fn run(self) {
        // Fields are read once: the loop's stores could touch them for all that the compiler knows.
        let Self { x, scale, zero_point, out } = self;
        let zero_point = zero_point.widen();
        let (low, high) = ((Q::MIN - zero_point) as f32, (Q::MAX - zero_point) as f32);
        // The bits of `v + ROUNDER` are those of `ROUNDER` plus the integer nearest to v.
        let offset = ROUNDER.to_bits() as i32 - zero_point;
        for (q, &x) in out.iter_mut().zip(x) {
            let sum = limit(x / scale, low, high) + ROUNDER;
            *q = Q::truncate((sum.to_bits() as i32).wrapping_sub(offset));
        }
    }
}

struct Dequantize<'a, Q> {
    q: &'a [Q],
    scale: f32,
    zero_point: Q,
    out: &'a mut [f32],
}

impl<Q: Quantized> Task for Dequantize<'_, Q> {
    #[inline(always)]
    fn run(self) {
        let Self { q, scale, zero_point, out } = self;
        let zero_point = zero_point.widen();
        for (x, &q) in out.iter_mut().zip(q) {
            *x = q.widen().wrapping_sub(zero_point) as f32 * scale;
        }
    }
}

struct Fake<'a> {
    x: &'a mut [f32],
    scale: f32,
    low: f32,
    high: f32,
}

impl Task for Fake<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { x, scale, low, high } = self;
        for x in x {
            let v = (limit(*x / scale, low, high) + ROUNDER) - ROUNDER;
            *x = (v + 0.0) * scale; // + 0.0: no negative zero
        }
    }
}

#[cfg(test)]
mod tests;
