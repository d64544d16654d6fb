//! Matrix products `C ← β·C + α·A·B` over strided views.
//!
//! `f32` goes to the blocks of [`product`](super::product). All other element types take one plain loop; integers wrap.

use std::cell::Cell;
use std::ops::{Add, Mul};

use super::buffer;
use super::depthwise::Depthwise;
use super::finish::Finish;
pub use super::product::Parts;
use super::product::{Ending, Panels, Product, Start};
use super::simd::Isa;
use super::{turned, vector};

/// A number that contractions add and multiply.
pub trait Number: Copy + Default + PartialEq + Send + Sync + 'static {
    /// One.
    const ONE: Self;

    /// The sum; integers wrap.
    fn plus(self, other: Self) -> Self;

    /// The product; integers wrap.
    fn times(self, other: Self) -> Self;

    /// `self + a·b`; of `f32` rounded once.
    fn plus_product(self, a: Self, b: Self) -> Self;

    /// A result of this many elements of any content, see [`buffer`].
    fn result(len: usize) -> Vec<Self>;

    /// Lends a buffer of this many elements of any content, which its thread keeps for the next time.
    fn scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;

    /// `C ← β·C + α·A·B`, see [`gemm`], with sums of `f32` in these parts.
    fn multiply(
        size: Size,
        alpha: Self,
        a: Mat<Self>,
        b: Mat<Self>,
        beta: Self,
        c: MatMut<Self>,
        parts: Parts,
    );

    /// `C ← A·B` and what comes after, see [`contract`].
    fn contract(size: Size, a: Left<Self>, b: Mat<Self>, c: MatMut<Self>, parts: Parts, end: Ending<Self>);

    /// Limits elements and notes their extremes; only for `f32`, others stay as they are.
    fn finish(values: &mut [Self], finish: &mut Finish);

    /// The loop over vectors for a plane of a depthwise convolution, if there is one.
    const PLANE: Option<PlaneLoop<Self>>;
}

/// [`Depthwise::compute`] for elements of this type.
pub type PlaneLoop<T> = fn(&Depthwise, Isa, &[T], (&[T], Option<T>), &mut [T], &mut Finish);

macro_rules! number {
    ($($t:ty, $one:literal, $plus:expr, $times:expr, $multiply:ident, $contract:ident, $finish:expr, $plane:expr, $result:expr, $fused:expr;)*) => { $(impl Number for $t {
        const ONE: Self = $one;

        #[inline(always)]
        fn plus(self, other: Self) -> Self {
            $plus(self, other)
        }

        #[inline(always)]
        fn times(self, other: Self) -> Self {
            $times(self, other)
        }

        #[inline(always)]
        fn plus_product(self, a: Self, b: Self) -> Self {
            $fused(self, a, b)
        }

        fn multiply(
            size: Size, alpha: Self, a: Mat<Self>, b: Mat<Self>, beta: Self, c: MatMut<Self>, parts: Parts,
        ) {
            $multiply(size, alpha, a, b, beta, c, parts);
        }

        fn contract(
            size: Size, a: Left<Self>, b: Mat<Self>, c: MatMut<Self>, parts: Parts, end: Ending<Self>,
        ) {
            $contract(size, a, b, c, parts, end);
        }

        fn finish(values: &mut [Self], finish: &mut Finish) {
            $finish(values, finish);
        }

        const PLANE: Option<PlaneLoop<Self>> = $plane;

        fn result(len: usize) -> Vec<Self> {
            $result(len)
        }

        fn scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
            thread_local!(static BUFFER: Cell<Vec<$t>> = const { Cell::new(Vec::new()) });
            let mut buffer = BUFFER.take();
            if buffer.len() < len {
                buffer.resize(len, Self::default());
            }
            let result = f(&mut buffer[..len]);
            BUFFER.set(buffer);
            result
        }
    })* };
}

number! {
    f32, 1.0, Add::add, Mul::mul, blocked, finished, |values, finish: &mut Finish| finish.apply(values), Some(Depthwise::compute), buffer::take, |sum, a: f32, b| a.mul_add(b, sum);
    f64, 1.0, Add::add, Mul::mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
    i8, 1, i8::wrapping_add, i8::wrapping_mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
    i16, 1, i16::wrapping_add, i16::wrapping_mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
    i32, 1, i32::wrapping_add, i32::wrapping_mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
    i64, 1, i64::wrapping_add, i64::wrapping_mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
    u8, 1, u8::wrapping_add, u8::wrapping_mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
    u16, 1, u16::wrapping_add, u16::wrapping_mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
    u32, 1, u32::wrapping_add, u32::wrapping_mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
    u64, 1, u64::wrapping_add, u64::wrapping_mul, plain, ended, |_, _| (), None, zeros, |sum: Self, a: Self, b| sum.plus(a.times(b));
}

fn zeros<T: Default + Clone>(len: usize) -> Vec<T> {
    vec![T::default(); len]
}

/// Extents of a product: `A` is `m`×`k`, `B` is `k`×`n`, `C` is `m`×`n`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
}

/// A matrix in a slice: element `(i, j)` is `data[i * row + j * col]`.
#[derive(Debug, Clone, Copy)]
pub struct Mat<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

/// A matrix that is written: no two of its elements may share a place.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    /// The elements.
    pub data: &'a mut [T],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

/// A left matrix, and the panels of its transpose if there are any, which are then read in its place: see [`turned`].
pub type Left<'a, T> = (Mat<'a, T>, Option<&'a Panels>);

impl<'a, T> Mat<'a, T> {
    /// A dense row-major matrix of this many columns.
    pub fn rows(data: &'a [T], columns: usize) -> Self {
        Self { data, row: columns, col: 1 }
    }

    /// The transpose of a dense row-major matrix of this many columns.
    pub fn transposed(data: &'a [T], columns: usize) -> Self {
        Self { data, row: 1, col: columns }
    }
}

impl<T> Mat<'_, T> {
    /// Does a matrix of so many rows and columns lie inside its slice?
    pub(super) fn fits(&self, rows: usize, columns: usize) -> bool {
        fits(self.data.len(), rows, columns, self.row, self.col)
    }
}

impl<'a, T> MatMut<'a, T> {
    /// A dense row-major matrix of this many columns.
    pub fn rows(data: &'a mut [T], columns: usize) -> Self {
        Self { data, row: columns, col: 1 }
    }
}

/// Does a matrix of these extents and strides lie inside a slice of this length?
fn fits(len: usize, rows: usize, columns: usize, row: usize, col: usize) -> bool {
    if rows == 0 || columns == 0 {
        return true;
    }
    let last = (rows - 1).checked_mul(row).zip((columns - 1).checked_mul(col));
    last.and_then(|(r, c)| r.checked_add(c)).is_some_and(|last| last < len)
}

/// Asserts that the views fit their slices and that no two elements of `C` share a place.
pub(super) fn check<T>(size: Size, a: &Mat<T>, b: &Mat<T>, c: &MatMut<T>) {
    let Size { m, n, k } = size;
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.fits(m, k), "A does not fit its slice");
    assert!(b.fits(k, n), "B does not fit its slice");
    assert!(fits(c.data.len(), m, n, c.row, c.col), "C does not fit its slice");
    let apart =
        if c.row >= c.col { c.row >= n.saturating_mul(c.col) } else { c.col >= m.saturating_mul(c.row) };
    let steps = (m <= 1 || c.row > 0) && (n <= 1 || c.col > 0);
    assert!(steps && (m <= 1 || n <= 1 || apart), "elements of C overlap");
}

/// `C ← β·C + α·A·B`. With `β = 0` the old content of `C` is not read.
///
/// # Panics
/// If a view does not fit its slice, or if elements of `C` overlap: the caller has computed the sizes wrongly.
pub fn gemm<T: Number>(size: Size, alpha: T, a: Mat<T>, b: Mat<T>, beta: T, c: MatMut<T>) {
    gemm_in_parts(size, (alpha, beta), a, b, c, Parts::CONSTANT);
}

/// The same with the factors `α` and `β` together, and with sums of `f32` in these parts.
///
/// # Panics
/// Like [`gemm`].
pub fn gemm_in_parts<T: Number>(
    size: Size,
    (alpha, beta): (T, T),
    a: Mat<T>,
    b: Mat<T>,
    c: MatMut<T>,
    parts: Parts,
) {
    check(size, &a, &b, &c);
    if size.m == 0 || size.n == 0 {
        return;
    }
    T::multiply(size, alpha, a, b, beta, c, parts);
}

/// The product row by row: each row of `C` is a sum of scaled rows of `B`, so the inner loop has no carried sum.
fn plain<T: Number>(size: Size, alpha: T, a: Mat<T>, b: Mat<T>, beta: T, c: MatMut<T>, _: Parts) {
    let Size { m, n, k } = size;
    let mut line = vec![T::default(); n];
    for i in 0..m {
        line.fill(T::default());
        for p in 0..k {
            let x = a.data[i * a.row + p * a.col];
            if b.col == 1 {
                let row = &b.data[p * b.row..][..n];
                line.iter_mut().zip(row).for_each(|(l, &y)| *l = l.plus(x.times(y)));
            } else {
                let row = b.data[p * b.row..].iter().step_by(b.col.max(1));
                line.iter_mut().zip(row).for_each(|(l, &y)| *l = l.plus(x.times(y)));
            }
        }
        for (j, &sum) in line.iter().enumerate() {
            let out = &mut c.data[i * c.row + j * c.col];
            let old = if beta == T::default() { T::default() } else { beta.times(*out) };
            *out = old.plus(alpha.times(sum));
        }
    }
}

/// `C ← A·B`, then the bias of its row and what else is added to each element and, of `f32`, what [`Finish`] says is
/// done, all while the element is at hand.
///
/// # Panics
/// Like [`gemm`], and if rows of `C` or of what is added are not contiguous or the bias is shorter than `m`.
pub fn contract<T: Number>(size: Size, a: Left<T>, b: Mat<T>, c: MatMut<T>, parts: Parts, end: Ending<T>) {
    check(size, &a.0, &b, &c);
    assert!(c.col == 1, "rows of C");
    end.check(size);
    if size.m > 0 && size.n > 0 {
        T::contract(size, a, b, c, parts, end);
    }
}

fn ended<T: Number>(size: Size, (a, _): Left<T>, b: Mat<T>, c: MatMut<T>, parts: Parts, mut end: Ending<T>) {
    let MatMut { data, row, col } = c;
    plain(size, T::ONE, a, b, T::default(), MatMut { data: &mut *data, row, col }, parts);
    (0..size.m).for_each(|i| end.row(i, 0, &mut data[i * row..][..size.n]));
}

fn finished(size: Size, a: Left<f32>, b: Mat<f32>, mut c: MatMut<f32>, parts: Parts, mut end: Ending) {
    let (a, panels) = a;
    if let Some(panels) = panels.filter(|panels| panels.fit((size.k, size.m), parts)) {
        return turned::contract(size, (a, panels), b, c, parts, end);
    }
    if parts.line && vector::multiply(size, a, b, false, &mut c) {
        (0..size.m).for_each(|i| end.row(i, 0, &mut c.data[i * c.row..][..size.n]));
        return;
    }
    Product { size, alpha: 1.0, a, b, start: Start::Nothing, c, parts, end: Some(end), panels: None }
        .compute(Isa::detect());
}

/// The `f32` product. Where columns of the result are contiguous and not rows, it is `Cᵀ = Bᵀ·Aᵀ`.
fn blocked(size: Size, alpha: f32, a: Mat<f32>, b: Mat<f32>, beta: f32, mut c: MatMut<f32>, parts: Parts) {
    let Size { m, n, k } = size;
    let whole = alpha == 1.0 && (beta == 0.0 || beta == 1.0);
    if parts.line && whole && vector::multiply(size, a, b, beta != 0.0, &mut c) {
        return;
    }
    let turn = |mat: Mat<'_, f32>| (mat.col, mat.row);
    let (size, a, b, c) = if c.col == 1 || n <= 1 {
        (size, a, b, c)
    } else if c.row == 1 || m <= 1 {
        let ((a_row, a_col), (b_row, b_col)) = (turn(a), turn(b));
        let (a, b) = (Mat { row: a_row, col: a_col, ..a }, Mat { row: b_row, col: b_col, ..b });
        (Size { m: n, n: m, k }, b, a, MatMut { row: c.col, col: 1, ..c })
    } else {
        return plain(size, alpha, a, b, beta, c, parts);
    };
    let start = if beta == 0.0 { Start::Nothing } else { Start::Old(beta) };
    Product { size, alpha, a, b, start, c, parts, end: None, panels: None }.compute(Isa::detect());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Small whole numbers: their sums are exact in every order.
    fn whole(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 5.0).collect()
    }

    proptest! {
        #[test]
        fn packed_kernels_agree_with_the_plain_loop(
            m in 0usize..40, n in 0usize..70, k in 0usize..50, ta: bool, tb: bool, tc: bool, beta in 0u8..3, seed in 0usize..9,
        ) {
            let (a, b) = (whole(m * k, seed), whole(k * n, seed + 1));
            let a = if ta { Mat::transposed(&a, m) } else { Mat::rows(&a, k) };
            let b = if tb { Mat::transposed(&b, k) } else { Mat::rows(&b, n) };
            let (row, col) = if tc { (1, m) } else { (n, 1) };
            let mut c = if beta == 0 { vec![f32::NAN; m * n] } else { whole(m * n, seed + 2) };
            let mut d = c.clone();
            gemm(Size { m, n, k }, 2.0, a, b, beta.into(), MatMut { data: &mut c, row, col });
            if m > 0 && n > 0 {
                plain(Size { m, n, k }, 2.0, a, b, beta.into(), MatMut { data: &mut d, row, col }, Parts::CONSTANT);
            }
            prop_assert_eq!(c, d);
        }
    }

    #[test]
    fn integers_wrap_and_scale() {
        let mut c = [1i32, 1];
        let (a, b) = ([i32::MAX, 1], [2, 3, 4, 5]);
        gemm(Size { m: 1, n: 2, k: 2 }, 1, Mat::rows(&a, 2), Mat::rows(&b, 2), 10, MatMut::rows(&mut c, 2));
        assert_eq!(c, [10 + 4 - 2, (10 + 5 - 2i32).wrapping_add(i32::MAX)]);
    }

    #[test]
    #[should_panic(expected = "B does not fit")]
    fn a_view_must_fit() {
        let (a, b, mut c) = ([1.0f32; 4], [1.0; 3], [0.0; 4]);
        gemm(
            Size { m: 2, n: 2, k: 2 },
            1.0,
            Mat::rows(&a, 2),
            Mat::rows(&b, 2),
            0.0,
            MatMut::rows(&mut c, 2),
        );
    }
}
