//! Sampling at computed places: GridSample, AffineGrid, RoiAlign and DeformConv.

use std::sync::Arc;

use super::operand::{elements, rounded};
use super::slots::{constant_ints, extents, known, optional, required};
use super::window::Window;
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Dim, TensorType, element_count};
use crate::kernels::sample::{Mode, Outside, Sampling, combine, value};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "GridSample", since: 16, parse: GridSample::parse },
    OpDef { domain: ONNX, name: "AffineGrid", since: 20, parse: AffineGrid::parse },
    OpDef { domain: ONNX, name: "RoiAlign", since: 10, parse: RoiAlign::parse },
    OpDef { domain: ONNX, name: "DeformConv", since: 19, parse: DeformConv::parse },
];

/// [GridSample](https://onnx.ai/onnx/operators/onnx__GridSample.html): the input at the places that a grid names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GridSample {
    /// How positions are read and values found.
    pub sampling: Sampling,
}

impl GridSample {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let mode = match attrs.string("mode", "linear")?.as_str() {
            "nearest" => Mode::Nearest,
            "linear" | "bilinear" => Mode::Linear,
            "cubic" | "bicubic" => Mode::Cubic,
            other => fail!("unknown mode {other}"),
        };
        let outside = match attrs.string("padding_mode", "zeros")?.as_str() {
            "zeros" => Outside::Zeros,
            "border" => Outside::Border,
            "reflection" => Outside::Reflection,
            other => fail!("unknown padding_mode {other}"),
        };
        let align_corners = attrs.flag("align_corners", false)?;
        Ok(Arc::new(Self { sampling: Sampling { mode, outside, align_corners } }))
    }
}

impl Op for GridSample {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let grid = known(inputs, 1).and_then(|g| g.dims.as_deref());
        let dims = match (x.dims.as_deref(), grid) {
            (Some([n, c, ..]), Some([_, places @ .., _])) => {
                Some([n, c].into_iter().chain(places).cloned().collect())
            }
            _ => None,
        };
        Ok(vec![Some(TensorType { dtype: x.dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, grid) = (required(inputs, 0)?, required(inputs, 1)?);
        let (&[batch, channels, ref spatial @ ..], &[n, ref places @ .., axes]) = (x.shape(), grid.shape()) else {
            fail!("input {:?} and grid {:?}", x.shape(), grid.shape());
        };
        if n != batch || axes != spatial.len() || places.len() != axes || axes == 0 {
            fail!("a grid {:?} for an input {:?}", grid.shape(), x.shape());
        }
        let shape: Vec<usize> = [batch, channels].into_iter().chain(places.iter().copied()).collect();
        let mut y = vec![0.0; element_count(&shape)?];
        let (values, coordinates) = (x.to_f32()?, grid.to_f32()?);
        let (values, coordinates) = (elements(&values)?, elements(&coordinates)?);
        let (plane, count) = (spatial.iter().product::<usize>(), places.iter().product::<usize>());
        for (place, coordinates) in coordinates.chunks_exact(axes).enumerate() {
            // The last coordinate of a place belongs to the first axis.
            let along = |(&c, &extent): (&f32, &usize)| {
                self.sampling.taps(self.sampling.position(c, extent), extent)
            };
            let taps: Vec<_> = coordinates.iter().rev().zip(spatial).map(along).collect();
            let taps = combine(&taps, spatial);
            let (sample, place) = (place / count, place % count);
            for channel in sample * channels..(sample + 1) * channels {
                y[channel * count + place] = value(&taps, &values[channel * plane..][..plane]);
            }
        }
        Ok(vec![rounded(Array::new(&shape, y)?, x.dtype())])
    }
}

/// [AffineGrid](https://onnx.ai/onnx/operators/onnx__AffineGrid.html): an even grid, moved by a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffineGrid {
    /// Are -1 and 1 the centres of the outermost points, rather than their outer edges?
    pub align_corners: bool,
}

impl AffineGrid {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { align_corners: attrs.flag("align_corners", false)? }))
    }

    /// The coordinate of a point among `extent`.
    fn coordinate(&self, index: usize, extent: usize) -> f64 {
        let (i, n) = (index as f64, extent as f64);
        match self.align_corners {
            true if extent > 1 => 2.0 * i / (n - 1.0) - 1.0,
            true => -1.0,
            false => (2.0 * i + 1.0) / n - 1.0,
        }
    }
}

impl Op for AffineGrid {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(theta) = known(inputs, 0) else { return Ok(vec![None]) };
        let size = constant_ints(inputs, 1)?.map(|size| extents(&size)).transpose()?;
        Ok(vec![Some(match size.as_deref() {
            Some([batch, _, spatial @ ..]) => {
                let shape: Vec<usize> = [*batch].iter().chain(spatial).copied().chain([spatial.len()]).collect();
                TensorType::known(theta.dtype, &shape)
            }
            _ => TensorType::unranked(theta.dtype),
        })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let theta = required(inputs, 0)?;
        let size = extents(&required(inputs, 1)?.to_i64()?)?;
        let [batch, _, spatial @ ..] = size.as_slice() else { fail!("the size {size:?}") };
        let axes = spatial.len();
        if theta.shape() != [*batch, axes, axes + 1] {
            fail!("theta {:?} does not fit the size {size:?}", theta.shape());
        }
        let shape: Vec<usize> = [*batch].iter().chain(spatial).copied().chain([axes]).collect();
        let mut y = Vec::with_capacity(element_count(&shape)?);
        let matrices = theta.to_f32()?;
        for matrix in elements(&matrices)?.chunks_exact((axes * (axes + 1)).max(1)) {
            crate::kernels::window::each_index(spatial, |index| {
                let point: Vec<f64> =
                    index.iter().zip(spatial).rev().map(|(&i, &n)| self.coordinate(i, n)).collect();
                for row in matrix.chunks_exact(axes + 1) {
                    let sum: f64 = row.iter().zip(point.iter().chain(&[1.0])).map(|(&a, b)| f64::from(a) * b).sum();
                    y.push(sum as f32);
                }
            });
        }
        Ok(vec![rounded(Array::new(&shape, y)?, theta.dtype())])
    }
}

/// [RoiAlign](https://onnx.ai/onnx/operators/onnx__RoiAlign.html): regions of an image, each resampled to a grid of
/// cells that pool a few points between the pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct RoiAlign {
    /// Does a pixel's centre lie half a pixel from its corner?
    pub half_pixel: bool,
    /// The greatest weighted neighbour instead of the mean.
    pub max: bool,
    /// Cells down and across.
    pub output: (usize, usize),
    /// Points along each side of a cell; 0: as many as it has pixels.
    pub sampling_ratio: usize,
    /// From the regions' units to pixels.
    pub spatial_scale: f32,
}

impl RoiAlign {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let default = if attrs.version() < 16 { "output_half_pixel" } else { "half_pixel" };
        let mut extent = |name: &str, default: i64| {
            let value = attrs.int(name, default)?;
            usize::try_from(value).map_err(|_| Fault::new(format!("{name} is {value}")))
        };
        let (output, sampling_ratio) =
            ((extent("output_height", 1)?, extent("output_width", 1)?), extent("sampling_ratio", 0)?);
        let max = match attrs.string("mode", "avg")?.as_str() {
            "avg" => false,
            "max" => true,
            other => fail!("unknown mode {other}"),
        };
        let half_pixel = attrs.string("coordinate_transformation_mode", default)? == "half_pixel";
        let spatial_scale = attrs.float("spatial_scale", 1.0)?;
        Ok(Arc::new(Self { half_pixel, max, output, sampling_ratio, spatial_scale }))
    }

    /// Where along one side a region starts, the extent of its cells, and the points in a cell.
    fn side(&self, from: f32, to: f32, cells: usize) -> Result<(f32, f32, usize), Fault> {
        let shift = if self.half_pixel { 0.5 } else { 0.0 };
        let (start, end) = (from * self.spatial_scale - shift, to * self.spatial_scale - shift);
        let length = if self.half_pixel { end - start } else { (end - start).max(1.0) };
        let cell = length / cells as f32;
        let points = if self.sampling_ratio > 0 { self.sampling_ratio } else { cell.ceil().max(0.0) as usize };
        if points > 1 << 12 {
            fail!("a region of {length} pixels");
        }
        Ok((start, cell, points))
    }
}

/// The two pixels around a position and their weights; none if it lies outside.
fn neighbours(position: f32, extent: usize) -> Vec<(usize, f32)> {
    if !(position >= -1.0 && position <= extent as f32) {
        return Vec::new();
    }
    let x = position.max(0.0);
    let low = x as usize;
    if low + 1 >= extent {
        return vec![(extent.saturating_sub(1), 1.0), (extent.saturating_sub(1), 0.0)];
    }
    let t = x - low as f32;
    vec![(low, 1.0 - t), (low + 1, t)]
}

impl Op for RoiAlign {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let channels = x.dim(1).cloned().unwrap_or(Dim::Unknown);
        let regions = known(inputs, 1).and_then(|r| r.dim(0).cloned()).unwrap_or(Dim::Unknown);
        let dims = vec![regions, channels, Dim::Known(self.output.0), Dim::Known(self.output.1)];
        Ok(vec![Some(TensorType::new(x.dtype, dims))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, regions) = (required(inputs, 0)?, required(inputs, 1)?);
        let batches = required(inputs, 2)?.to_i64()?;
        let (&[batch, channels, height, width], &[count, 4]) = (x.shape(), regions.shape()) else {
            fail!("input {:?} and regions {:?}", x.shape(), regions.shape());
        };
        if batches.len() != count || height == 0 || width == 0 {
            fail!("{} batch indices for {count} regions", batches.len());
        }
        let (values, corners) = (x.to_f32()?, regions.to_f32()?);
        let (values, corners) = (elements(&values)?, elements(&corners)?);
        let shape = [count, channels, self.output.0, self.output.1];
        let mut y = Vec::with_capacity(element_count(&shape)?);
        for (region, &sample) in corners.chunks_exact(4).zip(&batches) {
            let Some(sample) = usize::try_from(sample).ok().filter(|&s| s < batch) else {
                fail!("batch index {sample} of {batch}");
            };
            let (left, cell_width, across) = self.side(region[0], region[2], self.output.1)?;
            let (top, cell_height, down) = self.side(region[1], region[3], self.output.0)?;
            let points = |start: f32, cell: f32, index: usize, count: usize, extent: usize| {
                let place = move |k: usize| start + index as f32 * cell + (k as f32 + 0.5) * cell / count as f32;
                (0..count).map(|k| neighbours(place(k), extent)).collect::<Vec<_>>()
            };
            let rows: Vec<_> = (0..self.output.0).map(|i| points(top, cell_height, i, down, height)).collect();
            let columns: Vec<_> =
                (0..self.output.1).map(|i| points(left, cell_width, i, across, width)).collect();
            for channel in 0..channels {
                let plane = &values[(sample * channels + channel) * height * width..][..height * width];
                for (row, column) in rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c))) {
                    y.push(self.cell(row, column, plane, width));
                }
            }
        }
        Ok(vec![rounded(Array::new(&shape, y)?, x.dtype())])
    }
}

impl RoiAlign {
    /// One cell, from the neighbours of its points along both sides.
    fn cell(&self, rows: &[Vec<(usize, f32)>], columns: &[Vec<(usize, f32)>], plane: &[f32], width: usize) -> f32 {
        let (mut sum, mut greatest) = (0.0, None::<f32>);
        for (row, column) in rows.iter().flat_map(|r| columns.iter().map(move |c| (r, c))) {
            let mut best = None::<f32>;
            for (&(i, a), &(j, b)) in row.iter().flat_map(|r| column.iter().map(move |c| (r, c))) {
                let term = a * b * plane.get(i * width + j).copied().unwrap_or(0.0);
                sum += term;
                best = Some(best.map_or(term, |m| m.max(term)));
            }
            let best = best.unwrap_or(0.0);
            greatest = Some(greatest.map_or(best, |m| m.max(best)));
        }
        match self.max {
            true => greatest.unwrap_or(0.0),
            false => sum / (rows.len() * columns.len()).max(1) as f32,
        }
    }
}

/// [DeformConv](https://onnx.ai/onnx/operators/onnx__DeformConv.html): a convolution whose taps are moved by offsets,
/// to places between the pixels, and weighted by a mask.
#[derive(Debug, Clone, PartialEq)]
pub struct DeformConv {
    window: Window,
    group: usize,
    offset_group: usize,
}

impl DeformConv {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let mut count = |name: &str| {
            let value = attrs.int(name, 1)?;
            usize::try_from(value).ok().filter(|&v| v > 0).ok_or_else(|| Fault::new(format!("{name} is {value}")))
        };
        let (group, offset_group) = (count("group")?, count("offset_group")?);
        Ok(Arc::new(Self { window: Window::read(attrs)?, group, offset_group }))
    }
}

impl Op for DeformConv {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).map(|x| TensorType::unranked(x.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, w, offset) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let (&[batch, channels, height, width], &[m, per_group, kh, kw]) = (x.shape(), w.shape()) else {
            return Err(Fault::unimplemented("DeformConv on other than two spatial axes"));
        };
        let axes = self.window.place(&[height, width], &[kh, kw])?;
        let (oh, ow) = (axes[0].output, axes[1].output);
        let (taps, groups) = (kh * kw, self.offset_group);
        if per_group * self.group != channels || m % self.group != 0 || channels % groups != 0 {
            fail!("W {:?} does not fit X {:?} in {} groups", w.shape(), x.shape(), self.group);
        }
        if offset.shape() != [batch, groups * taps * 2, oh, ow] {
            fail!("offsets {:?} for an output of {oh} × {ow}", offset.shape());
        }
        let read = |slot: usize, len: usize| {
            let values = optional(inputs, slot).map(Array::to_f32).transpose()?;
            match &values {
                Some(v) if v.len() != len => fail!("input {slot} has {} elements instead of {len}", v.len()),
                _ => Ok(values.map(|v| v.iter().copied().collect::<Vec<f32>>())),
            }
        };
        let (bias, mask) = (read(3, m)?, read(4, batch * groups * taps * oh * ow)?);
        let [values, weights, moves] = [x, w, offset].map(Array::to_f32);
        let (values, weights, moves) = (values?, weights?, moves?);
        let (values, weights, moves) = (elements(&values)?, elements(&weights)?, elements(&moves)?);
        let sampling = Sampling { mode: Mode::Linear, outside: Outside::Zeros, align_corners: true };
        let mut y = vec![0.0; batch * m * oh * ow];
        for place in 0..batch * oh * ow {
            let (sample, i, j) = (place / (oh * ow), place / ow % oh, place % ow);
            // What each tap of each channel sees.
            let mut seen = vec![0.0; channels * taps];
            for (index, tap) in (0..groups * taps).map(|index| (index, index % taps)) {
                let at = |part: usize| ((sample * groups * taps + index) * 2 + part) * oh * ow + i * ow + j;
                let start = |axis: usize, window: usize, tap: usize| {
                    let a = &axes[axis];
                    (window * a.stride + tap * a.dilation) as f32 - a.begin as f32
                };
                let row = start(0, i, tap / kw) + moves[at(0)];
                let column = start(1, j, tap % kw) + moves[at(1)];
                let taps_of = [sampling.taps(row, height), sampling.taps(column, width)];
                let around = combine(&taps_of, &[height, width]);
                let factor =
                    mask.as_ref().map_or(1.0, |k| k[(sample * groups * taps + index) * oh * ow + i * ow + j]);
                let share = channels / groups;
                for channel in index / taps * share..(index / taps + 1) * share {
                    let plane = &values[(sample * channels + channel) * height * width..][..height * width];
                    seen[channel * taps + tap] = factor * value(&around, plane);
                }
            }
            for output in 0..m {
                let group = output / (m / self.group);
                let own = &seen[group * per_group * taps..][..per_group * taps];
                let row = &weights[output * per_group * taps..][..per_group * taps];
                let sum: f32 = own.iter().zip(row).map(|(a, b)| a * b).sum();
                let bias = bias.as_ref().map_or(0.0, |b| b[output]);
                y[((sample * m + output) * oh + i) * ow + j] = sum + bias;
            }
        }
        Ok(vec![rounded(Array::new(&[batch, m, oh, ow], y)?, x.dtype())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::ints;
    use crate::ops::operand::run;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("sampling");
    }

    /// Without offsets a deformable convolution is a convolution.
    #[test]
    fn no_offsets_no_deformation() {
        let numbers = |shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            Array::new(shape, (0..count).map(|i| (i * 7 % 13) as f32 - 6.0).collect::<Vec<f32>>()).unwrap()
        };
        let (x, w) = (numbers(&[2, 3, 5, 6]), numbers(&[4, 3, 2, 3]));
        let attributes = [ints("pads", [1, 1, 0, 2]), ints("strides", [2, 1]), ints("dilations", [1, 2])];
        let expected = run("Conv", 11, &attributes, &[Some(x.clone()), Some(w.clone())], 1).unwrap();
        let places = &expected[0].shape()[2..];
        let still = Array::new(&[2, 12, places[0], places[1]], vec![0f32; 24 * places[0] * places[1]]).unwrap();
        let op = (OPS[3].parse)(&mut Attrs::new(&attributes, 19, 3, 1)).unwrap();
        assert_eq!(op.float(&[Some(x), Some(w), Some(still)]).unwrap(), expected);
    }
}
