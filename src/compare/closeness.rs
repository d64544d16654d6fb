//! How close one model's outputs are to another's: signal-to-noise ratio, cosine, largest error, agreement of the argmax.

use serde::Serialize;

use super::Outputs;
use crate::ir::{Array, DType, Nd};

/// One output of a model against the same output of another.
#[derive(Debug, Clone, Serialize)]
pub struct Closeness {
    /// Name of the output.
    pub output: String,
    /// `10·log10(Σx² / Σ(x-y)²)` over all samples; equal outputs give `None`.
    pub sqnr_db: Option<f64>,
    /// Cosine of the angle between all samples' values of both, as vectors; `None` if one of them is all zeros.
    pub cosine: Option<f64>,
    /// The largest `|x-y|`.
    pub max_error: f64,
    /// Share of the rows whose largest element is the same, where the last axis has more than one.
    pub argmax_agreement: f64,
    /// Rows whose largest element was compared.
    #[serde(skip)]
    pub rows: u64,
    /// Of those, the rows where it is the same.
    #[serde(skip)]
    pub agreeing: u64,
    /// Samples in which the output has another shape or type, or is not finite where the first is.
    pub bad_samples: usize,
    /// Are its elements floating-point numbers?
    pub float: bool,
}

/// What the samples add up to.
#[derive(Default, Clone, Copy, Debug)]
pub struct Sums {
    signal: f64,
    other: f64,
    product: f64,
    noise: f64,
    max_error: f64,
    rows: u64,
    agreeing: u64,
    bad: usize,
    float: bool,
}

/// What one sample says about each output; `None` for outputs that are no numbers.
pub fn of_sample((wanted, found): Outputs) -> Vec<Option<Sums>> {
    wanted.iter().zip(found).map(|(a, b)| Sums::of(a.as_ref()?, b.as_ref())).collect()
}

/// The closeness of each output over all samples, in the order of `names`; outputs that are no numbers are left out.
pub fn total(names: &[String], samples: &[Vec<Option<Sums>>]) -> Vec<Closeness> {
    let of_output = |(index, name): (usize, &String)| {
        let sums = samples.iter().filter_map(|row| *row.get(index)?).reduce(Sums::plus)?;
        Some(Closeness {
            output: name.clone(),
            sqnr_db: sums.sqnr_db(),
            cosine: sums.cosine(),
            max_error: sums.max_error,
            argmax_agreement: if sums.rows == 0 { 1.0 } else { sums.agreeing as f64 / sums.rows as f64 },
            rows: sums.rows,
            agreeing: sums.agreeing,
            bad_samples: sums.bad,
            float: sums.float,
        })
    };
    names.iter().enumerate().filter_map(of_output).collect()
}

impl Sums {
    /// One array against another; `None` if the first holds no numbers.
    pub fn of(wanted: &Array, found: Option<&Array>) -> Option<Self> {
        let float = wanted.dtype().is_float();
        let a = numbers(wanted)?;
        let bad = Self { bad: 1, float, ..Self::default() };
        let Some(found) = found.filter(|f| f.dtype().is_float() == float && f.shape() == wanted.shape())
        else {
            return Some(bad);
        };
        let (Some(a), Some(b)) = (a.as_slice(), numbers(found)) else { return Some(bad) };
        let b = b.as_slice().unwrap_or_default();
        let mut sums = Self { float, ..Self::default() };
        for (&x, &y) in a.iter().zip(b) {
            if x.is_finite() && !y.is_finite() {
                sums.bad = 1;
            } else if x.is_finite() {
                sums.signal += x * x;
                sums.other += y * y;
                sums.product += x * y;
                sums.noise += (x - y) * (x - y);
                sums.max_error = sums.max_error.max((x - y).abs());
            }
        }
        let width = wanted.shape().last().copied().unwrap_or(1);
        if width > 1 {
            for (x, y) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
                sums.rows += 1;
                sums.agreeing += u64::from(argmax(x) == argmax(y));
            }
        }
        Some(sums)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            signal: self.signal + more.signal,
            other: self.other + more.other,
            product: self.product + more.product,
            noise: self.noise + more.noise,
            max_error: self.max_error.max(more.max_error),
            rows: self.rows + more.rows,
            agreeing: self.agreeing + more.agreeing,
            bad: self.bad + more.bad,
            float: self.float || more.float,
        }
    }

    /// Signal-to-noise ratio in dB; `None` if there is no noise.
    pub fn sqnr_db(&self) -> Option<f64> {
        (self.noise > 0.0).then(|| 10.0 * libm::log10(self.signal.max(f64::MIN_POSITIVE) / self.noise))
    }

    /// Could nothing be compared in some sample?
    pub fn is_bad(&self) -> bool {
        self.bad > 0
    }

    fn cosine(&self) -> Option<f64> {
        let length = libm::sqrt(self.signal) * libm::sqrt(self.other);
        (length > 0.0).then(|| (self.product / length).clamp(-1.0, 1.0))
    }
}

/// The elements as `f64`; `None` for strings.
fn numbers(array: &Array) -> Option<Nd<f64>> {
    Some(match array {
        Array::F64(a) => a.clone(),
        Array::I64(a) => a.mapv(|v| v as f64).into_shared(),
        Array::U64(a) => a.mapv(|v| v as f64).into_shared(),
        Array::I32(a) => a.mapv(f64::from).into_shared(),
        Array::U32(a) => a.mapv(f64::from).into_shared(),
        Array::Bool(a) => a.mapv(|v| f64::from(u8::from(v))).into_shared(),
        other if other.dtype() != DType::Str => other.to_f32().ok()?.mapv(f64::from).into_shared(),
        _ => return None,
    })
}

fn argmax(values: &[f64]) -> usize {
    let better = |best: (usize, f64), (i, &v): (usize, &f64)| if v > best.1 { (i, v) } else { best };
    values.iter().enumerate().fold((0, f64::NEG_INFINITY), better).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(a: &[f32], b: &[f32]) -> Closeness {
        let array = |v: &[f32]| Some(Array::new(&[v.len() / 2, 2], v.to_vec()).unwrap());
        let row = of_sample((&[array(a)], &[array(b)]));
        total(&["y".into()], &[row]).remove(0)
    }

    #[test]
    fn measures_by_hand() {
        let c = of(&[3.0, 4.0, 0.0, 1.0], &[3.0, 4.5, 1.0, 0.5]);
        // Signal 26, noise 0.25 + 1 + 0.25.
        assert!((c.sqnr_db.unwrap() - 12.388820888).abs() < 1e-8, "{:?}", c.sqnr_db);
        assert!((c.max_error, c.argmax_agreement, c.bad_samples) == (1.0, 0.5, 0));
        // Dot product 27.5, lengths √26 and √30.5.
        assert!((c.cosine.unwrap() - 27.5 / (26.0f64 * 30.5).sqrt()).abs() < 1e-12);
        let same = of(&[1.0, 2.0], &[1.0, 2.0]);
        assert!(same.sqnr_db.is_none() && same.cosine.unwrap() > 1.0 - 1e-12);
    }

    #[test]
    fn what_cannot_be_compared_is_bad() {
        assert_eq!(of(&[1.0, 2.0], &[f32::NAN, 2.0]).bad_samples, 1);
        assert_eq!(of(&[f32::INFINITY, 2.0], &[7.0, 2.0]).bad_samples, 0);
        let row = of_sample((&[Some(Array::vector(vec![1f32]))], &[Some(Array::vector(vec![1f32, 2.0]))]));
        assert_eq!(total(&["y".into()], &[row])[0].bad_samples, 1);
        let row = of_sample((&[Some(Array::vector(vec![1f32]))], &[Some(Array::vector(vec![1i64]))]));
        assert_eq!(total(&["y".into()], &[row])[0].bad_samples, 1);
    }
}
