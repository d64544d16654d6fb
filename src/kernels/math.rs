//! Real functions of one variable, the same on every platform.
//!
//! For `f32`, `exp`, `exp_m1`, `tanh`, `erf` and `sigmoid` are polynomials in plain arithmetic without branches or
//! calls, so that a loop over a slice becomes vector instructions. All rest on one reduction: with
//! `n = round(x / ln 2)` and `r = x - n·ln 2` in `[-0.35, 0.35]`, `exp(x) = 2^n·exp(r)` and
//! `exp(r) = 1 + r + r²·q(r)`. The coefficients of `exp` and `erf`, and where a product is added without being
//! rounded, are those of ONNX Runtime's kernels for processors with FMA, so both have its bits. Its `tanh` and
//! `sigmoid` lose digits; they are in [`fraction`]. Everything else, and all of `f64`, comes from `libm`.

use std::mem::MaybeUninit;
use std::ops::{Add, Div, Mul, Neg, Sub};

use super::fraction;
use super::simd::{self, Task};

/// A floating-point type to compute in.
pub trait Real:
    Copy
    + PartialOrd
    + From<f32>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// e to the power `self`.
    fn exp(self) -> Self;
    /// `exp(self) - 1`, accurate near zero.
    fn exp_m1(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// `1 / (1 + exp(-self))`.
    fn sigmoid(self) -> Self;
    /// Absolute value.
    fn magnitude(self) -> Self;
    /// Square root.
    fn root(self) -> Self;
    /// The integer below.
    fn floored(self) -> Self;
    /// The integer above.
    fn ceiled(self) -> Self;
    /// The nearest integer; halves go to the even one.
    fn rounded(self) -> Self;
    /// Natural logarithm.
    fn log(self) -> Self;
    /// `log(1 + self)`, accurate near zero.
    fn log_1p(self) -> Self;
    /// `self` to the power `exponent`.
    fn power(self, exponent: Self) -> Self;
    /// Sine of an angle in radians.
    fn sine(self) -> Self;
    /// Cosine of an angle in radians.
    fn cosine(self) -> Self;
    /// Tangent of an angle in radians.
    fn tangent(self) -> Self;
    /// Inverse sine.
    fn arcsine(self) -> Self;
    /// Inverse cosine.
    fn arccosine(self) -> Self;
    /// Inverse tangent.
    fn arctangent(self) -> Self;
    /// Hyperbolic sine.
    fn hyperbolic_sine(self) -> Self;
    /// Hyperbolic cosine.
    fn hyperbolic_cosine(self) -> Self;
    /// Inverse hyperbolic sine.
    fn area_sine(self) -> Self;
    /// Inverse hyperbolic cosine.
    fn area_cosine(self) -> Self;
    /// Inverse hyperbolic tangent.
    fn area_tangent(self) -> Self;

    /// Replaces every element by e to its power.
    fn exp_slice(x: &mut [Self]) {
        x.iter_mut().for_each(|v| *v = v.exp());
    }
    /// Replaces every element by [`exp_m1`](Self::exp_m1) of it.
    fn exp_m1_slice(x: &mut [Self]) {
        x.iter_mut().for_each(|v| *v = v.exp_m1());
    }
    /// Replaces every element by its hyperbolic tangent.
    fn tanh_slice(x: &mut [Self]) {
        x.iter_mut().for_each(|v| *v = v.tanh());
    }
    /// Replaces every element by its error function.
    fn erf_slice(x: &mut [Self]) {
        x.iter_mut().for_each(|v| *v = v.erf());
    }
    /// Replaces every element by its sigmoid.
    fn sigmoid_slice(x: &mut [Self]) {
        x.iter_mut().for_each(|v| *v = v.sigmoid());
    }

    /// Replaces every element by its hyperbolic tangent; of `f32` by that of [`fraction`].
    fn tanh_fraction_slice(x: &mut [Self]) {
        Self::tanh_slice(x);
    }
    /// Replaces every element by its sigmoid; of `f32` by that of [`fraction`].
    fn sigmoid_fraction_slice(x: &mut [Self]) {
        Self::sigmoid_slice(x);
    }

    /// `self`, or `bound` if that is greater; NaN stays.
    fn at_least(self, bound: Self) -> Self {
        if self < bound { bound } else { self }
    }
    /// `self`, or `bound` if that is less; NaN stays.
    fn at_most(self, bound: Self) -> Self {
        if self > bound { bound } else { self }
    }
}

macro_rules! from_libm {
    ($($method:ident = $function:ident;)*) => { $(fn $method(self) -> Self { libm::$function(self) })* };
}

impl Real for f32 {
    #[inline(always)]
    fn exp(self) -> Self {
        exp(self)
    }
    #[inline(always)]
    fn exp_m1(self) -> Self {
        exp_m1(self)
    }
    #[inline(always)]
    fn tanh(self) -> Self {
        tanh(self)
    }
    #[inline(always)]
    fn erf(self) -> Self {
        erf(self)
    }
    #[inline(always)]
    fn sigmoid(self) -> Self {
        sigmoid(self)
    }
    #[inline(always)]
    fn magnitude(self) -> Self {
        self.abs()
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn rounded(self) -> Self {
        round(self)
    }
    fn power(self, exponent: Self) -> Self {
        libm::powf(self, exponent)
    }
    fn exp_slice(x: &mut [f32]) {
        exp_slice(x);
    }
    fn exp_m1_slice(x: &mut [f32]) {
        exp_m1_slice(x);
    }
    fn tanh_slice(x: &mut [f32]) {
        tanh_slice(x);
    }
    fn erf_slice(x: &mut [f32]) {
        erf_slice(x);
    }
    fn sigmoid_slice(x: &mut [f32]) {
        sigmoid_slice(x);
    }
    fn tanh_fraction_slice(x: &mut [f32]) {
        fraction::tanh_slice(x);
    }
    fn sigmoid_fraction_slice(x: &mut [f32]) {
        fraction::sigmoid_slice(x);
    }
    from_libm! {
        floored = floorf; ceiled = ceilf; log = logf; log_1p = log1pf; sine = sinf; cosine = cosf;
        tangent = tanf; arcsine = asinf; arccosine = acosf; arctangent = atanf; hyperbolic_sine = sinhf;
        hyperbolic_cosine = coshf; area_sine = asinhf; area_cosine = acoshf; area_tangent = atanhf;
    }
}

impl Real for f64 {
    fn sigmoid(self) -> Self {
        let e = libm::exp(-self.abs());
        if self < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
    }
    fn power(self, exponent: Self) -> Self {
        libm::pow(self, exponent)
    }
    from_libm! {
        exp = exp; exp_m1 = expm1; tanh = tanh; erf = erf; magnitude = fabs; root = sqrt; floored = floor;
        ceiled = ceil; rounded = rint; log = log; log_1p = log1p; sine = sin; cosine = cos; tangent = tan;
        arcsine = asin; arccosine = acos; arctangent = atan; hyperbolic_sine = sinh; hyperbolic_cosine = cosh;
        area_sine = asinh; area_cosine = acosh; area_tangent = atanh;
    }
}

/// `f` of every element.
pub fn map<A: Copy, B>(x: &[A], f: impl Fn(A) -> B) -> Vec<B> {
    let mut y = Vec::with_capacity(x.len());
    simd::run(Map { x, f, y: &mut y.spare_capacity_mut()[..x.len()] });
    // SAFETY: the loop has written as many elements.
    unsafe { y.set_len(x.len()) };
    y
}

/// A plain loop over two slices: what `extend` is made of is compiled once, for the baseline.
struct Map<'a, A, B, F> {
    x: &'a [A],
    f: F,
    y: &'a mut [MaybeUninit<B>],
}

impl<A: Copy, B, F: Fn(A) -> B> Task for Map<'_, A, B, F> {
    #[inline(always)]
    fn run(self) {
        let Self { x, f, y } = self;
        for (y, &v) in y.iter_mut().zip(x) {
            y.write(f(v));
        }
    }
}

/// Replaces every element by `f` of it.
pub fn map_in_place<T: Copy>(x: &mut [T], f: impl Fn(T) -> T) {
    simd::run(InPlace { x, f });
}

struct InPlace<'a, T, F> {
    x: &'a mut [T],
    f: F,
}

impl<T: Copy, F: Fn(T) -> T> Task for InPlace<'_, T, F> {
    #[inline(always)]
    fn run(self) {
        let Self { x, f } = self;
        for v in x {
            *v = f(*v);
        }
    }
}

/// Elements at a time that stay in the nearest cache between the passes over them.
const BLOCK: usize = 1024;

/// `after(v, function(before(v)))` of every element `v`. The function works on slices: one that is too long to be
/// compiled into a loop by way of a closure would be called for each element.
pub fn through<T: Copy>(
    x: &[T],
    before: impl Fn(T) -> T,
    function: fn(&mut [T]),
    after: impl Fn(T, T) -> T,
) -> Vec<T> {
    let mut y = map(x, before);
    for (y, x) in y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)) {
        function(y);
        simd::run(After { x, y, after: &after });
    }
    y
}

struct After<'a, T, F> {
    x: &'a [T],
    y: &'a mut [T],
    after: F,
}

impl<T: Copy, F: Fn(T, T) -> T> Task for After<'_, T, F> {
    #[inline(always)]
    fn run(self) {
        let Self { x, y, after } = self;
        for (y, &v) in y.iter_mut().zip(x) {
            *y = after(v, *y);
        }
    }
}

/// `function` of every element.
pub fn of_slice<T: Copy>(x: &[T], function: fn(&mut [T])) -> Vec<T> {
    let mut y = x.to_vec();
    function(&mut y);
    y
}

/// Functions of whole slices, whose loops have the function in them.
macro_rules! slices {
    ($($(#[$doc:meta])* $name:ident = $function:ident;)*) => { $(
        $(#[$doc])*
        pub fn $name(x: &mut [f32]) {
            struct All<'a>(&'a mut [f32]);
            impl Task for All<'_> {
                #[inline(always)]
                fn run(self) {
                    for v in self.0.iter_mut() {
                        *v = $function(*v);
                    }
                }
            }
            simd::run(All(x));
        }
    )* };
}

slices! {
    /// Replaces every element by e to its power.
    exp_slice = exp;
    /// Replaces every element by [`exp_m1`] of it.
    exp_m1_slice = exp_m1;
    /// Replaces every element by its hyperbolic tangent.
    tanh_slice = tanh;
    /// Replaces every element by its error function.
    erf_slice = erf;
    /// Replaces every element by its sigmoid.
    sigmoid_slice = sigmoid;
}

/// The nearest integer; halves go to the even one. Without a branch or a call, unlike the library's.
#[inline(always)]
pub fn round(x: f32) -> f32 {
    /// From here up, f32 has no fraction; adding it rounds.
    const WHOLE: f32 = (1u32 << (f32::MANTISSA_DIGITS - 1)) as f32;
    let a = x.abs();
    let rounded = (a + WHOLE) - WHOLE;
    (if a < WHOLE { rounded } else { a }).copysign(x)
}

/// `2^n` for `n` in `-126..=127`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    // A check for overflow would keep a loop from becoming vector instructions.
    f32::from_bits((n.wrapping_add(127) << 23) as u32)
}

/// A polynomial by Horner's rule, the coefficient of the highest power first.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    coefficients.into_iter().reduce(|y, c| y.mul_add(x, c)).unwrap_or(0.0)
}

/// `x = n·ln 2 + r`: gives `n` and `r`. `|x|` is at most 2^21.
#[inline(always)]
fn reduce(x: f32) -> (i32, f32) {
    /// Added and subtracted again, it leaves the nearest integer, which also lies in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23
    const LN_2_HIGH: f32 = 0.693_145_75; // few bits: n times it is exact
    const LN_2_LOW: f32 = 1.428_606_8e-6;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    ((shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32), r)
}

/// `(exp(r) - 1 - r) / r²` for `|r|` up to 0.35.
#[inline(always)]
fn bend(r: f32) -> f32 {
    polynomial(r, [1.378_059_4e-3, 8.373_124_5e-3, 4.166_953_6e-2, 1.666_647_2e-1, 4.999_998_5e-1])
}

/// e to the power `x`, within 1.3 units in the last place; gradual underflow, infinity above 88.73.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// From here down, the result is 0.
    const LOW: f32 = -104.0;
    let (n, r) = reduce(x.at_least(LOW).at_most(89.0));
    // Two factors, since 2^n alone may leave the range of normal numbers.
    let half = n >> 1;
    // Where much is masked, as in attention, a product that underflows would take most of the time.
    let rest = if x <= LOW { 0.0 } else { power_of_two(n.wrapping_sub(half)) };
    bend(r).mul_add(r, 1.0).mul_add(r, 1.0) * power_of_two(half) * rest
}

/// `exp(x) - 1`, within 2 units in the last place; infinity above 88.73.
#[inline(always)]
pub fn exp_m1(x: f32) -> f32 {
    let (n, r) = reduce(x.at_least(-20.0).at_most(89.0));
    let half = n >> 1;
    let rest = n.wrapping_sub(half);
    let a = power_of_two(half);
    (r * r).mul_add(bend(r), r).mul_add(a, a - power_of_two(rest.wrapping_neg())) * power_of_two(rest)
}

/// Hyperbolic tangent: `e / (e + 2)` with `e = exp(2|x|) - 1`, and the sign of `x`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp_m1((x.abs() + x.abs()).at_most(20.0));
    (e / (e + 2.0)).copysign(x)
}

/// `1 / (1 + exp(-x))`; the exponent is never positive, so nothing overflows and small results keep their digits.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// Error function: an odd polynomial below 0.92, `1 - exp(-x·p(x))` above.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const SMALL: [f32; 6] =
        [-5.991_049_7e-4, 4.993_396e-3, -2.676_673_4e-2, 1.128_180_25e-1, -3.761_248_6e-1, 1.283_791_5e-1];
    const LARGE: [f32; 7] = [
        1.729_489_3e-5,
        -3.832_086_8e-4,
        3.883_934_3e-3,
        -2.425_456e-2,
        1.067_778_5e-1,
        6.348_467e-1,
        1.287_175_1e-1,
    ];
    const POWER: [f32; 7] =
        [1.383_198_1e-3, 8.375_5e-3, 4.166_895e-2, 1.666_644_7e-1, 4.999_998_5e-1, 1.0, 1.0];
    let a = x.abs().at_most(3.925);
    let small = polynomial(a * a, SMALL).mul_add(a, a);
    let (n, r) = reduce(-polynomial(a, LARGE).mul_add(a, a));
    let large = 1.0 - polynomial(r, POWER) * power_of_two(n);
    (if a < 0.921_875 { small } else { large }).copysign(x)
}

#[cfg(test)]
mod tests;
