//! A product with a constant left matrix and few columns, computed as its transpose: `Cᵀ = Bᵀ·Aᵀ`.
//!
//! Vectors of columns would be half empty, and for each few of them the whole left matrix would come from memory. The
//! panels of its transpose have rows of it as lanes instead. The sums are turned while they are finished. Each is the
//! same sum of the same products in the same order, so the bits do not tell.

use super::finish::Seen;
use super::gemm::{Mat, MatMut, Size};
use super::lanes::{self, Kernel, Vector};
use super::product::{Ending, Panels, Parts, Product, SHALLOW, Start, scratch};
use super::simd::Isa;

/// With more columns, or with more columns than products in a sum, vectors of columns serve as well.
const FEW: usize = 128;
/// Lanes of the widest vectors.
const LANES: usize = 16;

/// Is this the quicker way to a product whose left matrix is known ahead?
pub fn pays(Size { m, n, k }: Size, parts: Parts) -> bool {
    m >= LANES && n <= FEW.min(k) && k > SHALLOW && !parts.line
}

/// `C ← A·B` and what comes after, where the panels are those of `Aᵀ` and rows of `C` are contiguous.
///
/// # Panics
/// If a view does not fit its slice, or a bias or what is added is too short.
pub fn contract(
    size: Size,
    (a, panels): (Mat<f32>, &Panels),
    b: Mat<f32>,
    c: MatMut<f32>,
    parts: Parts,
    end: Ending,
) {
    let Size { m, n, k } = size;
    super::gemm::check(size, &a, &b, &c);
    assert!(c.col == 1 || n <= 1, "rows of C");
    end.check(size);
    let row = m.next_multiple_of(LANES);
    scratch(n.next_multiple_of(LANES) * row, |sums| {
        let turn = |mat: Mat<'_, f32>| (mat.col, mat.row);
        let ((a_row, a_col), (b_row, b_col)) = (turn(a), turn(b));
        Product {
            size: Size { m: n, n: m, k },
            alpha: 1.0,
            a: Mat { row: b_row, col: b_col, ..b },
            b: Mat { row: a_row, col: a_col, ..a },
            start: Start::Nothing,
            c: MatMut { data: &mut *sums, row, col: 1 },
            parts,
            end: None,
            panels: Some(panels),
        }
        .compute(Isa::detect());
        lanes::run(Isa::detect(), Turn { size, sums, row, c, end });
    });
}

/// Turns the sums and finishes them. There are whole vectors of them in both directions, and both other matrices fit.
struct Turn<'a> {
    size: Size,
    sums: &'a [f32],
    row: usize,
    c: MatMut<'a, f32>,
    end: Ending<'a>,
}

impl Kernel for Turn<'_> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn run<V: Vector>(self) {
        let Self { size: Size { m, n, .. }, sums, row, c, end } = self;
        let (c_row, c) = (c.row, c.data.as_mut_ptr());
        // SAFETY: the caller vouches for the instructions. `sums` has whole vectors, the bias an element for each row
        // and both `C` and what is added all columns within the mask, as was checked.
        unsafe {
            let mut seen = Seen::<V>::of(end.finish);
            for i in (0..m).step_by(V::LANES) {
                for j in (0..n).step_by(V::LANES) {
                    let mut block = [V::splat(0.0); LANES];
                    for l in 0..V::LANES {
                        block[l] = V::load(sums.as_ptr().wrapping_add((j + l) * row + i));
                    }
                    transpose(&mut block);
                    let (rows, columns) = (V::LANES.min(m - i), V::LANES.min(n - j));
                    let mask = V::mask(0, columns);
                    for l in 0..rows {
                        let mut y = block[l];
                        if let Some(bias) = end.bias {
                            y = y.add(V::splat(*bias.get_unchecked(i + l)));
                        }
                        if let Some(added) = end.added {
                            let from = added.data.as_ptr().wrapping_add((i + l) * added.row + j);
                            y = y.add(V::load_part(from, mask));
                        }
                        let y = seen.limit(y.select(mask, V::splat(0.0)), Some(mask));
                        y.store_part(c.wrapping_add((i + l) * c_row + j), mask);
                    }
                }
            }
            seen.store(end.finish);
        }
    }
}

/// Transposes a square of vectors. The index of an element is the bits of its row and those of its lane; splitting each
/// pair of vectors into its even and odd lanes turns all these bits round by one place.
///
/// # Safety
/// The processor must have the instructions.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn transpose<V: Vector>(block: &mut [V; LANES]) {
    let half = V::LANES / 2;
    for _ in 0..V::LANES.ilog2() {
        let old = *block;
        for i in 0..half {
            // SAFETY: the caller vouches for the instructions.
            unsafe {
                block[i] = old[2 * i].evens(old[2 * i + 1]);
                block[half + i] = old[2 * i].odds(old[2 * i + 1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finish::Finish;
    use super::super::gemm;
    use super::*;
    use crate::ir::Limits;
    use proptest::prelude::*;

    struct Transposes;

    impl Kernel for Transposes {
        #[inline(always)]
        unsafe fn run<V: Vector>(self) {
            let x: Vec<f32> = (0..V::LANES * V::LANES).map(|i| i as f32).collect();
            // SAFETY: there are whole vectors.
            unsafe {
                let mut block = [V::splat(0.0); LANES];
                (0..V::LANES).for_each(|i| block[i] = V::load(x[i * V::LANES..].as_ptr()));
                transpose(&mut block);
                for i in 0..V::LANES {
                    let mut row = vec![0.0; V::LANES];
                    block[i].store(row.as_mut_ptr());
                    assert!(row.iter().enumerate().all(|(j, &y)| y == x[j * V::LANES + i]), "{i}: {row:?}");
                }
            }
        }
    }

    #[test]
    fn squares_are_transposed() {
        [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().for_each(|isa| lanes::run(isa, Transposes));
    }

    proptest! {
        #[test]
        fn the_bits_are_those_of_the_product_itself(
            m in 1usize..70, n in 1usize..70, k in 1usize..300, more in 0usize..5, biased: bool, added in 0u8..3, seed in 0usize..9,
        ) {
            let numbers = |len: usize, seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
            };
            let (size, parts) = (Size { m, n, k }, Parts::each(128));
            let (a, b, bias) = (numbers(m * k, seed), numbers(k * n, seed + 1), numbers(m, seed + 2));
            let (line, all) = (numbers(n, seed + 3), numbers(m * n, seed + 4));
            let added = match added {
                0 => None,
                1 => Some(Mat { data: &line, row: 0, col: 1 }),
                _ => Some(Mat::rows(&all, n)),
            };
            let (a, b, row) = (Mat::rows(&a, k), Mat::rows(&b, n), n + more);
            let panels = Panels::of(Mat { row: a.col, col: a.row, ..a }, (k, m), parts);
            let mut results = [true, false].map(|turned| {
                let (mut c, mut finish) = (vec![9.0f32; m * row], Finish::new(Limits { low: 0.0, high: 0.7 }));
                let end = Ending { bias: biased.then_some(&bias), added, finish: &mut finish };
                let to = MatMut { data: &mut c, row, col: 1 };
                match turned {
                    true => contract(size, (a, &panels), b, to, parts, end),
                    false => gemm::contract(size, (a, None), b, to, parts, end),
                }
                (c, finish.extent())
            });
            let [turned, direct] = &mut results;
            prop_assert_eq!(turned, direct);
        }
    }
}
