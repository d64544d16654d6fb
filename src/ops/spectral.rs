//! Spectra of signals: DFT, STFT, the windows that a frame is weighted by, and MelWeightMatrix.
//!
//! A signal's last axis holds one real number, or the real and the imaginary part of a complex one.

use std::sync::Arc;

use super::cast::convert;
use super::operand::rounded;
use super::slots::{self, around, known, optional, required};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, TensorType, element_count};
use crate::kernels::fourier::{Complex, transform};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "DFT", since: 17, parse: Dft::parse },
    OpDef { domain: ONNX, name: "STFT", since: 17, parse: Stft::parse },
    OpDef { domain: ONNX, name: "HannWindow", since: 17, parse: |a| Window::parse(a, [0.5, 0.5, 0.0]) },
    OpDef {
        domain: ONNX,
        name: "HammingWindow",
        since: 17,
        parse: |a| Window::parse(a, [25.0 / 46.0, 21.0 / 46.0, 0.0]),
    },
    OpDef { domain: ONNX, name: "BlackmanWindow", since: 17, parse: |a| Window::parse(a, [0.42, 0.5, 0.08]) },
    OpDef { domain: ONNX, name: "MelWeightMatrix", since: 17, parse: MelWeightMatrix::parse },
];

/// Longer signals than this are not meant.
const MAX_LENGTH: i64 = 1 << 28;

/// The length in a scalar.
fn length(array: &Array) -> Result<usize, Fault> {
    match array.to_i64()?.as_slice() {
        [n] if (1..=MAX_LENGTH).contains(n) => Ok(*n as usize),
        other => fail!("a length of {other:?}"),
    }
}

/// The elements as `f64`.
fn wide(x: &Array) -> Result<Vec<f64>, Fault> {
    Ok(convert(x, DType::F64)?.slice::<f64>()?.to_vec())
}

fn narrow(shape: &[usize], y: Vec<f64>, dtype: DType) -> Result<Array, Fault> {
    convert(&Array::new(shape, y)?, dtype)
}

/// [DFT](https://onnx.ai/onnx/operators/onnx__DFT.html): the discrete Fourier transform along an axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dft {
    /// The axis, before opset 20; later an input with this default.
    pub axis: i64,
    /// Does the third input name the axis?
    pub axis_input: bool,
    /// Back to the signal, divided by its length?
    pub inverse: bool,
    /// Is only the half of a spectrum kept (or, inverse, given) that a real signal needs?
    pub onesided: bool,
}

impl Dft {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let axis_input = attrs.version() >= 20;
        Ok(Arc::new(Self {
            axis: if axis_input { -2 } else { attrs.int("axis", 1)? },
            axis_input,
            inverse: attrs.flag("inverse", false)?,
            onesided: attrs.flag("onesided", false)?,
        }))
    }
}

impl Op for Dft {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).map(|x| TensorType::unranked(x.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let named = optional(inputs, 2).filter(|_| self.axis_input).map(Array::to_i64).transpose()?;
        let axis = named.and_then(|a| a.first().copied()).unwrap_or(self.axis);
        let Some((&parts @ 1..=2, signal)) = x.shape().split_last() else {
            fail!("{:?} does not end in one or two parts of a number", x.shape());
        };
        let axis = if axis < 0 { axis + x.rank() as i64 } else { axis };
        let axis = slots::axis(axis, signal.len())?;
        let given = optional(inputs, 1).map(length).transpose()?;
        let full_from_half = self.inverse && self.onesided;
        let n = match given {
            Some(n) => n,
            None if full_from_half => 2 * signal[axis].saturating_sub(1),
            None => signal[axis],
        };
        let (outer, rows, inner) = around(signal, axis);
        let kept = if self.onesided && !self.inverse { n / 2 + 1 } else { n };
        let parts_out = if full_from_half { 1 } else { 2 };
        let mut shape = signal.to_vec();
        shape[axis] = kept;
        shape.push(parts_out);
        let values = wide(x)?;
        let mut y = vec![0.0; element_count(&shape)?];
        for line in 0..outer * inner {
            let (block, column) = (line / inner, line % inner);
            let at = |row: usize| ((block * rows + row) * inner + column) * parts;
            let element = |row: usize| match row < rows {
                true => (values[at(row)], if parts == 2 { values[at(row) + 1] } else { 0.0 }),
                false => (0.0, 0.0),
            };
            let signal: Vec<Complex> = match full_from_half {
                true => (0..n).map(|k| mirrored(k, n, &element)).collect(),
                false => (0..n).map(element).collect(),
            };
            let spectrum = transform(&signal, self.inverse);
            let factor = if self.inverse { 1.0 / n as f64 } else { 1.0 };
            for (k, (re, im)) in spectrum.into_iter().take(kept).enumerate() {
                let target = ((block * kept + k) * inner + column) * parts_out;
                y[target] = re * factor;
                if parts_out == 2 {
                    y[target + 1] = im * factor;
                }
            }
        }
        Ok(vec![narrow(&shape, y, x.dtype())?])
    }
}

/// Element `k` of the spectrum of a real signal, of which the first half is given.
fn mirrored(k: usize, n: usize, half: &impl Fn(usize) -> Complex) -> Complex {
    let own = if k <= n / 2 { k } else { n - k };
    let (re, im) = half(own);
    match k {
        k if k == 0 || 2 * k == n => (re, 0.0),
        k if k == own => (re, im),
        _ => (re, -im),
    }
}

/// [STFT](https://onnx.ai/onnx/operators/onnx__STFT.html): the spectra of overlapping frames of a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stft {
    /// Is only the half of each spectrum kept that a real signal needs?
    pub onesided: bool,
}

impl Stft {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { onesided: attrs.flag("onesided", true)? }))
    }
}

impl Op for Stft {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).map(|x| TensorType::unranked(x.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let step = length(required(inputs, 1)?)?;
        let window = optional(inputs, 2).map(wide).transpose()?;
        let (batch, samples, parts) = match *x.shape() {
            [batch, samples] => (batch, samples, 1),
            [batch, samples, parts @ 1..=2] => (batch, samples, parts),
            _ => fail!("{:?} is not a batch of signals", x.shape()),
        };
        let frame = match (optional(inputs, 3).map(length).transpose()?, &window) {
            (Some(frame), _) => frame,
            (None, Some(window)) => window.len(),
            (None, None) => samples,
        };
        if frame == 0 || frame > samples || window.as_ref().is_some_and(|w| w.len() != frame) {
            fail!("frames of {frame} samples, of {samples}");
        }
        let (frames, kept) = (1 + (samples - frame) / step, if self.onesided { frame / 2 + 1 } else { frame });
        let shape = [batch, frames, kept, 2];
        let values = wide(x)?;
        let mut y = Vec::with_capacity(element_count(&shape)?);
        for (signal, start) in (0..batch).flat_map(|b| (0..frames).map(move |f| (b, f * step))) {
            let element = |i: usize| {
                let at = (signal * samples + start + i) * parts;
                let weight = window.as_ref().map_or(1.0, |w| w[i]);
                (values[at] * weight, if parts == 2 { values[at + 1] * weight } else { 0.0 })
            };
            let spectrum = transform(&(0..frame).map(element).collect::<Vec<_>>(), false);
            y.extend(spectrum.into_iter().take(kept).flat_map(|(re, im)| [re, im]));
        }
        Ok(vec![narrow(&shape, y, x.dtype())?])
    }
}

/// A window of cosines: `a - b·cos(2πn/N) + c·cos(4πn/N)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Window {
    coefficients: [f64; 3],
    /// Does the period begin anew after the last element, rather than with it?
    periodic: bool,
    dtype: DType,
}

fn output_dtype(attrs: &mut Attrs) -> Result<DType, Fault> {
    let code = attrs.int("output_datatype", 1)?;
    i32::try_from(code).ok().and_then(DType::from_onnx).ok_or_else(|| format!("unknown element type {code}").into())
}

impl Window {
    fn parse(attrs: &mut Attrs, coefficients: [f64; 3]) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self {
            coefficients,
            periodic: attrs.flag("periodic", true)?,
            dtype: output_dtype(attrs)?,
        }))
    }
}

impl Op for Window {
    fn infer(&self, _: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![Some(TensorType::unranked(self.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let size = length(required(inputs, 0)?)?;
        let period = if self.periodic { size } else { size - 1 }.max(1) as f64;
        let [a, b, c] = self.coefficients;
        let value = |n: usize| {
            let angle = std::f64::consts::TAU * n as f64 / period;
            a - b * libm::cos(angle) + c * libm::cos(2.0 * angle)
        };
        Ok(vec![narrow(&[size], (0..size).map(value).collect(), self.dtype)?])
    }
}

/// [MelWeightMatrix](https://onnx.ai/onnx/operators/onnx__MelWeightMatrix.html): triangles over the bins of a spectrum,
/// evenly spaced on the scale by which pitch is heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MelWeightMatrix {
    dtype: DType,
}

impl MelWeightMatrix {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { dtype: output_dtype(attrs)? }))
    }
}

impl Op for MelWeightMatrix {
    fn infer(&self, _: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![Some(TensorType::unranked(self.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let size = |slot| required(inputs, slot).and_then(length);
        let (mels, samples, rate) = (size(0)?, size(1)?, size(2)?);
        let hertz = |slot| -> Result<f64, Fault> {
            wide(required(inputs, slot)?)?.first().copied().ok_or_else(|| "an edge is missing".into())
        };
        let mel = |hertz: f64| 2595.0 * libm::log1p(hertz / 700.0) / std::f64::consts::LN_10;
        let (low, high) = (mel(hertz(3)?), mel(hertz(4)?));
        let bins = samples / 2 + 1;
        let step = (high - low) / (mels + 2) as f64;
        let edge = |i: usize| {
            let hertz = 700.0 * libm::expm1((low + i as f64 * step) / 2595.0 * std::f64::consts::LN_10);
            ((samples + 1) as f64 * hertz / rate as f64).floor() as i64
        };
        let shape = [bins, mels];
        let mut y = vec![0.0; element_count(&shape)?];
        for m in 0..mels {
            let (left, center, right) = (edge(m), edge(m + 1), edge(m + 2));
            let mut put = |bin: i64, value: f64| match usize::try_from(bin).ok().filter(|&b| b < bins) {
                Some(bin) => {
                    y[bin * mels + m] = value;
                    Ok(())
                }
                None => Err(Fault::new(format!("an edge lies at bin {bin} of {bins}"))),
            };
            if left == center {
                put(center, 1.0)?;
            }
            for bin in left..=center {
                if left < center {
                    put(bin, (bin - left) as f64 / (center - left) as f64)?;
                }
            }
            for bin in center..right {
                put(bin, (right - bin) as f64 / (right - center) as f64)?;
            }
        }
        Ok(vec![rounded(narrow(&shape, y, self.dtype)?, self.dtype)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::int;

    #[test]
    fn backend() {
        // Their expected outputs hold the rounding of a transform in single precision where the exact value is 0.
        let noise = ["test_dft_inverse", "test_dft_inverse_opset19"];
        crate::ops::backend_tests::run_except("spectral", &noise);
    }

    #[test]
    fn half_a_spectrum_gives_the_signal_back() {
        for n in [5usize, 6, 8] {
            let x = Array::new(&[1, n, 1], (0..n).map(|i| (i * i % 7) as f64).collect::<Vec<_>>()).unwrap();
            let run = |inverse: i64, x: &Array| {
                let attributes = [int("inverse", inverse), int("onesided", 1)];
                let op = (OPS[0].parse)(&mut Attrs::new(&attributes, 20, 3, 1)).unwrap();
                let inputs = [Some(x.clone()), Some(Array::scalar(n as i64)), Some(Array::scalar(1i64))];
                op.float(&inputs).unwrap().remove(0)
            };
            let half = run(0, &x);
            assert_eq!(half.shape(), [1, n / 2 + 1, 2]);
            let back = run(1, &half);
            for (a, b) in back.slice::<f64>().unwrap().iter().zip(x.slice::<f64>().unwrap()) {
                assert!((a - b).abs() < 1e-12);
            }
        }
    }
}
