//! How close one graph's outputs are to another's: signal-to-noise ratios over the same samples.

use rayon::prelude::*;
use serde::Serialize;

use super::read::Samples;
use super::run::Progress;
use crate::error::Error;
use crate::interpret::Program;
use crate::ir::Array;

/// One output of a model against the same output of another.
#[derive(Debug, Clone, Serialize)]
pub struct Closeness {
    /// Name of the output.
    pub output: String,
    /// `10·log10(Σx² / Σ(x-y)²)` over all samples; equal outputs give `None`.
    pub sqnr_db: Option<f64>,
    /// Share of the rows whose largest element is the same, where the last axis has more than one.
    pub argmax_agreement: f64,
    /// Samples in which the output has another shape, or is not finite where the first is.
    pub bad_samples: usize,
}

#[derive(Default, Clone)]
struct Sums {
    signal: f64,
    noise: f64,
    rows: u64,
    agreeing: u64,
    bad: usize,
}

/// Runs both programs on the samples with these indices and compares the float outputs.
pub fn compare(
    reference: &Program,
    other: &Program,
    names: &[String],
    samples: &Samples,
    indices: &[usize],
    progress: Progress,
) -> Result<Vec<Closeness>, Error> {
    let rows: Vec<Vec<Option<Sums>>> = indices
        .par_iter()
        .map(|&index| {
            let inputs = samples.load(index)?;
            let (wanted, _) = reference.run_as_far_as_possible(&inputs, &mut |_, _| {})?;
            let (found, _) = other.run_as_far_as_possible(&inputs, &mut |_, _| {})?;
            progress();
            Ok(wanted.iter().zip(&found).map(|(a, b)| difference(a.as_ref()?, b.as_ref())).collect())
        })
        .collect::<Result<_, Error>>()?;
    let mut totals: Vec<Option<Sums>> = vec![None; names.len()];
    for row in rows {
        for (total, sums) in totals.iter_mut().zip(row) {
            if let Some(sums) = sums {
                let total = total.get_or_insert_with(Sums::default);
                total.signal += sums.signal;
                total.noise += sums.noise;
                total.rows += sums.rows;
                total.agreeing += sums.agreeing;
                total.bad += sums.bad;
            }
        }
    }
    let closeness = |(name, total): (&String, Option<Sums>)| {
        let t = total?;
        Some(Closeness {
            output: name.clone(),
            sqnr_db: (t.noise > 0.0).then(|| 10.0 * libm::log10(t.signal.max(f64::MIN_POSITIVE) / t.noise)),
            argmax_agreement: if t.rows == 0 { 1.0 } else { t.agreeing as f64 / t.rows as f64 },
            bad_samples: t.bad,
        })
    };
    Ok(names.iter().zip(totals).filter_map(closeness).collect())
}

/// `None` for outputs that are not `f32`.
fn difference(wanted: &Array, found: Option<&Array>) -> Option<Sums> {
    let Array::F32(a) = wanted else { return None };
    let mut sums = Sums::default();
    let (Some(a_values), Some(Array::F32(b))) = (a.as_slice(), found) else {
        sums.bad = 1;
        return Some(sums);
    };
    let b_values = b.as_slice().unwrap_or_default();
    if a.shape() != b.shape() {
        sums.bad = 1;
        return Some(sums);
    }
    for (&x, &y) in a_values.iter().zip(b_values) {
        if x.is_finite() && !y.is_finite() {
            sums.bad = 1;
        } else if x.is_finite() {
            let (x, y) = (f64::from(x), f64::from(y));
            sums.signal += x * x;
            sums.noise += (x - y) * (x - y);
        }
    }
    let width = a.shape().last().copied().unwrap_or(1);
    if width > 1 {
        for (x, y) in a_values.chunks_exact(width).zip(b_values.chunks_exact(width)) {
            sums.rows += 1;
            sums.agreeing += u64::from(argmax(x) == argmax(y));
        }
    }
    Some(sums)
}

fn argmax(values: &[f32]) -> usize {
    let better = |best: usize, (i, v): (usize, &f32)| if *v > values[best] { i } else { best };
    values.iter().enumerate().fold(0, better)
}
