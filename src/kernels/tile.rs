//! The innermost loops of every `f32` product: a few rows times a few vectors of columns, whose sums stay in registers.
//!
//! One loop is compiled for each kind of vectors, number of rows and number of vectors. Each sum takes its products in
//! order with fused multiply-adds, whatever the vectors, so all of them give the same bits.

use super::finish::{Finish, LANES};
use super::simd::Isa;

/// Vectors of columns in a tile.
pub const VECTORS: usize = 3;
/// Rows of the largest tile.
pub const ROWS: usize = 8;

/// Part of a product `C ← C + scale · A·B` as pointers: the extents are those of the loop it is given to.
#[derive(Debug, Clone, Copy)]
pub struct Block {
    /// Products of a sum.
    pub depth: usize,
    /// First element of `A`.
    pub a: *const f32,
    /// Distance between rows of `A`.
    pub a_row: usize,
    /// Distance between columns of `A`.
    pub a_col: usize,
    /// First element of `B`, whose rows are contiguous.
    pub b: *const f32,
    /// Distance between rows of `B`.
    pub b_row: usize,
    /// First element of `C`, whose rows are contiguous.
    pub c: *mut f32,
    /// Distance between rows of `C`.
    pub c_row: usize,
    /// Is the old content of `C` added? Else it is not read.
    pub adds: bool,
    /// Factor of the product.
    pub scale: f32,
}

/// What is done before the sums are stored.
#[derive(Debug)]
pub struct End<'a> {
    /// Added to each row.
    pub bias: Option<&'a [f32; ROWS]>,
    /// Limits and extremes.
    pub finish: &'a mut Finish,
}

/// A loop over a tile of some rows and vectors.
///
/// Calling it is safe if the processor has the instructions of the [`Isa`] that the loop came from, all elements of `A`,
/// `B` and `C` that the extents say lie inside of slices, and nobody else holds those of `C`.
pub type Loop = unsafe fn(&Block, Option<End>);

/// The loops for one kind of vectors.
#[derive(Debug)]
pub struct Tiles {
    /// Elements of a vector.
    pub lanes: usize,
    /// By number of rows and of vectors, both less one.
    pub loops: &'static [[Loop; VECTORS]],
}

impl Tiles {
    /// The loops for these instructions.
    pub fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self { lanes: 16, loops: &avx512::LOOPS },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self { lanes: 8, loops: &avx2::LOOPS },
            _ => Self { lanes: 4, loops: &portable::LOOPS },
        }
    }
}

/// A vector of `f32`. Loading and storing are safe if [`LANES`](Self::LANES) elements lie at the pointer; all functions
/// are if the processor has the instructions.
trait Vector: Copy {
    const LANES: usize;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(x: f32) -> Self;
    /// `self + a·b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// The lesser; `other` if one is not a number.
    unsafe fn min(self, other: Self) -> Self;
    /// The greater; `other` if one is not a number.
    unsafe fn max(self, other: Self) -> Self;
}

/// # Safety
/// See [`Loop`].
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn tile<V: Vector, const R: usize, const N: usize>(block: &Block, end: Option<End>) {
    let &Block { depth, a, a_row, a_col, b, b_row, c, c_row, adds, scale } = block;
    // Offsets lie inside of slices, so they do not overflow; a check in each would keep the loops from being unrolled, and
    // sums that are not unrolled do not stay in registers. Hence wrapping operations, and ranges in place of iterators.
    let at = |row: *mut f32, i: usize, j: usize| {
        row.wrapping_add(i.wrapping_mul(c_row).wrapping_add(j * V::LANES))
    };
    // SAFETY: the caller vouches for the instructions, and for `R` rows and `N` vectors of columns of all matrices.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; R];
        let (mut a, mut b) = (a, b);
        for _ in 0..depth {
            let mut columns = [V::splat(0.0); N];
            for j in 0..N {
                columns[j] = V::load(b.wrapping_add(j * V::LANES));
            }
            for i in 0..R {
                let x = V::splat(*a.wrapping_add(i.wrapping_mul(a_row)));
                for j in 0..N {
                    sums[i][j] = sums[i][j].fma(x, columns[j]);
                }
            }
            (a, b) = (a.wrapping_add(a_col), b.wrapping_add(b_row));
        }
        if scale != 1.0 {
            let scale = V::splat(scale);
            for i in 0..R {
                for j in 0..N {
                    sums[i][j] = sums[i][j].mul(scale);
                }
            }
        }
        if adds {
            for i in 0..R {
                for j in 0..N {
                    sums[i][j] = V::load(at(c, i, j)).add(sums[i][j]);
                }
            }
        }
        if let Some(End { bias, finish }) = end {
            if let Some(bias) = bias {
                for i in 0..R {
                    let bias = V::splat(bias[i]);
                    for j in 0..N {
                        sums[i][j] = sums[i][j].add(bias);
                    }
                }
            }
            let (low, high) = (V::splat(finish.limits.low), V::splat(finish.limits.high));
            let [least, most] = &mut finish.extremes;
            // `LANES` is a multiple of the lanes of every vector: the first lanes serve all.
            let (least, most, zeros) = (least.as_mut_ptr(), most.as_mut_ptr(), finish.zeros.as_mut_ptr());
            let (mut min, mut max, mut zero) = (V::load(least), V::load(most), V::load(zeros));
            for i in 0..R {
                for j in 0..N {
                    let sum = high.min(low.max(sums[i][j]));
                    min = sum.min(min);
                    max = sum.max(max);
                    zero = zero.fma(sum, V::splat(0.0));
                    sums[i][j] = sum;
                }
            }
            min.store(least);
            max.store(most);
            zero.store(zeros);
        }
        for i in 0..R {
            for j in 0..N {
                sums[i][j].store(at(c, i, j));
            }
        }
    }
}

/// The loops of a kind of vectors, by rows and vectors.
macro_rules! loops {
    ($vector:ty, $rows:literal, $(#[$enable:meta])? $($row:literal)*) => {
        const _: () = assert!(<$vector>::LANES <= LANES && LANES % <$vector>::LANES == 0 && $rows <= ROWS);
        pub static LOOPS: [[Loop; VECTORS]; $rows] =
            [$([narrow::<$row, 1>, narrow::<$row, 2>, narrow::<$row, 3>]),*];

        $(#[$enable])?
        unsafe fn narrow<const R: usize, const N: usize>(block: &Block, end: Option<End>) {
            // SAFETY: the caller vouches for the same.
            unsafe { tile::<$vector, R, N>(block, end) }
        }
    };
}

mod portable {
    use super::*;

    /// Four lanes of whatever the compiler makes of them.
    #[derive(Clone, Copy)]
    struct Lanes([f32; 4]);

    impl Lanes {
        #[inline(always)]
        fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
            Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
        }
    }

    impl Vector for Lanes {
        const LANES: usize = 4;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: the caller vouches for four elements.
            Self(unsafe { from.cast::<[f32; 4]>().read() })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: the caller vouches for four elements.
            unsafe { to.cast::<[f32; 4]>().write(self.0) }
        }

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self {
            Self([x; 4])
        }

        #[inline(always)]
        unsafe fn fma(self, a: Self, b: Self) -> Self {
            Self(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            self.zip(other, |a, b| a + b)
        }

        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            self.zip(other, |a, b| a * b)
        }

        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            self.zip(other, |a, b| if a < b { a } else { b })
        }

        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            self.zip(other, |a, b| if a > b { a } else { b })
        }
    }

    loops! { Lanes, 4, 1 2 3 4 }
}

/// A vector type of x86-64 by its instructions.
#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($vector:ident, $lanes:literal, $load:ident, $store:ident, $splat:ident, $fma:ident, $add:ident, $mul:ident, $min:ident, $max:ident) => {
        use std::arch::x86_64::*;

        use super::*;

        impl Vector for $vector {
            const LANES: usize = $lanes;

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: the caller vouches for the instructions and the elements.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: the caller vouches for the instructions and the elements.
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $splat(x) }
            }

            #[inline(always)]
            unsafe fn fma(self, a: Self, b: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $fma(a, b, self) }
            }

            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $mul(self, other) }
            }

            #[inline(always)]
            unsafe fn min(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $min(self, other) }
            }

            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $max(self, other) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    x86! {
        __m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_mul_ps,
        _mm256_min_ps, _mm256_max_ps
    }
    loops! { __m256, 4, #[target_feature(enable = "avx2,fma")] 1 2 3 4 }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    x86! {
        __m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_mul_ps,
        _mm512_min_ps, _mm512_max_ps
    }
    loops! { __m512, 8, #[target_feature(enable = "avx512f")] 1 2 3 4 5 6 7 8 }
}
