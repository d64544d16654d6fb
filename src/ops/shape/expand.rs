//! Expand: a tensor broadcast to a shape.

use super::like;
use crate::error::Fault;
use crate::ir::{Array, Dim, Fact, Gradient, Op, Rule, TensorType};
use crate::kernels::strided::{View, read_array};
use crate::ops::slots::{self, constant_ints, known, required};

/// `Expand`: broadcasts to the shape in the second input, both ways: an extent of 1 there keeps the input's.
#[derive(Debug, Clone)]
pub struct Expand;

impl Expand {
    pub(super) fn target(from: &[Dim], to: &[usize]) -> Result<Vec<Dim>, Fault> {
        let rank = from.len().max(to.len());
        let aligned = |axis: usize, len: usize| (axis + len).checked_sub(rank);
        (0..rank)
            .map(|axis| {
                let old = aligned(axis, from.len()).map_or(Dim::Known(1), |i| from[i].clone());
                let new = aligned(axis, to.len()).map_or(1, |i| to[i]);
                match old {
                    old if new == 1 => Ok(old),
                    Dim::Known(old) if old != 1 && old != new => {
                        Err(format!("an axis of {old} does not broadcast to {new}").into())
                    }
                    _ => Ok(Dim::Known(new)),
                }
            })
            .collect()
    }
}

impl Op for Expand {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = match (constant_ints(inputs, 1)?, &ty.dims) {
            (Some(to), Some(from)) => Some(Self::target(from, &slots::extents(&to)?)?),
            (None, Some(from)) => {
                slots::unknown_dims(inputs, 1).map(|to| vec![Dim::Unknown; to.len().max(from.len())])
            }
            _ => None,
        };
        like(ty, dims)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let to = slots::extents(&required(inputs, 1)?.to_i64()?)?;
        let dims = Self::target(&x.tensor_type().dims.unwrap_or_default(), &to)?;
        let shape: Vec<usize> = dims.iter().filter_map(Dim::known).collect();
        Ok(vec![read_array(x, &View::new(x.shape())?.broadcast(&shape)?)?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}
