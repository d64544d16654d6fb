//! Convolution and its transpose over any number of spatial axes.
//!
//! Three ways lead to the same sums:
//! * a 1×1 kernel with stride 1 is a matrix product of the weight with the input as it lies;
//! * one input channel per group (depthwise) is a weighted sum of shifted planes, see [`Depthwise`] and [`Phases`];
//! * everything else gathers the taps of some windows as columns of a matrix (`im2col`) and multiplies, tile by tile,
//!   so that the gathered matrix stays small.
//!
//! The sums are made of parts; which products a part has is said by [`Order`].

pub mod gradient;

use super::depthwise::{Depthwise, Taps};
use super::finish::Finish;
use super::gemm::{Left, Mat, MatMut, Number, Parts, Size, contract, gemm};
use super::product::{Ending, Panels};
use super::simd::Isa;
use super::turned;
use super::window::{Axis, Phases, copy_padded, each_index, fold, volume};
use crate::error::Fault;
use crate::ir::Limits;

/// Elements of the gathered matrix that a tile may have.
const TILE: usize = 1 << 17;

/// In which order the products of a window are added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Channel by channel, in [`Parts::of`] the windows, as in a product of matrices.
    #[default]
    Channels,
    /// The same, but with one input and one output channel in each group it is [`Taps::Fours`]: ONNX Runtime's kernels
    /// without optimizations.
    Fours,
    /// As ONNX Runtime's kernels on blocks of channels have it (`snchwc.cpp`, with AVX-512): with less than a block of
    /// channels, a part is a channel; else it is a block, tap by tap. If windows have one tap and no padding, a part is
    /// 128 channels.
    Blocks,
}

/// Channels of a block.
const BLOCK: usize = 16;

/// Channels of a part where windows are points.
const POINTS: usize = 128;

/// Channels come in multiples of this in [`Order::Blocks`].
const ALIGNED: usize = 4;

impl Order {
    /// Are these weights, known ahead, given to the kernels of [`Order::Blocks`] (`nchwc_transformer.cc`)?
    pub fn has_blocks(w: &[usize], groups: usize) -> bool {
        let &[output, input, _, _] = w else { return false };
        match groups {
            1 => input < BLOCK || input.is_multiple_of(ALIGNED),
            _ if input == 1 && output == groups => output.is_multiple_of(ALIGNED),
            _ => input.is_multiple_of(BLOCK) && (output / groups).is_multiple_of(BLOCK),
        }
    }

    /// The parts of sums for `output` channels over `input` channels and these windows.
    fn parts(self, Channels { input, output, .. }: Channels, axes: &[Axis]) -> Parts {
        let taps = volume(axes, |a| a.kernel);
        match self {
            Self::Channels | Self::Fours => {
                Parts::of(Size { m: output, n: volume(axes, |a| a.output), k: input * taps })
            }
            Self::Blocks if input < BLOCK => Parts::each(taps),
            Self::Blocks if axes.iter().all(|a| a.kernel == 1 && a.begin == 0 && a.end == 0) => {
                Parts::each(POINTS)
            }
            Self::Blocks => Parts::each(BLOCK * taps),
        }
    }

    /// Which product of a sum the first tap of a channel makes, and how many further on the next tap's is.
    fn position(self, input: usize, taps: usize, channel: usize) -> (usize, usize) {
        let first = channel - channel % BLOCK;
        match self {
            Self::Blocks if input >= BLOCK => (first * taps + (channel - first), BLOCK.min(input - first)),
            _ => (channel * taps, 1),
        }
    }

    /// The weights of `input` channels for each output, in this order.
    fn arrange<T: Number>(self, w: &[T], input: usize, taps: usize) -> Vec<T> {
        let mut arranged = w.to_vec();
        for (row, w) in arranged.chunks_exact_mut(input * taps).zip(w.chunks_exact(input * taps)) {
            for (channel, w) in w.chunks_exact(taps).enumerate() {
                let (first, step) = self.position(input, taps, channel);
                row[first..].iter_mut().step_by(step).zip(w).for_each(|(to, &w)| *to = w);
            }
        }
        arranged
    }
}

/// The extents of a convolution besides its spatial axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Channels {
    /// Samples.
    pub batch: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Input channels of one group.
    pub input: usize,
    /// Output channels of one group.
    pub output: usize,
}

impl Channels {
    /// Input and output exchanged: the extents of the transposed convolution.
    pub fn turned(self) -> Self {
        Self { input: self.output, output: self.input, ..self }
    }
}

/// `y[n, g·M+m, o] = bias[g·M+m] + Σ_{c,t} w[g·M+m, c, t] · x[n, g·C+c, position(o, t)]`.
///
/// `x` has `batch·groups·input` planes, `w` has `groups·output·input` kernels and `y` gets `batch·groups·output`
/// planes; a fault says that the windows are too large for memory.
///
/// # Panics
/// If a slice does not have the length that the extents say.
pub fn conv<T: Number>(
    channels: Channels,
    axes: &[Axis],
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
) -> Result<Vec<T>, Fault> {
    let mut finish = Finish::new(Limits::NONE);
    conv_finished(
        channels,
        axes,
        Order::Channels,
        x,
        (w, None),
        Ending { bias, added: None, finish: &mut finish },
    )
}

/// Does a convolution whose weights are known ahead gain by [`lay_out`]?
pub fn gains(channels: Channels, axes: &[Axis], order: Order) -> bool {
    let size = Size {
        m: channels.output,
        n: volume(axes, |a| a.output),
        k: channels.input * volume(axes, |a| a.kernel),
    };
    channels.groups == 1 && turned::pays(size, order.parts(channels, axes))
}

/// The weights as panels, for all convolutions in this order over windows of whose number [`gains`] approves.
///
/// # Panics
/// Like [`conv`].
pub fn lay_out(channels: Channels, axes: &[Axis], order: Order, w: &[f32]) -> Panels {
    let taps = volume(axes, |a| a.kernel);
    let depth = channels.input * taps;
    let size = (depth, channels.output);
    let parts = order.parts(channels, axes);
    match order {
        Order::Blocks if channels.input >= BLOCK => {
            let arranged = order.arrange(w, channels.input, taps);
            Panels::of(Mat::transposed(&arranged, depth), size, parts)
        }
        _ => Panels::of(Mat::transposed(w, depth), size, parts),
    }
}

/// The same with sums in some order, and with what is done to the planes as rows while their elements are at hand.
/// There is a bias for each channel, and something to be added for each plane. The weights may have been laid out.
///
/// # Panics
/// Like [`conv`].
pub fn conv_finished<T: Number>(
    channels: Channels,
    axes: &[Axis],
    order: Order,
    x: &[T],
    (w, panels): (&[T], Option<&Panels>),
    end: Ending<T>,
) -> Result<Vec<T>, Fault> {
    let Channels { batch, groups, input, output } = channels;
    let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
    let depth = input * volume(axes, |a| a.kernel);
    assert_eq!(x.len(), batch * groups * input * plane_in, "x");
    assert_eq!(w.len(), groups * output * depth, "w");
    let mut y = T::result(batch * groups * output * plane_out);
    if y.is_empty() {
        return Ok(y);
    }
    let direct = axes.iter().all(|a| a.kernel == 1 && a.stride == 1 && a.begin == 0 && a.output == a.input);
    let few = input == 1 && !direct && (groups > 1 || output < 4);
    let parts = order.parts(channels, axes);
    let taps = if order == Order::Fours && output == 1 { Taps::Fours } else { Taps::Fused };
    let own = T::PLANE.filter(|_| few).and_then(|run| Some((run, Depthwise::new(axes, taps)?)));
    let phased = few && own.is_none() && order != Order::Fours;
    let phases = if phased { Some(Phases::new(axes)?) } else { None };
    let mut taps: Vec<(usize, T)> =
        phases.iter().flat_map(Phases::taps).map(|&at| (at, T::default())).collect();
    let panels = panels.filter(|p| p.fit((depth, output), parts) && gains(channels, axes, order));
    let arranged = match order {
        Order::Blocks if input >= BLOCK && !direct && panels.is_none() => {
            order.arrange(w, input, depth / input)
        }
        _ => Vec::new(),
    };
    let w = if arranged.is_empty() { w } else { &arranged };
    for (index, y) in y.chunks_exact_mut(output * plane_out).enumerate() {
        let group = index % groups;
        let x = &x[index * input * plane_in..][..input * plane_in];
        let w = &w[group * output * depth..][..output * depth];
        let bias = end.bias.map(|bias| &bias[group * output..][..output]);
        let added = end.added.map(|added| Mat { data: &added.data[index * output * added.row..], ..added });
        let mut end = Ending { bias, added, finish: &mut *end.finish };
        match (&own, &phases) {
            (Some((run, windows)), _) => {
                for (channel, (w, y)) in w.chunks_exact(depth).zip(y.chunks_exact_mut(plane_out)).enumerate()
                {
                    let bias = bias.map(|bias| bias[channel]);
                    if added.is_none() {
                        run(windows, Isa::detect(), x, (w, bias), y, end.finish);
                        continue;
                    }
                    run(windows, Isa::detect(), x, (w, bias), y, &mut Finish::new(Limits::NONE));
                    Ending { bias: None, ..end.from(channel, 0) }.row(0, 0, y);
                }
            }
            (None, Some(phases)) => depthwise(phases, &mut taps, x, w, y, end),
            (None, None) if direct => {
                let size = Size { m: output, n: plane_out, k: input };
                let (w, x) = (Mat::rows(w, input), Mat::rows(x, plane_in));
                contract(size, (w, panels), x, MatMut::rows(y, plane_out), parts, end);
            }
            (None, None) => gathered(axes, (input, order, parts), x, (Mat::rows(w, depth), panels), y, end),
        }
    }
    Ok(y)
}

/// One input plane, one kernel and one output plane for each output channel. `taps` is room for those of a kernel.
fn depthwise<T: Number>(
    phases: &Phases,
    taps: &mut [(usize, T)],
    x: &[T],
    w: &[T],
    y: &mut [T],
    mut end: Ending<T>,
) {
    let plane_out = y.len() / (w.len() / taps.len());
    T::scratch(phases.size() + phases.span(), |buffer| {
        let (split, sums) = buffer.split_at_mut(phases.size());
        phases.split(x, T::default(), split);
        for (channel, (w, y)) in w.chunks_exact(taps.len()).zip(y.chunks_exact_mut(plane_out)).enumerate() {
            taps.iter_mut().zip(w).for_each(|(tap, &w)| tap.1 = w);
            sums.fill(T::default());
            fold(taps, split, sums, |sum, x, w| sum.plus_product(x, w));
            phases.join(sums, y);
            end.row(channel, 0, y);
        }
    });
}

/// One group of one sample by gathering. The weights are arranged in the order of the sums.
fn gathered<T: Number>(
    axes: &[Axis],
    (input, order, parts): (usize, Order, Parts),
    x: &[T],
    w: Left<T>,
    y: &mut [T],
    mut end: Ending<T>,
) {
    let plane_out = volume(axes, |a| a.output);
    let depth = input * volume(axes, |a| a.kernel);
    let width = if w.1.is_some() { plane_out } else { tile_width(depth, plane_out) };
    T::scratch(depth * width, |columns| {
        for first in (0..plane_out).step_by(width) {
            let width = width.min(plane_out - first);
            let columns = &mut columns[..depth * width];
            gather(axes, (input, order), x, first, width, columns);
            let size = Size { m: y.len() / plane_out, n: width, k: depth };
            let target = MatMut { data: &mut y[first..], row: plane_out, col: 1 };
            contract(size, w, Mat::rows(columns, width), target, parts, end.from(0, first));
        }
    });
}

/// Columns of a tile: many enough for the product to be efficient, about as many in each tile, whole register tiles.
fn tile_width(depth: usize, columns: usize) -> usize {
    let widest = (TILE / depth.max(1)).clamp(96, 960);
    columns.div_ceil(columns.div_ceil(widest).max(1)).next_multiple_of(48).min(columns)
}

/// Writes the taps of windows `first..first + width` as columns, whose rows are in the order of the sums: without
/// another, row `c·taps + t` holds tap `t` of channel `c`.
fn gather<T: Number>(
    axes: &[Axis],
    (input, order): (usize, Order),
    x: &[T],
    first: usize,
    width: usize,
    columns: &mut [T],
) {
    let (kernel, plane) = (volume(axes, |a| a.kernel), volume(axes, |a| a.input));
    let mut runs = Vec::new();
    each_run(axes, first, width, |tap, run| runs.push((tap, run)));
    // Channel by channel: a plane is near while all taps read it.
    for c in 0..input {
        let x = &x[c * plane..][..plane];
        let (first, step) = order.position(input, kernel, c);
        for (tap, run) in &runs {
            let line = &mut columns[(first + tap * step) * width + run.at..][..run.len];
            match run.source {
                Some(source) => {
                    copy_padded(&x[source..], run.stride, (run.first, run.last), T::default(), line);
                }
                None => line.fill(T::default()),
            }
        }
    }
}

/// Neighbouring windows of one row of the output, as one tap sees them.
pub(super) struct Run {
    /// Index of the first window in the tile.
    pub at: usize,
    /// Number of windows.
    pub len: usize,
    /// The windows of the run from this one…
    pub first: usize,
    /// … to before this one read the input; the others read padding.
    pub last: usize,
    /// Where window `first` reads in a plane of the input; none if all windows read padding.
    pub source: Option<usize>,
    /// Distance between windows.
    pub stride: usize,
}

/// Visits, for each tap, the runs of windows `first..first + width`.
pub(super) fn each_run(axes: &[Axis], first: usize, width: usize, mut f: impl FnMut(usize, Run)) {
    let Some((row, outer)) = axes.split_last() else {
        f(0, Run { at: 0, len: width, first: 0, last: width, source: Some(0), stride: 1 });
        return;
    };
    let kernels: Vec<usize> = axes.iter().map(|a| a.kernel).collect();
    let mut number = 0;
    each_index(&kernels, |tap| {
        let (inside_first, inside_last) = row.inside(tap[outer.len()]);
        let mut at = 0;
        while at < width {
            let (mut line, start) = ((first + at) / row.output, (first + at) % row.output);
            let len = (row.output - start).min(width - at);
            let (from, to) = (inside_first.clamp(start, start + len), inside_last.clamp(start, start + len));
            let (mut plane, mut unit) = (Some(0), row.input);
            for (a, &tap) in outer.iter().zip(tap).rev() {
                plane = plane.zip(a.source(line % a.output, tap)).map(|(sum, p)| sum + p * unit);
                (line, unit) = (line / a.output, unit * a.input);
            }
            let source = plane.filter(|_| from < to).zip(row.source(from, tap[outer.len()]));
            let source = source.map(|(plane, position)| plane + position);
            f(number, Run { at, len, first: from - start, last: to - start, source, stride: row.stride });
            at += len;
        }
        number += 1;
    });
}

/// The transpose of [`conv`] as a map of its input: each element of `x` adds a scaled kernel to `y`.
///
/// The axes are those of the convolution whose transpose this is, so its `input` is the extent of `y` and its
/// `output` that of `x`. `w` has `groups·input` rows of `output` kernels.
///
/// # Panics
/// If a slice does not have the length that the extents say.
pub fn conv_transpose<T: Number>(
    channels: Channels,
    axes: &[Axis],
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) {
    let Channels { batch, groups, input, output } = channels;
    let (plane_x, plane_y) = (volume(axes, |a| a.output), volume(axes, |a| a.input));
    let kernel = volume(axes, |a| a.kernel);
    let depth = output * kernel;
    assert_eq!(x.len(), batch * groups * input * plane_x, "x");
    assert_eq!(w.len(), groups * input * depth, "w");
    assert_eq!(y.len(), batch * groups * output * plane_y, "y");
    if y.is_empty() {
        return;
    }
    for (channel, plane) in y.chunks_exact_mut(plane_y).enumerate() {
        plane.fill(bias.map_or(T::default(), |b| b[channel % (groups * output)]));
    }
    let width = tile_width(depth, plane_x);
    if x.is_empty() || depth == 0 {
        return;
    }
    T::scratch(depth * width, |columns| {
        for (index, y) in y.chunks_exact_mut(output * plane_y).enumerate() {
            let x = &x[index * input * plane_x..][..input * plane_x];
            let w = &w[index % groups * input * depth..][..input * depth];
            for first in (0..plane_x).step_by(width) {
                let width = width.min(plane_x - first);
                let columns = &mut columns[..depth * width];
                let size = Size { m: depth, n: width, k: input };
                let source = Mat { data: &x[first..], row: plane_x, col: 1 };
                gemm(
                    size,
                    T::ONE,
                    Mat::transposed(w, depth),
                    source,
                    T::default(),
                    MatMut::rows(columns, width),
                );
                each_run(axes, first, width, |tap, run| {
                    let Some(start) = run.source else { return };
                    for m in 0..output {
                        let line = &columns[(m * kernel + tap) * width + run.at..][run.first..run.last];
                        let target = y[m * plane_y + start..].iter_mut().step_by(run.stride);
                        target.zip(line).for_each(|(y, &v)| *y = y.plus(v));
                    }
                });
            }
        }
    });
}

#[cfg(test)]
mod tests;
