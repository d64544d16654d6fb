//! Broadcasting: element by element over arrays whose shapes differ.
//!
//! Shapes are aligned at their last axes; an axis of extent 1 (or a missing one) is repeated. Neighbouring axes in
//! which every operand does the same thing (steps or stays) are merged, which leaves one row loop for equal shapes
//! or a scalar operand, and two or three nested loops for a trailing or a per-channel operand. Along a row an operand
//! is a slice or one repeated element, so the row loop needs no index arithmetic.

use std::mem::MaybeUninit;

use super::real::Real;
use super::reduce::sum;
use super::simd::{self, Task};
use crate::error::Fault;
use crate::fail;
use crate::ir::element_count;

/// The shape that `shapes` broadcast to.
pub fn shape<'a>(shapes: impl IntoIterator<Item = &'a [usize]>) -> Result<Vec<usize>, Fault> {
    let mut out: Vec<usize> = Vec::new();
    for shape in shapes {
        if shape.len() > out.len() {
            out.splice(0..0, std::iter::repeat_n(1, shape.len() - out.len()));
        }
        let skip = out.len() - shape.len();
        for (o, &d) in out.iter_mut().skip(skip).zip(shape) {
            match (*o, d) {
                (a, b) if a == b => {}
                (1, b) => *o = b,
                (_, 1) => {}
                (a, b) => fail!("extents {a} and {b} do not broadcast"),
            }
        }
    }
    element_count(&out)?;
    Ok(out)
}

/// The loops over `N` operands that broadcast together.
#[derive(Debug, Clone, PartialEq)]
pub struct Walk<const N: usize> {
    /// The broadcast shape.
    pub shape: Vec<usize>,
    /// Outer loops, outermost first: extent and the distance between elements in each operand.
    outer: Vec<(usize, [usize; N])>,
    /// Elements of a row.
    row: usize,
    /// True: the operand steps along a row; false: one element is repeated.
    steps: [bool; N],
}

impl<const N: usize> Walk<N> {
    /// Plans the loops over operands of these shapes.
    pub fn new(shapes: [&[usize]; N]) -> Result<Self, Fault> {
        let shape = shape(shapes)?;
        let mut strides = [1; N];
        let mut loops: Vec<(usize, [usize; N])> = Vec::new();
        for (back, &extent) in shape.iter().rev().enumerate().filter(|(_, d)| **d != 1) {
            let step: [usize; N] = std::array::from_fn(|i| {
                let own = shapes[i].iter().rev().nth(back).copied().unwrap_or(1);
                let step = if own == 1 { 0 } else { strides[i] };
                strides[i] *= own;
                step
            });
            match loops.last_mut() {
                Some((inner, steps)) if (0..N).all(|i| step[i] == *inner * steps[i]) => *inner *= extent,
                _ => loops.push((extent, step)),
            }
        }
        loops.reverse();
        let (row, steps) = loops.pop().unwrap_or((1, [0; N]));
        Ok(Self { shape, outer: loops, row, steps: steps.map(|s| s != 0) })
    }

    /// Elements of a row.
    pub fn row(&self) -> usize {
        self.row
    }

    /// Which operands step along a row; the others repeat one element.
    pub fn steps(&self) -> [bool; N] {
        self.steps
    }

    /// Calls `row` with where each operand starts, row by row.
    pub fn rows(&self, mut row: impl FnMut([usize; N])) {
        if self.row == 0 || self.outer.iter().any(|(extent, _)| *extent == 0) {
            return;
        }
        let mut index = vec![0; self.outer.len()];
        let mut at = [0; N];
        loop {
            row(at);
            let mut axis = self.outer.len();
            loop {
                let Some(next) = axis.checked_sub(1) else { return };
                axis = next;
                let (extent, steps) = self.outer[axis];
                index[axis] += 1;
                (0..N).for_each(|i| at[i] += steps[i]);
                if index[axis] < extent {
                    break;
                }
                index[axis] = 0;
                (0..N).for_each(|i| at[i] -= steps[i] * extent);
            }
        }
    }
}

/// Elements of a row that are taken at once.
const BLOCK: usize = 1024;

/// `f` of every pair of elements of `a` and `b`, with the broadcast shape.
///
/// An element that is repeated along a row is written out first, so that there is one loop for each `f`, not four.
pub fn zip<A: Clone, B: Clone, C>(
    (a, a_shape): (&[A], &[usize]),
    (b, b_shape): (&[B], &[usize]),
    f: impl Fn(&A, &B) -> C,
) -> Result<(Vec<usize>, Vec<C>), Fault> {
    let walk = Walk::new([a_shape, b_shape])?;
    let mut out = Vec::with_capacity(walk.shape.iter().product());
    let (mut left, mut right) = (Operand::new(a), Operand::new(b));
    walk.rows(|[i, j]| {
        for start in (0..walk.row).step_by(BLOCK) {
            let count = BLOCK.min(walk.row - start);
            let x = left.block(i, walk.steps[0].then_some(start), count);
            let y = right.block(j, walk.steps[1].then_some(start), count);
            simd::run(Pairs { x, y, f: &f, out: &mut out.spare_capacity_mut()[..count] });
            // SAFETY: the loop has written as many elements.
            unsafe { out.set_len(out.len() + count) };
        }
    });
    Ok((walk.shape, out))
}

/// A plain loop over as many pairs as there is room for: what `extend` is made of is compiled once, for the baseline.
struct Pairs<'a, A, B, C, F> {
    x: &'a [A],
    y: &'a [B],
    f: &'a F,
    out: &'a mut [MaybeUninit<C>],
}

impl<A, B, C, F: Fn(&A, &B) -> C> Task for Pairs<'_, A, B, C, F> {
    #[inline(always)]
    fn run(self) {
        let Self { x, y, f, out } = self;
        let count = out.len();
        for ((out, x), y) in out.iter_mut().zip(&x[..count]).zip(&y[..count]) {
            out.write(f(x, y));
        }
    }
}

/// An operand, and its last element that was repeated: where it lies, and copies of it.
struct Operand<'a, T> {
    all: &'a [T],
    repeated: Option<usize>,
    copies: Vec<T>,
}

impl<'a, T: Clone> Operand<'a, T> {
    fn new(all: &'a [T]) -> Self {
        Self { all, repeated: None, copies: Vec::new() }
    }

    /// Elements of a row that begins at `at`: from `start` on, or the same one again and again.
    fn block(&mut self, at: usize, start: Option<usize>, count: usize) -> &[T] {
        if let Some(start) = start {
            return &self.all[at + start..][..count];
        }
        if self.repeated != Some(at) || self.copies.len() < count {
            self.copies.clear();
            self.copies.resize(count, self.all[at].clone());
            self.repeated = Some(at);
        }
        &self.copies[..count]
    }
}

/// Elements of `a` where `mask` holds, else of `b`, with the broadcast shape.
pub fn select<T: Clone>(
    (mask, mask_shape): (&[bool], &[usize]),
    (a, a_shape): (&[T], &[usize]),
    (b, b_shape): (&[T], &[usize]),
) -> Result<(Vec<usize>, Vec<T>), Fault> {
    let walk = Walk::new([mask_shape, a_shape, b_shape])?;
    let mut out = Vec::with_capacity(walk.shape.iter().product());
    let [sm, sa, sb] = walk.steps.map(usize::from);
    walk.rows(|[m, i, j]| {
        let pick = |k| if mask[m + sm * k] { &a[i + sa * k] } else { &b[j + sb * k] };
        out.extend((0..walk.row).map(|k| pick(k).clone()));
    });
    Ok((walk.shape, out))
}

/// The way back of broadcasting: the sums of the elements of `full` that one element of `shape` was repeated to.
pub fn reduce<T: Real>((full, full_shape): (&[T], &[usize]), shape: &[usize]) -> Result<Vec<T>, Fault> {
    let walk = Walk::new([shape, full_shape])?;
    if walk.shape != full_shape {
        fail!("{full_shape:?} is not what {shape:?} broadcasts to");
    }
    let mut out = vec![T::ZERO; element_count(shape)?];
    let n = walk.row;
    walk.rows(|[i, j]| match (walk.steps[0], &full[j..j + n]) {
        (true, row) => out[i..i + n].iter_mut().zip(row).for_each(|(sum, &v)| *sum += v),
        (false, row) => out[i] += sum(row),
    });
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Which element of an operand of shape `own` an element of `out` is made of, by index arithmetic.
    fn locate(out: &[usize], own: &[usize], mut flat: usize) -> usize {
        let (mut at, mut stride) = (0, 1);
        for (back, &extent) in out.iter().rev().enumerate() {
            let i = flat % extent;
            flat /= extent;
            let d = own.iter().rev().nth(back).copied().unwrap_or(1);
            at += if d == 1 { 0 } else { i * stride };
            stride *= d;
        }
        at
    }

    fn naive(shapes: [&[usize]; 2]) -> Vec<(usize, usize)> {
        let out = shape(shapes).unwrap();
        (0..out.iter().product()).map(|i| (locate(&out, shapes[0], i), locate(&out, shapes[1], i))).collect()
    }

    proptest! {
        #[test]
        fn choices_and_sums_are_those_of_index_arithmetic(
            full in vec(0usize..5, 0..5), ones in [any::<u8>(), any::<u8>(), any::<u8>()], skips in [0usize..5, 0usize..5, 0usize..5],
        ) {
            let [mask, a, b] = [0, 1, 2].map(|i| -> Vec<usize> {
                let own = full.iter().enumerate().skip(skips[i]);
                own.map(|(axis, &d)| if ones[i] >> axis & 1 == 1 { 1 } else { d }).collect()
            });
            let numbers = |shape: &[usize], from: i64| -> Vec<i64> { (from..).take(shape.iter().product()).collect() };
            let (x, y) = (numbers(&a, 0), numbers(&b, 1000));
            let held: Vec<bool> = numbers(&mask, 0).iter().map(|i| i * 7 % 5 < 3).collect();
            let (out, found) = select((&held, &mask), (&x, &a), (&y, &b)).unwrap();
            prop_assert_eq!(&out, &shape([&mask[..], &a, &b]).unwrap());
            prop_assert_eq!(found.len(), out.iter().product::<usize>());
            for (i, &found) in found.iter().enumerate() {
                let at = |own: &[usize]| locate(&out, own, i);
                prop_assert_eq!(found, if held[at(&mask)] { x[at(&a)] } else { y[at(&b)] });
            }
            let terms: Vec<f64> = numbers(&full, 1).iter().map(|&v| v as f64).collect();
            let mut sums = vec![0.0; a.iter().product()];
            terms.iter().enumerate().for_each(|(i, v)| sums[locate(&full, &a, i)] += v);
            prop_assert_eq!(reduce((&terms, &full), &a).unwrap(), sums);
        }
    }

    #[test]
    fn every_pair_of_small_shapes() {
        let mut shapes: Vec<Vec<usize>> = vec![vec![]];
        for rank in 1..=4usize {
            for code in 0..3usize.pow(rank as u32) {
                shapes.push((0..rank).map(|i| [1, 2, 3][code / 3usize.pow(i as u32) % 3]).collect());
            }
        }
        let mut tried = 0;
        for a in &shapes {
            for b in shapes.iter().filter(|b| shape([&a[..], &b[..]]).is_ok()) {
                let x: Vec<usize> = (0..a.iter().product()).collect();
                let y: Vec<usize> = (0..b.iter().product()).collect();
                let (_, found) = zip((&x, a), (&y, b), |x, y| (*x, *y)).unwrap();
                assert_eq!(found, naive([a, b]), "{a:?} with {b:?}");
                tried += 1;
            }
        }
        assert!(tried > 1000);
    }

    #[test]
    fn loops_are_merged() {
        let image = [2, 3, 4, 5];
        let loops = |b: &[usize]| {
            let walk = Walk::new([&image[..], b]).unwrap();
            (walk.outer.len(), walk.row)
        };
        assert_eq!(loops(&image), (0, 120));
        assert_eq!(loops(&[1]), (0, 120));
        assert_eq!(loops(&[4, 5]), (1, 20));
        assert_eq!(loops(&[1, 3, 1, 1]), (2, 20));
        assert_eq!(loops(&[2, 1, 1, 1]), (1, 60));
    }

    #[test]
    fn shapes_that_do_not_fit_and_empty_ones() {
        assert!(shape([&[2, 3][..], &[3, 2]]).is_err());
        assert!(shape([&[usize::MAX, 1][..], &[1, usize::MAX]]).is_err());
        assert_eq!(shape([&[0, 1][..], &[1, 4]]).unwrap(), [0, 4]);
        let (shape, values) = zip((&[0u8; 0], &[0, 1]), (&[1u8; 4], &[1, 4]), |a, b| a + b).unwrap();
        assert_eq!((shape, values), (vec![0, 4], vec![]));
    }

    #[test]
    fn select_broadcasts_three() {
        let (shape, values) = select((&[true, false], &[2, 1]), (&[1, 2, 3], &[3]), (&[9], &[])).unwrap();
        assert_eq!((shape, values), (vec![2, 3], vec![1, 2, 3, 9, 9, 9]));
    }
}
