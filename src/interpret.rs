//! Running a graph: a [`Program`] is compiled once and run for many samples, from many threads.
//!
//! Compiling fixes the schedule, gives every value a slot, computes what depends on constants only, and notes after
//! which step a value is read for the last time, so that memory follows the live values. A run computes by the ONNX
//! definition of each operator; quantized graphs are run through their QuantizeLinear and DequantizeLinear nodes.

mod control;
pub mod trace;

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Fault};
use crate::ir::{Array, Control, Graph, NodeId, Op, ValueId, schedule};

/// A graph ready to run.
pub struct Program {
    steps: Vec<Step>,
    /// Where each value of the graph lives.
    slots: HashMap<ValueId, usize>,
    /// The values before a run: constants are there, the others are empty.
    initial: Vec<Option<Array>>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    /// Values from around the graph, by name, and where they live in it.
    captures: Vec<(String, usize)>,
}

struct Step {
    node: NodeId,
    place: String,
    inputs: Vec<Option<usize>>,
    outputs: Vec<Option<(usize, ValueId)>>,
    /// Slots that nobody reads after this step.
    last_reads: Vec<usize>,
    action: Action,
}

enum Action {
    Compute(Arc<dyn Op>),
    Control {
        control: Control,
        bodies: Vec<(String, Program)>,
        outer: HashMap<String, usize>,
    },
    /// Why the node cannot run.
    Missing(String),
}

/// How quantized operators compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Numerics {
    /// Every node by its ONNX definition: DequantizeLinear, the operator on real numbers, QuantizeLinear.
    #[default]
    Spec,
    /// An operator between DequantizeLinear and QuantizeLinear computes on integers, as ONNX Runtime's fused x86-64
    /// kernels do.
    Ort,
}

/// Sees every value as it is computed, graph inputs included, constants not.
pub type Watch<'a> = &'a mut dyn FnMut(ValueId, &Array);

impl Program {
    /// Compiles a graph that is to compute by the ONNX definition. Operators that are not known are noticed when a run
    /// reaches them.
    pub fn new(graph: &Graph) -> Result<Self, Error> {
        Self::with_numerics(graph, Numerics::Spec)
    }

    /// Compiles a graph whose quantized operators are to compute in this way.
    pub fn with_numerics(graph: &Graph, numerics: Numerics) -> Result<Self, Error> {
        let order = schedule(graph).map_err(|f| f.at("scheduling"))?;
        let slots: HashMap<ValueId, usize> =
            graph.values().enumerate().map(|(slot, id)| (id, slot)).collect();
        let mut initial = vec![None; slots.len()];
        let mut captures = Vec::new();
        for (&id, &slot) in &slots {
            let value = graph.value(id);
            if let Some(tensor) = value.constant.as_ref().or(value.default.as_ref()) {
                // A constant of a type that has no array (int4, float8) is missed by whoever reads it.
                initial[slot] = tensor.array().ok();
            }
            if value.captured {
                captures.push((value.name.clone(), slot));
            }
        }
        captures.sort();
        let slot = |id: ValueId| slots[&id];
        let mut program = Self {
            steps: Vec::new(),
            initial,
            inputs: graph.inputs.iter().map(|&v| slot(v)).collect(),
            outputs: graph.outputs.iter().map(|&v| slot(v)).collect(),
            captures,
            slots: HashMap::new(),
        };
        for id in order {
            let step = Step::new(graph, id, &slots, numerics)?;
            if !program.fold(&step, graph) {
                program.steps.push(step);
            }
        }
        program.slots = slots;
        program.note_last_reads();
        Ok(program)
    }

    /// Runs a step now if it depends on constants only.
    fn fold(&mut self, step: &Step, graph: &Graph) -> bool {
        let Action::Compute(op) = &step.action else { return false };
        let constant = |slot: usize| self.initial[slot].is_some() && !self.inputs.contains(&slot);
        if !op.is_pure() || !step.inputs.iter().flatten().all(|&s| constant(s)) {
            return false;
        }
        let inputs: Vec<_> = step.inputs.iter().map(|s| s.and_then(|s| self.initial[s].clone())).collect();
        let Ok(outputs) = op.float(&inputs) else { return false }; // the run will say why
        for (output, array) in step.outputs.iter().zip(outputs) {
            if let Some((slot, _)) = output {
                self.initial[*slot] = Some(array);
            }
        }
        for (&slot, &id) in step.inputs.iter().flatten().zip(graph.inputs_of(step.node).iter().flatten()) {
            let readers = graph.uses(id);
            if readers.len() == 1 && !self.outputs.contains(&slot) {
                self.initial[slot] = None; // an expanded weight takes the place of the stored one
            }
        }
        true
    }

    fn note_last_reads(&mut self) {
        let mut last = HashMap::new();
        for (index, step) in self.steps.iter().enumerate() {
            let captured = match &step.action {
                Action::Control { outer, .. } => outer.values().copied().collect(),
                _ => Vec::new(),
            };
            let defined = step.outputs.iter().flatten().map(|o| o.0);
            for slot in step.inputs.iter().flatten().copied().chain(captured).chain(defined) {
                last.insert(slot, index);
            }
        }
        for (slot, index) in last {
            if self.initial[slot].is_none() && !self.outputs.contains(&slot) {
                self.steps[index].last_reads.push(slot);
            }
        }
        self.steps.iter_mut().for_each(|s| s.last_reads.sort_unstable());
    }

    /// Runs the graph on one input for each graph input without a default; the outputs in order.
    pub fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, Error> {
        self.run_watched(inputs, &mut |_, _| {})
    }

    /// The same, showing every value to `watch`.
    pub fn run_watched(&self, inputs: &[Array], watch: Watch) -> Result<Vec<Array>, Error> {
        let (outputs, problem) = self.run_as_far_as_possible(inputs, watch)?;
        let missing =
            || problem.clone().unwrap_or_else(|| Fault::new("an output was not computed").at("run"));
        outputs.into_iter().map(|o| o.ok_or_else(missing)).collect()
    }

    /// Runs what can be run: nodes of unknown operators, and what depends on them, are left out, and the second part
    /// names the first of them.
    pub fn run_as_far_as_possible(
        &self,
        inputs: &[Array],
        watch: Watch,
    ) -> Result<(Vec<Option<Array>>, Option<Error>), Error> {
        let mut values = self.initial.clone();
        self.fill_inputs(&mut values, inputs)?;
        self.show_inputs(&values, watch);
        let problem = self.execute(&mut values, watch)?;
        Ok((self.outputs.iter().map(|&slot| values[slot].clone()).collect(), problem))
    }

    /// Puts the inputs of a run in their slots: all of them, or those without a default.
    fn fill_inputs(&self, values: &mut [Option<Array>], inputs: &[Array]) -> Result<(), Error> {
        let wanted = self.inputs.iter().filter(|&&slot| self.initial[slot].is_none()).count();
        if inputs.len() != wanted && inputs.len() != self.inputs.len() {
            let message = format!("the graph has {wanted} inputs, {} were given", inputs.len());
            return Err(Fault::new(message).at("run"));
        }
        let open =
            self.inputs.iter().filter(|&&s| inputs.len() == self.inputs.len() || self.initial[s].is_none());
        for (&slot, array) in open.zip(inputs) {
            values[slot] = Some(array.clone());
        }
        Ok(())
    }

    fn show_inputs(&self, values: &[Option<Array>], watch: Watch) {
        let mut ids: Vec<_> = self.slots.iter().filter(|(_, slot)| self.inputs.contains(slot)).collect();
        ids.sort();
        for (&id, &slot) in ids {
            if let Some(array) = &values[slot] {
                watch(id, array);
            }
        }
    }

    fn execute(&self, values: &mut [Option<Array>], watch: Watch) -> Result<Option<Error>, Error> {
        let mut problem = None;
        for step in &self.steps {
            if let Some(missed) = step.run(values)? {
                problem.get_or_insert(missed);
                continue;
            }
            for &(slot, id) in step.outputs.iter().flatten() {
                if let Some(array) = &values[slot] {
                    watch(id, array);
                }
            }
            step.last_reads.iter().for_each(|&slot| values[slot] = None);
        }
        Ok(problem)
    }
}

impl Step {
    /// Computes the outputs into their slots. If an operator is not known or an input is not there, they stay empty and
    /// the reason is returned.
    fn run(&self, values: &mut [Option<Array>]) -> Result<Option<Error>, Error> {
        if !self.inputs.iter().flatten().all(|&s| values[s].is_some()) {
            return Ok(Some(Fault::new("an input was not computed").at(&self.place)));
        }
        let inputs = || self.inputs.iter().map(|s| s.and_then(|s| values[s].clone())).collect::<Vec<_>>();
        let result = match &self.action {
            Action::Missing(why) => return Ok(Some(Fault::unimplemented(why).at(&self.place))),
            Action::Compute(op) => {
                let inputs = inputs();
                op.float(&inputs).map_err(|fault| describe(fault, &inputs).at(&self.place))
            }
            Action::Control { control, bodies, outer } => {
                let scope = |name: &str| outer.get(name).and_then(|&slot| values[slot].clone());
                control::run(control, bodies, &inputs(), &scope).map_err(|e| e.within(&self.place))
            }
        };
        let outputs = match result {
            Err(error) if error.fault().is_unimplemented() => return Ok(Some(error)),
            other => other?,
        };
        for (output, array) in self.outputs.iter().zip(outputs) {
            if let Some((slot, _)) = *output {
                values[slot] = Some(array);
            }
        }
        Ok(None)
    }

    fn new(
        graph: &Graph,
        id: NodeId,
        slots: &HashMap<ValueId, usize>,
        numerics: Numerics,
    ) -> Result<Self, Error> {
        let node = graph.node(id);
        let place = format!("node `{}` ({})", node_label(graph, id), node.op_type);
        let action = match (&node.op, &node.unknown) {
            (Some(op), None) => match op.control() {
                None => Action::Compute(op.clone()),
                Some(control) => {
                    let body = |graph| Program::with_numerics(graph, numerics);
                    let bodies = node.bodies.iter().map(|b| Ok((b.name.clone(), body(&b.graph)?)));
                    let outer = graph
                        .captures_of(id)
                        .into_iter()
                        .map(|v| (graph.name(v).to_string(), slots[&v]))
                        .collect();
                    Action::Control { control, bodies: bodies.collect::<Result<_, Error>>()?, outer }
                }
            },
            (_, Some(why)) => Action::Missing(why.clone()),
            (None, None) => Action::Missing(node.op_type.clone()),
        };
        Ok(Self {
            node: id,
            place,
            inputs: graph.inputs_of(id).iter().map(|v| v.map(|v| slots[&v])).collect(),
            outputs: graph.outputs_of(id).iter().map(|v| v.map(|v| (slots[&v], v))).collect(),
            last_reads: Vec::new(),
            action,
        })
    }
}

/// A node's name, or that of its first output.
pub fn node_label(graph: &Graph, id: NodeId) -> String {
    let node = graph.node(id);
    if !node.name.is_empty() {
        return node.name.clone();
    }
    graph.outputs_of(id).iter().flatten().next().map_or_else(String::new, |&v| graph.name(v).into())
}

/// Adds what the inputs were.
fn describe(fault: Fault, inputs: &[Option<Array>]) -> Fault {
    if fault.is_unimplemented() {
        return fault;
    }
    let types: Vec<String> =
        inputs.iter().map(|i| i.as_ref().map_or("none".into(), |a| a.tensor_type().to_string())).collect();
    Fault::new(format!("{fault}; its inputs are {}", types.join(", ")))
}
