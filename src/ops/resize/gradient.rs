//! The gradient of Resize: along each axis the taps are followed back.

use super::{Resize, Taps};
use crate::error::Fault;
use crate::ir::{Array, Gradient, Run};
use crate::ops::gradient::{Gradients, in_floats};
use crate::ops::slots::around;

impl Gradient for Resize {
    fn backward(&self, run: &Run) -> Gradients {
        let x = run.input(0)?;
        let mut gradient = run.upstream(0)?.clone();
        for (axis, taps) in self.steps(run.inputs)?.iter().rev() {
            gradient = back_along(&gradient, *axis, taps, x.shape()[*axis])?;
        }
        Ok(vec![Some(gradient)])
    }
}

/// The transpose of resampling one axis of `input` positions.
fn back_along(dy: &Array, axis: usize, taps: &[Taps], input: usize) -> Result<Array, Fault> {
    let (outer, output, inner) = around(dy.shape(), axis);
    let mut shape = dy.shape().to_vec();
    shape[axis] = input;
    in_floats!(dy, T => {
        let mut out = vec![0.0; outer * input * inner];
        let blocks = dy.slice::<T>()?.chunks_exact((output * inner).max(1));
        for (block, target) in blocks.zip(out.chunks_exact_mut((input * inner).max(1))) {
            for (row, taps) in block.chunks_exact(inner.max(1)).zip(taps) {
                for &(position, weight) in taps {
                    let target = &mut target[position * inner..(position + 1) * inner];
                    target.iter_mut().zip(row).for_each(|(x, y)| *x += T::from(weight) * y);
                }
            }
        }
        Array::new(&shape, out)
    })
}
