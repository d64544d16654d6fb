//! The inner loops in AVX-512 with VNNI: `vpdpbusd` adds four products of an unsigned and a signed byte to each of 16
//! sums, without saturation.
//!
//! The functions here are called for [`Level::Vnni`](super::Level) only, which detection alone makes.

use std::arch::x86_64::*;

use super::blocks::Rows;
use super::finish::ByteRange;
use super::gemm::{Operands, Sums, TILE};
use super::pack::{CELL, Cell, LANES, block_len};
use crate::kernels::window::Axis;

/// The sums of operands that are one tile of the product.
pub fn tile<const SIGNED_ROWS: bool>(operands: Operands<SIGNED_ROWS>, sums: &mut Sums) {
    let mut first = 0;
    while first < operands.count {
        let sums = &mut sums.0[first..];
        // SAFETY: the level says that the processor has these instructions.
        first += unsafe {
            match (operands.count - first, operands.columns.len() > block_len(operands.quads)) {
                (8.., true) => some_rows::<SIGNED_ROWS, 8, 2>(operands, first, sums),
                (8.., false) => some_rows::<SIGNED_ROWS, 8, 1>(operands, first, sums),
                (4.., true) => some_rows::<SIGNED_ROWS, 4, 2>(operands, first, sums),
                (4.., false) => some_rows::<SIGNED_ROWS, 4, 1>(operands, first, sums),
                (_, true) => some_rows::<SIGNED_ROWS, 1, 2>(operands, first, sums),
                (_, false) => some_rows::<SIGNED_ROWS, 1, 1>(operands, first, sums),
            }
        };
    }
}

/// The sums of `ROWS` rows of a block from `first` on; `ROWS` divides [`LANES`], and all before `first` are done.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
#[allow(clippy::needless_range_loop)]
fn some_rows<const SIGNED_ROWS: bool, const ROWS: usize, const BLOCKS: usize>(
    operands: Operands<SIGNED_ROWS>,
    first: usize,
    out: &mut [[i32; TILE]],
) -> usize {
    let Operands { quads, rows, columns, .. } = operands;
    let len = block_len(quads);
    let rows = &rows[first / LANES * len..][..len];
    let row = first % LANES;
    assert!(columns.len() >= BLOCKS * len && row + ROWS <= LANES);
    let mut sums = [[_mm512_setzero_si512(); BLOCKS]; ROWS];
    // Pointers and ranges, as in `kernels::tile`: with slices or iterators the sums would not stay in registers.
    for step in (0..quads).step_by(LANES) {
        let mut a = rows.as_ptr().wrapping_add(step + row).cast::<i32>();
        let mut b = columns.as_ptr().wrapping_add(step);
        for _ in 0..LANES.min(quads - step) {
            let mut cells = [_mm512_setzero_si512(); BLOCKS];
            for block in 0..BLOCKS {
                // SAFETY: a block of columns has `len` cells, which are more than there are quads before this one.
                cells[block] = unsafe { _mm512_load_si512(b.wrapping_add(block.wrapping_mul(len)).cast()) };
            }
            for row in 0..ROWS {
                // SAFETY: a step has `LANES` cells, of which these rows are some, and each of them has `LANES` quads.
                let bytes = _mm512_set1_epi32(unsafe { *a.wrapping_add(row.wrapping_mul(LANES)) });
                for block in 0..BLOCKS {
                    let sum = sums[row][block];
                    sums[row][block] = if SIGNED_ROWS {
                        _mm512_dpbusd_epi32(sum, cells[block], bytes)
                    } else {
                        _mm512_dpbusd_epi32(sum, bytes, cells[block])
                    };
                }
            }
            (a, b) = (a.wrapping_add(1), b.wrapping_add(1));
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

/// The eight sums of rows with a column of blocks that has this scale, see [`blocks`](super::blocks).
pub fn blocks<'a>(rows: &Rows, column: &[u8], scale: f32, sums: impl Iterator<Item = &'a mut [f32; 8]>) {
    assert!(rows.bytes.iter().all(|bytes| bytes.len() == column.len()));
    for (at, sums) in (0..rows.bytes.len()).zip(sums) {
        // SAFETY: the level says that the processor has these instructions; the row is as long as the column.
        unsafe { row_of_blocks(rows, at, column, scale, sums) };
    }
}

/// # Safety
/// The row must be as long as the column.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn row_of_blocks(rows: &Rows, at: usize, column: &[u8], scale: f32, sums: &mut [f32; 8]) {
    let (bytes, blocks, fours) = (&rows.bytes[at], &rows.blocks[at], &rows.fours[at]);
    let mut lanes = _mm512_setzero_ps();
    let all = _mm512_set1_ps(scale);
    for (at, steps) in fours.iter().enumerate() {
        // SAFETY: there are four blocks of 32 bytes for each element, in the row and in the column.
        let (w, x) = unsafe {
            let (w, x) = (column.as_ptr().add(128 * at), bytes.as_ptr().add(128 * at));
            let pair =
                |from: *const u8| (_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(64).cast()));
            (pair(w), pair(x.cast()))
        };
        let zero = _mm512_setzero_si512();
        let (a, b) = (_mm512_dpbusd_epi32(zero, w.0, x.0), _mm512_dpbusd_epi32(zero, w.1, x.1));
        let dots = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
        // SAFETY: the array has 16 elements.
        let scales = _mm512_mul_ps(all, unsafe { _mm512_loadu_ps(steps.as_ptr()) });
        lanes = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), scales, lanes);
    }
    let mut halves = _mm256_add_ps(
        _mm512_castps512_ps256(lanes),
        _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(lanes))),
    );
    for (at, (step, _)) in blocks.iter().enumerate().skip(4 * fours.len()) {
        // SAFETY: the block has 32 bytes, in the row and in the column.
        let (w, x) = unsafe {
            let w = _mm256_loadu_si256(column.as_ptr().add(32 * at).cast());
            (w, _mm256_loadu_si256(bytes.as_ptr().add(32 * at).cast()))
        };
        let dots = _mm256_cvtepi32_ps(_mm256_dpbusd_epi32(_mm256_setzero_si256(), w, x));
        halves = _mm256_fmadd_ps(dots, _mm256_set1_ps(scale * step), halves);
    }
    // SAFETY: the array has 8 elements.
    unsafe { _mm256_storeu_ps(sums.as_mut_ptr(), halves) };
}

/// What becomes of the sums of a tile: see [`Affine::bytes`](super::finish::Affine::bytes).
pub struct Finish<'a> {
    /// The sums of each row.
    pub sums: &'a [[i32; TILE]],
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

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn compute<const BY_ROW: bool>(&self, out: &mut [u8], stride: usize) {
        let Self { sums, columns, offsets, scales, range } = *self;
        let needed = if BY_ROW { sums.len() } else { columns };
        assert!(offsets.len() >= needed && scales.len() >= needed && columns <= TILE);
        assert!(sums.is_empty() || (sums.len() - 1) * stride + columns <= out.len());
        for (row, sums) in sums.iter().enumerate() {
            let mut one = |at: usize, count: usize| {
                let mask = lanes(count);
                // SAFETY: there are `needed` offsets and scales, and a row has room for 32 sums; the mask leaves only
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
                    store(out.as_mut_ptr().add(row * stride + at), bytes, count);
                }
            };
            // Nearly all rows are whole.
            if columns == TILE {
                (0..TILE).step_by(LANES).for_each(|at| one(at, LANES));
            } else {
                (0..columns).step_by(LANES).for_each(|at| one(at, columns - at));
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
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn store(out: *mut u8, lanes_of_bytes: __m512i, count: usize) {
    // Narrowing into memory under a mask would be many times slower than the two steps.
    let bytes = _mm512_cvtepi32_epi8(lanes_of_bytes);
    // SAFETY: the caller has room for the bytes that are stored.
    unsafe {
        if count >= LANES {
            _mm_storeu_si128(out.cast(), bytes);
        } else {
            _mm_mask_storeu_epi8(out.cast(), lanes(count), bytes);
        }
    }
}

/// The mask of the first `count` lanes.
fn lanes(count: usize) -> __mmask16 {
    if count >= LANES { !0 } else { (1 << count) - 1 }
}

/// How the windows of a depthwise convolution read a plane. Nothing is copied: loads leave out what is not the input.
pub struct DepthwiseWindows {
    /// Rows of taps, and quads of such a row.
    taps: (usize, usize),
    /// Windows of a row.
    width: usize,
    /// For each row of the output and each row of taps, where its row of the input starts; none: in the padding.
    rows: Vec<Option<usize>>,
    /// For each block of windows and each quad, from where in the row it loads, and which of the bytes are the input.
    loads: Vec<(isize, u64)>,
    /// The byte of a load for each of the 64 that 16 windows multiply.
    indices: Cell,
    /// Is half a load enough?
    near: bool,
    /// Bytes that a plane must have.
    plane: usize,
    /// A row of padding.
    padding: Vec<u8>,
}

/// One channel of a depthwise convolution.
pub struct DepthwiseChannel<'a> {
    /// Its plane of the input.
    pub plane: &'a [u8],
    /// What makes the bytes unsigned, by exclusive or.
    pub flip: u8,
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
    /// Windows along a last axis; for each row of the output, `rows` says for each row of `taps` where its row of the
    /// input starts, unless it lies in the padding.
    ///
    /// # Panics
    /// If the quads of a block of windows do not lie within the bytes of a cell.
    pub fn new(rows: Vec<Option<usize>>, taps: usize, axis: &Axis, pad: u8) -> Self {
        let span = (LANES - 1) * axis.stride + 3 * axis.dilation;
        assert!(span < CELL, "windows are too far apart");
        let quads = axis.kernel.div_ceil(4);
        let mut loads = Vec::new();
        for at in (0..axis.output).step_by(LANES) {
            for quad in 0..quads {
                let start = at * axis.stride + 4 * quad * axis.dilation;
                let before = |position: usize| match position.saturating_sub(start) {
                    some @ ..CELL => (1 << some) - 1,
                    _ => u64::MAX,
                };
                let mask = before(axis.begin + axis.input) & !before(axis.begin);
                loads.push((start as isize - axis.begin as isize, mask));
            }
        }
        Self {
            taps: (taps, quads),
            width: axis.output,
            loads,
            indices: Cell(std::array::from_fn(|i| (i / 4 * axis.stride + i % 4 * axis.dilation) as u8)),
            near: span < CELL / 2,
            plane: rows.iter().flatten().max().map_or(0, |row| row + axis.input),
            rows,
            padding: vec![pad; axis.input.max(1)],
        }
    }

    /// Computes a plane of the output.
    ///
    /// # Panics
    /// If a row lies outside the plane or weights are missing.
    pub fn run(&self, channel: &DepthwiseChannel, out: &mut [u8]) {
        // SAFETY: the level says that the processor has these instructions.
        unsafe {
            match (self.taps, channel.flip) {
                ((3, 1), 0) if self.near => self.compute::<3, 1, true, false>(channel, out),
                ((3, 1), 0) => self.compute::<3, 1, false, false>(channel, out),
                ((3, 1), _) => self.compute::<3, 1, false, true>(channel, out),
                _ => self.compute::<0, 0, false, true>(channel, out),
            }
        }
    }

    /// Loops over so many `TAPS` and `QUADS` are unrolled; 0 is any number. `NEAR`: half a load is enough, and one that
    /// crosses cache lines is slow. Without `FLIP` the bytes are unsigned.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
    fn compute<const TAPS: usize, const QUADS: usize, const NEAR: bool, const FLIP: bool>(
        &self,
        channel: &DepthwiseChannel,
        out: &mut [u8],
    ) {
        let (taps, quads) = if TAPS > 0 { (TAPS, QUADS) } else { self.taps };
        assert!(channel.weights.len() == taps * quads && self.plane <= channel.plane.len());
        // SAFETY: a cell has 64 bytes.
        let indices = unsafe { _mm512_load_si512(self.indices.0.as_ptr().cast()) };
        let (offset, scale) = (_mm512_set1_epi32(channel.offset), _mm512_set1_ps(channel.scale));
        let flip = _mm512_set1_epi8(channel.flip as i8);
        let pad = _mm512_set1_epi8(self.padding.first().copied().unwrap_or(0) as i8);
        // Down the output, so that masks stay what they are.
        for (block, loads) in self.loads.chunks_exact(quads).enumerate() {
            for (rows, out) in self.rows.chunks_exact(taps).zip(out.chunks_exact_mut(self.width)) {
                let mut sum = _mm512_setzero_si512();
                for (row, weights) in rows.iter().zip(channel.weights.chunks_exact(quads)) {
                    let row =
                        row.map_or(self.padding.as_ptr(), |row| channel.plane.as_ptr().wrapping_add(row));
                    for (&(start, mask), &weights) in loads.iter().zip(weights) {
                        let place = row.wrapping_offset(start);
                        // SAFETY: the mask leaves only bytes of the row, which lies inside the plane or is all padding.
                        let mut bytes = unsafe {
                            match NEAR {
                                true => _mm512_castsi256_si512(_mm256_mask_loadu_epi8(
                                    _mm512_castsi512_si256(pad),
                                    mask as u32,
                                    place.cast(),
                                )),
                                false => _mm512_mask_loadu_epi8(pad, mask, place.cast()),
                            }
                        };
                        if FLIP {
                            bytes = _mm512_xor_si512(bytes, flip);
                        }
                        let windows = _mm512_permutexvar_epi8(indices, bytes);
                        sum = _mm512_dpbusd_epi32(sum, windows, _mm512_set1_epi32(weights));
                    }
                }
                let bytes = requantized(sum, offset, scale, &channel.range);
                let out = &mut out[block * LANES..];
                // SAFETY: no more lanes are stored than there are in `out`.
                unsafe { store(out.as_mut_ptr(), bytes, out.len()) };
            }
        }
    }
}
