//! The gradients of Softmax and LogSoftmax.

use super::{Kind, Softmax};
use crate::ir::{Gradient, Run};
use crate::kernels::softmax::{log_softmax_gradient, softmax_gradient};
use crate::ops::gradient::{Gradients, in_floats};
use crate::ops::operand::Real;

impl Gradient for Softmax {
    fn backward(&self, run: &Run) -> Gradients {
        let (y, dy) = (run.output(0)?, run.upstream(0)?);
        let extents = self.extents(y.shape())?;
        in_floats!(dy, T => {
            let (y_values, dy) = (y.slice::<T>()?, dy.slice::<T>()?);
            let dx = match self.kind {
                Kind::Log => log_softmax_gradient(y_values, dy, extents),
                Kind::Soft | Kind::Hard => softmax_gradient(y_values, dy, extents),
            };
            Ok(vec![Some(<T as Real>::array(y.shape(), dx)?)])
        })
    }
}
