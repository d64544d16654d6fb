//! Moving the difficulty of a loud input channel into the weights that read it (Xiao et al. 2022, SmoothQuant,
//! <https://arxiv.org/abs/2211.10438>).
//!
//! In transformers a few channels of an activation are many times as large as the rest, and one scale for all leaves the
//! rest a handful of steps. Products stay what they are if channel `j` is divided by `s_j` and row `j` of every matrix
//! that reads it is multiplied by `s_j`. The division goes into a constant that the producer multiplies by anyway, or
//! into the scale and bias of a LayerNormalization; where others read the value too, a Mul in front of the matrices
//! does it. `s_j = max|x_j|^α / max|w_j|^(1-α)`, and α is the one that loses least on rows of real inputs.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::calibrate::read::Samples;
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Array, DType, Graph, NodeId, QuantParams, Tensor, Value, ValueId};
use crate::kernels::gemm::{Mat, MatMut, Size, gemm};
use crate::kernels::math::round;
use crate::kernels::requantize::fake_quantize_slice;
use crate::ops::gemm::Gemm;
use crate::ops::quantize::Dequantize;
use crate::passes::node;
use crate::quantize::weights::Form;

/// Samples that are run.
const SAMPLES: usize = 16;
/// Rows of inputs that α is chosen on.
const ROWS: usize = 512;
/// The values of α that are tried.
const ALPHAS: [f32; 4] = [0.35, 0.5, 0.65, 0.8];
/// Smoothing must lower the error of the products to below this share.
const WORTHWHILE: f64 = 0.7;

/// A value and the matrices that it is multiplied by.
struct Reader {
    input: ValueId,
    /// Node, weight, and whether its rows are output channels (transB).
    matrices: Vec<(NodeId, ValueId, bool)>,
    depth: usize,
}

/// What was seen of an input.
#[derive(Default, Clone)]
struct Seen {
    largest: Vec<f32>,
    rows: Vec<f32>,
}

/// Smooths every input of matrices that gains by it when weights become integers of this form; the names of those values.
pub fn smooth(graph: &mut Graph, samples: &Samples, form: Form) -> Result<Vec<String>, Error> {
    let readers = readers(graph);
    if readers.is_empty() {
        return Ok(Vec::new());
    }
    let seen = look(graph, &readers, samples)?;
    let factors: Vec<Option<Vec<f32>>> = readers
        .par_iter()
        .zip(&seen)
        .map(|(reader, seen)| choose(graph, reader, seen, form))
        .collect::<Result<_, Fault>>()
        .map_err(|f| f.at("smoothing"))?;
    let mut names = Vec::new();
    for (reader, factors) in readers.iter().zip(factors) {
        if let Some(factors) = factors {
            apply(graph, reader, &factors).map_err(|f| f.at("smoothing"))?;
            names.push(graph.name(reader.input).to_string());
        }
    }
    Ok(names)
}

/// Values that constant matrices of their own are multiplied by.
fn readers(graph: &Graph) -> Vec<Reader> {
    let mut found: BTreeMap<ValueId, Reader> = BTreeMap::new();
    for id in graph.nodes() {
        let gemm = graph.node(id).op_as::<Gemm>();
        if !(graph.node(id).is("MatMul") || gemm.is_some_and(|g| !g.trans_a)) {
            continue;
        }
        let (Some(input), Some(weight)) = (graph.input(id, 0), graph.input(id, 1)) else { continue };
        let Some(tensor) = graph.constant(weight).filter(|t| t.dtype() == DType::F32) else { continue };
        let (&[first, second], true) = (tensor.shape(), graph.only_use(weight).is_some()) else { continue };
        let by_row = gemm.is_some_and(|g| g.trans_b);
        let depth = if by_row { second } else { first };
        let rounded =
            graph.producer(input).is_some_and(|(p, _)| graph.node(p).op_as::<Dequantize>().is_some());
        if rounded || graph.constant(input).is_some() || depth < 2 {
            continue;
        }
        let reader = found.entry(input).or_insert_with(|| Reader { input, matrices: Vec::new(), depth });
        if reader.depth == depth {
            reader.matrices.push((id, weight, by_row));
        }
    }
    found.into_values().collect()
}

/// Runs some samples; the largest magnitude of each channel and some rows of each input.
fn look(graph: &Graph, readers: &[Reader], samples: &Samples) -> Result<Vec<Seen>, Error> {
    let program = Program::new(graph)?;
    let index: BTreeMap<ValueId, usize> = readers.iter().enumerate().map(|(i, r)| (r.input, i)).collect();
    let count = samples.len().min(SAMPLES);
    let runs: Mutex<Vec<Vec<Seen>>> = Mutex::new(vec![Vec::new(); count]);
    (0..count).into_par_iter().try_for_each(|run| {
        let mut own = vec![Seen::default(); readers.len()];
        program.run_as_far_as_possible(
            &samples.load(run * samples.len() / count)?,
            &mut |id: ValueId, array: &Array| {
                let (Some(&i), Array::F32(values)) = (index.get(&id), array) else { return };
                let (depth, values) = (readers[i].depth, values.as_slice().unwrap_or_default());
                let seen = &mut own[i];
                seen.largest.resize(depth, 0.0);
                let stride = (values.len() / depth).div_ceil(ROWS.div_ceil(count)).max(1);
                for (at, row) in values.chunks_exact(depth).enumerate() {
                    seen.largest.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(x.abs()));
                    if at % stride == 0 {
                        seen.rows.extend_from_slice(row);
                    }
                }
            },
        )?;
        if let Ok(mut runs) = runs.lock() {
            runs[run] = own;
        }
        Ok::<_, Error>(())
    })?;
    let mut total = vec![Seen::default(); readers.len()];
    for run in runs.into_inner().map_err(|_| Fault::new("a thread failed").at("smoothing"))? {
        for (total, seen) in total.iter_mut().zip(run) {
            total.largest.resize(total.largest.len().max(seen.largest.len()), 0.0);
            total.largest.iter_mut().zip(&seen.largest).for_each(|(a, b)| *a = a.max(*b));
            total.rows.extend(seen.rows);
        }
    }
    Ok(total)
}

/// The weights of all matrices side by side: one row for each input channel; and how wide each matrix is.
fn stacked(graph: &Graph, reader: &Reader) -> Result<(Vec<f32>, Vec<usize>), Fault> {
    let mut columns: Vec<Vec<f32>> = vec![Vec::new(); reader.depth];
    let mut widths = Vec::new();
    for &(_, weight, by_row) in &reader.matrices {
        let array = graph.constant(weight).ok_or("the weight is missing")?.array()?;
        let values = array.slice::<f32>()?;
        let channels = values.len() / reader.depth;
        widths.push(channels);
        for (k, row) in columns.iter_mut().enumerate() {
            match by_row {
                true => row.extend((0..channels).map(|c| values[c * reader.depth + k])),
                false => row.extend_from_slice(&values[k * channels..][..channels]),
            }
        }
    }
    Ok((columns.concat(), widths))
}

/// The factors that lose least, if any lose clearly less than none.
fn choose(graph: &Graph, reader: &Reader, seen: &Seen, form: Form) -> Result<Option<Vec<f32>>, Fault> {
    if seen.rows.is_empty() || seen.largest.len() != reader.depth || !seen.rows.iter().all(|x| x.is_finite())
    {
        return Ok(None);
    }
    let (weights, widths) = stacked(graph, reader)?;
    let by_row = |row: &[f32]| row.iter().fold(0f32, |m, w| m.max(w.abs()));
    let loudest: Vec<f32> = weights.chunks_exact(widths.iter().sum()).map(by_row).collect();
    let problem = Problem { rows: &seen.rows, weights: &weights, depth: reader.depth, widths: &widths, form };
    let exact = problem.products(&seen.rows, &weights);
    let plain = problem.error(&vec![1.0; reader.depth], &seen.largest, &exact);
    let mut best = (plain * WORTHWHILE, None);
    for alpha in ALPHAS {
        let factor = |(&x, &w): (&f32, &f32)| match x > 0.0 && w > 0.0 {
            true => (libm::powf(x, alpha) / libm::powf(w, 1.0 - alpha)).clamp(1e-5, 1e5),
            false => 1.0,
        };
        let factors: Vec<f32> = seen.largest.iter().zip(&loudest).map(factor).collect();
        let error = problem.error(&factors, &seen.largest, &exact);
        if error < best.0 {
            best = (error, Some(factors));
        }
    }
    Ok(best.1)
}

struct Problem<'a> {
    rows: &'a [f32],
    weights: &'a [f32],
    depth: usize,
    /// How many columns of the weights belong to each matrix.
    widths: &'a [usize],
    form: Form,
}

impl Problem<'_> {
    /// Output channels of all matrices.
    fn width(&self) -> usize {
        self.widths.iter().sum()
    }

    fn products(&self, rows: &[f32], weights: &[f32]) -> Vec<f32> {
        let size = Size { m: rows.len() / self.depth, n: self.width(), k: self.depth };
        let mut out = vec![0.0; size.m * size.n];
        let (a, b) = (Mat::rows(rows, self.depth), Mat::rows(weights, size.n));
        gemm(size, 1.0, a, b, 0.0, MatMut::rows(&mut out, size.n));
        out
    }

    /// The squared error of the products if inputs are rounded to 8 bits and weights to theirs after smoothing; each row
    /// counts relative to its own power, as it does behind a normalization.
    fn error(&self, factors: &[f32], largest: &[f32], exact: &[f32]) -> f64 {
        let mut rows: Vec<f32> = self.rows.to_vec();
        rows.chunks_mut(self.depth).for_each(|row| row.iter_mut().zip(factors).for_each(|(x, s)| *x /= s));
        let reach = largest.iter().zip(factors).fold(0f32, |m, (x, s)| m.max(x / s));
        let low = rows.iter().copied().fold(0f32, f32::min);
        let params = QuantParams::asymmetric(if low < 0.0 { -reach } else { 0.0 }, reach, DType::U8);
        fake_quantize_slice(&mut rows, params.scale, params.zero_point, 0, 255);
        let mut weights: Vec<f32> = self.weights.to_vec();
        let width = self.width();
        let rows_of = weights.chunks_exact_mut(width).zip(factors);
        rows_of.for_each(|(row, s)| row.iter_mut().for_each(|w| *w *= s));
        let mut reach = vec![0f32; width];
        for row in weights.chunks_exact(width) {
            reach.iter_mut().zip(row).for_each(|(reach, w)| *reach = reach.max(w.abs()));
        }
        if !self.form.by_channel {
            let mut rest = reach.as_mut_slice();
            for &width in self.widths {
                let (own, others) = rest.split_at_mut(width);
                own.fill(own.iter().fold(0f32, |a, b| a.max(*b)));
                rest = others;
            }
        }
        let scales: Vec<f32> = reach.iter().map(|reach| reach / self.form.limit as f32).collect();
        for row in weights.chunks_exact_mut(width) {
            let steps = row.iter_mut().zip(&scales).filter(|(_, scale)| **scale > 0.0);
            steps.for_each(|(w, scale)| *w = round(*w / scale) * scale);
        }
        let found = self.products(&rows, &weights);
        let power = |row: &[f32]| row.iter().map(|y| f64::from(*y) * f64::from(*y)).sum::<f64>();
        let mean = power(exact) / (exact.len() / width).max(1) as f64;
        let row = |(a, b): (&[f32], &[f32])| {
            let error: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b) * f64::from(a - b)).sum();
            error / (power(a) + mean).max(f64::MIN_POSITIVE)
        };
        exact.chunks_exact(width).zip(found.chunks_exact(width)).map(row).sum()
    }
}

/// Divides the input by the factors and multiplies the matrices by them.
fn apply(graph: &mut Graph, reader: &Reader, factors: &[f32]) -> Result<(), Fault> {
    for &(_, weight, by_row) in &reader.matrices {
        let array = graph.constant(weight).ok_or("the weight is missing")?.array()?;
        let channels = array.len() / reader.depth;
        let channel = |i: usize| if by_row { i % reader.depth } else { i / channels };
        let scaled: Vec<f32> =
            array.slice::<f32>()?.iter().enumerate().map(|(i, w)| w * factors[channel(i)]).collect();
        graph.set_constant(weight, Tensor::from_array(&Array::new(array.shape(), scaled)?));
    }
    let inverse: Vec<f32> = factors.iter().map(|s| 1.0 / s).collect();
    let own = !graph.is_pinned(reader.input) && graph.uses(reader.input).len() == reader.matrices.len();
    if own && fold(graph, reader.input, &inverse)? {
        return Ok(());
    }
    let name = format!("{}_smooth", graph.name(reader.input));
    let vector = graph.add_constant(&format!("{name}_factors"), Tensor::from_array(&Array::vector(inverse)));
    let ty = graph.ty(reader.input).cloned();
    let smoothed = graph.add_fresh(&name, Value { ty, ..Value::default() });
    let mut multiply = node("Mul", name, vec![], 2);
    multiply.rank = graph.producer(reader.input).map_or(0, |(p, _)| graph.node(p).rank);
    graph.add_node(multiply, &[Some(reader.input), Some(vector)], &[Some(smoothed)]);
    for &(id, ..) in &reader.matrices {
        graph.rewire(id, 0, Some(smoothed));
    }
    Ok(())
}

/// Multiplies the last axis of a value by constants of its producer. False if it has none.
fn fold(graph: &mut Graph, value: ValueId, factors: &[f32]) -> Result<bool, Fault> {
    let Some((producer, 0)) = graph.producer(value) else { return Ok(false) };
    let node = graph.node(producer);
    let slots: Vec<usize> = if node.is("Mul") {
        (0..2).filter(|&s| vector(graph, producer, s, factors.len())).take(1).collect()
    } else if node.is("LayerNormalization")
        && graph.outputs_of(producer).iter().skip(1).flatten().count() == 0
    {
        let present: Vec<usize> = (1..3).filter(|&s| graph.input(producer, s).is_some()).collect();
        let fits = present.iter().all(|&s| {
            vector(graph, producer, s, factors.len())
                && graph.constant_input(producer, s).is_some_and(|t| t.len() == factors.len())
        });
        if fits { present } else { Vec::new() }
    } else {
        Vec::new()
    };
    for &slot in &slots {
        let id = graph.input(producer, slot).ok_or("an input is missing")?;
        let array = graph.constant(id).ok_or("a constant is missing")?.array()?;
        let old = array.slice::<f32>()?;
        let scaled: Vec<f32> = factors.iter().zip(old.iter().cycle()).map(|(f, c)| f * c).collect();
        graph.set_constant(id, Tensor::from_array(&Array::vector(scaled)));
    }
    Ok(!slots.is_empty())
}

/// Is the input a constant of its own that can be a vector along the last axis?
fn vector(graph: &Graph, id: NodeId, slot: usize, depth: usize) -> bool {
    let Some(value) = graph.input(id, slot) else { return false };
    let fits =
        |t: &Tensor| t.dtype() == DType::F32 && (t.len() == 1 || (t.len() == depth && t.shape() == [depth]));
    graph.constant(value).is_some_and(fits) && graph.only_use(value).is_some()
}

#[cfg(test)]
mod tests;
