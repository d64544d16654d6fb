//! Affine quantization: `q = saturate(round_half_even(x / scale) + zero_point)`, `x ≈ (q - zero_point) * scale`.
//!
//! The formula and its rounding are those of ONNX's QuantizeLinear and DequantizeLinear.

use super::DType;

/// Scale and zero point of a tensor quantized as a whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantParams {
    /// Step between neighbouring values, in units of the tensor; positive.
    pub scale: f32,
    /// The quantized value that stands for 0.
    pub zero_point: i32,
    /// Storage type: `uint8`, `int8`, `uint16`, `int16` or `int32`.
    pub dtype: DType,
}

/// The lowest and highest value of an integer storage type.
pub fn limits(dtype: DType) -> Option<(i32, i32)> {
    Some(match dtype {
        DType::U8 => (0, 255),
        DType::I8 => (-128, 127),
        DType::U16 => (0, 65535),
        DType::I16 => (-32768, 32767),
        DType::U4 => (0, 15),
        DType::I4 => (-8, 7),
        DType::I32 => (i32::MIN, i32::MAX),
        _ => return None,
    })
}

impl QuantParams {
    /// Asymmetric parameters that cover `[low, high]` (widened to include 0) with all values of `dtype`.
    ///
    /// The scale is computed in `f64`; a range too narrow for a normal `f32` scale gets scale 1.
    pub fn asymmetric(low: f32, high: f32, dtype: DType) -> Self {
        let (qmin, qmax) = limits(dtype).unwrap_or((0, 255));
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let scale = (high - low) / f64::from(qmax - qmin);
        if !scale.is_finite() || scale < f64::from(f32::MIN_POSITIVE) {
            return Self { scale: 1.0, zero_point: qmin, dtype };
        }
        let zero_point = (f64::from(qmin) - low / scale).round_ties_even() as i32;
        Self { scale: scale as f32, zero_point: zero_point.clamp(qmin, qmax), dtype }
    }

    /// The quantized value nearest to `x`; NaN becomes the zero point.
    pub fn quantize(&self, x: f32) -> i32 {
        let (qmin, qmax) = limits(self.dtype).unwrap_or((0, 255));
        let q = f64::from((x / self.scale).round_ties_even()) + f64::from(self.zero_point);
        if q.is_nan() { self.zero_point } else { q.clamp(qmin.into(), qmax.into()) as i32 }
    }

    /// The real number that `q` stands for.
    pub fn dequantize(&self, q: i32) -> f32 {
        (q - self.zero_point) as f32 * self.scale
    }

    /// The least and the greatest real number that can be represented.
    pub fn range(&self) -> (f32, f32) {
        let (qmin, qmax) = limits(self.dtype).unwrap_or((0, 255));
        (self.dequantize(qmin), self.dequantize(qmax))
    }
}
