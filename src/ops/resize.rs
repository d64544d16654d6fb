//! [Resize](https://onnx.ai/onnx/operators/onnx__Resize.html) and its forerunner
//! [Upsample](https://onnx.ai/onnx/operators/onnx__Upsample.html).
//!
//! Interpolation is separable: along each axis an output position is a weighted sum of a few input positions, its
//! *taps*. One tap for `nearest`, two for `linear`, four for `cubic`; positions beyond the edge repeat it.

mod gradient;

use std::sync::Arc;

use super::gradient::in_floats;
use super::operand::rounded;
use super::slots::{dims, required};
use super::{Attrs, Fact, Gradient, ONNX, Op, OpDef, Rule};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, TensorType, element_count, with_array};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Upsample", since: 7, parse: |attrs| Resize::read(attrs, Form::Upsample) },
    OpDef { domain: ONNX, name: "Upsample", since: 9, parse: |attrs| Resize::read(attrs, Form::Scales) },
    OpDef { domain: ONNX, name: "Resize", since: 10, parse: |attrs| Resize::read(attrs, Form::Scales) },
    OpDef { domain: ONNX, name: "Resize", since: 11, parse: |attrs| Resize::read(attrs, Form::Full) },
];

/// The input positions that make an output position, and their weights.
type Taps = Vec<(usize, f32)>;

/// Where an operator finds its scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// In an attribute.
    Upsample,
    /// In input 1.
    Scales,
    /// In input 2, or sizes in input 3.
    Full,
}

/// How the values between positions are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Interpolation {
    /// The nearest position.
    Nearest(Rounding),
    /// Between two positions.
    Linear,
    /// Through four positions, with the coefficient `a` of the kernel.
    Cubic(f64),
}

/// Which position is nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Half goes down.
    PreferFloor,
    /// Half goes up.
    PreferCeil,
    /// Always down.
    Floor,
    /// Always up.
    Ceil,
}

/// What becomes of the extents that `sizes` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Stretch,
    NotLarger,
    NotSmaller,
}

/// Scales the extents of a tensor.
#[derive(Debug, Clone)]
pub struct Resize {
    /// Interpolation.
    pub interpolation: Interpolation,
    coordinates: String,
    /// Is only the region in input 1 resized?
    crop: bool,
    /// The value beyond the edges of the input, for a region that leaves it.
    extrapolation: f32,
    /// Does each output position take in all that it covers, when the extent shrinks?
    antialias: bool,
    exclude_outside: bool,
    axes: Option<Vec<i64>>,
    policy: Policy,
    form: Form,
    scales: Option<Vec<f32>>,
}

impl Resize {
    fn read(attrs: &mut Attrs, form: Form) -> Result<Arc<dyn Op>, Fault> {
        let mode = attrs.string("mode", "nearest")?;
        let old = form != Form::Full;
        let coordinates =
            attrs.string("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" })?;
        let rounding = match attrs.string("nearest_mode", if old { "floor" } else { "round_prefer_floor" })?.as_str() {
            "round_prefer_floor" => Rounding::PreferFloor,
            "round_prefer_ceil" => Rounding::PreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            other => fail!("unknown nearest_mode {other}"),
        };
        let a = f64::from(attrs.float("cubic_coeff_a", -0.75)?);
        let interpolation = match mode.as_str() {
            "nearest" => Interpolation::Nearest(rounding),
            "linear" | "bilinear" => Interpolation::Linear,
            "cubic" => Interpolation::Cubic(a),
            other => fail!("unknown mode {other}"),
        };
        let policy = match attrs.string("keep_aspect_ratio_policy", "stretch")?.as_str() {
            "stretch" => Policy::Stretch,
            "not_larger" => Policy::NotLarger,
            "not_smaller" => Policy::NotSmaller,
            other => fail!("unknown keep_aspect_ratio_policy {other}"),
        };
        Ok(Arc::new(Self {
            interpolation,
            crop: coordinates == "tf_crop_and_resize",
            coordinates,
            extrapolation: attrs.float("extrapolation_value", 0.0)?,
            antialias: attrs.flag("antialias", false)?,
            exclude_outside: attrs.flag("exclude_outside", false)?,
            axes: attrs.opt_ints("axes")?,
            policy,
            form,
            scales: attrs.opt_floats("scales")?,
        }))
    }

    /// Output extent and scale of every axis.
    fn extents(
        &self,
        shape: &[usize],
        scales: Option<Vec<f32>>,
        sizes: Option<Vec<i64>>,
    ) -> Result<Vec<(usize, f64)>, Fault> {
        let mut found: Vec<(usize, f64)> = shape.iter().map(|&d| (d, 1.0)).collect();
        let axes = match &self.axes {
            Some(list) => super::slots::axes(list, shape.len())?,
            None => (0..shape.len()).collect(),
        };
        let given = scales.as_ref().map(Vec::len).or(sizes.as_ref().map(Vec::len)).unwrap_or(0);
        if given != axes.len() {
            fail!("{given} scales or sizes for {} axes", axes.len());
        }
        if let Some(scales) = scales {
            for (&axis, scale) in axes.iter().zip(scales) {
                let scale = f64::from(scale);
                let extent = (shape[axis] as f64 * scale).floor();
                if !(scale > 0.0 && extent < 1e9) {
                    fail!("the scale {scale} of axis {axis}");
                }
                found[axis] = (extent as usize, scale);
            }
        } else if let Some(sizes) = sizes {
            let ratio = |(&axis, &size): (&usize, &i64)| size as f64 / shape[axis].max(1) as f64;
            let ratios = axes.iter().zip(&sizes).map(ratio);
            let common = match self.policy {
                Policy::Stretch => None,
                Policy::NotLarger => Some(ratios.fold(f64::INFINITY, f64::min)),
                Policy::NotSmaller => Some(ratios.fold(0.0, f64::max)),
            };
            for (&axis, &size) in axes.iter().zip(&sizes) {
                let size = usize::try_from(size).map_err(|_| Fault::new(format!("the size {size} is negative")))?;
                found[axis] = match common {
                    None => (size, size as f64 / shape[axis].max(1) as f64),
                    Some(scale) => ((shape[axis] as f64 * scale).round() as usize, scale),
                };
            }
        }
        element_count(&found.iter().map(|e| e.0).collect::<Vec<_>>())?;
        Ok(found)
    }

    /// For each axis where the region starts and ends, as parts of its extent.
    fn regions(&self, input: Option<&Array>, rank: usize) -> Result<Vec<(f64, f64)>, Fault> {
        let mut regions = vec![(0.0, 1.0); rank];
        let Some(region) = input.filter(|_| self.crop) else { return Ok(regions) };
        let axes = match &self.axes {
            Some(list) => super::slots::axes(list, rank)?,
            None => (0..rank).collect(),
        };
        let bounds: Vec<f64> = region.to_f32()?.iter().map(|&v| v.into()).collect();
        if bounds.len() != 2 * axes.len() {
            fail!("a region of {} bounds for {} axes", bounds.len(), axes.len());
        }
        for (i, &axis) in axes.iter().enumerate() {
            regions[axis] = (bounds[i], bounds[axes.len() + i]);
        }
        Ok(regions)
    }

    /// The position in the input that output position `i` looks at.
    fn source(&self, i: usize, input: usize, output: usize, scale: f64) -> f64 {
        let (i, n) = (i as f64, input as f64);
        let half_pixel = (i + 0.5) / scale - 0.5;
        match self.coordinates.as_str() {
            "asymmetric" => i / scale,
            "align_corners" if output <= 1 => 0.0,
            // The real extent: the output's may have been rounded down.
            "align_corners" => i * (n - 1.0) / (n * scale - 1.0),
            "pytorch_half_pixel" if output <= 1 => 0.0,
            "half_pixel_symmetric" => n / 2.0 * (1.0 - output as f64 / (scale * n)) + half_pixel,
            _ => half_pixel,
        }
    }

    /// The weights of the input positions around a place, and how far below the first of them lies. With antialiasing
    /// the kernel is as wide as the output position.
    fn weights(&self, t: f64, scale: f64) -> (f64, Vec<f64>) {
        let scale = if self.antialias { scale.min(1.0) } else { 1.0 };
        let (reach, kernel): (f64, &dyn Fn(f64) -> f64) = match self.interpolation {
            Interpolation::Cubic(a) => (2.0, &move |d: f64| match d.abs() {
                d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
                d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
                _ => 0.0,
            }),
            _ => (1.0, &|d: f64| (1.0 - d.abs()).max(0.0)),
        };
        let start = (-reach / scale).floor() + 1.0;
        let count = (2.0 - 2.0 * start) as usize;
        let weights: Vec<f64> = (0..count).map(|k| kernel((start + k as f64 - t) * scale)).collect();
        let total: f64 = if self.antialias { weights.iter().sum() } else { 1.0 };
        (start, weights.into_iter().map(|w| w / total).collect())
    }

    /// The input positions and weights that make one output position; none beyond the edges of a region.
    fn taps(&self, i: usize, input: usize, (output, scale): (usize, f64), region: (f64, f64)) -> Taps {
        let x = match self.crop {
            false => self.source(i, input, output, scale),
            true => {
                let (last, (start, end)) = (input as f64 - 1.0, region);
                let x = match output {
                    0 | 1 => 0.5 * (start + end) * last,
                    _ => start * last + i as f64 * (end - start) * last / (output as f64 - 1.0),
                };
                if !(0.0..=last).contains(&x) {
                    return Vec::new();
                }
                x
            }
        };
        let clamp = |p: f64| p.clamp(0.0, input as f64 - 1.0) as usize;
        let floor = x.floor();
        if let Interpolation::Nearest(rounding) = self.interpolation {
            let nearest = match rounding {
                Rounding::PreferFloor => (x - 0.5).ceil(),
                Rounding::PreferCeil => (x + 0.5).floor(),
                Rounding::Floor => floor,
                Rounding::Ceil => x.ceil(),
            };
            return vec![(clamp(nearest), 1.0)];
        }
        let (start, weights) = self.weights(x - floor, scale);
        let first = floor + start;
        let mut taps: Vec<(usize, f64)> = Vec::with_capacity(weights.len());
        for (k, w) in weights.into_iter().enumerate() {
            let position = first + k as f64;
            let outside = position < 0.0 || position >= input as f64;
            taps.push((clamp(position), if outside && self.exclude_outside { 0.0 } else { w }));
        }
        let total: f64 = if self.exclude_outside { taps.iter().map(|t| t.1).sum() } else { 1.0 };
        taps.into_iter().map(|(p, w)| (p, (w / total) as f32)).collect()
    }
}

impl Resize {
    /// For each axis that changes, the taps of every output position.
    fn steps(&self, inputs: &[Option<Array>]) -> Result<Vec<(usize, Vec<Taps>)>, Fault> {
        let x = required(inputs, 0)?;
        let given = |slot: usize| inputs.get(slot).and_then(Option::as_ref).filter(|a| !a.is_empty());
        let slot = if self.form == Form::Full { 2 } else { 1 };
        let scales = match (&self.scales, given(slot)) {
            (Some(scales), _) => Some(scales.clone()),
            (None, Some(array)) => Some(array.slice::<f32>()?.to_vec()),
            (None, None) => None,
        };
        let sizes = given(3).filter(|_| scales.is_none()).map(Array::to_i64).transpose()?;
        let extents = self.extents(x.shape(), scales, sizes)?;
        let regions = self.regions(given(1), x.rank())?;
        let mut steps = Vec::new();
        for (axis, &(output, scale)) in extents.iter().enumerate() {
            let input = x.shape()[axis];
            if output == input && scale == 1.0 && !self.crop {
                continue;
            }
            if input == 0 {
                fail!("axis {axis} has no elements to resize");
            }
            let region = regions.get(axis).copied().unwrap_or((0.0, 1.0));
            steps.push((axis, (0..output).map(|i| self.taps(i, input, (output, scale), region)).collect()));
        }
        Ok(steps)
    }
}

impl Op for Resize {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = inputs.first().copied().flatten() else { return Ok(vec![None]) };
        let Some(rank) = x.ty.rank() else { return Ok(vec![Some(x.ty.clone())]) };
        let constant = |slot: usize| {
            let tensor = inputs.get(slot).copied().flatten()?.constant?;
            tensor.array().ok().filter(|a| !a.is_empty())
        };
        let slot = if self.form == Form::Full { 2 } else { 1 };
        let scales = self.scales.clone().or_else(|| Some(constant(slot)?.slice::<f32>().ok()?.to_vec()));
        let sizes = constant(3).and_then(|a| a.to_i64().ok());
        let mut out = vec![Dim::Unknown; rank];
        if let (Some(shape), true) = (x.ty.shape(), scales.is_some() || sizes.is_some()) {
            out = self.extents(&shape, scales, sizes)?.into_iter().map(|e| Dim::Known(e.0)).collect();
        } else if let (Some(scales), Some(known)) = (scales, dims(inputs, 0)) {
            // An axis that is not scaled keeps its name.
            for (axis, scale) in scales.iter().enumerate().filter(|_| self.axes.is_none()) {
                if let (true, Some(dim)) = (*scale == 1.0, known.get(axis)) {
                    out[axis] = dim.clone();
                }
            }
        }
        Ok(vec![Some(TensorType::new(x.ty.dtype, out))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let mut current = required(inputs, 0)?.clone();
        for (axis, taps) in self.steps(inputs)? {
            current = along(&current, axis, &taps, self.extrapolation)?;
        }
        Ok(vec![current])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }

    fn rule(&self) -> Rule {
        match self.interpolation {
            Interpolation::Nearest(_) => Rule::SameScale,
            _ => Rule::Float,
        }
    }
}

/// Resamples one axis; positions without taps get the value for what lies outside.
fn along(x: &Array, axis: usize, taps: &[Vec<(usize, f32)>], outside: f32) -> Result<Array, Fault> {
    let (outer, input, inner) = super::slots::around(x.shape(), axis);
    let mut shape = x.shape().to_vec();
    shape[axis] = taps.len();
    if taps.iter().all(|t| t.len() == 1) {
        let rows: Vec<usize> = taps.iter().map(|t| t[0].0).collect();
        return with_array!(x, a => pick(a.as_slice().unwrap_or_default(), &shape, [outer, input, inner], &rows));
    }
    let real = if x.dtype() == DType::F64 { x.clone() } else { Array::from(x.to_f32()?) };
    let resampled: Result<Array, Fault> = in_floats!(real, T => {
        let mut out = vec![0.0; outer * taps.len() * inner];
        let blocks = real.slice::<T>()?.chunks_exact((input * inner).max(1));
        for (block, target) in blocks.zip(out.chunks_exact_mut((taps.len() * inner).max(1))) {
            if inner == 1 {
                for (y, taps) in target.iter_mut().zip(taps) {
                    let sum = taps.iter().fold(0.0, |sum, &(at, weight)| sum + T::from(weight) * block[at]);
                    *y = if taps.is_empty() { T::from(outside) } else { sum };
                }
                continue;
            }
            for (row, taps) in target.chunks_exact_mut(inner.max(1)).zip(taps) {
                if taps.is_empty() {
                    row.fill(T::from(outside));
                }
                for &(position, weight) in taps {
                    let source = &block[position * inner..(position + 1) * inner];
                    row.iter_mut().zip(source).for_each(|(y, x)| *y += T::from(weight) * x);
                }
            }
        }
        Array::new(&shape, out)
    });
    match x.dtype() {
        dtype if dtype.is_float() => Ok(rounded(resampled?, dtype)),
        other => Err(Fault::unimplemented(format_args!("interpolation of {other}"))),
    }
}

fn pick<T: crate::ir::Element>(x: &[T], shape: &[usize], [outer, input, inner]: [usize; 3], rows: &[usize]) -> Result<Array, Fault>
where
    Array: From<ndarray::ArrayD<T>>,
{
    let mut out = Vec::with_capacity(outer * rows.len() * inner);
    for block in x.chunks_exact((input * inner).max(1)) {
        match inner {
            1 => out.extend(rows.iter().map(|&row| block[row].clone())),
            _ => rows.iter().for_each(|row| out.extend_from_slice(&block[row * inner..(row + 1) * inner])),
        }
    }
    Array::new(shape, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute;

    fn run(attributes: &[crate::ir::Attribute], x: &[f32], scale: f32) -> Vec<f32> {
        let op = (OPS[3].parse)(&mut Attrs::new(attributes, 13, 3, 1)).unwrap();
        let inputs = [Some(Array::vector(x.to_vec())), None, Some(Array::vector(vec![scale]))];
        op.float(&inputs).unwrap()[0].slice::<f32>().unwrap().to_vec()
    }

    #[test]
    fn nearest_repeats() {
        assert_eq!(run(&[attribute::string("mode", "nearest")], &[1.0, 2.0], 2.0), [1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn linear_stays_inside_the_edges() {
        assert_eq!(run(&[attribute::string("mode", "linear")], &[1.0, 2.0], 2.0), [1.0, 1.25, 1.75, 2.0]);
    }

    #[test]
    fn cubic_reproduces_a_line_inside() {
        let y = run(&[attribute::string("mode", "cubic")], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 2.0);
        assert!((y[5] - 2.25).abs() < 0.05 && (y[6] - 2.75).abs() < 0.05, "{y:?}");
    }
}
