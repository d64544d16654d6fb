//! Many runs of one graph side by side, node by node, so that a constant can be chosen by what all of them read.
//!
//! A run is carried on to a node as far as it needs, no further: between stops only live values are kept, which in a
//! quantized graph are integers.

use rayon::prelude::*;

use super::{Action, Program, data, room};
use crate::budget;
use crate::error::{Error, Fault};
use crate::ir::{Array, Datum, NodeId, ValueId};

/// The runs, all stopped before the same step.
pub struct Lockstep<'a> {
    program: &'a Program,
    runs: Vec<Vec<Option<Datum>>>,
    at: usize,
}

impl<'a> Lockstep<'a> {
    /// Starts a run for each list of inputs.
    pub fn new(
        program: &'a Program,
        inputs: impl Iterator<Item = Result<Vec<Array>, Error>>,
    ) -> Result<Self, Error> {
        let start = |inputs: Result<Vec<Array>, Error>| {
            let mut values = program.initial.clone();
            program.fill_inputs(&mut values, &data(&inputs?))?;
            Ok(values)
        };
        Ok(Self { program, runs: inputs.map(start).collect::<Result<_, Error>>()?, at: 0 })
    }

    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Bytes of what the runs keep here, constants not counted.
    pub fn bytes(&self) -> u64 {
        let kept = |values: &Vec<Option<Datum>>| {
            let values = values.iter().zip(&self.program.initial);
            values
                .filter(|(_, constant)| constant.is_none())
                .flat_map(|(v, _)| v)
                .map(room::bytes_of)
                .sum::<u64>()
        };
        self.runs.iter().map(kept).sum()
    }

    /// Is there no run?
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Carries all runs on until nothing is left to do for `id` but the step that computes it. False if no step ahead
    /// does.
    pub fn advance_to(&mut self, id: ValueId) -> Result<bool, Error> {
        let program = self.program;
        let ahead = program.steps.iter().enumerate().skip(self.at);
        let computes = |s: &super::Step| s.outputs.iter().flatten().any(|o| o.1 == id);
        let Some((stop, _)) = ahead.into_iter().find(|(_, s)| computes(s)) else { return Ok(false) };
        let steps = &program.steps[self.at..stop];
        self.runs.par_iter_mut().try_for_each(|values| {
            budget::begin();
            for step in steps {
                step.run(values)?;
                step.last_reads.iter().for_each(|&slot| values[slot] = None);
            }
            Ok::<_, Error>(())
        })?;
        self.at = stop;
        Ok(true)
    }

    /// A value of one run: one that is there, or one that the next step computes.
    pub fn peek(&self, run: usize, id: ValueId) -> Result<Option<Array>, Error> {
        let (Some(values), Some(&slot)) = (self.runs.get(run), self.program.slots.get(&id)) else {
            return Ok(None);
        };
        if let Some(value) = &values[slot] {
            return Ok(value.as_tensor().ok().cloned());
        }
        let Some(step) = self.program.steps.get(self.at) else { return Ok(None) };
        let Some(output) = step.outputs.iter().position(|o| o.is_some_and(|o| o.0 == slot)) else {
            return Ok(None);
        };
        let Action::Compute(op) = &step.action else { return Ok(None) };
        let inputs: Vec<_> = step.inputs.iter().map(|s| s.and_then(|s| values[s].clone())).collect();
        let outputs = room::compute(&**op, inputs, step.size).map_err(|f: Fault| f.at(&step.place))?;
        Ok(outputs.into_iter().nth(output).and_then(|value| value.tensor().ok()))
    }

    /// Gives a constant another value in all runs.
    pub fn replace(&mut self, id: ValueId, array: &Array) {
        if let Some(&slot) = self.program.slots.get(&id) {
            self.runs.iter_mut().for_each(|values| values[slot] = Some(Datum::Tensor(array.clone())));
        }
    }

    /// The nodes in the order in which they are run, without those that were folded.
    pub fn order(&self) -> impl Iterator<Item = NodeId> {
        self.program.steps.iter().map(|s| s.node)
    }
}
