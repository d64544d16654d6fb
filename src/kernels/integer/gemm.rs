//! Products of packed bytes, tile by tile, with exact sums.

use super::Level;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::amx;
use super::pack::{Cell, LANES, block_len, column_sums};
use crate::kernels::simd::{self, Task};

/// Rows of a tile, and its columns: two blocks of each.
pub const TILE: usize = 2 * LANES;

/// Fewer rows than these are not worth products of tiles.
const FEW: usize = 4;

/// The sums of a tile; only those of its rows and blocks of columns mean something.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub struct Sums(pub [[i32; TILE]; TILE]);

impl Sums {
    /// No sums yet.
    pub const ZERO: Self = Self([[0; TILE]; TILE]);
}

/// A tile of the product.
pub struct Tile<'a> {
    /// Its first row and its number of rows.
    pub rows: (usize, usize),
    /// Its first column and its number of columns, a multiple of [`LANES`].
    pub columns: (usize, usize),
    /// The sums.
    pub sums: &'a mut Sums,
}

/// Packed operands. With `SIGNED_ROWS`, rows are signed and columns unsigned, else the other way round.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a, const SIGNED_ROWS: bool> {
    /// Quads of a row and of a column.
    pub quads: usize,
    /// Number of rows.
    pub count: usize,
    /// The blocks of rows.
    pub rows: &'a [Cell],
    /// The blocks of columns.
    pub columns: &'a [Cell],
}

/// Computes the product and hands every tile to `finish`.
///
/// # Panics
/// If the operands are not whole.
pub fn product<const SIGNED_ROWS: bool>(
    level: Level,
    operands: Operands<SIGNED_ROWS>,
    mut finish: impl FnMut(Tile),
) {
    let Operands { quads, count, rows, columns } = operands;
    if quads == 0 {
        return;
    }
    let len = block_len(quads);
    let blocks = columns.len() / len;
    assert!(
        count.div_ceil(LANES) * len == rows.len() && blocks * len == columns.len(),
        "operands of a product are not whole"
    );
    // A tile of few rows is mostly empty.
    let level = if count < FEW { level.min(Level::Vnni) } else { level };
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let _tiles = (level == Level::Amx).then(amx::Tiles::new);
    let mut sums = Sums::ZERO;
    let mut one = |first: usize, block: usize| {
        let (some, some_blocks) = (TILE.min(count - first), (TILE / LANES).min(blocks - block));
        let own = Operands::<SIGNED_ROWS> {
            quads,
            count: some,
            rows: &rows[first / LANES * len..][..some.div_ceil(LANES) * len],
            columns: &columns[block * len..][..some_blocks * len],
        };
        own.tile(level, &mut sums);
        let columns = (block * LANES, some_blocks * LANES);
        finish(Tile { rows: (first, some), columns, sums: &mut sums });
    };
    // The larger operand is read once, the smaller one stays in the cache.
    if rows.len() > columns.len() {
        for first in (0..count).step_by(TILE) {
            (0..blocks).step_by(TILE / LANES).for_each(|block| one(first, block));
        }
    } else {
        for block in (0..blocks).step_by(TILE / LANES) {
            (0..count).step_by(TILE).for_each(|first| one(first, block));
        }
    }
}

impl<const SIGNED_ROWS: bool> Operands<'_, SIGNED_ROWS> {
    /// The sums of operands that are one tile.
    fn tile(self, level: Level, sums: &mut Sums) {
        match level {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Level::Amx => amx::tile(self, sums),
            #[cfg(target_arch = "x86_64")]
            Level::Vnni => super::vnni::tile(self, sums),
            _ => simd::run(Plain(self, sums)),
        }
    }
}

struct Plain<'a, const SIGNED_ROWS: bool>(Operands<'a, SIGNED_ROWS>, &'a mut Sums);

impl<const SIGNED_ROWS: bool> Task for Plain<'_, SIGNED_ROWS> {
    #[inline(always)]
    fn run(self) {
        let Self(Operands { quads, count, rows, columns }, sums) = self;
        let unsigned = |b: u8| i32::from(b);
        let signed = |b: u8| i32::from(b as i8);
        let len = block_len(quads);
        for (row, sums) in sums.0.iter_mut().enumerate().take(count) {
            let row = &rows[row / LANES * len..][row % LANES..];
            for (cells, sums) in columns.chunks_exact(len).zip(sums.chunks_exact_mut(LANES)) {
                let mut block = [0i32; LANES];
                for (quad, cell) in cells[..quads].iter().enumerate() {
                    let a = &row[quad / LANES * LANES].0[quad % LANES * 4..][..4];
                    for (sum, b) in block.iter_mut().zip(cell.0.chunks_exact(4)) {
                        for (&a, &b) in a.iter().zip(b) {
                            let product =
                                if SIGNED_ROWS { signed(a) * unsigned(b) } else { unsigned(a) * signed(b) };
                            *sum = sum.wrapping_add(product);
                        }
                    }
                }
                sums.copy_from_slice(&block);
            }
        }
    }
}

/// Subtracts `zero_points[row] · Σ column` from a tile of signed rows and unsigned columns: what a weight's zero point
/// adds to the sums.
pub fn subtract_column_sums(tile: &mut Tile, quads: usize, columns: &[Cell], zero_points: &[i32]) {
    let (first, width) = tile.columns;
    let blocks = columns.chunks_exact(block_len(quads)).skip(first / LANES).take(width / LANES);
    for (block, cells) in blocks.enumerate() {
        let of_columns = column_sums(&cells[..quads]);
        let rows = tile.rows.0..tile.rows.0 + tile.rows.1;
        for (sums, zero) in tile.sums.0.iter_mut().zip(&zero_points[rows]) {
            for (sum, column) in sums[block * LANES..].iter_mut().zip(of_columns) {
                *sum = sum.wrapping_sub(zero.wrapping_mul(column));
            }
        }
    }
}

/// Subtracts `zero_points[column] · Σ row` from a tile of unsigned rows and signed columns.
pub fn subtract_row_sums(tile: &mut Tile, row_sums: &[i32], zero_points: &[i32]) {
    let (first, count) = tile.rows;
    let zero_points = zero_points.get(tile.columns.0..).unwrap_or_default();
    for (sums, of_row) in tile.sums.0.iter_mut().zip(&row_sums[first..][..count]) {
        for (sum, zero) in sums.iter_mut().zip(zero_points) {
            *sum = sum.wrapping_sub(zero.wrapping_mul(*of_row));
        }
    }
}

#[cfg(test)]
mod tests;
