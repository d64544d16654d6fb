//! Matrix products `C ← β·C + α·A·B` over strided views.
//!
//! `f32` goes to the blocked, packed kernels of the `gemm-f32` crate, which choose their vector width when they run
//! and are told here to use no threads. All other element types take one plain loop; integers wrap.

use std::cell::Cell;
use std::ops::{Add, Mul};

use gemm_common::Parallelism;

/// A number that contractions add and multiply.
pub trait Number: Copy + Default + PartialEq + Send + Sync + 'static {
    /// One.
    const ONE: Self;

    /// The sum; integers wrap.
    fn plus(self, other: Self) -> Self;

    /// The product; integers wrap.
    fn times(self, other: Self) -> Self;

    /// Lends a buffer of this many elements of any content, which its thread keeps for the next time.
    fn scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;

    /// `C ← β·C + α·A·B`, see [`gemm`]; the views have been checked.
    fn multiply(size: Size, alpha: Self, a: Mat<Self>, b: Mat<Self>, beta: Self, c: MatMut<Self>);
}

macro_rules! number {
    ($($t:ty, $one:literal, $plus:expr, $times:expr, $multiply:ident;)*) => { $(impl Number for $t {
        const ONE: Self = $one;

        #[inline(always)]
        fn plus(self, other: Self) -> Self {
            $plus(self, other)
        }

        #[inline(always)]
        fn times(self, other: Self) -> Self {
            $times(self, other)
        }

        fn multiply(size: Size, alpha: Self, a: Mat<Self>, b: Mat<Self>, beta: Self, c: MatMut<Self>) {
            $multiply(size, alpha, a, b, beta, c);
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
    f32, 1.0, Add::add, Mul::mul, packed;
    f64, 1.0, Add::add, Mul::mul, plain;
    i8, 1, i8::wrapping_add, i8::wrapping_mul, plain;
    i16, 1, i16::wrapping_add, i16::wrapping_mul, plain;
    i32, 1, i32::wrapping_add, i32::wrapping_mul, plain;
    i64, 1, i64::wrapping_add, i64::wrapping_mul, plain;
    u8, 1, u8::wrapping_add, u8::wrapping_mul, plain;
    u16, 1, u16::wrapping_add, u16::wrapping_mul, plain;
    u32, 1, u32::wrapping_add, u32::wrapping_mul, plain;
    u64, 1, u64::wrapping_add, u64::wrapping_mul, plain;
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

/// `C ← β·C + α·A·B`. With `β = 0` the old content of `C` is not read.
///
/// # Panics
/// If a view does not fit its slice, or if elements of `C` overlap: the caller has computed the sizes wrongly.
pub fn gemm<T: Number>(size: Size, alpha: T, a: Mat<T>, b: Mat<T>, beta: T, c: MatMut<T>) {
    let Size { m, n, k } = size;
    if m == 0 || n == 0 {
        return;
    }
    assert!(fits(a.data.len(), m, k, a.row, a.col), "A does not fit its slice");
    assert!(fits(b.data.len(), k, n, b.row, b.col), "B does not fit its slice");
    assert!(fits(c.data.len(), m, n, c.row, c.col), "C does not fit its slice");
    let apart =
        if c.row >= c.col { c.row >= n.saturating_mul(c.col) } else { c.col >= m.saturating_mul(c.row) };
    let steps = (m <= 1 || c.row > 0) && (n <= 1 || c.col > 0);
    assert!(steps && (m <= 1 || n <= 1 || apart), "elements of C overlap");
    T::multiply(size, alpha, a, b, beta, c);
}

/// The product row by row: each row of `C` is a sum of scaled rows of `B`, so the inner loop has no carried sum.
fn plain<T: Number>(size: Size, alpha: T, a: Mat<T>, b: Mat<T>, beta: T, c: MatMut<T>) {
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

/// The `f32` product. The kernels prefer a result with contiguous columns, so a row-major one is computed as
/// `Cᵀ = Bᵀ·Aᵀ`.
fn packed(size: Size, alpha: f32, a: Mat<f32>, b: Mat<f32>, beta: f32, c: MatMut<f32>) {
    let Size { m, n, k } = size;
    let s = |stride: usize| stride as isize;
    let c_ptr = c.data.as_mut_ptr();
    let (a_ptr, b_ptr) = (a.data.as_ptr(), b.data.as_ptr());
    let run = gemm_f32::gemm::f32::get_gemm_fn();
    let (reads, one_thread) = (beta != 0.0, Parallelism::None);
    // SAFETY: `gemm` has checked that every element addressed by these extents and strides lies inside its slice and
    // that elements of `C` do not overlap; `C` is borrowed mutably, so it overlaps neither `A` nor `B`. The function
    // was chosen for the features of this processor. Transposing swaps extents and strides consistently.
    unsafe {
        if c.col < c.row || (c.col == 1 && n > 1) {
            run(
                n,
                m,
                k,
                c_ptr,
                s(c.row),
                s(c.col),
                reads,
                b_ptr,
                s(b.row),
                s(b.col),
                a_ptr,
                s(a.row),
                s(a.col),
                beta,
                alpha,
                false,
                false,
                false,
                one_thread,
            );
        } else {
            run(
                m,
                n,
                k,
                c_ptr,
                s(c.col),
                s(c.row),
                reads,
                a_ptr,
                s(a.col),
                s(a.row),
                b_ptr,
                s(b.col),
                s(b.row),
                beta,
                alpha,
                false,
                false,
                false,
                one_thread,
            );
        }
    }
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
                plain(Size { m, n, k }, 2.0, a, b, beta.into(), MatMut { data: &mut d, row, col });
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
