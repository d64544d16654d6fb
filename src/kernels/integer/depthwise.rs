//! Convolution with one input channel per group, by direct sums.
//!
//! Four neighbouring taps of a row of the kernel form a quad. For each quad, one permutation brings the bytes that 16
//! windows read in place and one dot product adds them up, whatever stride and dilation are, as long as the bytes lie
//! within 64 of each other.

use super::Level;
use super::conv::{Input, Weights};
use super::pack::{CELL, LANES};
#[cfg(target_arch = "x86_64")]
use super::vnni::{DepthwiseChannel, DepthwiseWindows};
use crate::kernels::window::Axis;
#[cfg(target_arch = "x86_64")]
use crate::kernels::{
    gemm::Number,
    window::{each_index, volume},
};

/// The weight of a convolution with one input channel per group.
#[derive(Debug, Clone)]
pub struct Depthwise {
    /// For each output channel, its quads of signed weights.
    quads: Vec<i32>,
    /// Quads of a row of the kernel.
    row: usize,
    /// Output channels of a group.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    output: usize,
}

impl Depthwise {
    /// Packs signed kernels with rows of `row` taps; each group has `output` channels.
    pub fn new(kernels: &[u8], row: usize, flip: u8, output: usize) -> Self {
        let quad = |taps: &[u8]| {
            let mut bytes = [0; 4];
            bytes.iter_mut().zip(taps).for_each(|(b, t)| *b = t ^ flip);
            i32::from_le_bytes(bytes)
        };
        let quads = kernels.chunks_exact(row.max(1)).flat_map(|taps| taps.chunks(4).map(quad)).collect();
        Self { quads, row: row.div_ceil(4), output }
    }

    /// Can these windows be summed directly?
    pub fn fits(&self, level: Level, axes: &[Axis]) -> bool {
        let near = |a: &Axis| a.stride.saturating_mul(LANES - 1).saturating_add(3 * a.dilation) < CELL;
        level == Level::Vnni && self.row > 0 && axes.last().is_some_and(near)
    }

    /// Convolves; see [`conv`](super::conv::conv).
    #[cfg(not(target_arch = "x86_64"))]
    pub fn run(&self, _axes: &[Axis], _x: Input, _w: &Weights, _y: &mut [u8]) {}

    /// Convolves; see [`conv`](super::conv::conv).
    ///
    /// # Panics
    /// If a slice does not have the length that the extents say.
    #[cfg(target_arch = "x86_64")]
    pub fn run(&self, axes: &[Axis], x: Input, w: &Weights, y: &mut [u8]) {
        let Some((last, outer)) = axes.split_last() else { return };
        let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
        // The part of the padded plane that windows read.
        let extents: Vec<usize> =
            axes.iter().map(|a| (a.output - 1) * a.stride + (a.kernel - 1) * a.dilation + 1).collect();
        let pitches: Vec<usize> = (0..axes.len()).map(|i| extents[i + 1..].iter().product()).collect();
        let kernels: Vec<usize> = outer.iter().map(|a| a.kernel).collect();
        let mut quads = Vec::new();
        each_index(&kernels, |tap| {
            let start: usize =
                tap.iter().zip(outer).zip(&pitches).map(|((t, a), p)| t * a.dilation * p).sum();
            quads.extend((0..self.row).map(|quad| start + 4 * quad * last.dilation));
        });
        let outputs: Vec<usize> = outer.iter().map(|a| a.output).collect();
        let mut rows = Vec::new();
        each_index(&outputs, |o| {
            rows.push(o.iter().zip(outer).zip(&pitches).map(|((o, a), p)| o * a.stride * p).sum());
        });
        let count = quads.len();
        let windows = DepthwiseWindows {
            rows,
            width: last.output,
            quads,
            stride: last.stride,
            dilation: last.dilation,
        };
        let size: usize = extents.iter().product();
        let copies = Copies::new(axes, &extents);
        u8::scratch(size.max(windows.room()), |plane| {
            plane.fill(x.pad ^ x.flip);
            let channels = w.offsets.len();
            for (index, y) in y.chunks_exact_mut(plane_out).enumerate() {
                let channel = index % channels;
                if channel.is_multiple_of(self.output) {
                    let source = &x.planes[index / self.output * plane_in..][..plane_in];
                    copies.run(source, x.flip, plane);
                }
                let own = DepthwiseChannel {
                    weights: &self.quads[channel * count..][..count],
                    offset: w.offsets[channel],
                    scale: w.scales[channel],
                    range: w.range,
                };
                windows.run(plane, &own, y);
            }
        });
    }
}

/// How a plane is copied into the middle of a padded one.
#[cfg(target_arch = "x86_64")]
struct Copies {
    /// Where each row comes from and goes to.
    rows: Vec<(usize, usize)>,
    /// Bytes of a row.
    width: usize,
}

#[cfg(target_arch = "x86_64")]
impl Copies {
    fn new(axes: &[Axis], extents: &[usize]) -> Self {
        let mut copies = Self { rows: Vec::new(), width: 0 };
        let (Some((last, outer)), Some((&width, lines))) = (axes.split_last(), extents.split_last()) else {
            return copies;
        };
        copies.width = last.input.min(width.saturating_sub(last.begin));
        let mut target = last.begin;
        each_index(lines, |index| {
            let line = index.iter().zip(outer).try_fold(0, |line, (i, a)| {
                i.checked_sub(a.begin).filter(|&p| p < a.input).map(|p| line * a.input + p)
            });
            copies.rows.extend(line.filter(|_| copies.width > 0).map(|line| (line * last.input, target)));
            target += width;
        });
        copies
    }

    fn run(&self, source: &[u8], flip: u8, plane: &mut [u8]) {
        for &(from, to) in &self.rows {
            let (from, to) = (&source[from..][..self.width], &mut plane[to..][..self.width]);
            if flip == 0 {
                to.copy_from_slice(from);
            } else {
                to.iter_mut().zip(from).for_each(|(t, s)| *t = s ^ flip);
            }
        }
    }
}
