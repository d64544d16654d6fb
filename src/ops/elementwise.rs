//! What the elementwise families have in common: operands, broadcast types and dispatch over element types.

use half::{bf16, f16};

use super::slots::known;
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, Fact, TensorType};
use crate::kernels::math::{Real, map};
use crate::kernels::number::Number;

/// One output of the type of the first input.
pub(super) fn like_first(inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
    Ok(vec![known(inputs, 0).cloned()])
}

/// The dimensions that operands of these types broadcast to; `None` if a rank is unknown.
pub(super) fn broadcast_dims(inputs: &[Option<Fact>]) -> Result<Option<Vec<Dim>>, Fault> {
    let mut out: Vec<Dim> = Vec::new();
    for fact in inputs {
        let Some(dims) = fact.and_then(|f| f.ty.dims.as_ref()) else { return Ok(None) };
        if dims.len() > out.len() {
            out.splice(0..0, std::iter::repeat_n(Dim::Known(1), dims.len() - out.len()));
        }
        let skip = out.len() - dims.len();
        for (a, b) in out.iter_mut().skip(skip).zip(dims) {
            *a = broadcast_dim(a, b)?;
        }
    }
    Ok(Some(out))
}

fn broadcast_dim(a: &Dim, b: &Dim) -> Result<Dim, Fault> {
    Ok(match (a, b) {
        (a, b) if a == b => a.clone(),
        (Dim::Known(1), other) | (other, Dim::Known(1)) => other.clone(),
        (Dim::Known(a), Dim::Known(b)) => fail!("extents {a} and {b} do not broadcast"),
        (Dim::Known(extent), _) | (_, Dim::Known(extent)) => Dim::Known(*extent),
        _ => Dim::Unknown,
    })
}

/// One output of element type `dtype` and the shape that the inputs broadcast to.
pub(super) fn broadcast_type(
    dtype: Option<DType>,
    inputs: &[Option<Fact>],
) -> Result<Vec<Option<TensorType>>, Fault> {
    let dims = broadcast_dims(inputs)?;
    Ok(vec![dtype.map(|dtype| TensorType { dtype, dims })])
}

/// The element type of the first input of which it is known.
pub(super) fn first_dtype(inputs: &[Option<Fact>]) -> Option<DType> {
    inputs.iter().flatten().map(|f| f.ty.dtype).next()
}

/// A function on slices of real numbers, written once for `f32` and `f64`.
pub(super) trait RealMap {
    /// The function of every element.
    fn map<T: Real>(&self, x: &[T]) -> Vec<T>;
}

/// A real function of an array of any floating-point type; half floats are computed in `f32`.
pub(super) fn real(function: &impl RealMap, x: &Array) -> Result<Array, Fault> {
    let shape = x.shape();
    match x {
        Array::F32(_) => Array::new(shape, function.map::<f32>(x.slice()?)),
        Array::F64(_) => Array::new(shape, function.map::<f64>(x.slice()?)),
        Array::F16(_) => Array::new(shape, map(&function.map(&map(x.slice()?, f16::to_f32)), f16::from_f32)),
        Array::BF16(_) => {
            Array::new(shape, map(&function.map(&map(x.slice()?, bf16::to_f32)), bf16::from_f32))
        }
        other => fail!("not defined for {}", other.dtype()),
    }
}

/// A real function of numbers of any type; integers are rounded towards zero.
pub(super) fn through_reals<T: Number>(function: &impl RealMap, x: &[T]) -> Vec<T> {
    map(&function.map(&map(x, Number::to_f64)), T::from_f64)
}

/// Runs `$body`, which gives a `Result`, with `$a` bound to the elements if they are integers.
macro_rules! integers {
    ($array:expr, $a:ident => $body:expr) => {
        $crate::ops::elementwise::dispatch!($array, $a => $body; I8, I16, I32, I64, U8, U16, U32, U64)
    };
}

/// Runs `$body`, which gives a `Result`, with `$a` bound to the elements if they are numbers.
macro_rules! numbers {
    ($array:expr, $a:ident => $body:expr) => {
        $crate::ops::elementwise::dispatch!(
            $array, $a => $body; F32, F64, F16, BF16, I8, I16, I32, I64, U8, U16, U32, U64
        )
    };
}

macro_rules! dispatch {
    ($array:expr, $a:ident => $body:expr; $($variant:ident),*) => {
        match $array {
            $($crate::ir::Array::$variant(array) => {
                let $a = array.as_slice().ok_or("array is not contiguous")?;
                $body
            })*
            other => Err($crate::error::Fault::new(format!("not defined for {}", other.dtype()))),
        }
    };
}

pub(super) use {dispatch, integers, numbers};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_dimensions_broadcast() {
        let n = || Dim::Symbol("n".into());
        let a = TensorType::new(DType::F32, vec![n(), Dim::Known(1), n(), Dim::Unknown]);
        let b = TensorType::new(DType::F32, vec![Dim::Known(3), Dim::Symbol("m".into()), Dim::Known(1)]);
        let facts = [&a, &b].map(|ty| Some(Fact { ty, constant: None }));
        let dims = broadcast_dims(&facts).unwrap().unwrap();
        assert_eq!(dims, [n(), Dim::Known(3), Dim::Unknown, Dim::Unknown]);
        let c = TensorType::known(DType::F32, &[2, 1, 1]);
        let facts = [&b, &c].map(|ty| Some(Fact { ty, constant: None }));
        assert!(broadcast_dims(&facts).is_err());
        assert_eq!(broadcast_dims(&[facts[0], None]).unwrap(), None);
    }
}
