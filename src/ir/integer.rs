//! Operators on integers: what stands between DequantizeLinear and QuantizeLinear, seen as one unit.
//!
//! A [`Unit`] says how the integers of an operator's inputs and outputs stand for real numbers. From it an operator
//! makes a [`Kernel`] that computes integers from integers, with whatever depends on constants done once.

use super::affine::QuantParams;
use super::{Array, DType};
use crate::error::Fault;

/// How the integers of a tensor stand for real numbers: `(q - zero_point) * scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scales {
    /// Storage type.
    pub dtype: DType,
    /// One scale for the whole tensor, or one for each index along `axis`.
    pub scales: Vec<f32>,
    /// As many zero points.
    pub zero_points: Vec<i32>,
    /// The axis that the scales count along; none if one serves all.
    pub axis: Option<i64>,
}

impl Scales {
    /// The parameters if one scale and zero point serve the whole tensor.
    pub fn whole(&self) -> Option<QuantParams> {
        match (self.axis, self.scales.as_slice(), self.zero_points.as_slice()) {
            (None, &[scale], &[zero_point]) => Some(QuantParams { scale, zero_point, dtype: self.dtype }),
            _ => None,
        }
    }

    /// The zero point if all are the same.
    pub fn zero_point(&self) -> Option<i32> {
        let (&first, others) = self.zero_points.split_first()?;
        others.iter().all(|&z| z == first).then_some(first)
    }

    /// The scales if they count along this axis of a tensor of this rank, or the one for all.
    pub fn along(&self, axis: usize, rank: usize) -> Option<&[f32]> {
        let own = self.axis.map(|a| if a < 0 { a + rank as i64 } else { a });
        own.is_none_or(|own| own == axis as i64).then_some(&self.scales)
    }
}

/// An input of a [`Unit`].
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// Integers, and their values if they are known.
    Integer(Scales, Option<Array>),
    /// Not quantized: shapes, indices, conditions; and the value if it is known.
    Plain(Option<Array>),
}

/// An operator with its quantized inputs and outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// The inputs by slot.
    pub inputs: Vec<Option<Operand>>,
    /// How each output is to be quantized; none: real numbers are wanted.
    pub outputs: Vec<Option<QuantParams>>,
}

impl Unit {
    /// Scales and, if known, values of a quantized input.
    pub fn integer(&self, slot: usize) -> Option<(&Scales, Option<&Array>)> {
        match self.inputs.get(slot)?.as_ref()? {
            Operand::Integer(scales, constant) => Some((scales, constant.as_ref())),
            Operand::Plain(_) => None,
        }
    }

    /// The parameters of an input that is quantized as a whole.
    pub fn whole(&self, slot: usize) -> Option<QuantParams> {
        self.integer(slot)?.0.whole()
    }

    /// The parameters of an input and the only output, both of the same 8-bit type.
    pub fn pair(&self) -> Option<(QuantParams, QuantParams)> {
        let [Some(y)] = self.outputs.as_slice() else { return None };
        let x = self.whole(0).filter(|x| x.dtype == y.dtype && is_byte(x.dtype))?;
        Some((x, *y))
    }

    /// Is the slot empty or beyond the last?
    pub fn lacks(&self, slot: usize) -> bool {
        self.inputs.get(slot).is_none_or(Option::is_none)
    }
}

/// Is it an 8-bit integer type?
pub fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}

/// An operator ready to compute on integers.
pub trait Kernel: Send + Sync {
    /// Computes the outputs. Inputs come by slot, those of [`packed`](Self::packed) need not.
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault>;

    /// The slots of constants that the kernel keeps in a form of its own.
    fn packed(&self) -> &[usize] {
        &[]
    }
}
