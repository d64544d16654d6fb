//! Sequences of tensors and optional values: making them, taking them apart, asking about them.
//!
//! These operators exchange [`Datum`] values; an optional value that is there is that value itself.
//! See <https://onnx.ai/onnx/operators/onnx__SequenceConstruct.html>.

use std::sync::Arc;

use super::join::Concat;
use super::slots::{self, extents};
use super::{Attrs, Control, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Datum};
use crate::kernels::strided::take_array;

type Parsed = Result<Arc<dyn Op>, Fault>;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "SequenceConstruct", since: 11, parse: |_| Ok(Arc::new(Sequences::Construct)) },
    OpDef { domain: ONNX, name: "SequenceEmpty", since: 11, parse: empty },
    OpDef { domain: ONNX, name: "SequenceInsert", since: 11, parse: |_| Ok(Arc::new(Sequences::Insert)) },
    OpDef { domain: ONNX, name: "SequenceErase", since: 11, parse: |_| Ok(Arc::new(Sequences::Erase)) },
    OpDef { domain: ONNX, name: "SequenceAt", since: 11, parse: |_| Ok(Arc::new(Sequences::At)) },
    OpDef { domain: ONNX, name: "SequenceLength", since: 11, parse: |_| Ok(Arc::new(Sequences::Length)) },
    OpDef { domain: ONNX, name: "SplitToSequence", since: 11, parse: split },
    OpDef { domain: ONNX, name: "ConcatFromSequence", since: 11, parse: concat },
    OpDef { domain: ONNX, name: "SequenceMap", since: 17, parse: map },
    OpDef { domain: ONNX, name: "Optional", since: 15, parse: optional },
    OpDef { domain: ONNX, name: "OptionalHasElement", since: 15, parse: |_| Ok(Arc::new(Sequences::Has)) },
    OpDef { domain: ONNX, name: "OptionalGetElement", since: 15, parse: |_| Ok(Arc::new(Sequences::Get)) },
];

/// An operator on sequences or optional values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sequences {
    /// The inputs in order.
    Construct,
    /// Nothing.
    Empty,
    /// One more tensor, before a position or at the end.
    Insert,
    /// Without the tensor at a position, or without the last.
    Erase,
    /// The tensor at a position.
    At,
    /// The number of tensors.
    Length,
    /// A tensor cut along an axis.
    Split {
        /// The axis that is cut.
        axis: i64,
        /// Does a slice of extent 1 keep the axis? Only without given extents.
        keepdims: bool,
    },
    /// The tensors side by side.
    Concat {
        /// The axis along which they lie.
        axis: i64,
        /// Is it a new one?
        new_axis: bool,
    },
    /// A value that may be there.
    Optional,
    /// Is the value there?
    Has,
    /// The value, which must be there.
    Get,
}

fn empty(attrs: &mut Attrs) -> Parsed {
    attrs.opt_int("dtype")?; // a sequence of nothing has no elements to have a type
    Ok(Arc::new(Sequences::Empty))
}

fn optional(attrs: &mut Attrs) -> Parsed {
    attrs.note("type")?;
    Ok(Arc::new(Sequences::Optional))
}

fn split(attrs: &mut Attrs) -> Parsed {
    Ok(Arc::new(Sequences::Split { axis: attrs.int("axis", 0)?, keepdims: attrs.flag("keepdims", true)? }))
}

fn concat(attrs: &mut Attrs) -> Parsed {
    let axis = attrs.opt_int("axis")?.ok_or("attribute axis is missing")?;
    Ok(Arc::new(Sequences::Concat { axis, new_axis: attrs.flag("new_axis", false)? }))
}

fn map(attrs: &mut Attrs) -> Parsed {
    attrs.body("body")?;
    Ok(Arc::new(super::control::Flow(Control::Map)))
}

/// The value in a slot that must be filled.
fn required(inputs: &[Option<Datum>], slot: usize) -> Result<&Datum, Fault> {
    inputs.get(slot).and_then(Option::as_ref).ok_or_else(|| format!("input {slot} is missing").into())
}

/// The position in a slot, among `count`; `default` without one.
fn position(inputs: &[Option<Datum>], slot: usize, count: usize, default: usize) -> Result<usize, Fault> {
    let Some(value) = inputs.get(slot).and_then(Option::as_ref) else { return Ok(default) };
    match slots::indices(value.as_tensor()?, count)?.as_slice() {
        [index] => Ok(*index),
        other => fail!("{} positions instead of one", other.len()),
    }
}

impl Op for Sequences {
    fn float(&self, _: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        fail!("an operator on sequences does not compute on tensors alone")
    }

    fn evaluate(&self, inputs: Vec<Option<Datum>>) -> Result<Vec<Datum>, Fault> {
        let sequence = |slot| required(&inputs, slot).and_then(Datum::as_sequence);
        Ok(vec![match self {
            Self::Construct => {
                let all = (0..inputs.len()).map(|slot| required(&inputs, slot)?.as_tensor().cloned());
                Datum::Sequence(all.collect::<Result<_, _>>()?)
            }
            Self::Empty => Datum::Sequence(Vec::new()),
            Self::Insert => {
                let mut all = sequence(0)?.to_vec();
                // A negative position counts from the last tensor, one equal to their number adds to the end.
                let at = match inputs.get(2).and_then(Option::as_ref).map(|p| p.as_tensor()?.to_i64()).transpose()? {
                    None => all.len(),
                    Some(p) if p == [all.len() as i64] => all.len(),
                    Some(_) => position(&inputs, 2, all.len(), 0)?,
                };
                all.insert(at, required(&inputs, 1)?.as_tensor()?.clone());
                Datum::Sequence(all)
            }
            Self::Erase => {
                let mut all = sequence(0)?.to_vec();
                let Some(last) = all.len().checked_sub(1) else { fail!("the sequence is empty") };
                let at = position(&inputs, 1, all.len(), last)?;
                all.remove(at);
                Datum::Sequence(all)
            }
            Self::At => {
                let all = sequence(0)?;
                let at = position(&inputs, 1, all.len(), 0)?;
                Datum::Tensor(all.get(at).cloned().ok_or("the sequence is empty")?)
            }
            Self::Length => Datum::Tensor(Array::scalar(sequence(0)?.len() as i64)),
            Self::Split { axis, keepdims } => {
                let lengths = inputs.get(1).and_then(Option::as_ref).map(Datum::as_tensor).transpose()?;
                cut(required(&inputs, 0)?.as_tensor()?, lengths, *axis, *keepdims)?
            }
            Self::Concat { axis, new_axis } => Datum::Tensor(join(sequence(0)?, *axis, *new_axis)?),
            Self::Optional => inputs.into_iter().next().flatten().unwrap_or(Datum::Absent),
            Self::Has => {
                let there = !matches!(inputs.first(), None | Some(None | Some(Datum::Absent)));
                Datum::Tensor(Array::scalar(there))
            }
            Self::Get => match required(&inputs, 0)? {
                Datum::Absent => fail!("the optional value is not there"),
                value => value.clone(),
            },
        }])
    }
}

/// A tensor cut along an axis: into slices of one, of a common extent, or of the extents given.
fn cut(x: &Array, lengths: Option<&Array>, axis: i64, keepdims: bool) -> Result<Datum, Fault> {
    let axis = slots::axis(axis, x.rank())?;
    let extent = x.shape()[axis];
    let lengths = match lengths {
        None => vec![1; extent],
        Some(one) if one.rank() == 0 => {
            let step = extents(&one.to_i64()?)?.first().copied().unwrap_or(0);
            if step == 0 {
                fail!("slices of no extent");
            }
            let rest = extent % step;
            [vec![step; extent / step], if rest > 0 { vec![rest] } else { Vec::new() }].concat()
        }
        Some(all) => extents(&all.to_i64()?)?,
    };
    if lengths.iter().sum::<usize>() != extent {
        fail!("slices of {lengths:?} do not make up an axis of {extent}");
    }
    let squeeze = !keepdims && lengths.iter().all(|&l| l == 1);
    let mut start = 0;
    let parts = lengths.into_iter().map(|length| {
        let part = take_array(x, axis, &(start..start + length).collect::<Vec<_>>())?;
        start += length;
        let mut shape = part.shape().to_vec();
        if squeeze {
            shape.remove(axis);
        }
        part.reshaped(&shape)
    });
    Ok(Datum::Sequence(parts.collect::<Result<_, Fault>>()?))
}

/// The tensors of a sequence side by side along an axis, which may be a new one.
fn join(parts: &[Array], axis: i64, new_axis: bool) -> Result<Array, Fault> {
    let Some(first) = parts.first() else { fail!("an empty sequence has no element type") };
    let axis = slots::axis(axis, first.rank() + usize::from(new_axis))?;
    let widened = |part: &Array| {
        let mut shape = part.shape().to_vec();
        if new_axis {
            shape.insert(axis.min(shape.len()), 1);
        }
        part.reshaped(&shape).map(Some)
    };
    let parts = parts.iter().map(widened).collect::<Result<Vec<_>, _>>()?;
    let joined = Concat { axis: axis as i64 }.float(&parts)?;
    joined.into_iter().next().ok_or_else(|| "nothing was joined".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: Sequences, inputs: Vec<Datum>) -> Result<Datum, Fault> {
        op.evaluate(inputs.into_iter().map(Some).collect()).map(|mut y| y.remove(0))
    }

    fn vector(values: &[i64]) -> Datum {
        Datum::Tensor(Array::vector(values.to_vec()))
    }

    fn scalar(value: i64) -> Datum {
        Datum::Tensor(Array::scalar(value))
    }

    #[test]
    fn sequences_grow_and_shrink() {
        let two = run(Sequences::Construct, vec![vector(&[1]), vector(&[2, 3])]).unwrap();
        let three = run(Sequences::Insert, vec![two.clone(), vector(&[4]), scalar(-1)]).unwrap();
        assert_eq!(run(Sequences::Insert, vec![two.clone(), vector(&[4]), scalar(2)]).unwrap().as_sequence().unwrap()[2].len(), 1);
        assert_eq!(run(Sequences::At, vec![three.clone(), scalar(1)]).unwrap(), vector(&[4]));
        assert_eq!(run(Sequences::Length, vec![three.clone()]).unwrap(), scalar(3));
        assert_eq!(run(Sequences::Erase, vec![three, scalar(1)]).unwrap(), two);
        assert!(run(Sequences::At, vec![two.clone(), scalar(2)]).is_err());
        assert!(run(Sequences::Length, vec![scalar(1)]).is_err());
        assert!(run(Sequences::Erase, vec![Datum::Sequence(Vec::new())]).is_err());
    }

    #[test]
    fn cut_and_joined_again() {
        let x = Array::new(&[2, 5], (0..10).collect::<Vec<i64>>()).unwrap();
        for length in 1..=6 {
            let split = Sequences::Split { axis: -1, keepdims: true };
            let parts = run(split, vec![Datum::Tensor(x.clone()), scalar(length)]).unwrap();
            assert_eq!(parts.as_sequence().unwrap().len(), 5usize.div_ceil(length as usize));
            let concat = Sequences::Concat { axis: 1, new_axis: false };
            assert_eq!(run(concat, vec![parts]).unwrap(), Datum::Tensor(x.clone()));
        }
        let split = Sequences::Split { axis: 0, keepdims: false };
        let rows = run(split, vec![Datum::Tensor(x.clone())]).unwrap();
        assert_eq!(rows.as_sequence().unwrap()[1].shape(), [5]);
        let stack = Sequences::Concat { axis: -2, new_axis: true };
        assert_eq!(run(stack, vec![rows]).unwrap(), Datum::Tensor(x));
    }

    #[test]
    fn optional_values() {
        let absent = Sequences::Optional.evaluate(vec![]).unwrap().remove(0);
        assert_eq!(run(Sequences::Has, vec![absent.clone()]).unwrap(), Datum::Tensor(Array::scalar(false)));
        assert!(run(Sequences::Get, vec![absent]).is_err());
        let there = run(Sequences::Optional, vec![scalar(3)]).unwrap();
        assert_eq!(run(Sequences::Has, vec![there.clone()]).unwrap(), Datum::Tensor(Array::scalar(true)));
        assert_eq!(run(Sequences::Get, vec![there]).unwrap(), scalar(3));
    }
}
