//! Products of bytes whose results are the sums themselves: exact integers of 32 bits, which wrap.
//!
//! Rows and columns stand for `a - za` and `b - zb`. Since `Σ (a - za)(b - zb) = Σ ab - zb·Σa - za·(Σb - k·zb)`, the
//! bytes are multiplied as they are, and what the zero points change is subtracted from each sum.

use std::borrow::Cow;

use super::conv::{Channels, each_run};
use super::integer::Level;
use super::integer::conv::Input;
use super::integer::gemm::{Operands, TILE, product, subtract_row_sums};
use super::integer::pack::{self, Cell, LANES, block_len, pack_rows};
use super::window::{Axis, volume};

/// Bytes of gathered windows at a time, which stay in a near cache.
const GATHERED: usize = 1 << 16;

/// A matrix of bytes, packed to be multiplied with rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    packed: pack::Columns,
    depth: usize,
    /// The zero point of each column, as signed bytes have it; empty if all are 0.
    zeros: Vec<i32>,
    /// What a zero point of a row of 1 adds to the sum: `Σb - k·zb`.
    factors: Vec<i32>,
}

impl Columns {
    /// The columns of a `k`×`n` matrix whose element `(p, j)` is `data[p * row + j * col]`. Exclusive or with `flip`
    /// makes the bytes signed; `zeros` are zero points of signed bytes, one for each column or one for all.
    ///
    /// # Panics
    /// If the matrix does not lie inside `data`.
    pub fn new(data: &[u8], (k, n): (usize, usize), steps: (usize, usize), flip: u8, zeros: &[i32]) -> Self {
        let lines = if steps == (n, 1) {
            Cow::Borrowed(data)
        } else {
            let line = |p: usize| (0..n).map(move |j| data[p * steps.0 + j * steps.1]);
            Cow::Owned((0..k).flat_map(line).collect())
        };
        let packed = pack::Columns::signed(&lines, (k, n), flip);
        let zero = |j: usize| zeros.get(if zeros.len() == 1 { 0 } else { j }).copied().unwrap_or(0);
        let factor = |(j, sum): (usize, &i32)| sum.wrapping_sub((k as i32).wrapping_mul(zero(j)));
        let factors = packed.sums.iter().enumerate().map(factor).collect();
        let zeros = if zeros.iter().any(|&z| z != 0) { (0..n).map(zero).collect() } else { Vec::new() };
        Self { packed, depth: k, zeros, factors }
    }

    /// Number of columns.
    pub fn count(&self) -> usize {
        self.factors.len()
    }

    /// Multiplies rows of `k` bytes that `flip` makes unsigned. `zeros` are zero points of unsigned bytes, one for
    /// each row or one for all. `each` gets a row, the first of some neighbouring columns, and their sums; if `k` is
    /// 0 it is not called, as all sums are 0.
    pub fn multiply(&self, rows: &[u8], flip: u8, zeros: &[i32], mut each: impl FnMut(usize, usize, &[i32])) {
        let (quads, k) = (self.packed.quads, self.depth);
        if k == 0 {
            return;
        }
        let count = rows.len() / k;
        let sum = |row: &[u8]| pack::sum(row, |b| i32::from(b ^ flip));
        let sums: Vec<i32> =
            if self.zeros.is_empty() { Vec::new() } else { rows.chunks_exact(k).map(sum).collect() };
        Cell::scratch(count.div_ceil(LANES) * block_len(quads), |cells| {
            pack_rows(rows, k, flip, cells);
            let operands = Operands::<false> { quads, count, rows: cells, columns: &self.packed.data };
            product(Level::detect(), operands, |mut tile| {
                if !sums.is_empty() {
                    subtract_row_sums(&mut tile, &sums, &self.zeros);
                }
                let (first, factors) = (tile.columns.0, &self.factors[tile.columns.0..]);
                let width = tile.columns.1.min(factors.len());
                for (r, sums) in tile.sums.0.iter_mut().take(tile.rows.1).enumerate() {
                    let (row, sums) = (tile.rows.0 + r, &mut sums[..width]);
                    let zero = zeros.get(if zeros.len() == 1 { 0 } else { row }).copied().unwrap_or(0);
                    for (sum, factor) in sums.iter_mut().zip(factors) {
                        *sum = sum.wrapping_sub(zero.wrapping_mul(*factor));
                    }
                    each(row, first, sums);
                }
            });
        });
    }
}

/// Convolves; the extents are those of [`conv`](super::conv::conv). What padding reads as is the zero point of `x`; the
/// kernels of each group's output channels are its columns.
///
/// # Panics
/// If a slice does not have the length that the extents say.
pub fn conv(channels: Channels, axes: &[Axis], x: Input, kernels: &[Columns], y: &mut [i32]) {
    let Channels { batch, groups, input, output } = channels;
    let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
    let depth = input * volume(axes, |a| a.kernel);
    assert_eq!(x.planes.len(), batch * groups * input * plane_in, "x");
    assert_eq!(y.len(), batch * groups * output * plane_out, "y");
    assert!(kernels.len() == groups && kernels.iter().all(|k| k.depth == depth && k.count() == output), "w");
    y.fill(0);
    if y.is_empty() || depth == 0 {
        return;
    }
    let width = (GATHERED / depth).clamp(TILE, 1024).min(plane_out);
    let zero = [i32::from(x.pad ^ x.flip)];
    let mut rows = vec![0; width * depth];
    for (index, y) in y.chunks_exact_mut(output * plane_out).enumerate() {
        let planes = &x.planes[index * input * plane_in..][..input * plane_in];
        for first in (0..plane_out).step_by(width) {
            let count = width.min(plane_out - first);
            let rows = &mut rows[..count * depth];
            gather(axes, Input { planes, ..x }, input, (first, count), rows);
            kernels[index % groups].multiply(rows, 0, &zero, |window, channel, sums| {
                for (j, &sum) in sums.iter().enumerate() {
                    y[(channel + j) * plane_out + first + window] = sum;
                }
            });
        }
    }
}

/// What some windows of `input` planes read, a row each.
fn gather(axes: &[Axis], x: Input, input: usize, (first, count): (usize, usize), rows: &mut [u8]) {
    let (size, kernel, row) = (volume(axes, |a| a.input), volume(axes, |a| a.kernel), rows.len() / count);
    each_run(axes, first, count, |tap, run| {
        for c in 0..input {
            let plane = &x.planes[c * size..][..size];
            let mut targets = rows[run.at * row + c * kernel + tap..].iter_mut().step_by(row).take(run.len);
            let inside = run.source.map_or(0..0, |_| run.first..run.last);
            targets.by_ref().take(inside.start).for_each(|t| *t = x.pad ^ x.flip);
            let sources = plane[run.source.unwrap_or(0)..].iter().step_by(run.stride);
            targets.by_ref().take(inside.len()).zip(sources).for_each(|(t, s)| *t = s ^ x.flip);
            targets.for_each(|t| *t = x.pad ^ x.flip);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::integer::pack::FLIP;
    use crate::kernels::window::Padding;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// The value of a byte that `flip` makes unsigned, without its zero point.
    fn unsigned(b: u8, flip: u8) -> i64 {
        i64::from(b ^ flip)
    }

    #[test]
    fn long_sums_wrap() {
        let k = 8_500_000;
        let columns = Columns::new(&vec![1; k], (k, 1), (1, 1), 0, &[3]);
        let mut found = None;
        columns.multiply(&vec![255; k], 0, &[0], |_, _, sums| found = Some(sums.to_vec()));
        assert_eq!(found, Some(vec![(-2 * 255 * k as i64) as i32]));
    }

    proptest! {
        #[test]
        fn sums_are_their_definition(
            (m, n, k) in (0usize..11, 0usize..60, 0usize..23), turned: bool, signed: bool, low: bool,
            bytes in vec(any::<u8>(), 2048), one: bool,
        ) {
            let (a, b) = (&bytes[..m * k], &bytes[512..][..k * n]);
            let zeros: Vec<i32> = bytes[700..][..if one { 1 } else { n }].iter().map(|&z| i32::from(z as i8)).collect();
            let own: Vec<i32> = bytes[900..][..if one { m } else { 1 }].iter().map(|&z| i32::from(z)).collect();
            let (steps, flip) = (if turned { (1, k) } else { (n, 1) }, if signed { 0 } else { FLIP });
            let columns = Columns::new(b, (k, n), steps, flip, &zeros);
            let mut found = vec![0; m * n];
            let low = if low { FLIP } else { 0 };
            columns.multiply(a, low, &own, |row, first, sums| {
                found[row * n + first..][..sums.len()].copy_from_slice(sums);
            });
            let pick = |list: &[i32], i: usize| i64::from(list[if list.len() == 1 { 0 } else { i }]);
            for (at, found) in found.iter().enumerate() {
                let (i, j) = (at / n, at % n);
                let term = |p: usize| {
                    let b = i64::from((b[p * steps.0 + j * steps.1] ^ flip) as i8);
                    (unsigned(a[i * k + p], low) - pick(&own, i)) * (b - pick(&zeros, j))
                };
                prop_assert_eq!(i64::from(*found), (0..k).map(term).sum::<i64>());
            }
        }

        #[test]
        fn windows_are_summed(
            (batch, groups, input, output) in (1usize..3, 1usize..3, 1usize..4, 1usize..20),
            extents in vec((1usize..7, 1usize..4, 1usize..3, 1usize..3, 0usize..3, 0usize..3), 0..3),
            (pad, zero, flip) in (any::<u8>(), any::<i8>(), prop_oneof![Just(0), Just(FLIP)]),
            bytes in vec(any::<u8>(), 4096),
        ) {
            let axes: Option<Vec<Axis>> = extents
                .iter()
                .map(|&(input, kernel, stride, dilation, begin, end)| {
                    Axis::new(input, kernel, stride, dilation, Padding::Explicit(begin, end), false).ok().filter(|a| a.output > 0)
                })
                .collect();
            let Some(axes) = axes else { return Ok(()) };
            let (plane_in, plane_out) = (volume(&axes, |a| a.input), volume(&axes, |a| a.output));
            let (taps, channels) = (volume(&axes, |a| a.kernel), Channels { batch, groups, input, output });
            let planes: Vec<u8> = bytes.iter().copied().cycle().take(batch * groups * input * plane_in).collect();
            let w: Vec<u8> = bytes.iter().rev().copied().cycle().take(groups * output * input * taps).collect();
            let depth = input * taps;
            let kernels: Vec<Columns> = w
                .chunks_exact(output * depth)
                .map(|w| Columns::new(w, (depth, output), (1, depth), 0, &[i32::from(zero)]))
                .collect();
            let mut y = vec![7; batch * groups * output * plane_out];
            conv(channels, &axes, Input { planes: &planes, flip, pad }, &kernels, &mut y);
            for (at, found) in y.iter().enumerate() {
                let (channel, mut window) = (at / plane_out, at % plane_out);
                let mut position = vec![0; axes.len()];
                for (p, a) in position.iter_mut().zip(&axes).rev() {
                    (*p, window) = (window % a.output, window / a.output);
                }
                let mut sum = 0;
                for c in 0..input {
                    let plane = &planes[(channel / output * input + c) * plane_in..];
                    for tap in 0..taps {
                        let (mut rest, mut place, mut unit) = (tap, Some(0), 1);
                        for (p, a) in position.iter().zip(&axes).rev() {
                            place = place.zip(a.source(*p, rest % a.kernel)).map(|(sum, s)| sum + s * unit);
                            (rest, unit) = (rest / a.kernel, unit * a.input);
                        }
                        let x = place.map_or(0, |at| unsigned(plane[at], flip) - unsigned(pad, flip));
                        let w = w[(channel % (groups * output) * input + c) * taps + tap] as i8;
                        sum += x * (i64::from(w) - i64::from(zero));
                    }
                }
                prop_assert_eq!(i64::from(*found), sum);
            }
        }
    }
}
