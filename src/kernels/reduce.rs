//! Folding runs of elements into one.
//!
//! An array is seen as `outer` × `n` × `inner`; the middle extent goes. Sums are split in halves until the pieces are
//! short, and a piece is summed in sixteen lanes: that fits vector registers, and the error grows with the logarithm
//! of the length instead of the length. The order depends on the extents alone.

use super::real::Real;
use super::simd::{self, Task};

const LANES: usize = 16;
const PIECE: usize = 1024;

/// Folds one run of elements. `start` must be neutral for `merge`.
#[inline(always)]
fn fold<T: Copy, A: Copy>(
    x: &[T],
    start: A,
    step: impl Fn(A, T) -> A + Copy,
    merge: impl Fn(A, A) -> A + Copy,
) -> A {
    let mut total = start;
    let mut stack = [start; usize::BITS as usize];
    let mut depth = 0;
    for (index, piece) in x.chunks(PIECE).enumerate() {
        let mut sum = fold_piece(piece, start, step, merge);
        // As in a binary counter, every trailing 1 of the index is a finished half to merge with.
        for _ in 0..index.trailing_ones() {
            depth -= 1;
            sum = merge(stack[depth], sum);
        }
        stack[depth] = sum;
        depth += 1;
    }
    for &sum in stack[..depth].iter().rev() {
        total = merge(sum, total);
    }
    total
}

#[inline(always)]
fn fold_piece<T: Copy, A: Copy>(
    x: &[T],
    start: A,
    step: impl Fn(A, T) -> A + Copy,
    merge: impl Fn(A, A) -> A + Copy,
) -> A {
    let (rows, rest) = x.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for row in rows {
        for (lane, &v) in lanes.iter_mut().zip(row) {
            *lane = step(*lane, v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, v);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = merge(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Folds the middle extent of an `outer` × `n` × `inner` array into `outer` × `inner` results. `start` must be
/// neutral for `merge`.
pub fn fold_axis<T: Copy, A: Copy>(
    x: &[T],
    extents: (usize, usize, usize),
    start: A,
    step: impl Fn(A, T) -> A + Copy,
    merge: impl Fn(A, A) -> A + Copy,
) -> Vec<A> {
    let mut out = vec![start; extents.0 * extents.2];
    simd::run(Fold { x, n: extents.1, inner: extents.2, out: &mut out, start, step, merge });
    out
}

struct Fold<'a, T, A, S, M> {
    x: &'a [T],
    n: usize,
    inner: usize,
    /// Holds `start` everywhere.
    out: &'a mut [A],
    start: A,
    step: S,
    merge: M,
}

impl<T: Copy, A: Copy, S: Fn(A, T) -> A + Copy, M: Fn(A, A) -> A + Copy> Task for Fold<'_, T, A, S, M> {
    #[inline(always)]
    fn run(self) {
        let Self { x, n, inner, out, start, step, merge } = self;
        if n == 0 || inner == 0 {
            return;
        }
        if inner == 1 {
            for (run, y) in x.chunks_exact(n).zip(out) {
                *y = fold(run, start, step, merge);
            }
            return;
        }
        for (block, out) in x.chunks_exact(n * inner).zip(out.chunks_exact_mut(inner)) {
            for row in block.chunks_exact(inner) {
                for (y, &v) in out.iter_mut().zip(row) {
                    *y = step(*y, v);
                }
            }
        }
    }
}

/// Combines every row of a block with one value for each column.
#[inline(always)]
pub fn per_column<T: Copy>(block: &mut [T], values: &[T], f: impl Fn(T, T) -> T) {
    if let [value] = values {
        return block.iter_mut().for_each(|x| *x = f(*x, *value));
    }
    for row in block.chunks_exact_mut(values.len()) {
        row.iter_mut().zip(values).for_each(|(x, &value)| *x = f(*x, value));
    }
}

/// The sum of a run.
pub fn sum<T: Real>(x: &[T]) -> T {
    one(x, T::ZERO, |a, v| a + v, |a, b| a + b)
}

/// The sum of the squares of what lies between the elements and `center`.
pub fn sum_squares<T: Real>(x: &[T], center: T) -> T {
    one(x, T::ZERO, move |a, v| a + (v - center) * (v - center), |a, b| a + b)
}

/// The greatest element; NaN if any is, -∞ if there is none.
pub fn maximum<T: Real>(x: &[T]) -> T {
    one(x, -T::INFINITY, T::maximum, T::maximum)
}

/// Folds one run.
fn one<T: Copy, A: Copy>(
    x: &[T],
    start: A,
    step: impl Fn(A, T) -> A + Copy,
    merge: impl Fn(A, A) -> A + Copy,
) -> A {
    let mut out = [start];
    simd::run(Fold { x, n: x.len(), inner: 1, out: &mut out, start, step, merge });
    out[0]
}

/// Position of the first element along the middle extent that no later one beats; `outer` × `inner` results.
pub fn position_axis<T: Copy>(
    x: &[T],
    (outer, n, inner): (usize, usize, usize),
    beats: impl Fn(T, T) -> bool,
) -> Vec<i64> {
    let mut positions = vec![0; outer * inner];
    if n == 0 || inner == 0 {
        return positions;
    }
    for (block, positions) in x.chunks_exact(n * inner).zip(positions.chunks_exact_mut(inner)) {
        let mut best = block[..inner].to_vec();
        for (index, row) in block.chunks_exact(inner).enumerate().skip(1) {
            for ((best, position), &v) in best.iter_mut().zip(positions.iter_mut()).zip(row) {
                if beats(v, *best) {
                    (*best, *position) = (v, index as i64);
                }
            }
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn folding_is_its_definition(outer in 0usize..4, n in 0usize..2100, inner in 1usize..4, seed: i64) {
            let x: Vec<i64> = (0..(outer * n * inner) as i64).map(|i| i.wrapping_mul(seed | 1) >> 40).collect();
            let column = |o: usize, i: usize| x[o * n * inner..].iter().skip(i).step_by(inner).take(n).copied();
            let each = |f: &dyn Fn(usize, usize) -> i64| -> Vec<i64> {
                (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))).map(|(o, i)| f(o, i)).collect()
            };
            let sums = fold_axis(&x, (outer, n, inner), 0, |a, v| a + v, |a, b| a + b);
            prop_assert_eq!(sums, each(&|o, i| column(o, i).sum()));
            let greatest = fold_axis(&x, (outer, n, inner), i64::MIN, i64::max, i64::max);
            prop_assert_eq!(&greatest, &each(&|o, i| column(o, i).max().unwrap_or(i64::MIN)));
            let first = position_axis(&x, (outer, n, inner), |a, b| a > b);
            let position = |o, i| column(o, i).position(|v| Some(v) == column(o, i).max()).unwrap_or(0) as i64;
            prop_assert_eq!(first, each(&position));
        }
    }

    #[test]
    fn folds_any_length() {
        for n in [0usize, 1, 15, 16, 17, 1023, 1024, 1025, 3 * 1024, 5000, 8192] {
            let x: Vec<f64> = (0..n).map(|i| i as f64).collect();
            assert_eq!(sum(&x), (n * n.saturating_sub(1) / 2) as f64, "{n}");
            assert_eq!(maximum(&x), if n == 0 { f64::NEG_INFINITY } else { (n - 1) as f64 });
            assert_eq!(sum_squares(&x, 0.0), x.iter().map(|v| v * v).sum::<f64>());
        }
    }

    #[test]
    fn long_sums_stay_accurate() {
        let x = vec![0.1f32; 1 << 20];
        let exact = f64::from(0.1f32) * x.len() as f64;
        assert!((f64::from(sum(&x)) - exact).abs() < exact * 1e-6);
    }

    #[test]
    fn the_middle_extent_goes() {
        let x: Vec<i32> = (0..24).collect();
        let sums = fold_axis(&x, (2, 3, 4), 0, |a, v| a + v, |a, b| a + b);
        assert_eq!(sums, [12, 15, 18, 21, 48, 51, 54, 57]);
        assert_eq!(fold_axis(&x, (8, 3, 1), 0, |a, v| a + v, |a, b| a + b)[..3], [3, 12, 21]);
        assert_eq!(fold_axis(&x[..0], (2, 0, 2), 7, |a, v| a + v, |a, b| a + b), [7; 4]);
    }

    #[test]
    fn nan_spreads() {
        assert!(maximum(&[1.0f32, f32::NAN, 3.0]).is_nan());
    }

    #[test]
    fn first_of_the_best() {
        assert_eq!(position_axis(&[1, 3, 3, 2, 5, 5], (2, 3, 1), |a, b| a > b), [1, 1]);
        assert_eq!(position_axis(&[1, 3, 3, 2, 5, 5], (2, 3, 1), |a, b| a >= b), [2, 2]);
        assert_eq!(position_axis(&[1, 6, 3, 2], (1, 2, 2), |a, b| a > b), [1, 0]);
    }
}
