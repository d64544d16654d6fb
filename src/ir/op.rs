//! What an operator is to the compiler: the trait that each one implements in its family's file under `ops/`.

use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use super::integer::{Kernel, Unit};
use super::{Array, Datum, Extent, Graph, Limits, Tensor, TensorType};
use crate::error::Fault;

/// What is known of an input before the graph runs.
#[derive(Debug, Clone, Copy)]
pub struct Fact<'a> {
    /// Element type and, as far as known, shape.
    pub ty: &'a TensorType,
    /// The value itself when it is a constant.
    pub constant: Option<&'a Tensor>,
}

/// How ONNX Runtime runs a node, as far as it shows in the last digits of real numbers.
#[derive(Debug, Clone, Copy)]
pub struct Runtime<'a> {
    /// With its optimizations, else as the graph says.
    pub optimized: bool,
    /// What there is in each slot.
    pub inputs: &'a [Given<'a>],
}

/// An input, as ONNX Runtime sees it before it runs.
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    /// There is none.
    Absent,
    /// Numbers that it can lay out ahead: those stored as they are, not those for which integers stand.
    Ahead(&'a Array),
    /// Not known yet.
    Later,
}

impl<'a> Runtime<'a> {
    /// The input in this slot, if it is known ahead.
    pub fn ahead(&self, slot: usize) -> Option<&'a Array> {
        match self.inputs.get(slot) {
            Some(Given::Ahead(array)) => Some(array),
            _ => None,
        }
    }

    /// Is there an input in this slot of which nothing is known?
    pub fn waits_for(&self, slot: usize) -> bool {
        matches!(self.inputs.get(slot), Some(Given::Later))
    }
}

/// What comes after an operator, and may be done while the elements of its result are at hand.
#[derive(Debug, Clone, Copy)]
pub struct After<'a> {
    /// Added to the result, whose shape stays what it is.
    pub added: Option<&'a Array>,
    /// What limits that.
    pub limits: Limits,
}

/// The meaning of one operator with its attributes read.
///
/// Inputs come by slot; an absent optional input is `None`. Inference also gets `None` for an input of which nothing
/// is known. An operator is made by its [`OpDef`](crate::ops::OpDef) for the opset in force, so it needs no version.
pub trait Op: Any + Debug + Send + Sync {
    /// The types of the outputs as far as they follow from the inputs; `None` where nothing is known. A fault means
    /// that the inputs cannot be right.
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let _ = inputs;
        Ok(Vec::new())
    }

    /// Computes the outputs by the ONNX definition.
    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault>;

    /// The operator with the sums and functions of ONNX Runtime's float kernels, if they are others. Its results
    /// differ from those of [`Op::float`] by roundings alone.
    fn in_runtime(&self, runtime: &Runtime) -> Option<Arc<dyn Op>> {
        let _ = runtime;
        None
    }

    /// The operator that has laid out its constants ahead, if that saves time in every run. It computes the same, also of
    /// other inputs than these.
    fn with_constants(&self, constants: &[Option<&Array>]) -> Option<Arc<dyn Op>> {
        let _ = constants;
        None
    }

    /// Can it do to its only output what comes after, and tell the extent, while the elements are at hand?
    fn finishes(&self) -> bool {
        false
    }

    /// The only output after what comes after it, and its extent; none if these operands have no such form. Passes
    /// over memory that other operators and a watch would take are saved.
    fn finished(&self, inputs: &[Option<Array>], after: After) -> Option<Result<(Array, Extent), Fault>> {
        let _ = (inputs, after);
        None
    }

    /// Computes on integers as ONNX Runtime's fused kernels do, if the operator has such a form for these operands.
    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        let _ = unit;
        None
    }

    /// Computes on values that need not be tensors. Operators on sequences and optional values define it; all others
    /// only have [`Op::float`].
    fn evaluate(&self, inputs: Vec<Option<Datum>>) -> Result<Vec<Datum>, Fault> {
        let tensor = |input: Option<Datum>| match input {
            None | Some(Datum::Absent) => Ok(None),
            Some(value) => value.tensor().map(Some),
        };
        let tensors = inputs.into_iter().map(tensor).collect::<Result<Vec<_>, Fault>>()?;
        Ok(self.float(&tensors)?.into_iter().map(Datum::Tensor).collect())
    }

    /// Computes with the help of the graphs inside the node ([`Control::Inside`]): `call` runs the one of a name, if
    /// the node has it.
    fn calling(&self, inputs: &[Option<Array>], call: Hook) -> Result<Vec<Array>, Fault> {
        let _ = call;
        self.float(inputs)
    }

    /// The graph that a call of a model-local function runs; the node itself does not hold it.
    fn body(&self) -> Option<&Graph> {
        None
    }

    /// How the operator relates the quantization of its inputs and outputs.
    fn rule(&self) -> Rule {
        Rule::Float
    }

    /// Does it give the same outputs for the same inputs? Only such operators are folded.
    fn is_pure(&self) -> bool {
        true
    }

    /// The way back for gradients; `None`: they stop here.
    fn gradient(&self) -> Option<&dyn Gradient> {
        None
    }

    /// Does the graph inside the node decide what runs (If, Loop, Scan)? The interpreter runs those itself.
    fn control(&self) -> Option<Control> {
        None
    }
}

impl dyn Op {
    /// The operator as its own type.
    pub fn as_a<T: Op>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// Runs the graph of a name, if there is one.
pub type Hook<'a> = &'a dyn Fn(&str, &[Array]) -> Result<Option<Vec<Array>>, Fault>;

/// The way back through an operator: from the gradient of a loss by its outputs to that by its inputs.
pub trait Gradient {
    /// The gradient by each input that is wanted; `None` where the outputs do not depend on the input. Sums are taken
    /// in an order that follows from the shapes alone.
    fn backward(&self, run: &Run) -> Result<Vec<Option<Array>>, Fault>;
}

/// One run of an operator, as its [`Gradient`] sees it afterwards.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// What went in, by slot.
    pub inputs: &'a [Option<Array>],
    /// What came out, by slot.
    pub outputs: &'a [Option<Array>],
    /// The gradient by each output, in its shape, as real numbers; `None` where the loss does not depend on it.
    pub upstream: &'a [Option<Array>],
    /// The inputs whose gradient is asked for.
    pub wanted: &'a [bool],
}

impl<'a> Run<'a> {
    /// The input in a slot that must be filled.
    pub fn input(&self, slot: usize) -> Result<&'a Array, Fault> {
        filled(self.inputs, slot, "input")
    }

    /// The output in a slot that must be filled.
    pub fn output(&self, slot: usize) -> Result<&'a Array, Fault> {
        filled(self.outputs, slot, "output")
    }

    /// The gradient by an output on which the loss must depend.
    pub fn upstream(&self, slot: usize) -> Result<&'a Array, Fault> {
        filled(self.upstream, slot, "the gradient by output")
    }

    /// Is the gradient by this input asked for?
    pub fn wants(&self, slot: usize) -> bool {
        self.wanted.get(slot).copied().unwrap_or(false)
    }
}

fn filled<'a>(slots: &'a [Option<Array>], slot: usize, what: &str) -> Result<&'a Array, Fault> {
    let value = slots.get(slot).and_then(Option::as_ref);
    value.ok_or_else(|| format!("{what} {slot} is missing").into())
}

/// The operators that run the graphs inside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// `then_branch` or `else_branch`.
    If,
    /// `body`, with loop-carried values and stacked scan outputs.
    Loop,
    /// `body` over the tensors of its first input, a sequence, and of those of its other inputs that are sequences.
    Map,
    /// The operator itself, which calls the graphs inside the node as functions ([`Op::calling`]).
    Inside,
    /// The body of a model-local function ([`Op::body`]), with the inputs of the node.
    Call,
    /// `body` as in [`Control::Scan`], for each sample of a batch (opset 8).
    ScanBatch {
        /// How many of the inputs are scanned.
        scanned: usize,
        /// True: from the last slice to the first.
        input_reverse: Vec<bool>,
    },
    /// `body` over slices of its last inputs.
    Scan {
        /// How many of the inputs are scanned.
        scanned: usize,
        /// Scan axis for each scanned input.
        input_axes: Vec<i64>,
        /// True: from the last slice to the first.
        input_reverse: Vec<bool>,
        /// Stacking axis for each scan output.
        output_axes: Vec<i64>,
        /// True: outputs are prepended.
        output_reverse: Vec<bool>,
    },
}

/// How an operator relates the quantization parameters of its inputs and outputs: data for the one solver in
/// `quantize/`.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// No integer form is known: inputs and outputs are real numbers.
    Float,
    /// A sum of products with a weight: an 8-bit activation, an 8-bit weight, a 32-bit bias.
    Contraction {
        /// Slot of the weight (which need not be a constant for MatMul).
        weight: usize,
        /// Axis of the weight that counts output channels; `None`: per-tensor only.
        channel_axis: Option<usize>,
        /// Slot of the bias if the operator has one.
        bias: Option<usize>,
    },
    /// Values only move: the first input and every output share their parameters.
    SameScale,
    /// Real arithmetic on the inputs named here (slots), each input and the output with parameters of its own.
    Arithmetic(Operands),
    /// The output lies in a known interval whatever the input; `scale` and the interval are fixed by the kernels.
    FixedRange {
        /// Lower end, mapped to the lowest quantized value.
        low: f32,
        /// The output's scale.
        scale: f32,
    },
    /// Limits the range to `[low, high]`: free after an integer operator whose output range ends there.
    Clamp {
        /// Lower bound (`-inf`: none).
        low: f32,
        /// Upper bound (`inf`: none).
        high: f32,
    },
    /// The input in this slot times a positive number: the same integers with another scale.
    Rescale {
        /// Where the input is; the number is in the other slot.
        slot: usize,
        /// The number.
        factor: f32,
    },
}

/// Which inputs of an arithmetic operator are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operands {
    /// The first input.
    One,
    /// The first two inputs.
    Two,
    /// Every input.
    All,
    /// Inputs 1 and 2 (`Where`).
    Branches,
}
