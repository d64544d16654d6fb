//! Convolution of one `f32` plane with one kernel, in vectors of neighbouring windows.
//!
//! Nothing is copied: where a window reaches over the border, lanes are masked instead. What is read of a row serves
//! all windows above each other that reach it, a few at a time. Sums begin at zero and take their taps in order, and
//! padding adds nothing; [`Taps`] says how.

use super::finish::{Finish, Seen};
use super::lanes::{self, Kernel, Vector};
use super::simd::Isa;
use super::window::{Axis, each_index, volume};

/// How the products of a window are added, which is what ONNX Runtime does on x86-64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taps {
    /// One by one, each product fused with its addition: its kernels on blocks of channels.
    Fused,
    /// Rounded, and four at a time: they are summed in order before the result is added. Two and then one remain.
    /// That is its product of a row with a matrix, see [`vector`](super::vector).
    Fours,
}

/// How the windows of a plane read it. There is a loop for windows of 3, 5 or 7 taps in a row, one or two elements
/// apart.
#[derive(Debug)]
pub struct Depthwise {
    row: Axis,
    /// Rows of taps.
    taps: usize,
    /// For each row of windows and of taps, where the row lies that they read; none in the padding.
    lines: Vec<Option<usize>>,
    /// Do windows walk down as they walk along?
    square: bool,
    sums: Taps,
    plane: usize,
}

/// Windows above each other that are computed together.
const ROWS: usize = 4;

impl Depthwise {
    /// For windows along these axes; none if there is no loop for them.
    pub fn new(axes: &[Axis], sums: Taps) -> Option<Self> {
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
        Some(Self {
            row,
            taps: kernels.iter().product(),
            lines,
            square,
            sums,
            plane: volume(axes, |a| a.input),
        })
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
            match self.windows.sums {
                Taps::Fused => self.choose::<V, false>(),
                Taps::Fours => self.choose::<V, true>(),
            }
        }
    }
}

impl Plane<'_> {
    /// # Safety
    /// As [`strips`](Self::strips).
    #[inline(always)]
    unsafe fn choose<V: Vector, const FOURS: bool>(self) {
        // SAFETY: the caller vouches for the same.
        unsafe {
            match (self.windows.row.kernel, self.windows.row.stride) {
                (3, 1) => self.strips::<V, FOURS, 3, 1>(),
                (3, _) => self.strips::<V, FOURS, 3, 2>(),
                (5, 1) => self.strips::<V, FOURS, 5, 1>(),
                (5, _) => self.strips::<V, FOURS, 5, 2>(),
                (_, 1) => self.strips::<V, FOURS, 7, 1>(),
                (..) => self.strips::<V, FOURS, 7, 2>(),
            }
        }
    }

    /// One vector of windows in each row after another, for windows of `K` taps in a row, `S` elements apart.
    ///
    /// # Safety
    /// The processor must have the instructions; lines and axes must be those of the slices.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    unsafe fn strips<V: Vector, const FOURS: bool, const K: usize, const S: usize>(self) {
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
                    let mut sums = [Sum::<V>::zero(); ROWS];
                    for j in 0..(ROWS - 1) * S + K {
                        // Whichever window begins at this row or reaches it last.
                        let owner = if j / S < ROWS { j / S } else { ROWS - 1 };
                        let mut values = [V::splat(0.0); K];
                        if let Some(line) = lines[owner * K + j - owner * S] {
                            let line = x.as_ptr().wrapping_add(line);
                            for k in 0..K {
                                values[k] = load::<V, S>(line.wrapping_offset(at[k]), &masks[k]);
                            }
                        } else if !FOURS {
                            continue;
                        }
                        for r in 0..ROWS {
                            if r * S <= j && j < r * S + K {
                                for k in 0..K {
                                    let tap = (j - r * S) * K + k;
                                    let w = V::splat(*w.as_ptr().wrapping_add(tap));
                                    sums[r].add::<FOURS>(values[k], w, (tap, K * K));
                                }
                            }
                        }
                    }
                    let (done, rest) = rows.split_at_mut(ROWS * row.output);
                    for r in 0..ROWS {
                        let sum = sums[r].whole;
                        let sum = seen.limit(if biased { sum.add(bias) } else { sum }, Some(stored));
                        sum.store_part(done.as_mut_ptr().wrapping_add(r * row.output + first), stored);
                    }
                    (lines, rows) = (&lines[ROWS * K..], rest);
                }
                for (lines, y) in lines.chunks_exact(taps).zip(rows.chunks_exact_mut(row.output)) {
                    let mut sum = Sum::<V>::zero();
                    for t in 0..taps {
                        if lines[t].is_none() && !FOURS {
                            continue;
                        }
                        for k in 0..K {
                            let tap = t.wrapping_mul(K).wrapping_add(k);
                            let w = V::splat(*w.as_ptr().wrapping_add(tap));
                            let values = match lines[t] {
                                Some(line) => {
                                    let line = x.as_ptr().wrapping_add(line);
                                    load::<V, S>(line.wrapping_offset(at[k]), &masks[k])
                                }
                                None => V::splat(0.0),
                            };
                            sum.add::<FOURS>(values, w, (tap, taps.wrapping_mul(K)));
                        }
                    }
                    let sum = sum.whole;
                    let sum = seen.limit(if biased { sum.add(bias) } else { sum }, Some(stored));
                    sum.store_part(y.as_mut_ptr().wrapping_add(first), stored);
                }
                first += V::LANES;
            }
            seen.store(finish);
        }
    }
}

/// Sums of windows: of whole groups of products, and of the group under way.
#[derive(Clone, Copy)]
struct Sum<V> {
    whole: V,
    group: V,
}

impl<V: Vector> Sum<V> {
    /// # Safety
    /// The processor must have the instructions, as for all functions of vectors.
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller vouches for the instructions.
        unsafe { Self { whole: V::splat(0.0), group: V::splat(0.0) } }
    }

    /// Adds the product of one of so many taps.
    ///
    /// # Safety
    /// See [`zero`](Self::zero).
    #[inline(always)]
    unsafe fn add<const FOURS: bool>(&mut self, values: V, w: V, (tap, taps): (usize, usize)) {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            if !FOURS {
                self.whole = self.whole.fma(values, w);
                return;
            }
            let rest = taps % 4;
            let (begins, ends) = if tap < taps.wrapping_sub(rest) {
                (tap % 4 == 0, tap % 4 == 3)
            } else {
                // Two and one, or two, or one.
                let at = tap % 4;
                (at != 1, at != 0 || rest == 1)
            };
            let product = values.mul(w);
            self.group = if begins { product } else { self.group.add(product) };
            if ends {
                self.whole = self.whole.add(self.group);
            }
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
            end in 0usize..4, biased: bool, limited: bool, fours: bool,
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
                let mut products = Vec::new();
                each_index(&extents(|a| a.kernel), |taps| {
                    let place = axes.iter().zip(window.iter().zip(taps)).try_fold(0, |at, (a, (&o, &t))| {
                        Some(at * a.input + a.source(o, t)?)
                    });
                    products.push((place.map_or(0.0, |place| x[place]), w[products.len()]));
                });
                let sum = if fours {
                    let (fours, rest) = products.as_chunks::<4>();
                    let (twos, one) = rest.as_chunks::<2>();
                    let groups = fours.iter().map(|g| &g[..]).chain(twos.iter().map(|g| &g[..])).chain([one]);
                    let group = |g: &[(f32, f32)]| g.iter().map(|(x, w)| x * w).reduce(|sum, p| sum + p);
                    groups.filter_map(group).fold(0.0, |sum, group| sum + group)
                } else {
                    products.iter().fold(0.0f32, |sum, (x, w)| x.mul_add(*w, sum))
                };
                want.push(limits.apply(bias.map_or(sum, |bias| sum + bias)));
            });
            let windows = Depthwise::new(&axes, if fours { Taps::Fours } else { Taps::Fused }).unwrap();
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
