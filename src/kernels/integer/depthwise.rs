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
use crate::kernels::window::{each_index, volume};

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
        level >= Level::Vnni && self.row > 0 && axes.last().is_some_and(near)
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
        let extents = |f: fn(&Axis) -> usize| outer.iter().map(f).collect::<Vec<_>>();
        let mut rows = Vec::new();
        each_index(&extents(|a| a.output), |o| {
            each_index(&extents(|a| a.kernel), |tap| {
                let line = outer.iter().zip(o.iter().zip(tap)).try_fold(0, |line, (a, (&o, &tap))| {
                    a.source(o, tap).map(|position| line * a.input + position)
                });
                rows.push(line.map(|line| line * last.input));
            });
        });
        let taps = volume(outer, |a| a.kernel);
        let windows = DepthwiseWindows::new(rows, taps, last, x.pad);
        let (channels, count) = (w.offsets.len(), taps * self.row);
        for (index, y) in y.chunks_exact_mut(plane_out).enumerate() {
            let channel = index % channels;
            let own = DepthwiseChannel {
                plane: &x.planes[index / self.output * plane_in..][..plane_in],
                flip: x.flip,
                weights: &self.quads[channel * count..][..count],
                offset: w.offsets[channel],
                scale: w.scales[channel],
                range: w.range,
            };
            windows.run(&own, y);
        }
    }
}
