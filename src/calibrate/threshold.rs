//! Where to clip an activation, given its [`Histogram`].
//!
//! A uniform quantizer with few levels must choose: a wide range rounds coarsely, a narrow one cuts off the tails.
//! The calibrators answer differently.
//!
//! * [`Calibrator::MinMax`]: cut nothing.
//! * [`Calibrator::Percentile`]: cut the same share of the samples from either tail
//!   (Wu et al. 2020, <https://arxiv.org/abs/2004.09602>).
//! * [`Calibrator::Entropy`]: lose the least information, in the sense of Kullback and Leibler
//!   (Migacz, "8-bit inference with TensorRT", GTC 2017).
//! * [`Calibrator::Mse`]: least expected squared error.
//! * [`Calibrator::Octav`]: about the same by a fixed point (Sakr et al. 2022, <https://arxiv.org/abs/2206.06501>).
//! * [`Calibrator::Auto`]: of those before, the one whose expected squared error is least.
//!
//! Every range contains zero, which padding and ReLU need represented exactly. It stays within what was seen, but for
//! the mirror image that a symmetric grid needs and the part of a step that puts zero on the grid.

mod distortion;
mod entropy;
mod octav;
mod search;

use std::fmt;
use std::str::FromStr;

use self::distortion::Mass;
use super::histogram::Histogram;

/// How to choose a clipping range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Calibrator {
    /// The extremes.
    MinMax,
    /// Percentage of the samples below the upper end, and above the lower one: above 50, at most 100.
    Percentile(f64),
    /// Least loss of information.
    Entropy,
    /// Least expected squared error.
    Mse,
    /// Where the squared errors of clipping and of rounding balance.
    Octav,
    /// Whichever of the others has the least expected squared error.
    Auto,
    /// What the user has decided; as a method, the extremes.
    Given,
}

/// The percentile meant if none is given.
pub const PERCENTILE: f64 = 99.99;

/// What [`Calibrator::Auto`] tries between the extremes, which it prefers, and the least squared error, in this order.
const CONTENDERS: [Calibrator; 3] =
    [Calibrator::Percentile(99.999), Calibrator::Percentile(99.99), Calibrator::Entropy];

/// A contender must bring the error below this share of the preferred one's. Less is noise of the data at hand, and
/// clipping is a risk on data to come.
const WORTHWHILE: f64 = 0.99;

/// Values that a quantizer keeps; those outside saturate. `lo <= 0 <= hi`, both zero if nothing else was seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Least value kept.
    pub lo: f32,
    /// Greatest value kept.
    pub hi: f32,
}

/// What quantized values look like: evenly spaced, one of them at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    levels: u32,
    symmetric: bool,
}

/// A clipping range, with its reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Where to clip.
    pub range: Range,
    /// The method that chose it: never `Auto`.
    pub method: Calibrator,
    /// Mean squared error to expect of rounding and clipping.
    pub mse: f64,
}

impl Grid {
    /// Any range, as with a zero point: 256 levels for 8 bits. At least 2.
    pub fn asymmetric(levels: u32) -> Self {
        Self { levels: levels.max(2), symmetric: false }
    }

    /// `[-T, T]`, with zero in the middle: 255 levels for 8 bits (an even number loses one). At least 3.
    pub fn symmetric(levels: u32) -> Self {
        Self { levels: (levels.max(3) - 1) | 1, symmetric: true }
    }

    /// Number of values on the grid.
    pub fn levels(self) -> u32 {
        self.levels
    }

    /// The least range this grid can have around `[lo, hi]`.
    fn around(self, lo: f64, hi: f64) -> (f64, f64) {
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        if self.symmetric { (-hi.max(-lo), hi.max(-lo)) } else { (lo, hi) }
    }
}

impl Calibrator {
    /// Picks the range for a tensor distributed as `histogram`. Takes a few milliseconds at most.
    pub fn choose(self, histogram: &Histogram, grid: Grid) -> Choice {
        let mass = Mass::of(histogram);
        match self {
            Self::Auto => {
                let least = Self::Mse.choose_one(&mass, grid);
                let mut best = Self::MinMax.choose_one(&mass, grid);
                for method in CONTENDERS {
                    // Less than the least error there is not to be had.
                    if least.mse >= best.mse * WORTHWHILE {
                        return best;
                    }
                    let next = method.choose_one(&mass, grid);
                    best = if next.mse < best.mse * WORTHWHILE { next } else { best };
                }
                if least.mse < best.mse * WORTHWHILE { least } else { best }
            }
            method => method.choose_one(&mass, grid),
        }
    }

    fn choose_one(self, mass: &Mass, grid: Grid) -> Choice {
        let (min, max) = mass.extremes();
        let (lo, hi) = match self {
            Self::Percentile(p) => (mass.quantile(1.0 - p / 100.0), mass.quantile(p / 100.0)),
            Self::Entropy => {
                let threshold = entropy::threshold(mass, grid);
                (min.max(-threshold), max.min(threshold))
            }
            Self::Mse => search::least_error(mass, grid),
            Self::Octav => octav::range(mass, grid),
            Self::MinMax | Self::Auto | Self::Given => (min, max),
        };
        let (lo, hi) = grid.around(lo, hi);
        let range = Range { lo: lo as f32, hi: hi as f32 };
        Choice { range, method: self, mse: mass.error(lo, hi, grid.levels) }
    }
}

/// Mean squared error to expect if a tensor distributed as `histogram` is quantized to `levels` values over
/// `[lo, hi]`, zero among them. Samples are taken to be spread evenly inside their bin.
pub fn expected_error(histogram: &Histogram, lo: f32, hi: f32, levels: u32) -> f64 {
    let (lo, hi) = (f64::from(lo.min(0.0)), f64::from(hi.max(0.0)));
    Mass::of(histogram).error(lo, hi, levels.max(2))
}

/// Ratio of the mean square of the tensor to the mean squared error `mse`, in decibels; infinite for no error.
pub fn sqnr_db(histogram: &Histogram, mse: f64) -> f64 {
    match mse > 0.0 {
        true => 10.0 * libm::log10(Mass::of(histogram).mean_square() / mse),
        false => f64::INFINITY,
    }
}

impl fmt::Display for Calibrator {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::MinMax => f.write_str("minmax"),
            Self::Percentile(p) => write!(f, "percentile={p}"),
            Self::Entropy => f.write_str("entropy"),
            Self::Mse => f.write_str("mse"),
            Self::Octav => f.write_str("octav"),
            Self::Auto => f.write_str("auto"),
            Self::Given => f.write_str("given"),
        }
    }
}

/// A calibrator's name that is none.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is no calibration method: minmax, percentile[=P] with 50 < P <= 100, entropy, mse, octav or auto"
)]
pub struct UnknownCalibrator(String);

impl FromStr for Calibrator {
    type Err = UnknownCalibrator;

    /// Reads what `Display` writes, but for `given`; `percentile` alone means [`PERCENTILE`].
    fn from_str(name: &str) -> Result<Self, UnknownCalibrator> {
        let unknown = || UnknownCalibrator(name.to_owned());
        match name {
            "minmax" => Ok(Self::MinMax),
            "percentile" => Ok(Self::Percentile(PERCENTILE)),
            "entropy" => Ok(Self::Entropy),
            "mse" => Ok(Self::Mse),
            "octav" => Ok(Self::Octav),
            "auto" => Ok(Self::Auto),
            _ => {
                let share = name.strip_prefix("percentile=").and_then(|p| p.parse().ok());
                share.filter(|&p| p > 50.0 && p <= 100.0).map(Self::Percentile).ok_or_else(unknown)
            }
        }
    }
}

#[cfg(test)]
mod tests;
