//! Constants as integers: weights, biases, and constant operands of arithmetic.
//!
//! A weight is symmetric, in [-127, 127] or fewer steps, per output channel where the operator has one axis for it. A bias is
//! `int32` at scale `x_scale · w_scale`, which is what the kernels accumulate in; where that scale is too fine for the
//! bias to fit, the weight's scale is raised for the channel.

pub mod pairs;

use std::collections::BTreeMap;
use std::sync::Mutex;

use rayon::prelude::*;

pub use pairs::saturating_channels;

use super::candidate::{Candidate, activation_slots};
use super::plan::Plan;
use super::target::Target;
use crate::error::Fault;
use crate::ir::{Array, DType, Graph, NodeId, QuantParams, Rule};
use crate::kernels::math::round;

/// A constant in integers. `real ≈ (elements - zero_point) · scale`, by channel if there are several scales.
#[derive(Debug, Clone)]
pub struct Constant {
    /// The integers, in the shape of the original.
    pub elements: Array,
    /// One scale, or one for each index along `axis`.
    pub scales: Vec<f32>,
    /// The integer that stands for 0.
    pub zero_point: i32,
    /// The axis that the scales run along; `None`: one scale.
    pub axis: Option<usize>,
}

impl Constant {
    /// The real numbers that the integers stand for.
    pub fn dequantized(&self) -> Result<Array, Fault> {
        let shape = self.elements.shape();
        let inner: usize = self.axis.map_or(1, |a| shape[a + 1..].iter().product());
        let mut real: Vec<f32> = self.elements.to_f32()?.iter().map(|q| q - self.zero_point as f32).collect();
        let scales = self.scales.iter().cycle();
        real.chunks_mut(inner.max(1)).zip(scales).for_each(|(row, s)| row.iter_mut().for_each(|x| *x *= s));
        Array::new(shape, real)
    }
}

/// What integers weights become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The largest magnitude.
    pub limit: i32,
    /// A scale for each output channel; else one for the whole weight.
    pub by_channel: bool,
    /// No pair of products may leave 16 bits.
    pub pairs: bool,
}

impl Form {
    /// The axis of a weight that scales run along, given the one that counts output channels: kernels take scales by
    /// channel for matrices, and for weights whose first axis counts channels.
    pub fn axis(self, weight: &Array, channel_axis: Option<usize>) -> Option<usize> {
        let by_channel = channel_axis.filter(|_| self.by_channel && weight.rank() >= 2);
        by_channel.filter(|&a| a == 0 || weight.rank() == 2)
    }
}

/// All of `int8` but -128.
pub const FULL: i32 = 127;

/// The largest share of the int32 range that a bias may take, leaving room for the sum of products.
const BIAS_LIMIT: f64 = (i32::MAX / 2) as f64;

/// A node and one of its inputs.
type Slot = (NodeId, usize);

/// Weights that were quantized before: proposals differ in what is integer and in the ranges of activations, on which a
/// weight depends only if its bias would not fit.
#[derive(Debug, Default)]
pub struct Memo(Mutex<BTreeMap<NodeId, (Form, Constant)>>);

impl Memo {
    /// The weight of a node in this form, which `make` computes.
    pub fn get(
        &self,
        id: NodeId,
        form: Form,
        make: impl FnOnce() -> Result<Constant, Fault>,
    ) -> Result<Constant, Fault> {
        let known = || Some(self.0.lock().ok()?.get(&id).filter(|known| known.0 == form)?.1.clone());
        if let Some(known) = known() {
            return Ok(known);
        }
        let made = make()?;
        if let Ok(mut known) = self.0.lock() {
            known.insert(id, (form, made.clone()));
        }
        Ok(made)
    }
}

/// Quantizes all constants of integer nodes.
pub fn solve(
    graph: &Graph,
    plan: &Plan,
    target: &Target,
    memo: &Memo,
) -> Result<BTreeMap<(NodeId, usize), Constant>, Fault> {
    let nodes: Vec<&Candidate> = plan.placement.integer.values().collect();
    let solved = nodes.par_iter().map(|candidate| of_node(graph, plan, candidate, (target, memo)));
    Ok(solved.collect::<Result<Vec<_>, Fault>>()?.into_iter().flatten().collect())
}

/// The constants of one node: of a product its weight and its bias, and operands.
fn of_node(
    graph: &Graph,
    plan: &Plan,
    candidate: &Candidate,
    (target, memo): (&Target, &Memo),
) -> Result<BTreeMap<Slot, Constant>, Fault> {
    let (id, mut solved) = (candidate.id, BTreeMap::new());
    if let Rule::Contraction { weight, channel_axis, bias } = candidate.rule
        && let Some(tensor) = graph.constant_input(id, weight)
    {
        let input = candidate.activations.first().and_then(|&v| plan.params(id, v));
        let Some(input_scale) = input.map(|params| params.scale) else { return Ok(solved) };
        let array = tensor.array()?;
        let bias = bias.filter(|_| target.integer_bias);
        let bias = bias.and_then(|slot| Some((slot, graph.constant_input(id, slot)?.array())));
        let bias = bias.map(|(slot, array)| Ok::<_, Fault>((slot, array?.to_f32()?))).transpose()?;
        let offsets: Vec<f32> = bias.iter().flat_map(|(_, b)| b.iter().copied()).collect();
        let form = plan.form(target, id);
        let make = |bias: &[f32]| weight_of(&array, channel_axis, input_scale, bias, form);
        let mut quantized = memo.get(id, form, || make(&[]))?;
        let scale = |c: usize| quantized.scales.get(c).or(quantized.scales.last());
        if offsets.iter().enumerate().any(|(c, &b)| scale(c).is_some_and(|&s| s < finest(b, input_scale))) {
            quantized = make(&offsets)?;
        }
        if let Some((slot, _)) = bias {
            solved.insert((id, slot), bias_of(&offsets, input_scale, &quantized.scales));
        }
        solved.insert((id, weight), quantized);
    }
    for slot in activation_slots(&candidate.rule, graph.node(id).inputs) {
        if let Some(tensor) = graph.constant_input(id, slot)
            && let std::collections::btree_map::Entry::Vacant(entry) = solved.entry((id, slot))
        {
            entry.insert(operand_of(&tensor.array()?)?);
        }
    }
    Ok(solved)
}

/// A weight of this form as symmetric `int8`, given the axis that counts output channels. `bias` is by channel, or empty.
/// With few steps scales are those that lose least; with 127 they hold the largest weight.
pub fn weight_of(
    array: &Array,
    channel_axis: Option<usize>,
    input_scale: f32,
    bias: &[f32],
    form: Form,
) -> Result<Constant, Fault> {
    let axis = form.axis(array, channel_axis);
    let real = array.slice::<f32>()?;
    let channels = axis.map_or(1, |a| array.shape()[a]);
    let inner: usize = axis.map_or(1, |a| array.shape()[a + 1..].iter().product::<usize>()).max(1);
    let channel = |index: usize| if axis.is_some() { index / inner % channels } else { 0 };
    let mut scales: Vec<f32> = if form.limit < FULL {
        let mut rows = vec![Vec::new(); channels];
        real.iter().enumerate().for_each(|(index, &w)| rows[channel(index)].push(w));
        rows.iter().map(|row| least_error(row, form.limit as f32)).collect()
    } else {
        let mut largest = vec![0f32; channels];
        for (index, value) in real.iter().enumerate() {
            let slot = &mut largest[channel(index)];
            *slot = slot.max(value.abs());
        }
        largest.iter().map(|&m| scale_for(m)).collect()
    };
    for (c, &b) in bias.iter().enumerate() {
        let finest = finest(b, input_scale);
        let scale = &mut scales[if channels == 1 { 0 } else { c.min(channels - 1) }];
        *scale = scale.max(finest);
    }
    let mut elements = vec![0i8; real.len()];
    if form.pairs && form.limit == FULL && array.rank() >= 2 {
        pairs::quantize(array.shape(), channel_axis == Some(0), real, &mut scales, &mut elements);
    } else {
        for (i, (q, &w)) in elements.iter_mut().zip(real).enumerate() {
            *q = nearest(w, scales[channel(i)], form.limit);
        }
    }
    Ok(Constant { elements: Array::new(array.shape(), elements)?, scales, zero_point: 0, axis })
}

/// The least scale of a weight at which its bias fits.
fn finest(bias: f32, input_scale: f32) -> f32 {
    (f64::from(bias.abs()) / BIAS_LIMIT / f64::from(input_scale)) as f32
}

/// The integer nearest to `w / scale`, symmetric.
fn nearest(w: f32, scale: f32, limit: i32) -> i8 {
    round(w / scale).clamp(-limit as f32, limit as f32) as i8
}

/// Shares of the greatest weight that are tried as the end of a range, in fiftieths.
const FIFTIETHS: std::ops::RangeInclusive<u16> = 15..=50;

/// The scale at which rounding to `-high..=high` loses least.
pub fn least_error(weights: &[f32], high: f32) -> f32 {
    let largest = weights.iter().fold(0f32, |m, w| m.max(w.abs()));
    let error = |scale: f32| -> f64 {
        let of = |&w: &f32| f64::from(w - round(w / scale).clamp(-high, high) * scale).powi(2);
        weights.iter().map(of).sum()
    };
    let scales = FIFTIETHS.map(|n| largest * f32::from(n) / 50.0 / high).filter(|s| s.is_normal());
    scales.map(|s| (error(s), s)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(1.0, |(_, s)| s)
}

fn scale_for(largest: f32) -> f32 {
    let scale = largest / 127.0;
    if scale.is_normal() { scale } else { 1.0 }
}

fn bias_of(bias: &[f32], input_scale: f32, weight_scales: &[f32]) -> Constant {
    let scale = |c: usize| input_scale * weight_scales[if weight_scales.len() == 1 { 0 } else { c }];
    let quantize = |(c, &b): (usize, &f32)| {
        let q = (f64::from(b) / f64::from(scale(c))).round_ties_even();
        q.clamp(i32::MIN.into(), i32::MAX.into()) as i32
    };
    let elements = Array::vector(bias.iter().enumerate().map(quantize).collect::<Vec<i32>>());
    let per_channel = weight_scales.len() > 1;
    let scales = if per_channel { (0..bias.len()).map(scale).collect() } else { vec![scale(0)] };
    Constant { elements, scales, zero_point: 0, axis: per_channel.then_some(0) }
}

/// A constant operand of arithmetic, quantized like an activation with the range that it has.
fn operand_of(array: &Array) -> Result<Constant, Fault> {
    let real = array.slice::<f32>()?;
    let low = real.iter().copied().fold(0f32, f32::min);
    let high = real.iter().copied().fold(0f32, f32::max);
    let params = QuantParams::asymmetric(low, high, DType::U8);
    let elements =
        Array::new(array.shape(), real.iter().map(|&v| params.quantize(v) as u8).collect::<Vec<u8>>())?;
    Ok(Constant { elements, scales: vec![params.scale], zero_point: params.zero_point, axis: None })
}
