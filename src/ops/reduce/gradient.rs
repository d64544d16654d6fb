//! The gradients of reductions: what was summed gets the sum's gradient, each element with its own derivative.

use super::{Kind, Reduce};
use crate::ir::{Gradient, Run};
use crate::kernels::broadcast::zip;
use crate::kernels::math;
use crate::ops::gradient::{Gradients, in_floats};
use crate::ops::operand::Real;
use crate::ops::slots::optional;

impl Kind {
    /// Does the gradient follow from the element and the result alone?
    pub(super) fn is_smooth(self) -> bool {
        !matches!(self, Self::Prod | Self::Max | Self::Min)
    }

    /// The derivative of the result `y` over `n` elements by one of them, `x`.
    fn slope<T: math::Real>(self, x: T, y: T, n: f32) -> T {
        let [zero, one, two] = [0.0, 1.0, 2.0].map(T::from);
        match self {
            Self::Mean => one / T::from(n),
            Self::L1 if x < zero => -one,
            Self::L2 if y == zero => zero,
            Self::L2 => x / y,
            Self::SumSquare => two * x,
            Self::LogSum => (-y).exp(),
            Self::LogSumExp => (x - y).exp(),
            Self::Sum | Self::L1 | Self::Prod | Self::Max | Self::Min => one,
        }
    }
}

impl Gradient for Reduce {
    fn backward(&self, run: &Run) -> Gradients {
        let (x, y, dy) = (run.input(0)?, run.output(0)?, run.upstream(0)?);
        let mask = self.mask(optional(run.inputs, 1), x.rank())?;
        let kept: Vec<usize> = x.shape().iter().zip(&mask).map(|(&d, &gone)| if gone { 1 } else { d }).collect();
        let count: usize = x.shape().iter().zip(&mask).filter(|(_, gone)| **gone).map(|(d, _)| d).product();
        in_floats!(dy, T => {
            let xs = (x.slice::<T>()?, x.shape());
            let (_, slopes) = zip(xs, (y.slice::<T>()?, &kept), |&x, &y| self.kind.slope(x, y, count as f32))?;
            let (_, dx) = zip((&slopes, x.shape()), (dy.slice::<T>()?, &kept), |slope, dy| slope * dy)?;
            Ok(vec![Some(<T as Real>::array(x.shape(), dx)?)])
        })
    }
}
