//! Operands laid out for dot products of four bytes (quads), in cells of 64 bytes that lie on cache lines of their own.
//!
//! Both operands are split into blocks of [`LANES`] rows or columns, and each block along the sum into steps of
//! [`LANES`] quads; a step is [`LANES`] cells. A cell of rows holds the quads of one row, a cell of columns one quad of
//! every column in turn. So a step is what AMX calls a tile, and a cell of columns a vector of VNNI.
//!
//! Rows are filled up with zeros to whole steps, so what columns hold there does not matter.

use std::cell::Cell as Place;

/// Rows or columns of a block, and quads of a step.
pub const LANES: usize = 16;
/// Bytes of a cell.
pub const CELL: usize = 4 * LANES;

/// Flips the sign bit of every byte: the order-preserving map between signed and unsigned bytes.
pub const FLIP: u8 = 0x80;

/// Bytes that a thread may keep.
const KEPT: usize = 1 << 26;

/// A cache line of bytes. Tile loads are several times slower where rows of a tile straddle two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Cell(pub [u8; CELL]);

impl Cell {
    /// All zeros.
    pub const ZERO: Self = Self([0; CELL]);

    /// The bytes of cells, one after another.
    pub fn bytes(cells: &[Self]) -> &[u8] {
        // SAFETY: a cell is 64 bytes and nothing else, and any byte is a `u8`.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len() * CELL) }
    }

    /// The bytes of cells, one after another.
    pub fn bytes_mut(cells: &mut [Self]) -> &mut [u8] {
        // SAFETY: a cell is 64 bytes and nothing else, and every bit pattern is a value of both types.
        unsafe { std::slice::from_raw_parts_mut(cells.as_mut_ptr().cast(), cells.len() * CELL) }
    }

    /// Lends so many cells of any content, which the thread keeps for the next time if they are not very many.
    pub fn scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
        thread_local!(static BUFFER: Place<Vec<Cell>> = const { Place::new(Vec::new()) });
        let mut buffer = BUFFER.take();
        if buffer.len() < len {
            buffer.resize(len, Self::ZERO);
        }
        let result = f(&mut buffer[..len]);
        if buffer.len() * CELL <= KEPT {
            BUFFER.set(buffer);
        }
        result
    }
}

/// Cells of a block of this many quads.
pub fn block_len(quads: usize) -> usize {
    quads.next_multiple_of(LANES)
}

/// The sum of bytes, each taken for a number by `value`. It wraps, as products do.
pub fn sum(bytes: &[u8], value: impl Fn(u8) -> i32) -> i32 {
    bytes.iter().fold(0, |sum: i32, &b| sum.wrapping_add(value(b)))
}

/// Matrices of signed rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// The blocks of each matrix.
    data: Vec<Cell>,
    /// Number of quads of a row.
    pub quads: usize,
    /// Rows of a matrix.
    pub count: usize,
    /// The sum of each row's bytes.
    pub sums: Vec<i32>,
}

impl Rows {
    /// Matrices of `count` signed rows of `k` bytes; each byte is combined with `flip` by exclusive or.
    pub fn signed(data: &[u8], k: usize, count: usize, flip: u8) -> Self {
        let (k, count) = (k.max(1), count.max(1));
        let quads = k.div_ceil(4);
        let size = count.div_ceil(LANES) * block_len(quads);
        let mut rows =
            Self { data: vec![Cell::ZERO; data.len() / (k * count) * size], quads, count, sums: Vec::new() };
        for (matrix, out) in data.chunks_exact(k * count).zip(rows.data.chunks_exact_mut(size)) {
            pack_rows(matrix, k, flip, out);
        }
        rows.sums.extend(data.chunks_exact(k).map(|row| sum(row, |b| i32::from((b ^ flip) as i8))));
        rows
    }

    /// The blocks of a matrix.
    pub fn matrix(&self, index: usize) -> &[Cell] {
        let size = self.count.div_ceil(LANES) * block_len(self.quads);
        &self.data[index * size..][..size]
    }
}

/// Packs rows of `k` bytes, each combined with `flip` by exclusive or.
///
/// # Panics
/// If `out` is too small for the blocks.
pub fn pack_rows(rows: &[u8], k: usize, flip: u8, out: &mut [Cell]) {
    let len = block_len(k.div_ceil(4));
    for (index, row) in rows.chunks_exact(k).enumerate() {
        let block = &mut out[index / LANES * len..][..len];
        for (piece, cell) in row.chunks(CELL).zip(block.iter_mut().skip(index % LANES).step_by(LANES)) {
            let (own, rest) = cell.0.split_at_mut(piece.len());
            own.iter_mut().zip(piece).for_each(|(c, b)| *c = b ^ flip);
            rest.fill(0);
        }
    }
}

/// Columns of signed bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Columns {
    /// The blocks.
    pub data: Vec<Cell>,
    /// Number of quads of a column.
    pub quads: usize,
    /// The sum of each column's bytes.
    pub sums: Vec<i32>,
}

impl Columns {
    /// The signed columns of a matrix of `k` lines of `n` bytes; each byte is combined with `flip` by exclusive or.
    ///
    /// # Panics
    /// If the matrix is larger than `data`.
    pub fn signed(data: &[u8], (k, n): (usize, usize), flip: u8) -> Self {
        let (quads, blocks) = (k.div_ceil(4), n.div_ceil(LANES));
        let mut columns = Self { data: vec![Cell::ZERO; blocks * block_len(quads)], quads, sums: vec![0; n] };
        pack_columns(&data[..k * n], n, (0, n), flip, &mut columns.data);
        for line in data.chunks_exact(n.max(1)).take(k) {
            columns.sums.iter_mut().zip(line).for_each(|(sum, b)| {
                *sum = sum.wrapping_add(i32::from((b ^ flip) as i8));
            });
        }
        columns
    }
}

/// Packs `width` columns from `first` on of a matrix with lines of `n` bytes, each combined with `flip` by exclusive
/// or. Lines that are missing from the last quad become zeros; columns that are missing from the last block,
/// anything.
///
/// # Panics
/// If `out` is too small for the blocks.
pub fn pack_columns(lines: &[u8], n: usize, (first, width): (usize, usize), flip: u8, out: &mut [Cell]) {
    let quads = (lines.len() / n.max(1)).div_ceil(4);
    let len = block_len(quads);
    // Step by step: neither what is read nor what is written is so much that it falls out of the nearest cache.
    for step in (0..quads).step_by(LANES) {
        for (block, cells) in out.chunks_exact_mut(len).take(width.div_ceil(LANES)).enumerate() {
            for (quad, cell) in cells[step..quads.min(step + LANES)].iter_mut().enumerate() {
                let start = 4 * (step + quad) * n + first + block * LANES;
                let line = |t: usize| piece(lines, start + t * n, flip);
                *cell = interleaved([line(0), line(1), line(2), line(3)], flip);
            }
        }
    }
}

/// The bytes from `start` on as far as there are any, then `filler`.
#[inline(always)]
pub fn piece(bytes: &[u8], start: usize, filler: u8) -> [u8; LANES] {
    let rest = bytes.get(start..).unwrap_or_default();
    if let Some(whole) = rest.first_chunk() {
        return *whole;
    }
    let mut some = [filler; LANES];
    some.iter_mut().zip(rest).for_each(|(s, b)| *s = *b);
    some
}

/// Byte `j` of each of the four lines in turn, combined with `flip` by exclusive or.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn interleaved(lines: [[u8; LANES]; 4], flip: u8) -> Cell {
    use std::arch::x86_64::*;
    let mut cell = Cell::ZERO;
    // SAFETY: SSE2 belongs to x86-64; each load reads the 16 bytes of a line, and the four stores write the 64 bytes of
    // the cell.
    unsafe {
        let load = |line: &[u8; LANES]| {
            _mm_xor_si128(_mm_loadu_si128(line.as_ptr().cast()), _mm_set1_epi8(flip as i8))
        };
        let [a, b, c, d] = [load(&lines[0]), load(&lines[1]), load(&lines[2]), load(&lines[3])];
        let (low, high) = (_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b));
        let (other_low, other_high) = (_mm_unpacklo_epi8(c, d), _mm_unpackhi_epi8(c, d));
        let out = cell.0.as_mut_ptr().cast::<__m128i>();
        _mm_store_si128(out, _mm_unpacklo_epi16(low, other_low));
        _mm_store_si128(out.add(1), _mm_unpackhi_epi16(low, other_low));
        _mm_store_si128(out.add(2), _mm_unpacklo_epi16(high, other_high));
        _mm_store_si128(out.add(3), _mm_unpackhi_epi16(high, other_high));
    }
    cell
}

/// Byte `j` of each of the four lines in turn, combined with `flip` by exclusive or.
#[cfg(not(target_arch = "x86_64"))]
pub fn interleaved(lines: [[u8; LANES]; 4], flip: u8) -> Cell {
    Cell(std::array::from_fn(|i| lines[i % 4][i / 4] ^ flip))
}

/// The sums of a block of columns, taken as unsigned.
pub fn column_sums(cells: &[Cell]) -> [i32; LANES] {
    let mut sums = [0i32; LANES];
    for cell in cells {
        for (sum, quad) in sums.iter_mut().zip(cell.0.chunks_exact(4)) {
            *sum = quad.iter().fold(*sum, |sum, &b| sum.wrapping_add(i32::from(b)));
        }
    }
    sums
}
