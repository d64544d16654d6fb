//! Fewer bits than eight to start with: scales for fewer levels, by least squared error.

use std::collections::BTreeSet;

use super::student::{Kind, Student};
use crate::calibrate::observer::Observers;
use crate::calibrate::threshold::{Calibrator, Grid};
use crate::error::Fault;
use crate::ir::{Array, Graph, NodeId, Tensor, ValueId};
use crate::quantize::weights::{Form, least_error, pairs};

/// The float value that a quantized activation stands for in the graph that was quantized.
fn original(student: &Student, reference: &Graph, quantize: NodeId) -> Option<ValueId> {
    let graph = &student.quantized;
    let same = |v: &ValueId| reference.has_still(*v, graph);
    let pairs = graph.uses(graph.output(quantize, 0)?);
    let after = pairs.iter().filter_map(|u| graph.output(u.node, 0));
    graph.input(quantize, 0).into_iter().chain(after).find(same)
}

impl Student {
    /// Gives every weight one scale instead of one for each channel, as runtimes without scales by channel need it.
    /// [`Student::narrow_weights`] then chooses it.
    pub fn join_channels(&mut self) {
        for index in 0..self.quantizers.len() {
            let quantizer = &mut self.quantizers[index];
            if matches!(quantizer.kind, Kind::Weight { .. }) && quantizer.fake.axis.take().is_some() {
                let (scale, fake) = (quantizer.scale, &quantizer.fake);
                let (low, high) = (fake.low, fake.high);
                let one = Array::scalar(1f32);
                self.graph.set_constant(self.parameters[scale].value, Tensor::from_array(&one));
                self.parameters[scale].start = one;
                self.limit(index, low, high);
            }
        }
    }

    /// Holds weights to the form in which they are stored: limits, and pairs whose products stay within 16 bits. Weights
    /// that are beyond the limits, which are not of that form, keep theirs.
    pub fn keep_to(&mut self, form: Form) -> Result<(), Fault> {
        for index in 0..self.quantizers.len() {
            let Kind::Weight { integers, .. } = self.quantizers[index].kind else { continue };
            let stored = self.quantized.constant(integers).map(Tensor::array).transpose()?;
            let within = |q: &i8| i32::from(*q).abs() <= form.limit;
            if !stored.and_then(|a| Some(a.get::<i8>()?.iter().all(within))).unwrap_or(false) {
                continue;
            }
            self.limit(index, -form.limit, form.limit);
            if form.pairs && 2 * form.limit > pairs::LIMIT {
                self.keep_pairs(index);
            }
        }
        Ok(())
    }

    /// Leaves weights and their scales as they are.
    pub fn keep_weights(&mut self) {
        for quantizer in &self.quantizers {
            if let Kind::Weight { real, .. } = quantizer.kind {
                [real, quantizer.scale].into_iter().for_each(|p| self.parameters[p].trained = false);
            }
        }
    }

    /// Holds weights to `bits` bits.
    pub fn narrow_weights(&mut self, bits: u32) -> Result<(), Fault> {
        let high = (1 << (bits - 1)) - 1;
        for index in 0..self.quantizers.len() {
            let quantizer = self.quantizers[index].clone();
            let Kind::Weight { real, .. } = quantizer.kind else { continue };
            if quantizer.fake.low >= 0 {
                continue;
            }
            self.limit(index, -high, high);
            let weight = &self.parameters[real].start;
            let values = weight.slice::<f32>()?;
            let count = self.parameters[quantizer.scale].start.len();
            let inner: usize = quantizer.fake.axis.map_or(1, |a| weight.shape()[a + 1..].iter().product());
            let channel = |i: usize| if count == 1 { 0 } else { i / inner.max(1) % count };
            let mut channels = vec![Vec::new(); count];
            values.iter().enumerate().for_each(|(i, &w)| channels[channel(i)].push(w));
            let scales: Vec<f32> = channels.iter().map(|c| least_error(c, high as f32)).collect();
            let shape = self.parameters[quantizer.scale].start.shape().to_vec();
            self.parameters[quantizer.scale].start = Array::new(&shape, scales)?;
        }
        Ok(())
    }

    /// Holds activations to `bits` bits, but for the graph's inputs and what a kernel fixes.
    pub fn narrow_activations_to(
        &mut self,
        bits: u32,
        reference: &Graph,
        seen: &Observers<ValueId>,
    ) -> Result<(), Fault> {
        let levels = 1u32 << bits;
        let mut solved = BTreeSet::new();
        let outer: BTreeSet<usize> =
            self.quantizers.iter().filter(|q| self.is_input(&q.kind)).map(|q| q.scale).collect();
        for index in 0..self.quantizers.len() {
            let quantizer = self.quantizers[index].clone();
            let Kind::Activation(id) = quantizer.kind else { continue };
            let fixed = !self.parameters[quantizer.scale].trained || quantizer.fake.low != 0;
            if fixed || outer.contains(&quantizer.scale) {
                continue;
            }
            if solved.insert(quantizer.scale) {
                let Some(observer) = original(self, reference, id).and_then(|v| seen.get(v)) else {
                    solved.remove(&quantizer.scale);
                    continue;
                };
                let range = Calibrator::Mse.choose(&observer.histogram, Grid::asymmetric(levels)).range;
                let scale = (range.hi - range.lo) / (levels - 1) as f32;
                let scale = if scale.is_normal() { scale } else { 1.0 };
                let zero = (-range.lo / scale).round_ties_even().clamp(0.0, (levels - 1) as f32);
                let shape = self.parameters[quantizer.scale].start.shape().to_vec();
                self.parameters[quantizer.scale].start = Array::new(&shape, vec![scale])?;
                self.parameters[quantizer.zero].start = Array::scalar(zero);
                self.parameters[quantizer.zero].role = super::student::Role::Zero(0, levels as i32 - 1);
                self.parameters[quantizer.zero].trained = zero > 0.0 && zero < (levels - 1) as f32;
            }
            self.limit(index, 0, levels as i32 - 1);
        }
        Ok(())
    }

    fn is_input(&self, kind: &Kind) -> bool {
        match kind {
            Kind::Activation(id) => {
                self.quantized.input(*id, 0).is_some_and(|v| self.quantized.inputs.contains(&v))
            }
            Kind::Weight { .. } => false,
        }
    }
}
