//! The innermost loops of every `f32` product: a few rows times a few vectors of columns, whose sums stay in registers.
//!
//! One loop is compiled for each kind of vectors, number of rows and number of vectors. Each sum takes its products in
//! order with fused multiply-adds, whatever the vectors, so all of them give the same bits.

use super::finish::{Finish, Seen};
use super::lanes::{Portable, Vector};
use super::simd::Isa;

/// Vectors of columns in a tile.
pub const VECTORS: usize = 3;
/// Elements of a line of the cache.
pub const LINE: usize = 16;
/// Rows of the largest tile.
pub const ROWS: usize = 8;

/// Part of a product `C ← O + scale · A·B` as pointers: the extents are those of the loop it is given to.
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
    /// What is fetched ahead while a sum gets its products, and the distance between two places. It need not be there.
    pub next: (*const f32, usize),
    /// Columns in the last vector.
    pub last: usize,
    /// First element of `C`, whose rows are contiguous.
    pub c: *mut f32,
    /// Distance between rows of `C`.
    pub c_row: usize,
    /// First element of `O`, whose rows are contiguous, and the distance between them; nothing is added without it.
    pub old: Option<(*const f32, usize)>,
    /// Factor of the product.
    pub scale: f32,
}

/// What is done before the sums are stored.
#[derive(Debug)]
pub struct End<'a> {
    /// Added to each row: one element for each.
    pub bias: Option<&'a [f32]>,
    /// Added after that: the first element of a matrix whose rows are contiguous, and the distance between them.
    pub added: Option<(*const f32, usize)>,
    /// Limits and extremes.
    pub finish: &'a mut Finish,
}

/// A loop over a tile of some rows and vectors.
///
/// Calling it is safe if the processor has the instructions of the [`Isa`] that the loop came from, all elements of
/// `A`, `B`, `C`, `O` and what is added that the extents say lie inside of slices, and nobody else holds those of `C`.
pub type Loop = unsafe fn(&Block, Option<End>);

/// The loops for one kind of vectors.
#[derive(Debug)]
pub struct Tiles {
    /// Elements of a vector.
    pub lanes: usize,
    /// By number of rows and of vectors, both less one; first where all vectors are full, then where the last is not.
    pub loops: &'static [[[Loop; 2]; VECTORS]],
}

impl Tiles {
    /// The loops for these instructions.
    pub fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Self { lanes: 16, loops: &AVX512 },
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Self { lanes: 8, loops: &AVX2 },
            _ => Self { lanes: 4, loops: &PORTABLE },
        }
    }
}

/// # Safety
/// See [`Loop`].
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn tile<V: Vector, const R: usize, const N: usize, const PART: bool>(block: &Block, end: Option<End>) {
    let &Block { depth, a, a_row, a_col, b, b_row, next, last, c, c_row, old, scale } = block;
    // Offsets lie inside of slices, so they do not overflow; a check in each would keep the loops from being
    // unrolled, and sums that are not unrolled do not stay in registers. Hence wrapping operations, and ranges in
    // place of iterators; and no closure loads or computes, as it might be compiled without the instructions.
    let at = |i: usize, row: usize, j: usize| i.wrapping_mul(row).wrapping_add(j * V::LANES);
    let partly = |j: usize| PART && j + 1 == N;
    // SAFETY: the caller vouches for the instructions, and for `R` rows and `N` vectors of columns of all matrices, of
    // whose last only the columns of `mask` are touched.
    unsafe {
        let mask = V::mask(0, last);
        let mut sums = [[V::splat(0.0); N]; R];
        let (mut a, mut b, (mut next, step)) = (a, b, next);
        for _ in 0..depth {
            let mut columns = [V::splat(0.0); N];
            for j in 0..N {
                let from = b.wrapping_add(j * V::LANES);
                columns[j] = if partly(j) { V::load_part(from, mask) } else { V::load(from) };
            }
            for i in 0..R {
                let x = V::splat(*a.wrapping_add(i.wrapping_mul(a_row)));
                for j in 0..N {
                    sums[i][j] = sums[i][j].fma(x, columns[j]);
                }
            }
            V::prefetch(next);
            (a, b, next) = (a.wrapping_add(a_col), b.wrapping_add(b_row), next.wrapping_add(step));
        }
        if scale != 1.0 {
            let scale = V::splat(scale);
            for i in 0..R {
                for j in 0..N {
                    sums[i][j] = sums[i][j].mul(scale);
                }
            }
        }
        if let Some((old, row)) = old {
            for i in 0..R {
                for j in 0..N {
                    let from = old.wrapping_add(at(i, row, j));
                    let old = if partly(j) { V::load_part(from, mask) } else { V::load(from) };
                    sums[i][j] = old.add(sums[i][j]);
                }
            }
        }
        if let Some(End { bias, added, finish }) = end {
            if let Some(bias) = bias {
                for i in 0..R {
                    let bias = V::splat(*bias.get_unchecked(i));
                    for j in 0..N {
                        sums[i][j] = sums[i][j].add(bias);
                    }
                }
            }
            if let Some((added, row)) = added {
                for i in 0..R {
                    for j in 0..N {
                        let from = added.wrapping_add(at(i, row, j));
                        let added = if partly(j) { V::load_part(from, mask) } else { V::load(from) };
                        sums[i][j] = sums[i][j].add(added);
                    }
                }
            }
            let mut seen = Seen::<V>::of(finish);
            for i in 0..R {
                for j in 0..N {
                    sums[i][j] = seen.limit(sums[i][j], partly(j).then_some(mask));
                }
            }
            seen.store(finish);
        }
        for i in 0..R {
            for j in 0..N {
                let to = c.wrapping_add(at(i, c_row, j));
                match partly(j) {
                    true => sums[i][j].store_part(to, mask),
                    false => sums[i][j].store(to),
                }
            }
        }
    }
}

/// The loops of a kind of vectors, by rows and vectors.
macro_rules! loops {
    ($name:ident, $vector:ty, $rows:literal, $(#[$enable:meta])? $($row:literal)*) => {
        static $name: [[[Loop; 2]; VECTORS]; $rows] = {
            $(#[$enable])?
            unsafe fn narrow<const R: usize, const N: usize, const PART: bool>(block: &Block, end: Option<End>) {
                // SAFETY: the caller vouches for the same.
                unsafe { tile::<$vector, R, N, PART>(block, end) }
            }
            [$([
                [narrow::<$row, 1, false>, narrow::<$row, 1, true>],
                [narrow::<$row, 2, false>, narrow::<$row, 2, true>],
                [narrow::<$row, 3, false>, narrow::<$row, 3, true>],
            ]),*]
        };
        const _: () = assert!($rows <= ROWS);
    };
}

loops! { PORTABLE, Portable, 4, 1 2 3 4 }

#[cfg(target_arch = "x86_64")]
loops! { AVX2, std::arch::x86_64::__m256, 4, #[target_feature(enable = "avx2,fma")] 1 2 3 4 }

#[cfg(target_arch = "x86_64")]
loops! { AVX512, std::arch::x86_64::__m512, 8, #[target_feature(enable = "avx512f")] 1 2 3 4 5 6 7 8 }
