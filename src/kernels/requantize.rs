//! Between real numbers and 8- or 16-bit integers: `q = saturate(round_half_even(x / scale) + zero_point)`.
//!
//! x86-64 has a rounding instruction only from SSE4.1 on. Adding and subtracting 1.5 · 2²³ rounds just as well: at
//! that magnitude neighbouring floats lie 1 apart, so the sum itself is rounded to the nearest even integer. It is
//! exact up to 2²², far beyond what 16 bits and their zero point can reach. The loops are compiled once more for AVX2
//! and chosen at run time; both give the same bits.

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

/// A quantized type whose differences are exact in `f32`.
pub trait Narrow: Quantized {}
impl Narrow for u8 {}
impl Narrow for i8 {}
impl Narrow for u16 {}
impl Narrow for i16 {}

const ROUNDER: f32 = 12_582_912.0; // 1.5 · 2²³

/// A number to the nearest integer, halves to even; exact for |v| ≤ 2²².
#[inline(always)]
fn round(v: f32) -> f32 {
    (v + ROUNDER) - ROUNDER
}

#[inline(always)]
fn quantize_loop<Q: Narrow>(x: &[f32], scale: f32, zero_point: Q, out: &mut [Q]) {
    let zero_point = zero_point.widen();
    let (low, high) = ((Q::MIN - zero_point) as f32, (Q::MAX - zero_point) as f32);
    for (q, &x) in out.iter_mut().zip(x) {
        let v = x / scale;
        let v = if v > low { v } else { low }; // also NaN
        let v = if v < high { v } else { high };
        // SAFETY: v lies in [low, high], within 17 bits, and is not NaN.
        *q = Q::truncate(unsafe { round(v).to_int_unchecked::<i32>() } + zero_point);
    }
}

#[inline(always)]
fn dequantize_loop<Q: Quantized>(q: &[Q], scale: f32, zero_point: Q, out: &mut [f32]) {
    let zero_point = zero_point.widen();
    for (x, &q) in out.iter_mut().zip(q) {
        *x = q.widen().wrapping_sub(zero_point) as f32 * scale;
    }
}

#[inline(always)]
fn fake_loop(x: &mut [f32], scale: f32, zero_point: i32, min: i32, max: i32) {
    let (low, high) = ((min - zero_point) as f32, (max - zero_point) as f32);
    for x in x {
        let v = *x / scale;
        let v = if v > low { v } else { low };
        let v = if v < high { v } else { high };
        *x = (round(v) + 0.0) * scale; // + 0.0: no negative zero
    }
}

/// Defines a public function that runs a loop in the widest form the machine has.
macro_rules! dispatched {
    ($(#[$doc:meta])* $name:ident [$($g:ident: $b:path)?] ($($arg:ident: $t:ty),*) = $body:ident) => {
        $(#[$doc])*
        pub fn $name<$($g: $b)?>($($arg: $t),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn wide<$($g: $b)?>($($arg: $t),*) {
                    $body($($arg),*);
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: the machine has AVX2.
                    return unsafe { wide($($arg),*) };
                }
            }
            $body($($arg),*);
        }
    };
}

dispatched! {
    /// Quantizes real numbers. NaN becomes the lowest value.
    quantize_slice[Q: Narrow](x: &[f32], scale: f32, zero_point: Q, out: &mut [Q]) = quantize_loop
}

dispatched! {
    /// The real numbers that quantized ones stand for: `(q - zero_point) * scale`.
    dequantize_slice[Q: Quantized](q: &[Q], scale: f32, zero_point: Q, out: &mut [f32]) = dequantize_loop
}

dispatched! {
    /// Quantizes to `[min, max]` and back in one step, with the same result as the two functions above. All
    /// three integers must fit in 17 bits, and `zero_point` must lie in `[min, max]`.
    fake_quantize_slice[](x: &mut [f32], scale: f32, zero_point: i32, min: i32, max: i32) = fake_loop
}

#[cfg(test)]
mod tests;
