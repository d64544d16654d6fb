//! The type that an operator on real numbers computes in: `f64` for itself, `f32` for the rest.

use half::{bf16, f16};

use crate::error::Fault;
use crate::ir::{Array, DType, Element, Nd};
use crate::kernels;
use crate::kernels::gemm::Mat;

/// A type that operators compute in: `f32` (also for the 16-bit types) or `f64`.
pub trait Real: kernels::real::Real + Element {
    /// The elements of a numeric array in this type.
    fn read(array: &Array) -> Result<Nd<Self>, Fault>;
    /// An array of this shape.
    fn array(shape: &[usize], elements: Vec<Self>) -> Result<Array, Fault>;
}

impl Real for f32 {
    fn read(array: &Array) -> Result<Nd<f32>, Fault> {
        array.to_f32()
    }
    fn array(shape: &[usize], elements: Vec<f32>) -> Result<Array, Fault> {
        Array::new(shape, elements)
    }
}

impl Real for f64 {
    fn read(array: &Array) -> Result<Nd<f64>, Fault> {
        match array {
            Array::F64(a) => Ok(a.clone()),
            other => Ok(other.to_f32()?.map(|&v| v.into()).into_shared()),
        }
    }
    fn array(shape: &[usize], elements: Vec<f64>) -> Result<Array, Fault> {
        Array::new(shape, elements)
    }
}

/// The elements of an array that is known to be contiguous.
pub fn elements<T>(array: &Nd<T>) -> Result<&[T], Fault> {
    array.as_slice().ok_or_else(|| "array is not contiguous".into())
}

/// What is to be added to a result of this shape, whose last axis are the columns: the same row to all, or a row to
/// each. None if it is another.
pub fn added<'a>(added: &'a Array, shape: &[usize], columns: usize) -> Option<Mat<'a, f32>> {
    let data = added.get::<f32>()?.as_slice()?;
    let row = added.rank() <= shape.len() && added.len() == columns && added.shape().last() == shape.last();
    match added.shape() == shape {
        true => Some(Mat::rows(data, columns)),
        false => row.then_some(Mat { data, row: 0, col: 1 }),
    }
}

/// Rounds an `f32` result to the 16-bit type of the operands; other arrays stay as they are.
pub fn rounded(array: Array, dtype: DType) -> Array {
    match (&array, dtype) {
        (Array::F32(a), DType::F16) => a.map(|&v| f16::from_f32(v)).into(),
        (Array::F32(a), DType::BF16) => a.map(|&v| bf16::from_f32(v)).into(),
        (Array::F32(a), DType::F64) => a.map(|&v| f64::from(v)).into(),
        (Array::F64(a), DType::F32) => a.map(|&v| v as f32).into(),
        _ => array,
    }
}

/// Evaluates `$body` (a `Result<Vec<Array>, Fault>`) with `$T` as the type to compute in for floating-point operands
/// of type `$dtype`, and rounds the results back to it.
macro_rules! in_reals {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            crate::ir::DType::F64 => {
                type $T = f64;
                $body
            }
            dtype if dtype.is_float() => {
                type $T = f32;
                let outputs: Result<Vec<crate::ir::Array>, crate::error::Fault> = $body;
                outputs.map(|all| all.into_iter().map(|y| crate::ops::operand::rounded(y, dtype)).collect())
            }
            other => Err(format!("expected floating-point elements, found {other}").into()),
        }
    };
}
pub(crate) use in_reals;

/// Runs one operator on whole inputs.
#[cfg(test)]
pub fn run(
    name: &str,
    version: i64,
    attributes: &[crate::ir::Attribute],
    inputs: &[Option<Array>],
    outputs: usize,
) -> Result<Vec<Array>, Fault> {
    let def = super::find(super::ONNX, name, version).expect("a known operator");
    let mut attrs = super::Attrs::new(attributes, version, inputs.len(), outputs);
    let op = (def.parse)(&mut attrs)?;
    assert!(attrs.unread().is_empty(), "unread: {:?}", attrs.unread());
    let found = op.float(inputs)?;
    let types: Vec<crate::ir::TensorType> = inputs.iter().flatten().map(Array::tensor_type).collect();
    let tensors: Vec<_> = inputs.iter().flatten().map(crate::ir::Tensor::from_array).collect();
    let mut known = types.iter().zip(&tensors).map(|(ty, t)| super::Fact { ty, constant: Some(t) });
    let facts: Vec<_> = inputs.iter().map(|i| i.as_ref().and_then(|_| known.next())).collect();
    for (inferred, array) in op.infer(&facts)?.into_iter().zip(&found) {
        assert_eq!(inferred, Some(array.tensor_type()), "inferred type of {name}");
    }
    Ok(found)
}
