//! Layer by layer, weights are rounded anew so that the quantized graph computes what the float graph does.
//!
//! All samples run through the quantized graph side by side. At each layer the inputs that it really gets, rounding
//! noise of all layers before it included, stand beside the outputs that the float graph has there; the integers and the
//! bias that fit them best take the place of the nearest ones. What is kept must be better on samples that took no part
//! in the choice.

mod rows;

use std::collections::BTreeMap;
use std::sync::Mutex;

use rayon::prelude::*;

use self::rows::Rows;
use super::Change;
use super::layer::{Bias, Layer};
use super::rounding::{Grid, Moments};
use super::shares::{Budget, Run, Shares};
use crate::budget;
use crate::calibrate::read::Samples;
use crate::error::{Error, Fault};
use crate::interpret::lockstep::Lockstep;
use crate::interpret::{Program, node_label};
use crate::ir::{Array, Graph, NodeId, ValueId};
use crate::quantize::weights::{Form, pairs};

/// Fewer samples than wanted are run side by side if they keep more bytes than this: activations so large have many
/// places each to learn from.
const KEPT: u64 = 512 << 20;
/// At least so many are.
const LEAST: usize = 5;
/// Rows of a layer's problem: as many as this times its weights by channel, within limits.
const ROWS_A_WEIGHT: usize = 6;
const ROWS: std::ops::RangeInclusive<usize> = 1024..=8192;
/// A layer with more weights by channel is left as it is: its problem would take too long.
const DEEPEST: usize = 4608;
/// Inputs of all rows of a layer, in all its groups; more than that only for the least number of rows.
const INPUTS: usize = 64 << 20;
/// Bytes of target rows that are kept at a time.
const TARGETS: usize = 256 << 20;
/// The power that holds weights to where they started, as shares of the mean power of an input; little where steps are
/// coarse, for then rounding loses more than the noise of the inputs can mislead.
const RIDGES: [f32; 3] = [1.0, 0.3, 3.0];
/// Weights of fewer steps than this are coarse: all shares are tried.
const COARSE: i32 = 32;

/// What is fitted anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Biases: the mean of each output channel becomes what it was (Nagel et al. 2019, section 4.2, empirical).
    Biases,
    /// Weights and biases.
    Weights,
}

/// What became of one layer.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Gain {
    /// The node.
    pub node: String,
    /// Noise over signal of its output on the judging samples, with the nearest integers.
    pub before: f64,
    /// The same with the new ones; equal to `before` if those were not better.
    pub after: f64,
}

/// What a layer's outputs should be, at some places of one run.
struct Target {
    places: Vec<usize>,
    rows: Vec<f32>,
}

/// What reconstruction found.
pub struct Reconstruction {
    /// What became of each layer.
    pub gains: Vec<Gain>,
    /// Its new constants.
    pub changes: Vec<Change>,
}

/// Rounds the weights of `quantized` anew. `reference` is the graph that it was made from, with the same node ids; the
/// weight of each node has this form.
pub fn reconstruct(
    reference: &Graph,
    quantized: &Graph,
    (samples, shares, budget): (&Samples, &Shares, Budget),
    (form, fit): (&dyn Fn(NodeId) -> Form, Fit),
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Reconstruction, Error> {
    let (float, program) = (Program::new(reference)?, Program::new(quantized)?);
    let same = |l: &Layer| reference.has_node(l.node) && l.depth <= DEEPEST;
    let mut first = Lockstep::new(&program, (0..samples.len().min(1)).map(|i| samples.load(i)))?;
    let layers: Vec<Layer> = first.order().filter_map(|id| Layer::of(quantized, id)).filter(same).collect();
    let runs = shares.abreast(most(&mut first, &layers, budget.abreast)?);
    let mut lockstep = Lockstep::new(&program, runs.iter().map(|run| samples.load(run.sample)))?;
    let (mut gains, mut changes) = (Vec::new(), Vec::new());
    for part in parts(&layers).into_iter().take_while(|_| !budget::is_ending()) {
        let targets = targets(reference, &float, (samples, &runs), part)?;
        for layer in part.iter().take_while(|_| !budget::is_ending()) {
            progress(gains.len() + 1, layers.len());
            let Some(targets) = targets.get(&layer.node) else { continue };
            lockstep.advance_to(layer.input)?;
            let form = form(layer.node);
            let all = budget.ridges || form.limit < COARSE;
            let solver = Solver {
                graph: quantized,
                layer,
                lockstep: &lockstep,
                runs: &runs,
                targets,
                form,
                fit,
                rounds: budget.rounds,
                ridges: &RIDGES[..if all { RIDGES.len() } else { 1 }],
            };
            let (gain, constants) =
                solver.solve().map_err(|e| e.within(node_label(quantized, layer.node)))?;
            gains.push(gain);
            constants.iter().for_each(|(_, real, _)| lockstep.replace(real.0, &real.1));
            changes.push(constants.into_iter().map(|(constant, _, array)| (constant, array)).collect());
        }
    }
    Ok(Reconstruction { gains, changes })
}

/// How many of the wanted runs may stand side by side, by what one keeps on its way through the layers.
fn most(one: &mut Lockstep, layers: &[Layer], wanted: usize) -> Result<usize, Error> {
    let mut kept = one.bytes();
    for layer in layers {
        one.advance_to(layer.input)?;
        kept = kept.max(one.bytes());
    }
    Ok(usize::try_from(KEPT / kept.max(1)).unwrap_or(wanted).min(wanted).max(LEAST))
}

fn rows(layer: &Layer) -> usize {
    let most = (INPUTS / (layer.depth * layer.groups).max(1)).clamp(*ROWS.start(), *ROWS.end());
    (layer.depth * ROWS_A_WEIGHT).clamp(*ROWS.start(), most)
}

/// The layers in stretches whose targets fit in memory.
fn parts(layers: &[Layer]) -> Vec<&[Layer]> {
    let (mut parts, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (i, layer) in layers.iter().enumerate() {
        let own = rows(layer) * layer.channels * 4;
        if bytes + own > TARGETS && i > start {
            parts.push(&layers[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += own;
    }
    parts.push(&layers[start..]);
    parts
}

/// The outputs of these layers in the float graph, at places spread over all runs.
fn targets(
    reference: &Graph,
    float: &Program,
    (samples, all): (&Samples, &[Run]),
    layers: &[Layer],
) -> Result<BTreeMap<NodeId, Vec<Option<Target>>>, Error> {
    let outputs: BTreeMap<ValueId, (usize, &Layer)> =
        layers.iter().enumerate().filter_map(|(i, l)| Some((reference.output(l.node, 0)?, (i, l)))).collect();
    let found: Mutex<BTreeMap<NodeId, Vec<Option<Target>>>> = Mutex::new(BTreeMap::new());
    let runs = all.len().max(1);
    all.par_iter().enumerate().try_for_each(|(run, &Run { sample, .. })| {
        let mut problem = None;
        float.run_as_far_as_possible(&samples.load(sample)?, &mut |id: ValueId, array: &Array| {
            let Some((index, layer)) = outputs.get(&id) else { return };
            let wanted = rows(layer).div_ceil(runs);
            let places = spread(layer.places(array.shape()), wanted, run * 1000 + index);
            match layer.outputs(array, &places) {
                Ok(rows) => {
                    let Ok(mut found) = found.lock() else { return };
                    let runs = found.entry(layer.node).or_default();
                    runs.resize_with(runs.len().max(run + 1), || None);
                    runs[run] = Some(Target { places, rows });
                }
                Err(fault) => problem = Some(fault.at(reference.name(id))),
            }
        })?;
        problem.map_or(Ok(()), Err)
    })?;
    found.into_inner().map_err(|_| Fault::new("a thread failed").at("reconstruction"))
}

/// `wanted` of `count` places, evenly spread with a jitter that depends on `seed`; all of them if there are fewer.
fn spread(count: usize, wanted: usize, seed: usize) -> Vec<usize> {
    if wanted >= count {
        return (0..count).collect();
    }
    let jitter = |i: usize| {
        let mut x = (i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ (seed as u64).wrapping_mul(0xD134_2543_DE82_EF95);
        x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x >> 11) as f64 / (1u64 << 53) as f64
    };
    let place = |i: usize| ((i as f64 + jitter(i)) * count as f64 / wanted as f64) as usize;
    (0..wanted).map(|i| place(i).min(count - 1)).collect()
}

struct Solver<'a> {
    graph: &'a Graph,
    layer: &'a Layer,
    lockstep: &'a Lockstep<'a>,
    runs: &'a [Run],
    targets: &'a [Option<Target>],
    form: Form,
    fit: Fit,
    rounds: usize,
    ridges: &'static [f32],
}

/// A constant of the graph, what its dequantized value is in the runs, and its new integers.
type Solved = (ValueId, (ValueId, Array), Array);

/// Integers by output channel, and biases in real numbers.
#[derive(Clone, PartialEq)]
struct Solution {
    integers: Vec<i32>,
    bias: Vec<f32>,
}

impl Solution {
    /// The weights by output channel.
    fn weights(&self, grids: &[Grid]) -> Vec<f32> {
        let depth = self.integers.len() / grids.len().max(1);
        self.integers.iter().enumerate().map(|(i, &q)| q as f32 * grids[i / depth].scale).collect()
    }

    /// The same with the bias behind the weights of each channel.
    fn real(&self, grids: &[Grid], with_bias: bool) -> Vec<f32> {
        let (weights, depth) = (self.weights(grids), self.integers.len() / grids.len().max(1));
        let rows = weights.chunks(depth.max(1)).zip(&self.bias);
        rows.flat_map(|(w, &b)| w.iter().copied().chain(with_bias.then_some(b))).collect()
    }
}

/// The solution of one group, with squared errors and signal on the judging samples.
struct Fitted {
    solution: Solution,
    before: f64,
    after: f64,
    signal: f64,
}

/// Rows of inputs and outputs, those of one group behind those of another.
struct Gathered {
    x: Vec<f32>,
    y: Vec<f32>,
    /// Rows of a group.
    count: usize,
    width: usize,
}

impl Gathered {
    /// Each group by itself.
    fn groups(&mut self, layer: &Layer) -> impl IndexedParallelIterator<Item = Rows<'_>> {
        let (width, channels, count) = (self.width, layer.channels / layer.groups, self.count);
        let x = self.x.par_chunks_mut((count * width).max(1));
        x.zip(self.y.par_chunks_mut((count * channels).max(1)))
            .map(move |(x, y)| Rows::new(width, channels, x, y))
    }
}

impl Solver<'_> {
    fn solve(&self) -> Result<(Gain, Vec<Solved>), Error> {
        let at = |f: Fault| f.at("reconstruction");
        let layer = self.layer;
        let scales = layer.scales(self.graph).map_err(at)?;
        let start = self.start().map_err(at)?;
        let with_bias = !matches!(layer.bias, Bias::Fixed);
        let (depth, per_group) = (layer.depth, layer.channels / layer.groups);
        let partners = self.partners();
        let grid = |&scale: &f32| Grid {
            scale,
            limit: self.form.limit,
            partners: &partners,
            pair_limit: pairs::LIMIT,
        };
        let grids: Vec<Grid> = scales.iter().map(grid).collect();
        let width = depth + usize::from(with_bias);
        let mut learned = self.gather(width, |run| run.learns)?;
        let mut judging = self.gather(width, |run| run.judges)?;
        let solve_group = |(group, (fit, judge)): (usize, (Rows, Rows))| {
            let channels = group * per_group..(group + 1) * per_group;
            let first = Solution {
                integers: start.integers[channels.start * depth..channels.end * depth].to_vec(),
                bias: start.bias[channels.clone()].to_vec(),
            };
            let grids = &grids[channels];
            let error = |s: &Solution| judge.error(&s.real(grids, with_bias), layer.saturation);
            let gram = fit.gram();
            let descend = |&ridge: &f32| {
                let mut next = first.clone();
                let mut moments = Moments { width: fit.width, inputs: gram.clone(), cross: Vec::new() };
                let anchor = moments.anchor(&first.weights(grids), depth, ridge);
                let mut aim = fit.aim(layer.saturation);
                for _ in 0..self.rounds {
                    let cross = aim.at(&next.real(grids, with_bias));
                    moments.cross = cross.iter().zip(&anchor).map(|(b, a)| b + a).collect();
                    let before = next.clone();
                    moments.descend(&mut next.integers, &mut next.bias, grids, self.fit == Fit::Weights);
                    if before == next {
                        break;
                    }
                }
                (error(&next), next)
            };
            let before = error(&first);
            let mut best = (before, first.clone());
            for other in self.ridges.iter().map(descend) {
                if other.0 < best.0 {
                    best = other;
                }
            }
            let (after, solution) = best;
            Fitted { solution, before, after, signal: judge.signal(layer.saturation) }
        };
        let groups = learned.groups(self.layer).zip(judging.groups(self.layer)).enumerate();
        let groups: Vec<_> = groups.map(solve_group).collect();
        let sum = |f: fn(&Fitted) -> f64| groups.iter().map(f).sum::<f64>();
        let signal = sum(|g| g.signal).max(f64::MIN_POSITIVE);
        let node = node_label(self.graph, layer.node);
        let gain = Gain { node, before: sum(|g| g.before) / signal, after: sum(|g| g.after) / signal };
        let solution = match groups.len() == layer.groups {
            true => Solution {
                integers: groups.iter().flat_map(|g| g.solution.integers.iter().copied()).collect(),
                bias: groups.iter().flat_map(|g| g.solution.bias.iter().copied()).collect(),
            },
            // No run came here.
            false => start.clone(),
        };
        Ok((gain, self.constants(&start, &solution, &scales).map_err(at)?))
    }

    /// The integers and the bias of the graph as it is.
    fn start(&self) -> Result<Solution, Fault> {
        let constant = |id| self.graph.constant(id).ok_or("a constant is missing")?.array();
        let stored = constant(self.layer.weight.integers)?;
        let integers: Vec<i32> = stored.slice::<i8>()?.iter().map(|&q| q.into()).collect();
        let bias = match self.layer.bias {
            Bias::Stored(bias) => {
                let (integers, scales) = (constant(bias.integers)?, constant(bias.scales)?);
                let scales = scales.slice::<f32>()?.iter().cycle();
                integers.slice::<i32>()?.iter().zip(scales).map(|(&q, s)| q as f32 * s).collect()
            }
            _ => vec![0.0; self.layer.channels],
        };
        if bias.len() != self.layer.channels {
            crate::fail!("{} biases for {} channels", bias.len(), self.layer.channels);
        }
        Ok(Solution { integers: self.layer.by_channel(&integers), bias })
    }

    fn partners(&self) -> Vec<Vec<u32>> {
        let tensor = self
            .graph
            .constant(self.layer.weight.integers)
            .filter(|_| self.form.pairs && self.form.limit > 63);
        tensor.map_or(Vec::new(), |t| pairs::partners(t.shape(), Some(self.layer.channel_axis())))
    }

    /// The rows of the chosen runs, of so many inputs each.
    fn gather(&self, width: usize, choose: impl Fn(&Run) -> bool) -> Result<Gathered, Error> {
        let at = |f: Fault| f.at("reconstruction");
        let (layer, channels) = (self.layer, self.layer.channels / self.layer.groups);
        let chosen = self.runs.iter().zip(self.targets).enumerate().filter(|(_, (run, _))| choose(run));
        let chosen: Vec<(usize, &Target)> =
            chosen.filter_map(|(run, (_, target))| Some((run, target.as_ref()?))).collect();
        let count: usize = chosen.iter().map(|(_, target)| target.places.len()).sum();
        let room = |columns: usize| vec![0.0; layer.groups * count * columns];
        let (mut x, mut y) = (room(width), room(channels));
        let mut own: Vec<Vec<_>> = chosen.iter().map(|_| Vec::with_capacity(layer.groups)).collect();
        let (mut xs, mut ys) = (&mut *x, &mut *y);
        for _ in 0..layer.groups {
            for (own, (_, target)) in own.iter_mut().zip(&chosen) {
                let (x, y);
                (x, xs) = xs.split_at_mut(target.places.len() * width);
                (y, ys) = ys.split_at_mut(target.places.len() * channels);
                own.push((x, y));
            }
        }
        own.into_par_iter().zip(chosen).try_for_each(|(groups, (run, target))| {
            // What a run does not reach stays zero and counts for nothing.
            let Some(input) = self.lockstep.peek(run, layer.input)? else { return Ok(()) };
            let sources = layer.sources(input.shape(), &target.places).map_err(at)?;
            let values = input.slice::<f32>().map_err(at)?;
            for (group, (x, y)) in groups.into_iter().enumerate() {
                layer.inputs(values, &sources, group, x);
                let rows = y.chunks_mut(channels).zip(target.rows.chunks(layer.channels));
                rows.for_each(|(y, all)| y.copy_from_slice(&all[group * channels..][..channels]));
            }
            Ok::<_, Error>(())
        })?;
        Ok(Gathered { x, y, count, width })
    }

    /// The constants that change, as integers and as the runs see them.
    fn constants(&self, start: &Solution, found: &Solution, scales: &[f32]) -> Result<Vec<Solved>, Fault> {
        let layer = self.layer;
        let mut solved = Vec::new();
        if found.integers != start.integers {
            let shape = self.graph.constant(layer.weight.integers).ok_or("the weight is missing")?.shape();
            let real = |(i, &q): (usize, &i32)| q as f32 * scales[i / layer.depth];
            let real: Vec<f32> = found.integers.iter().enumerate().map(real).collect();
            let integers: Vec<i8> = found.integers.iter().map(|&q| q as i8).collect();
            let real = Array::new(shape, layer.as_stored(&real))?;
            solved.push((
                layer.weight.integers,
                (layer.weight.real, real),
                Array::new(shape, layer.as_stored(&integers))?,
            ));
        }
        match layer.bias {
            Bias::Stored(bias) if found.bias != start.bias => {
                let scales = self.graph.constant(bias.scales).ok_or("the scales are missing")?.array()?;
                let scales: Vec<f32> =
                    scales.slice::<f32>()?.iter().copied().cycle().take(layer.channels).collect();
                let integer = |(&b, s): (&f32, &f32)| {
                    let q = (f64::from(b) / f64::from(*s)).round_ties_even();
                    q.clamp(i32::MIN.into(), i32::MAX.into()) as i32
                };
                let integers: Vec<i32> = found.bias.iter().zip(&scales).map(integer).collect();
                let real = integers.iter().zip(&scales).map(|(&q, s)| q as f32 * s).collect::<Vec<f32>>();
                solved.push((bias.integers, (bias.real, Array::vector(real)), Array::vector(integers)));
            }
            Bias::Added(vector) if found.bias != start.bias => {
                let old = self.graph.constant(vector).ok_or("the bias is missing")?.array()?;
                let sum: Vec<f32> = old.slice::<f32>()?.iter().zip(&found.bias).map(|(a, b)| a + b).collect();
                let sum = Array::new(old.shape(), sum)?;
                solved.push((vector, (vector, sum.clone()), sum));
            }
            _ => {}
        }
        Ok(solved)
    }
}
