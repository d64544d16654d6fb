//! A histogram as text: its facts and the runs of bins that are not empty.

use serde::{Deserialize, Serialize};

use super::{HUGE, Histogram, LANES, LEAST_EXPONENT, SIDE, exponent_above};
use crate::error::Fault;

/// More samples than a table can have: many of them can be added up.
pub const MOST: u64 = 1 << 56;

/// What a [`Histogram`] is, for a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// Every magnitude is below 2 to this power.
    exponent: i32,
    /// Least and greatest sample; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    extremes: Option<(f32, f32)>,
    zeros: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    nan: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    infinite: u64,
    #[serde(skip_serializing_if = "is_zero", default)]
    huge: u64,
    /// Runs of bins: the place of the first, then the counts. Places count magnitudes upwards; those of negative samples
    /// come behind those of positive ones.
    bins: Vec<Vec<u64>>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl From<&Histogram> for Stored {
    fn from(h: &Histogram) -> Self {
        let mut bins: Vec<Vec<u64>> = Vec::new();
        let mut last = usize::MAX - 1;
        for (place, &count) in h.bins.iter().skip(LANES).enumerate().filter(|(_, c)| **c > 0) {
            match bins.last_mut() {
                Some(run) if place == last + 1 => run.push(count),
                _ => bins.push(vec![place as u64, count]),
            }
            last = place;
        }
        Self {
            exponent: h.exponent,
            extremes: h.extremes(),
            zeros: h.zeros,
            nan: h.nan,
            infinite: h.infinite,
            huge: h.huge,
            bins,
        }
    }
}

impl TryFrom<&Stored> for Histogram {
    type Error = Fault;

    fn try_from(s: &Stored) -> Result<Self, Fault> {
        let (min, max) = s.extremes.unwrap_or((f32::INFINITY, f32::NEG_INFINITY));
        let magnitude = min.abs().max(max.abs());
        let sound = match s.extremes {
            Some(_) => {
                min <= max && magnitude < HUGE && s.exponent == exponent_above(magnitude).max(LEAST_EXPONENT)
            }
            None => s.bins.is_empty() && s.zeros == 0 && s.exponent == LEAST_EXPONENT,
        };
        if !sound {
            crate::fail!("extremes and exponent do not fit each other");
        }
        let sides = if min < 0.0 { 2 } else { 1 };
        let len = if s.extremes.is_some() { LANES + sides * SIDE } else { 0 };
        let mut bins = vec![0u64; len];
        for run in &s.bins {
            let Some((&start, counts)) = run.split_first() else { crate::fail!("a run of bins is empty") };
            let start = usize::try_from(start).ok().and_then(|s| s.checked_add(LANES));
            let slots = start.and_then(|s| bins.get_mut(s..s.checked_add(counts.len())?));
            let Some(slots) = slots else { crate::fail!("a run of bins lies outside") };
            slots.copy_from_slice(counts);
        }
        let apart = [s.zeros, s.nan, s.infinite, s.huge];
        let total = apart.iter().chain(&bins).try_fold(0u64, |sum, &c| sum.checked_add(c));
        if total.is_none_or(|t| t > MOST) {
            crate::fail!("counts are too large");
        }
        let found = Self {
            exponent: s.exponent,
            bins,
            zeros: s.zeros,
            nan: s.nan,
            infinite: s.infinite,
            huge: s.huge,
            min,
            max,
        };
        // Nothing may be counted beyond the extremes.
        let zeros = s.zeros == 0 || (min <= 0.0 && max >= 0.0);
        if !zeros || found.cells().any(|cell| cell.lo > cell.hi) {
            crate::fail!("there are counts beyond the extremes");
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back() {
        let cases: [&[f32]; 5] = [
            &[],
            &[0.0],
            &[1.5, -0.25, 300.0, 0.0],
            &[3.0, 3.0, 3.001],
            &[f32::NAN, f32::INFINITY, -3.4e38, 1e-20],
        ];
        for values in cases {
            let mut histogram = Histogram::new();
            histogram.record(values);
            let text = serde_json::to_string(&Stored::from(&histogram)).unwrap();
            let stored: Stored = serde_json::from_str(&text).unwrap();
            let found = Histogram::try_from(&stored).unwrap();
            assert_eq!(Stored::from(&found), Stored::from(&histogram), "{text}");
            assert_eq!(found.cells().collect::<Vec<_>>(), histogram.cells().collect::<Vec<_>>(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            r#"{"exponent":3,"extremes":[0.0,1.0],"zeros":0,"bins":[]}"#,
            r#"{"exponent":1,"extremes":[1.0,0.5],"zeros":0,"bins":[]}"#,
            r#"{"exponent":1,"extremes":[0.0,1.0],"zeros":0,"bins":[[4096,1]]}"#,
            r#"{"exponent":1,"extremes":[0.0,1.0],"zeros":0,"bins":[[18446744073709551615,1]]}"#,
            r#"{"exponent":1,"extremes":[0.0,1.0],"zeros":18446744073709551615,"bins":[[0,1]]}"#,
            r#"{"exponent":1,"extremes":[0.0,1.0],"zeros":72057594037927937,"bins":[]}"#,
            r#"{"exponent":1,"extremes":[0.0,1.0],"zeros":0,"bins":[[4095,1]]}"#,
            r#"{"exponent":1,"extremes":[0.5,1.0],"zeros":1,"bins":[]}"#,
            r#"{"exponent":-100,"zeros":1,"bins":[]}"#,
        ] {
            let stored: Stored = serde_json::from_str(text).unwrap();
            assert!(Histogram::try_from(&stored).is_err(), "{text}");
        }
    }
}
