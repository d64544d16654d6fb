//! The student: a quantized graph in which everything that will be integers is real and can be trained.
//!
//! A QuantizeLinear and its DequantizeLinear become one [`FakeQuantize`]; an integer weight becomes the real weight that
//! it was made from, behind one; an integer bias becomes real. What is trained is a list of [`Parameter`]s, and
//! [`Student::export`] puts them back into the quantized graph.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::fake_quantize::{FakeBias, FakeQuantize};
use crate::error::{Error, Fault};
use crate::ir::affine::limits;
use crate::ir::{Array, DType, Graph, NodeId, Op, Rule, Tensor, Value, ValueId};
use crate::ops::quantize::{Dequantize, Quantize};
use crate::passes::node;

/// What a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A weight, bias or other real constant.
    Real,
    /// Steps between quantized values; positive.
    Scale,
    /// A zero point, in steps; the limits within which it may move.
    Zero(i32, i32),
}

/// A constant of the student that may be trained.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The constant in the student's graph.
    pub value: ValueId,
    /// Its name.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its value to start with.
    pub start: Array,
    /// May it be trained?
    pub trained: bool,
}

/// Something quantized: which parameters it has, and which constants of the quantized graph they become.
#[derive(Debug, Clone)]
pub struct Quantizer {
    /// The integers.
    pub fake: FakeQuantize,
    /// Numbers of the parameters with scale and zero point.
    pub scale: usize,
    /// See `scale`.
    pub zero: usize,
    /// What is quantized.
    pub kind: Kind,
}

/// What a [`Quantizer`] quantizes.
#[derive(Debug, Clone)]
pub enum Kind {
    /// An activation, at this QuantizeLinear.
    Activation(NodeId),
    /// A weight: its parameter, and the constant that holds its integers.
    Weight {
        /// Number of the parameter.
        real: usize,
        /// The constant in the quantized graph.
        integers: ValueId,
    },
}

/// An integer bias: its scale follows from those of the operator's input and weight.
#[derive(Debug, Clone)]
pub struct Bias {
    /// Number of the parameter.
    pub real: usize,
    /// The constants in the quantized graph: integers and scales.
    pub integers: ValueId,
    /// See `integers`.
    pub scales: ValueId,
    /// The quantizers of the operator's data input and weight.
    pub factors: (usize, usize),
}

/// The graph to train.
pub struct Student {
    /// The graph with fake quantization.
    pub graph: Graph,
    /// What can be trained.
    pub parameters: Vec<Parameter>,
    /// Everything quantized.
    pub quantizers: Vec<Quantizer>,
    /// Integer biases.
    pub biases: Vec<Bias>,
    /// The quantized graph that parameters are put back into.
    pub quantized: Graph,
}

/// The real number of each element of a dequantized constant.
fn dequantized(graph: &Graph, dequantize: NodeId) -> Result<Array, Error> {
    let inputs: Vec<Option<Array>> = graph
        .inputs_of(dequantize)
        .into_iter()
        .map(|v| v.and_then(|v| graph.constant(v)).map(Tensor::array).transpose())
        .collect::<Result<_, Fault>>()
        .map_err(|f| f.at("a quantized constant"))?;
    let op = graph.node(dequantize).op.as_ref();
    let outputs = op.map_or_else(|| Err("DequantizeLinear is not known".into()), |op| op.float(&inputs));
    Ok(outputs.map_err(|f| f.at("a quantized constant"))?.remove(0))
}

impl Student {
    /// Makes a student of a quantized graph. `reference` is the float graph that it was made from: the masters of its
    /// weights are found there by name.
    pub fn new(quantized: &Graph, reference: &Graph) -> Result<Self, Error> {
        let mut student = Self {
            graph: quantized.clone(),
            parameters: Vec::new(),
            quantizers: Vec::new(),
            biases: Vec::new(),
            quantized: quantized.clone(),
        };
        let mut shared = BTreeMap::new();
        let nodes: Vec<NodeId> = quantized.nodes().collect();
        for &id in nodes.iter().filter(|&&id| quantized.node(id).op_as::<Quantize>().is_some()) {
            student.activation(id, &mut shared)?;
        }
        for &id in nodes.iter().filter(|&&id| quantized.node(id).op_as::<Dequantize>().is_some()) {
            student.weight(id, reference, &mut shared)?;
        }
        for &id in nodes.iter().filter(|&&id| quantized.node(id).op_as::<Dequantize>().is_some()) {
            student.bias(id)?;
        }
        student.real_constants()?;
        Ok(student)
    }

    fn array(&self, value: ValueId) -> Option<Array> {
        self.quantized.constant(value)?.array().ok()
    }

    /// A parameter for the constant in a slot of a node.
    fn parameter(&mut self, hint: &str, role: Role, start: Array) -> usize {
        let value = self.graph.add_constant(hint, Tensor::from_array(&start));
        let name = self.graph.name(value).to_string();
        self.parameters.push(Parameter { value, name, role, start, trained: true });
        self.parameters.len() - 1
    }

    /// The parameters of scale and zero point constants; constants that several quantizers share stay shared.
    fn step_size(
        &mut self,
        (scale, zero): (ValueId, Option<ValueId>),
        (low, high): (i32, i32),
        shared: &mut BTreeMap<(ValueId, Option<ValueId>), (usize, usize)>,
    ) -> Option<(usize, usize)> {
        if let Some(&known) = shared.get(&(scale, zero)) {
            return Some(known);
        }
        let scales = self.array(scale)?;
        let zero_point = match zero {
            None => 0.0,
            Some(zero) => {
                let zeros = self.array(zero)?.to_f32().ok()?;
                let first = zeros.iter().next().copied()?;
                zeros.iter().all(|&z| z == first).then_some(first)?
            }
        };
        let name = self.quantized.name(scale).to_string();
        let s = self.parameter(&format!("{name}_trained"), Role::Scale, scales);
        let z = self.parameter(&format!("{name}_zero"), Role::Zero(low, high), Array::scalar(zero_point));
        // A zero point at the end of the range is a Relu or a symmetric grid: it stays there.
        self.parameters[z].trained = zero_point > low as f32 && zero_point < high as f32 && low == 0;
        shared.insert((scale, zero), (s, z));
        Some((s, z))
    }

    /// Replaces a node pair by fake quantization.
    fn fake(
        &mut self,
        fake: &FakeQuantize,
        from: ValueId,
        (scale, zero): (usize, usize),
        outputs: &[NodeId],
        rank: u64,
    ) {
        for &dequantize in outputs {
            let Some(to) = self.graph.output(dequantize, 0) else { continue };
            let label = self.graph.node(dequantize).name.clone();
            self.graph.remove_node(dequantize);
            let mut quantizer = node("Identity", format!("{label}_fake"), vec![], 1);
            quantizer.op_type = "FakeQuantize".into();
            quantizer.domain = "qonnx".into();
            quantizer.op = Some(Arc::new(fake.clone()) as Arc<dyn Op>);
            quantizer.rank = rank;
            let inputs = [from, self.parameters[scale].value, self.parameters[zero].value].map(Some);
            self.graph.add_node(quantizer, &inputs, &[Some(to)]);
        }
    }

    fn activation(
        &mut self,
        id: NodeId,
        shared: &mut BTreeMap<(ValueId, Option<ValueId>), (usize, usize)>,
    ) -> Result<(), Error> {
        let graph = &self.quantized;
        let (Some(from), Some(scale), Some(stored)) =
            (graph.input(id, 0), graph.input(id, 1), graph.output(id, 0))
        else {
            return Ok(());
        };
        let zero = graph.input(id, 2);
        let dtype = zero.and_then(|z| graph.constant(z)).map_or(DType::U8, Tensor::dtype);
        let readers: Vec<NodeId> = graph.uses(stored).iter().map(|u| u.node).collect();
        let pairs = |&r: &NodeId| {
            graph.node(r).op_as::<Dequantize>().is_some()
                && graph.input(r, 1) == Some(scale)
                && graph.input(r, 2) == zero
        };
        let scalar = graph.constant(scale).is_some_and(|t| t.len() == 1 && t.dtype() == DType::F32);
        let Some(range) = limits(dtype).filter(|_| scalar && dtype != DType::I32) else { return Ok(()) };
        if graph.is_pinned(stored) || readers.is_empty() || !readers.iter().all(pairs) {
            return Ok(());
        }
        let fixed = graph.producer(from).is_some_and(|(p, _)| {
            let node = graph.node(p);
            node.op.as_ref().is_some_and(|op| matches!(op.rule(), Rule::FixedRange { .. }))
        });
        let rank = graph.node(id).rank;
        let Some((s, z)) = self.step_size((scale, zero), range, shared) else { return Ok(()) };
        if fixed {
            self.parameters[s].trained = false;
            self.parameters[z].trained = false;
        }
        let fake = FakeQuantize { low: range.0, high: range.1, axis: None, pairs: false };
        self.graph.remove_node(id);
        self.fake(&fake, from, (s, z), &readers, rank);
        self.graph.remove_value_if_dead(stored);
        self.quantizers.push(Quantizer { fake, scale: s, zero: z, kind: Kind::Activation(id) });
        Ok(())
    }

    fn weight(
        &mut self,
        id: NodeId,
        reference: &Graph,
        shared: &mut BTreeMap<(ValueId, Option<ValueId>), (usize, usize)>,
    ) -> Result<(), Error> {
        let graph = &self.quantized;
        let (Some(integers), Some(scale)) = (graph.input(id, 0), graph.input(id, 1)) else { return Ok(()) };
        let Some(tensor) = graph.constant(integers) else { return Ok(()) };
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        let Some((low, high)) = limits(dtype).filter(|_| dtype != DType::I32) else { return Ok(()) };
        let Some(scales) = graph.constant(scale).filter(|s| s.dtype() == DType::F32) else { return Ok(()) };
        let blocked = graph.node(id).op_as::<Dequantize>().is_none_or(|d| d.block_size > 0);
        if blocked || graph.uses(integers).len() != 1 {
            return Ok(());
        }
        let axis = match (scales.shape(), graph.node(id).op_as::<Dequantize>()) {
            ([n], Some(op)) if *n > 1 || shape.len() == 1 => {
                crate::ops::slots::axis(op.axis, shape.len()).ok().filter(|&a| shape[a] == *n)
            }
            _ => None,
        };
        if axis.is_none() && scales.len() != 1 {
            return Ok(());
        }
        let symmetric = dtype == DType::I8;
        let fake = FakeQuantize { low: if symmetric { -127 } else { low }, high, axis, pairs: false };
        let start = dequantized(graph, id)?;
        let name = graph.name(integers).to_string();
        let master = name
            .strip_suffix("_quantized")
            .and_then(|n| reference.constant(reference.find(n)?)?.array().ok());
        let master = master.filter(|m| m.shape() == shape.as_slice() && m.dtype() == DType::F32);
        let (rank, zero) = (graph.node(id).rank, graph.input(id, 2));
        let Some((s, z)) = self.step_size((scale, zero), (fake.low, fake.high), shared) else {
            return Ok(());
        };
        let start = match master {
            Some(master) => self.in_cells(&fake, &master, &start, s).map_err(|f| f.at(&name))?,
            None => start,
        };
        let real = self.parameter(&format!("{name}_real"), Role::Real, start);
        let from = self.parameters[real].value;
        self.fake(&fake, from, (s, z), &[id], rank);
        self.quantizers.push(Quantizer { fake, scale: s, zero: z, kind: Kind::Weight { real, integers } });
        Ok(())
    }

    /// The numbers nearest to the masters that are rounded to the integers that stand in the quantized graph.
    fn in_cells(
        &self,
        fake: &FakeQuantize,
        master: &Array,
        rounded: &Array,
        scale: usize,
    ) -> Result<Array, Fault> {
        const EDGE: f32 = 0.49;
        let scales = self.parameters[scale].start.slice::<f32>()?;
        let (master, rounded_values) = (master.slice::<f32>()?, rounded.slice::<f32>()?);
        let inner: usize = fake.axis.map_or(1, |a| rounded.shape()[a + 1..].iter().product());
        let scale =
            |i: usize| if scales.len() == 1 { scales[0] } else { scales[i / inner.max(1) % scales.len()] };
        let within = |(i, (&w, &q)): (usize, (&f32, &f32))| w.clamp(q - EDGE * scale(i), q + EDGE * scale(i));
        Array::new(rounded.shape(), master.iter().zip(rounded_values).enumerate().map(within).collect())
    }

    fn bias(&mut self, id: NodeId) -> Result<(), Error> {
        let graph = &self.quantized;
        let (Some(integers), Some(scales), Some(real)) =
            (graph.input(id, 0), graph.input(id, 1), graph.output(id, 0))
        else {
            return Ok(());
        };
        if graph.constant(integers).is_none_or(|t| t.dtype() != DType::I32) || graph.uses(integers).len() != 1
        {
            return Ok(());
        }
        let [only] = graph.uses(real)[..] else { return Ok(()) };
        let behind = |slot: usize| {
            let pair = graph.producer(graph.input(only.node, slot)?)?.0;
            self.quantizers.iter().position(|q| match &q.kind {
                Kind::Activation(quantize) => {
                    graph.output(*quantize, 0).is_some_and(|v| graph.input(pair, 0) == Some(v))
                }
                Kind::Weight { integers, .. } => graph.input(pair, 0) == Some(*integers),
            })
        };
        let (Some(input), Some(weight)) = (behind(0), behind(1)) else { return Ok(()) };
        let start = dequantized(graph, id)?;
        let name = graph.name(integers).to_string();
        let parameter = self.parameter(&format!("{name}_real"), Role::Real, start);
        let rank = self.graph.node(id).rank;
        self.graph.remove_node(id);
        let mut rounding = node("Identity", format!("{name}_fake"), vec![], 1);
        rounding.op_type = "FakeBias".into();
        rounding.domain = "qonnx".into();
        rounding.op = Some(Arc::new(FakeBias));
        rounding.rank = rank;
        let scale = |quantizer: usize| self.parameters[self.quantizers[quantizer].scale].value;
        let inputs = [self.parameters[parameter].value, scale(input), scale(weight)].map(Some);
        self.graph.add_node(rounding, &inputs, &[Some(real)]);
        self.biases.push(Bias { real: parameter, integers, scales, factors: (input, weight) });
        Ok(())
    }

    /// Real constants that stayed real in the quantized graph, in slots that hold weights.
    fn real_constants(&mut self) -> Result<(), Error> {
        let known: Vec<ValueId> = self.parameters.iter().map(|p| p.value).collect();
        let mut found = Vec::new();
        for id in self.graph.nodes() {
            for slot in trainable_slots(&self.graph, id) {
                let Some(value) = self.graph.input(id, slot) else { continue };
                let Some(tensor) = self.graph.constant(value).filter(|t| t.dtype() == DType::F32) else {
                    continue;
                };
                if tensor.len() > 1 && !known.contains(&value) && !found.iter().any(|(v, _)| *v == value) {
                    found.push((value, tensor.array().map_err(|f| f.at(self.graph.name(value)))?));
                }
            }
        }
        for (value, start) in found {
            let name = self.graph.name(value).to_string();
            self.parameters.push(Parameter { value, name, role: Role::Real, start, trained: true });
        }
        Ok(())
    }

    /// Uses other numbers of integers: from then on, `quantizers[index]` has these limits.
    pub fn limit(&mut self, index: usize, low: i32, high: i32) {
        self.quantizers[index].fake.low = low;
        self.quantizers[index].fake.high = high;
        self.renew(index);
    }

    /// Lets pairs of a weight's products stay within 16 bits.
    pub fn keep_pairs(&mut self, index: usize) {
        self.quantizers[index].fake.pairs = true;
        self.renew(index);
    }

    /// Gives the nodes of a quantizer its current operator.
    fn renew(&mut self, index: usize) {
        let quantizer = &self.quantizers[index];
        let scale = self.parameters[quantizer.scale].value;
        let from = match &quantizer.kind {
            Kind::Activation(id) => self.quantized.input(*id, 0),
            Kind::Weight { real, .. } => Some(self.parameters[*real].value),
        };
        let op: Arc<dyn Op> = Arc::new(quantizer.fake.clone());
        for used in self.graph.uses(scale) {
            if self.graph.input(used.node, 0) == from {
                self.graph.node_mut(used.node).op = Some(op.clone());
            }
        }
    }
}

/// The slots of a node that hold weights, biases and other constants worth training.
fn trainable_slots(graph: &Graph, id: NodeId) -> Vec<usize> {
    let node = graph.node(id);
    if !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return Vec::new();
    }
    match node.op_type.as_str() {
        "Conv"
        | "ConvTranspose"
        | "Gemm"
        | "InstanceNormalization"
        | "LayerNormalization"
        | "GroupNormalization"
        | "BatchNormalization" => vec![1, 2],
        "PRelu" | "RMSNormalization" => vec![1],
        "MatMul" | "Add" | "Sub" | "Mul" | "Div" => vec![0, 1],
        "LSTM" | "GRU" | "RNN" => vec![1, 2, 3],
        "Gather" => vec![0],
        _ => Vec::new(),
    }
}

/// A constant that nobody may have in the quantized graph: a bound of a Clip.
pub(super) fn bound(graph: &mut Graph, hint: &str, value: f32) -> ValueId {
    graph.add_fresh(
        hint,
        Value { constant: Some(Tensor::from_array(&Array::scalar(value))), ..Value::default() },
    )
}
