//! What is done to sums before they leave the cache: limiting them, and noticing their extremes.

use super::lanes::Vector;
use super::simd::{self, Task};
use crate::ir::{Extent, HUGE, Limits};

/// Lanes in which extremes are kept apart: those of the widest vectors.
pub const LANES: usize = 16;

/// Limits of the elements of a result, and what was seen of them so far.
#[derive(Debug)]
pub struct Finish {
    /// The interval they are limited to.
    pub limits: Limits,
    /// Least and greatest of each lane.
    extremes: [[f32; LANES]; 2],
    /// A sum of all elements times zero: zero, or not a number if one of them is not finite.
    zeros: [f32; LANES],
}

impl Finish {
    /// Nothing was seen yet.
    pub fn new(limits: Limits) -> Self {
        let extremes = [[f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]];
        Self { limits, extremes, zeros: [0.0; LANES] }
    }

    /// Limits these elements and takes note of them.
    pub fn apply(&mut self, values: &mut [f32]) {
        simd::run(Apply { values, finish: self });
    }

    /// What was seen.
    pub fn extent(&self) -> Extent {
        // Adding zero turns -0 into +0: which of them came first must not show.
        let min = self.extremes[0].into_iter().fold(f32::INFINITY, f32::min) + 0.0;
        let max = self.extremes[1].into_iter().fold(f32::NEG_INFINITY, f32::max) + 0.0;
        let finite = self.zeros.into_iter().all(|zero| zero == 0.0);
        Extent { min, max, plain: finite && min > -HUGE && max < HUGE }
    }
}

/// The extent of some values.
pub fn extent(values: &[f32]) -> Extent {
    let mut finish = Finish::new(Limits::NONE);
    simd::run(See { values, finish: &mut finish });
    finish.extent()
}

struct Apply<'a> {
    values: &'a mut [f32],
    finish: &'a mut Finish,
}

impl Task for Apply<'_> {
    #[inline(always)]
    fn run(self) {
        let limits = self.finish.limits;
        let mut lanes = Lanes::of(self.finish);
        let (whole, rest) = self.values.as_chunks_mut::<LANES>();
        for values in whole {
            for (lane, x) in values.iter_mut().enumerate() {
                *x = limits.apply(*x);
                lanes.see(lane, *x);
            }
        }
        for (lane, x) in rest.iter_mut().enumerate() {
            *x = limits.apply(*x);
            lanes.see(lane, *x);
        }
        lanes.store(self.finish);
    }
}

struct See<'a> {
    values: &'a [f32],
    finish: &'a mut Finish,
}

impl Task for See<'_> {
    #[inline(always)]
    fn run(self) {
        let mut lanes = Lanes::of(self.finish);
        let (whole, rest) = self.values.as_chunks::<LANES>();
        for values in whole {
            for (lane, &x) in values.iter().enumerate() {
                lanes.see(lane, x);
            }
        }
        for (lane, &x) in rest.iter().enumerate() {
            lanes.see(lane, x);
        }
        lanes.store(self.finish);
    }
}

/// A copy of the limits and of what was seen, which stays in vector registers during a loop.
#[derive(Clone, Copy)]
pub(super) struct Seen<V> {
    low: V,
    high: V,
    min: V,
    max: V,
    zeros: V,
}

impl<V: Vector> Seen<V> {
    /// A multiple of the lanes of every vector: the first lanes serve all.
    const FITS: () = assert!(LANES.is_multiple_of(V::LANES));

    /// # Safety
    /// The processor must have the instructions, as for all functions of vectors.
    #[inline(always)]
    pub unsafe fn of(finish: &Finish) -> Self {
        let () = Self::FITS;
        let [min, max] = &finish.extremes;
        // SAFETY: the arrays have at least as many elements as the vectors.
        unsafe {
            Self {
                low: V::splat(finish.limits.low),
                high: V::splat(finish.limits.high),
                min: V::load(min.as_ptr()),
                max: V::load(max.as_ptr()),
                zeros: V::load(finish.zeros.as_ptr()),
            }
        }
    }

    /// Limits these elements, and takes note of those in the mask. What is not a number stays what it is.
    ///
    /// # Safety
    /// See [`of`](Self::of).
    #[inline(always)]
    pub unsafe fn limit(&mut self, values: V, mask: Option<V::Mask>) -> V {
        // SAFETY: the caller vouches for the instructions.
        unsafe {
            let values = self.high.min(self.low.max(values));
            let (min, max) = (values.min(self.min), values.max(self.max));
            (self.min, self.max) = match mask {
                Some(mask) => (min.select(mask, self.min), max.select(mask, self.max)),
                None => (min, max),
            };
            self.zeros = self.zeros.fma(values, V::splat(0.0));
            values
        }
    }

    /// # Safety
    /// See [`of`](Self::of).
    #[inline(always)]
    pub unsafe fn store(self, finish: &mut Finish) {
        let [min, max] = &mut finish.extremes;
        // SAFETY: the arrays have at least as many elements as the vectors.
        unsafe {
            self.min.store(min.as_mut_ptr());
            self.max.store(max.as_mut_ptr());
            self.zeros.store(finish.zeros.as_mut_ptr());
        }
    }
}

/// The same for loops that the compiler makes vectors of.
struct Lanes {
    min: [f32; LANES],
    max: [f32; LANES],
    zeros: [f32; LANES],
}

impl Lanes {
    #[inline(always)]
    fn of(finish: &Finish) -> Self {
        Self { min: finish.extremes[0], max: finish.extremes[1], zeros: finish.zeros }
    }

    #[inline(always)]
    fn see(&mut self, lane: usize, x: f32) {
        self.min[lane] = if x < self.min[lane] { x } else { self.min[lane] };
        self.max[lane] = if x > self.max[lane] { x } else { self.max[lane] };
        self.zeros[lane] += x * 0.0;
    }

    #[inline(always)]
    fn store(self, finish: &mut Finish) {
        finish.extremes = [self.min, self.max];
        finish.zeros = self.zeros;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn elements_are_limited_and_seen(
            values in prop::collection::vec(prop_oneof![8 => -9f32..9.0, 1 => Just(f32::NAN), 1 => Just(-1e30), 1 => Just(f32::INFINITY)], 0..70),
            low in -5f32..0.0, high in 0f32..5.0, limited: bool,
        ) {
            let limits = if limited { Limits { low, high } } else { Limits::NONE };
            let mut finish = Finish::new(limits);
            let mut found = values.clone();
            let (first, second) = found.split_at_mut(values.len() / 3);
            finish.apply(first);
            finish.apply(second);
            let expected: Vec<f32> =
                values.iter().map(|&x| if x.is_nan() || !limited { x } else { x.clamp(low, high) }).collect();
            prop_assert_eq!(format!("{found:?}"), format!("{expected:?}"));
            let plain = expected.iter().all(|x| x.abs() < HUGE);
            for seen in [finish.extent(), extent(&expected)] {
                prop_assert_eq!(seen.plain, plain);
                if plain {
                    let min = expected.iter().copied().fold(f32::INFINITY, f32::min);
                    let max = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    prop_assert_eq!((seen.min, seen.max), (min, max));
                }
            }
        }
    }
}
