//! [NonMaxSuppression](https://onnx.ai/onnx/operators/onnx__NonMaxSuppression.html): of boxes that overlap, the one with
//! the best score.

use std::sync::Arc;

use super::operand::elements;
use super::slots::{optional, required};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, TensorType};

/// The operators of this family.
pub const OPS: &[OpDef] = &[OpDef { domain: ONNX, name: "NonMaxSuppression", since: 10, parse: Suppression::parse }];

/// Chooses boxes, for each sample and class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suppression {
    /// Are boxes given by centre and extents rather than by two corners?
    pub center_point_box: bool,
}

/// A box: its edges along both axes.
#[derive(Debug, Clone, Copy)]
struct Edges {
    x: (f32, f32),
    y: (f32, f32),
}

impl Edges {
    fn area(&self) -> f32 {
        (self.x.1 - self.x.0) * (self.y.1 - self.y.0)
    }

    /// The shared area as a part of the area of both.
    fn overlap(&self, other: &Self) -> f32 {
        let side = |a: (f32, f32), b: (f32, f32)| (a.1.min(b.1) - a.0.max(b.0)).max(0.0);
        let shared = side(self.x, other.x) * side(self.y, other.y);
        let both = self.area() + other.area() - shared;
        if shared <= 0.0 || self.area() <= 0.0 || other.area() <= 0.0 || both <= 0.0 { 0.0 } else { shared / both }
    }
}

impl Suppression {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { center_point_box: attrs.flag("center_point_box", false)? }))
    }

    fn edges(&self, b: &[f32]) -> Edges {
        let sorted = |a: f32, b: f32| if a <= b { (a, b) } else { (b, a) };
        match self.center_point_box {
            false => Edges { y: sorted(b[0], b[2]), x: sorted(b[1], b[3]) },
            true => Edges {
                x: (b[0] - b[2] / 2.0, b[0] + b[2] / 2.0),
                y: (b[1] - b[3] / 2.0, b[1] + b[3] / 2.0),
            },
        }
    }
}

impl Op for Suppression {
    fn infer(&self, _: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![Some(TensorType::new(DType::I64, vec![Dim::Unknown, Dim::Known(3)]))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (boxes, scores) = (required(inputs, 0)?, required(inputs, 1)?);
        let (&[batch, count, 4], &[b, classes, c]) = (boxes.shape(), scores.shape()) else {
            fail!("boxes {:?} and scores {:?}", boxes.shape(), scores.shape());
        };
        if (b, c) != (batch, count) {
            fail!("boxes {:?} and scores {:?}", boxes.shape(), scores.shape());
        }
        let number = |slot: usize| -> Result<Option<f32>, Fault> {
            let array = optional(inputs, slot).map(Array::to_f32).transpose()?;
            Ok(array.and_then(|a| a.iter().next().copied()))
        };
        let most = optional(inputs, 2).map(Array::to_i64).transpose()?.and_then(|m| m.first().copied());
        let most = usize::try_from(most.unwrap_or(0)).unwrap_or(0);
        let (overlap, threshold) = (number(3)?.unwrap_or(0.0), number(4)?);
        let (boxes, scores) = (boxes.to_f32()?, scores.to_f32()?);
        let edges: Vec<Edges> = elements(&boxes)?.chunks_exact(4).map(|b| self.edges(b)).collect();
        let mut chosen = Vec::new();
        for (index, scores) in elements(&scores)?.chunks_exact(count.max(1)).enumerate() {
            let (sample, class) = (index / classes, index % classes);
            let edges = &edges[sample * count..][..count];
            let mut order: Vec<usize> =
                (0..count).filter(|&i| threshold.is_none_or(|t| scores[i] > t)).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            let mut kept: Vec<usize> = Vec::new();
            for candidate in order {
                if kept.len() >= most {
                    break;
                }
                if kept.iter().all(|&k| edges[candidate].overlap(&edges[k]) <= overlap) {
                    kept.push(candidate);
                }
            }
            chosen.extend(kept.into_iter().flat_map(|k| [sample as i64, class as i64, k as i64]));
        }
        Ok(vec![Array::new(&[chosen.len() / 3, 3], chosen)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("detection");
    }

    #[test]
    fn the_better_of_two_that_overlap() {
        let corners = vec![0f32, 0.0, 2.0, 2.0, 0.0, 1.0, 2.0, 3.0, 5.0, 5.0, 6.0, 6.0];
        let boxes = Array::new(&[1, 3, 4], corners).unwrap();
        let scores = Array::new(&[1, 1, 3], vec![0.5f32, 0.9, 0.1]).unwrap();
        let op = (OPS[0].parse)(&mut Attrs::new(&[], 11, 4, 1)).unwrap();
        let kept = |overlap: f32| {
            let limits = [Array::vector(vec![9i64]), Array::vector(vec![overlap])];
            let inputs: Vec<_> = [boxes.clone(), scores.clone()].into_iter().chain(limits).map(Some).collect();
            let y = op.float(&inputs).unwrap().remove(0);
            y.slice::<i64>().unwrap().chunks(3).map(|row| row[2]).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.3), [1, 2]); // they share a third
        assert_eq!(kept(0.4), [1, 0, 2]);
    }
}
