//! [NegativeLogLikelihoodLoss](https://onnx.ai/onnx/operators/onnx__NegativeLogLikelihoodLoss.html) and
//! [SoftmaxCrossEntropyLoss](https://onnx.ai/onnx/operators/onnx__SoftmaxCrossEntropyLoss.html), which is the former of
//! the logarithm of a softmax.

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::slots::{around, known, optional, required};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, TensorType};
use crate::kernels::softmax::log_softmax;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "NegativeLogLikelihoodLoss", since: 12, parse: |a| Loss::parse(a, false) },
    OpDef { domain: ONNX, name: "SoftmaxCrossEntropyLoss", since: 12, parse: |a| Loss::parse(a, true) },
];

/// What becomes of the losses of the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// They stay.
    None,
    /// Their sum.
    Sum,
    /// Their mean, by the weights of their classes.
    Mean,
}

/// The weighted negative logarithm of the probability of the right class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Does a softmax along the classes come first? Its logarithm is the second output then.
    pub softmax: bool,
    /// Elements of this class do not count.
    pub ignore_index: Option<i64>,
    /// What becomes of the losses of the elements.
    pub reduction: Reduction,
}

impl Loss {
    fn parse(attrs: &mut Attrs, softmax: bool) -> Result<Arc<dyn Op>, Fault> {
        let reduction = match attrs.string("reduction", "mean")?.as_str() {
            "none" => Reduction::None,
            "sum" => Reduction::Sum,
            "mean" => Reduction::Mean,
            other => fail!("unknown reduction {other}"),
        };
        Ok(Arc::new(Self { softmax, ignore_index: attrs.opt_int("ignore_index")?, reduction }))
    }

    fn run<T: Real>(&self, x: &Array, target: &Array, weight: Option<&Array>) -> Result<Vec<Array>, Fault> {
        let (&[batch, classes, ref spatial @ ..], targets) = (x.shape(), target.to_i64()?) else {
            fail!("{:?} has no classes", x.shape());
        };
        if target.shape().first() != Some(&batch) || target.shape().get(1..) != Some(spatial) {
            fail!("targets {:?} do not fit inputs {:?}", target.shape(), x.shape());
        }
        let weights = weight.map(T::read).transpose()?;
        let weights = weights.as_ref().map(elements).transpose()?;
        if weights.is_some_and(|w| w.len() != classes) {
            fail!("{classes} classes need as many weights");
        }
        let mut logs = elements(&T::read(x)?)?.to_vec();
        if self.softmax {
            log_softmax(&mut logs, around(x.shape(), 1));
        }
        let inner: usize = spatial.iter().product();
        let (mut losses, mut total, mut divisor) = (Vec::with_capacity(targets.len()), T::ZERO, T::ZERO);
        for (i, &class) in targets.iter().enumerate() {
            if self.ignore_index == Some(class) {
                losses.push(T::ZERO);
                continue;
            }
            let Some(class) = usize::try_from(class).ok().filter(|&c| c < classes) else {
                fail!("class {class} is not one of {classes}");
            };
            let log = logs[(i / inner * classes + class) * inner + i % inner];
            let weight = weights.map_or(T::ONE, |w| w[class]);
            losses.push(-log * weight);
            total += -log * weight;
            divisor += weight;
        }
        let loss = match self.reduction {
            Reduction::None => T::array(target.shape(), losses)?,
            Reduction::Sum => T::array(&[], vec![total])?,
            Reduction::Mean => T::array(&[], vec![total / divisor])?,
        };
        let log_prob = if self.softmax { Some(T::array(x.shape(), logs)?) } else { None };
        Ok([loss].into_iter().chain(log_prob).collect())
    }
}

impl Op for Loss {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let x = known(inputs, 0);
        let dims = match self.reduction {
            Reduction::None => known(inputs, 1).and_then(|t| t.dims.clone()),
            _ => Some(Vec::new()),
        };
        let loss = x.map(|x| TensorType { dtype: x.dtype, dims });
        Ok(if self.softmax { vec![loss, x.cloned()] } else { vec![loss] })
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, target) = (required(inputs, 0)?, required(inputs, 1)?);
        in_reals!(x.dtype(), T => self.run::<T>(x, target, optional(inputs, 2)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::{int, string};
    use crate::ops::operand::run;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("loss");
    }

    #[test]
    fn weights_and_ignored_classes() {
        let logs = Array::new(&[3, 2], vec![-1f64, -2.0, -3.0, -4.0, -5.0, -6.0]).unwrap();
        let inputs = [logs, Array::vector(vec![1i64, 0, -7]), Array::vector(vec![1f64, 3.0])].map(Some);
        let mean = run("NegativeLogLikelihoodLoss", 13, &[int("ignore_index", -7)], &inputs, 1).unwrap();
        assert_eq!(mean[0], Array::scalar((2.0 * 3.0 + 3.0) / 4.0));
        let attributes = [int("ignore_index", -7), string("reduction", "none")];
        let each = run("NegativeLogLikelihoodLoss", 13, &attributes, &inputs, 1).unwrap();
        assert_eq!(each[0], Array::vector(vec![6f64, 3.0, 0.0]));
        assert!(run("NegativeLogLikelihoodLoss", 13, &[], &inputs, 1).is_err());
    }

    #[test]
    fn cross_entropy_of_even_scores() {
        let scores = Array::new(&[1, 4, 2], vec![0.5f64; 8]).unwrap();
        let inputs = [scores, Array::new(&[1, 2], vec![3i64, 0]).unwrap()].map(Some);
        let y = run("SoftmaxCrossEntropyLoss", 13, &[], &inputs, 2).unwrap();
        assert!((y[0].item::<f64>().unwrap() - 2.0 * std::f64::consts::LN_2).abs() < 1e-12);
    }
}
