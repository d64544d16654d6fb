//! The products of a layer with its weights.

use super::Product;
use crate::kernels::gemm::{Mat, MatMut, Number, Parts, Size, gemm_in_parts};
use crate::kernels::real::Real;
use crate::kernels::simd::{self, Task};

/// A weight matrix turned over: `depth` rows of `width`, so that a product runs along them.
pub(super) struct Weights<'a, T> {
    depth: usize,
    width: usize,
    rows: Vec<T>,
    /// The matrix as it lies, of whose lines a single row makes its sums if they are not laid out ahead.
    lines: Option<&'a [T]>,
}

impl<'a, T: Real + Number> Weights<'a, T> {
    /// From `width` rows of `depth` elements.
    pub fn new(weights: &'a [T], depth: usize, width: usize, ahead: bool) -> Self {
        let mut rows = vec![T::ZERO; weights.len()];
        if depth > 0 {
            for (column, row) in weights.chunks_exact(depth).enumerate() {
                row.iter().enumerate().for_each(|(i, &w)| rows[i * width + column] = w);
            }
        }
        Self { depth, width, rows, lines: (!ahead).then_some(weights) }
    }
}

impl<T: Real + Number> Product<T> for Weights<'_, T> {
    fn add(&self, x: &[T], count: usize, y: &mut [T]) {
        let &Self { depth, width, ref rows, lines } = self;
        let size = Size { m: count, n: width, k: depth };
        let one = T::of(1.0);
        let (x_rows, parts) =
            (Mat::rows(x, depth), if lines.is_some() { Parts::of(size) } else { Parts::CONSTANT });
        match lines {
            Some(lines) if count == 1 => {
                gemm_in_parts(
                    size,
                    (one, one),
                    x_rows,
                    Mat::transposed(lines, depth),
                    MatMut::rows(y, width),
                    parts,
                );
            }
            // Rows are read one after the other, as they would be copied for a general product.
            None if count == 1 => simd::run(Row { x, rows, sums: &mut vec![T::ZERO; width], y }),
            _ => {
                gemm_in_parts(size, (one, one), x_rows, Mat::rows(rows, width), MatMut::rows(y, width), parts)
            }
        }
    }
}

/// `y ← y + x · rows` for one vector, with sums in the parts of a constant matrix. `sums` is room for those of a part.
struct Row<'a, T> {
    x: &'a [T],
    rows: &'a [T],
    sums: &'a mut [T],
    y: &'a mut [T],
}

impl<T: Real + Number> Task for Row<'_, T> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn run(self) {
        let Self { x, mut rows, sums, y } = self;
        let n = y.len();
        if n == 0 {
            return;
        }
        for part in x.chunks(Parts::CONSTANT.products()) {
            sums.fill(T::ZERO);
            let (fours, rest) = part.as_chunks::<4>();
            for &[x0, x1, x2, x3] in fours {
                let (four, behind) = rows.split_at(4 * n);
                let (r0, r1, r2, r3) =
                    (&four[..n], &four[n..][..n], &four[2 * n..][..n], &four[3 * n..][..n]);
                let sums = &mut sums[..n];
                for j in 0..n {
                    let sum = sums[j].plus_product(x0, r0[j]).plus_product(x1, r1[j]);
                    sums[j] = sum.plus_product(x2, r2[j]).plus_product(x3, r3[j]);
                }
                rows = behind;
            }
            for &x in rest {
                let (row, behind) = rows.split_at(n);
                sums.iter_mut().zip(row).for_each(|(sum, &w)| *sum = sum.plus_product(x, w));
                rows = behind;
            }
            y.iter_mut().zip(&*sums).for_each(|(y, &sum)| *y += sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn one_row_has_the_bits_of_many(depth in 1usize..600, width in 1usize..20, seed in 0usize..9) {
            let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0;
            let numbers = |len: usize, from: usize| (from..from + len).map(number).collect::<Vec<f32>>();
            let (w, x, old) = (numbers(depth * width, 5), numbers(depth, 11), numbers(width, 17));
            let weights = Weights::new(&w, depth, width, true);
            let (mut one, mut two) = (old.clone(), old.repeat(2));
            weights.add(&x, 1, &mut one);
            weights.add(&x.repeat(2), 2, &mut two);
            prop_assert_eq!(&one[..], &two[..width]);
        }
    }
}
