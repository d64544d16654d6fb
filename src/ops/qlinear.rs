//! Operators that take integers and their scales as inputs: QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger.
//!
//! See <https://onnx.ai/onnx/operators/onnx__QLinearConv.html> and
//! <https://onnx.ai/onnx/operators/onnx__MatMulInteger.html>.

use std::sync::Arc;

use super::conv::Conv;
use super::gemm::{Batches, MatMul};
use super::integer;
use super::operand::elements;
use super::quantize::{Dequantize, Quantize};
use super::slots::{known, optional, required};
use super::{Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Operand, Scales, Unit};
use crate::ir::{Array, DType, Nd, TensorType, element_count};
use crate::kernels::gemm::Size;
use crate::kernels::integer::conv::Input;
use crate::kernels::sums::{Columns, conv};
use crate::kernels::window::volume;

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

/// Zero points of the operand: one for all, or `count` of them. None if they count along something else.
fn zeros(zero: Option<&Array>, like: &Array, count: usize) -> Result<Option<Vec<i32>>, Fault> {
    let Some(zero) = zero else { return Ok(Some(vec![0])) };
    if zero.dtype() != like.dtype() {
        fail!("zero points of {} for {}", zero.dtype(), like.dtype());
    }
    let fits = zero.len() == 1 || (zero.rank() == 1 && zero.len() == count);
    fits.then(|| integer::values_of(zero)).transpose()
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
        let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
        let (channels, axes, shape) = self.0.place(x.shape(), w.shape())?;
        let count = channels.groups * channels.output;
        let (pad, own) = (zeros(optional(inputs, 2), x, 1)?, zeros(optional(inputs, 3), w, count)?);
        let (Some([pad]), Some(own)) = (pad.as_deref(), own) else {
            fail!("zero points that are neither one for all nor one for each output channel");
        };
        let (planes, weights) = (integer::bytes_of(x)?, integer::bytes_of(w)?);
        let depth = channels.input * volume(&axes, |a| a.kernel);
        let signed: Vec<i32> = own.iter().map(|&z| integer::signed_zero(w.dtype(), z)).collect();
        let group = |group: usize| {
            let first = group * channels.output;
            let weights = &weights[first * depth..][..channels.output * depth];
            let zeros = if signed.len() == 1 { &signed } else { &signed[first..][..channels.output] };
            Columns::new(weights, (depth, channels.output), (1, depth), integer::sign_flip(w.dtype()), zeros)
        };
        let kernels: Vec<Columns> = (0..channels.groups).map(group).collect();
        let mut y = vec![0; element_count(&shape)?];
        let x = Input { planes, flip: integer::flip(x.dtype()), pad: *pad as u8 };
        conv(channels, &axes, x, &kernels, &mut y);
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
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let batches = Batches::new(a.shape(), b.shape())?;
        let Size { m, n, k } = batches.size;
        let rows = if a.rank() < 2 { 1 } else { a.shape()[a.rank() - 2] };
        let (of_rows, of_columns) = (zeros(optional(inputs, 2), a, rows)?, zeros(optional(inputs, 3), b, n)?);
        let (Some(of_rows), Some(of_columns)) = (of_rows, of_columns) else { return self.by_definition(inputs) };
        let (flip, sign_flip) = (integer::flip(a.dtype()), integer::sign_flip(b.dtype()));
        let of_rows: Vec<i32> = of_rows.iter().map(|&z| z + i32::from(flip)).collect();
        // Matrices with the same `B` are one tall product.
        let of_rows = if of_rows.len() == 1 { of_rows } else { of_rows.into_iter().cycle().take(m).collect() };
        let of_columns: Vec<i32> = of_columns.iter().map(|&z| integer::signed_zero(b.dtype(), z)).collect();
        let mut y = vec![0; element_count(&batches.shape)?];
        let (rows, columns) = (integer::bytes_of(a)?, integer::bytes_of(b)?);
        let (mut index, mut packed) = (0, None);
        batches.each(|i, j| {
            let y = &mut y[index * m * n..][..m * n];
            index += 1;
            if k == 0 || y.is_empty() {
                return;
            }
            let fresh = || Columns::new(&columns[j * k * n..][..k * n], (k, n), (n, 1), sign_flip, &of_columns);
            let (_, matrix) = packed.take().filter(|&(of, _)| of == j).unwrap_or_else(|| (j, fresh()));
            matrix.multiply(&rows[i * m * k..][..m * k], flip, &of_rows, |row, first, sums| {
                y[row * n + first..][..sums.len()].copy_from_slice(sums);
            });
            packed = Some((j, matrix));
        });
        Ok(vec![Array::new(&batches.shape, y)?])
    }
}

impl MatMulInteger {
    /// With zero points for each row or column of each matrix.
    fn by_definition(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let centred = |slot: usize| -> Result<Nd<i32>, Fault> {
            let x = wide(required(inputs, slot)?)?;
            let Some(zero) = optional(inputs, slot + 2).map(wide).transpose()? else { return Ok(x) };
            match zero.broadcast(x.raw_dim()) {
                Some(zero) => Ok((&x - &zero).into_shared()),
                None => fail!("zero points {:?} do not fit {:?}", zero.shape(), x.shape()),
            }
        };
        let (a, b) = (centred(0)?, centred(1)?);
        let (y, shape) = MatMul::compute((elements(&a)?, a.shape()), (elements(&b)?, b.shape()))?;
        Ok(vec![Array::new(&shape, y)?])
    }
}

fn wide(array: &Array) -> Result<Nd<i32>, Fault> {
    Ok(Nd::from_shape_vec(array.shape(), integer::values_of(array)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv::Convolution;

    fn bytes(shape: &[usize], seed: u32) -> Array {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        Array::new(shape, (0..shape.iter().product()).map(|_| next()).collect::<Vec<u8>>()).unwrap()
    }

    /// Sums of the loops for any number type, on integers without their zero points.
    #[test]
    fn sums_are_those_of_plain_loops() {
        let centred = |a: &Array, zero: i32| wide(a).unwrap().mapv(|v| v - zero).into_shared();
        for (m, k, n) in [(3, 5, 4), (2, 1000, 7), (1, 257, 1), (4, 256, 3), (2, 0, 3)] {
            for signed in [false, true] {
                let (a, b) = (bytes(&[2, m, k], 1), bytes(&[k, n], 2));
                let b = if signed { Array::new(&[k, n], as_signed(&b)).unwrap() } else { b };
                let (za, zb) = (Array::scalar(117u8), if signed { Array::scalar(-9i8) } else { Array::scalar(201u8) });
                let (x, w) = (centred(&a, 117), centred(&b, if signed { -9 } else { 201 }));
                let (plain, shape) =
                    MatMul::compute((elements(&x).unwrap(), x.shape()), (elements(&w).unwrap(), w.shape())).unwrap();
                let found = MatMulInteger.float(&[Some(a), Some(b), Some(za), Some(zb)]).unwrap();
                assert_eq!(found, [Array::new(&shape, plain).unwrap()], "{m} {k} {n} {signed}");
            }
        }
        for (channels, group, kernel) in [(3, 1, 3), (600, 1, 3), (8, 8, 3), (600, 2, 1), (2, 1, 19)] {
            let attributes = [crate::ir::attribute::int("group", group as i64)];
            let mut attrs = crate::ops::Attrs::new(&attributes, 10, 4, 1);
            let conv = ConvInteger(Conv::read(&mut attrs).unwrap());
            let (x, w) = (bytes(&[2, channels, 20, 21], 3), bytes(&[8, channels / group, kernel, kernel], 4));
            let (cx, cw) = (centred(&x, 117), centred(&w, 117));
            let whole = ((elements(&cx).unwrap(), cx.shape()), (elements(&cw).unwrap(), cw.shape()));
            let (plain, shape) = conv.0.compute(whole.0, whole.1, None).unwrap();
            let zero = Some(Array::scalar(117u8));
            let found = conv.float(&[Some(x), Some(w), zero.clone(), zero]).unwrap();
            assert_eq!(found, [Array::new(&shape, plain).unwrap()], "{channels} {group} {kernel}");
        }
    }

    fn as_signed(a: &Array) -> Vec<i8> {
        a.slice::<u8>().unwrap().iter().map(|&b| b as i8).collect()
    }

    /// A zero point for each row, each column, and each row of each matrix.
    #[test]
    fn zero_points_have_their_places() {
        let (a, b) = (bytes(&[2, 3, 5], 1), bytes(&[5, 4], 2));
        let run = |za: Array, zb: Array| {
            let found = MatMulInteger.float(&[Some(a.clone()), Some(b.clone()), Some(za), Some(zb)]).unwrap();
            found[0].slice::<i32>().unwrap().to_vec()
        };
        let (rows, columns) = (vec![1u8, 20, 250], vec![4u8, 5, 60, 200]);
        let vectors = run(Array::vector(rows.clone()), Array::vector(columns.clone()));
        let whole = run(Array::new(&[1, 3, 1], rows.clone()).unwrap(), Array::new(&[1, 4], columns.clone()).unwrap());
        assert_eq!(vectors, whole);
        let (a, b) = (a.slice::<u8>().unwrap(), b.slice::<u8>().unwrap());
        let term = |i: usize, j: usize, p: usize| {
            (i32::from(a[i * 5 + p]) - i32::from(rows[i % 3])) * (i32::from(b[p * 4 + j]) - i32::from(columns[j]))
        };
        let sums: Vec<i32> = (0..24).map(|at| (0..5).map(|p| term(at / 4, at % 4, p)).sum()).collect();
        assert_eq!(vectors, sums);
    }

    #[test]
    fn shapes_that_do_not_fit_are_a_fault() {
        let attrs = crate::ops::Attrs::new(&[], 10, 4, 1);
        let conv = ConvInteger(Conv::read(&mut { attrs }).unwrap());
        assert!(conv.float(&[Some(bytes(&[1, 3, 4, 4], 1)), Some(bytes(&[2, 5, 1, 1], 2))]).is_err());
        assert!(MatMulInteger.float(&[Some(bytes(&[2, 3], 1)), Some(bytes(&[5, 2], 2))]).is_err());
    }

    #[test]
    fn backend_cases() {
        crate::ops::backend_tests::run("qlinear");
    }
}
