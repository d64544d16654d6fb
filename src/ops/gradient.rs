//! What the gradients of the families have in common: the types they compute in, functions of one element, sums over
//! broadcast axes, and the way back of operators that only move elements.

use super::elementwise::RealMap;
use super::operand::{Real, elements};
use super::{Op, Run};
use crate::error::Fault;
use crate::fail;
use crate::ir::Array;
use crate::kernels::broadcast;
use crate::kernels::math;
use crate::kernels::simd::{self, Task};

/// The gradient by each input.
pub(super) type Gradients = Result<Vec<Option<Array>>, Fault>;

/// Evaluates `$body` with `$T` as the type of the gradients: `f32`, or `f64` where gradients are checked.
macro_rules! in_floats {
    ($array:expr, $T:ident => $body:expr) => {
        match $array.dtype() {
            crate::ir::DType::F32 => {
                type $T = f32;
                $body
            }
            crate::ir::DType::F64 => {
                type $T = f64;
                $body
            }
            other => Err(crate::error::Fault::unimplemented(format_args!("gradients of {other}"))),
        }
    };
}
pub(super) use in_floats;

/// A function of one element with a derivative.
pub(super) trait Derivative: RealMap {
    /// The derivative at `x`, where the function is `y`.
    fn at<T: math::Real>(&self, x: T, y: T) -> T;
}

/// The chain rule for a function of each element.
pub(super) fn chain(function: &impl Derivative, run: &Run) -> Gradients {
    let (x, y, dy) = (run.input(0)?, run.output(0)?, run.upstream(0)?);
    let dx = in_floats!(dy, T => {
        let mut dx = dy.slice::<T>()?.to_vec();
        simd::run(Chain { function, x: x.slice::<T>()?, y: y.slice()?, dx: &mut dx });
        Array::new(x.shape(), dx)
    })?;
    Ok(vec![Some(dx)])
}

/// Multiplies with the derivatives.
struct Chain<'a, F, T> {
    function: &'a F,
    x: &'a [T],
    y: &'a [T],
    dx: &'a mut [T],
}

impl<F: Derivative, T: math::Real> Task for Chain<'_, F, T> {
    #[inline(always)]
    fn run(self) {
        let Self { function, x, y, dx } = self;
        for ((dx, &x), &y) in dx.iter_mut().zip(x).zip(y) {
            *dx = *dx * function.at(x, y);
        }
    }
}

/// The gradient by an operand of shape `shape` that was broadcast to that of `full`.
pub(super) fn unbroadcast<T: Real>(full: (&[usize], Vec<T>), shape: &[usize]) -> Result<Array, Fault> {
    if full.0 == shape {
        return T::array(shape, full.1);
    }
    T::array(shape, broadcast::reduce((&full.1, full.0), shape)?)
}

/// The same for an array.
pub(super) fn unbroadcast_array(full: &Array, shape: &[usize]) -> Result<Array, Fault> {
    if full.shape() == shape {
        return Ok(full.clone());
    }
    in_floats!(full, T => {
        let values = <T as Real>::read(full)?;
        <T as Real>::array(shape, broadcast::reduce((elements(&values)?, full.shape()), shape)?)
    })
}

/// The way back of an operator each of whose output elements is an element of an input, or nothing: the operator is
/// run on the elements' numbers, which tells where each went. `data` are the slots of those inputs.
pub(super) fn moved(op: &dyn Op, run: &Run, data: &[usize]) -> Gradients {
    let mut inputs = run.inputs.to_vec();
    let mut first = 0i64;
    for &slot in data {
        let x = run.input(slot)?;
        let count = x.len() as i64;
        inputs[slot] = Some(Array::new(x.shape(), (first..first + count).collect::<Vec<_>>())?);
        first += count;
    }
    let origins = op.float(&inputs)?;
    let Some(like) = run.upstream.iter().flatten().next() else { fail!("no gradient flows back") };
    in_floats!(like, T => {
        let mut sums = vec![T::default(); first as usize];
        for (origin, dy) in origins.iter().zip(run.upstream) {
            let Some(dy) = dy else { continue };
            for (&from, &dy) in origin.slice::<i64>()?.iter().zip(dy.slice::<T>()?) {
                if let Some(sum) = usize::try_from(from).ok().and_then(|i| sums.get_mut(i)) {
                    *sum += dy;
                }
            }
        }
        let mut gradients = vec![None; run.inputs.len()];
        let mut sums = sums.as_slice();
        for &slot in data {
            let x = run.input(slot)?;
            let (own, rest) = sums.split_at(x.len());
            gradients[slot] = Some(Array::new(x.shape(), own.to_vec())?);
            sums = rest;
        }
        Ok(gradients)
    })
}

/// The way back of an operator that only gives its first input another shape.
pub(super) fn reshaped(run: &Run) -> Gradients {
    Ok(vec![Some(run.upstream(0)?.reshaped(run.input(0)?.shape())?)])
}

#[cfg(test)]
mod tests;
