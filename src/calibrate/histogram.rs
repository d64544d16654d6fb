//! One-pass histogram of an activation, exact under any order and any merging of its samples.
//!
//! A bin is a floating-point number cut short. Let `2^k` be the least power of two above every magnitude seen.
//! Each side of zero has [`SIDE`] bins: the seven octaves below `2^k` are split into 512 bins each, and what lies
//! under `2^(k-7)` into 512 equal bins, just as a float format ends in its subnormals.
//!
//! ```text
//! 0        2^(k-7)   2^(k-6)   2^(k-5)        …        2^(k-1)         2^k
//! |── 512 ──|── 512 ──|─── 512 ───|──── … ────|────── 512 ──────|
//! ```
//!
//! So the resolution is 0.1 to 0.2 % of a value over two decades, then 2⁻¹⁶ of the largest: one outlier a hundred
//! times as large as the rest costs nothing.
//!
//! When a larger value arrives, `k` grows. An octave moves down one place unchanged, while the lowest octave and
//! the equal bins, which have the same width, are added in pairs. No bin is ever cut, hence a value that was
//! counted early sits exactly where it would if it were counted now: the result depends on the *set* of samples
//! alone. Counts are integers, so merging is exact, associative and commutative, and the thread count cannot show.
//!
//! Of a large tensor [`Histogram::sample`] counts blocks of neighbours that lie evenly apart, each for those that it
//! stands for, starting elsewhere in each turn; the extremes are those of all elements, and are counted in any case.
//! Counting everything would cost more than computing it, and say no more than the samples themselves do.
//!
//! Zeros, which every quantizer represents exactly, are counted apart. So are NaN, infinities and magnitudes from
//! [`HUGE`] up: the latter two are how exporters write attention masks, and are no part of a distribution.

mod count;
mod stored;

use self::count::{Apart, CHUNK, Counter};
use crate::ir::Extent;
use crate::kernels::finish;

pub use crate::ir::HUGE;
pub use stored::{MOST, Stored};

const FRACTION_BITS: u32 = 9;
const OCTAVE: usize = 1 << FRACTION_BITS;
const OCTAVES: usize = 7;
/// Bins on each side of zero.
pub const SIDE: usize = OCTAVE * (OCTAVES + 1);
/// Least `k`. It keeps every bin width a normal f32.
const LEAST_EXPONENT: i32 = -100;
/// Neighbours that are counted together when not all are.
const BLOCK: usize = 64;
const LANES: usize = finish::LANES;

/// Distribution of the f32 values of one tensor. See the module documentation for the bins.
///
/// Two histograms are equal if, and only if, no query can tell the samples behind them apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    /// `k`: every binned magnitude is below `2^k`, and none of the powers of two below `2^k` would do.
    exponent: i32,
    /// Scratch for zeros (`LANES`), positive bins (`SIDE`), negative bins (`SIDE`; absent without negatives).
    bins: Vec<u64>,
    zeros: u64,
    nan: u64,
    infinite: u64,
    huge: u64,
    min: f32,
    max: f32,
}

/// A stretch of the number line and the samples in it. Of zero width for zeros, or if `lo` is an extreme value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell {
    /// Left end.
    pub lo: f64,
    /// Right end.
    pub hi: f64,
    /// How many samples lie between.
    pub count: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            exponent: LEAST_EXPONENT,
            bins: Vec::new(),
            zeros: 0,
            nan: 0,
            infinite: 0,
            huge: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
        }
    }
}

impl Histogram {
    /// A histogram of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts every value of `values`; the greatest of them that is part of the distribution.
    pub fn record(&mut self, values: &[f32]) -> Option<f32> {
        self.sample(values, finish::extent(values), 0, usize::MAX)
    }

    /// Counts values with these extremes: about `most` of them if there are more. Which, depends on `turn`. The greatest
    /// of all that is part of the distribution.
    pub fn sample(&mut self, values: &[f32], extent: Extent, turn: usize, most: usize) -> Option<f32> {
        let (min, max) = if extent.plain { (extent.min, extent.max) } else { self.set_apart(values) };
        if min > max {
            return None;
        }
        let step = values.len().div_ceil(most.max(1)).max(1);
        let scale = self.make_room(min, max);
        let mut counter = Counter::new(values.len() / step, step as u64);
        if step == 1 && extent.plain {
            values.chunks(CHUNK).for_each(|chunk| counter.count(chunk, scale, &mut self.bins));
        } else {
            let (mut some, mut count) = ([0.0; CHUNK], 0);
            for block in values.chunks(BLOCK).skip(turn % step).step_by(step) {
                if count + block.len() > CHUNK {
                    counter.count(&some[..count], scale, &mut self.bins);
                    count = 0;
                }
                if extent.plain {
                    some[count..][..block.len()].copy_from_slice(block);
                    count += block.len();
                } else {
                    for &x in block.iter().filter(|x| x.abs() < HUGE) {
                        some[count] = x;
                        count += 1;
                    }
                }
            }
            counter.count(&some[..count], scale, &mut self.bins);
        }
        if step > 1 {
            let mut ends = Counter::new(2, 1);
            ends.count(&[min, max], scale, &mut self.bins);
            ends.end(&mut self.bins);
        }
        counter.end(&mut self.bins);
        self.gather_zeros();
        Some(max)
    }

    /// Counts what is no part of the distribution; the extremes of the rest.
    fn set_apart(&mut self, values: &[f32]) -> (f32, f32) {
        let Apart { min, max, nan, infinite, huge } = count::apart(values);
        self.nan += nan;
        self.infinite += infinite;
        self.huge += huge;
        (min, max)
    }

    /// Counts the zeros of all lanes together.
    fn gather_zeros(&mut self) {
        for slot in self.bins.iter_mut().take(LANES) {
            self.zeros += std::mem::take(slot);
        }
    }

    /// Adds the samples of `other`.
    pub fn merge(&mut self, other: &Histogram) {
        self.zeros += other.zeros;
        self.nan += other.nan;
        self.infinite += other.infinite;
        self.huge += other.huge;
        self.widen(other.min, other.max, other.exponent, other.bins.len());
        let folds = self.exponent - other.exponent;
        if folds == 0 || other.is_zero() {
            add(&mut self.bins, &other.bins);
        } else {
            let mut bins = other.bins.clone();
            fold(&mut bins, folds);
            add(&mut self.bins, &bins);
        }
    }

    /// Samples in the distribution: all but NaN, infinities and masks.
    pub fn count(&self) -> u64 {
        self.zeros + self.bins.iter().sum::<u64>()
    }

    /// Samples equal to zero, of either sign.
    pub fn zeros(&self) -> u64 {
        self.zeros
    }

    /// Samples that are not a number.
    pub fn nan(&self) -> u64 {
        self.nan
    }

    /// Infinite samples, of either sign.
    pub fn infinite(&self) -> u64 {
        self.infinite
    }

    /// Finite samples with a magnitude of [`HUGE`] or more.
    pub fn huge(&self) -> u64 {
        self.huge
    }

    /// Exact least and greatest sample of the distribution; `None` if it has none.
    pub fn extremes(&self) -> Option<(f32, f32)> {
        (self.min <= self.max).then_some((self.min, self.max))
    }

    /// Occupied bins from the most negative to the most positive, zeros included, cut to the extremes.
    pub fn cells(&self) -> impl Iterator<Item = Cell> {
        let (positive, negative) =
            self.bins.get(LANES..).unwrap_or_default().split_at_checked(SIDE).unwrap_or_default();
        let (min, max) = (f64::from(self.min), f64::from(self.max));
        let cell = move |lo: f64, hi: f64, count| Cell { lo: lo.max(min), hi: hi.min(max), count };
        let occupied = |(_, count): &(usize, &u64)| **count > 0;
        let left = negative.iter().enumerate().rev().filter(occupied);
        let left = left.map(move |(i, &count)| cell(-self.edge(i + 1), -self.edge(i), count));
        let right = positive.iter().enumerate().filter(occupied);
        let right = right.map(move |(i, &count)| cell(self.edge(i), self.edge(i + 1), count));
        let zero = Cell { lo: 0.0, hi: 0.0, count: self.zeros };
        left.chain((self.zeros > 0).then_some(zero)).chain(right)
    }

    /// Lower end of the magnitudes in bin `i`; `2^k` for `SIDE`.
    fn edge(&self, i: usize) -> f64 {
        let (octave, rest) = (i / OCTAVE, i % OCTAVE);
        let finest = self.exponent - OCTAVES as i32 - FRACTION_BITS as i32;
        match octave {
            0 => libm::ldexp(rest as f64, finest),
            _ => libm::ldexp((OCTAVE + rest) as f64, finest + octave as i32 - 1),
        }
    }

    /// Makes room for values from `min` to `max`, and gives the reciprocal width of the equal bins.
    fn make_room(&mut self, min: f32, max: f32) -> f32 {
        let sides = if min < 0.0 { 2 } else { 1 };
        self.widen(min, max, exponent_above(min.abs().max(max.abs())), LANES + sides * SIDE);
        libm::ldexpf(1.0, OCTAVES as i32 + FRACTION_BITS as i32 - self.exponent)
    }

    /// Whether no sample differs from zero, so that any exponent describes the bins.
    fn is_zero(&self) -> bool {
        self.min >= 0.0 && self.max <= 0.0
    }

    /// Makes room for samples within `[min, max]` and below `2^exponent`.
    fn widen(&mut self, min: f32, max: f32, exponent: i32, bins: usize) {
        if exponent > self.exponent {
            if !self.is_zero() {
                fold(&mut self.bins, exponent - self.exponent);
            }
            self.exponent = exponent;
        }
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        self.bins.resize(self.bins.len().max(bins), 0);
    }
}

/// Least `k` with `magnitude < 2^k`, read from the exponent bits.
fn exponent_above(magnitude: f32) -> i32 {
    ((magnitude.to_bits() >> (f32::MANTISSA_DIGITS - 1)) as i32 - 126).max(LEAST_EXPONENT)
}

/// Raises the exponent that `bins` stand for by `times`.
fn fold(bins: &mut [u64], times: i32) {
    // After so many foldings all is in the first bin.
    let times = times.min(OCTAVES as i32 + FRACTION_BITS as i32);
    for side in bins.get_mut(LANES..).unwrap_or_default().chunks_exact_mut(SIDE) {
        for _ in 0..times {
            for i in 0..OCTAVE {
                side[i] = side[2 * i] + side[2 * i + 1];
            }
            side.copy_within(2 * OCTAVE.., OCTAVE);
            side[SIDE - OCTAVE..].fill(0);
        }
    }
}

fn add(bins: &mut [u64], other: &[u64]) {
    for (bin, more) in bins.iter_mut().zip(other) {
        *bin += more;
    }
}

#[cfg(test)]
mod tests;
