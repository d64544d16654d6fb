//! The `f32` product of a row or a column with a matrix, as ONNX Runtime computes it on x86-64 when it has not laid
//! out the matrix ahead (`SgemmKernelM1Avx`, `SgemmKernelM1TransposeBAvx`). Products are rounded before they are
//! added.
//!
//! Where rows of the matrix are scaled and added, four of them are summed, in order, before the result is added to what
//! there is; two and then one remain. Where columns are lines in memory, each of eight lanes sums every eighth product,
//! and the order of the lanes' sum depends on how many columns are left: four at a time, then two, then one.

use super::gemm::{Mat, MatMut, Size};
use super::simd::{self, Task};

/// Lanes of a sum along a line.
const LANES: usize = 8;

/// Computes `C ← A·B`, or `C ← C + A·B`, if `A` is a row or `B` a column, and their elements and those of `C` are
/// neighbours. Else it says no.
pub fn multiply(size: Size, a: Mat<f32>, b: Mat<f32>, adds: bool, c: &mut MatMut<f32>) -> bool {
    let Size { m, n, k } = size;
    let (x, matrix, count) = if m == 1 && a.col == 1 && c.col == 1 {
        (a.data, b, n)
    } else if n == 1 && b.row == 1 && c.row == 1 {
        (b.data, Mat { data: a.data, row: a.col, col: a.row }, m)
    } else {
        return false;
    };
    if k == 0 || (matrix.col != 1 && matrix.row != 1) {
        return false;
    }
    let (x, y) = (&x[..k], &mut c.data[..count]);
    if !adds {
        y.fill(0.0);
    }
    if matrix.col == 1 {
        simd::run(Rows { x, matrix: matrix.data, row: matrix.row, y });
    } else {
        simd::run(Lines { x, matrix: matrix.data, line: matrix.col, y });
    }
    true
}

/// `y ← y + Σ x[k] · row k`.
struct Rows<'a> {
    x: &'a [f32],
    matrix: &'a [f32],
    row: usize,
    y: &'a mut [f32],
}

impl Task for Rows<'_> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn run(self) {
        let Self { mut x, mut matrix, row, y } = self;
        while let Some((&[x0, x1, x2, x3], rest)) = x.split_first_chunk() {
            let n = y.len();
            let [r0, r1, r2, r3] = [0, 1, 2, 3].map(|i| &matrix[i * row..][..n]);
            for j in 0..n {
                y[j] += ((x0 * r0[j] + x1 * r1[j]) + x2 * r2[j]) + x3 * r3[j];
            }
            x = rest;
            matrix = matrix.get(4 * row..).unwrap_or(&[]);
        }
        if let Some((&[x0, x1], rest)) = x.split_first_chunk() {
            let (r0, r1) = (&matrix[..y.len()], &matrix[row..][..y.len()]);
            for j in 0..r0.len() {
                y[j] += x0 * r0[j] + x1 * r1[j];
            }
            x = rest;
            matrix = matrix.get(2 * row..).unwrap_or(&[]);
        }
        if let [x0] = *x {
            let r0 = &matrix[..y.len()];
            for j in 0..r0.len() {
                y[j] += x0 * r0[j];
            }
        }
    }
}

/// `y[j] ← y[j] + Σ x[k] · line j[k]`.
struct Lines<'a> {
    x: &'a [f32],
    matrix: &'a [f32],
    line: usize,
    y: &'a mut [f32],
}

impl Task for Lines<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { x, mut matrix, line, y } = self;
        let (fours, rest) = y.as_chunks_mut::<4>();
        for four in fours {
            for (y, l) in four.iter_mut().zip(lanes::<4>(x, matrix, line)) {
                *y += (((l[0] + l[1]) + l[2]) + l[3]) + (((l[4] + l[5]) + l[6]) + l[7]);
            }
            matrix = matrix.get(4 * line..).unwrap_or(&[]);
        }
        let (twos, rest) = rest.as_chunks_mut::<2>();
        for two in twos {
            for (y, l) in two.iter_mut().zip(lanes::<2>(x, matrix, line)) {
                *y += ((l[0] + l[2]) + (l[4] + l[6])) + ((l[1] + l[3]) + (l[5] + l[7]));
            }
            matrix = matrix.get(2 * line..).unwrap_or(&[]);
        }
        if let [y] = rest {
            let [l] = lanes::<1>(x, matrix, line);
            *y += ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7]));
        }
    }
}

/// The lanes' sums of the products of `x` with `N` lines.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
fn lanes<const N: usize>(x: &[f32], matrix: &[f32], line: usize) -> [[f32; LANES]; N] {
    let mut sums = [[0.0; LANES]; N];
    let (blocks, rest) = x.as_chunks::<LANES>();
    let lines: [&[f32]; N] = std::array::from_fn(|i| &matrix[i * line..][..x.len()]);
    let split = lines.map(<[f32]>::as_chunks::<LANES>);
    for (at, x) in blocks.iter().enumerate() {
        for i in 0..N {
            let y = &split[i].0[at];
            for l in 0..LANES {
                sums[i][l] += x[l] * y[l];
            }
        }
    }
    for i in 0..N {
        for (l, x) in rest.iter().enumerate() {
            sums[i][l] += x * split[i].1[l];
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    /// One sum where the matrix is read row by row.
    fn by_rows(x: &[f32], column: &[f32], old: f32) -> f32 {
        let products: Vec<f32> = x.iter().zip(column).map(|(x, w)| x * w).collect();
        let (fours, rest) = products.as_chunks::<4>();
        let (twos, one) = rest.as_chunks::<2>();
        let groups = fours.iter().map(<[f32; 4]>::as_slice).chain(twos.iter().map(<[f32; 2]>::as_slice));
        groups
            .chain(one.chunks(1))
            .fold(old, |sum, group| sum + group.iter().copied().reduce(|a, b| a + b).unwrap())
    }

    /// One sum along a line, of which `left` have not been computed.
    fn along(x: &[f32], line: &[f32], left: usize, old: f32) -> f32 {
        let mut l = [0.0f32; 8];
        x.iter().zip(line).enumerate().for_each(|(i, (x, w))| l[i % 8] += x * w);
        old + match left {
            4.. => (((l[0] + l[1]) + l[2]) + l[3]) + (((l[4] + l[5]) + l[6]) + l[7]),
            2.. => ((l[0] + l[2]) + (l[4] + l[6])) + ((l[1] + l[3]) + (l[5] + l[7])),
            _ => ((l[0] + l[1]) + (l[2] + l[3])) + ((l[4] + l[5]) + (l[6] + l[7])),
        }
    }

    proptest! {
        #[test]
        fn sums_have_the_bits_of_their_order(
            n in 1usize..40, k in 1usize..60, lines: bool, column: bool, adds: bool, seed in 0usize..9,
        ) {
            let (x, w, old) = (numbers(k, seed), numbers(k * n, seed + 1), numbers(n, seed + 2));
            let at = |p: usize, j: usize| if lines { w[j * k + p] } else { w[p * n + j] };
            let want: Vec<f32> = (0..n).map(|j| {
                let (own, old): (Vec<f32>, f32) = ((0..k).map(|p| at(p, j)).collect(), if adds { old[j] } else { 0.0 });
                let left = if j < n / 4 * 4 { 4 } else if n % 4 >= 2 && j < n / 4 * 4 + 2 { 2 } else { 1 };
                // A line of one element is a row as well.
                if lines && k > 1 { along(&x, &own, left, old) } else { by_rows(&x, &own, old) }
            }).collect();
            let mut y = if adds { old } else { vec![f32::NAN; n] };
            let matrix = if lines { Mat::transposed(&w, k) } else { Mat::rows(&w, n) };
            let done = if column {
                let turned = Mat { data: &w, row: matrix.col, col: matrix.row };
                // One element of the result makes it a row, whose matrix is then `x`.
                let size = Size { m: n, n: 1, k };
                n > 1 && multiply(size, turned, Mat::rows(&x, 1), adds, &mut MatMut::rows(&mut y, 1))
            } else {
                multiply(Size { m: 1, n, k }, Mat::rows(&x, k), matrix, adds, &mut MatMut::rows(&mut y, n))
            };
            prop_assert!(done || (column && n == 1));
            if done {
                prop_assert_eq!(y, want);
            }
        }
    }

    #[test]
    fn what_is_no_vector_is_refused() {
        let (a, mut c) = ([1.0f32; 4], [0.0; 4]);
        let size = Size { m: 2, n: 2, k: 2 };
        assert!(!multiply(size, Mat::rows(&a, 2), Mat::rows(&a, 2), false, &mut MatMut::rows(&mut c, 2)));
    }
}
