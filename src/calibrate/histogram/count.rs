//! Counting values into bins.
//!
//! The bins of a tensor are larger than the nearest cache and have left it since the last sample, so that each
//! addition to one of them would wait for memory. Many values are hence counted in small tables first.

use super::{FRACTION_BITS, HUGE, LANES, OCTAVE, SIDE};
use crate::kernels::simd::{self, Task};

/// Values per pass: the slots computed for them stay in the first-level cache.
pub(super) const CHUNK: usize = 1024;
/// From so many values on, adding up the tables takes less time than they save.
const MANY: usize = 4 * CHUNK;
/// Values that a table has room for, whichever they are.
const FULL: usize = u16::MAX as usize;

/// Counts of each bin, in two tables by turns: runs of equal values would else make each increment wait for the one
/// before.
struct Tables {
    counts: [[u16; LANES + 2 * SIDE]; 2],
    /// Values counted.
    held: usize,
}

/// Counts values, each for so many.
pub(super) struct Counter {
    times: u64,
    tables: Option<Tables>,
}

impl Counter {
    /// For about so many values.
    pub(super) fn new(values: usize, times: u64) -> Self {
        let tables = (values >= MANY).then_some(Tables { counts: [[0; LANES + 2 * SIDE]; 2], held: 0 });
        Self { times, tables }
    }

    /// Counts values, at most [`CHUNK`], of any sign that there are bins for, given the reciprocal width of the equal
    /// bins. Some may be added at the [`end`](Self::end) only.
    pub(super) fn count(&mut self, values: &[f32], scale: f32, bins: &mut [u64]) {
        if self.tables.as_ref().is_some_and(|tables| tables.held + values.len() > FULL) {
            self.add(bins);
        }
        match &mut self.tables {
            None => simd::run(Count { values, scale, times: self.times, bins }),
            Some(Tables { counts, held }) => {
                simd::run(Tally { values, scale, counts });
                *held += values.len();
            }
        }
    }

    /// Adds what is not yet among the bins.
    pub(super) fn end(mut self, bins: &mut [u64]) {
        self.add(bins);
    }

    fn add(&mut self, bins: &mut [u64]) {
        if let Some(Tables { counts, held }) = &mut self.tables {
            simd::run(Add { counts, times: self.times, bins });
            *held = 0;
        }
    }
}

/// Adds values, at most [`CHUNK`], to the bins.
struct Count<'a> {
    values: &'a [f32],
    scale: f32,
    times: u64,
    bins: &'a mut [u64],
}

impl Task for Count<'_> {
    #[inline(always)]
    fn run(self) {
        let places = places(self.values, self.scale);
        for &place in &places.as_flattened()[..self.values.len()] {
            let bin = &mut self.bins[place as usize];
            *bin = bin.wrapping_add(self.times);
        }
    }
}

/// Counts values, at most [`CHUNK`], in tables that have room for them.
struct Tally<'a> {
    values: &'a [f32],
    scale: f32,
    counts: &'a mut [[u16; LANES + 2 * SIDE]; 2],
}

impl Task for Tally<'_> {
    #[inline(always)]
    fn run(self) {
        let places = places(self.values, self.scale);
        let [even, odd] = self.counts;
        let (pairs, last) = places.as_flattened()[..self.values.len()].as_chunks();
        for &[a, b] in pairs {
            even[a as usize] = even[a as usize].wrapping_add(1);
            odd[b as usize] = odd[b as usize].wrapping_add(1);
        }
        last.iter().for_each(|&a| even[a as usize] = even[a as usize].wrapping_add(1));
    }
}

/// Adds the tables to the bins, and clears them.
struct Add<'a> {
    counts: &'a mut [[u16; LANES + 2 * SIDE]; 2],
    times: u64,
    bins: &'a mut [u64],
}

impl Task for Add<'_> {
    #[inline(always)]
    fn run(self) {
        let [even, odd] = self.counts;
        for ((bin, a), b) in self.bins.iter_mut().zip(&*even).zip(&*odd) {
            let count = u32::from(*a) + u32::from(*b);
            *bin = bin.wrapping_add(u64::from(count).wrapping_mul(self.times));
        }
        even.fill(0);
        odd.fill(0);
    }
}

/// How many values are no part of a distribution, and the extremes of the others: the least is above the greatest if
/// there are none.
pub(super) struct Apart {
    pub min: f32,
    pub max: f32,
    pub nan: u64,
    pub infinite: u64,
    pub huge: u64,
}

/// Tells values that are no part of a distribution from the others.
pub(super) fn apart(values: &[f32]) -> Apart {
    let mut apart = Apart { min: f32::INFINITY, max: f32::NEG_INFINITY, nan: 0, infinite: 0, huge: 0 };
    values.chunks(CHUNK).for_each(|values| simd::run(Tell { values, apart: &mut apart }));
    apart
}

/// Tells of values, at most [`CHUNK`].
struct Tell<'a> {
    values: &'a [f32],
    apart: &'a mut Apart,
}

impl Task for Tell<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { values, apart } = self;
        let mut lanes = Lanes {
            min: [f32::INFINITY; LANES],
            max: [f32::NEG_INFINITY; LANES],
            nan: [0; LANES],
            infinite: [0; LANES],
            huge: [0; LANES],
        };
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            values.iter().enumerate().for_each(|(lane, &x)| lanes.tell(lane, x));
        }
        rest.iter().enumerate().for_each(|(lane, &x)| lanes.tell(lane, x));
        let count = |lanes: [u32; LANES]| lanes.iter().map(|&n| u64::from(n)).sum::<u64>();
        apart.nan += count(lanes.nan);
        apart.infinite += count(lanes.infinite);
        apart.huge += count(lanes.huge);
        // Adding zero turns -0 into +0: which of them came first must not show.
        apart.min = lanes.min.into_iter().fold(apart.min, f32::min) + 0.0;
        apart.max = lanes.max.into_iter().fold(apart.max, f32::max) + 0.0;
    }
}

/// What an [`Apart`] is the sum of.
struct Lanes {
    min: [f32; LANES],
    max: [f32; LANES],
    nan: [u32; LANES],
    infinite: [u32; LANES],
    huge: [u32; LANES],
}

impl Lanes {
    #[inline(always)]
    fn tell(&mut self, lane: usize, x: f32) {
        let magnitude = x.abs();
        let plain = magnitude < HUGE;
        self.min[lane] = self.min[lane].min(if plain { x } else { f32::INFINITY });
        self.max[lane] = self.max[lane].max(if plain { x } else { f32::NEG_INFINITY });
        self.nan[lane] += u32::from(magnitude.is_nan());
        self.infinite[lane] += u32::from(magnitude == f32::INFINITY);
        self.huge[lane] += u32::from((HUGE..f32::INFINITY).contains(&magnitude));
    }
}

/// The places of values, at most [`CHUNK`].
#[inline(always)]
fn places(values: &[f32], scale: f32) -> [[u32; LANES]; CHUNK / LANES] {
    let mut places = [[0; LANES]; CHUNK / LANES];
    let (whole, rest) = values.as_chunks();
    for (places, values) in places.iter_mut().zip(whole) {
        *places = slots(values, scale);
    }
    if let Some(places) = places.get_mut(whole.len()) {
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        *places = slots(&last, scale);
    }
    places
}

/// Places of the values in [`Histogram::bins`], given the reciprocal width of the equal bins. That is a power of two,
/// so the product is exact.
///
/// Both kinds of bins are computed and one is chosen, for want of a branch to mispredict. Zeros spread over the lanes,
/// since runs of them (ReLU) would otherwise make each increment wait for the one before. None of the operations can
/// overflow; they are written as wrapping ones, as a check for each lane would keep the compiler from using vectors.
#[inline(always)]
fn slots(values: &[f32; LANES], scale: f32) -> [u32; LANES] {
    /// From here up, f32 has no fraction; adding it rounds.
    const WHOLE: f32 = (1u32 << (f32::MANTISSA_DIGITS - 1)) as f32;
    const DROPPED: u32 = f32::MANTISSA_DIGITS - 1 - FRACTION_BITS;
    const FIRST_OCTAVE: u32 = ((OCTAVE as f32).to_bits() >> DROPPED) - OCTAVE as u32;
    let mut slots = [0; LANES];
    for lane in 0..LANES {
        let y = values[lane].abs() * scale;
        let rounded = y + WHOLE;
        let equal = rounded.to_bits().wrapping_sub(WHOLE.to_bits());
        let equal = equal.wrapping_sub(u32::from(rounded - WHOLE > y));
        let octave = (y.to_bits() >> DROPPED).wrapping_sub(FIRST_OCTAVE);
        let bin = if y < OCTAVE as f32 { equal } else { octave };
        let side = if values[lane] < 0.0 { (LANES + SIDE) as u32 } else { LANES as u32 };
        let place = bin.wrapping_add(side);
        slots[lane] = if values[lane] == 0.0 { lane as u32 } else { place };
    }
    slots
}
