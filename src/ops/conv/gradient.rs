//! The gradients of Conv and ConvTranspose, each of which is the other's adjoint.

use super::{Conv, ConvTranspose};
use crate::error::Fault;
use crate::ir::{Array, Gradient, Run};
use crate::kernels::conv::{conv, gradient};
use crate::kernels::gemm::Number;
use crate::ops::gradient::{Gradients, in_floats};
use crate::ops::operand::Real;

/// The gradient by a bias of one element for each channel of `y`.
fn bias<T: Real>(run: &Run, dy: &Array) -> Result<Option<Array>, Fault> {
    if !run.wants(2) {
        return Ok(None);
    }
    let [_, channels, spatial @ ..] = dy.shape() else { return Ok(None) };
    let sums = gradient::bias(*channels, spatial.iter().product(), dy.slice::<T>()?);
    T::array(&[*channels], sums).map(Some)
}

impl Conv {
    fn back<T: Real + Number>(&self, run: &Run) -> Gradients {
        let (x, w, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let (channels, axes, _) = self.place(x.shape(), w.shape())?;
        let (mut dx, mut dw) = (None, None);
        if run.wants(0) {
            let mut values = vec![T::ZERO; x.len()];
            gradient::input(channels, &axes, w.slice::<T>()?, dy.slice()?, &mut values)?;
            dx = Some(T::array(x.shape(), values)?);
        }
        if run.wants(1) {
            let mut values = vec![T::ZERO; w.len()];
            gradient::weight(channels, &axes, x.slice::<T>()?, dy.slice()?, &mut values)?;
            dw = Some(T::array(w.shape(), values)?);
        }
        Ok(vec![dx, dw, bias::<T>(run, dy)?])
    }
}

impl Gradient for Conv {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}

impl ConvTranspose {
    fn back<T: Real + Number>(&self, run: &Run) -> Gradients {
        let (x, w, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let (channels, axes, _) = self.place(x.shape(), w.shape())?;
        let (mut dx, mut dw) = (None, None);
        // The convolution from `y` to `x` has the same weight.
        let turned = channels.turned();
        if run.wants(0) {
            let values = conv(turned, &axes, dy.slice::<T>()?, w.slice()?, None)?;
            dx = Some(T::array(x.shape(), values)?);
        }
        if run.wants(1) {
            let mut values = vec![T::ZERO; w.len()];
            gradient::weight(turned, &axes, dy.slice::<T>()?, x.slice()?, &mut values)?;
            dw = Some(T::array(w.shape(), values)?);
        }
        Ok(vec![dx, dw, bias::<T>(run, dy)?])
    }
}

impl Gradient for ConvTranspose {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}
