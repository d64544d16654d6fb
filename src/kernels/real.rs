//! The two types that loops compute in. Transcendental functions do not depend on the platform: they come from `libm`,
//! those of slices of `f32` from [`math`].

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use super::{fraction, math};

/// `f32` or `f64`.
pub trait Real:
    Copy
    + Default
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + Into<f64>
    + Send
    + Sync
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Infinity.
    const INFINITY: Self;

    /// The value nearest to `x`.
    fn of(x: f64) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// e to the power of `self`.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// ln(1 + `self`).
    fn ln_1p(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// `self` to the power of `exponent`.
    fn pow(self, exponent: Self) -> Self;

    /// 1 / (1 + e^-x).
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }

    /// Replaces every element by e to its power.
    fn exp_slice(x: &mut [Self]) {
        x.iter_mut().for_each(|v| *v = v.exp());
    }

    /// Replaces every element by its hyperbolic tangent.
    fn tanh_slice(x: &mut [Self]) {
        x.iter_mut().for_each(|v| *v = v.tanh());
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

    /// The greater of two numbers; NaN if either is NaN.
    fn maximum(self, other: Self) -> Self {
        if other > self || is_nan(other) { other } else { self }
    }
}

/// Is it not a number?
#[allow(clippy::eq_op)]
pub fn is_nan<T: PartialOrd>(x: T) -> bool {
    x != x
}

macro_rules! real {
    ($t:ident, $exp:path, $ln:path, $ln_1p:path, $tanh:path, $pow:path, { $($slices:item)* }) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = $t::INFINITY;

            #[inline]
            fn of(x: f64) -> Self {
                x as $t
            }
            #[inline]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline]
            fn ln(self) -> Self {
                $ln(self)
            }
            #[inline]
            fn ln_1p(self) -> Self {
                $ln_1p(self)
            }
            #[inline]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline]
            fn pow(self, exponent: Self) -> Self {
                $pow(self, exponent)
            }
            $($slices)*
        }
    };
}

real!(f32, libm::expf, libm::logf, libm::log1pf, libm::tanhf, libm::powf, {
    fn exp_slice(x: &mut [f32]) {
        math::exp_slice(x);
    }
    fn tanh_slice(x: &mut [f32]) {
        math::tanh_slice(x);
    }
    fn sigmoid_slice(x: &mut [f32]) {
        math::sigmoid_slice(x);
    }
    fn tanh_fraction_slice(x: &mut [f32]) {
        fraction::tanh_slice(x);
    }
    fn sigmoid_fraction_slice(x: &mut [f32]) {
        fraction::sigmoid_slice(x);
    }
});
real!(f64, libm::exp, libm::log, libm::log1p, libm::tanh, libm::pow, {});
