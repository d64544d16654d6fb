//! The gradients of activation functions. At a kink the derivative is that from below, as in other frameworks.

use super::{Activation, Clip, PRelu};
use crate::ir::{Array, Gradient, Run};
use crate::kernels::broadcast::zip;
use crate::kernels::math::Real;
use crate::ops::gradient::{Derivative, Gradients, chain, in_floats, unbroadcast};
use crate::ops::slots::optional;

impl Derivative for Activation {
    #[inline(always)]
    fn at<T: Real>(&self, x: T, y: T) -> T {
        let [zero, half, one, two] = [0.0, 0.5, 1.0, 2.0].map(T::from);
        let when = |holds: bool, slope: T| if holds { slope } else { zero };
        match *self {
            Self::Relu {} => when(x > zero, one),
            Self::LeakyRelu { alpha } => if x > zero { one } else { T::from(alpha) },
            Self::Sigmoid {} => y * (one - y),
            Self::Tanh {} => one - y * y,
            Self::HardSigmoid { alpha, .. } => when(y > zero && y < one, T::from(alpha)),
            Self::HardSwish {} => {
                let third = one / T::from(3.0);
                if x >= T::from(3.0) { one } else { when(x > T::from(-3.0), third * x + half) }
            }
            Self::Elu { alpha } => if x > zero { one } else { y + T::from(alpha) },
            Self::Selu { alpha, gamma } => {
                let [alpha, gamma] = [alpha, gamma].map(T::from);
                if x > zero { gamma } else { y + alpha * gamma }
            }
            Self::Celu { alpha } => if x > zero { one } else { (x / T::from(alpha)).exp() },
            Self::Softplus {} => x.sigmoid(),
            Self::Softsign {} => one / ((one + x.magnitude()) * (one + x.magnitude())),
            Self::ThresholdedRelu { alpha } => when(x > T::from(alpha), one),
            Self::Gelu { tanh: false } => {
                let density = (-(half * x * x)).exp() / (two * T::from(std::f32::consts::PI)).root();
                half * (one + (half.root() * x).erf()) + x * density
            }
            Self::Gelu { tanh: true } => {
                let (scale, cubic) = ((two / T::from(std::f32::consts::PI)).root(), T::from(0.044715));
                let t = (scale * (x + cubic * x * x * x)).tanh();
                let inner = scale * (one + T::from(3.0) * cubic * x * x);
                half * (one + t) + half * x * (one - t * t) * inner
            }
            Self::Mish {} => {
                let t = (x.at_least(zero) + (-x.magnitude()).exp().log_1p()).tanh();
                t + x * (one - t * t) * x.sigmoid()
            }
            Self::Swish { alpha } => {
                let s = (T::from(alpha) * x).sigmoid();
                s + T::from(alpha) * x * s * (one - s)
            }
            Self::Shrink { lambd, .. } => when(x.magnitude() > T::from(lambd), one),
        }
    }
}

impl Gradient for Activation {
    fn backward(&self, run: &Run) -> Gradients {
        chain(self, run)
    }
}

impl Gradient for Clip {
    /// The gradient passes where x lies in the interval, its ends included. Bounds get none.
    fn backward(&self, run: &Run) -> Gradients {
        let (x, dy) = (run.input(0)?, run.upstream(0)?);
        in_floats!(dy, T => {
            let bound = |slot, attribute: f32| match optional(run.inputs, slot) {
                Some(bound) => bound.item::<T>(),
                None => Ok(T::from(attribute)),
            };
            let (low, high) = (bound(1, self.low)?, bound(2, self.high)?);
            let passed = |(&x, &dy): (&T, &T)| if (x >= low) & (x <= high) { dy } else { 0.0 };
            let dx = x.slice::<T>()?.iter().zip(dy.slice::<T>()?).map(passed).collect();
            Ok(vec![Some(Array::new(x.shape(), dx)?)])
        })
    }
}

impl Gradient for PRelu {
    fn backward(&self, run: &Run) -> Gradients {
        let (x, slope, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let shape = self.slope_shape(x, slope);
        in_floats!(dy, T => {
            let (mut dx, mut ds) = (None, None);
            let (xs, dys) = (x.slice::<T>()?, dy.slice::<T>()?);
            if run.wants(0) {
                let leak = |&x: &T, &slope: &T| if x > 0.0 { 1.0 } else { slope };
                let (_, slopes) = zip((xs, x.shape()), (slope.slice::<T>()?, &shape), leak)?;
                dx = Some(Array::new(x.shape(), slopes.iter().zip(dys).map(|(s, d)| s * d).collect::<Vec<T>>())?);
            }
            if run.wants(1) {
                let by: Vec<T> = xs.iter().zip(dys).map(|(x, d)| if *x < 0.0 { x * d } else { 0.0 }).collect();
                ds = Some(unbroadcast((x.shape(), by), &shape)?.reshaped(slope.shape())?);
            }
            Ok(vec![dx, ds])
        })
    }
}
