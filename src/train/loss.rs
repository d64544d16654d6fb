//! What training makes smaller.
//!
//! * Distillation of a classifier: `T²·KL(softmax(t/T) ‖ softmax(s/T))` between the scores of teacher and student
//!   (Hinton et al. 2015, <https://arxiv.org/abs/1503.02531>). Where an output is a Softmax, the scores before it count.
//! * Everything else: the mean squared difference over the teacher's mean square, so that outputs of all sizes weigh alike.
//! * Values inside the network, if wanted: the same, so that their mean counts as much as is asked for.
//! * With labels: the cross-entropy of the classifier's scores.

use std::str::FromStr;

use crate::error::Fault;
use crate::fail;
use crate::interpret::adjoint::accumulate;
use crate::ir::{Array, Graph, ValueId};
use crate::kernels::softmax::log_softmax;
use crate::ops::softmax::{Kind, Softmax};

/// Which loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The teacher's softened scores, or its outputs where they are no scores.
    Distill,
    /// The labels.
    CrossEntropy,
    /// The teacher's outputs as numbers.
    Mse,
    /// Labels and teacher, half each.
    Both,
}

impl FromStr for Loss {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "distill" => Self::Distill,
            "cross-entropy" => Self::CrossEntropy,
            "mse" => Self::Mse,
            "both" => Self::Both,
            other => {
                return Err(format!("`{other}` is no loss; there are distill, cross-entropy, mse, both"));
            }
        })
    }
}

/// How much scores are softened.
pub const TEMPERATURE: f32 = 2.0;

/// The values of a graph by which the loss judges it: outputs, or the scores before their Softmax.
pub fn taps(graph: &Graph) -> Vec<ValueId> {
    let passes = ["DequantizeLinear", "QuantizeLinear", "FakeQuantize", "Identity"];
    let scores = |mut value: ValueId| -> ValueId {
        let output = value;
        while let Some((producer, _)) = graph.producer(value) {
            let node = graph.node(producer);
            if node.op_as::<Softmax>().is_some_and(|s| s.kind == Kind::Soft) {
                return graph.input(producer, 0).unwrap_or(output);
            }
            match graph.input(producer, 0) {
                Some(before) if passes.contains(&node.op_type.as_str()) => value = before,
                _ => break,
            }
        }
        output
    };
    graph.outputs.iter().map(|&v| scores(v)).collect()
}

/// Are these the scores of classes, one row a sample?
pub fn is_classifier(output: &Array) -> bool {
    let wide = output.shape().iter().skip(1).filter(|&&d| d > 1).count();
    matches!(output, Array::F32(_)) && output.rank() >= 2 && wide == 1
}

/// The loss of one output of one sample, and its gradient.
pub type Lost = (f64, Array);

fn log_probabilities(scores: &[f32], classes: usize, temperature: f32) -> Vec<f32> {
    let mut logs: Vec<f32> = scores.iter().map(|&s| s / temperature).collect();
    log_softmax(&mut logs, (scores.len() / classes.max(1), classes, 1));
    logs
}

/// Softened divergence from the teacher.
pub fn divergence(student: &Array, teacher: &Array, temperature: f32) -> Result<Lost, Fault> {
    let (s, t) = (student.slice::<f32>()?, same(student, teacher)?);
    let classes: usize = student.shape().iter().skip(1).product();
    let rows = (s.len() / classes.max(1)).max(1) as f32;
    let (log_s, log_t) =
        (log_probabilities(s, classes, temperature), log_probabilities(t, classes, temperature));
    let mut loss = 0f64;
    let mut gradient = Vec::with_capacity(s.len());
    for (&a, &b) in log_s.iter().zip(&log_t) {
        let (p, q) = (crate::kernels::math::exp(a), crate::kernels::math::exp(b));
        loss += f64::from(q) * f64::from(b - a);
        gradient.push(temperature * (p - q) / rows);
    }
    let square = f64::from(temperature) * f64::from(temperature);
    Ok((square * loss / f64::from(rows), Array::new(student.shape(), gradient)?))
}

/// The cross-entropy of labels, one for each row.
pub fn cross_entropy(student: &Array, labels: &[usize]) -> Result<Lost, Fault> {
    let s = student.slice::<f32>()?;
    let classes: usize = student.shape().iter().skip(1).product();
    let logs = log_probabilities(s, classes, 1.0);
    if logs.len() != labels.len() * classes {
        fail!("{} labels for an output of shape {:?}", labels.len(), student.shape());
    }
    let rows = labels.len().max(1) as f32;
    let mut gradient: Vec<f32> = logs.iter().map(|&l| crate::kernels::math::exp(l) / rows).collect();
    let mut loss = 0f64;
    for (row, &label) in labels.iter().enumerate() {
        if label >= classes {
            fail!("label {label}, but there are {classes} classes");
        }
        loss -= f64::from(logs[row * classes + label]);
        gradient[row * classes + label] -= 1.0 / rows;
    }
    Ok((loss / f64::from(rows), Array::new(student.shape(), gradient)?))
}

/// The mean squared difference over the teacher's mean square.
pub fn squared(student: &Array, teacher: &Array) -> Result<Lost, Fault> {
    let (s, t) = (student.slice::<f32>()?, same(student, teacher)?);
    let power: f64 = t.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().max(1e-12);
    let loss: f64 = s.iter().zip(t).map(|(&s, &t)| f64::from(s - t).powi(2)).sum::<f64>() / power;
    let factor = (2.0 / power) as f32;
    let gradient = s.iter().zip(t).map(|(&s, &t)| (s - t) * factor).collect();
    Ok((loss, Array::new(student.shape(), gradient)?))
}

fn same<'a>(student: &Array, teacher: &'a Array) -> Result<&'a [f32], Fault> {
    if student.shape() != teacher.shape() {
        fail!("the student's output has shape {:?}, the teacher's {:?}", student.shape(), teacher.shape());
    }
    teacher.slice()
}

/// The loss by values inside the network, which weigh so much together.
pub fn inside(
    student: &[Option<&Array>],
    teacher: &[Option<Array>],
    weight: f64,
) -> Result<(f64, Vec<Option<Array>>), Fault> {
    let each = weight / student.len().max(1) as f64;
    let (mut total, mut gradients) = (0.0, Vec::new());
    for (s, t) in student.iter().zip(teacher) {
        let (Some(s), Some(t)) = (s, t) else {
            gradients.push(None);
            continue;
        };
        let (loss, gradient) = squared(s, t)?;
        total += each * loss;
        let scaled = gradient.slice::<f32>()?.iter().map(|g| g * each as f32).collect();
        gradients.push(Some(Array::new(gradient.shape(), scaled)?));
    }
    Ok((total, gradients))
}

impl Loss {
    /// The loss of one sample over all tapped values, and the gradient by each; `None` where none flows.
    pub fn of(
        self,
        student: &[Option<&Array>],
        teacher: &[Option<Array>],
        labels: Option<&[usize]>,
    ) -> Result<(f64, Vec<Option<Array>>), Fault> {
        let (mut total, mut gradients) = (0.0, Vec::new());
        let mut labelled = labels.filter(|_| matches!(self, Self::CrossEntropy | Self::Both));
        let share = if self == Self::Both { 0.5 } else { 1.0 };
        for (s, t) in student.iter().zip(teacher) {
            let (Some(s @ Array::F32(_)), Some(t)) = (s, t) else {
                gradients.push(None);
                continue;
            };
            let mut lost: Option<Lost> = None;
            let mut add = |(loss, gradient): Lost| -> Result<(), Fault> {
                let scaled = gradient.slice::<f32>()?.iter().map(|g| g * share as f32).collect();
                let mut sum = lost.take().map(|l| l.1);
                accumulate(&mut sum, Array::new(gradient.shape(), scaled)?)?;
                total += loss * share;
                lost = sum.map(|g| (0.0, g));
                Ok(())
            };
            let classifier = is_classifier(s);
            if let Some(labels) = labelled.take_if(|_| classifier) {
                add(cross_entropy(s, labels)?)?;
            }
            match self {
                Self::CrossEntropy => {}
                Self::Distill | Self::Both if classifier => add(divergence(s, t, TEMPERATURE)?)?,
                _ => add(squared(s, t)?)?,
            }
            gradients.push(lost.map(|l| l.1));
        }
        if labelled.is_some() {
            fail!("no output is a classifier's, so the labels cannot be used");
        }
        Ok((total, gradients))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences in the student's scores.
    fn check(lose: impl Fn(&Array) -> Lost, student: &[f32], shape: &[usize]) {
        let (_, gradient) = lose(&Array::new(shape, student.to_vec()).unwrap());
        for i in 0..student.len() {
            let moved = |by: f32| {
                let mut s = student.to_vec();
                s[i] += by;
                lose(&Array::new(shape, s).unwrap()).0
            };
            let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let found = f64::from(gradient.slice::<f32>().unwrap()[i]);
            assert!((numeric - found).abs() < 2e-4, "{numeric} {found}");
        }
    }

    #[test]
    fn gradients_of_losses() {
        let teacher = Array::new(&[2, 3], vec![1.0f32, -0.5, 0.2, 0.0, 2.0, -1.0]).unwrap();
        let student = [0.4f32, 0.1, -0.3, 1.5, 0.7, 0.2];
        check(|s| divergence(s, &teacher, 2.0).unwrap(), &student, &[2, 3]);
        check(|s| cross_entropy(s, &[2, 0]).unwrap(), &student, &[2, 3]);
        check(|s| squared(s, &teacher).unwrap(), &student, &[2, 3]);
        assert!(divergence(&teacher, &teacher, 2.0).unwrap().0.abs() < 1e-9);
        assert!(cross_entropy(&teacher, &[3, 0]).is_err());
        assert!(cross_entropy(&teacher, &[1]).is_err());
    }

    #[test]
    fn values_inside_share_one_weight() {
        let [a, b] = [[1.0f32, 2.0], [3.0, -1.0]].map(|v| Array::new(&[1, 2], v.to_vec()).unwrap());
        let (loss, gradients) =
            inside(&[Some(&a), None, Some(&a)], &[Some(b.clone()), None, Some(a.clone())], 6.0).unwrap();
        // (2² + 3²) / (3² + 1²) for one of three.
        assert!((loss - 6.0 / 3.0 * 1.3).abs() < 1e-6, "{loss}");
        let first = gradients[0].as_ref().unwrap();
        assert!((first.slice::<f32>().unwrap()[0] + 2.0 * 2.0 / 10.0 * 2.0).abs() < 1e-6, "{first:?}");
        assert!(gradients[1].is_none());
    }

    #[test]
    fn labels_need_a_classifier() {
        let output = Array::new(&[1, 2, 2, 2], vec![0.5f32; 8]).unwrap();
        let lost = Loss::CrossEntropy.of(&[Some(&output)], &[Some(output.clone())], Some(&[1]));
        assert!(lost.is_err());
    }
}
