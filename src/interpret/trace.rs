//! What if a value had been another? A run whose values are all kept, and replays that compute again only what
//! depends on a change.

use super::{Action, Program, Step, Watch, data, room};
use crate::budget;
use crate::error::{Error, Fault};
use crate::ir::{Array, Datum, Extent, NodeId, ValueId};

/// Every value of one run, constants included.
pub struct Trace {
    values: Vec<Option<Datum>>,
}

impl Trace {
    /// What a slot held, if it is a tensor.
    pub(super) fn tensor(&self, slot: usize) -> Option<&Array> {
        self.values.get(slot)?.as_ref()?.as_tensor().ok()
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.values.iter().flatten().map(room::bytes_of).sum()
    }
}

impl Program {
    /// Runs the graph as far as its operators are known and keeps every value.
    pub fn trace(&self, inputs: &[Array]) -> Result<Trace, Error> {
        budget::begin();
        let mut values = self.initial.clone();
        self.fill_inputs(&mut values, &data(inputs))?;
        for step in &self.steps {
            step.run(&mut values)?;
        }
        Ok(Trace { values })
    }

    /// Some values of a run; `None` where one was not computed.
    pub fn values(&self, inputs: &[Array], wanted: &[ValueId]) -> Result<Vec<Option<Array>>, Error> {
        let mut keeper = Keeper { wanted, found: vec![None; wanted.len()] };
        self.start(&data(inputs), Some(&mut keeper))?;
        Ok(keeper.found)
    }

    /// A value of the run; `None` if it was not computed or is no tensor.
    pub fn traced<'a>(&self, trace: &'a Trace, id: ValueId) -> Option<&'a Array> {
        trace.tensor(*self.slots.get(&id)?)
    }

    /// What a node alone would make of other inputs: those of the run, with `array` in place of the value `id`. `None` if
    /// the node did not run or makes no tensor.
    pub fn once(&self, trace: &Trace, node: NodeId, (id, array): (ValueId, &Array)) -> Option<Array> {
        let step = self.steps.iter().find(|step| step.node == node)?;
        let Action::Compute(op) = &step.action else { return None };
        let other = *self.slots.get(&id)?;
        let input = |slot: usize| match slot == other {
            true => Some(Datum::Tensor(array.clone())),
            false => trace.values[slot].clone(),
        };
        let inputs = step.inputs.iter().map(|slot| slot.and_then(input)).collect();
        let outputs = room::compute(&**op, inputs, step.size).ok()?;
        outputs.into_iter().next()?.tensor().ok()
    }

    /// What `wanted` would be if these values had been others; `None` where a value was not computed. Constants can be
    /// changed like any value.
    pub fn replay(
        &self,
        trace: &Trace,
        changes: &[(ValueId, Array)],
        wanted: &[ValueId],
    ) -> Result<Vec<Option<Array>>, Error> {
        let slot = |id: &ValueId| {
            self.slots.get(id).copied().ok_or_else(|| Fault::new("no such value").at("replay"))
        };
        budget::begin();
        let mut values = trace.values.clone();
        let mut role = vec![Role::Kept; values.len()];
        let wanted: Vec<usize> = wanted.iter().map(slot).collect::<Result<_, _>>()?;
        for (id, array) in changes {
            let slot = slot(id)?;
            (values[slot], role[slot]) = (Some(Datum::Tensor(array.clone())), Role::Given);
        }
        let makes = |step: &Step| step.outputs.iter().flatten().any(|(slot, _)| wanted.contains(slot));
        let end = self.steps.iter().rposition(makes).map_or(0, |last| last + 1);
        for step in &self.steps[..end] {
            let changed = |s: &usize| role[*s] != Role::Kept;
            let outer = match &step.action {
                Action::Control { outer, .. } => outer.values().any(changed),
                _ => false,
            };
            if !outer && !step.inputs.iter().flatten().any(changed) {
                continue;
            }
            let outputs = || step.outputs.iter().flatten().map(|o| o.0);
            let given: Vec<_> =
                outputs().filter(|&s| role[s] == Role::Given).map(|s| (s, values[s].clone())).collect();
            step.run(&mut values)?;
            outputs().filter(|&s| values[s].is_some()).for_each(|s| role[s] = Role::Computed);
            for (slot, value) in given {
                (values[slot], role[slot]) = (value, Role::Given);
            }
            // What was kept is shared with the trace; what was computed anew is freed when it is dead.
            let dead = |s: &&usize| role[**s] == Role::Computed && !wanted.contains(s);
            step.last_reads.iter().filter(dead).for_each(|&s| values[s] = None);
        }
        let tensor = |&slot: &usize| values[slot].as_ref()?.as_tensor().ok().cloned();
        Ok(wanted.iter().map(tensor).collect())
    }
}

/// Keeps some values of a run.
struct Keeper<'a> {
    wanted: &'a [ValueId],
    found: Vec<Option<Array>>,
}

impl Watch for Keeper<'_> {
    fn wants(&self, id: ValueId) -> bool {
        self.wanted.contains(&id)
    }

    fn see(&mut self, id: ValueId, value: &Array, _: Option<Extent>) {
        let same = self.wanted.iter().zip(&mut self.found).filter(|(w, _)| **w == id);
        same.for_each(|(_, f)| *f = Some(value.clone()));
    }
}

/// Where a value of a replay comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The first run.
    Kept,
    /// A change that was asked for.
    Given,
    /// Computed anew.
    Computed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{import, text};

    #[test]
    fn replay_computes_what_depends_on_the_change_and_keeps_the_rest() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[3] x, float[3] y) => (float[3] a, float[3] b) <float[3] c = {1, 2, 3}> {
              r = Relu (x)
              s = Mul (r, c)
              a = Add (s, y)
              b = Neg (y)
            }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let program = Program::new(&graph).unwrap();
        let v = |x: [f32; 3]| Array::vector(x.to_vec());
        let trace = program.trace(&[v([-1.0, 2.0, 3.0]), v([10.0, 10.0, 10.0])]).unwrap();
        let id = |name| graph.find(name).unwrap();
        assert_eq!(program.traced(&trace, id("s")), Some(&v([0.0, 4.0, 9.0])));
        let same = Some(v([-10.0, -10.0, -10.0]));
        let outputs = |changes: &[_]| program.replay(&trace, changes, &graph.outputs).unwrap();
        assert_eq!(outputs(&[]), [Some(v([10.0, 14.0, 19.0])), same.clone()]);
        assert_eq!(outputs(&[(id("r"), v([1.0, 1.0, 1.0]))]), [Some(v([11.0, 12.0, 13.0])), same.clone()]);
        // A changed constant, and a change that an upstream change must not undo.
        assert_eq!(outputs(&[(id("c"), v([0.0, 0.0, 1.0]))]), [Some(v([10.0, 10.0, 13.0])), same.clone()]);
        let both = [(id("x"), v([9.0, 9.0, 9.0])), (id("s"), v([0.0, 0.0, 0.0]))];
        assert_eq!(outputs(&both), [Some(v([10.0, 10.0, 10.0])), same]);
    }
}
