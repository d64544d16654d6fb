//! Room for results: what an operator is about to allocate follows from shapes, before it is allocated.

use crate::budget;
use crate::error::Fault;
use crate::ir::{Array, DType, Datum, Fact, Op, Tensor, TensorType};
use crate::kernels::buffer;

/// Inputs of so many elements may be a shape, a number of repeats or bounds.
const SHAPE: usize = 64;

/// The bytes of a value of this type; `None` if its shape is not known.
pub fn bytes_of_type(ty: &TensorType) -> Option<u64> {
    let count = ty.shape()?.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64));
    Some(count.and_then(|n| n.checked_mul(bits(ty.dtype))).map_or(u64::MAX, |bits| bits.div_ceil(8)))
}

fn bits(dtype: DType) -> u64 {
    (dtype.bits() as u64).max(4)
}

/// The bytes of a value.
pub fn bytes_of(value: &Datum) -> u64 {
    let array = |a: &Array| (a.len() as u64 * bits(a.dtype())).div_ceil(8);
    match value {
        Datum::Tensor(a) => array(a),
        Datum::Sequence(all) => all.iter().map(array).sum(),
        _ => 0,
    }
}

/// The bytes of all outputs of an operator for these inputs, as far as the shapes tell.
pub fn needed(op: &dyn Op, inputs: &[Option<&Array>]) -> u64 {
    let types: Vec<Option<TensorType>> = inputs.iter().map(|i| i.map(Array::tensor_type)).collect();
    let values: Vec<Option<Tensor>> =
        inputs.iter().map(|i| i.filter(|a| a.len() <= SHAPE).map(Tensor::from_array)).collect();
    let facts: Vec<Option<Fact>> = types
        .iter()
        .zip(&values)
        .map(|(ty, value)| Some(Fact { ty: ty.as_ref()?, constant: value.as_ref() }))
        .collect();
    // Inputs that cannot be right are found by whoever computes.
    let types = op.infer(&facts).unwrap_or_default();
    types.iter().flatten().filter_map(bytes_of_type).fold(0, u64::saturating_add)
}

/// Is there room for the results? `size` is what they will have, if that is known.
pub fn check(op: &dyn Op, inputs: &[Option<Array>], size: Option<u64>) -> Result<(), Fault> {
    let inputs = || inputs.iter().map(Option::as_ref).collect::<Vec<_>>();
    budget::fits(size.unwrap_or_else(|| needed(op, &inputs())), budget::room())
}

/// Keeps the elements of a value that nobody reads any more as room for the next result.
pub fn reuse(value: Datum) {
    if let Datum::Tensor(Array::F32(array)) = value
        && let Ok(array) = array.try_into_owned_nocopy()
    {
        buffer::give(array.into_raw_vec_and_offset().0);
    }
}

/// Computes what there is room for. `size` is what the results will have, if that is known.
pub fn compute(op: &dyn Op, inputs: Vec<Option<Datum>>, size: Option<u64>) -> Result<Vec<Datum>, Fault> {
    let tensor = |value: &Option<Datum>| match value {
        Some(Datum::Tensor(array)) => Some(array.clone()),
        _ => None,
    };
    let arrays = || inputs.iter().map(tensor).collect::<Vec<_>>();
    check(op, &if size.is_some() { Vec::new() } else { arrays() }, size)?;
    op.evaluate(inputs)
}
