//! What is done to sums before they leave the cache: limiting them, and noticing their extremes.

use super::lanes::{self, Kernel, Vector};
use super::simd::Isa;
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
        lanes::run(Isa::detect(), Apply { values, finish: self });
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
    lanes::run(Isa::detect(), See { values, finish: &mut finish });
    finish.extent()
}

struct Apply<'a> {
    values: &'a mut [f32],
    finish: &'a mut Finish,
}

impl Kernel for Apply<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions, the slice for its elements.
        unsafe { pass::<V, true>(self.values.as_mut_ptr(), self.values.len(), self.finish) }
    }
}

struct See<'a> {
    values: &'a [f32],
    finish: &'a mut Finish,
}

impl Kernel for See<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the caller vouches for the instructions, the slice for its elements, to which nothing is stored.
        unsafe { pass::<V, false>(self.values.as_ptr().cast_mut(), self.values.len(), self.finish) }
    }
}

/// Limits elements, takes note of them, and stores them if so told.
///
/// # Safety
/// The processor must have the instructions, and so many elements must lie at the pointer, which may be written if they
/// are stored.
#[inline(always)]
unsafe fn pass<V: Vector, const STORE: bool>(values: *mut f32, len: usize, finish: &mut Finish) {
    // SAFETY: the caller vouches for the instructions and the elements; a mask holds those that are left.
    unsafe {
        let mut seen = Seen::<V>::of(finish);
        let whole = len - len % V::LANES;
        let mut at = 0;
        while at < whole {
            let here = values.wrapping_add(at);
            let limited = seen.limit(V::load(here), None);
            if STORE {
                limited.store(here);
            }
            at = at.wrapping_add(V::LANES);
        }
        let (here, rest) = (values.wrapping_add(whole), V::mask(0, len - whole));
        let limited = seen.limit(V::load_part(here, rest), Some(rest));
        if STORE {
            limited.store_part(here, rest);
        }
        seen.store(finish);
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
