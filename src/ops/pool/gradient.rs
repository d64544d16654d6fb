//! The gradients of pooling: a mean spreads its gradient evenly, a maximum gives it to the first of the greatest.

use super::{AveragePool, Global, MaxPool, place};
use crate::ir::{Gradient, Run};
use crate::kernels::gemm::Number;
use crate::kernels::pool::{counts, max_with_index, pool_gradient};
use crate::ops::gradient::{Gradients, in_floats};
use crate::ops::operand::Real;

impl MaxPool {
    fn back<T: Real + Number>(&self, run: &Run) -> Gradients {
        let (x, dy) = (run.input(0)?, run.upstream(0)?);
        let (axes, _) = place(&self.window, x.shape())?;
        let (greatest, from) = max_with_index(&axes, x.slice::<T>()?, -T::INFINITY, false);
        let mut dx = vec![T::ZERO; x.len()];
        for ((&from, &dy), &y) in from.iter().zip(dy.slice::<T>()?).zip(&greatest) {
            // A window that lies in the padding has no source.
            if let Some(dx) = dx.get_mut(from as usize).filter(|_| y > -T::INFINITY) {
                *dx += dy;
            }
        }
        Ok(vec![Some(T::array(x.shape(), dx)?)])
    }
}

impl Gradient for MaxPool {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}

impl AveragePool {
    fn back<T: Real + Number>(&self, run: &Run) -> Gradients {
        let (x, dy) = (run.input(0)?, run.upstream(0)?);
        let (axes, _) = place(&self.window, x.shape())?;
        let counts = counts(&axes, self.count_include_pad);
        let shares: Vec<T> = counts.iter().map(|&n| T::of(1.0 / n.max(1) as f64)).collect();
        let mut dx = vec![T::ZERO; x.len()];
        let spread: Vec<T> = dy.slice::<T>()?.iter().zip(shares.iter().cycle()).map(|(&d, &s)| d * s).collect();
        pool_gradient(&axes, &spread, &mut dx)?;
        Ok(vec![Some(T::array(x.shape(), dx)?)])
    }
}

impl Gradient for AveragePool {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}

impl Global {
    fn back<T: Real>(self, run: &Run) -> Gradients {
        let (x, y, dy) = (run.input(0)?, run.output(0)?, run.upstream(0)?);
        let plane: usize = x.shape().iter().skip(2).product();
        let mut dx = vec![T::ZERO; x.len()];
        let planes = x.slice::<T>()?.chunks_exact(plane.max(1)).zip(dx.chunks_exact_mut(plane.max(1)));
        for (((x, dx), &y), &dy) in planes.zip(y.slice::<T>()?).zip(dy.slice::<T>()?) {
            match self {
                Self::Average => dx.fill(dy * T::of(1.0 / plane as f64)),
                Self::Max => {
                    if let Some(first) = x.iter().position(|&v| v == y) {
                        dx[first] = dy;
                    }
                }
                // y = (Σ|x|ᵖ)^(1/p), so ∂y/∂x = sign(x)·(|x|/y)^(p-1)
                Self::Lp(p) => {
                    for (dx, &v) in dx.iter_mut().zip(x) {
                        let share = if y == T::ZERO { T::ZERO } else { (v.abs() / y).pow(T::of(p - 1.0)) };
                        *dx = if v < T::ZERO { -(dy * share) } else { dy * share };
                    }
                }
            }
        }
        Ok(vec![Some(T::array(x.shape(), dx)?)])
    }
}

impl Gradient for Global {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}
