//! Convolution of one `f32` plane with one kernel, in vectors of neighbouring windows.
//!
//! Nothing is copied: where a window reaches over the border, lanes are masked instead. What is read of a row serves all
//! windows above each other that reach it, a few at a time. Sums begin at zero and take their taps in order; padding adds
//! nothing.

use super::finish::{Finish, Seen};
use super::lanes::{self, Kernel, Vector};
use super::simd::Isa;
use super::window::{Axis, each_index, volume};

/// How the windows of a plane read it. There is a loop for windows of 3, 5 or 7 taps in a row, one or two elements apart.
#[derive(Debug)]
pub struct Depthwise {
    row: Axis,
    /// Rows of taps.
    taps: usize,
    /// For each row of windows and of taps, where the row lies that they read; none in the padding.
    lines: Vec<Option<usize>>,
    /// Do windows walk down as they walk along?
    square: bool,
    plane: usize,
}

/// Windows above each other that are computed together.
const ROWS: usize = 4;

impl Depthwise {
    /// For windows along these axes; none if there is no loop for them.
    pub fn new(axes: &[Axis]) -> Option<Self> {
        let (&row, outer) = axes.split_last()?;
        if !matches!((row.kernel, row.stride), (3 | 5 | 7, 1 | 2)) {
            return None;
        }
        let (kernels, outputs): (Vec<_>, Vec<_>) = outer.iter().map(|a| (a.kernel, a.output)).unzip();
        let mut lines = Vec::with_capacity(kernels.iter().chain(&outputs).product());
        each_index(&outputs, |window| {
            each_index(&kernels, |tap| {
                let line = outer
                    .iter()
                    .zip(window.iter().zip(tap))
                    .try_fold(0, |line, (a, (&o, &t))| Some(line * a.input + a.source(o, t)?));
                lines.push(line.map(|line| line * row.input));
            });
        });
        let alike = |a: &Axis| (a.kernel, a.stride, a.dilation) == (row.kernel, row.stride, 1);
        let square = matches!(outer, [a] if alike(a));
        Some(Self { row, taps: kernels.iter().product(), lines, square, plane: volume(axes, |a| a.input) })
    }

    /// Computes a plane of results, adds the bias, limits the elements and notes their extremes.
    ///
    /// # Panics
    /// If a slice does not have the length that the axes say.
    pub fn compute(
        &self,
        isa: Isa,
        x: &[f32],
        (w, bias): (&[f32], Option<f32>),
        y: &mut [f32],
        finish: &mut Finish,
    ) {
        assert_eq!(x.len(), self.plane, "x");
        assert_eq!(w.len(), self.taps * self.row.kernel, "w");
        assert_eq!(y.len() * self.taps, self.lines.len() * self.row.output, "y");
        lanes::run(isa, Plane { windows: self, x, w, bias, y, finish });
    }
}

struct Plane<'a> {
    windows: &'a Depthwise,
    x: &'a [f32],
    w: &'a [f32],
    bias: Option<f32>,
    y: &'a mut [f32],
    finish: &'a mut Finish,
}

impl Kernel for Plane<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions; the extents of the slices were checked.
        unsafe {
            match (self.windows.row.kernel, self.windows.row.stride) {
                (3, 1) => self.strips::<V, 3, 1>(),
                (3, _) => self.strips::<V, 3, 2>(),
                (5, 1) => self.strips::<V, 5, 1>(),
                (5, _) => self.strips::<V, 5, 2>(),
                (_, 1) => self.strips::<V, 7, 1>(),
                (..) => self.strips::<V, 7, 2>(),
            }
        }
    }
}

impl Plane<'_> {
    /// One vector of windows in each row after another, for windows of `K` taps in a row, `S` elements apart.
    ///
    /// # Safety
    /// The processor must have the instructions; lines and axes must be those of the slices.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn strips<V: Vector, const K: usize, const S: usize>(self) {
        let Self { windows, x, w, bias, y, finish } = self;
        let row = &windows.row;
        let taps = windows.taps;
        // SAFETY: loads touch what lies in the masks, which hold the elements of a row of the input, and stores what
        // lies in a row of the output.
        unsafe {
            let mut seen = Seen::<V>::of(finish);
            let (biased, bias) = (bias.is_some(), V::splat(bias.unwrap_or(0.0)));
            let mut first = 0;
            while first < row.output {
                let count = (row.output - first).min(V::LANES);
                let stored = V::mask(0, count);
                // Where the first lane of each tap reads, counted from the start of the row, and which elements from
                // there on exist: of one vector, or of the two whose even elements are wanted.
                let mut at = [0isize; K];
                let mut masks = [[V::mask(0, 0); S]; K];
                for k in 0..K {
                    at[k] = (first * S + k * row.dilation) as isize - row.begin as isize;
                    for s in 0..S {
                        let start = at[k] + (s * V::LANES) as isize;
                        let inside =
                            |position: isize| (position - start).clamp(0, V::LANES as isize) as usize;
                        masks[k][s] = V::mask(inside(0), inside(row.input as isize));
                    }
                }
                let mut lines = &windows.lines[..];
                let mut rows = &mut y[..];
                while windows.square && lines.len() >= ROWS * K {
                    let mut sums = [V::splat(0.0); ROWS];
                    for j in 0..(ROWS - 1) * S + K {
                        // Whichever window begins at this row or reaches it last.
                        let owner = if j / S < ROWS { j / S } else { ROWS - 1 };
                        let Some(line) = lines[owner * K + j - owner * S] else { continue };
                        let mut values = [V::splat(0.0); K];
                        for k in 0..K {
                            values[k] =
                                load::<V, S>(x.as_ptr().wrapping_add(line).wrapping_offset(at[k]), &masks[k]);
                        }
                        for r in 0..ROWS {
                            if r * S <= j && j < r * S + K {
                                for k in 0..K {
                                    let w = w.as_ptr().wrapping_add((j - r * S) * K + k);
                                    sums[r] = sums[r].fma(values[k], V::splat(*w));
                                }
                            }
                        }
                    }
                    let (done, rest) = rows.split_at_mut(ROWS * row.output);
                    for r in 0..ROWS {
                        let sum = seen.limit(if biased { sums[r].add(bias) } else { sums[r] }, Some(stored));
                        sum.store_part(done.as_mut_ptr().wrapping_add(r * row.output + first), stored);
                    }
                    (lines, rows) = (&lines[ROWS * K..], rest);
                }
                for (lines, y) in lines.chunks_exact(taps).zip(rows.chunks_exact_mut(row.output)) {
                    let mut sum = V::splat(0.0);
                    for t in 0..taps {
                        let Some(line) = lines[t] else { continue };
                        for k in 0..K {
                            let w = w.as_ptr().wrapping_add(t.wrapping_mul(K).wrapping_add(k));
                            let from = x.as_ptr().wrapping_add(line).wrapping_offset(at[k]);
                            sum = sum.fma(load::<V, S>(from, &masks[k]), V::splat(*w));
                        }
                    }
                    let sum = seen.limit(if biased { sum.add(bias) } else { sum }, Some(stored));
                    sum.store_part(y.as_mut_ptr().wrapping_add(first), stored);
                }
                first += V::LANES;
            }
            seen.store(finish);
        }
    }
}

/// A vector of elements that lie `S` apart, as far as they lie in the masks of the vectors that hold them.
///
/// # Safety
/// The processor must have the instructions; what lies in the masks must exist.
#[inline(always)]
unsafe fn load<V: Vector, const S: usize>(from: *const f32, masks: &[V::Mask; S]) -> V {
    // SAFETY: the caller vouches for both.
    unsafe {
        let values = V::load_part(from, masks[0]);
        if S == 1 { values } else { values.evens(V::load_part(from.wrapping_add(V::LANES), masks[S - 1])) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Limits;
    use crate::kernels::window::Padding;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_kind_of_vectors_gives_the_bits_of_the_definition(
            outer in prop::collection::vec((1usize..9, 1usize..4, 1usize..4, 1usize..3, 0usize..3), 0..3),
            row in (1usize..70, prop_oneof![Just(3usize), Just(5), Just(7)], 1usize..3, 1usize..4, 0usize..5),
            end in 0usize..4, biased: bool, limited: bool,
        ) {
            let axis = |(input, kernel, stride, dilation, begin)| {
                Axis::new(input, kernel, stride, dilation, Padding::Explicit(begin, end), false)
            };
            let axes: Result<Vec<Axis>, _> = outer.into_iter().chain([row]).map(axis).collect();
            prop_assume!(axes.is_ok());
            let axes = axes.unwrap();
            let numbers = |len: usize, seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
            };
            let x = numbers(volume(&axes, |a| a.input), 1);
            let w = numbers(volume(&axes, |a| a.kernel), 2);
            let bias = biased.then_some(0.375);
            let limits = if limited { Limits { low: -0.25, high: 0.5 } } else { Limits::NONE };
            let extents = |f: fn(&Axis) -> usize| axes.iter().map(f).collect::<Vec<_>>();
            let mut want = Vec::new();
            each_index(&extents(|a| a.output), |window| {
                let (mut sum, mut tap) = (0.0f32, 0);
                each_index(&extents(|a| a.kernel), |taps| {
                    let place = axes.iter().zip(window.iter().zip(taps)).try_fold(0, |at, (a, (&o, &t))| {
                        Some(at * a.input + a.source(o, t)?)
                    });
                    if let Some(place) = place {
                        sum = x[place].mul_add(w[tap], sum);
                    }
                    tap += 1;
                });
                want.push(limits.apply(bias.map_or(sum, |bias| sum + bias)));
            });
            let windows = Depthwise::new(&axes).unwrap();
            for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512] {
                let mut y = vec![9.0; want.len()];
                let mut finish = Finish::new(limits);
                windows.compute(isa, &x, (&w, bias), &mut y, &mut finish);
                prop_assert_eq!(&y, &want, "{:?}", isa);
                prop_assert_eq!(finish.extent(), super::super::finish::extent(&want));
            }
        }
    }
}
