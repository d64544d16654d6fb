//! The gradient of Einsum: in each product, a factor gets the gradient of the sum times the other factors.

use super::Einsum;
use crate::ir::{Array, Gradient, Run};
use crate::kernels::window::each_index;
use crate::ops::gradient::{Gradients, in_floats};

impl Gradient for Einsum {
    fn backward(&self, run: &Run) -> Gradients {
        let (plan, arrays) = self.plan(run.inputs)?;
        let dy = run.upstream(0)?;
        let steps: Vec<usize> = (0..plan.kept).map(|i| plan.extents[i + 1..plan.kept].iter().product()).collect();
        let place = |strides: &[usize], index: &[usize]| -> usize {
            strides.iter().zip(index).map(|(s, i)| s * i).sum()
        };
        in_floats!(dy, T => {
            let factors = arrays.iter().map(|a| a.slice::<T>()).collect::<Result<Vec<_>, _>>()?;
            let mut gradients: Vec<Vec<T>> = factors.iter().map(|f| vec![0.0; f.len()]).collect();
            let dy = dy.slice::<T>()?;
            each_index(&plan.extents, |index| {
                let upstream = dy.get(place(&steps, index)).copied().unwrap_or_default();
                let at: Vec<usize> = plan.strides.iter().map(|s| place(s, index)).collect();
                for (own, gradient) in gradients.iter_mut().enumerate() {
                    let others = factors.iter().zip(&at).enumerate().filter(|(other, _)| *other != own);
                    let product = others.fold(upstream, |p, (_, (f, &at))| p * f.get(at).copied().unwrap_or_default());
                    if let Some(sum) = gradient.get_mut(at[own]) {
                        *sum += product;
                    }
                }
            });
            let each = arrays.iter().zip(gradients).map(|(a, g)| Array::new(a.shape(), g).map(Some));
            each.collect()
        })
    }
}
