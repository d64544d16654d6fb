//! Which nodes compute on integers.
//!
//! The compiler keeps track of the values for which integers stand exactly: the output of a DequantizeLinear, of a
//! quantized operator whose output goes to a QuantizeLinear and nowhere else, and of operators that only move elements
//! of such values. A QuantizeLinear of such a value with the same parameters gives those integers back, so it costs
//! nothing. Real numbers are made of them where an operator asks for real numbers, and for a watch.
//!
//! Which operators form a unit with the nodes around them follows ONNX Runtime's rules for x86-64: all inputs
//! quantized, every output read by one QuantizeLinear and nothing else, perhaps through operators that only move
//! elements or a clamp that the quantization makes superfluous; and signed activations only where they can be turned
//! into unsigned ones. A product and the addition of a constant to its columns are a Gemm, whose bias is rounded to the
//! scale of the sums; if its result is not quantized, it computes in real numbers, whereas a lone product does not.

use std::sync::Arc;

use super::build::Builder;
use super::watch::Shown;
use super::{Action, Step};
use crate::error::Fault;
use crate::ir::integer::{Operand, Scales, Unit, is_byte};
use crate::ir::{Array, DType, Datum, NodeId, Op, Port, QuantParams, Rule, ValueId, affine};
use crate::ops::arithmetic::{Binary, Function};
use crate::ops::gemm::{Gemm, MatMul};
use crate::ops::join::Split;
use crate::ops::quantize::{Dequantize, Quantize};

/// Integers that stand for a value.
#[derive(Clone)]
pub(super) struct Exact {
    /// Where they live.
    slot: usize,
    scales: Scales,
    meaning: Meaning,
    /// Can they be turned into unsigned bytes? Only if nobody else reads them.
    unsigned: bool,
}

/// What integers mean: a DequantizeLinear with its parameters.
#[derive(Clone)]
pub(super) struct Meaning {
    op: Arc<dyn Op>,
    scale: Array,
    zero: Option<Array>,
}

impl Meaning {
    /// The real numbers that integers stand for.
    pub fn reals(&self, integers: &Array) -> Result<Array, Fault> {
        let inputs = [Some(integers.clone()), Some(self.scale.clone()), self.zero.clone()];
        self.op.float(&inputs)?.pop().ok_or_else(|| "DequantizeLinear has no output".into())
    }
}

/// Operators through which ONNX Runtime moves quantization.
const PERMEABLE: [&str; 6] = ["MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"];

impl Builder<'_> {
    /// Makes the node compute on integers, or to cost nothing, if it can.
    pub fn on_integers(&mut self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let (Some(op), None) = (node.op.clone(), &node.unknown) else { return false };
        let stands = |v: ValueId| self.exact.contains_key(&v) || self.filled_by.contains_key(&self.slot(v));
        if self.graph.output(id, 0).is_some_and(stands) {
            return true; // part of a unit
        }
        if let Some(dequantize) = op.as_a::<Dequantize>() {
            return self.dequantize(id, &op, dequantize).is_some();
        }
        if op.as_a::<Quantize>().is_some() {
            return self.quantize(id).is_some();
        }
        match op.rule() {
            Rule::SameScale => self.movement(id, &op).is_some(),
            Rule::Clamp { .. } if self.superfluous(id).is_some() => true,
            _ => self.biased_product(id).unwrap_or_else(|| {
                let (inputs, outputs) = (self.graph.inputs_of(id), self.outputs(id));
                outputs.is_some_and(|outputs| self.unit(id, &op, &inputs, outputs).is_some())
            }),
        }
    }

    /// A MatMul by a constant matrix whose result only an Add of one constant for each column reads. Of integers: on
    /// integers if a QuantizeLinear comes after that, else not, as a Gemm with a real bias and a real result has no
    /// integer form. Of real numbers: one operator with the addition.
    fn biased_product(&mut self, id: NodeId) -> Option<bool> {
        let gemm = Gemm::default();
        self.graph.node(id).op_as::<MatMul>()?;
        let real = self.exact_input(id, 0).is_none();
        let add = self.graph.only_use(self.graph.output(id, 0)?)?;
        let binary = self.graph.node(add.node).op_as::<Binary>()?;
        let other = match add.port {
            Port::Input(slot @ 0..2) if binary.function == Function::Add && binary.axis.is_none() => 1 - slot,
            _ => return None,
        };
        let bias = self.graph.input(add.node, other)?;
        // Of more axes than two ONNX Runtime makes a matrix only if it knows their extents.
        let dims = self.graph.ty(self.graph.input(id, 0)?)?.dims.as_ref()?;
        if !real && dims.len() != 2 && dims.iter().any(|d| d.known().is_none()) {
            return None;
        }
        let weight = self.constant(self.exact_input(id, 1)?.slot)?.shape();
        let fits = matches!((self.constant(self.slot(bias))?.shape(), weight), ([n], [_, m]) if n == m);
        let output = self.graph.output(add.node, 0).filter(|_| fits)?;
        let inputs = [self.graph.input(id, 0), self.graph.input(id, 1), Some(bias)];
        if real {
            let product: Arc<dyn Op> = Arc::new(MatMul::default());
            return self.unit(id, &product, &inputs, vec![output]).map(|()| true);
        }
        let gemm: Arc<dyn Op> = Arc::new(gemm);
        Some(self.quantizer(output).is_some() && self.unit(id, &gemm, &inputs, vec![output]).is_some())
    }

    /// The values in the output slots, all of them used.
    fn outputs(&self, id: NodeId) -> Option<Vec<ValueId>> {
        self.graph.outputs_of(id).into_iter().collect()
    }

    fn exact_input(&self, id: NodeId, slot: usize) -> Option<&Exact> {
        self.exact.get(&self.graph.input(id, slot)?)
    }

    /// Notes that integers stand for a value.
    fn stand_for(&mut self, value: ValueId, exact: Exact) {
        self.show(value, exact.slot, Some(exact.meaning.clone()));
        self.exact.insert(value, exact);
    }

    /// Shows a value as soon as its slot is filled.
    fn show(&mut self, id: ValueId, slot: usize, meaning: Option<Meaning>) {
        let shown = Shown { slot, id, meaning };
        match self.filled_by.get(&slot) {
            Some(&step) => self.program.steps[step].shown.push(shown),
            None if self.constant(slot).is_none() => self.program.shown.push(shown),
            None => {}
        }
    }

    /// The constants in the slots of scale and zero point of a quantizing node.
    fn parameters(&self, id: NodeId) -> Option<(Array, Option<Array>)> {
        let constant = |value| self.constant(self.slot(value)).cloned();
        let scale = constant(self.graph.input(id, 1)?).filter(|s| s.dtype() == DType::F32)?;
        match self.graph.input(id, 2) {
            Some(zero) => Some((scale, Some(constant(zero)?))),
            None => Some((scale, None)),
        }
    }

    fn dequantize(&mut self, id: NodeId, op: &Arc<dyn Op>, own: &Dequantize) -> Option<()> {
        let (value, x) = (self.graph.output(id, 0)?, self.graph.input(id, 0)?);
        let (scale, zero) = self.parameters(id)?;
        let slot = self.slot(x);
        let dtype = zero.as_ref().map(Array::dtype).or_else(|| self.graph.ty(x).map(|t| t.dtype));
        let scales = own.scales(dtype.or(self.constant(slot).map(Array::dtype))?, &scale, zero.as_ref())?;
        let lone = self.graph.only_use(x).is_some()
            && self.read_once(value)
            && self.graph.producer(x).is_some_and(|(q, _)| self.graph.node(q).op_as::<Quantize>().is_some());
        let unsigned = scales.dtype != DType::I8 || lone;
        let meaning = Meaning { op: op.clone(), scale, zero };
        self.stand_for(value, Exact { slot, scales, meaning, unsigned });
        Some(())
    }

    /// The parameters of a QuantizeLinear with one scale, and what they mean.
    fn quantizing(&self, id: NodeId) -> Option<(QuantParams, Meaning)> {
        let own = self.graph.node(id).op_as::<Quantize>()?;
        let (scale, zero) = self.parameters(id)?;
        let params = own.params(&scale, zero.as_ref())?;
        let op = Arc::new(Dequantize { axis: 1, block_size: 0, output_dtype: None });
        Some((params, Meaning { op, scale, zero }))
    }

    fn quantize(&mut self, id: NodeId) -> Option<()> {
        let (value, params) = (self.graph.output(id, 0)?, self.quantizing(id)?.0);
        let exact = self.exact_input(id, 0).filter(|e| e.scales.whole() == Some(params))?;
        let slot = exact.slot;
        self.program.slots.insert(value, slot);
        self.show(value, slot, None);
        Some(())
    }

    /// The QuantizeLinear that alone reads the value, perhaps through operators that change nothing of it.
    fn quantizer(&self, mut value: ValueId) -> Option<(NodeId, QuantParams, Meaning)> {
        let mut bounds = Vec::new();
        loop {
            let reader = self.graph.only_use(value).filter(|reader| reader.port == Port::Input(0))?.node;
            if let Some((params, meaning)) = self.quantizing(reader) {
                let free = bounds.iter().all(|&(low, high)| never_clamps(&params, low, high));
                return free.then_some((reader, params, meaning));
            }
            let node = self.graph.node(reader);
            let rule = node.op.as_ref().filter(|_| node.unknown.is_none())?.rule();
            match rule {
                Rule::Clamp { low, high } => bounds.push(self.bounds(reader, low, high)?),
                Rule::SameScale if PERMEABLE.iter().any(|op| node.is(op)) => {}
                _ => return None,
            }
            value = self.graph.output(reader, 0)?;
        }
    }

    /// The interval of a clamp: that of its attributes, or that of its constant inputs.
    pub fn bounds(&self, id: NodeId, low: f32, high: f32) -> Option<(f32, f32)> {
        let bound = |slot, attribute| match self.graph.input(id, slot) {
            None => Some(attribute),
            Some(value) => self.constant(self.slot(value))?.item::<f32>().ok(),
        };
        Some((bound(1, low)?, bound(2, high)?))
    }

    /// A clamp after which the value is quantized with the parameters that it has already.
    fn superfluous(&mut self, id: NodeId) -> Option<()> {
        let value = self.graph.output(id, 0)?;
        let exact = self.exact_input(id, 0)?.clone();
        let Rule::Clamp { low, high } = self.graph.node(id).op.as_ref()?.rule() else { return None };
        let params = exact.scales.whole()?;
        let (low, high) = self.bounds(id, low, high)?;
        let same = self.quantizer(value).is_some_and(|(_, after, _)| after == params);
        if !same || !never_clamps(&params, low, high) {
            return None;
        }
        self.stand_for(value, exact);
        Some(())
    }

    /// An operator that only moves elements moves the integers.
    fn movement(&mut self, id: NodeId, op: &Arc<dyn Op>) -> Option<()> {
        let outputs = self.outputs(id)?;
        let exact = self.exact_input(id, 0)?.clone();
        let params = exact.scales.whole().filter(|p| is_byte(p.dtype))?;
        let permeable = PERMEABLE.iter().any(|op| self.graph.node(id).is(op));
        let requantized =
            || outputs.iter().all(|&v| self.quantizer(v).is_some_and(|(_, after, _)| after == params));
        if (outputs.len() > 1 && op.as_a::<Split>().is_none()) || !(permeable || requantized()) {
            return None;
        }
        let inputs = self.graph.inputs_of(id);
        inputs.iter().skip(1).flatten().for_each(|&v| self.make_real(v));
        let others = inputs.iter().skip(1).map(|v| v.map(|v| self.slot(v)));
        let inputs = [Some(exact.slot)].into_iter().chain(others).collect();
        let slots = self.push_on_integers(id, inputs, &outputs, Action::Compute(op.clone()));
        for (value, slot) in outputs.into_iter().zip(slots) {
            self.stand_for(value, Exact { slot, ..exact.clone() });
        }
        Some(())
    }

    /// A step that fills new slots; returns them.
    fn push_on_integers(
        &mut self,
        id: NodeId,
        inputs: Vec<Option<usize>>,
        outputs: &[ValueId],
        action: Action,
    ) -> Vec<usize> {
        let first = self.program.initial.len();
        let slots: Vec<usize> = (first..first + outputs.len()).collect();
        self.program.initial.resize(first + outputs.len(), None);
        let step = Step {
            size: None,
            sum: None,
            limits: None,
            node: id,
            place: self.place(id),
            inputs,
            outputs: slots.iter().zip(outputs).map(|(&slot, &id)| Some((slot, id))).collect(),
            shown: Vec::new(),
            last_reads: Vec::new(),
            action,
        };
        self.push(step);
        slots
    }

    /// An operator with an integer form between quantized inputs and outputs.
    fn unit(
        &mut self,
        id: NodeId,
        op: &Arc<dyn Op>,
        inputs: &[Option<ValueId>],
        outputs: Vec<ValueId>,
    ) -> Option<()> {
        let weight = match op.rule() {
            Rule::Contraction { weight, .. } => Some(weight),
            _ => None,
        };
        let operand = |(slot, value): (usize, &Option<ValueId>)| {
            let Some(value) = value else { return Some(None) };
            let Some(exact) = self.exact.get(value) else {
                return Some(Some(Operand::Plain(self.constant(self.slot(*value)).cloned())));
            };
            let signed = exact.scales.dtype == DType::I8 && !exact.unsigned && Some(slot) != weight;
            let constant = self.constant(exact.slot).cloned();
            (!signed).then_some(Some(Operand::Integer(exact.scales.clone(), constant)))
        };
        let operands = inputs.iter().enumerate().map(operand).collect::<Option<Vec<_>>>()?;
        if !operands.iter().flatten().any(|o| matches!(o, Operand::Integer(..))) {
            return None;
        }
        let quantizers: Vec<_> = outputs.iter().map(|&v| self.quantizer(v)).collect();
        let alone = |&(q, p, _): &(NodeId, QuantParams, Meaning)| p.dtype != DType::I8 || self.lone(q);
        if !quantizers.iter().flatten().all(alone) {
            return None;
        }
        let unit =
            Unit { inputs: operands, outputs: quantizers.iter().map(|q| q.as_ref().map(|q| q.1)).collect() };
        let kernel = op.integer(&unit)?;
        let mut slots = Vec::new();
        for (slot, (value, operand)) in inputs.iter().zip(&unit.inputs).enumerate() {
            slots.push(match (value, operand) {
                (Some(value), Some(_)) if !kernel.packed().contains(&slot) => {
                    let integers = matches!(operand, Some(Operand::Integer(..)));
                    match self.exact.get(value).filter(|_| integers) {
                        Some(exact) => Some(exact.slot),
                        None => Some(self.slot(*value)),
                    }
                }
                _ => None,
            });
        }
        let filled = self.push_on_integers(id, slots, &outputs, Action::Integer(kernel));
        for ((value, slot), quantizer) in outputs.into_iter().zip(filled).zip(quantizers) {
            match quantizer {
                Some((q, params, meaning)) => {
                    let scales = Scales {
                        dtype: params.dtype,
                        scales: vec![params.scale],
                        zero_points: vec![params.zero_point],
                        axis: None,
                    };
                    let unsigned = params.dtype != DType::I8 || self.lone(q);
                    self.stand_for(value, Exact { slot, scales, meaning, unsigned });
                }
                None => {
                    self.program.slots.insert(value, slot);
                    self.show(value, slot, None);
                }
            }
        }
        Some(())
    }

    /// Does one DequantizeLinear with one reader read what the QuantizeLinear writes?
    fn lone(&self, quantize: NodeId) -> bool {
        let reader = self.graph.output(quantize, 0).and_then(|v| self.graph.only_use(v));
        let value = reader
            .filter(|r| self.graph.node(r.node).op_as::<Dequantize>().is_some())
            .and_then(|r| self.graph.output(r.node, 0));
        value.is_some_and(|v| self.read_once(v))
    }

    /// Is a value either the graph's output or read by one operator?
    fn read_once(&self, value: ValueId) -> bool {
        self.graph.uses(value).len() + usize::from(self.graph.is_output(value)) == 1
    }

    /// Makes real numbers of the integers that stand for a value, for who reads it next.
    pub fn make_real(&mut self, value: ValueId) {
        let Some(exact) = self.exact.get(&value).cloned() else { return };
        if !self.real.insert(value) {
            return;
        }
        let slot = self.slot(value);
        if let Some(integers) = self.constant(exact.slot)
            && let Ok(reals) = exact.meaning.reals(integers)
        {
            self.program.initial[slot] = Some(Datum::Tensor(reals));
            return;
        }
        let Some((node, _)) = self.graph.producer(value) else { return };
        let step = Step {
            size: None,
            sum: None,
            limits: None,
            node,
            place: self.place(node),
            inputs: vec![Some(exact.slot)],
            outputs: vec![Some((slot, value))],
            shown: Vec::new(),
            last_reads: Vec::new(),
            action: Action::Read(exact.meaning.clone()),
        };
        self.push(step);
    }
}

/// Does a clamp to this interval change nothing that quantization leaves?
fn never_clamps(params: &QuantParams, low: f32, high: f32) -> bool {
    let Some((min, max)) = affine::limits(params.dtype) else { return false };
    let place = |v: f32| (v / params.scale).round_ties_even() + params.zero_point as f32;
    place(low) <= min as f32 && place(high) >= max as f32
}

#[cfg(test)]
mod tests;
