//! The graph as a tape: run forward keeping what the way back needs, then backward in the reverse order.
//!
//! A run belongs to one sample and one thread. Contributions to a gradient are added in the reverse order of the
//! schedule, so the result does not depend on how many threads there are.
//!
//! Memory can be had for time (Chen et al. 2016, <https://arxiv.org/abs/1604.06174>): the steps are cut into about √n
//! segments where little is live, only what crosses a cut is kept, and each segment runs again before its way back. The
//! kernels give the same bits each time, so the gradient stays the same.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::budget;
use crate::error::{Error, Fault};
use crate::interpret::adjoint::accumulate;
use crate::interpret::{node_label, room};
use crate::ir::{Array, Graph, NodeId, Op, Run, ValueId, schedule};

/// A graph that can be run forward and backward.
pub struct Tape {
    steps: Vec<Step>,
    /// Where each segment ends; one segment if nothing is run again.
    segments: Vec<Segment>,
    slots: HashMap<ValueId, usize>,
    /// The values before a run: constants are there, the others are empty.
    initial: Vec<Option<Array>>,
    /// Inputs that every sample gives.
    inputs: Vec<usize>,
    trainable: Vec<usize>,
    /// Values to which a gradient comes from the loss.
    reached: Vec<bool>,
    /// Nodes at which a gradient ends although a real number goes on.
    stopped: Vec<String>,
}

struct Step {
    op: Arc<dyn Op>,
    place: String,
    inputs: Vec<Option<usize>>,
    outputs: Vec<Option<usize>>,
    /// Inputs that depend on something trainable; if none does, the step has no way back.
    wanted: Vec<bool>,
    /// Slots that neither a later step nor the way back reads.
    done: Vec<usize>,
}

/// Steps that run again together.
struct Segment {
    end: usize,
    /// Values made here that nothing behind it reads.
    inner: Vec<usize>,
}

impl Step {
    fn goes_back(&self) -> bool {
        self.wanted.contains(&true)
    }
}

/// The values of one run.
pub struct Record {
    values: Vec<Option<Array>>,
}

impl Tape {
    /// Compiles a graph. `trainable` are the constants whose gradient is wanted, `taps` the values that a loss reads.
    pub fn new(graph: &Graph, trainable: &[ValueId], taps: &[ValueId]) -> Result<Self, Error> {
        Self::in_blocks(graph, trainable, taps, &[])
    }

    /// The same, but no gradient passes the values `ends` from behind: each block between them learns from what the loss
    /// says of its own end.
    pub fn in_blocks(
        graph: &Graph,
        trainable: &[ValueId],
        taps: &[ValueId],
        ends: &[ValueId],
    ) -> Result<Self, Error> {
        let slots: HashMap<ValueId, usize> =
            graph.values().enumerate().map(|(slot, id)| (id, slot)).collect();
        let mut initial = vec![None; slots.len()];
        for (&id, &slot) in &slots {
            let value = graph.value(id);
            initial[slot] = value.constant.as_ref().or(value.default.as_ref()).and_then(|t| t.array().ok());
        }
        let inputs = graph.inputs.iter().map(|v| slots[v]).filter(|&s| initial[s].is_none()).collect();
        let mut active = vec![false; slots.len()];
        let trainable: Vec<usize> = trainable.iter().map(|v| slots[v]).collect();
        trainable.iter().for_each(|&s| active[s] = true);
        let (steps, segments, reached, stopped) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut tape = Self { steps, segments, slots, initial, inputs, trainable, reached, stopped };
        for id in schedule(graph).map_err(|f| f.at("scheduling"))? {
            tape.append(graph, id, &mut active)?;
            let ended = graph.outputs_of(id).into_iter().flatten().filter(|v| ends.contains(v));
            ended.for_each(|v| active[tape.slots[&v]] = false);
        }
        let needed = tape.live(taps, |_, _| true);
        tape.steps.retain(|step| step.outputs.iter().flatten().any(|&s| needed[s]));
        tape.reached = tape.live(taps, |step, input| step.wanted.get(input) == Some(&true));
        tape.note_done(taps);
        tape.segments.push(Segment { end: tape.steps.len(), inner: Vec::new() });
        Ok(tape)
    }

    /// Keeps only what crosses cuts, and computes the rest again on the way back.
    pub fn recompute(&mut self, taps: &[ValueId]) {
        let count = self.steps.len();
        let (mut first, mut last) = (HashMap::new(), HashMap::new());
        for (index, step) in self.steps.iter().enumerate() {
            for &slot in step.outputs.iter().flatten() {
                first.entry(slot).or_insert(index);
            }
            last.extend(step.inputs.iter().chain(&step.outputs).flatten().map(|&slot| (slot, index)));
        }
        last.extend(taps.iter().map(|v| (self.slots[v], count)));
        // How many values are alive between a step and the next.
        let mut alive = vec![0usize; count];
        for (slot, &made) in &first {
            (made..last[slot].min(count)).for_each(|at| alive[at] += 1);
        }
        let length = (count as f64).sqrt().ceil() as usize;
        let mut start = 0;
        self.segments.clear();
        while start < count {
            let (near, far) = (start + length.div_ceil(2), start + length + length / 2);
            let cut = (near..far.min(count)).min_by_key(|&at| (alive[at - 1], at.abs_diff(start + length)));
            let end = cut.filter(|_| far < count).unwrap_or(count);
            let own = |slot: &usize| first.get(slot).is_some_and(|f| (start..end).contains(f));
            let mut inner: Vec<usize> = first.keys().copied().filter(|s| own(s) && last[s] < end).collect();
            inner.sort_unstable();
            // What comes from before is needed again.
            self.steps[start..end].iter_mut().for_each(|step| step.done.retain(own));
            self.segments.push(Segment { end, inner });
            start = end;
        }
    }

    /// Adds a step, or runs it now if it depends on constants alone.
    fn append(&mut self, graph: &Graph, id: NodeId, active: &mut [bool]) -> Result<(), Error> {
        let node = graph.node(id);
        let place = format!("node `{}` ({})", node_label(graph, id), node.op_type);
        let Some(op) = node.op.clone().filter(|op| node.unknown.is_none() && op.control().is_none()) else {
            let why = node.unknown.clone().unwrap_or_else(|| format!("training through {}", node.op_type));
            return Err(Fault::unimplemented(why).at(place));
        };
        let slot = |v: &Option<ValueId>| v.map(|v| self.slots[&v]);
        let inputs: Vec<_> = graph.inputs_of(id).iter().map(slot).collect();
        let outputs: Vec<_> = graph.outputs_of(id).iter().map(slot).collect();
        let mut wanted: Vec<bool> = inputs.iter().map(|s| s.is_some_and(|s| active[s])).collect();
        let real =
            graph.outputs_of(id).iter().flatten().any(|&v| graph.ty(v).is_some_and(|t| t.dtype.is_float()));
        if wanted.contains(&true) && op.gradient().is_none() {
            if real {
                self.stopped.push(place.clone());
            }
            wanted.fill(false);
        }
        let constant = |s: &usize| self.initial[*s].is_some() && !self.inputs.contains(s);
        let step = Step { op, place, inputs, outputs, wanted, done: Vec::new() };
        if step.goes_back() {
            step.outputs.iter().flatten().for_each(|&s| active[s] = true);
        } else if step.op.is_pure() && step.inputs.iter().flatten().all(constant) {
            let given: Vec<_> = step.inputs.iter().map(|s| s.and_then(|s| self.initial[s].clone())).collect();
            let arrays: Vec<Option<&Array>> = given.iter().map(Option::as_ref).collect();
            budget::fits(room::needed(&*step.op, &arrays), budget::room()).map_err(|f| f.at(&step.place))?;
            let results = step.op.float(&given).map_err(|f| f.at(&step.place))?;
            for (slot, array) in step.outputs.iter().zip(results) {
                slot.iter().for_each(|&s| self.initial[s] = Some(array.clone()));
            }
            return Ok(());
        }
        self.steps.push(step);
        Ok(())
    }

    /// Which values the taps depend on through inputs that count.
    fn live(&self, taps: &[ValueId], counts: impl Fn(&Step, usize) -> bool) -> Vec<bool> {
        let mut live = vec![false; self.initial.len()];
        taps.iter().for_each(|v| live[self.slots[v]] = true);
        for step in self.steps.iter().rev() {
            if step.outputs.iter().flatten().any(|&s| live[s]) {
                let inputs = step.inputs.iter().enumerate().filter(|(i, _)| counts(step, *i));
                inputs.filter_map(|(_, s)| *s).for_each(|s| live[s] = true);
            }
        }
        live
    }

    fn note_done(&mut self, taps: &[ValueId]) {
        let mut last: HashMap<usize, usize> = HashMap::new();
        let mut kept = vec![false; self.initial.len()];
        taps.iter().for_each(|v| kept[self.slots[v]] = true);
        for (index, step) in self.steps.iter().enumerate() {
            for &slot in step.inputs.iter().chain(&step.outputs).flatten() {
                last.insert(slot, index);
                kept[slot] |= step.goes_back();
            }
        }
        for (slot, index) in last {
            if !kept[slot] && self.initial[slot].is_none() {
                self.steps[index].done.push(slot);
            }
        }
    }

    /// Nodes at which gradients end.
    pub fn stopped(&self) -> &[String] {
        &self.stopped
    }

    /// Does the loss depend on the trainable constant with this number in a way that gradients can follow?
    pub fn reaches(&self, trainable: usize) -> bool {
        self.trainable.get(trainable).is_some_and(|&slot| self.reached[slot])
    }

    /// Changes a constant.
    pub fn set(&mut self, trainable: usize, array: Array) {
        if let Some(&slot) = self.trainable.get(trainable) {
            self.initial[slot] = Some(array);
        }
    }

    /// Runs a sample forward.
    pub fn forward(&self, inputs: &[Array]) -> Result<Record, Error> {
        self.forward_keeping(inputs, false)
    }

    fn forward_keeping(&self, inputs: &[Array], everything: bool) -> Result<Record, Error> {
        let mut values = self.initial.clone();
        if inputs.len() != self.inputs.len() {
            let message = format!("the graph has {} inputs, {} were given", self.inputs.len(), inputs.len());
            return Err(Fault::new(message).at("training"));
        }
        self.inputs.iter().zip(inputs).for_each(|(&slot, array)| values[slot] = Some(array.clone()));
        let mut start = 0;
        for segment in &self.segments {
            self.run(start..segment.end, &mut values)?;
            start = segment.end;
            // The last segment goes back at once.
            if start < self.steps.len() && !everything {
                segment.inner.iter().for_each(|&slot| values[slot] = None);
            }
        }
        Ok(Record { values })
    }

    fn run(&self, steps: Range<usize>, values: &mut [Option<Array>]) -> Result<(), Error> {
        for step in &self.steps[steps] {
            let given: Vec<_> = step.inputs.iter().map(|s| s.and_then(|s| values[s].clone())).collect();
            let results = step.op.float(&given).map_err(|f| f.at(&step.place))?;
            for (slot, array) in step.outputs.iter().zip(results) {
                slot.iter().for_each(|&s| values[s] = Some(array.clone()));
            }
            step.done.iter().for_each(|&slot| values[slot] = None);
        }
        Ok(())
    }

    /// A value of a run that the loss reads.
    pub fn value<'r>(&self, record: &'r Record, id: ValueId) -> Option<&'r Array> {
        record.values.get(*self.slots.get(&id)?)?.as_ref()
    }

    /// Where a value that is not finite first comes up in the run of a sample.
    pub fn first_not_finite(&self, inputs: &[Array]) -> Option<&str> {
        let record = self.forward_keeping(inputs, true).ok()?;
        let broken = |slot: &usize| match &record.values[*slot] {
            Some(Array::F32(a)) => a.iter().any(|v| !v.is_finite()),
            _ => false,
        };
        self.steps.iter().find(|s| s.outputs.iter().flatten().any(broken)).map(|s| s.place.as_str())
    }

    /// The gradient by every trainable constant, given that by values which the loss reads.
    pub fn backward(
        &self,
        mut record: Record,
        seeds: impl IntoIterator<Item = (ValueId, Array)>,
    ) -> Result<Vec<Option<Array>>, Error> {
        let mut gradients: Vec<Option<Array>> = vec![None; record.values.len()];
        for (id, seed) in seeds {
            if let Some(&slot) = self.slots.get(&id) {
                accumulate(&mut gradients[slot], seed).map_err(|f| f.at("the loss"))?;
            }
        }
        for (index, segment) in self.segments.iter().enumerate().rev() {
            let start = index.checked_sub(1).map_or(0, |before| self.segments[before].end);
            if segment.end < self.steps.len() {
                self.run(start..segment.end, &mut record.values)?;
            }
            self.way_back(start..segment.end, &mut record, &mut gradients)?;
        }
        Ok(self.trainable.iter().map(|&slot| gradients[slot].take()).collect())
    }

    fn way_back(
        &self,
        steps: Range<usize>,
        record: &mut Record,
        gradients: &mut [Option<Array>],
    ) -> Result<(), Error> {
        for step in self.steps[steps].iter().rev() {
            let upstream: Vec<_> = step.outputs.iter().map(|s| s.and_then(|s| gradients[s].take())).collect();
            if step.goes_back() && upstream.iter().any(Option::is_some) {
                let inputs: Vec<_> =
                    step.inputs.iter().map(|s| s.and_then(|s| record.values[s].clone())).collect();
                let outputs: Vec<_> =
                    step.outputs.iter().map(|s| s.and_then(|s| record.values[s].clone())).collect();
                let run =
                    Run { inputs: &inputs, outputs: &outputs, upstream: &upstream, wanted: &step.wanted };
                let Some(gradient) = step.op.gradient() else { continue };
                let found = gradient.backward(&run).map_err(|f| f.at(&step.place))?;
                for ((slot, wanted), gradient) in step.inputs.iter().zip(&step.wanted).zip(found) {
                    if let (Some(slot), true, Some(gradient)) = (*slot, *wanted, gradient) {
                        accumulate(&mut gradients[slot], gradient).map_err(|f| f.at(&step.place))?;
                    }
                }
            }
            // Every reader of these was before this step on the way back.
            step.outputs.iter().flatten().for_each(|&slot| record.values[slot] = None);
        }
        Ok(())
    }
}
