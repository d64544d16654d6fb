//! Division by a norm: of the elements along an axis (LpNormalization) or of neighbouring channels (LRN).

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::slots::{self, around, known, required};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, TensorType};
use crate::kernels::normalize::local_response;
use crate::kernels::reduce::{fold_axis, per_column};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "LRN", since: 1, parse: LocalResponse::parse },
    OpDef { domain: ONNX, name: "LpNormalization", since: 1, parse: LpNormalization::parse },
];

/// LRN, across channels: `x / (bias + alpha / size · Σ x²)^beta`, the sum over a window of `size` channels.
/// See <https://onnx.ai/onnx/operators/onnx__LRN.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalResponse {
    /// Weight of the sum.
    pub alpha: f32,
    /// Exponent.
    pub beta: f32,
    /// Added to the sum.
    pub bias: f32,
    /// Channels in the window.
    pub size: usize,
}

impl LocalResponse {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let size = attrs.int("size", 0)?;
        let Some(size) = usize::try_from(size).ok().filter(|&s| s > 0) else { fail!("size is {size}") };
        Ok(Arc::new(Self {
            alpha: attrs.float("alpha", 1e-4)?,
            beta: attrs.float("beta", 0.75)?,
            bias: attrs.float("bias", 1.0)?,
            size,
        }))
    }

    fn run<T: Real>(&self, x: &Array) -> Result<Vec<Array>, Fault> {
        let Some((&channels, spatial)) = x.shape().get(1..).and_then(<[usize]>::split_first) else {
            fail!("{:?} has no channels", x.shape());
        };
        let constants = (
            T::of(self.bias.into()),
            T::of(f64::from(self.alpha) / self.size as f64),
            T::of(self.beta.into()),
        );
        let window = ((self.size - 1) / 2, self.size / 2);
        let input = T::read(x)?;
        let y = local_response(elements(&input)?, (channels, spatial.iter().product()), window, constants);
        Ok(vec![T::array(x.shape(), y)?])
    }
}

impl Op for LocalResponse {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        in_reals!(x.dtype(), T => self.run::<T>(x))
    }
}

/// LpNormalization: division by the norm along an axis; where that is zero, so is the output.
/// See <https://onnx.ai/onnx/operators/onnx__LpNormalization.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct LpNormalization {
    /// Axis of the vectors.
    pub axis: i64,
    /// 1: sum of absolute values; 2: square root of the sum of squares.
    pub p: i64,
}

impl LpNormalization {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let op = Self { axis: attrs.int("axis", -1)?, p: attrs.int("p", 2)? };
        if !(1..=2).contains(&op.p) {
            fail!("p is {}; only 1 and 2 have a meaning", op.p);
        }
        Ok(Arc::new(op))
    }

    fn run<T: Real>(&self, x: &Array) -> Result<Vec<Array>, Fault> {
        let extents @ (_, n, inner) = around(x.shape(), slots::axis(self.axis, x.rank())?);
        let input = T::read(x)?;
        let mut y = elements(&input)?.to_vec();
        if y.is_empty() {
            return Ok(vec![x.clone()]);
        }
        let norms = match self.p {
            1 => fold_axis(&y, extents, T::ZERO, |a, v| a + v.abs(), |a, b| a + b),
            _ => {
                let mut sums = fold_axis(&y, extents, T::ZERO, |a, v| a + v * v, |a, b| a + b);
                sums.iter_mut().for_each(|s| *s = s.sqrt());
                sums
            }
        };
        for (block, norms) in y.chunks_exact_mut(n * inner).zip(norms.chunks_exact(inner)) {
            per_column(block, norms, |v, norm| if norm == T::ZERO { T::ZERO } else { v / norm });
        }
        Ok(vec![T::array(x.shape(), y)?])
    }
}

impl Op for LpNormalization {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        in_reals!(x.dtype(), T => self.run::<T>(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::{float, int};
    use crate::ops::operand::run;

    fn vector(name: &str, attributes: &[crate::ir::Attribute], shape: &[usize], x: &[f64]) -> Vec<f64> {
        let x = Array::new(shape, x.to_vec()).unwrap();
        run(name, 13, attributes, &[Some(x)], 1).unwrap()[0].slice::<f64>().unwrap().to_vec()
    }

    #[test]
    fn vectors_get_length_one() {
        assert_eq!(vector("LpNormalization", &[], &[2, 2], &[3.0, 4.0, 0.0, 0.0]), [0.6, 0.8, 0.0, 0.0]);
        let attributes = [int("axis", 0), int("p", 1)];
        assert_eq!(
            vector("LpNormalization", &attributes, &[2, 2], &[3.0, 4.0, 1.0, -4.0]),
            [0.75, 0.5, 0.25, -0.5]
        );
    }

    #[test]
    fn neighbouring_channels_dampen() {
        let base = [float("alpha", 2.0), float("beta", 1.0), float("bias", 1.0)];
        let x = [1.0, 2.0, 3.0, 4.0];
        // A window of two: the channel itself and the next one.
        let attributes = [&base[..], &[int("size", 2)]].concat();
        let expected = [1.0 / 6.0, 2.0 / 14.0, 3.0 / 26.0, 4.0 / 17.0];
        assert_eq!(vector("LRN", &attributes, &[1, 4, 1], &x), expected);
        let attributes = [&[int("size", 1), float("alpha", 1.0)][..], &[float("beta", 0.75)]].concat();
        let y = vector("LRN", &attributes, &[1, 1, 1], &[15f64.sqrt()]);
        assert!((y[0] - 15f64.sqrt() / 8.0).abs() < 1e-12);
    }

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("norm");
    }
}
