//! The gradients of functions of one element. Steps (Sign, Floor, Ceil, Round) have none worth following.

use super::Unary;
use crate::ir::{Gradient, Run};
use crate::kernels::math::Real;
use crate::ops::gradient::{Derivative, Gradients, chain};

impl Unary {
    /// Is it flat wherever it is smooth?
    pub(super) fn is_step(self) -> bool {
        matches!(self, Self::Sign | Self::Floor | Self::Ceil | Self::Round)
    }
}

impl Derivative for Unary {
    #[inline(always)]
    fn at<T: Real>(&self, x: T, y: T) -> T {
        let [zero, half, one, two] = [0.0, 0.5, 1.0, 2.0].map(T::from);
        match self {
            Self::Abs if x > zero => one,
            Self::Abs if x < zero => -one,
            Self::Abs | Self::Sign | Self::Floor | Self::Ceil | Self::Round => zero,
            Self::Neg => -one,
            Self::Exp => y,
            Self::Log => one / x,
            Self::Sqrt => half / y,
            Self::Reciprocal => -(y * y),
            Self::Erf => two / T::from(std::f32::consts::PI).root() * (-(x * x)).exp(),
            Self::Sin => x.cosine(),
            Self::Cos => -x.sine(),
            Self::Tan => one + y * y,
            Self::Asin => one / (one - x * x).root(),
            Self::Acos => -(one / (one - x * x).root()),
            Self::Atan => one / (one + x * x),
            Self::Sinh => x.hyperbolic_cosine(),
            Self::Cosh => x.hyperbolic_sine(),
            Self::Asinh => one / (one + x * x).root(),
            Self::Acosh => one / (x * x - one).root(),
            Self::Atanh => one / (one - x * x),
        }
    }
}

impl Gradient for Unary {
    fn backward(&self, run: &Run) -> Gradients {
        chain(self, run)
    }
}
