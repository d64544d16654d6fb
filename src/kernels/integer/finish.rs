//! From 32-bit sums to bytes or real numbers.
//!
//! A sum becomes `round(clamp(f32(sum + offset) · scale)) + zero point`, rounded half to even.

use super::Level;
use super::gemm::Tile;
use crate::kernels::simd::{self, Task};

/// The bytes that a sum may become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ByteRange {
    /// Lowest value before the zero point is added.
    pub low: f32,
    /// Highest value before the zero point is added.
    pub high: f32,
    /// Zero point.
    pub zero: i32,
}

impl ByteRange {
    /// All of `[min, max]` around a zero point.
    pub fn new(min: i32, max: i32, zero: i32) -> Self {
        Self { low: (min - zero) as f32, high: (max - zero) as f32, zero }
    }

    /// `round(clamp(v)) + zero point`; NaN becomes the lowest byte.
    #[inline(always)]
    pub fn byte(self, v: f32) -> u8 {
        const ROUNDER: f32 = 12_582_912.0; // 1.5 · 2²³: the sum is rounded to an integer, see `requantize`
        let v = if v > self.low { v } else { self.low };
        let v = if v < self.high { v } else { self.high };
        ((v + ROUNDER).to_bits() as i32).wrapping_sub(ROUNDER.to_bits() as i32 - self.zero) as u8
    }
}

/// Offsets and scales of the rows (`BY_ROW`) or columns of a product.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a, const BY_ROW: bool> {
    /// Added to the sums.
    pub offsets: &'a [i32],
    /// Multiplied with the result.
    pub scales: &'a [f32],
}

impl<const BY_ROW: bool> Affine<'_, BY_ROW> {
    /// Writes a tile as bytes: row `r`, column `c` goes to `out[r * stride + c]`. Columns beyond `width` are left out.
    ///
    /// # Panics
    /// If the tile does not lie inside offsets, scales and `out`.
    pub fn bytes(
        self,
        level: Level,
        tile: &Tile,
        width: usize,
        range: ByteRange,
        out: &mut [u8],
        stride: usize,
    ) {
        let columns = tile.columns.1.min(width.saturating_sub(tile.columns.0));
        let along = if BY_ROW { tile.rows } else { (tile.columns.0, columns) };
        let (offsets, scales) = (&self.offsets[along.0..][..along.1], &self.scales[along.0..][..along.1]);
        let out = &mut out[tile.rows.0 * stride + tile.columns.0..];
        let sums = &tile.sums.0[..tile.rows.1];
        #[cfg(target_arch = "x86_64")]
        if level >= Level::Vnni {
            return super::vnni::Finish { sums, columns, offsets, scales, range }.run::<BY_ROW>(out, stride);
        }
        let _ = level;
        for (r, sums) in sums.iter().enumerate() {
            let own = if BY_ROW { r..r + 1 } else { 0..columns };
            let (offsets, scales) = (&offsets[own.clone()], &scales[own]);
            let (sums, out) = (&sums[..columns], &mut out[r * stride..][..columns]);
            simd::run(Plain::<BY_ROW> { sums, offsets, scales, range, out });
        }
    }

    /// The same as real numbers: `f32(sum + offset) · scale`.
    ///
    /// # Panics
    /// If the tile does not lie inside offsets, scales and `out`.
    pub fn reals(self, tile: &Tile, width: usize, out: &mut [f32], stride: usize) {
        let columns = tile.columns.1.min(width.saturating_sub(tile.columns.0));
        for (r, sums) in tile.sums.0.iter().take(tile.rows.1).enumerate() {
            let row = tile.rows.0 + r;
            let along = if BY_ROW { (row, 1) } else { (tile.columns.0, columns) };
            let (offsets, scales) = (&self.offsets[along.0..][..along.1], &self.scales[along.0..][..along.1]);
            let out = &mut out[row * stride + tile.columns.0..][..columns];
            simd::run(Real::<BY_ROW> { sums: &sums[..columns], offsets, scales, out });
        }
    }
}

struct Real<'a, const BY_ROW: bool> {
    sums: &'a [i32],
    offsets: &'a [i32],
    scales: &'a [f32],
    out: &'a mut [f32],
}

impl<const BY_ROW: bool> Task for Real<'_, BY_ROW> {
    #[inline(always)]
    fn run(self) {
        let Self { sums, offsets, scales, out } = self;
        if BY_ROW {
            let (offset, scale) = (offsets[0], scales[0]);
            out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = sum.wrapping_add(offset) as f32 * scale);
        } else {
            for (((out, &sum), &offset), &scale) in out.iter_mut().zip(sums).zip(offsets).zip(scales) {
                *out = sum.wrapping_add(offset) as f32 * scale;
            }
        }
    }
}

struct Plain<'a, const BY_ROW: bool> {
    sums: &'a [i32],
    offsets: &'a [i32],
    scales: &'a [f32],
    range: ByteRange,
    out: &'a mut [u8],
}

impl<const BY_ROW: bool> Task for Plain<'_, BY_ROW> {
    #[inline(always)]
    fn run(self) {
        let Self { sums, offsets, scales, range, out } = self;
        if BY_ROW {
            let (offset, scale) = (offsets[0], scales[0]);
            for (out, &sum) in out.iter_mut().zip(sums) {
                *out = range.byte(sum.wrapping_add(offset) as f32 * scale);
            }
        } else {
            for (((out, &sum), &offset), &scale) in out.iter_mut().zip(sums).zip(offsets).zip(scales) {
                *out = range.byte(sum.wrapping_add(offset) as f32 * scale);
            }
        }
    }
}
