//! How often two classifiers are right on the same labelled samples, and how sure their difference is.

use std::path::Path;

use serde::Serialize;

use crate::calibrate::read::one;
use crate::error::{Error, Fault};
use crate::fail;
use crate::ir::Array;

/// A label counts as found among the five best classes.
const BEST: usize = 5;

/// The normal quantile of a two-sided 95 % interval.
const Z: f64 = 1.959_963_984_540_054;

/// The accuracy of two models on the same labelled samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// The output that holds a score for each class.
    pub output: String,
    /// Number of labels.
    pub labels: usize,
    /// Share of labels that is the best class, in the first and in the second model.
    pub top1: [f64; 2],
    /// Share of labels among the five best classes.
    pub top5: [f64; 2],
    /// How much the second model is worse at top-1, in points; negative if it is better.
    pub drop: f64,
    /// 95 % interval of `drop`, in points, by Newcombe's score method for paired proportions (his method 10).
    pub interval: (f64, f64),
}

/// The five best classes of each row of scores, best first; of equal scores the first.
pub type Best = Vec<Vec<usize>>;

/// The best classes in each row of an output `[N, classes]`, with axes of extent 1 anywhere.
pub fn best(scores: &Array) -> Result<Best, Fault> {
    let [_, rest @ ..] = scores.shape() else { fail!("a scalar has no scores by class") };
    if !scores.dtype().is_float() || rest.iter().filter(|&&d| d > 1).count() != 1 {
        fail!("{} is not one score for each class", scores.tensor_type());
    }
    let scores = scores.to_f32()?;
    let values = scores.as_slice().unwrap_or_default();
    let row = |row: &[f32]| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&i, &j| row[j].total_cmp(&row[i]).then(i.cmp(&j)));
        order.truncate(BEST);
        order
    };
    Ok(values.chunks_exact(rest.iter().product()).map(row).collect())
}

/// Reads labels: class numbers in a `.npy` file or in text, one a line.
pub fn read_labels(path: &Path) -> Result<Vec<usize>, Error> {
    let labels = || -> Result<Vec<usize>, Fault> {
        if path.extension().is_some_and(|e| e == "npy") {
            let array = one::read_file(path)?;
            if array.dtype().is_float() {
                fail!("labels are {}, not whole numbers", array.dtype());
            }
            return array.to_f32()?.iter().map(|&v| class(f64::from(v))).collect();
        }
        let text = std::fs::read_to_string(path).map_err(|e| Fault::new(format!("cannot be read: {e}")))?;
        let number = |(line, text): (usize, &str)| {
            text.trim().parse().map_err(|_| format!("line {}: `{text}` is no class number", line + 1).into())
        };
        text.lines().enumerate().filter(|(_, t)| !t.trim().is_empty()).map(number).collect()
    };
    labels().map_err(|f| f.at(path.display()))
}

fn class(value: f64) -> Result<usize, Fault> {
    if !(0.0..=1e6).contains(&value) {
        fail!("{value} is no class number");
    }
    Ok(value as usize)
}

impl Accuracy {
    /// Counts hits: `best` holds the best classes of each row in both models.
    pub fn of(output: &str, best: [&Best; 2], labels: &[usize]) -> Result<Self, Fault> {
        let rows = best.map(Vec::len);
        if rows != [labels.len(); 2] || labels.is_empty() {
            fail!("there are {} labels for {} samples", labels.len(), rows[0]);
        }
        let hits = |model: usize, k: usize| {
            let hit = move |(best, label): (&Vec<usize>, &usize)| best.iter().take(k).any(|c| c == label);
            best[model].iter().zip(labels).map(hit)
        };
        let share = |model, k| hits(model, k).filter(|&hit| hit).count() as f64 / labels.len() as f64;
        let mut pairs = [[0usize; 2]; 2];
        hits(0, 1).zip(hits(1, 1)).for_each(|(a, b)| pairs[usize::from(!a)][usize::from(!b)] += 1);
        let (low, high) = newcombe(pairs.map(|row| row.map(|n| n as f64)));
        let top1 = [share(0, 1), share(1, 1)];
        Ok(Self {
            output: output.into(),
            labels: labels.len(),
            top1,
            top5: [share(0, BEST), share(1, BEST)],
            drop: 100.0 * (top1[0] - top1[1]),
            interval: (100.0 * low, 100.0 * high),
        })
    }
}

/// Wilson's 95 % score interval of a proportion.
pub fn wilson(hits: f64, n: f64) -> (f64, f64) {
    let (p, z2) = (hits / n, Z * Z);
    let centre = p + z2 / (2.0 * n);
    let spread = Z * libm::sqrt(p * (1.0 - p) / n + z2 / (4.0 * n * n));
    ((centre - spread) / (1.0 + z2 / n), (centre + spread) / (1.0 + z2 / n))
}

/// The interval of the difference of two paired proportions, from the table of both right, only the first, only the
/// second, neither: R. G. Newcombe, Statistics in Medicine 17 (1998) 2635–2650, method 10.
fn newcombe([[both, first], [second, neither]]: [[f64; 2]; 2]) -> (f64, f64) {
    let n = both + first + second + neither;
    let (p, q) = ((both + first) / n, (both + second) / n);
    let ((l1, u1), (l2, u2)) = (wilson(both + first, n), wilson(both + second, n));
    let margins = (both + first) * (second + neither) * (both + second) * (first + neither);
    let cross = both * neither - first * second;
    let corrected = if cross > 0.0 { (cross - n / 2.0).max(0.0) } else { cross };
    let phi = if margins > 0.0 { corrected / libm::sqrt(margins) } else { 0.0 };
    let distance = |x: f64, y: f64| libm::sqrt((x * x - 2.0 * phi * x * y + y * y).max(0.0));
    (p - q - distance(p - l1, u2 - q), p - q + distance(u1 - p, q - l2))
}

#[cfg(test)]
mod tests;
