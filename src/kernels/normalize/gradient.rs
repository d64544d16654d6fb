//! The way back through normalizations.

use crate::kernels::real::Real;
use crate::kernels::reduce::sum;

/// A run that was normalized with its own statistics.
#[derive(Debug, Clone, Copy)]
pub struct Normalized<'a, T> {
    /// The run.
    pub x: &'a [T],
    /// What was subtracted; zero if nothing was.
    pub mean: T,
    /// What it was multiplied by, 1 / deviation.
    pub inverse: T,
    /// Does the mean depend on the run?
    pub centered: bool,
}

impl<T: Real> Normalized<'_, T> {
    /// The normalized elements.
    pub fn values(&self) -> impl Iterator<Item = T> + '_ {
        self.x.iter().map(|&v| (v - self.mean) * self.inverse)
    }

    /// The gradient by the run, from `g`, that by the normalized elements:
    /// `(g - mean(g) - x̂·mean(g·x̂)) / deviation`.
    pub fn input(&self, g: &[T], dx: &mut [T]) {
        let n = T::of(self.x.len() as f64);
        let products: Vec<T> = g.iter().zip(self.values()).map(|(&g, v)| g * v).collect();
        let slope = sum(&products) / n;
        let shift = if self.centered { sum(g) / n } else { T::ZERO };
        for ((dx, &g), v) in dx.iter_mut().zip(g).zip(self.values()) {
            *dx = (g - shift - v * slope) * self.inverse;
        }
    }
}
