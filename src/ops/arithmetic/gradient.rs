//! The gradients of arithmetic on real numbers. An operand that was broadcast gets the sum over its repetitions.

use super::{Binary, Fold, Function, Pow, Variadic, align};
use crate::error::Fault;
use crate::ir::{Array, Gradient, Run};
use crate::kernels::broadcast::zip;
use crate::kernels::math::{self, Real as _};
use crate::ops::gradient::{Gradients, in_floats, unbroadcast, unbroadcast_array};
use crate::ops::operand::Real;

/// `f` of the gradient and a value that broadcasts to it, summed to the shape of an operand.
fn product<T: Real>(
    dy: &Array,
    by: &Array,
    shape: &[usize],
    f: impl Fn(&T, &T) -> T,
) -> Result<Array, Fault> {
    let (full, values) = zip((dy.slice::<T>()?, dy.shape()), (by.slice::<T>()?, by.shape()), f)?;
    unbroadcast((&full, values), shape)
}

impl Binary {
    fn back<T: Real>(&self, run: &Run) -> Gradients {
        let (a, own, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let b = align(own, a.rank(), self.axis)?;
        let mut gradients = [None, None];
        if run.wants(0) {
            gradients[0] = Some(match self.function {
                Function::Mul => product::<T>(dy, &b, a.shape(), |&d, &b| d * b)?,
                Function::Div => product::<T>(dy, &b, a.shape(), |&d, &b| d / b)?,
                _ => unbroadcast_array(dy, a.shape())?,
            });
        }
        if run.wants(1) {
            let zero = T::ZERO;
            let db = match self.function {
                Function::Mul => product::<T>(dy, a, b.shape(), |&d, &a| d * a)?,
                Function::Div => {
                    let y = run.output(0)?;
                    let (full, slope) =
                        zip((y.slice::<T>()?, y.shape()), (b.slice::<T>()?, b.shape()), |&y, &b| zero - y / b)?;
                    product::<T>(dy, &T::array(&full, slope)?, b.shape(), |&d, &s| d * s)?
                }
                Function::Sub => product::<T>(dy, dy, b.shape(), |&d, _| zero - d)?,
                _ => unbroadcast_array(dy, b.shape())?,
            };
            gradients[1] = Some(db.reshaped(own.shape())?);
        }
        Ok(gradients.into())
    }
}

impl Gradient for Binary {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}

impl Gradient for Pow {
    /// `∂x = ∂y·e·x^(e-1)` and `∂e = ∂y·x^e·ln x`, the latter where x is positive.
    fn backward(&self, run: &Run) -> Gradients {
        let (x, own, y, dy) = (run.input(0)?, run.input(1)?, run.output(0)?, run.upstream(0)?);
        let e = align(own, x.rank(), self.axis)?;
        in_floats!(dy, T => {
            let values = <T as Real>::read(&e)?;
            let e = <T as Real>::array(e.shape(), values.iter().copied().collect())?;
            let slope = |&x: &T, &e: &T| if e == 2.0 { 2.0 * x } else { e * x.power(e - 1.0) };
            let log = |&y: &T, &x: &T| if x > 0.0 { y * math::Real::log(x) } else { 0.0 };
            let (x_values, e_values) = ((x.slice::<T>()?, x.shape()), (e.slice::<T>()?, e.shape()));
            let mut gradients = [None, None];
            if run.wants(0) {
                let (shape, slopes) = zip(x_values, e_values, slope)?;
                gradients[0] = Some(product::<T>(dy, &Array::new(&shape, slopes)?, x.shape(), |d, s| d * s)?);
            }
            if run.wants(1) {
                let (shape, slopes) = zip((y.slice::<T>()?, y.shape()), x_values, log)?;
                let de = product::<T>(dy, &Array::new(&shape, slopes)?, e.shape(), |d, s| d * s)?;
                gradients[1] = Some(de.reshaped(own.shape())?);
            }
            Ok(gradients.into())
        })
    }
}

impl Variadic {
    /// Of Min and Max, the first operand that the result equals gets the gradient.
    fn back<T: Real>(&self, run: &Run) -> Gradients {
        let (y, dy) = (run.output(0)?, run.upstream(0)?);
        let mut left = dy.slice::<T>()?.to_vec();
        let share = T::of(1.0 / run.inputs.len() as f64);
        let mut gradients = Vec::new();
        for slot in 0..run.inputs.len() {
            let x = run.input(slot)?;
            let own = match self.fold {
                Fold::Sum => left.clone(),
                Fold::Mean => left.iter().map(|&d| d * share).collect(),
                Fold::Min | Fold::Max => {
                    let pairs = (y.slice::<T>()?, y.shape());
                    let (_, hit) = zip(pairs, (x.slice::<T>()?, x.shape()), |y, x| y == x)?;
                    let taken = |(left, &hit): (&mut T, &bool)| if hit { std::mem::take(left) } else { T::ZERO };
                    left.iter_mut().zip(&hit).map(taken).collect()
                }
            };
            gradients.push(if run.wants(slot) { Some(unbroadcast((dy.shape(), own), x.shape())?) } else { None });
        }
        Ok(gradients)
    }
}

impl Gradient for Variadic {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}
