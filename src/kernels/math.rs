//! Real functions of one variable, the same on every platform.
//!
//! For `f32`, `exp`, `exp_m1`, `tanh`, `erf` and `sigmoid` are polynomials in plain arithmetic without branches or
//! calls, so that a loop over a slice becomes vector instructions. All rest on one reduction: with `n = round(x/ln 2)`
//! and `r = x - n·ln 2` in `[-0.35, 0.35]`, `exp(x) = 2^n·exp(r)` and `exp(r) = 1 + r + r²·q(r)`. The coefficients
//! are minimax fits (Remez exchange). Everything else, and all of `f64`, comes from `libm`.

use std::mem::MaybeUninit;
use std::ops::{Add, Div, Mul, Neg, Sub};

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

/// `x = n·ln 2 + r`: gives `n` and `exp(r) - 1`. `|x|` is at most 2^21.
#[inline(always)]
fn reduce(x: f32) -> (i32, f32) {
    /// Added and subtracted again, it leaves the nearest integer, which also lies in the low bits of the sum.
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23
    const LN_2_HIGH: f32 = 355.0 / 512.0; // few bits: n times it is exact
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let q = 1.394_322_7e-3;
    let q = q * r + 8.364_383e-3;
    let q = q * r + 4.166_635e-2;
    let q = q * r + 1.666_657e-1;
    let q = q * r + 0.5;
    ((shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32), r + r * r * q)
}

/// e to the power `x`, within 1.5 units in the last place; gradual underflow, infinity above 88.73.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// From here down, the result is 0.
    const LOW: f32 = -104.0;
    let (n, fraction) = reduce(x.at_least(LOW).at_most(89.0));
    // Two factors, since 2^n alone may leave the range of normal numbers.
    let half = n >> 1;
    // Where much is masked, as in attention, a product that underflows would take most of the time.
    let rest = if x <= LOW { 0.0 } else { power_of_two(n.wrapping_sub(half)) };
    (1.0 + fraction) * power_of_two(half) * rest
}

/// `exp(x) - 1`, within 2 units in the last place; infinity above 88.73.
#[inline(always)]
pub fn exp_m1(x: f32) -> f32 {
    let (n, fraction) = reduce(x.at_least(-20.0).at_most(89.0));
    let half = n >> 1;
    let rest = n.wrapping_sub(half);
    let a = power_of_two(half);
    (fraction * a + (a - power_of_two(rest.wrapping_neg()))) * power_of_two(rest)
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

/// Error function: an odd polynomial below 1, `1 - exp(-x·p(x))` above.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs().at_most(4.0);
    let t = a * a;
    let p = 7.853_861_5e-5;
    let p = p * t - 8.010_194e-4;
    let p = p * t + 5.188_327_7e-3;
    let p = p * t - 2.685_374_8e-2;
    let p = p * t + 1.128_358_5e-1;
    let p = p * t - 3.761_262_6e-1;
    let p = p * t + 1.283_791_7e-1;
    let small = a + a * p;
    let p = -2.106_423_6e-4;
    let p = p * a + 3.186_907e-3;
    let p = p * a - 2.279_844_1e-2;
    let p = p * a + 1.051_161_1e-1;
    let p = p * a + 6.358_315e-1;
    let p = p * a + 1.128_480_1;
    let large = 1.0 - exp(-a * p);
    (if a < 1.0 { small } else { large }).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest relative error of `f` against `exact`, over floats spread evenly over all bit patterns in
    /// `[from, to]` (of one sign).
    fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> (f64, f32) {
        let (low, high) = (from.to_bits().min(to.to_bits()), from.to_bits().max(to.to_bits()));
        let step = ((high - low) / 300_000).max(1);
        let error = |bits| {
            let x = f32::from_bits(bits);
            let e = exact(x.into());
            let spacing = e.abs().max(f64::from(f32::MIN_POSITIVE));
            ((f64::from(f(x)) - e).abs() / spacing, x)
        };
        (low..=high).step_by(step as usize).map(error).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    }

    #[track_caller]
    fn close(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, ranges: &[(f32, f32)], tolerance: f64) {
        for &(from, to) in ranges {
            let (error, at) = worst(&f, &exact, from, to);
            assert!(error <= tolerance, "relative error {error:e} at {at}");
        }
    }

    #[test]
    fn slices_have_the_bits_of_single_elements() {
        let x: Vec<f32> = (0..2000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
        type Both = (fn(f32) -> f32, fn(&mut [f32]));
        let functions: [Both; 5] = [
            (exp, exp_slice),
            (exp_m1, exp_m1_slice),
            (tanh, tanh_slice),
            (sigmoid, sigmoid_slice),
            (erf, erf_slice),
        ];
        for (f, slice) in functions {
            let single: Vec<u32> = x.iter().map(|&v| f(v).to_bits()).collect();
            let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let mut y = x.clone();
            map_in_place(&mut y, f);
            // Which NaN comes out is not ours to say.
            let same = |found: Vec<u32>| {
                let nan = |bits: u32| f32::from_bits(bits).is_nan();
                found.iter().zip(&single).all(|(&a, &b)| a == b || nan(a) && nan(b))
            };
            assert!(same(bits(&map(&x, f))) && same(bits(&y)) && same(bits(&of_slice(&x, slice))));
            let composed = through(&x, |v| v, slice, |v, y| if v == 0.0 { v } else { y });
            let wanted = x.iter().zip(&single).map(|(&v, &y)| if v == 0.0 { v } else { f32::from_bits(y) });
            assert!(composed.iter().zip(wanted).all(|(a, b)| a.to_bits() == b.to_bits() || b.is_nan()));
        }
    }

    #[test]
    fn rounding_is_that_of_the_library() {
        let some = (0..2_000_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
        let halves = (-2000..2000).map(|i| i as f32 * 0.25);
        for x in some.chain(halves).chain([8_388_607.5, -8_388_608.0, f32::INFINITY, -0.0, 0.49999997]) {
            assert!(round(x).to_bits() == libm::rintf(x).to_bits() || x.is_nan() && round(x).is_nan(), "{x}");
        }
    }

    const ALL: [(f32, f32); 2] = [(0.0, f32::MAX), (-0.0, f32::MIN)];

    #[test]
    fn exp_is_exact_to_float_precision() {
        close(exp, libm::exp, &[(0.0, 88.7), (-0.0, -103.0), (0.1, 10.0), (-0.1, -10.0)], 1.6e-7);
        assert_eq!(
            (exp(0.0), exp(-0.0), exp(f32::INFINITY), exp(f32::NEG_INFINITY)),
            (1.0, 1.0, f32::INFINITY, 0.0)
        );
        assert_eq!(
            (exp(89.0), exp(f32::MAX), exp(-104.0), exp(f32::MIN)),
            (f32::INFINITY, f32::INFINITY, 0.0, 0.0)
        );
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(-100.0), libm::exp(-100.0) as f32);
    }

    #[test]
    fn exp_m1_keeps_its_digits_near_zero() {
        close(exp_m1, libm::expm1, &[(0.0, 88.7), (-0.0, f32::MIN), (1e-3, 1.0), (-1e-3, -1.0)], 2.5e-7);
        assert_eq!(
            (exp_m1(0.0), exp_m1(f32::NEG_INFINITY), exp_m1(f32::INFINITY)),
            (0.0, -1.0, f32::INFINITY)
        );
        assert!(exp_m1(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_odd_and_saturates() {
        close(tanh, libm::tanh, &ALL, 3e-7);
        close(tanh, libm::tanh, &[(0.01, 9.0), (-0.01, -9.0)], 3e-7);
        assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan() && tanh(-0.0).is_sign_negative());
        assert!((0..20_000).map(|i| tanh(i as f32 * 1e-3)).all(|y| y <= 1.0));
    }

    #[test]
    fn sigmoid_keeps_small_values() {
        let exact = |x: f64| 1.0 / (1.0 + libm::exp(-x));
        close(sigmoid, exact, &[(0.0, f32::MAX), (-0.0, -80.0), (-1.0, -30.0), (0.01, 20.0)], 3e-7);
        assert_eq!((sigmoid(0.0), sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (0.5, 1.0, 0.0));
        assert!(sigmoid(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_odd_and_saturates() {
        close(erf, libm::erf, &ALL, 2.5e-7);
        close(erf, libm::erf, &[(0.1, 4.5), (-0.1, -4.5)], 2.5e-7);
        assert_eq!((erf(f32::INFINITY), erf(f32::NEG_INFINITY)), (1.0, -1.0));
        assert!(erf(f32::NAN).is_nan() && erf(-0.0).is_sign_negative());
    }
}
