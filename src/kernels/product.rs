//! The `f32` product `C ← β·C + α·A·B`, block by block, on the register tiles of [`tile`](super::tile).
//!
//! Nothing is laid out anew as long as rows of `B` and `C` are contiguous: `A` is read one element at a time, `B` and
//! `C` a few vectors at a time. Each sum is made of [`Parts`]; a part takes its products in order with fused
//! multiply-adds, and parts are added in order. So the bits depend on the operands alone.

use std::cell::Cell;

use super::finish::Finish;
use super::gemm::{Mat, MatMut, Size, check};
use super::simd::Isa;
use super::tile::{Block, End, ROWS, Tiles, VECTORS};

/// Products of a part of a sum. Both kinds are what ONNX Runtime does on one thread without optimizations, so that sums
/// have its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts(usize);

impl Parts {
    /// For a right matrix that is known ahead.
    pub const CONSTANT: Self = Self(256);

    /// For `n` sums of `k` products in a row, of a matrix that is not known ahead or of windows.
    pub fn of(n: usize, k: usize) -> Self {
        Self(match n {
            _ if n >= k => 128,
            0..=16 => 1024,
            17..=32 => 512,
            33..=64 => 256,
            _ => 128,
        })
    }
}

/// Elements of `B` and `C` that a block of columns may have: they stay in the second-level cache.
const CACHED: usize = 1 << 17;
/// Rows at a multiple of this distance share the places of the nearest cache.
const ALIAS: usize = 512;
/// From so many rows of `A` on, `B` is read often enough for a copy of it to pay.
const MANY_ROWS: usize = 64;
/// The widest tile.
const WIDEST: usize = VECTORS * 16;

/// What is done to a result before it leaves the cache.
#[derive(Debug)]
pub struct Ending<'a> {
    /// Added to each row.
    pub bias: Option<&'a [f32]>,
    /// Limits and extremes.
    pub finish: &'a mut Finish,
}

/// What is multiplied, and where the result goes.
#[derive(Debug)]
pub struct Product<'a> {
    /// The extents.
    pub size: Size,
    /// Factor of the product.
    pub alpha: f32,
    /// The left matrix.
    pub a: Mat<'a, f32>,
    /// The right matrix.
    pub b: Mat<'a, f32>,
    /// Factor of the old content of `C`, which is not read if it is 0.
    pub beta: f32,
    /// The result, whose rows are contiguous.
    pub c: MatMut<'a, f32>,
    /// The parts of its sums.
    pub parts: Parts,
    /// What is done to it.
    pub end: Option<Ending<'a>>,
}

impl Product<'_> {
    /// Computes it with these vectors, or narrower ones if the processor lacks them.
    ///
    /// # Panics
    /// If a view does not fit its slice, rows of `C` are not contiguous, or the bias is too short.
    pub fn compute(self, isa: Isa) {
        let Self { size, alpha, a, b, beta, c, parts, mut end } = self;
        let Size { m, n, k } = size;
        check(size, &a, &b, &c);
        assert!(c.col == 1 || n <= 1, "rows of C are not contiguous");
        assert!(end.as_ref().and_then(|end| end.bias).is_none_or(|bias| bias.len() >= m), "bias");
        if m == 0 {
            return;
        }
        if beta != 1.0 && (beta != 0.0 || k == 0) {
            for i in 0..m {
                let row = &mut c.data[i * c.row..][..n];
                row.iter_mut().for_each(|y| *y = if beta == 0.0 { 0.0 } else { *y * beta });
            }
        }
        let tiles = Tiles::of(isa.min(Isa::detect()));
        let panel = VECTORS * tiles.lanes;
        let widest = (CACHED / (m + k).max(1)).max(2 * panel);
        let width = n.div_ceil(n.div_ceil(widest).max(1)).next_multiple_of(panel);
        let mut walk = Walk { tiles, size, part: parts.0, alpha, a, b, c, adds: beta != 0.0 };
        let mut first = 0;
        while first < n {
            let width = width.min(n - first);
            walk.columns(first, width, &mut end);
            first += width;
        }
    }
}

/// A product on its way.
struct Walk<'a> {
    tiles: Tiles,
    size: Size,
    part: usize,
    alpha: f32,
    a: Mat<'a, f32>,
    b: Mat<'a, f32>,
    c: MatMut<'a, f32>,
    adds: bool,
}

impl Walk<'_> {
    /// Computes the columns `first..first + width`.
    fn columns(&mut self, first: usize, width: usize, end: &mut Option<Ending>) {
        let Size { m, k, .. } = self.size;
        let lanes = self.tiles.lanes;
        // Columns that make whole vectors are read where they lie, if rows of B are contiguous and do not fall on the
        // same few places of the nearest cache.
        let spread = !self.b.row.is_multiple_of(ALIAS) || m < MANY_ROWS;
        let lie = if self.b.col == 1 && spread { width - width % lanes } else { 0 };
        let copied = (width - lie).next_multiple_of(lanes);
        scratch(k * copied, |copy| {
            self.copy(first + lie, width - lie, copied, copy);
            if k == 0 {
                (0..m).for_each(|i| self.end_row(i, first, width, end));
            }
            for part in (0..k).step_by(self.part) {
                let depth = self.part.min(k - part);
                let last = part + depth == k;
                for i in (0..m).step_by(self.rows()) {
                    let rows = self.rows().min(m - i);
                    let bias = end.as_ref().and_then(|end| end.bias);
                    let bias: Option<[f32; ROWS]> =
                        bias.map(|b| std::array::from_fn(|r| if r < rows { b[i + r] } else { 0.0 }));
                    for at in (0..width).step_by(VECTORS * lanes) {
                        let wide = (VECTORS * lanes).min(width - at);
                        let whole = if at < lie { wide.min(lie - at) } else { wide };
                        let at_b = if at < lie {
                            (&self.b.data[part * self.b.row + first + at..], self.b.row)
                        } else {
                            (&copy[part * copied + at - lie..], copied)
                        };
                        let place = Place { part, depth, i, rows, j: first + at };
                        self.tile(place, whole, at_b, ending(end, bias.as_ref(), last));
                        if whole < wide {
                            // The last vector, of which some columns do not exist.
                            let place = Place { j: place.j + whole, ..place };
                            let at_b = (&copy[part * copied..], copied);
                            self.tile(place, wide - whole, at_b, ending(end, bias.as_ref(), last));
                        }
                    }
                }
            }
        });
    }

    fn rows(&self) -> usize {
        self.tiles.loops.len()
    }

    /// Copies columns of `B` into rows of `stride`; what lies behind them may be anything.
    fn copy(&self, first: usize, width: usize, stride: usize, copy: &mut [f32]) {
        if width == 0 || self.size.k == 0 {
            return;
        }
        let Mat { data, row, col } = self.b;
        if col == 1 {
            for (k, line) in copy.chunks_exact_mut(stride).enumerate() {
                line[..width].copy_from_slice(&data[k * row + first..][..width]);
            }
        } else if row == 1 {
            // Columns of B are contiguous: a few at a time, so that lines of the copy are filled while they are at hand.
            for j in 0..width {
                let column = &data[(first + j) * col..][..self.size.k];
                copy[j..].iter_mut().step_by(stride).zip(column).for_each(|(to, from)| *to = *from);
            }
        } else {
            for (k, line) in copy.chunks_exact_mut(stride).enumerate() {
                let source = data[k * row + first * col..].iter().step_by(col.max(1));
                line[..width].iter_mut().zip(source).for_each(|(to, from)| *to = *from);
            }
        }
    }

    /// One tile of `columns` columns, where `B` is given as its first element and the distance of its rows.
    fn tile(&mut self, place: Place, columns: usize, (b, b_row): (&[f32], usize), end: Option<End>) {
        let lanes = self.tiles.lanes;
        let Place { part, depth, i, rows, j } = place;
        let run = self.tiles.loops[rows - 1][columns.div_ceil(lanes) - 1];
        let a = &self.a.data[i * self.a.row + part * self.a.col..];
        let adds = self.adds || part > 0;
        let block = Block {
            depth,
            a: a.as_ptr(),
            a_row: self.a.row,
            a_col: self.a.col,
            b: b.as_ptr(),
            b_row,
            c: std::ptr::null_mut(),
            c_row: self.c.row,
            adds,
            scale: self.alpha,
        };
        if columns.is_multiple_of(lanes) {
            let c = &mut self.c.data[i * self.c.row + j..];
            debug_assert!((rows - 1) * self.c.row + columns <= c.len());
            debug_assert!((depth - 1) * b_row + columns <= b.len());
            // SAFETY: the loop was chosen for this processor; the views fit their slices, as was checked, and
            // the tile lies within their extents or in the copy, which has whole vectors.
            unsafe { run(&Block { c: c.as_mut_ptr(), ..block }, end) };
            return;
        }
        let mut sums = [0.0; ROWS * WIDEST];
        // SAFETY: as above; the result goes to a buffer that has room for the largest tile.
        unsafe { run(&Block { c: sums.as_mut_ptr(), c_row: WIDEST, adds: false, ..block }, None) };
        let mut end = end;
        for (r, sums) in sums.chunks_exact(WIDEST).take(rows).enumerate() {
            let row = &mut self.c.data[(i + r) * self.c.row + j..][..columns];
            for (y, &sum) in row.iter_mut().zip(sums) {
                *y = if adds { *y + sum } else { sum };
            }
            if let Some(end) = &mut end {
                finish(row, end.bias.map(|bias| bias[r]), end.finish);
            }
        }
    }

    /// Ends a row of a product that has no products.
    fn end_row(&mut self, i: usize, first: usize, width: usize, end: &mut Option<Ending>) {
        let row = &mut self.c.data[i * self.c.row + first..][..width];
        if let Some(end) = end {
            finish(row, end.bias.map(|bias| bias[i]), end.finish);
        }
    }
}

/// Where a tile lies: the part of its sums, its first row and their number, and its first column.
#[derive(Clone, Copy)]
struct Place {
    part: usize,
    depth: usize,
    i: usize,
    rows: usize,
    j: usize,
}

/// What a tile does with its sums: nothing before their last part.
fn ending<'a>(end: &'a mut Option<Ending>, bias: Option<&'a [f32; ROWS]>, last: bool) -> Option<End<'a>> {
    let end = end.as_mut().filter(|_| last)?;
    Some(End { bias, finish: end.finish })
}

fn finish(row: &mut [f32], bias: Option<f32>, finish: &mut Finish) {
    if let Some(bias) = bias {
        row.iter_mut().for_each(|y| *y += bias);
    }
    finish.apply(row);
}

/// Lends a buffer of this many elements of any content, which its thread keeps for the next time. It is one of its own, as
/// who multiplies may hold that of [`Number::scratch`](super::gemm::Number::scratch).
fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local!(static BUFFER: Cell<Vec<f32>> = const { Cell::new(Vec::new()) });
    let mut buffer = BUFFER.take();
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    let result = f(&mut buffer[..len]);
    BUFFER.set(buffer);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Limits;
    use proptest::prelude::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    /// The definition: parts of sums in order.
    fn expected(
        size: Size,
        a: Mat<f32>,
        b: Mat<f32>,
        alpha: f32,
        part_of: usize,
        old: Option<&[f32]>,
    ) -> Vec<f32> {
        let Size { m, n, k } = size;
        let mut c = old.map_or_else(|| vec![0.0; m * n], <[f32]>::to_vec);
        for (at, c) in c.iter_mut().enumerate() {
            let (i, j) = (at / n, at % n);
            for part in (0..k).step_by(part_of) {
                let product = |sum: f32, p: usize| {
                    a.data[i * a.row + p * a.col].mul_add(b.data[p * b.row + j * b.col], sum)
                };
                let sum = (part..k.min(part + part_of)).fold(0.0, product);
                let sum = if alpha == 1.0 { sum } else { sum * alpha };
                *c = if old.is_none() && part == 0 { sum } else { *c + sum };
            }
        }
        c
    }

    proptest! {
        #[test]
        fn every_kind_of_vectors_gives_the_bits_of_the_definition(
            m in 1usize..20, n in 1usize..120, k in 0usize..600, ta: bool, tb: bool, more in 0usize..9, alpha in 0u8..2,
            adds: bool, ends in 0u8..4, seed in 0usize..9, constant: bool,
        ) {
            let (mut size, alpha) = (Size { m, n, k }, f32::from(alpha) + 1.0);
            if m * n * k > 100_000 {
                size.k %= 40;
            }
            let Size { m, n, k } = size;
            let (a, b, bias) = (numbers(m * k, seed), numbers(k * n, seed + 1), numbers(m, seed + 2));
            let a = if ta { Mat::transposed(&a, m) } else { Mat::rows(&a, k) };
            let b = if tb { Mat::transposed(&b, k) } else { Mat::rows(&b, n) };
            let old = numbers(m * n, seed + 3);
            let parts = if constant { Parts::CONSTANT } else { Parts::of(n, k) };
            let mut want = expected(size, a, b, alpha, parts.0, adds.then_some(&old[..]));
            let limits = if ends < 2 { Limits::NONE } else { Limits { low: 0.0, high: 0.7 } };
            let bias = (ends % 2 == 1).then_some(&bias[..]);
            if ends > 0 {
                want.iter_mut().enumerate().for_each(|(at, y)| {
                    *y = limits.apply(bias.map_or(*y, |b| *y + b[at / n]));
                });
            }
            for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().filter(|&isa| isa <= Isa::detect()) {
                let row = n + more;
                let mut c = vec![if adds { 0.0 } else { f32::NAN }; m * row];
                c.chunks_exact_mut(row).zip(old.chunks_exact(n)).for_each(|(c, old)| {
                    c[n..].fill(9.0);
                    if adds { c[..n].copy_from_slice(old) }
                });
                let mut finish = Finish::new(limits);
                let end = (ends > 0).then_some(Ending { bias, finish: &mut finish });
                let beta = if adds { 1.0 } else { 0.0 };
                let target = MatMut { data: &mut c, row, col: 1 };
                Product { size, alpha, a, b, beta, c: target, parts, end }.compute(isa);
                prop_assert!(c.chunks_exact(row).all(|c| c[n..].iter().all(|&x| x == 9.0)), "{isa:?}: beyond C");
                let found: Vec<f32> = c.chunks_exact(row).flat_map(|c| c[..n].to_vec()).collect();
                prop_assert_eq!(&found, &want, "{:?}", isa);
                if ends > 0 {
                    prop_assert_eq!(finish.extent(), super::super::finish::extent(&want));
                }
            }
        }
    }
}
