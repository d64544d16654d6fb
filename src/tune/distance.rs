//! How far the outputs have moved, as one number that does not let a loud part drown a quiet one.
//!
//! A detector that returns boxes in pixels and scores below one in the same tensor would be judged by its boxes alone if
//! noise over signal were taken of the tensor. Such outputs are made by Concat: each part that went into it is judged by
//! itself, and the mean of them all is the verdict.
//!
//! Probabilities that Softmax makes are judged by what it read. Their noise is that of the few rows where two classes are
//! about as likely, of which some dozen samples hold too few to tell one way to quantize from another; the noise of
//! the logits, which decides such rows, is much the same in all of them.

use std::collections::BTreeSet;

use crate::ir::{Array, Graph, ValueId};

/// Operators that pass on what they read, whole or in part, in another order or shape.
const PASSING: &[&str] = &[
    "Concat",
    "Expand",
    "Flatten",
    "Identity",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
];

/// The values by which the outputs are judged: each output, or what was joined to make it, or the logits behind it.
pub fn judged(graph: &Graph) -> Vec<ValueId> {
    let mut parts = BTreeSet::new();
    for &output in &graph.outputs {
        let joined = joined(graph, output);
        if joined.is_empty() {
            parts.insert(output)
        } else {
            joined.into_iter().all(|v| parts.insert(v))
        };
    }
    let parts: BTreeSet<ValueId> =
        parts.into_iter().map(|part| logits(graph, part).unwrap_or(part)).collect();
    parts.into_iter().collect()
}

/// What Softmax read to make the value, perhaps in another shape.
fn logits(graph: &Graph, mut value: ValueId) -> Option<ValueId> {
    loop {
        let (producer, _) = graph.producer(value)?;
        let node = graph.node(producer);
        let read = graph.input(producer, 0)?;
        if node.is("Softmax") {
            // What is given cannot become worse.
            return Some(read).filter(|&read| graph.producer(read).is_some());
        }
        let passes = PASSING.iter().any(|op| node.is(op)) && !node.is("Concat");
        value = Some(read).filter(|_| passes)?;
    }
}

/// What was joined to make the value; nothing if no Concat stands between it and the arithmetic.
fn joined(graph: &Graph, value: ValueId) -> BTreeSet<ValueId> {
    let (mut open, mut seen) = (vec![(value, false)], BTreeSet::new());
    let mut parts = BTreeSet::new();
    while let Some((value, below)) = open.pop() {
        if !seen.insert(value) {
            continue;
        }
        let passing = graph.producer(value).map(|p| p.0).filter(|&p| {
            let node = graph.node(p);
            PASSING.iter().any(|op| node.is(op))
        });
        match passing {
            Some(node) => {
                let join = graph.node(node).is("Concat");
                let count = if join { graph.node(node).inputs } else { 1 };
                let inputs = graph.inputs_of(node).into_iter().take(count).flatten();
                open.extend(inputs.filter(|&v| graph.constant(v).is_none()).map(|v| (v, below || join)));
            }
            None if below => drop(parts.insert(value)),
            None => {}
        }
    }
    parts
}

/// Power of signal and noise of one value over several samples.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distance {
    noise: f64,
    signal: f64,
}

impl Distance {
    /// Takes in one more tensor beside what it should be. Anything that cannot be compared counts as all noise; what is
    /// infinite or not a number in the reference is no signal and cannot be missed.
    pub fn add(&mut self, reference: &Array, found: Option<&Array>) {
        let Array::F32(wanted) = reference else { return };
        let found = match found {
            Some(Array::F32(f)) if f.shape() == wanted.shape() => f.as_slice(),
            _ => None,
        };
        let square = |x: f32| f64::from(x) * f64::from(x);
        for (i, &x) in wanted.as_slice().unwrap_or_default().iter().enumerate().filter(|(_, x)| x.is_finite())
        {
            let missed = found.map_or(x, |f| x - f[i]);
            self.noise += square(if missed.is_finite() { missed } else { f32::MAX });
            self.signal += square(x);
        }
    }

    /// Takes in all that `other` did.
    pub fn merge(&mut self, other: &Self) {
        self.noise += other.noise;
        self.signal += other.signal;
    }

    /// Noise over signal; `None` if there was no signal.
    pub fn ratio(&self) -> Option<f64> {
        (self.signal > 0.0).then(|| self.noise / self.signal)
    }
}

/// The mean of several values' noise over signal.
pub fn mean_ratio(parts: &[Distance]) -> f64 {
    let ratios: Vec<f64> = parts.iter().filter_map(Distance::ratio).collect();
    if ratios.is_empty() { 0.0 } else { ratios.iter().sum::<f64>() / ratios.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{import, text};

    #[test]
    fn a_joined_output_is_judged_by_its_parts() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,4,8] x, float[1,3,8] s, float[2] z) => (float[1,8,7] y, float[2] w) {
              boxes = Neg (x)
              scores = Sigmoid (s)
              both = Concat <axis = 1> (boxes, scores)
              y = Transpose <perm = [0, 2, 1]> (both)
              n = Neg (z)
              w = Identity (n)
            }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let names: Vec<&str> = judged(&graph).into_iter().map(|v| graph.name(v)).collect();
        assert_eq!(names.into_iter().collect::<BTreeSet<_>>(), BTreeSet::from(["boxes", "scores", "w"]));
    }

    #[test]
    fn probabilities_are_judged_by_their_logits() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2,4] x, float[2,4] s, int64[1] n) => (float[8] y, float[2,4] w, float[2,4] v) {
              z = Neg (x)
              p = Softmax <axis = 1> (z)
              y = Reshape (p, n)
              w = Sigmoid (s)
              v = Softmax <axis = 1> (s)
            }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let names: BTreeSet<&str> = judged(&graph).into_iter().map(|v| graph.name(v)).collect();
        assert_eq!(names, BTreeSet::from(["v", "w", "z"]));
    }

    #[test]
    fn what_cannot_be_compared_is_all_noise() {
        let wanted = Array::vector(vec![1.0f32, 2.0, f32::INFINITY]);
        let ratio = |found: Option<Vec<f32>>| {
            let mut distance = Distance::default();
            distance.add(&wanted, found.map(Array::vector).as_ref());
            distance.ratio().unwrap()
        };
        assert_eq!(ratio(None), 1.0);
        assert_eq!(ratio(Some(vec![1.0])), 1.0);
        assert_eq!(ratio(Some(vec![1.0, 1.0, 0.0])), 0.2);
        assert!(ratio(Some(vec![1.0, f32::NAN, 0.0])) > 1e30);
    }
}
