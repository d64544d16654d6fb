//! Intervals of real numbers: what limits the elements of a value, and what was seen of them.

/// Magnitudes from here up are masks, not data.
pub const HUGE: f32 = 1e30;

/// An interval to which elements are limited; what is not a number stays so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Least value.
    pub low: f32,
    /// Greatest value.
    pub high: f32,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self { low: f32::NEG_INFINITY, high: f32::INFINITY };

    /// The nearest value within the limits.
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        let x = if x < self.low { self.low } else { x };
        if x > self.high { self.high } else { x }
    }
}

/// Extremes of some values, and whether all of them are numbers below [`HUGE`] in magnitude. If they are not, the
/// extremes may be those of some of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Extent {
    /// Least value; infinite if there is none.
    pub min: f32,
    /// Greatest value; minus infinity if there is none.
    pub max: f32,
    /// Are all of them part of a distribution?
    pub plain: bool,
}
