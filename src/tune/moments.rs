//! What a graph tells of its values without any data: the mean of each channel.
//!
//! BatchNormalization holds the statistics of the training data: what it returns has mean β and deviation |γ| by channel.
//! From there the distribution of each channel is carried on as points of equal probability of a Gaussian, through
//! activations by applying the operator itself to the points, through sums and products as if their operands were
//! independent unless they come from the same value (Nagel et al. 2019, section 4.2, <https://arxiv.org/abs/1906.04721>,
//! which does it for Relu).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rayon::prelude::*;

use super::bias::{depth, response};
use crate::calibrate::read::Samples;
use crate::error::Error;
use crate::interpret::Program;
use crate::ir::{Array, Graph, NodeId, ValueId, schedule};
use crate::ops::normalize::BatchNormalization;

/// The mean of each index along an axis, by the name of the value and the axis.
pub type Means = BTreeMap<(String, usize), Vec<f64>>;

/// Points of equal probability that stand for a distribution.
const POINTS: usize = 32;

/// Operators that compute each element of one output from the elements in the same place.
const POINTWISE: &[&str] = &[
    "Add",
    "Clip",
    "Div",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Max",
    "Min",
    "Mish",
    "Mul",
    "PRelu",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Sub",
    "Tanh",
];

/// How the channels of a value are distributed, each by itself.
#[derive(Debug, Clone)]
struct Marginals {
    /// Channels × points.
    points: Vec<f32>,
    /// Values of the same origin hold points for the same events.
    origin: ValueId,
}

impl Marginals {
    fn gaussian(origin: ValueId, means: &[f64], deviations: &[f64]) -> Self {
        let quantiles = quantiles();
        let of = |(m, d): (&f64, &f64)| quantiles.map(|q| (m + d * q) as f32);
        Self { points: means.iter().zip(deviations).flat_map(of).collect(), origin }
    }

    fn means(&self) -> Vec<f64> {
        let mean = |row: &[f32]| row.iter().map(|&x| f64::from(x)).sum::<f64>() / POINTS as f64;
        self.points.chunks(POINTS).map(mean).collect()
    }

    fn variances(&self) -> Vec<f64> {
        let square = |x: f64| x * x;
        let of = |(row, mean): (&[f32], f64)| {
            row.iter().map(|&x| square(f64::from(x) - mean)).sum::<f64>() / POINTS as f64
        };
        self.points.chunks(POINTS).zip(self.means()).map(of).collect()
    }

    fn channels(&self) -> usize {
        self.points.len() / POINTS
    }
}

/// The middle of each of so many parts of a standard Gaussian that are equally probable.
fn quantiles() -> [f64; POINTS] {
    std::array::from_fn(|i| {
        let wanted = (i as f64 + 0.5) / POINTS as f64;
        let (mut low, mut high) = (-8.0, 8.0);
        for _ in 0..60 {
            let middle: f64 = (low + high) / 2.0;
            let below = 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2);
            if below < wanted { low = middle } else { high = middle }
        }
        (low + high) / 2.0
    })
}

/// The means that follow from the statistics in the graph, whose types must be known.
pub fn expected(graph: &Graph) -> Means {
    let mut known: BTreeMap<ValueId, Marginals> = BTreeMap::new();
    for id in schedule(graph).unwrap_or_default() {
        if let (Some(output), Some(marginals)) = (graph.output(id, 0), carried(graph, id, &known)) {
            known.insert(output, marginals);
        }
    }
    known.into_iter().map(|(value, m)| ((graph.name(value).to_string(), 1), m.means())).collect()
}

/// The means that samples show, for the inputs of products with constants.
pub fn measured(graph: &Graph, samples: &Samples, progress: &(dyn Fn(usize) + Sync)) -> Result<Means, Error> {
    let constant = |&id: &NodeId| graph.constant_input(id, 1).is_some();
    let wanted: BTreeSet<(ValueId, usize)> =
        graph.nodes().filter(constant).filter_map(|id| depth(graph, id)).collect();
    let program = Program::new(graph)?;
    let steps = AtomicUsize::new(0);
    let run = |index: usize| -> Result<Seen, Error> {
        let mut seen = Seen::new();
        program.run_as_far_as_possible(&samples.load(index)?, &mut |id: ValueId, array: &Array| {
            let Ok(elements) = array.slice::<f32>() else { return };
            for &(value, axis) in wanted.range((id, 0)..=(id, usize::MAX)) {
                seen.insert((value, axis), channel_means(elements, array.shape(), axis));
            }
        })?;
        progress(1 + steps.fetch_add(1, Relaxed));
        Ok(seen)
    };
    let runs: Vec<Seen> = (0..samples.len()).into_par_iter().map(run).collect::<Result<_, Error>>()?;
    let mut means = Means::new();
    for (value, axis) in wanted {
        let seen: Vec<&Vec<f64>> = runs.iter().filter_map(|run| run.get(&(value, axis))).collect();
        let Some(channels) = seen.first().map(|m| m.len()).filter(|&c| c > 0) else { continue };
        if seen.iter().all(|m| m.len() == channels && m.iter().all(|x| x.is_finite())) {
            let mean = |c: usize| seen.iter().map(|m| m[c]).sum::<f64>() / seen.len() as f64;
            means.insert((graph.name(value).to_string(), axis), (0..channels).map(mean).collect());
        }
    }
    Ok(means)
}

/// What one run shows.
type Seen = BTreeMap<(ValueId, usize), Vec<f64>>;

/// The mean of each index along an axis.
fn channel_means(elements: &[f32], shape: &[usize], axis: usize) -> Vec<f64> {
    let Some(&channels) = shape.get(axis) else { return Vec::new() };
    let inner: usize = shape[axis + 1..].iter().product();
    let mut sums = vec![0f64; channels];
    for block in elements.chunks((channels * inner).max(1)) {
        let rows = sums.iter_mut().zip(block.chunks(inner.max(1)));
        rows.for_each(|(sum, row)| *sum += row.iter().map(|&x| f64::from(x)).sum::<f64>());
    }
    let count = (elements.len() / channels.max(1)).max(1) as f64;
    sums.iter().map(|sum| sum / count).collect()
}

/// How the output of a node is distributed, if that of its inputs tells.
fn carried(graph: &Graph, id: NodeId, known: &BTreeMap<ValueId, Marginals>) -> Option<Marginals> {
    let (node, output) = (graph.node(id), graph.output(id, 0)?);
    if node.op_as::<BatchNormalization>().is_some() {
        let parameter = |slot| {
            let values = constant(graph, graph.input(id, slot)?)?.to_f32().ok()?;
            let values: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
            values.iter().all(|v| v.is_finite()).then_some(values)
        };
        let deviations: Vec<f64> = parameter(1)?.iter().map(|g| g.abs()).collect();
        return Some(Marginals::gaussian(output, &parameter(2)?, &deviations));
    }
    let input = graph.input(id, 0);
    let first = input.and_then(|v| known.get(&v));
    match node.op_type.as_str() {
        _ if !matches!(node.domain.as_str(), "" | "ai.onnx") => None,
        op if POINTWISE.contains(&op) => pointwise(graph, id, known),
        "AveragePool" => first.cloned(),
        "GlobalAveragePool" => {
            let means = first?.means();
            Some(Marginals::gaussian(output, &means, &vec![0.0; means.len()]))
        }
        "Flatten" | "Reshape" | "Squeeze" => {
            let extent = |value, axis: usize| graph.ty(value)?.dim(axis as i64)?.known();
            let ranks = (graph.ty(input?)?.rank()?, graph.ty(output)?.rank()?);
            let pooled = (2..ranks.0).all(|axis| input.and_then(|v| extent(v, axis)) == Some(1));
            first.filter(|m| pooled && ranks.1 == 2 && extent(output, 1) == Some(m.channels())).cloned()
        }
        "Concat" => {
            let parts =
                graph.inputs_of(id).into_iter().map(|v| known.get(&v?)).collect::<Option<Vec<_>>>()?;
            let points: Vec<f32> = parts.iter().flat_map(|m| m.points.iter().copied()).collect();
            let channels = graph.ty(output)?.dim(1)?.known()?;
            (channels * POINTS == points.len()).then_some(Marginals { points, origin: output })
        }
        "Conv" | "Gemm" => {
            let weight = constant(graph, graph.input(id, 1)?)?;
            let of = |weight: &Array, x: &[f64]| response(graph, id, weight, x);
            let squares: Vec<f32> = weight.slice::<f32>().ok()?.iter().map(|w| w * w).collect();
            let squares = Array::new(weight.shape(), squares).ok()?;
            let mut means = of(&weight, &first?.means())?;
            let deviations: Vec<f64> =
                of(&squares, &first?.variances())?.iter().map(|v| v.max(0.0).sqrt()).collect();
            if let Some(bias) = graph.input(id, 2) {
                let bias = constant(graph, bias)?.to_f32().ok()?;
                (bias.len() == means.len()).then_some(())?;
                means.iter_mut().zip(bias.iter()).for_each(|(m, b)| *m += f64::from(*b));
            }
            Some(Marginals::gaussian(output, &means, &deviations))
        }
        _ => None,
    }
}

/// Each element from those in the same place: the operator is applied to the points.
fn pointwise(graph: &Graph, id: NodeId, known: &BTreeMap<ValueId, Marginals>) -> Option<Marginals> {
    let (node, output) = (graph.node(id), graph.output(id, 0)?);
    let rank = graph.ty(output)?.rank().filter(|&r| r >= 2)?;
    let (mut inputs, mut read) = (Vec::new(), Vec::new());
    for slot in graph.inputs_of(id) {
        inputs.push(match slot {
            None => None,
            Some(value) => Some(match known.get(&value) {
                Some(marginals) => {
                    read.push(marginals);
                    let mut shape = vec![1; rank.max(3)];
                    (shape[1], shape[2]) = (marginals.channels(), POINTS);
                    Array::new(&shape, marginals.points.clone()).ok()?
                }
                None => constant(graph, value).filter(|a| is_by_channel(a, rank))?,
            }),
        });
    }
    let first = *read.first()?;
    if let [a, b] = read[..]
        && a.origin != b.origin
    {
        return independent(node.op_type.as_str(), output, a, b);
    }
    let result = node.op.as_ref()?.float(&inputs).ok()?;
    let points = result.first()?.slice::<f32>().ok()?.to_vec();
    let usable = points.len() == first.points.len() && points.iter().all(|x| x.is_finite());
    usable.then_some(Marginals { points, origin: first.origin })
}

/// A constant of the graph, or of a Constant operator.
fn constant(graph: &Graph, value: ValueId) -> Option<Array> {
    if let Some(tensor) = graph.constant(value) {
        return tensor.array().ok();
    }
    let node = graph.node(graph.producer(value)?.0);
    let made = node.op.as_ref().filter(|_| node.is("Constant"))?.float(&[]).ok()?;
    made.into_iter().next()
}

/// Does a constant have one element for each channel of a value of this rank, or one for all?
fn is_by_channel(constant: &Array, rank: usize) -> bool {
    let shape = constant.shape();
    let behind = |rank: usize| shape[shape.len() + 2 - rank..].iter().all(|&d| d == 1);
    constant.len() == 1 || rank >= 3 && shape.len() + 1 >= rank && behind(rank)
}

/// Sums and products of values that do not depend on each other.
fn independent(op: &str, output: ValueId, a: &Marginals, b: &Marginals) -> Option<Marginals> {
    (a.channels() == b.channels()).then_some(())?;
    let (means, others) = (a.means(), b.means());
    let sign = match op {
        "Add" => 1.0,
        "Sub" => -1.0,
        "Mul" => {
            // What varies less, as a gate from pooled values does, counts as a factor.
            let spread = |m: &Marginals| m.variances().iter().sum::<f64>();
            let (a, factors) = if spread(a) < spread(b) { (b, means) } else { (a, others) };
            let scaled = a.points.chunks(POINTS).zip(&factors);
            let points = scaled.flat_map(|(row, &f)| row.iter().map(move |x| x * f as f32)).collect();
            return Some(Marginals { points, origin: output });
        }
        _ => return None,
    };
    let means: Vec<f64> = means.iter().zip(&others).map(|(x, y)| x + sign * y).collect();
    let sums = a.variances().into_iter().zip(b.variances()).map(|(x, y)| (x + y).sqrt());
    Some(Marginals::gaussian(output, &means, &sums.collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests;
