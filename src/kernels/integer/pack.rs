//! Operands laid out for dot products of four bytes.
//!
//! A matrix of rows keeps each row contiguous, filled up with zeros to whole quads (four bytes). A matrix of columns
//! becomes panels: for each block of [`LANES`] columns and each quad of rows, four bytes of every column in turn.

/// Columns of a block.
pub const LANES: usize = 16;
/// Bytes of a quad of rows in a block of columns.
pub const CELL: usize = 4 * LANES;

/// Flips the sign bit of every byte: the order-preserving map between signed and unsigned bytes.
pub const FLIP: u8 = 0x80;

/// Rows filled up to whole quads.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// The rows one after another, `4 · quads` bytes each.
    pub data: Vec<u8>,
    /// Number of quads of a row.
    pub quads: usize,
    /// The sum of each row's bytes, taken as signed.
    pub sums: Vec<i32>,
}

impl Rows {
    /// Signed rows of `k` bytes; each byte is combined with `flip` by exclusive or.
    pub fn signed(data: &[u8], k: usize, flip: u8) -> Self {
        let quads = k.div_ceil(4);
        let mut rows = Self { data: Vec::with_capacity(data.len()), quads, sums: Vec::new() };
        for row in data.chunks_exact(k.max(1)) {
            let start = rows.data.len();
            rows.data.extend(row.iter().map(|b| b ^ flip));
            rows.sums.push(rows.data[start..].iter().map(|&b| i32::from(b as i8)).sum());
            rows.data.resize(start + 4 * quads, 0);
        }
        rows
    }
}

/// Columns in panels.
#[derive(Debug, Clone, PartialEq)]
pub struct Panels {
    /// For each block of columns, its quads.
    pub data: Vec<u8>,
    /// Number of quads.
    pub quads: usize,
    /// Number of columns.
    pub columns: usize,
    /// The sum of each column's bytes, taken as signed.
    pub sums: Vec<i32>,
}

impl Panels {
    /// The signed columns of a `k`×`n` matrix whose element `(p, j)` is `data[p * row + j * col]`.
    ///
    /// # Panics
    /// If the matrix does not lie inside `data`.
    pub fn signed(data: &[u8], (k, n): (usize, usize), (row, col): (usize, usize), flip: u8) -> Self {
        let (quads, blocks) = (k.div_ceil(4), n.div_ceil(LANES));
        let mut panels = Self { data: vec![0; quads * blocks * CELL], quads, columns: n, sums: vec![0; n] };
        if k == 0 {
            return panels;
        }
        for (block, cells) in panels.data.chunks_exact_mut(quads * CELL).enumerate() {
            for j in 0..LANES.min(n - block * LANES) {
                let column = block * LANES + j;
                let mut sum = 0;
                for p in 0..k {
                    let byte = data[p * row + column * col] ^ flip;
                    cells[p / 4 * CELL + j * 4 + p % 4] = byte;
                    sum += i32::from(byte as i8);
                }
                panels.sums[column] = sum;
            }
        }
        panels
    }
}

/// Writes one cell for each [`LANES`] bytes of four lines: byte `j` of each of them in turn, combined with `flip`.
/// Cell `b` starts at `out[b * step]`.
///
/// # Panics
/// If the lines differ in length or the cells do not fit `out`.
pub fn interleave(lines: [&[u8]; 4], flip: u8, out: &mut [u8], step: usize) {
    let [a, b, c, d] = lines.map(|line| line.chunks_exact(LANES));
    for (block, (((a, b), c), d)) in a.zip(b).zip(c).zip(d).enumerate() {
        let cell: &mut [u8] = &mut out[block * step..][..CELL];
        interleave_block(a, b, c, d, flip, cell);
    }
}

#[cfg(target_arch = "x86_64")]
fn interleave_block(a: &[u8], b: &[u8], c: &[u8], d: &[u8], flip: u8, cell: &mut [u8]) {
    use std::arch::x86_64::*;
    assert!([a, b, c, d].iter().all(|line| line.len() == LANES) && cell.len() == CELL);
    // SAFETY: SSE2 belongs to x86-64; each load reads the 16 bytes of a line, and the four stores write the 64 bytes of
    // the cell, as asserted.
    unsafe {
        let load =
            |line: &[u8]| _mm_xor_si128(_mm_loadu_si128(line.as_ptr().cast()), _mm_set1_epi8(flip as i8));
        let (a, b, c, d) = (load(a), load(b), load(c), load(d));
        let (low, high) = (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
        let (other_low, other_high) = (_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d));
        let out = cell.as_mut_ptr().cast::<__m128i>();
        _mm_storeu_si128(out, _mm_unpacklo_epi16(low, other_low));
        _mm_storeu_si128(out.add(1), _mm_unpackhi_epi16(low, other_low));
        _mm_storeu_si128(out.add(2), _mm_unpacklo_epi16(high, other_high));
        _mm_storeu_si128(out.add(3), _mm_unpackhi_epi16(high, other_high));
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn interleave_block(a: &[u8], b: &[u8], c: &[u8], d: &[u8], flip: u8, cell: &mut [u8]) {
    for (j, quad) in cell.chunks_exact_mut(4).enumerate() {
        quad.copy_from_slice(&[a[j] ^ flip, b[j] ^ flip, c[j] ^ flip, d[j] ^ flip]);
    }
}

/// The sums of the columns of a block of panels, taken as unsigned.
pub fn column_sums(cells: &[u8]) -> [i32; LANES] {
    let mut sums = [0i32; LANES];
    for cell in cells.chunks_exact(CELL) {
        for (sum, quad) in sums.iter_mut().zip(cell.chunks_exact(4)) {
            *sum += quad.iter().map(|&b| i32::from(b)).sum::<i32>();
        }
    }
    sums
}
