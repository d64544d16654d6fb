//! The way back through a run: what a small change of any of its values does to others, by the chain rule.

use super::trace::Trace;
use super::{Action, Program, Step};
use crate::error::{Error, Fault};
use crate::ir::{Array, Graph, Run, ValueId};
use crate::ops::operand::{Real, elements};

/// The part of a program on which some values depend, for gradients of them by others.
pub struct Adjoint<'a> {
    program: &'a Program,
    graph: &'a Graph,
    /// Slots on which the targets depend and that depend on something whose gradient is wanted.
    between: Vec<bool>,
    /// Slots from which every way to the targets has a gradient.
    smooth: Vec<bool>,
}

/// Operators whose results do not depend on what their input holds.
const SHAPES: [&str; 2] = ["Shape", "Size"];

impl<'a> Adjoint<'a> {
    /// Gradients of `targets` by the values `wanted`.
    pub fn new(program: &'a Program, graph: &'a Graph, targets: &[ValueId], wanted: &[ValueId]) -> Self {
        let slot = |id: &ValueId| program.slots.get(id).copied();
        let count = program.initial.len();
        let set = |ids: &[ValueId]| {
            let mut flags = vec![false; count];
            ids.iter().filter_map(slot).for_each(|s| flags[s] = true);
            flags
        };
        let mut active = set(wanted);
        for step in &program.steps {
            if reads(step).any(|s| active[s]) && !SHAPES.iter().any(|op| graph.node(step.node).is(op)) {
                step.outputs.iter().flatten().for_each(|&(s, _)| active[s] = true);
            }
        }
        let (mut live, mut smooth) = (set(targets), vec![true; count]);
        for step in program.steps.iter().rev() {
            let node = graph.node(step.node);
            let outputs = step.outputs.iter().flatten().map(|&(s, _)| s);
            let (some, kink) = outputs.fold((false, false), |(l, k), s| (l || live[s], k || !smooth[s]));
            if !some || SHAPES.iter().any(|op| node.is(op)) {
                continue;
            }
            let known = matches!(step.action, Action::Compute(_));
            let gradient = known && node.op.as_ref().is_some_and(|op| op.gradient().is_some());
            for s in reads(step) {
                live[s] = true;
                smooth[s] &= gradient && !kink;
            }
        }
        let between = live.iter().zip(&active).map(|(&l, &a)| l && a).collect();
        Self { program, graph, between, smooth }
    }

    /// Do gradients tell all that a small change of the value does?
    pub fn tells(&self, id: ValueId) -> bool {
        self.program.slots.get(&id).is_some_and(|&slot| self.smooth[slot])
    }

    /// The gradient of `Σ seed · target`: `see` is shown that of every value that lies between.
    pub fn back(
        &self,
        trace: &Trace,
        seeds: &[(ValueId, Array)],
        see: &mut dyn FnMut(ValueId, &Array),
    ) -> Result<(), Error> {
        let slots = &self.program.slots;
        let mut gradients: Vec<Option<Array>> = vec![None; self.between.len()];
        for (id, seed) in seeds {
            let Some(&slot) = slots.get(id) else { continue };
            accumulate(&mut gradients[slot], seed.clone()).map_err(|f| f.at("gradients"))?;
        }
        for step in self.program.steps.iter().rev() {
            let take = |o: &Option<(usize, ValueId)>| o.and_then(|(slot, _)| gradients[slot].take());
            let upstream: Vec<Option<Array>> = step.outputs.iter().map(take).collect();
            for (&output, found) in step.outputs.iter().zip(&upstream) {
                if let (Some((slot, id)), Some(found)) = (output, found)
                    && self.between[slot]
                {
                    see(id, found);
                }
            }
            self.step(step, trace, &upstream, &mut gradients).map_err(|f| f.at(&step.place))?;
        }
        let mut rest: Vec<(ValueId, usize)> = slots.iter().map(|(&id, &slot)| (id, slot)).collect();
        rest.retain(|&(_, slot)| self.between[slot]);
        rest.sort();
        rest.into_iter().for_each(|(id, slot)| gradients[slot].iter().for_each(|g| see(id, g)));
        Ok(())
    }

    fn step(
        &self,
        step: &Step,
        trace: &Trace,
        upstream: &[Option<Array>],
        gradients: &mut [Option<Array>],
    ) -> Result<(), Fault> {
        let wanted: Vec<bool> = step.inputs.iter().map(|s| s.is_some_and(|s| self.between[s])).collect();
        if !wanted.contains(&true) || upstream.iter().all(Option::is_none) {
            return Ok(());
        }
        let Some(op) = &self.graph.node(step.node).op else { return Ok(()) };
        let Some(gradient) = op.gradient() else { return Ok(()) };
        let value = |slot: usize| trace.tensor(slot).cloned();
        let inputs: Vec<_> = step.inputs.iter().map(|s| s.and_then(value)).collect();
        let outputs: Vec<_> = step.outputs.iter().map(|o| o.and_then(|(s, _)| value(s))).collect();
        let run = Run { inputs: &inputs, outputs: &outputs, upstream, wanted: &wanted };
        for ((slot, wanted), found) in step.inputs.iter().zip(&wanted).zip(gradient.backward(&run)?) {
            if let (Some(slot), true, Some(found)) = (*slot, *wanted, found) {
                accumulate(&mut gradients[slot], found)?;
            }
        }
        Ok(())
    }
}

/// What a step reads, from around the graphs inside it as well.
fn reads(step: &Step) -> impl Iterator<Item = usize> {
    let outer = match &step.action {
        Action::Control { outer, .. } => outer.values().copied().collect(),
        _ => Vec::new(),
    };
    step.inputs.iter().flatten().copied().chain(outer)
}

/// Adds a contribution to a gradient.
pub fn accumulate(sum: &mut Option<Array>, more: Array) -> Result<(), Fault> {
    fn added<T: Real>(a: &Array, b: &Array) -> Result<Array, Fault> {
        let (a_values, b_values) = (T::read(a)?, T::read(b)?);
        let pairs = elements(&a_values)?.iter().zip(elements(&b_values)?);
        T::array(a.shape(), pairs.map(|(&a, &b)| a + b).collect())
    }
    *sum = Some(match sum.take() {
        None => more,
        Some(old) if old.shape() != more.shape() => {
            crate::fail!("gradients of shape {:?} and {:?}", old.shape(), more.shape())
        }
        Some(old @ Array::F64(_)) => added::<f64>(&old, &more)?,
        Some(old) => added::<f32>(&old, &more)?,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::onnx::{import, text};

    const SOURCE: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[3] x) => (float[3] y, float[3] z) <float[3] c = {1, 2, 3}> {
          r = Relu (x)
          s = Mul (r, c)
          y = Add (s, r)
          shape = Shape (s)
          k = Reshape (x, shape)
          f = Floor (k)
          z = Mul (f, r)
        }"#;

    #[test]
    fn gradients_of_every_value_between_follow_the_chain_rule() {
        let graph = import(text::parse(SOURCE).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let program = Program::new(&graph).unwrap();
        let id = |name: &str| graph.find(name).unwrap();
        let v = |x: [f32; 3]| Array::vector(x.to_vec());
        let trace = program.trace(&[v([-1.0, 2.0, 3.0])]).unwrap();
        let adjoint = Adjoint::new(&program, &graph, &[id("y")], &[id("x"), id("s")]);
        let back = |seed: [f32; 3]| {
            let mut found = BTreeMap::new();
            let mut see = |id: ValueId, gradient: &Array| {
                found.insert(graph.name(id).to_string(), gradient.clone());
            };
            adjoint.back(&trace, &[(id("y"), v(seed))], &mut see).unwrap();
            found
        };
        let found = back([1.0, 1.0, 1.0]);
        assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), ["r", "s", "x", "y"]);
        assert_eq!((&found["s"], &found["x"]), (&v([1.0, 1.0, 1.0]), &v([0.0, 3.0, 4.0])));
        let found = back([0.0, 0.0, 2.0]);
        assert_eq!((&found["s"], &found["x"]), (&v([0.0, 0.0, 2.0]), &v([0.0, 0.0, 8.0])));
    }

    #[test]
    fn gradients_do_not_tell_what_passes_an_operator_without_one() {
        let graph = import(text::parse(SOURCE).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let program = Program::new(&graph).unwrap();
        let id = |name: &str| graph.find(name).unwrap();
        let told = |targets: &[&str]| {
            let targets: Vec<ValueId> = targets.iter().map(|name| id(name)).collect();
            let adjoint = Adjoint::new(&program, &graph, &targets, &[id("x")]);
            ["x", "r", "s", "k"].map(|name| adjoint.tells(id(name)))
        };
        assert_eq!(told(&["y"]), [true; 4]);
        assert_eq!(told(&["y", "z"]), [false, true, true, false]);
    }
}
