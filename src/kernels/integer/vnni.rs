//! The inner loops in AVX-512 with VNNI: `vpdpbusd` adds four products of an unsigned and a signed byte to each of 16
//! sums, without saturation.
//!
//! The functions here are called for [`Level::Vnni`](super::Level) only, which detection alone makes.

use std::arch::x86_64::*;

use super::finish::ByteRange;
use super::gemm::{Sums, TILE_ROWS};
use super::pack::{CELL, LANES};

/// The product of up to [`TILE_ROWS`] rows with up to three blocks of columns.
pub fn tile<const SIGNED_ROWS: bool>(quads: usize, rows: &[u8], panels: &[u8], sums: &mut Sums) {
    let (count, blocks) = (rows.len() / (4 * quads), panels.len() / (quads * CELL));
    let mut first = 0;
    while first < count {
        let (rows, sums) = (&rows[first * 4 * quads..], &mut sums[first..]);
        // SAFETY: the level says that the processor has these instructions.
        let done = unsafe {
            match (count - first, blocks) {
                (TILE_ROWS.., 3) => some_rows::<SIGNED_ROWS, 8, 3>(quads, rows, panels, sums),
                (TILE_ROWS.., 2) => some_rows::<SIGNED_ROWS, 8, 2>(quads, rows, panels, sums),
                (TILE_ROWS.., _) => some_rows::<SIGNED_ROWS, 8, 1>(quads, rows, panels, sums),
                (4.., 3) => some_rows::<SIGNED_ROWS, 4, 3>(quads, rows, panels, sums),
                (4.., 2) => some_rows::<SIGNED_ROWS, 4, 2>(quads, rows, panels, sums),
                (4.., _) => some_rows::<SIGNED_ROWS, 4, 1>(quads, rows, panels, sums),
                (_, 3) => some_rows::<SIGNED_ROWS, 1, 3>(quads, rows, panels, sums),
                (_, 2) => some_rows::<SIGNED_ROWS, 1, 2>(quads, rows, panels, sums),
                (_, _) => some_rows::<SIGNED_ROWS, 1, 1>(quads, rows, panels, sums),
            }
        };
        first += done;
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn some_rows<const SIGNED_ROWS: bool, const ROWS: usize, const BLOCKS: usize>(
    quads: usize,
    rows: &[u8],
    panels: &[u8],
    out: &mut [[i32; 3 * LANES]],
) -> usize {
    assert!(rows.len() >= ROWS * quads * 4 && panels.len() >= BLOCKS * quads * CELL);
    let mut sums = [[_mm512_setzero_si512(); BLOCKS]; ROWS];
    for quad in 0..quads {
        let mut cells = [_mm512_setzero_si512(); BLOCKS];
        for (block, cell) in cells.iter_mut().enumerate() {
            // SAFETY: block < BLOCKS and quad < quads, so the cell's 64 bytes lie inside the panels.
            *cell = unsafe { _mm512_loadu_si512(panels.as_ptr().add((block * quads + quad) * CELL).cast()) };
        }
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: row < ROWS and quad < quads, so the quad's 4 bytes lie inside the rows.
            let bytes = unsafe { rows.as_ptr().add((row * quads + quad) * 4).cast::<i32>().read_unaligned() };
            let bytes = _mm512_set1_epi32(bytes);
            for (sum, &cell) in sums.iter_mut().zip(&cells) {
                *sum = if SIGNED_ROWS {
                    _mm512_dpbusd_epi32(*sum, cell, bytes)
                } else {
                    _mm512_dpbusd_epi32(*sum, bytes, cell)
                };
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(&sums) {
        for (out, &sum) in out.chunks_exact_mut(LANES).zip(sums) {
            // SAFETY: the chunk has room for 16 sums.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
        }
    }
    ROWS
}

/// What becomes of the sums of a tile: see [`Affine::bytes`](super::finish::Affine::bytes).
pub struct Finish<'a> {
    /// The sums of each row.
    pub sums: &'a [[i32; 3 * LANES]],
    /// Columns that count.
    pub columns: usize,
    /// One for each row or each column.
    pub offsets: &'a [i32],
    /// One for each row or each column.
    pub scales: &'a [f32],
    /// The bytes that sums may become.
    pub range: ByteRange,
}

impl Finish<'_> {
    /// Writes row `r` to `out[r * stride..]`.
    ///
    /// # Panics
    /// If the tile does not lie inside `out`, or offsets or scales are missing.
    pub fn run<const BY_ROW: bool>(&self, out: &mut [u8], stride: usize) {
        // SAFETY: the level says that the processor has these instructions.
        unsafe { self.compute::<BY_ROW>(out, stride) }
    }

    #[target_feature(enable = "avx512f")]
    fn compute<const BY_ROW: bool>(&self, out: &mut [u8], stride: usize) {
        let Self { sums, columns, offsets, scales, range } = *self;
        let needed = if BY_ROW { sums.len() } else { columns };
        assert!(offsets.len() >= needed && scales.len() >= needed && columns <= 3 * LANES);
        assert!(sums.is_empty() || (sums.len() - 1) * stride + columns <= out.len());
        for (row, sums) in sums.iter().enumerate() {
            for at in (0..columns).step_by(LANES) {
                let mask = lanes(columns - at);
                // SAFETY: there are `needed` offsets and scales, and a row has room for 48 sums; the mask leaves only
                // lanes below `columns`, of which the last one of the last row lies inside `out`.
                unsafe {
                    let (offset, scale) = if BY_ROW {
                        (
                            _mm512_set1_epi32(*offsets.get_unchecked(row)),
                            _mm512_set1_ps(*scales.get_unchecked(row)),
                        )
                    } else {
                        (
                            _mm512_maskz_loadu_epi32(mask, offsets.as_ptr().add(at)),
                            _mm512_maskz_loadu_ps(mask, scales.as_ptr().add(at)),
                        )
                    };
                    let sum = _mm512_loadu_epi32(sums.as_ptr().add(at));
                    let bytes = requantized(sum, offset, scale, &range);
                    store(out.as_mut_ptr().add(row * stride + at), bytes, columns - at);
                }
            }
        }
    }
}

/// Low byte of `round(clamp(f32(sum + offset) · scale)) + zero`.
#[inline]
#[target_feature(enable = "avx512f")]
fn requantized(sum: __m512i, offset: __m512i, scale: __m512, range: &ByteRange) -> __m512i {
    let v = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, offset)), scale);
    // The second operand is returned for NaN: NaN becomes the lowest value.
    let v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(range.low)), _mm512_set1_ps(range.high));
    _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(range.zero))
}

/// Stores the low bytes of the first `count` lanes, or of all.
///
/// # Safety
/// There must be room for as many bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(out: *mut u8, lanes_of_bytes: __m512i, count: usize) {
    // SAFETY: the caller has room for the bytes that are stored. Without a mask the store is several times faster.
    unsafe {
        if count >= LANES {
            _mm_storeu_si128(out.cast(), _mm512_cvtepi32_epi8(lanes_of_bytes));
        } else {
            _mm512_mask_cvtepi32_storeu_epi8(out.cast(), lanes(count), lanes_of_bytes);
        }
    }
}

/// The mask of the first `count` lanes.
fn lanes(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// How the windows of a depthwise convolution read a padded plane.
pub struct DepthwiseWindows {
    /// Where the first window of each row of the output reads.
    pub rows: Vec<usize>,
    /// Windows of a row.
    pub width: usize,
    /// For each quad of taps, where it lies from the start of its window.
    pub quads: Vec<usize>,
    /// Distance between windows.
    pub stride: usize,
    /// Distance between the taps of a quad.
    pub dilation: usize,
}

/// One channel of a depthwise convolution.
pub struct DepthwiseChannel<'a> {
    /// For each quad of taps, four signed weights.
    pub weights: &'a [i32],
    /// Added to each sum.
    pub offset: i32,
    /// Multiplied with the sum.
    pub scale: f32,
    /// What becomes of it.
    pub range: ByteRange,
}

impl DepthwiseWindows {
    /// Bytes that a plane must have for all windows to lie inside it.
    pub fn room(&self) -> usize {
        let last = |list: &[usize]| list.iter().max().copied().unwrap_or(0);
        let along = self.width.saturating_sub(1) / LANES * LANES * self.stride;
        last(&self.rows) + last(&self.quads) + along + CELL
    }

    /// Computes a plane of the output.
    ///
    /// # Panics
    /// If a window reads outside the plane.
    pub fn run(&self, plane: &[u8], channel: &DepthwiseChannel, out: &mut [u8]) {
        // SAFETY: the level says that the processor has these instructions.
        unsafe { self.compute(plane, channel, out) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
    fn compute(&self, plane: &[u8], channel: &DepthwiseChannel, out: &mut [u8]) {
        let mut indices = [0u8; CELL];
        for (i, index) in indices.iter_mut().enumerate() {
            *index = (i / 4 * self.stride + i % 4 * self.dilation) as u8;
        }
        assert!((LANES - 1) * self.stride + 3 * self.dilation < CELL, "windows are too far apart");
        assert!(channel.weights.len() == self.quads.len() && self.room() <= plane.len());
        // SAFETY: the array has 64 bytes.
        let indices = unsafe { _mm512_loadu_si512(indices.as_ptr().cast()) };
        let (offset, scale) = (_mm512_set1_epi32(channel.offset), _mm512_set1_ps(channel.scale));
        // A load that crosses cache lines is slow, so half of it is left out where it is not needed.
        let near = (LANES - 1) * self.stride + 3 * self.dilation < CELL / 2;
        for (&start, out) in self.rows.iter().zip(out.chunks_exact_mut(self.width.max(1))) {
            for at in (0..out.len()).step_by(LANES) {
                let mut sum = _mm512_setzero_si512();
                for (&quad, &weights) in self.quads.iter().zip(channel.weights) {
                    // SAFETY: 64 bytes from the furthest of these places lie inside the plane, as `room` counts.
                    let bytes = unsafe {
                        let place = plane.as_ptr().add(start + quad + at * self.stride);
                        match near {
                            true => _mm512_castsi256_si512(_mm256_loadu_si256(place.cast())),
                            false => _mm512_loadu_si512(place.cast()),
                        }
                    };
                    let windows = _mm512_permutexvar_epi8(indices, bytes);
                    sum = _mm512_dpbusd_epi32(sum, windows, _mm512_set1_epi32(weights));
                }
                let bytes = requantized(sum, offset, scale, &channel.range);
                // SAFETY: no more lanes are stored than are left in `out`.
                unsafe { store(out.as_mut_ptr().add(at), bytes, out.len() - at) };
            }
        }
    }
}
