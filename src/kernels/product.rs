//! The `f32` product `C ← O + α·A·B`, block by block, on the register tiles of [`tile`](super::tile).
//!
//! Nothing is laid out anew as long as rows of `B` and `C` are contiguous: `A` is read one element at a time, `B` and
//! `C` a few vectors at a time. Each sum is made of [`Parts`]; a part takes its products in order with fused
//! multiply-adds, and parts are added in order. So the bits depend on the operands alone.

mod panels;

use std::cell::Cell;

pub use self::panels::Panels;
use self::panels::{Place, Right};

use super::finish::Finish;
use super::gemm::{Mat, MatMut, Number, Size, check};
use super::simd::Isa;
use super::tile::{Block, End, LINE, Tiles, VECTORS};

/// Products of a part of a sum. The kinds are what ONNX Runtime does on one thread, so that sums have its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    products: usize,
    /// One row or one column: such sums are those of [`vector`](super::vector).
    pub line: bool,
}

impl Parts {
    /// For a right matrix that is known ahead.
    pub const CONSTANT: Self = Self::each(256);

    /// This many products in every part.
    pub const fn each(products: usize) -> Self {
        Self { products, line: false }
    }

    /// How many products a part has.
    pub const fn products(self) -> usize {
        self.products
    }

    /// For a matrix that is not known ahead or that is made of windows.
    pub fn of(Size { m, n, k }: Size) -> Self {
        let products = match n {
            _ if n >= k => 128,
            0..=16 => 1024,
            17..=32 => 512,
            33..=64 => 256,
            _ => 128,
        };
        Self { products, line: m == 1 || n == 1 }
    }
}

/// Elements of `B` and `C` that a block of columns may have: they stay in the second-level cache.
const CACHED: usize = 1 << 17;
/// Rows at a multiple of this distance share the places of the nearest cache.
const ALIAS: usize = 512;
/// Rows at this distance lie on pages of their own, of which a processor keeps few at hand.
const FAR: usize = 512;
/// Up to so many products, a sum takes little time, and it is best to write results in their order.
pub(super) const SHALLOW: usize = 64;
/// From so many rows of `A` on, `B` is read often enough for a copy of it to pay.
const MANY_ROWS: usize = 128;

/// Is the matrix read where it lies? Its rows must be contiguous and, if they are read often, not far apart.
fn lies(b: &Mat<f32>, m: usize, k: usize) -> bool {
    b.col == 1 && (k <= SHALLOW || b.row < FAR && !b.row.is_multiple_of(ALIAS) || m < MANY_ROWS)
}

/// What is done to a result before it leaves the cache.
#[derive(Debug)]
pub struct Ending<'a, T = f32> {
    /// Added to each row.
    pub bias: Option<&'a [T]>,
    /// Added after that. The same row may be added to all.
    pub added: Option<Mat<'a, T>>,
    /// Limits and extremes.
    pub finish: &'a mut Finish,
}

impl<T: Number> Ending<'_, T> {
    /// Does it fit a result of these extents?
    ///
    /// # Panics
    /// If it does not.
    pub fn check(&self, Size { m, n, .. }: Size) {
        assert!(self.bias.is_none_or(|bias| bias.len() >= m), "bias");
        let fits = |a: &Mat<T>| a.fits(m, n) && (a.col == 1 || n <= 1);
        assert!(self.added.as_ref().is_none_or(fits), "what is added");
    }

    /// What is done to the rows from `i` on of the columns from `j` on.
    pub fn from(&mut self, i: usize, j: usize) -> Ending<'_, T> {
        let added = self.added.map(|a| Mat { data: a.data.get(i * a.row + j..).unwrap_or(&[]), ..a });
        Ending { bias: self.bias.map(|bias| &bias[i..]), added, finish: self.finish }
    }

    /// Does it to columns from `first` on of row `i`.
    pub fn row(&mut self, i: usize, first: usize, row: &mut [T]) {
        if let Some(bias) = self.bias {
            row.iter_mut().for_each(|y| *y = y.plus(bias[i]));
        }
        if let Some(added) = self.added {
            let added = &added.data[i * added.row + first..];
            row.iter_mut().zip(added).for_each(|(y, &added)| *y = y.plus(added));
        }
        T::finish(row, self.finish);
    }
}

/// What products are added to.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// Nothing: the old content of `C` is not read.
    Nothing,
    /// The old content of `C` times a factor.
    Old(f32),
    /// One row, which is added to every row.
    Row(&'a [f32]),
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
    /// What the product is added to.
    pub start: Start<'a>,
    /// The result, whose rows are contiguous.
    pub c: MatMut<'a, f32>,
    /// The parts of its sums.
    pub parts: Parts,
    /// What is done to it.
    pub end: Option<Ending<'a>>,
    /// The panels of the right matrix, if there are any. If they fit, they are read in its place, whatever the size.
    pub panels: Option<&'a Panels>,
}

impl Product<'_> {
    /// Computes it with these vectors, or narrower ones if the processor lacks them.
    ///
    /// # Panics
    /// If a view does not fit its slice, rows of `C` or of what is added are not contiguous, or a bias is too short.
    pub fn compute(self, isa: Isa) {
        let Self { size, alpha, a, b, start, c, parts, mut end, panels } = self;
        let Size { m, n, k } = size;
        check(size, &a, &b, &c);
        assert!(c.col == 1 || n <= 1, "rows of C are not contiguous");
        if let Some(end) = &end {
            end.check(size);
        }
        assert!(!matches!(start, Start::Row(row) if row.len() < n), "row");
        if m == 0 {
            return;
        }
        let panels = panels.filter(|panels| isa >= Isa::detect() && panels.fit((k, n), parts));
        let columns_lie = panels.is_none() && b.row == 1 && b.col != 1;
        if m == 1 && n > 1 && columns_lie && end.as_ref().is_none_or(|end| end.bias.is_none()) {
            // The transpose reads columns of B where they lie.
            let start = match start {
                Start::Row(row) => {
                    c.data[..n].copy_from_slice(&row[..n]);
                    Start::Old(1.0)
                }
                other => other,
            };
            let (a, b) = (Mat { row: b.col, ..b }, Mat { row: a.col, col: 1, ..a });
            let (size, a, c) = (Size { m: n, n: 1, k }, Mat { col: 1, ..a }, MatMut { row: 1, ..c });
            let end = end.map(|end| Ending { added: end.added.map(|a| Mat { row: 1, ..a }), ..end });
            return Product { size, alpha, a, b, start, c, parts, end, panels: None }.compute(isa);
        }
        for i in 0..m {
            let row = &mut c.data[i * c.row..][..n];
            match start {
                Start::Old(factor) if factor != 1.0 => row.iter_mut().for_each(|y| *y *= factor),
                Start::Row(start) if k == 0 => row.copy_from_slice(&start[..n]),
                Start::Nothing if k == 0 => row.fill(0.0),
                _ => break,
            }
        }
        let tiles = Tiles::of(isa.min(Isa::detect()));
        let panel = VECTORS * tiles.lanes;
        let widest = (CACHED / (m + k).max(1)).max(2 * panel);
        let width = n.div_ceil(n.div_ceil(widest).max(1)).next_multiple_of(panel);
        let mut walk = Walk { tiles, size, part: parts.products, alpha, a, b, c, start, panels };
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
    start: Start<'a>,
    panels: Option<&'a Panels>,
}

impl Walk<'_> {
    /// Computes the columns `first..first + width`.
    fn columns(&mut self, first: usize, width: usize, end: &mut Option<Ending>) {
        let Size { m, k, .. } = self.size;
        let Mat { data, row, .. } = self.b;
        if k == 0 {
            (0..m).for_each(|i| self.end_row(i, first, width, end));
        }
        let lies = lies(&self.b, m, k);
        for part in (0..k).step_by(self.part) {
            let place = Place { part, depth: self.part.min(k - part), first, width };
            if let Some(panels) = self.panels {
                self.tiles(place, panels.right(place), end);
                continue;
            }
            if lies {
                self.tiles(place, Right { data: &data[part * row + first..], row, panel: None }, end);
                continue;
            }
            let room = place.depth * width.next_multiple_of(self.panel());
            scratch(room, |copy| {
                panels::copy(self.b, self.panel(), place, copy);
                let b = Right { data: copy, row: self.panel(), panel: Some(place.depth * self.panel()) };
                self.tiles(place, b, end);
            });
        }
    }

    /// Columns of the widest tile.
    fn panel(&self) -> usize {
        VECTORS * self.tiles.lanes
    }

    /// The tiles of some columns.
    fn tiles(&mut self, place: Place, b: Right, end: &mut Option<Ending>) {
        let (m, lanes) = (self.size.m, self.tiles.lanes);
        // Tiles of about the same size: a narrow or a low one takes as long as others.
        let (heights, panels) = (m.div_ceil(self.tiles.loops.len()), place.width.div_ceil(self.panel()));
        let (rows, vectors) = (Shares::of(m, heights), Shares::of(place.width.div_ceil(lanes), panels));
        let column = |panel: usize| match b.panel {
            Some(_) => panel * VECTORS * lanes,
            None => vectors.before(panel) * lanes,
        };
        let mut tile = |(i, below): (usize, usize), panel: usize| {
            let (at, next) = (column(panel), column(panel + 1).min(place.width));
            let end = end.as_mut().filter(|_| place.part + place.depth == self.size.k);
            let end = end.map(|end| {
                let added = end
                    .added
                    .map(|added| (added.data[i * added.row + place.first + at..].as_ptr(), added.row));
                End { bias: end.bias.map(|b| &b[i..below]), added, finish: end.finish }
            });
            let b = Right { data: &b.data[b.panel.map_or(at, |distance| panel * distance)..], ..b };
            // While a panel is multiplied with all rows, the one behind it is brought near.
            let ahead = b.panel.map(|distance| distance + i * distance / m);
            self.tile(place, (i, below - i), (at, next - at), (b, ahead), end);
        };
        // What is read again and again, or written, is to lie together.
        if place.depth <= SHALLOW {
            rows.each().for_each(|rows| (0..panels).for_each(|panel| tile(rows, panel)));
        } else {
            (0..panels).for_each(|panel| rows.each().for_each(|rows| tile(rows, panel)));
        }
    }

    /// One tile of `rows` rows from `i` on and so many columns from one on, those of `b`.
    fn tile(
        &mut self,
        Place { part, depth, first, .. }: Place,
        (i, rows): (usize, usize),
        (at, columns): (usize, usize),
        (Right { data: b, row: b_row, .. }, ahead): (Right, Option<usize>),
        end: Option<End>,
    ) {
        let (lanes, j) = (self.tiles.lanes, first + at);
        let vectors = columns.div_ceil(lanes);
        let last = columns - (vectors - 1) * lanes;
        let run = self.tiles.loops[rows - 1][vectors - 1][usize::from(last < lanes)];
        let a = &self.a.data[i * self.a.row + part * self.a.col..];
        let c = &mut self.c.data[i * self.c.row + j..];
        debug_assert!((rows - 1) * self.c.row + columns <= c.len());
        debug_assert!((depth - 1) * b_row + columns <= b.len());
        let old = match self.start {
            _ if part > 0 => Some((c.as_ptr(), self.c.row)),
            Start::Nothing => None,
            Start::Old(_) => Some((c.as_ptr(), self.c.row)),
            Start::Row(row) => Some((row[j..].as_ptr(), 0)),
        };
        let block = Block {
            depth,
            a: a.as_ptr(),
            a_row: self.a.row,
            a_col: self.a.col,
            b: b.as_ptr(),
            b_row,
            next: ahead.map_or((b.as_ptr(), 0), |ahead| (b.as_ptr().wrapping_add(ahead), LINE)),
            last,
            c: c.as_mut_ptr(),
            c_row: self.c.row,
            old,
            scale: self.alpha,
        };
        // SAFETY: the loop was chosen for this processor; the views, the row and what is added fit their slices, as was
        // checked, and the tile lies within their extents or in the copy.
        unsafe { run(&block, end) };
    }

    /// Ends a row of a product that has no products.
    fn end_row(&mut self, i: usize, first: usize, width: usize, end: &mut Option<Ending>) {
        let row = &mut self.c.data[i * self.c.row + first..][..width];
        if let Some(end) = end {
            end.row(i, first, row);
        }
    }
}

/// Things dealt out in shares that differ by one at most. Each is asked for often, so that divisions would show.
#[derive(Clone, Copy)]
struct Shares {
    count: usize,
    least: usize,
    larger: usize,
}

impl Shares {
    fn of(things: usize, count: usize) -> Self {
        Self { count, least: things / count.max(1), larger: things % count.max(1) }
    }

    /// Where each begins and ends.
    fn each(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.count).map(move |share| (self.before(share), self.before(share + 1)))
    }

    /// How many lie in the first shares.
    fn before(self, shares: usize) -> usize {
        shares * self.least + shares.min(self.larger)
    }
}

/// Lends a buffer of this many elements of any content, which its thread keeps for the next time. It is one of its
/// own, as who multiplies may hold that of [`Number::scratch`](super::gemm::Number::scratch).
pub(super) fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
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
        start: Start,
        old: &[f32],
    ) -> Vec<f32> {
        let Size { m, n, k } = size;
        let mut c = match start {
            Start::Nothing => vec![0.0; m * n],
            Start::Old(factor) => old.iter().map(|x| x * factor).collect(),
            Start::Row(row) => row.repeat(m),
        };
        for (at, c) in c.iter_mut().enumerate() {
            let (i, j) = (at / n, at % n);
            for part in (0..k).step_by(part_of) {
                let product = |sum: f32, p: usize| {
                    a.data[i * a.row + p * a.col].mul_add(b.data[p * b.row + j * b.col], sum)
                };
                let sum = (part..k.min(part + part_of)).fold(0.0, product);
                let sum = if alpha == 1.0 { sum } else { sum * alpha };
                *c = if matches!(start, Start::Nothing) && part == 0 { sum } else { *c + sum };
            }
        }
        c
    }

    proptest! {
        #[test]
        fn every_kind_of_vectors_gives_the_bits_of_the_definition(
            m in 1usize..20, n in 1usize..120, k in 0usize..600, ta: bool, tb: bool, more in 0usize..9, alpha in 0u8..2,
            begins in 0u8..4, ends in 0u8..4, adds_after in 0u8..3, seed in 0usize..9, constant: bool, panels: bool,
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
            let parts = if constant { Parts::CONSTANT } else { Parts::of(size) };
            let row = numbers(n, seed + 4);
            let start = match begins {
                0 => Start::Nothing,
                1 => Start::Row(&row),
                _ => Start::Old(f32::from(begins) - 1.0),
            };
            let adds = begins > 1;
            let mut want = expected(size, a, b, alpha, parts.products, start, &old);
            let limits = if ends < 2 { Limits::NONE } else { Limits { low: 0.0, high: 0.7 } };
            let bias = (ends % 2 == 1).then_some(&bias[..]);
            let (line, all) = (numbers(n, seed + 5), numbers(m * n, seed + 6));
            let added = match adds_after {
                0 => None,
                1 => Some(Mat { data: &line, row: 0, col: 1 }),
                _ => Some(Mat::rows(&all, n)),
            };
            if ends > 0 {
                want.iter_mut().enumerate().for_each(|(at, y)| {
                    let sum = bias.map_or(*y, |b| *y + b[at / n]);
                    *y = limits.apply(added.map_or(sum, |a| sum + a.data[at / n * a.row + at % n]));
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
                let end = (ends > 0).then_some(Ending { bias, added, finish: &mut finish });
                let target = MatMut { data: &mut c, row, col: 1 };
                let panels = (panels && isa == Isa::detect() && m > 1).then(|| Panels::of(b, (k, n), parts));
                Product { size, alpha, a, b, start, c: target, parts, end, panels: panels.as_ref() }.compute(isa);
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
