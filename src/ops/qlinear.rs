//! Operators that take integers and their scales as inputs: QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger.
//!
//! See <https://onnx.ai/onnx/operators/onnx__QLinearConv.html> and
//! <https://onnx.ai/onnx/operators/onnx__MatMulInteger.html>.

use std::sync::Arc;

use super::conv::{Conv, Convolution};
use super::gemm::MatMul;
use super::integer;
use super::operand::elements;
use super::quantize::{Dequantize, Quantize};
use super::slots::{known, optional, required};
use super::{Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Operand, Scales, Unit};
use crate::ir::{Array, DType, Nd, TensorType};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "QLinearConv", since: 10, parse: |a| Ok(Arc::new(QLinearConv(Conv::read(a)?))) },
    OpDef { domain: ONNX, name: "QLinearMatMul", since: 10, parse: |_| Ok(Arc::new(QLinearMatMul)) },
    OpDef { domain: ONNX, name: "ConvInteger", since: 10, parse: |a| Ok(Arc::new(ConvInteger(Conv::read(a)?))) },
    OpDef { domain: ONNX, name: "MatMulInteger", since: 10, parse: |_| Ok(Arc::new(MatMulInteger)) },
];

const ALONG_ROWS: Dequantize = Dequantize { axis: 0, block_size: 0, output_dtype: None };
const ALONG_COLUMNS: Dequantize = Dequantize { axis: 1, block_size: 0, output_dtype: None };
const WHOLE: Quantize = Quantize { saturate: true, axis: 1, block_size: 0, output_dtype: None };

/// The operand in slots `first` (integers), `first + 1` (scale) and `first + 2` (zero point).
fn operand(inputs: &[Option<Array>], first: usize, like: &Dequantize) -> Result<Operand, Fault> {
    let (x, scale) = (required(inputs, first)?, Array::from(required(inputs, first + 1)?.to_f32()?));
    let scales = like.scales(x.dtype(), &scale, optional(inputs, first + 2));
    let scales = scales.ok_or_else(|| Fault::unimplemented("scales that are neither scalars nor vectors"))?;
    Ok(Operand::Integer(scales, Some(x.clone())))
}

/// The output's parameters in slots 6 and 7, and the kernel's result on inputs 0 and 3.
fn run(
    inputs: &[Option<Array>],
    operands: Vec<Option<Operand>>,
    kernel: impl Fn(&Unit) -> Option<Box<dyn Kernel>>,
) -> Result<Vec<Array>, Fault> {
    let y = WHOLE.params(&Array::from(required(inputs, 6)?.to_f32()?), optional(inputs, 7));
    let y = y.ok_or_else(|| Fault::unimplemented("more than one output scale"))?;
    let unit = Unit { inputs: operands, outputs: vec![Some(y)] };
    let kernel = kernel(&unit).ok_or_else(|| Fault::unimplemented("this choice of types and scales"))?;
    kernel.run(&[optional(inputs, 0).cloned(), optional(inputs, 3).cloned()])
}

/// The type of the output with parameters in slot 7.
fn typed(inputs: &[Option<Fact>], dims: Option<Vec<crate::ir::Dim>>) -> Vec<Option<TensorType>> {
    vec![known(inputs, 7).map(|zero| TensorType { dtype: zero.dtype, dims })]
}

/// Conv between quantized tensors.
#[derive(Debug, Clone)]
pub struct QLinearConv(pub Conv);

impl Op for QLinearConv {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        Ok(typed(inputs, self.0.infer_dims(x, known(inputs, 3))?))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, w) = (operand(inputs, 0, &ALONG_COLUMNS)?, operand(inputs, 3, &ALONG_ROWS)?);
        let bias = optional(inputs, 8).map(|bias| {
            let factors = match (&x, &w) {
                (Operand::Integer(x, _), Operand::Integer(w, _)) => {
                    w.scales.iter().map(|s| x.scales[0] * s).collect()
                }
                _ => Vec::new(),
            };
            let zero_points = vec![0; factors.len()];
            let axis = (factors.len() > 1).then_some(0);
            Operand::Integer(Scales { dtype: DType::I32, scales: factors, zero_points, axis }, Some(bias.clone()))
        });
        run(inputs, vec![Some(x), Some(w), bias], |unit| integer::conv::prepare(&self.0, unit))
    }
}

/// MatMul between quantized tensors.
#[derive(Debug, Clone, Copy)]
pub struct QLinearMatMul;

impl Op for QLinearMatMul {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = |slot| known(inputs, slot).and_then(|t: &TensorType| t.dims.as_deref());
        Ok(typed(inputs, MatMul::infer_dims(dims(0), dims(3))?))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let operands = vec![Some(operand(inputs, 0, &ALONG_ROWS)?), Some(operand(inputs, 3, &ALONG_COLUMNS)?)];
        run(inputs, operands, integer::product::matmul)
    }
}

/// The integers less their zero point: one for all, or one for each index along `axis`.
fn centred(x: &Array, zero: Option<&Array>, axis: usize) -> Result<Nd<i32>, Fault> {
    let wide = |a: &Array| match a {
        Array::U8(a) => Ok(a.map(|&v| i32::from(v)).into_shared()),
        Array::I8(a) => Ok(a.map(|&v| i32::from(v)).into_shared()),
        other => Err(Fault::new(format!("expected 8-bit integers, found {}", other.dtype()))),
    };
    let mut x = wide(x)?;
    let Some(zero) = zero else { return Ok(x) };
    let zero = wide(zero)?;
    if zero.len() == 1 {
        let zero = zero.iter().next().copied().unwrap_or(0);
        x.mapv_inplace(|v| v - zero);
        return Ok(x);
    }
    let mut shape = vec![1; x.ndim()];
    match shape.get_mut(axis) {
        Some(extent) if zero.ndim() == 1 => *extent = zero.len(),
        // A zero point for each row of each matrix has the tensor's rank.
        _ => shape = zero.shape().to_vec(),
    }
    let zero = zero.into_shape_with_order(shape)?;
    match zero.broadcast(x.raw_dim()) {
        Some(zero) => Ok((&x - &zero).into_shared()),
        None => fail!("zero points {:?} do not fit {:?}", zero.shape(), x.shape()),
    }
}

/// Conv of integers with 32-bit sums.
#[derive(Debug, Clone)]
pub struct ConvInteger(pub Conv);

impl Op for ConvInteger {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = self.0.infer_dims(x, known(inputs, 1))?;
        Ok(vec![Some(TensorType { dtype: DType::I32, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = centred(required(inputs, 0)?, optional(inputs, 2), 1)?;
        let w = centred(required(inputs, 1)?, optional(inputs, 3), 0)?;
        let (y, shape) = self.0.compute((elements(&x)?, x.shape()), (elements(&w)?, w.shape()), None)?;
        Ok(vec![Array::new(&shape, y)?])
    }
}

/// MatMul of integers with 32-bit sums.
#[derive(Debug, Clone, Copy)]
pub struct MatMulInteger;

impl Op for MatMulInteger {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = |slot| known(inputs, slot).and_then(|t: &TensorType| t.dims.as_deref());
        let dims = MatMul::infer_dims(dims(0), dims(1))?;
        Ok(vec![Some(TensorType { dtype: DType::I32, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let rows = required(inputs, 0)?.rank().saturating_sub(2);
        let a = centred(required(inputs, 0)?, optional(inputs, 2), rows)?;
        let b = required(inputs, 1)?;
        let b = centred(b, optional(inputs, 3), b.rank().saturating_sub(1))?;
        let (y, shape) = MatMul::compute((elements(&a)?, a.shape()), (elements(&b)?, b.shape()))?;
        Ok(vec![Array::new(&shape, y)?])
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn backend_cases() {
        crate::ops::backend_tests::run("qlinear");
    }
}
