//! Does an array fit the input that it is meant for?

use std::fmt::Debug;

use super::InputSpec;
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, Nd, TensorType};
use crate::kernels::finish;

/// The array as the input takes it: a missing batch axis is added, `float64` given for `float32` is converted (and
/// `warn` called). Any other difference of type or shape, and a value that is not finite, is a fault.
pub fn accept(spec: &InputSpec, array: Array, warn: impl FnOnce(String)) -> Result<Array, Fault> {
    let array = accept_any_value(spec, array, warn)?;
    check_finite(&array)?;
    Ok(array)
}

/// The same for values that need not be finite.
pub fn accept_any_value(spec: &InputSpec, array: Array, warn: impl FnOnce(String)) -> Result<Array, Fault> {
    let array = match (spec.ty.dtype, array.dtype()) {
        (wanted, found) if wanted == found => array,
        (DType::F32, DType::F64) => {
            warn(format!("input `{}`: the samples are float64 and were converted to float32", spec.name));
            Array::F32(array.to_f32()?)
        }
        (wanted, found) => {
            let fault =
                format!("the model takes {}, the sample holds {}", numpy_name(wanted), numpy_name(found));
            return Err(
                Fault::new(fault).hint(format!("convert it with .astype(\"{}\")", numpy_name(wanted)))
            );
        }
    };
    with_batch_axis(&spec.ty, array)
}

fn fits(dims: &[Dim], shape: &[usize]) -> bool {
    dims.len() == shape.len() && dims.iter().zip(shape).all(|(d, &n)| d.known().is_none_or(|d| d == n))
}

fn with_batch_axis(ty: &TensorType, array: Array) -> Result<Array, Fault> {
    let Some(dims) = &ty.dims else { return Ok(array) };
    if fits(dims, array.shape()) {
        return Ok(array);
    }
    if let [Dim::Known(1) | Dim::Symbol(_) | Dim::Unknown, rest @ ..] = dims.as_slice()
        && fits(rest, array.shape())
    {
        return array.reshaped(&[&[1], array.shape()].concat());
    }
    let fault = Fault::new(format!("the model takes {ty}, the sample holds {}", array.tensor_type()));
    let other_order = [[0, 2, 3, 1], [0, 3, 1, 2]]
        .into_iter()
        .find(|order| array.transposed(order).is_ok_and(|turned| fits(dims, turned.shape())));
    Err(match other_order {
        Some(order) => fault.hint(format!("the channels lie on another axis; transpose with {order:?}")),
        None => fault,
    })
}

fn check_finite(array: &Array) -> Result<(), Fault> {
    fn first<T: Debug>(a: &Nd<T>, bad: impl Fn(&T) -> bool) -> Option<(usize, String)> {
        a.iter().enumerate().find(|(_, v)| bad(v)).map(|(index, v)| (index, format!("{v:?}")))
    }
    let bad = match array {
        // Mostly nothing is, which one quick pass tells.
        Array::F32(a) if a.as_slice().is_some_and(|values| finish::extent(values).plain) => None,
        Array::F32(a) => first(a, |v| !v.is_finite()),
        Array::F64(a) => first(a, |v| !v.is_finite()),
        Array::F16(a) => first(a, |v| !v.is_finite()),
        Array::BF16(a) => first(a, |v| !v.is_finite()),
        _ => None,
    };
    match bad {
        Some((index, value)) => fail!("element {index} of {}, row by row, is {value}", array.tensor_type()),
        None => Ok(()),
    }
}

/// How many samples lie behind each other along the first axis of arrays of these shapes. A file of many samples for a
/// model of fixed batch size is split; all inputs must agree on the number, or have exactly the model's shape.
pub fn samples_in(inputs: &[InputSpec], shapes: &[Vec<usize>]) -> usize {
    let mut counts =
        inputs.iter().zip(shapes).map(|(input, shape)| batches(&input.ty, shape)).filter(|&n| n > 1);
    match counts.next() {
        Some(first) if counts.all(|n| n == first) => first,
        _ => 1,
    }
}

/// The length of the first axis in units of the fixed batch size, 1 if the shapes differ elsewhere.
pub fn batches(ty: &TensorType, shape: &[usize]) -> usize {
    match (ty.dims.as_deref(), shape) {
        (Some([Dim::Known(batch), dims @ ..]), [n, rest @ ..])
            if *batch > 0 && n % batch == 0 && fits(dims, rest) =>
        {
            n / batch
        }
        _ => 1,
    }
}

/// The name of a type in NumPy.
fn numpy_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::F64 => "float64",
        other => other.name(),
    }
}
