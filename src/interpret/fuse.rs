//! Operators that limit their result, or find its extent, while it is at hand.
//!
//! This only concerns speed: it is a fact of the program, and whoever wants to see a value before it is limited makes the
//! two operators compute one after the other.

use super::build::Builder;
use super::watch::{Noticed, Watch};
use super::{Action, Step, describe, room};
use crate::error::Error;
use crate::ir::{Array, Datum, Limits, NodeId, Port, Rule};

impl Builder<'_> {
    /// Hands the limits of a clamp to the step before it, if that makes a value which nobody else reads.
    pub fn fuse(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let rule = node.op.as_ref().filter(|_| node.unknown.is_none()).map(|op| op.rule());
        let (Some(Rule::Clamp { low, high }), Some(x)) = (rule, self.graph.input(id, 0)) else { return };
        let alone = self.graph.only_use(x).is_some_and(|usage| usage.port == Port::Input(0));
        let Some((low, high)) = self.bounds(id, low, high).filter(|_| alone) else { return };
        // A clamp whose bounds cross gives the upper one, as limits do.
        if let Some(&step) = self.filled_by.get(&self.slot(x)) {
            self.program.steps[step].limits = Some(Limits { low, high });
        }
    }
}

impl Step {
    /// Runs the step in its fused form, if it has one: limits its result as the next step would, or finds it limited.
    pub fn run_fused(
        &self,
        values: &mut [Option<Datum>],
        noticed: &mut [Option<Noticed>],
        watch: Option<&dyn Watch>,
    ) -> Result<bool, Error> {
        let (Action::Compute(op), [Some((output, id))]) = (&self.action, &self.outputs[..]) else {
            return Ok(false);
        };
        let array = |slot: usize| values[slot].as_ref().and_then(|value| value.as_tensor().ok());
        if let (Some(&Some(x)), Rule::Clamp { .. }) = (self.inputs.first(), op.rule()) {
            // What was limited, was so on behalf of its only reader.
            let done = noticed[x].filter(|done| done.limits != Limits::NONE);
            if let (Some(done), Some(limited)) = (done, array(x)) {
                values[*output] = Some(Datum::Tensor(limited.clone()));
                noticed[*output] = Some(Noticed { limits: Limits::NONE, ..done });
                return Ok(true);
            }
        }
        if !op.finishes() || !self.inputs.iter().flatten().all(|&slot| array(slot).is_some()) {
            return Ok(false);
        }
        let inputs: Vec<Option<Array>> =
            self.inputs.iter().map(|slot| slot.and_then(array).cloned()).collect();
        let limits = self.limits.filter(|_| watch.is_none_or(|watch| !watch.wants(*id)));
        let limits = limits.unwrap_or(Limits::NONE);
        room::check(&**op, &inputs, self.size).map_err(|fault| fault.at(&self.place))?;
        let Some(found) = op.finished(&inputs, limits) else { return Ok(false) };
        let (result, extent) = found.map_err(|fault| {
            let inputs = self.inputs.iter().map(|slot| slot.and_then(|slot| values[slot].as_ref()));
            describe(fault, inputs).at(&self.place)
        })?;
        values[*output] = Some(Datum::Tensor(result));
        noticed[*output] = Some(Noticed { limits, extent });
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Program;
    use crate::ir::{Array, Extent, ValueId};
    use crate::onnx::{import, text};

    /// What a run shows of the values it is asked for.
    struct Seen(Vec<ValueId>, Vec<(ValueId, Array, Option<Extent>)>);

    impl super::Watch for Seen {
        fn wants(&self, id: ValueId) -> bool {
            self.0.contains(&id)
        }

        fn see(&mut self, id: ValueId, value: &Array, extent: Option<Extent>) {
            self.1.push((id, value.clone(), extent));
        }
    }

    #[test]
    fn a_clamp_is_done_by_the_operator_ahead_unless_someone_looks_in_between() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1, 1, 2, 3] x) => (float[1, 2, 2, 3] y, float[1, 2, 2, 3] z)
            <float[2, 1, 1, 1] w = {1, -2}, float[2] b = {0.5, 1}, float low = {-1}, float high = {2}> {
              c = Conv (x, w, b)
              y = Clip (c, low, high)
              d = Conv (x, w)
              e = Relu (d)
              z = Add (d, e)
            }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let program = Program::new(&graph).unwrap();
        let x = Array::new(&[1, 1, 2, 3], vec![-3.0f32, -1.0, 0.0, 0.25, 1.0, 4.0]).unwrap();
        let id = |name: &str| graph.find(name).unwrap();
        let run = |wanted: &[&str]| {
            let mut seen = Seen(wanted.iter().map(|name| id(name)).collect(), Vec::new());
            let (outputs, _) = program.run_as_far_as_possible(std::slice::from_ref(&x), &mut seen).unwrap();
            (outputs, seen.1)
        };
        let (plain, _) = program.run_unwatched(std::slice::from_ref(&x)).unwrap();
        let (outputs, seen) = run(&["c", "y", "d"]);
        assert_eq!(outputs, plain);
        let values = |i: usize| seen[i].1.slice::<f32>().unwrap().to_vec();
        let c = [-2.5, -0.5, 0.5, 0.75, 1.5, 4.5, 7.0, 3.0, 1.0, 0.5, -1.0, -7.0];
        assert_eq!(values(0), c);
        assert_eq!(values(1), c.map(|v: f32| v.clamp(-1.0, 2.0)));
        let extent = |min, max| Some(Extent { min, max, plain: true });
        assert_eq!((seen[0].2, seen[1].2), (extent(-7.0, 7.0), None));
        // Nobody looks at `c`: the convolution limits it. Two read `d`: its convolution does not.
        let (outputs, seen) = run(&["y", "e"]);
        assert_eq!(outputs, plain);
        assert_eq!((seen[0].0, seen[0].2), (id("y"), extent(-1.0, 2.0)));
        assert_eq!((seen[1].0, seen[1].2), (id("e"), None));
    }
}
