//! Running a graph: a [`Program`] is compiled once and run for many samples, from many threads.
//!
//! Compiling fixes the schedule, gives every value a slot, computes what depends on constants only, and notes after
//! which step a value is read for the last time, so that memory follows the live values. A run computes by the ONNX
//! definition of each operator, or quantized operators on integers; see [`Numerics`].
//!
//! # What is exact, and what is not
//!
//! Results of the interpreter depend on the model and its inputs alone, whatever the number of threads. How they
//! compare with ONNX Runtime's:
//!
//! * [`Numerics::Ort`] follows its default optimizations, on one thread of an x86-64 processor with AVX-512 and VNNI.
//!   The same bits come from quantized operators, also from a product of real numbers with 8-bit weights, for which
//!   it rounds the former to bytes too. They come from convolutions (which it lays out in blocks of channels where
//!   their numbers fit, and then adds in another order), products, LSTM, Softmax, LayerNormalization, ReduceL2,
//!   GlobalAveragePool, `exp` and `erf`, and from `tanh` and the sigmoid, which are fractions there and lose digits.
//! * [`Numerics::Spec`] follows it without optimizations, with the same bits for the same operators.
//! * [`Numerics::Definition`] follows the definition alone: what is calibrated, tuned and trained is computed so. Its
//!   `tanh`, sigmoid and ReduceL2 are more exact, and a convolution with one input channel in each group adds fused
//!   products one by one.
//!
//! The first two may differ in the last digits in other reductions, GRU and RNN, average pools of which ONNX Runtime
//! knows that the channels make whole blocks, and where it makes one operator of several: a product and the addition
//! of a constant, an addition and a normalization, a convolution in blocks and an addition. Where such a result is
//! quantized and lies close to a tie, it may become the neighbouring integer (one element in 10⁵ to 10⁶), and what is
//! computed from it follows.
//!
//! On other processors ONNX Runtime itself computes otherwise:
//!
//! * x86-64 without VNNI: the kernels of unsigned by signed bytes add pairs of products in 16 bits. Two neighbouring
//!   weights of one sign whose magnitudes sum to more than 128 may saturate there, which is not a matter of one step.
//!   With `session.x64quantprecision=1` the sums are exact again. The interpreter never saturates.
//! * x86-64 without FMA: QLinearAdd rounds products and sums one by one, and may differ by one step.
//! * Arm: QLinearAdd works with fixed-point factors of 22 bits and rounds halves up, and may differ by one step.
//!   Float sums come in another order again.

pub mod adjoint;
mod build;
mod control;
mod fuse;
mod integer;
pub mod lockstep;
pub mod room;
pub mod trace;
mod watch;

pub use watch::Watch;

use std::collections::HashMap;
use std::sync::Arc;

use crate::budget::{self, Holding};
use crate::error::{Error, Fault};
use crate::ir::integer::Kernel;
use crate::ir::{Array, Control, Datum, Graph, Limits, NodeId, Op, ValueId};
use fuse::Sum;
use integer::Meaning;
use watch::Shown;

/// A graph ready to run.
pub struct Program {
    steps: Vec<Step>,
    /// Where each value of the graph lives.
    slots: HashMap<ValueId, usize>,
    /// The values before a run: constants are there, the others are empty.
    initial: Vec<Option<Datum>>,
    inputs: Vec<usize>,
    outputs: Vec<usize>,
    /// Values from around the graph, by name, and where they live in it.
    captures: Vec<(String, usize)>,
    /// What a watch sees before the first step besides the inputs.
    shown: Vec<Shown>,
}

struct Step {
    node: NodeId,
    place: String,
    inputs: Vec<Option<usize>>,
    outputs: Vec<Option<(usize, ValueId)>>,
    /// The values that a watch sees after the step.
    shown: Vec<Shown>,
    /// Slots that nobody reads after this step.
    last_reads: Vec<usize>,
    action: Action,
    /// The bytes of its results, if they follow from the graph.
    size: Option<u64>,
    /// What the only reader of the result adds to it.
    sum: Option<Sum>,
    /// Limits that the only reader of the result, or of the sum, puts on it.
    limits: Option<Limits>,
}

enum Action {
    Compute(Arc<dyn Op>),
    /// Computes on integers.
    Integer(Box<dyn Kernel>),
    /// Makes real numbers of integers.
    Read(Meaning),
    Control {
        op: Arc<dyn Op>,
        control: Control,
        bodies: Vec<(String, Program)>,
        outer: HashMap<String, usize>,
    },
    /// Why the node cannot run.
    Missing(String),
}

/// How operators compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Numerics {
    /// Every node by its ONNX definition: DequantizeLinear, the operator on real numbers, QuantizeLinear. Functions are
    /// exact to the last digit or two, and sums come in the order that is fastest.
    #[default]
    Definition,
    /// The same, with the sums and functions of ONNX Runtime's kernels when it does not optimize.
    Spec,
    /// An operator between DequantizeLinear and QuantizeLinear computes on integers, as ONNX Runtime's fused x86-64
    /// kernels do, and any other on real numbers as its optimized kernels do. With `x`, `w`, `y` as scales: products
    /// are exact 32-bit sums times `x·w / y`, rounded once, halves to even; Add is two fused multiply-adds, Mul one
    /// factor; one-to-one functions and Softmax go through tables.
    Ort,
}

impl Program {
    /// Runs the graph on one input for each graph input without a default; the outputs in order.
    pub fn run(&self, inputs: &[Array]) -> Result<Vec<Array>, Error> {
        whole(self.run_unwatched(inputs)?)
    }

    /// The same, showing every value to `watch`.
    pub fn run_watched(&self, inputs: &[Array], watch: &mut dyn Watch) -> Result<Vec<Array>, Error> {
        whole(self.run_as_far_as_possible(inputs, watch)?)
    }

    /// Runs what can be run: nodes of unknown operators, and what depends on them, are left out, and the second part
    /// names the first of them.
    pub fn run_as_far_as_possible(&self, inputs: &[Array], watch: &mut dyn Watch) -> Result<Outputs, Error> {
        self.start(&data(inputs), Some(watch)).map(tensors)
    }

    /// The same with nobody watching, which saves making real numbers of integers.
    pub fn run_unwatched(&self, inputs: &[Array]) -> Result<Outputs, Error> {
        self.start(&data(inputs), None).map(tensors)
    }

    /// Runs a graph whose inputs and outputs need not be tensors.
    pub fn run_data(&self, inputs: &[Datum]) -> Result<Vec<Datum>, Error> {
        whole(self.start(inputs, None)?)
    }

    fn start(&self, inputs: &[Datum], mut watch: Option<&mut dyn Watch>) -> Result<Outputs<Datum>, Error> {
        budget::begin();
        let mut values = self.initial.clone();
        self.fill_inputs(&mut values, inputs)?;
        if let Some(watch) = &mut watch {
            self.show_inputs(&values, *watch)?;
        }
        let problem = self.execute(&mut values, watch)?;
        Ok((self.outputs.iter().map(|&slot| values[slot].clone()).collect(), problem))
    }

    /// Can a watch see the value?
    pub fn shows(&self, id: ValueId) -> bool {
        let steps = self.steps.iter().flat_map(|step| &step.shown);
        let input = self.slots.get(&id).is_some_and(|slot| self.inputs.contains(slot));
        input || steps.chain(&self.shown).any(|shown| shown.id == id)
    }

    /// How many steps a run has.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// How many of them compute on integers in place of an operator on real numbers.
    pub fn integer_steps(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step.action, Action::Integer(_))).count()
    }

    /// Puts the inputs of a run in their slots: all of them, or those without a default.
    fn fill_inputs(&self, values: &mut [Option<Datum>], inputs: &[Datum]) -> Result<(), Error> {
        let wanted = self.inputs.iter().filter(|&&slot| self.initial[slot].is_none()).count();
        if inputs.len() != wanted && inputs.len() != self.inputs.len() {
            let message = format!("the graph has {wanted} inputs, {} were given", inputs.len());
            return Err(Fault::new(message).at("run"));
        }
        let open =
            self.inputs.iter().filter(|&&s| inputs.len() == self.inputs.len() || self.initial[s].is_none());
        for (&slot, value) in open.zip(inputs) {
            values[slot] = Some(value.clone());
        }
        Ok(())
    }

    fn show_inputs(&self, values: &[Option<Datum>], watch: &mut dyn Watch) -> Result<(), Error> {
        let mut ids: Vec<_> = self.slots.iter().filter(|(_, slot)| self.inputs.contains(slot)).collect();
        ids.sort();
        let inputs = ids.into_iter().map(|(&id, &slot)| Shown { slot, id, meaning: None });
        let mut show = |shown: &Shown| shown.to(values, None, watch).map_err(|f| f.at("inputs"));
        inputs.into_iter().try_for_each(|shown| show(&shown))?;
        self.shown.iter().try_for_each(show)
    }

    fn execute(
        &self,
        values: &mut [Option<Datum>],
        mut watch: Option<&mut dyn Watch>,
    ) -> Result<Option<Error>, Error> {
        let mut problem = None;
        // What was computed and is still to be read.
        let mut holding = Holding::default();
        let mut noticed = vec![None; values.len()];
        for step in &self.steps {
            budget::step().map_err(|fault| fault.at(&step.place))?;
            if !step.run_fused(values, &mut noticed, watch.as_deref())?
                && let Some(missed) = step.run(values)?
            {
                problem.get_or_insert(missed);
                continue;
            }
            let made = step.outputs.iter().flatten().filter_map(|&(slot, _)| values[slot].as_ref());
            holding.take(made.map(room::bytes_of).sum());
            if let Some(watch) = &mut watch {
                let mut show = |shown: &Shown| shown.to(values, noticed[shown.slot], *watch);
                step.shown.iter().try_for_each(&mut show).map_err(|fault| fault.at(&step.place))?;
            }
            for &slot in &step.last_reads {
                if let Some(value) = values[slot].take() {
                    holding.give(room::bytes_of(&value));
                    // Other results come from the allocator, which is to have them back while they are in the cache.
                    if noticed[slot].is_some() {
                        room::reuse(value);
                    }
                }
            }
        }
        Ok(problem)
    }
}

/// The outputs of a run as far as they were computed, and why some were not.
pub type Outputs<T = Array> = (Vec<Option<T>>, Option<Error>);

/// All outputs, or the reason why one is missing.
fn whole<T>((outputs, problem): Outputs<T>) -> Result<Vec<T>, Error> {
    let missing = || problem.clone().unwrap_or_else(|| Fault::new("an output was not computed").at("run"));
    outputs.into_iter().map(|o| o.ok_or_else(missing)).collect()
}

/// Tensors as values of any kind.
fn data(inputs: &[Array]) -> Vec<Datum> {
    inputs.iter().cloned().map(Datum::Tensor).collect()
}

/// The outputs that are tensors; what else one is counts as a problem.
fn tensors((outputs, mut problem): Outputs<Datum>) -> Outputs {
    let mut tensor = |value: Datum| match value.tensor() {
        Ok(array) => Some(array),
        Err(fault) => {
            problem.get_or_insert_with(|| fault.at("output"));
            None
        }
    };
    (outputs.into_iter().map(|o| o.and_then(&mut tensor)).collect(), problem)
}

impl Step {
    /// Computes the outputs into their slots. If an operator is not known or an input is not there, they stay empty and
    /// the reason is returned.
    fn run(&self, values: &mut [Option<Datum>]) -> Result<Option<Error>, Error> {
        if !self.inputs.iter().flatten().all(|&s| values[s].is_some()) {
            return Ok(Some(Fault::new("an input was not computed").at(&self.place)));
        }
        let inputs = || self.inputs.iter().map(|s| s.and_then(|s| values[s].clone())).collect::<Vec<_>>();
        let found = || self.inputs.iter().map(|s| s.and_then(|s| values[s].as_ref()));
        let array = |value: Option<&Datum>| value.map(|v| v.as_tensor().cloned()).transpose();
        let result = match &self.action {
            Action::Missing(why) => return Ok(Some(Fault::unimplemented(why).at(&self.place))),
            Action::Compute(op) => room::compute(&**op, inputs(), self.size)
                .map_err(|fault| describe(fault, found()).at(&self.place)),
            Action::Integer(kernel) => {
                let outputs = found().map(array).collect::<Result<Vec<_>, _>>().and_then(|x| kernel.run(&x));
                let outputs = outputs.map_err(|fault| describe(fault, found()).at(&self.place));
                outputs.map(|all| all.into_iter().map(Datum::Tensor).collect())
            }
            Action::Read(meaning) => {
                let reals = |value: &Datum| Ok(Datum::Tensor(meaning.reals(value.as_tensor()?)?));
                found().flatten().map(reals).collect::<Result<_, Fault>>().map_err(|f| f.at(&self.place))
            }
            Action::Control { op, control, bodies, outer } => {
                let scope = |name: &str| outer.get(name).and_then(|&slot| values[slot].clone());
                control::run((&**op, control), bodies, &inputs(), &scope).map_err(|e| e.within(&self.place))
            }
        };
        let outputs = match result {
            Err(error) if error.fault().is_unimplemented() => return Ok(Some(error)),
            other => other?,
        };
        for (output, value) in self.outputs.iter().zip(outputs) {
            if let Some((slot, _)) = *output {
                values[slot] = Some(value);
            }
        }
        Ok(None)
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
fn describe<'a>(fault: Fault, inputs: impl Iterator<Item = Option<&'a Datum>>) -> Fault {
    if fault.is_unimplemented() {
        return fault;
    }
    let types: Vec<String> = inputs.map(|i| i.map_or("none".into(), Datum::describe)).collect();
    Fault::new(format!("{fault}; its inputs are {}", types.join(", ")))
}
