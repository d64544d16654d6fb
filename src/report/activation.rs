//! What became of one activation.

use serde::Serialize;

use crate::calibrate::histogram::Histogram;
use crate::calibrate::observer::Observer;
use crate::calibrate::threshold::{expected_error, sqnr_db};
use crate::ir::{DType, QuantParams};
use crate::quantize::plan;

/// Bars of a histogram.
const PARTS: usize = 50;

/// A quantized activation.
#[derive(Debug, Clone, Serialize)]
pub struct Activation {
    /// Name of the value.
    pub value: String,
    /// Type of the integers.
    pub dtype: String,
    /// Step between quantized values.
    pub scale: f32,
    /// The integer that stands for 0.
    pub zero_point: i32,
    /// Least and greatest value seen.
    pub seen: (f32, f32),
    /// The method that chose the range.
    pub method: String,
    /// Signal-to-noise ratio of quantizing this value alone, in dB.
    pub sqnr_db: f64,
    /// The value whose parameters it shares, possibly itself.
    pub group: String,
    /// Least and greatest value that the integers stand for.
    #[serde(skip)]
    pub range: (f64, f64),
    /// The share of elements beyond that.
    #[serde(skip)]
    pub clipped: f64,
    /// The share of elements whose integer is the least or the greatest and does not stand for 0.
    #[serde(skip)]
    pub saturated: f64,
    /// How many elements lie in each of so many equal parts from the least value seen to the greatest.
    #[serde(skip)]
    pub histogram: Vec<u64>,
}

impl Activation {
    /// The facts of an activation of a plan: its name and that of its group, the parameters that it is written with, and
    /// what was seen of it.
    pub fn new(
        (value, group): (&str, &str),
        a: &plan::Activation,
        params: QuantParams,
        seen: Option<&Observer>,
    ) -> Self {
        let (low, high) = params.range();
        let range = (f64::from(low), f64::from(high));
        let mut found = Self {
            value: value.into(),
            dtype: params.dtype.to_string(),
            scale: params.scale,
            zero_point: params.zero_point,
            seen: a.seen,
            method: a.method(params),
            sqnr_db: a.sqnr.min(999.0),
            group: group.into(),
            range,
            clipped: 0.0,
            saturated: 0.0,
            histogram: Vec::new(),
        };
        if let Some(observer) = seen {
            if matches!(params.dtype, DType::U16 | DType::I16) {
                let error = expected_error(&observer.histogram, low, high, 1 << 16);
                found.sqnr_db = sqnr_db(&observer.histogram, error).min(999.0);
            }
            found.count(&observer.histogram);
        }
        found
    }

    /// The histogram in equal parts, and the shares of elements beyond the range and at its ends.
    fn count(&mut self, histogram: &Histogram) {
        let (low, width) = (f64::from(self.seen.0), f64::from(self.seen.1) - f64::from(self.seen.0));
        let (half, (least, greatest)) = (f64::from(self.scale) / 2.0, self.range);
        let (mut beyond, mut ends, mut all) = (0u64, 0u64, 0u64);
        self.histogram = vec![0; PARTS];
        for cell in histogram.cells().filter(|cell| cell.count > 0) {
            let middle = (cell.lo + cell.hi) / 2.0;
            let part = ((middle - low) / width.max(f64::MIN_POSITIVE) * PARTS as f64) as usize;
            self.histogram[part.min(PARTS - 1)] += cell.count;
            all += cell.count;
            if middle < least - half || middle > greatest + half {
                beyond += cell.count;
            }
            if least < 0.0 && middle < least + half || greatest > 0.0 && middle > greatest - half {
                ends += cell.count;
            }
        }
        let share = |count: u64| count as f64 / all.max(1) as f64;
        (self.clipped, self.saturated) = (share(beyond), share(ends));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Graph, Value};

    #[test]
    fn what_lies_beyond_and_at_the_ends_is_counted() {
        let mut observer = Observer::default();
        // 0 stands for itself, 255 for 2.55: one element of ten is beyond that, one rounds to it.
        observer.observe(&[0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 2.549, 4.0], None, 0, usize::MAX);
        let plan = plan::Activation {
            params: QuantParams { scale: 0.01, zero_point: 0, dtype: DType::U8 },
            wide: None,
            why: "minmax".into(),
            sqnr: 40.0,
            seen: (0.0, 4.0),
            group: Graph::default().add_fresh("x", Value::default()),
        };
        let found = Activation::new(("x", "x"), &plan, plan.params, Some(&observer));
        assert_eq!((found.clipped, found.saturated, found.dtype.as_str()), (0.1, 0.2, "uint8"));
        assert_eq!(found.histogram.iter().sum::<u64>(), 10);
    }
}
