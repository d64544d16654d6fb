//! Convolution of bytes over any number of spatial axes.
//!
//! The taps of some windows become the columns of a packed matrix, tile by tile, and are multiplied with the packed
//! weight. A 1×1 kernel with stride 1 packs the input as it lies; other windows see [`windows`](super::windows); one
//! input channel per group is summed directly where the processor can, see [`depthwise`](super::depthwise).

use super::Level;
use super::depthwise::Depthwise;
use super::finish::{Affine, ByteRange};
use super::gemm::{Operands, TILE, product, subtract_column_sums};
use super::pack::{CELL, Cell, LANES, Rows, block_len, pack_columns};
use super::windows::Windows;
use crate::error::Fault;
use crate::kernels::conv::Channels;
use crate::kernels::window::{Axis, volume};

/// Bytes of the packed matrix that a tile may have.
const ROOM: usize = 1 << 17;

/// A convolution's weight and what becomes of its sums.
#[derive(Debug)]
pub struct Weights {
    /// One signed row for each output channel, in the order of [`kernels`](super::windows::kernels); a matrix for each
    /// group.
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

/// Convolves; the extents are those of [`conv`](crate::kernels::conv::conv), and so is the fault.
///
/// # Panics
/// If a slice does not have the length that the extents say.
pub fn conv(
    level: Level,
    channels: Channels,
    axes: &[Axis],
    x: Input,
    w: &Weights,
    y: &mut [u8],
) -> Result<(), Fault> {
    let Channels { batch, groups, input, output } = channels;
    let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
    assert_eq!(x.planes.len(), batch * groups * input * plane_in, "x");
    assert_eq!(y.len(), batch * groups * output * plane_out, "y");
    assert!(w.rows.sums.len() == groups * output && w.rows.count == output, "w");
    if y.is_empty() {
        return Ok(());
    }
    if let Some(depthwise) = w.depthwise.as_ref().filter(|d| d.fits(level, axes)) {
        depthwise.run(axes, x, w, y);
        return Ok(());
    }
    let direct = axes.iter().all(|a| a.kernel == 1 && a.stride == 1 && a.begin == 0 && a.output == a.input);
    let windows = if direct { None } else { Some(Windows::new(input, axes)?) };
    let len = block_len(w.rows.quads);
    let columns = (ROOM / (len * CELL)).clamp(2, 64) / 2 * TILE;
    let columns = columns.min(plane_out.next_multiple_of(LANES));
    let panels = columns / LANES * len;
    // Windows may write a cell more than they have.
    Cell::scratch(panels + 1 + windows.as_ref().map_or(0, Windows::room), |cells| {
        let (panels, room) = cells.split_at_mut(panels + 1);
        for (index, y) in y.chunks_exact_mut(output * plane_out).enumerate() {
            let planes = &x.planes[index * input * plane_in..][..input * plane_in];
            if let Some(windows) = &windows {
                windows.spread(Input { planes, ..x }, room);
            }
            let group = index % groups * output;
            let zero_points = w.zero_points.get(group..).unwrap_or_default();
            let affine = Affine::<true> { offsets: &w.offsets[group..], scales: &w.scales[group..] };
            for first in (0..plane_out).step_by(columns) {
                let width = columns.min(plane_out - first);
                let own = width.div_ceil(LANES) * len;
                match &windows {
                    Some(windows) => windows.pack(room, (first, width), &mut panels[..=own]),
                    None => pack_columns(planes, plane_out, (first, width), x.flip, &mut panels[..own]),
                }
                let operands = Operands::<true> {
                    quads: w.rows.quads,
                    count: output,
                    rows: w.rows.matrix(index % groups),
                    columns: &panels[..own],
                };
                let target = &mut y[first..];
                product(level, operands, |mut tile| {
                    if !zero_points.is_empty() {
                        subtract_column_sums(&mut tile, operands.quads, operands.columns, zero_points);
                    }
                    affine.bytes(level, &tile, width, w.range, target, plane_out);
                });
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests;
