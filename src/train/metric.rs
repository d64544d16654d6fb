//! What an epoch is told by: right answers, or noise where there are no classes.

use super::loss::is_classifier;
use crate::ir::Array;

/// Right answers and all answers of one sample, or noise and signal if it has no scores.
pub fn metric(found: &[Option<&Array>], wanted: &[Option<Array>], labels: Option<&[usize]>) -> [f64; 2] {
    for (found, wanted) in found.iter().zip(wanted) {
        let (Some(found @ Array::F32(a)), Some(Array::F32(b))) = (found, wanted) else { continue };
        if !is_classifier(found) || a.shape() != b.shape() {
            continue;
        }
        let classes: usize = a.shape().iter().skip(1).product();
        let best = |a: &crate::ir::Nd<f32>| -> Vec<usize> {
            let row =
                |row: &[f32]| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            a.as_slice().unwrap_or_default().chunks_exact(classes.max(1)).map(row).collect()
        };
        let (own, theirs) = (best(a), best(b));
        let truth = labels.unwrap_or(&theirs);
        let right = own.iter().zip(truth).filter(|(a, b)| a == b).count();
        return [right as f64, own.len() as f64];
    }
    let mut sums = [0.0; 2];
    for (found, wanted) in found.iter().zip(wanted) {
        if let (Some(Array::F32(a)), Some(Array::F32(b))) = (found, wanted) {
            sums[0] += a.iter().zip(b).map(|(&a, &b)| f64::from(a - b).powi(2)).sum::<f64>();
            sums[1] += b.iter().map(|&b| f64::from(b).powi(2)).sum::<f64>();
        }
    }
    sums
}
