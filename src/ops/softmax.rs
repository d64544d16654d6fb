//! Softmax, LogSoftmax and Hardmax.
//!
//! Since opset 13 they work along one axis (default: the last). Before, the input was seen as a matrix whose rows
//! hold all dimensions from `axis` (default: 1) on.
//! See <https://onnx.ai/onnx/operators/onnx__Softmax.html>.

mod gradient;

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::slots::{self, known, required};
use super::{Attrs, Fact, ONNX, Op, OpDef, Rule, integer, Gradient};
use crate::error::Fault;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{Array, TensorType};
use crate::kernels::{reduce, softmax};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Softmax", since: 1, parse: |a| Softmax::parse(a, Kind::Soft) },
    OpDef { domain: ONNX, name: "LogSoftmax", since: 1, parse: |a| Softmax::parse(a, Kind::Log) },
    OpDef { domain: ONNX, name: "Hardmax", since: 1, parse: |a| Softmax::parse(a, Kind::Hard) },
];

/// The member of the family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `e^x / Σ e^x`.
    Soft,
    /// `ln(softmax(x))`.
    Log,
    /// 1 at the first maximum, 0 elsewhere.
    Hard,
}

/// Softmax and its relatives.
#[derive(Debug, Clone, PartialEq)]
pub struct Softmax {
    /// Which of them.
    pub kind: Kind,
    /// Axis of the distribution, or the first of those that form it.
    pub axis: i64,
    /// The form before opset 13: all axes from `axis` on form one distribution.
    pub flatten: bool,
}

impl Softmax {
    fn parse(attrs: &mut Attrs, kind: Kind) -> Result<Arc<dyn Op>, Fault> {
        let flatten = attrs.version() < 13;
        let axis = attrs.int("axis", if flatten { 1 } else { -1 })?;
        Ok(Arc::new(Self { kind, axis, flatten }))
    }

    /// The extents before, along and after the distribution.
    pub fn extents(&self, shape: &[usize]) -> Result<(usize, usize, usize), Fault> {
        if self.flatten && self.axis == shape.len() as i64 {
            return Ok((shape.iter().product(), 1, 1));
        }
        if shape.is_empty() {
            return Ok((1, 1, 1));
        }
        let axis = slots::axis(self.axis, shape.len())?;
        let (outer, n, inner) = slots::around(shape, axis);
        Ok(if self.flatten { (outer, n * inner, 1) } else { (outer, n, inner) })
    }

    fn run<T: Real>(&self, x: &Array) -> Result<Vec<Array>, Fault> {
        let extents @ (_, n, inner) = self.extents(x.shape())?;
        let input = T::read(x)?;
        let mut y = elements(&input)?.to_vec();
        match self.kind {
            Kind::Soft => softmax::softmax(&mut y, extents),
            Kind::Log => softmax::log_softmax(&mut y, extents),
            Kind::Hard => {
                let winners = reduce::position_axis(&y, extents, |a, best| a > best);
                y.fill(T::ZERO);
                for (column, &winner) in winners.iter().enumerate().filter(|_| n > 0) {
                    y[(column / inner * n + winner as usize) * inner + column % inner] = T::ONE;
                }
            }
        }
        Ok(vec![T::array(x.shape(), y)?])
    }
}

impl Op for Softmax {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        in_reals!(x.dtype(), T => self.run::<T>(x))
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        (self.kind == Kind::Soft).then(|| integer::pool::shares(self, unit)).flatten()
    }

    fn rule(&self) -> Rule {
        match self.kind {
            Kind::Soft => Rule::FixedRange { low: 0.0, scale: 1.0 / 256.0 },
            Kind::Log | Kind::Hard => Rule::Float,
        }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        if self.kind == Kind::Hard { None } else { Some(self) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::int;
    use crate::ops::operand::run;

    fn apply(name: &str, version: i64, axis: Option<i64>, shape: &[usize], x: &[f32]) -> Vec<f32> {
        let attributes: Vec<_> = axis.iter().map(|&a| int("axis", a)).collect();
        let x = Array::new(shape, x.to_vec()).unwrap();
        run(name, version, &attributes, &[Some(x)], 1).unwrap()[0].slice::<f32>().unwrap().to_vec()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= 1e-6 * e.abs().max(1.0), "{found:?} {expected:?}");
        }
    }

    const LN: [f32; 5] = [0.0, std::f32::consts::LN_2, 1.0986123, 1.3862944, 1.609438]; // ln 1 … ln 5

    #[test]
    fn powers_share_one() {
        let x = [LN[0], LN[2], LN[0], LN[0]];
        close(&apply("Softmax", 13, None, &[2, 2], &x), &[0.25, 0.75, 0.5, 0.5]);
        close(&apply("Softmax", 13, Some(0), &[2, 2], &x), &[0.5, 0.75, 0.5, 0.25]);
        let ln_half = -LN[1];
        let logs = [ln_half - LN[1], LN[2] - LN[3], ln_half, ln_half];
        close(&apply("LogSoftmax", 13, None, &[2, 2], &x), &logs);
        close(&apply("Hardmax", 13, Some(0), &[2, 2], &x), &[1.0, 1.0, 0.0, 0.0]);
        close(&apply("Hardmax", 13, Some(1), &[2, 2], &x), &[0.0, 1.0, 1.0, 0.0]);
    }

    #[test]
    fn older_forms_flatten() {
        let x = [LN[0], LN[1], LN[2], LN[3]];
        close(&apply("Softmax", 11, None, &[1, 2, 2], &x), &[0.1, 0.2, 0.3, 0.4]);
        close(&apply("Softmax", 13, None, &[1, 2, 2], &x), &[1.0 / 3.0, 2.0 / 3.0, 3.0 / 7.0, 4.0 / 7.0]);
    }

    #[test]
    fn large_numbers_stay_finite() {
        close(&apply("Softmax", 13, None, &[3], &[1e30, -1e30, 1e30]), &[0.5, 0.0, 0.5]);
        close(&apply("LogSoftmax", 13, None, &[2], &[1000.0, 0.0]), &[0.0, -1000.0]);
    }

    #[test]
    fn no_elements() {
        assert!(apply("Softmax", 13, Some(1), &[2, 0], &[]).is_empty());
        assert!(apply("Hardmax", 13, Some(1), &[2, 0, 3], &[]).is_empty());
    }

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("softmax");
    }
}
