//! Products of packed bytes, tile by tile, with exact sums.

use super::Level;
use super::pack::{CELL, LANES, column_sums};
use crate::kernels::simd::{self, Task};

/// Rows of a tile.
pub const TILE_ROWS: usize = 8;
/// Blocks of columns of a tile.
pub const TILE_BLOCKS: usize = 3;
/// Columns of a tile.
pub const TILE_COLUMNS: usize = TILE_BLOCKS * LANES;

/// The sums of a tile; only those of its rows and blocks of columns mean something.
pub type Sums = [[i32; TILE_COLUMNS]; TILE_ROWS];

/// A tile of the product.
pub struct Tile<'a> {
    /// Its first row and its number of rows.
    pub rows: (usize, usize),
    /// Its first column and its number of columns, a multiple of [`LANES`].
    pub columns: (usize, usize),
    /// The sums.
    pub sums: &'a mut Sums,
}

/// Computes the product of `rows` (`4 · quads` bytes each) and `panels` (`quads` cells a block), and hands every tile
/// to `finish`. With `SIGNED_ROWS`, rows are signed and panels unsigned, else the other way round.
///
/// # Panics
/// If the operands are not whole.
pub fn product<const SIGNED_ROWS: bool>(
    level: Level,
    quads: usize,
    rows: &[u8],
    panels: &[u8],
    mut finish: impl FnMut(Tile),
) {
    let (row, block) = (4 * quads, quads * CELL);
    let (count, blocks) = if quads == 0 { (0, 0) } else { (rows.len() / row, panels.len() / block) };
    assert!(
        count * row == rows.len() && blocks * block == panels.len(),
        "operands of a product are not whole"
    );
    let mut sums: Sums = [[0; TILE_COLUMNS]; TILE_ROWS];
    for first_block in (0..blocks).step_by(TILE_BLOCKS) {
        let some_blocks = TILE_BLOCKS.min(blocks - first_block);
        let panels = &panels[first_block * block..][..some_blocks * block];
        for first in (0..count).step_by(TILE_ROWS) {
            let some = TILE_ROWS.min(count - first);
            tile::<SIGNED_ROWS>(level, quads, &rows[first * row..][..some * row], panels, &mut sums);
            let columns = (first_block * LANES, some_blocks * LANES);
            finish(Tile { rows: (first, some), columns, sums: &mut sums });
        }
    }
}

fn tile<const SIGNED_ROWS: bool>(level: Level, quads: usize, rows: &[u8], panels: &[u8], sums: &mut Sums) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Vnni => super::vnni::tile::<SIGNED_ROWS>(quads, rows, panels, sums),
        _ => simd::run(Plain::<SIGNED_ROWS> { quads, rows, panels, sums }),
    }
}

struct Plain<'a, const SIGNED_ROWS: bool> {
    quads: usize,
    rows: &'a [u8],
    panels: &'a [u8],
    sums: &'a mut Sums,
}

impl<const SIGNED_ROWS: bool> Task for Plain<'_, SIGNED_ROWS> {
    #[inline(always)]
    fn run(self) {
        let unsigned = |b: u8| i32::from(b);
        let signed = |b: u8| i32::from(b as i8);
        for (row, sums) in self.rows.chunks_exact(4 * self.quads).zip(self.sums.iter_mut()) {
            let blocks = self.panels.chunks_exact(self.quads * CELL);
            for (cells, sums) in blocks.zip(sums.chunks_exact_mut(LANES)) {
                let mut block = [0i32; LANES];
                for (a, cell) in row.chunks_exact(4).zip(cells.chunks_exact(CELL)) {
                    for (sum, b) in block.iter_mut().zip(cell.chunks_exact(4)) {
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

/// Subtracts `zero_points[row] · Σ column` from a tile of signed rows and unsigned panels: what a weight's zero point
/// adds to the sums.
pub fn subtract_column_sums(tile: &mut Tile, quads: usize, panels: &[u8], zero_points: &[i32]) {
    let (first, columns) = tile.columns;
    let blocks = panels[first / LANES * quads * CELL..].chunks_exact(quads * CELL).take(columns / LANES);
    for (block, cells) in blocks.enumerate() {
        let of_columns = column_sums(cells);
        let rows = tile.rows.0..tile.rows.0 + tile.rows.1;
        for (sums, zero) in tile.sums.iter_mut().zip(&zero_points[rows]) {
            for (sum, column) in sums[block * LANES..].iter_mut().zip(of_columns) {
                *sum = sum.wrapping_sub(zero.wrapping_mul(column));
            }
        }
    }
}

/// Subtracts `zero_points[column] · Σ row` from a tile of unsigned rows and signed panels.
pub fn subtract_row_sums(tile: &mut Tile, quads: usize, rows: &[u8], zero_points: &[i32]) {
    let (first, count) = tile.rows;
    let zero_points = zero_points.get(tile.columns.0..).unwrap_or_default();
    for (sums, row) in tile.sums.iter_mut().zip(rows[first * 4 * quads..].chunks_exact(4 * quads)).take(count)
    {
        let of_row: i32 = row.iter().map(|&b| i32::from(b)).sum();
        for (sum, zero) in sums.iter_mut().zip(zero_points) {
            *sum = sum.wrapping_sub(zero.wrapping_mul(of_row));
        }
    }
}

#[cfg(test)]
mod tests;
