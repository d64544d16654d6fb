//! How far the outputs have moved, as one number that does not let a loud part drown a quiet one.
//!
//! A detector that returns boxes in pixels and scores below one in the same tensor would be judged by its boxes alone if
//! noise over signal were taken of the tensor. Such outputs are made by Concat: each part that went into it is judged by
//! itself, and the mean of them all is the verdict.
//!
//! Probabilities that Softmax makes are judged by what it read. Their noise is that of the few rows where two classes are
//! about as likely, of which some dozen samples hold too few to tell one way to quantize from another; the noise of
//! the logits, which decides such rows, is much the same in all of them. What all logits of a row have in common counts
//! for nothing, as it does for Softmax.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ir::{Array, Graph, Op, ValueId};
use crate::ops::softmax::Softmax;

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

/// A value by which outputs are judged.
#[derive(Debug, Clone)]
pub struct Part {
    /// The value.
    pub value: ValueId,
    /// What makes probabilities of it.
    softmax: Option<Arc<dyn Op>>,
}

impl Part {
    /// An output as it is.
    pub fn output(value: ValueId) -> Self {
        Self { value, softmax: None }
    }

    /// Takes off what all logits of a row have in common.
    pub fn centre(&self, shape: &[usize], values: &mut [f32]) {
        let Some((outer, n, inner)) = self.rows(shape) else { return };
        for row in 0..outer * inner {
            let place = |i: usize| (row / inner * n + i) * inner + row % inner;
            let mean = (0..n).map(|i| values[place(i)]).sum::<f32>() / n as f32;
            (0..n).for_each(|i| values[place(i)] -= mean);
        }
    }

    /// The extents before, along and after each row of logits; none if it has none.
    fn rows(&self, shape: &[usize]) -> Option<(usize, usize, usize)> {
        let op: &dyn Any = self.softmax.as_deref()?;
        op.downcast_ref::<Softmax>()?.extents(shape).ok()
    }
}

/// The values by which the outputs are judged: each output, or what was joined to make it, or the logits behind it.
pub fn judged(graph: &Graph) -> Vec<Part> {
    let mut parts = BTreeSet::new();
    for &output in &graph.outputs {
        let joined = joined(graph, output);
        if joined.is_empty() {
            parts.insert(output)
        } else {
            joined.into_iter().all(|v| parts.insert(v))
        };
    }
    let parts = parts.into_iter().map(|part| logits(graph, part).unwrap_or(Part::output(part)));
    let parts: BTreeMap<ValueId, Part> = parts.map(|part| (part.value, part)).collect();
    parts.into_values().collect()
}

/// What Softmax read to make the value, perhaps in another shape.
fn logits(graph: &Graph, mut value: ValueId) -> Option<Part> {
    loop {
        let (producer, _) = graph.producer(value)?;
        let node = graph.node(producer);
        let read = graph.input(producer, 0)?;
        if node.is("Softmax") {
            // What is given cannot become worse.
            graph.producer(read)?;
            return Some(Part { value: read, softmax: node.op.clone() });
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
    /// Takes in one more tensor of a part beside what it should be. Anything that cannot be compared counts as all noise;
    /// what is infinite or not a number in the reference is no signal and cannot be missed.
    pub fn add(&mut self, part: &Part, reference: &Array, found: Option<&Array>) {
        let Array::F32(wanted) = reference else { return };
        let found = match found {
            Some(Array::F32(f)) if f.shape() == wanted.shape() => f.as_slice(),
            _ => None,
        };
        let values = wanted.as_slice().unwrap_or_default();
        let both = |i: usize| {
            let x = values[i];
            let missed = found.map_or(x, |f| x - f[i]);
            let pair = (f64::from(x), f64::from(if missed.is_finite() { missed } else { f32::MAX }));
            x.is_finite().then_some(pair)
        };
        let Some((outer, n, inner)) = part.rows(wanted.shape()) else {
            for (x, missed) in (0..values.len()).filter_map(both) {
                self.signal += x * x;
                self.noise += missed * missed;
            }
            return;
        };
        for row in 0..outer * inner {
            let place = |i: usize| (row / inner * n + i) * inner + row % inner;
            let (mut count, mut sums, mut squares) = (0.0, (0.0, 0.0), (0.0, 0.0));
            for (x, missed) in (0..n).filter_map(|i| both(place(i))) {
                count += 1.0;
                sums = (sums.0 + x, sums.1 + missed);
                squares = (squares.0 + x * x, squares.1 + missed * missed);
            }
            if count > 0.0 {
                self.signal += (squares.0 - sums.0 * sums.0 / count).max(0.0);
                self.noise += (squares.1 - sums.1 * sums.1 / count).max(0.0);
            }
        }
    }

    /// Takes in all that `other` did.
    pub fn merge(&mut self, other: &Self) {
        self.noise += other.noise;
        self.signal += other.signal;
    }

    /// Power of the signal.
    pub fn signal(&self) -> f64 {
        self.signal
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
        let names: Vec<&str> = judged(&graph).into_iter().map(|part| graph.name(part.value)).collect();
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
        let names: BTreeSet<&str> = judged(&graph).into_iter().map(|part| graph.name(part.value)).collect();
        assert_eq!(names, BTreeSet::from(["v", "w", "z"]));
        // What both logits of a row have in common is neither signal nor noise.
        let logits = judged(&graph).into_iter().find(|part| graph.name(part.value) == "z").unwrap();
        let array = |values: [f32; 4]| Array::new(&[2, 2], values.to_vec()).unwrap();
        let mut distance = Distance::default();
        distance.add(&logits, &array([7.0, 5.0, -1.0, 1.0]), Some(&array([6.0, 4.0, 0.0, 1.0])));
        assert_eq!(distance.ratio(), Some(0.5 / 4.0));
    }

    #[test]
    fn what_cannot_be_compared_is_all_noise() {
        let source =
            r#"<ir_version: 8, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Neg (x) }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let (wanted, part) =
            (Array::vector(vec![1.0f32, 2.0, f32::INFINITY]), Part::output(graph.outputs[0]));
        let ratio = |found: Option<Vec<f32>>| {
            let mut distance = Distance::default();
            distance.add(&part, &wanted, found.map(Array::vector).as_ref());
            distance.ratio().unwrap()
        };
        assert_eq!(ratio(None), 1.0);
        assert_eq!(ratio(Some(vec![1.0])), 1.0);
        assert_eq!(ratio(Some(vec![1.0, 1.0, 0.0])), 0.2);
        assert!(ratio(Some(vec![1.0, f32::NAN, 0.0])) > 1e30);
    }
}
