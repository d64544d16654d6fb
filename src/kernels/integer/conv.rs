//! Convolution of bytes over any number of spatial axes.
//!
//! The taps of some windows become the columns of a packed matrix, tile by tile, and are multiplied with the packed
//! weight. A 1×1 kernel with stride 1 packs the input as it lies; one input channel per group is summed directly where
//! the processor can, see [`depthwise`](super::depthwise).

use super::Level;
use super::depthwise::Depthwise;
use super::finish::{Affine, ByteRange};
use super::gemm::{TILE_COLUMNS, product, subtract_column_sums};
use super::pack::{CELL, LANES, Rows, interleave};
use crate::kernels::conv::{Channels, each_run};
use crate::kernels::gemm::Number;
use crate::kernels::window::{Axis, copy_strided, volume};

/// Bytes of the gathered matrix that a tile may have.
const TILE: usize = 1 << 16;

/// A convolution's weight and what becomes of its sums.
#[derive(Debug)]
pub struct Weights {
    /// One signed row for each output channel.
    pub rows: Rows,
    /// The same for direct sums, if each group has but one input channel.
    pub depthwise: Option<Depthwise>,
    /// Zero points of the signed rows; empty if all are 0.
    pub zero_points: Vec<i32>,
    /// Added to the sum of each output channel.
    pub offsets: Vec<i32>,
    /// Multiplied with the sum of each output channel.
    pub scales: Vec<f32>,
    /// Which bytes the results become.
    pub range: ByteRange,
}

/// The bytes of an input.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The planes.
    pub planes: &'a [u8],
    /// What makes the bytes unsigned, by exclusive or.
    pub flip: u8,
    /// What padding reads as, before that.
    pub pad: u8,
}

/// Convolves; the extents are those of [`conv`](crate::kernels::conv::conv).
///
/// # Panics
/// If a slice does not have the length that the extents say.
pub fn conv(level: Level, channels: Channels, axes: &[Axis], x: Input, w: &Weights, y: &mut [u8]) {
    let Channels { batch, groups, input, output } = channels;
    let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
    assert_eq!(x.planes.len(), batch * groups * input * plane_in, "x");
    assert_eq!(y.len(), batch * groups * output * plane_out, "y");
    assert_eq!(w.rows.data.len(), groups * output * 4 * w.rows.quads, "w");
    if y.is_empty() {
        return;
    }
    if let Some(depthwise) = w.depthwise.as_ref().filter(|d| d.fits(level, axes)) {
        return depthwise.run(axes, x, w, y);
    }
    for (index, y) in y.chunks_exact_mut(output * plane_out).enumerate() {
        let group = index % groups;
        let own = Group {
            level,
            axes,
            input,
            rows: &w.rows.data[group * output * 4 * w.rows.quads..][..output * 4 * w.rows.quads],
            quads: w.rows.quads,
            zero_points: w.zero_points.get(group * output..).unwrap_or_default(),
            affine: Affine { offsets: &w.offsets[group * output..], scales: &w.scales[group * output..] },
            range: w.range,
        };
        own.run(Input { planes: &x.planes[index * input * plane_in..][..input * plane_in], ..x }, y);
    }
}

/// One group of channels of one sample.
struct Group<'a> {
    level: Level,
    axes: &'a [Axis],
    input: usize,
    rows: &'a [u8],
    quads: usize,
    zero_points: &'a [i32],
    affine: Affine<'a, true>,
    range: ByteRange,
}

impl Group<'_> {
    fn run(&self, x: Input, y: &mut [u8]) {
        let plane_out = volume(self.axes, |a| a.output);
        let depth = 4 * self.quads;
        let columns = (TILE / depth.max(1)).clamp(TILE_COLUMNS, 1024) / TILE_COLUMNS * TILE_COLUMNS;
        let columns = columns.min(plane_out.next_multiple_of(LANES));
        let direct =
            self.axes.iter().all(|a| a.kernel == 1 && a.stride == 1 && a.begin == 0 && a.output == a.input);
        let room = depth * columns + columns + CELL;
        u8::scratch(room + depth * columns, |buffer| {
            let (lines, panels) = buffer.split_at_mut(room);
            for first in (0..plane_out).step_by(columns) {
                let width = columns.min(plane_out - first);
                let padded = width.next_multiple_of(LANES);
                let panels = &mut panels[..depth * padded];
                if direct {
                    self.pack_planes(x, plane_out, first, width, lines, panels);
                } else {
                    self.pack_windows(x, first, width, lines, panels);
                }
                let (packed, target) = (&*panels, &mut y[first..]);
                product::<true>(self.level, self.quads, self.rows, packed, |mut tile| {
                    if !self.zero_points.is_empty() {
                        subtract_column_sums(&mut tile, self.quads, packed, self.zero_points);
                    }
                    self.affine.bytes(self.level, &tile, width, self.range, target, plane_out);
                });
            }
        });
    }

    /// Packs `width` positions of every plane, from `first` on.
    fn pack_planes(
        &self,
        x: Input,
        plane: usize,
        first: usize,
        width: usize,
        lines: &mut [u8],
        panels: &mut [u8],
    ) {
        let step = self.quads * CELL;
        let whole = width / LANES * LANES;
        let (spare, rest) = lines.split_at_mut(whole.max(LANES));
        spare.fill(x.flip); // packed as 0
        for quad in 0..self.quads {
            let line = |c: usize| match 4 * quad + c {
                c if c < self.input => &x.planes[c * plane + first..][..width],
                _ => &spare[..0],
            };
            let own = [0, 1, 2, 3].map(line);
            let cells = &mut panels[quad * CELL..];
            interleave(
                own.map(|l| if l.is_empty() { &spare[..whole] } else { &l[..whole] }),
                x.flip,
                cells,
                step,
            );
            if whole < width {
                for (tail, line) in rest.chunks_exact_mut(LANES).zip(own) {
                    tail.fill(x.flip);
                    line.get(whole..).unwrap_or_default().iter().zip(tail).for_each(|(&b, t)| *t = b);
                }
                let tails = [0, 1, 2, 3].map(|t| &rest[t * LANES..][..LANES]);
                interleave(tails, x.flip, &mut cells[whole / LANES * step..], step);
            }
        }
    }

    /// Packs the taps of `width` windows, from `first` on.
    fn pack_windows(&self, x: Input, first: usize, width: usize, lines: &mut [u8], panels: &mut [u8]) {
        let (plane, kernel) = (volume(self.axes, |a| a.input), volume(self.axes, |a| a.kernel));
        let padded = width.next_multiple_of(LANES);
        let lines = &mut lines[..4 * self.quads * padded];
        each_run(self.axes, first, width, |tap, run| {
            for c in 0..self.input {
                let line = &mut lines[(c * kernel + tap) * padded + run.at..][..run.len];
                let Some(source) = run.source else {
                    line.fill(x.pad);
                    continue;
                };
                line[..run.first].fill(x.pad);
                line[run.last..].fill(x.pad);
                copy_strided(&x.planes[c * plane + source..], run.stride, &mut line[run.first..run.last]);
            }
        });
        lines[self.input * kernel * padded..].fill(x.flip); // packed as 0
        for (quad, lines) in lines.chunks_exact(4 * padded).enumerate() {
            let own = [0, 1, 2, 3].map(|t| &lines[t * padded..][..padded]);
            interleave(own, x.flip, &mut panels[quad * CELL..], self.quads * CELL);
        }
    }
}

#[cfg(test)]
mod tests;
