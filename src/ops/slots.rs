//! Reading an operator's inputs by slot, and the axes and extents that they hold.

use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Dim, Element, Fact, Nd, TensorType, element_count};

/// The value in a slot that must be filled.
pub fn required(inputs: &[Option<Array>], slot: usize) -> Result<&Array, Fault> {
    optional(inputs, slot).ok_or_else(|| format!("input {slot} is missing").into())
}

/// The value in a slot that may be empty.
pub fn optional(inputs: &[Option<Array>], slot: usize) -> Option<&Array> {
    inputs.get(slot).and_then(Option::as_ref)
}

/// The elements of an array that must have the element type of another.
pub fn like<'a, T: Element>(_model: &Nd<T>, array: &'a Array) -> Result<&'a [T], Fault> {
    array.slice()
}

/// Numbers of any type as integers; fractions are cut off.
pub fn integers(array: &Array) -> Result<Vec<i64>, Fault> {
    match array {
        Array::I32(_) | Array::I64(_) => array.to_i64(),
        other => Ok(other.to_f32()?.iter().map(|&v| v as i64).collect()),
    }
}

/// Indices into an axis, which may count from the end.
pub fn indices(array: &Array, extent: usize) -> Result<Vec<usize>, Fault> {
    let index = |i: i64| {
        usize::try_from(if i < 0 { i + extent as i64 } else { i })
            .ok()
            .filter(|&i| i < extent)
            .ok_or_else(|| Fault::new(format!("index {i} is outside an axis of {extent}")))
    };
    array.to_i64()?.into_iter().map(index).collect()
}

/// What is known of the type in a slot.
pub fn known<'a>(inputs: &[Option<Fact<'a>>], slot: usize) -> Option<&'a TensorType> {
    inputs.get(slot).copied().flatten().map(|fact| fact.ty)
}

/// The dimensions in a slot, if the rank is known.
pub fn dims<'a>(inputs: &[Option<Fact<'a>>], slot: usize) -> Option<&'a [Dim]> {
    known(inputs, slot).and_then(|ty| ty.dims.as_deref())
}

/// The constant in a slot.
pub fn constant(inputs: &[Option<Fact>], slot: usize) -> Result<Option<Array>, Fault> {
    inputs.get(slot).copied().flatten().and_then(|fact| fact.constant).map(|t| t.array()).transpose()
}

/// The constant integers in a slot.
pub fn constant_ints(inputs: &[Option<Fact>], slot: usize) -> Result<Option<Vec<i64>>, Fault> {
    constant(inputs, slot)?.map(|a| a.to_i64()).transpose()
}

/// An axis that may count from the end, as an index below `rank`.
pub fn axis(axis: i64, rank: usize) -> Result<usize, Fault> {
    usize::try_from(if axis < 0 { axis + rank as i64 } else { axis })
        .ok()
        .filter(|&a| a < rank)
        .ok_or_else(|| format!("axis {axis} is not one of {rank} axes").into())
}

/// Axes as indices below `rank`, in the order given; an axis may be named once.
pub fn axes(list: &[i64], rank: usize) -> Result<Vec<usize>, Fault> {
    let mut seen = vec![false; rank];
    let named = list.iter().map(|&a| axis(a, rank)).collect::<Result<Vec<_>, _>>()?;
    for &a in &named {
        if std::mem::replace(&mut seen[a], true) {
            fail!("axis {a} is named twice");
        }
    }
    Ok(named)
}

/// How many elements lie before, along and after an axis. The shape must be an array's and have the axis.
pub fn around(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// Integers as the extents of a shape that can exist.
pub fn extents(list: &[i64]) -> Result<Vec<usize>, Fault> {
    let shape = list
        .iter()
        .map(|&d| usize::try_from(d).map_err(|_| Fault::new(format!("the extent {d} is negative"))))
        .collect::<Result<Vec<_>, _>>()?;
    element_count(&shape)?;
    Ok(shape)
}

/// As many unknown dimensions as the one-dimensional input in a slot has elements.
pub fn unknown_dims(inputs: &[Option<Fact>], slot: usize) -> Option<Vec<Dim>> {
    match dims(inputs, slot)? {
        // a rank that no model has is not worth an allocation
        [Dim::Known(rank)] if *rank <= 64 => Some(vec![Dim::Unknown; *rank]),
        _ => None,
    }
}
