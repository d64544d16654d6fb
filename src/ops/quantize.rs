//! QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear: real numbers to integers and back.
//!
//! One scale and zero point serve the whole tensor (both are scalars), one slice along `axis` (both are vectors), or
//! a block of `block_size` elements along `axis` (both have the tensor's rank).
//! See <https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html>.

mod gradient;

use std::ops::Range;
use std::sync::Arc;

use super::operand::{elements, rounded};
use super::slots::{around, axis, known, optional, required};
use super::{Attrs, Fact, Gradient, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::Scales;
use crate::ir::small::{self, Minifloat};
use crate::ir::{Array, DType, Element, QuantParams, TensorType};
use crate::kernels::requantize::{Narrow, Quantized, dequantize_slice, quantize_slice};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "QuantizeLinear", since: 10, parse: |a| Ok(Arc::new(Quantize::parse(a)?)) },
    OpDef {
        domain: ONNX,
        name: "DequantizeLinear",
        since: 10,
        parse: |a| Ok(Arc::new(Dequantize::parse(a)?)),
    },
    OpDef {
        domain: ONNX,
        name: "DynamicQuantizeLinear",
        since: 11,
        parse: |_| Ok(Arc::new(DynamicQuantize)),
    },
];

/// QuantizeLinear: `y = saturate(round_half_even(x / scale) + zero_point)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantize {
    /// Axis that the scales count along, unless there is but one.
    pub axis: i64,
    /// Elements along `axis` that share a scale; 0: not blocked.
    pub block_size: usize,
    /// Type of the output when there is no zero point to tell.
    pub output_dtype: Option<DType>,
    /// Does a number too large for an 8-bit float become the largest one?
    pub saturate: bool,
}

/// DequantizeLinear: `y = (x - zero_point) * scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dequantize {
    /// Axis that the scales count along, unless there is but one.
    pub axis: i64,
    /// Elements along `axis` that share a scale; 0: not blocked.
    pub block_size: usize,
    /// Type of the output instead of the scale's.
    pub output_dtype: Option<DType>,
}

/// DynamicQuantizeLinear: `uint8` with a scale and zero point taken from the range of the input.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicQuantize;

fn block_size(attrs: &mut Attrs) -> Result<usize, Fault> {
    let size = attrs.int("block_size", 0)?;
    usize::try_from(size).map_err(|_| format!("block_size {size} is negative").into())
}

fn output_dtype(attrs: &mut Attrs) -> Result<Option<DType>, Fault> {
    match attrs.int("output_dtype", 0)? {
        0 => Ok(None),
        code => match i32::try_from(code).ok().and_then(DType::from_onnx) {
            None => fail!("unknown element type {code}"),
            dtype => Ok(dtype),
        },
    }
}

impl Quantize {
    fn parse(attrs: &mut Attrs) -> Result<Self, Fault> {
        if attrs.version() >= 23 && !matches!(attrs.int("precision", 0)?, 0 | 1) {
            return Err(Fault::unimplemented("QuantizeLinear with a precision other than float"));
        }
        Ok(Self {
            axis: attrs.int("axis", 1)?,
            block_size: block_size(attrs)?,
            output_dtype: output_dtype(attrs)?,
            saturate: attrs.version() < 19 || attrs.flag("saturate", true)?,
        })
    }

    /// The parameters if one scale and zero point serve the whole tensor.
    pub fn params(&self, scale: &Array, zero: Option<&Array>) -> Option<QuantParams> {
        let dtype = zero.map(Array::dtype).or(self.output_dtype).unwrap_or(DType::U8);
        let zero = zero.map_or(Some(0), |z| integers(z)?.first().copied().filter(|_| z.len() == 1))?;
        Some(QuantParams { scale: scale.item::<f32>().ok()?, zero_point: zero, dtype })
    }

    /// To a type of few bits that has an exponent: `y = saturate(x / scale + zero_point)`.
    fn run_float<Q: Minifloat + Default>(
        &self,
        x: &Array,
        scale: &Array,
        zero: Option<&Array>,
    ) -> Result<Array, Fault>
    where
        Array: From<ndarray::ArrayD<Q>>,
    {
        let layout = Layout::of(x.shape(), scale.shape(), self.axis, self.block_size)?;
        let (x, scales) = (x.to_f32()?, scale.to_f32()?);
        let zeros = zero_points::<Q>(zero, scale)?;
        let mut y = vec![Q::default(); x.len()];
        let (from, scales) = (elements(&x)?, elements(&scales)?);
        layout.runs(|run, p| {
            let zero = zeros[p].to_f64() as f32;
            for (y, &x) in y[run.clone()].iter_mut().zip(&from[run]) {
                *y = Q::from_f64((x / scales[p] + zero).into(), self.saturate);
            }
        });
        Array::new(x.shape(), y)
    }

    fn run<Q: Narrow + Element>(&self, x: &Array, scale: &Array, zero: Option<&Array>) -> Result<Array, Fault>
    where
        Array: From<ndarray::ArrayD<Q>>,
    {
        let layout = Layout::of(x.shape(), scale.shape(), self.axis, self.block_size)?;
        let (x, scales) = (x.to_f32()?, scale.to_f32()?);
        let zeros = zero_points::<Q>(zero, scale)?;
        let mut y = vec![Q::default(); x.len()];
        let (from, scales) = (elements(&x)?, elements(&scales)?);
        layout.runs(|run, p| quantize_slice(&from[run.clone()], scales[p], zeros[p], &mut y[run]));
        Array::new(x.shape(), y)
    }
}

impl Op for Quantize {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = known(inputs, 0).and_then(|t| t.dims.clone());
        let dtype = match (known(inputs, 2), inputs.get(2)) {
            (Some(zero), _) => zero.dtype,
            // A zero point of unknown type, or an empty slot: inference cannot tell them apart.
            (None, Some(_)) if self.output_dtype.is_none() => return Ok(vec![None]),
            _ => self.output_dtype.unwrap_or(DType::U8),
        };
        Ok(vec![Some(TensorType { dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, scale, zero) = (required(inputs, 0)?, required(inputs, 1)?, optional(inputs, 2));
        let dtype = zero.map(Array::dtype).or(self.output_dtype).unwrap_or(DType::U8);
        Ok(vec![match dtype {
            DType::U8 => self.run::<u8>(x, scale, zero)?,
            DType::I8 => self.run::<i8>(x, scale, zero)?,
            DType::U16 => self.run::<u16>(x, scale, zero)?,
            DType::I16 => self.run::<i16>(x, scale, zero)?,
            DType::U4 => self.run::<small::U4>(x, scale, zero)?,
            DType::I4 => self.run::<small::I4>(x, scale, zero)?,
            DType::U2 => self.run::<small::U2>(x, scale, zero)?,
            DType::I2 => self.run::<small::I2>(x, scale, zero)?,
            DType::F8E4M3FN => self.run_float::<small::F8E4M3FN>(x, scale, zero)?,
            DType::F8E4M3FNUZ => self.run_float::<small::F8E4M3FNUZ>(x, scale, zero)?,
            DType::F8E5M2 => self.run_float::<small::F8E5M2>(x, scale, zero)?,
            DType::F8E5M2FNUZ => self.run_float::<small::F8E5M2FNUZ>(x, scale, zero)?,
            DType::F4E2M1 => self.run_float::<small::F4E2M1>(x, scale, zero)?,
            other => return Err(Fault::unimplemented(format_args!("QuantizeLinear to {other}"))),
        }])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Dequantize {
    fn parse(attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Self {
            axis: attrs.int("axis", 1)?,
            block_size: block_size(attrs)?,
            output_dtype: if attrs.version() >= 23 { output_dtype(attrs)? } else { None },
        })
    }

    /// How integers of this type stand for real numbers, unless blocks of them have scales of their own.
    pub fn scales(&self, dtype: DType, scale: &Array, zero: Option<&Array>) -> Option<Scales> {
        let scales = scale.slice::<f32>().ok().filter(|s| self.block_size == 0 && !s.is_empty())?.to_vec();
        let zero_points = zero.map_or(Some(vec![0; scales.len()]), integers)?;
        let axis = (scales.len() > 1).then_some(self.axis);
        let real = self.output_dtype.is_none_or(|d| d == DType::F32);
        (zero_points.len() == scales.len() && scale.rank() <= 1 && real)
            .then_some(Scales { dtype, scales, zero_points, axis })
    }

    fn run<Q: Quantized + Element>(
        &self,
        x: &Array,
        scale: &Array,
        zero: Option<&Array>,
    ) -> Result<Array, Fault> {
        let layout = Layout::of(x.shape(), scale.shape(), self.axis, self.block_size)?;
        let scales = scale.to_f32()?;
        let zeros = zero_points::<Q>(zero, scale)?;
        let mut y = vec![0.0; x.len()];
        let (from, scales) = (x.slice::<Q>()?, elements(&scales)?);
        layout.runs(|run, p| dequantize_slice(&from[run.clone()], scales[p], zeros[p], &mut y[run]));
        Array::new(x.shape(), y)
    }
}

impl Dequantize {
    fn run_float<Q: Minifloat + Default>(
        &self,
        x: &Array,
        scale: &Array,
        zero: Option<&Array>,
    ) -> Result<Array, Fault> {
        let layout = Layout::of(x.shape(), scale.shape(), self.axis, self.block_size)?;
        let scales = scale.to_f32()?;
        let zeros = zero_points::<Q>(zero, scale)?;
        let mut y = vec![0.0; x.len()];
        let (from, scales) = (x.slice::<Q>()?, elements(&scales)?);
        layout.runs(|run, p| {
            let zero = zeros[p].to_f64() as f32;
            for (y, x) in y[run.clone()].iter_mut().zip(&from[run]) {
                *y = (x.to_f64() as f32 - zero) * scales[p];
            }
        });
        Array::new(x.shape(), y)
    }
}

impl Op for Dequantize {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(dtype) = self.output_dtype.or(known(inputs, 1).map(|t| t.dtype)) else {
            return Ok(vec![None]);
        };
        let dims = known(inputs, 0).and_then(|t| t.dims.clone());
        Ok(vec![Some(TensorType { dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, scale, zero) = (required(inputs, 0)?, required(inputs, 1)?, optional(inputs, 2));
        let y = match x.dtype() {
            DType::U8 => self.run::<u8>(x, scale, zero)?,
            DType::I8 => self.run::<i8>(x, scale, zero)?,
            DType::U16 => self.run::<u16>(x, scale, zero)?,
            DType::I16 => self.run::<i16>(x, scale, zero)?,
            DType::I32 => self.run::<i32>(x, scale, zero)?,
            DType::U4 => self.run::<small::U4>(x, scale, zero)?,
            DType::I4 => self.run::<small::I4>(x, scale, zero)?,
            DType::U2 => self.run::<small::U2>(x, scale, zero)?,
            DType::I2 => self.run::<small::I2>(x, scale, zero)?,
            DType::F8E4M3FN => self.run_float::<small::F8E4M3FN>(x, scale, zero)?,
            DType::F8E4M3FNUZ => self.run_float::<small::F8E4M3FNUZ>(x, scale, zero)?,
            DType::F8E5M2 => self.run_float::<small::F8E5M2>(x, scale, zero)?,
            DType::F8E5M2FNUZ => self.run_float::<small::F8E5M2FNUZ>(x, scale, zero)?,
            DType::F4E2M1 => self.run_float::<small::F4E2M1>(x, scale, zero)?,
            other => return Err(Fault::unimplemented(format_args!("DequantizeLinear from {other}"))),
        };
        Ok(vec![rounded(y, self.output_dtype.unwrap_or(scale.dtype()))])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// Zero points of any type.
fn integers(zero: &Array) -> Option<Vec<i32>> {
    match zero {
        Array::I32(a) => Some(a.iter().copied().collect()),
        other => Some(other.to_f32().ok()?.iter().map(|&z| z as i32).collect()),
    }
}

/// The zero points as many as there are scales.
fn zero_points<Q: Copy + Default + Element>(zero: Option<&Array>, scale: &Array) -> Result<Vec<Q>, Fault> {
    match zero {
        None => Ok(vec![Q::default(); scale.len()]),
        Some(zero) if zero.len() == scale.len() => Ok(zero.slice::<Q>()?.to_vec()),
        Some(zero) => fail!("zero point {:?} and scale {:?} differ in shape", zero.shape(), scale.shape()),
    }
}

/// Which parameter serves which elements. The tensor is `outer` × `rows` × `inner` elements; `block` rows share
/// parameters, and `strides` steps through those from one outer index, block and inner index to the next.
struct Layout {
    extents: (usize, usize, usize),
    block: usize,
    strides: (usize, usize, usize),
}

impl Layout {
    fn of(shape: &[usize], scale: &[usize], along: i64, block_size: usize) -> Result<Self, Fault> {
        if scale.iter().all(|&d| d == 1) && (block_size == 0 || scale.len() != shape.len()) {
            return Ok(Self { extents: (1, 1, shape.iter().product()), block: 1, strides: (0, 0, 0) });
        }
        let axis = axis(along, shape.len())?;
        let extents @ (_, rows, inner) = around(shape, axis);
        if block_size == 0 {
            if scale != [rows] {
                fail!("scale {scale:?} does not fit axis {axis} of {shape:?}");
            }
            return Ok(Self { extents, block: 1, strides: (0, 1, 0) });
        }
        let mut expected = shape.to_vec();
        expected[axis] = rows.div_ceil(block_size);
        if scale != expected {
            fail!("scale {scale:?} does not fit blocks of {block_size} along axis {axis} of {shape:?}");
        }
        Ok(Self { extents, block: block_size, strides: (expected[axis] * inner, inner, 1) })
    }

    /// Calls `f` with every run of elements that share a parameter, and that parameter's index.
    fn runs(&self, mut f: impl FnMut(Range<usize>, usize)) {
        let (outer, rows, inner) = self.extents;
        for o in 0..outer {
            for (b, first) in (0..rows).step_by(self.block).enumerate() {
                let last = first.saturating_add(self.block).min(rows);
                let parameter = o * self.strides.0 + b * self.strides.1;
                let start = o * rows * inner;
                if self.strides.2 == 0 || inner == 1 {
                    f(start + first * inner..start + last * inner, parameter);
                } else {
                    for element in first * inner..last * inner {
                        f(start + element..start + element + 1, parameter + element % inner);
                    }
                }
            }
        }
    }
}

impl Op for DynamicQuantize {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = known(inputs, 0).and_then(|t| t.dims.clone());
        let scalar = |dtype| Some(TensorType::known(dtype, &[]));
        Ok(vec![Some(TensorType { dtype: DType::U8, dims }), scalar(DType::F32), scalar(DType::U8)])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let from = x.slice::<f32>()?;
        let (low, high) = from.iter().fold((0.0f32, 0.0f32), |(l, h), &v| (l.min(v), h.max(v)));
        let scale = if high == low { 1.0 } else { (high - low) / 255.0 };
        let zero = (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even() as u8;
        let mut y = vec![0u8; from.len()];
        quantize_slice(from, scale, zero, &mut y);
        Ok(vec![Array::new(x.shape(), y)?, Array::scalar(scale), Array::scalar(zero)])
    }
}

#[cfg(test)]
mod tests;
