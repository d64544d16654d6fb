//! Operators that add to their result, limit it, or find its extent, while it is at hand.
//!
//! This only concerns speed: it is a fact of the program, and whoever wants to see a value before something is added to
//! it, or before it is limited, makes the operators compute one after the other. The bits are the same.

use super::build::Builder;
use super::watch::{Noticed, Watch};
use super::{Action, Step, describe, room};
use crate::error::Error;
use crate::ir::{After, Array, Datum, Limits, NodeId, Port, Rule, ValueId};
use crate::ops::arithmetic::{Binary, Function};

/// What the only reader of a value adds to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sum {
    /// Where that is; it is there before the value.
    slot: usize,
    /// What comes of it.
    id: ValueId,
}

impl Builder<'_> {
    /// Hands an addition, or the limits of a clamp, to the step before it, if that makes a value which nobody else
    /// reads.
    pub fn fuse(&mut self, id: NodeId) {
        let node = self.graph.node(id);
        let Some(op) = node.op.as_ref().filter(|_| node.unknown.is_none()) else { return };
        if op.as_a() == Some(&Binary { function: Function::Add, axis: None }) {
            self.fuse_sum(id);
        } else if let (Rule::Clamp { low, high }, Some(x)) = (op.rule(), self.graph.input(id, 0)) {
            let Some((low, high)) = self.bounds(id, low, high).filter(|_| self.is_read_once(x, 0)) else {
                return;
            };
            // A clamp whose bounds cross gives the upper one, as limits do.
            let Some(&step) = self.filled_by.get(&self.slot(x)) else { return };
            self.program.steps[step].limits = Some(Limits { low, high });
            // If that adds, it may be done by the step that makes one of its inputs.
            let inputs = self.program.steps[step].inputs.iter().flatten();
            let makers: Vec<usize> = inputs.filter_map(|slot| self.filled_by.get(slot)).copied().collect();
            for maker in makers {
                let maker = &mut self.program.steps[maker];
                if maker.sum.is_some_and(|sum| sum.id == x) {
                    maker.limits = Some(Limits { low, high });
                }
            }
        }
    }

    fn fuse_sum(&mut self, id: NodeId) {
        let (Some(a), Some(b)) = (self.graph.input(id, 0), self.graph.input(id, 1)) else { return };
        let Some(&Some(sum)) = self.graph.outputs_of(id).first() else { return };
        let made_by = |x: ValueId| self.filled_by.get(&self.slot(x)).copied();
        // Of two products, the later one finds the other.
        let (x, other, slot) = if made_by(a) > made_by(b) { (a, b, 0) } else { (b, a, 1) };
        let Some(step) = made_by(x).filter(|_| self.is_read_once(x, slot)) else { return };
        let sum = Sum { slot: self.slot(other), id: sum };
        self.program.steps[step].sum = Some(sum);
    }

    fn is_read_once(&self, x: ValueId, slot: usize) -> bool {
        self.graph.only_use(x).is_some_and(|usage| usage.port == Port::Input(slot))
    }
}

impl Step {
    /// Runs the step in its fused form, if it has one: does what the next steps would, or finds it done.
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
        if let Some((done, made)) =
            self.done_ahead(noticed).and_then(|(slot, done)| Some((done, array(slot)?)))
        {
            values[*output] = Some(Datum::Tensor(made.clone()));
            noticed[*output] = Some(done);
            return Ok(true);
        }
        if !op.finishes() || !self.inputs.iter().flatten().all(|&slot| array(slot).is_some()) {
            return Ok(false);
        }
        let inputs: Vec<Option<Array>> =
            self.inputs.iter().map(|slot| slot.and_then(array).cloned()).collect();
        room::check(&**op, &inputs, self.size).map_err(|fault| fault.at(&self.place))?;
        let unseen = |id: ValueId| watch.is_none_or(|watch| !watch.wants(id));
        let sum = self.sum.filter(|_| unseen(*id)).and_then(|sum| Some((sum.id, array(sum.slot)?)));
        let finished = |sum: Option<(ValueId, &Array)>| {
            let last = sum.map_or(*id, |(sum, _)| sum);
            let limits = self.limits.filter(|_| (sum.is_some() || self.sum.is_none()) && unseen(last));
            let limits = limits.unwrap_or(Limits::NONE);
            let found = op.finished(&inputs, After { added: sum.map(|(_, added)| added), limits })?;
            let noticed = |extent| Noticed { sum: sum.map(|(id, _)| id), limits, extent };
            Some(found.map(|(result, extent)| (result, noticed(extent))))
        };
        // Where what is to be added has another form, the product is made alone.
        let found = sum.and_then(|sum| finished(Some(sum))).or_else(|| finished(None));
        let Some(found) = found else { return Ok(false) };
        let (result, notice) = found.map_err(|fault| {
            let inputs = self.inputs.iter().map(|slot| slot.and_then(|slot| values[slot].as_ref()));
            describe(fault, inputs).at(&self.place)
        })?;
        (values[*output], noticed[*output]) = (Some(Datum::Tensor(result)), Some(notice));
        Ok(true)
    }

    /// The input that is this step's result already, and what is to be noticed of it.
    fn done_ahead(&self, noticed: &[Option<Noticed>]) -> Option<(usize, Noticed)> {
        let [Some((_, id))] = self.outputs[..] else { return None };
        let inputs = self.inputs.iter().flatten();
        if let Some(found) =
            inputs.filter_map(|&slot| Some((slot, noticed[slot]?))).find(|x| x.1.sum == Some(id))
        {
            return Some((found.0, Noticed { sum: None, ..found.1 }));
        }
        // What was limited, was so on behalf of its only reader.
        let Action::Compute(op) = &self.action else { return None };
        let &Some(x) = self.inputs.first().filter(|_| matches!(op.rule(), Rule::Clamp { .. }))? else {
            return None;
        };
        let done = noticed[x].filter(|done| done.limits != Limits::NONE)?;
        Some((x, Noticed { limits: Limits::NONE, ..done }))
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

    #[test]
    fn a_sum_is_done_by_the_product_ahead_unless_someone_looks_in_between() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1, 2, 2, 3] x) => (float[1, 2, 2, 3] s, float[1, 2, 2, 3] t, float[1, 2, 2, 2] v, float[1, 2, 2, 3] w)
            <float[2, 2, 1, 1] k = {1, -2, 0.5, 1}, float[2] b = {0.5, 1}, float[2, 1, 3, 3] d = {1, 2, 3, 4, 5, 6, 7,
             8, 9, 9, 8, 7, 6, 5, 4, 3, 2, 1}, float[3, 2] m = {1, 2, -1, 3, 0.1, 5}, float[2] row = {0.3, -4},
             float[2, 1, 1] column = {1, 2}> {
              c = Conv (x, k, b)
              a = Add (x, c)
              s = Relu (a)
              e = Conv <group = 2, pads = [1, 1, 1, 1]> (x, d)
              t = Add (e, s)
              p = MatMul (x, m)
              v = Add (row, p)
              h = Conv (x, k)
              w = Add (h, column)
            }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let program = Program::new(&graph).unwrap();
        let x = (0..12).map(|i| i as f32 * 0.7 - 3.0).collect::<Vec<_>>();
        let x = Array::new(&[1, 2, 2, 3], x).unwrap();
        let id = |name: &str| graph.find(name).unwrap();
        let run = |wanted: &[&str]| {
            let mut seen = Seen(wanted.iter().map(|name| id(name)).collect(), Vec::new());
            let (outputs, _) = program.run_as_far_as_possible(std::slice::from_ref(&x), &mut seen).unwrap();
            let known = |(id, _, extent): (ValueId, Array, Option<Extent>)| {
                extent.map(|extent| (graph.name(id).to_string(), extent))
            };
            (outputs, seen.1.into_iter().filter_map(known).collect::<Vec<_>>())
        };
        let (apart, products) = run(&["c", "a", "s", "e", "t", "p", "v", "h", "w"]);
        // Only the products tell an extent.
        assert_eq!(products.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(), ["c", "e", "p", "h"]);
        let (outputs, sums) = run(&["a", "s", "t", "v", "w"]);
        assert_eq!(outputs, apart);
        // The limits are not put on a sum that someone wants to see, and a row for each channel is added in a step of
        // its own.
        assert_eq!(sums.iter().map(|(name, _)| &name[..]).collect::<Vec<_>>(), ["a", "t", "v"]);
        let (outputs, results) = run(&["s", "t"]);
        assert_eq!(outputs, apart);
        let s = crate::kernels::finish::extent(outputs[0].as_ref().unwrap().slice().unwrap());
        assert_eq!((&results[0].0[..], results[0].1.min, results[0].1), ("s", 0.0, s));
        assert_eq!(program.run_unwatched(std::slice::from_ref(&x)).unwrap().0, apart);
    }
}
