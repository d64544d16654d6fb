//! `Pad`: more elements (or, with negative numbers, fewer) at both ends of each axis.
//!
//! The amounts were an attribute before opset 11 and are an input since, which from opset 18 on may speak of some axes
//! only.

use std::sync::Arc;

use half::{bf16, f16};

use super::slots::{self, constant_ints, known, required};
use super::gradient::{Gradients, moved};
use super::{Attrs, Gradient, ONNX, OpDef, Run};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, Fact, Op, TensorType, element_count, with_array};
use crate::kernels::strided::{View, copy, take_array};

type Parsed = Result<Arc<dyn Op>, Fault>;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Pad", since: 1, parse: |a| Pad::parse(a, Some("paddings")) },
    OpDef { domain: ONNX, name: "Pad", since: 2, parse: |a| Pad::parse(a, Some("pads")) },
    OpDef { domain: ONNX, name: "Pad", since: 11, parse: |a| Pad::parse(a, None) },
];

/// What the new elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadMode {
    /// One value.
    Constant,
    /// The elements before the border mirrored, without the border itself.
    Reflect,
    /// The border.
    Edge,
    /// The elements of the other end.
    Wrap,
}

/// `Pad`.
#[derive(Debug, Clone)]
pub struct Pad {
    /// What the new elements are.
    pub mode: PadMode,
    /// Amounts of the attribute form: those before each axis, then those after each axis. Later input 1.
    pub pads: Option<Vec<i64>>,
    /// The constant of the attribute form. Later input 2.
    pub value: f32,
    /// Number of input slots of the node; a fourth one names the axes.
    pub inputs: usize,
}

impl Pad {
    fn parse(attrs: &mut Attrs, attribute: Option<&str>) -> Parsed {
        let mode = match attrs.string("mode", "constant")?.as_str() {
            "constant" => PadMode::Constant,
            "reflect" => PadMode::Reflect,
            "edge" => PadMode::Edge,
            "wrap" if attrs.version() >= 19 => PadMode::Wrap,
            other => fail!("mode {other} is unknown"),
        };
        let (pads, value) = match attribute {
            Some(name) => (Some(attrs.opt_ints(name)?.unwrap_or_default()), attrs.float("value", 0.0)?),
            None => (None, 0.0),
        };
        Ok(Arc::new(Self { mode, pads, value, inputs: attrs.inputs() }))
    }

    /// Amounts before and after each of `rank` axes.
    pub fn amounts(pads: &[i64], axes: Option<&[i64]>, rank: usize) -> Result<Vec<(i64, i64)>, Fault> {
        let axes = match axes {
            Some(axes) => slots::axes(axes, rank)?,
            None => (0..rank).collect(),
        };
        if pads.len() != axes.len() * 2 {
            fail!("{} amounts for {} axes", pads.len(), axes.len());
        }
        let mut amounts = vec![(0, 0); rank];
        let (before, after) = pads.split_at(axes.len());
        axes.into_iter().zip(before.iter().zip(after)).for_each(|(axis, (&b, &a))| amounts[axis] = (b, a));
        Ok(amounts)
    }

    /// The amounts, if they are constant.
    pub fn constant_amounts(
        &self,
        inputs: &[Option<Fact>],
        rank: usize,
    ) -> Result<Option<Vec<(i64, i64)>>, Fault> {
        let axes = constant_ints(inputs, 3)?;
        match if self.pads.is_some() { self.pads.clone() } else { constant_ints(inputs, 1)? } {
            Some(_) if self.inputs > 3 && axes.is_none() => Ok(None),
            Some(pads) => Self::amounts(&pads, axes.as_deref(), rank).map(Some),
            None => Ok(None),
        }
    }

    /// For each new index of an axis the old one. The axis is cut first if an amount is negative.
    fn rows(&self, extent: usize, (before, after): (i64, i64)) -> Result<Vec<usize>, Fault> {
        let first = before.min(0).unsigned_abs() as usize;
        let kept = padded(extent, (before.min(0), after.min(0)))? as i64;
        let count = padded(extent, (before, after))?;
        element_count(&[count])?;
        if kept == 0 && count > 0 {
            fail!("an empty axis has nothing to pad with");
        }
        let source = |i: usize| {
            let at = i as i64 - before.max(0);
            let at = match self.mode {
                PadMode::Edge | PadMode::Constant => at.clamp(0, kept - 1),
                PadMode::Wrap => at.rem_euclid(kept),
                PadMode::Reflect if kept == 1 => 0,
                PadMode::Reflect => {
                    let period = 2 * (kept - 1);
                    let at = at.rem_euclid(period);
                    at.min(period - at)
                }
            };
            first + at as usize
        };
        Ok((0..count).map(source).collect())
    }
}

/// The extent of an axis after padding.
fn padded(extent: usize, (before, after): (i64, i64)) -> Result<usize, Fault> {
    let count = extent as i128 + i128::from(before) + i128::from(after);
    let cut = i128::from(before.min(0)) + i128::from(after.min(0));
    if cut + (extent as i128) < 0 {
        fail!("cannot cut {} elements off an axis of {extent}", -cut);
    }
    usize::try_from(count).map_err(|_| "a padded axis is too long".into())
}

/// A real number as a scalar of a floating-point type.
fn scalar(value: f32, dtype: DType) -> Result<Array, Fault> {
    Ok(match dtype {
        DType::F32 => Array::scalar(value),
        DType::F64 => Array::scalar(f64::from(value)),
        DType::F16 => Array::scalar(f16::from_f32(value)),
        DType::BF16 => Array::scalar(bf16::from_f32(value)),
        other => fail!("cannot pad {other} with a real number"),
    })
}

/// The part of `x` that remains where amounts are negative, inside an array filled with `value`.
fn fill_around(x: &Array, amounts: &[(i64, i64)], value: Option<&Array>) -> Result<Array, Fault> {
    let shape = x.shape().iter().zip(amounts).map(|(&d, &a)| padded(d, a)).collect::<Result<Vec<_>, _>>()?;
    let count = element_count(&shape)?;
    let (mut from, mut to) = (View::new(x.shape())?, View::new(&shape)?);
    for (axis, (&extent, &(before, after))) in x.shape().iter().zip(amounts).enumerate() {
        let kept = padded(extent, (before.min(0), after.min(0)))?;
        from = from.stepped(axis, before.min(0).unsigned_abs() as usize, 1, kept)?;
        to = to.stepped(axis, before.max(0) as usize, 1, kept)?;
    }
    Ok(with_array!(x, a => {
        let mut elements = filled(value.map(|v| slots::like(a, v)).transpose()?, count)?;
        copy(&mut elements, &to, slots::like(a, x)?, &from)?;
        Array::new(&shape, elements)?
    }))
}

/// So many times the one value, or zero.
fn filled<T: Clone + Default>(value: Option<&[T]>, count: usize) -> Result<Vec<T>, Fault> {
    match value {
        None => Ok(vec![T::default(); count]),
        Some([value]) => Ok(vec![value.clone(); count]),
        Some(other) => Err(format!("expected one value to pad with, found {}", other.len()).into()),
    }
}

impl Op for Pad {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let Some(dims) = &ty.dims else { return Ok(vec![Some(ty.clone())]) };
        let dims = match self.constant_amounts(inputs, dims.len())? {
            None => vec![Dim::Unknown; dims.len()],
            Some(amounts) => {
                let new = |(dim, amounts): (&Dim, (i64, i64))| match (dim, amounts) {
                    (dim, (0, 0)) => Ok(dim.clone()),
                    (Dim::Known(extent), amounts) => padded(*extent, amounts).map(Dim::Known),
                    _ => Ok(Dim::Unknown),
                };
                dims.iter().zip(amounts).map(new).collect::<Result<_, _>>()?
            }
        };
        Ok(vec![Some(TensorType::new(ty.dtype, dims))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let pads = match &self.pads {
            Some(pads) => pads.clone(),
            None => required(inputs, 1)?.to_i64()?,
        };
        let axes = slots::optional(inputs, 3).map(Array::to_i64).transpose()?;
        let amounts = Self::amounts(&pads, axes.as_deref(), x.rank())?;
        if self.mode == PadMode::Constant {
            let value = match (&self.pads, slots::optional(inputs, 2)) {
                (Some(_), _) => Some(scalar(self.value, x.dtype())?),
                (None, value) => value.cloned(),
            };
            return Ok(vec![fill_around(x, &amounts, value.as_ref())?]);
        }
        let mut y = x.clone();
        for (axis, amounts) in amounts.into_iter().enumerate().filter(|(_, amounts)| *amounts != (0, 0)) {
            y = take_array(&y, axis, &self.rows(x.shape()[axis], amounts)?)?;
        }
        Ok(vec![y])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Pad {
    fn backward(&self, run: &Run) -> Gradients {
        // The padding counts as element -1, which is none.
        let mut inputs = run.inputs.to_vec();
        inputs.resize(inputs.len().max(3), None);
        inputs[2] = Some(Array::scalar(-1i64));
        let op = match &self.pads {
            None => self.clone(),
            Some(pads) => {
                inputs[1] = Some(Array::vector(pads.clone()));
                Self { pads: None, ..self.clone() }
            }
        };
        moved(&op, &Run { inputs: &inputs, ..*run }, &[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pad(mode: PadMode, x: &[i32], before: i64, after: i64) -> Result<Vec<i32>, Fault> {
        let op = Pad { mode, pads: None, value: 0.0, inputs: 3 };
        let amounts = Some(Array::vector(vec![before, after]));
        let out = op.float(&[Some(Array::vector(x.to_vec())), amounts, Some(Array::scalar(9i32))])?;
        Ok(out[0].slice::<i32>()?.to_vec())
    }

    #[test]
    fn every_mode() {
        let x = [1, 2, 3];
        assert_eq!(pad(PadMode::Constant, &x, 2, 1).unwrap(), [9, 9, 1, 2, 3, 9]);
        assert_eq!(pad(PadMode::Edge, &x, 2, 1).unwrap(), [1, 1, 1, 2, 3, 3]);
        assert_eq!(pad(PadMode::Reflect, &x, 2, 1).unwrap(), [3, 2, 1, 2, 3, 2]);
        assert_eq!(pad(PadMode::Reflect, &x, 0, 5).unwrap(), [1, 2, 3, 2, 1, 2, 3, 2]);
        assert_eq!(pad(PadMode::Wrap, &x, 2, 4).unwrap(), [2, 3, 1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn negative_amounts_cut() {
        let x = [1, 2, 3, 4];
        assert_eq!(pad(PadMode::Constant, &x, -1, 1).unwrap(), [2, 3, 4, 9]);
        assert_eq!(pad(PadMode::Reflect, &x, -2, 1).unwrap(), [3, 4, 3]);
        assert!((pad(PadMode::Constant, &x, -4, 0).unwrap()).is_empty());
        assert_eq!(pad(PadMode::Constant, &x, -4, 1).unwrap(), [9]);
        assert!(pad(PadMode::Edge, &x, -4, 1).is_err());
    }

    #[test]
    fn amounts_that_cannot_be() {
        for mode in [PadMode::Constant, PadMode::Edge, PadMode::Reflect, PadMode::Wrap] {
            assert!(pad(mode, &[1, 2], -2, -1).is_err());
            assert!(pad(mode, &[1, 2], i64::MAX, i64::MAX).is_err());
            assert!(pad(mode, &[1, 2], i64::MIN, i64::MAX).is_err());
        }
        assert!(Pad::amounts(&[1, 1], Some(&[0, 1]), 2).is_err());
        assert!(Pad::amounts(&[1, 1, 1, 1], Some(&[0, -2]), 2).is_err());
    }

    #[test]
    fn backend_cases() {
        crate::ops::backend_tests::run("pad");
    }
}
