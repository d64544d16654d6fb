//! What if a value had been another? A run whose values are all kept, and replays that compute again only what
//! depends on a change.

use super::{Action, Program};
use crate::error::{Error, Fault};
use crate::ir::{Array, ValueId};

/// Every value of one run, constants included.
pub struct Trace {
    values: Vec<Option<Array>>,
}

impl Program {
    /// Runs the graph as far as its operators are known and keeps every value.
    pub fn trace(&self, inputs: &[Array]) -> Result<Trace, Error> {
        let mut values = self.initial.clone();
        self.fill_inputs(&mut values, inputs)?;
        for step in &self.steps {
            step.run(&mut values)?;
        }
        Ok(Trace { values })
    }

    /// A value of the run; `None` if it was not computed.
    pub fn traced<'a>(&self, trace: &'a Trace, id: ValueId) -> Option<&'a Array> {
        trace.values.get(*self.slots.get(&id)?)?.as_ref()
    }

    /// The outputs of the run; `None` where one was not computed.
    pub fn traced_outputs<'a>(&self, trace: &'a Trace) -> Vec<Option<&'a Array>> {
        self.outputs.iter().map(|&slot| trace.values[slot].as_ref()).collect()
    }

    /// The outputs if these values had been others. Constants can be changed like any value.
    pub fn replay(&self, trace: &Trace, changes: &[(ValueId, Array)]) -> Result<Vec<Option<Array>>, Error> {
        let mut values = trace.values.clone();
        let mut dirty = vec![false; values.len()];
        let mut fixed = vec![false; values.len()];
        for (id, array) in changes {
            let slot = *self.slots.get(id).ok_or_else(|| Fault::new("no such value").at("replay"))?;
            values[slot] = Some(array.clone());
            (dirty[slot], fixed[slot]) = (true, true);
        }
        for step in &self.steps {
            let outer = match &step.action {
                Action::Control { outer, .. } => outer.values().any(|&s| dirty[s]),
                _ => false,
            };
            if !outer && !step.inputs.iter().flatten().any(|&s| dirty[s]) {
                continue;
            }
            let kept: Vec<_> = step
                .outputs
                .iter()
                .flatten()
                .filter(|o| fixed[o.0])
                .map(|o| (o.0, values[o.0].clone()))
                .collect();
            step.run(&mut values)?;
            step.outputs.iter().flatten().for_each(|o| dirty[o.0] = true);
            kept.into_iter().for_each(|(slot, value)| values[slot] = value);
            // Values of the first run are shared with the trace; those of the replay are freed when they are dead.
            step.last_reads.iter().filter(|&&s| dirty[s]).for_each(|&s| values[s] = None);
        }
        Ok(self.outputs.iter().map(|&slot| values[slot].clone()).collect())
    }
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
        let outputs = |changes: &[_]| program.replay(&trace, changes).unwrap();
        assert_eq!(outputs(&[]), [Some(v([10.0, 14.0, 19.0])), same.clone()]);
        assert_eq!(outputs(&[(id("r"), v([1.0, 1.0, 1.0]))]), [Some(v([11.0, 12.0, 13.0])), same.clone()]);
        // A changed constant, and a change that an upstream change must not undo.
        assert_eq!(outputs(&[(id("c"), v([0.0, 0.0, 1.0]))]), [Some(v([10.0, 10.0, 13.0])), same.clone()]);
        let both = [(id("x"), v([9.0, 9.0, 9.0])), (id("s"), v([0.0, 0.0, 0.0]))];
        assert_eq!(outputs(&both), [Some(v([10.0, 10.0, 10.0])), same]);
    }
}
