//! Writing a plan into the graph: QuantizeLinear and DequantizeLinear where the plan says, and nowhere else.
//!
//! A value that an integer node defines keeps its name on the far side of its Q/DQ pair: whoever read it reads what the
//! integer world returns, be it a float operator, a graph output or a body. A value that comes from the float world
//! keeps its float readers; only its integer readers read the pair.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::candidate::activation_slots;
use super::placement::is_sandwiched;
use super::plan::{Activation, Plan, Rescaled};
use super::weights::Constant;
use crate::interpret::node_label;
use crate::ir::{
    Array, DType, Graph, NodeId, QuantParams, Rule, Tensor, TensorType, Value, ValueId, attribute,
};
use crate::passes::node;

/// Writes the plan into the graph it was made for.
pub fn insert(graph: &mut Graph, plan: &Plan) {
    let mut guarded = sandwiched(graph, plan);
    let mut writer =
        Writer { graph, params: BTreeMap::new(), weights: BTreeMap::new(), stored: BTreeMap::new() };
    let follows: BTreeSet<ValueId> = plan.rescaled.iter().map(|r| r.output).collect();
    for (&id, clamp) in plan.absorbed.iter().filter(|_| !plan.keeps_clamps) {
        writer.absorb(id, *clamp);
    }
    let is_wide = |id: NodeId| plan.wide_activations.contains(&id);
    // What reads the pair of a value that is not its own, with more bits or not.
    let mut entered: BTreeMap<(ValueId, bool), ValueId> = BTreeMap::new();
    for (&value, activation) in &plan.activations {
        if !writer.graph.has_value(value) || follows.contains(&value) {
            continue;
        }
        let producer = writer.graph.producer(value).map(|(p, _)| p);
        let mut readers = readers(writer.graph, plan, value);
        let own = producer.filter(|p| plan.placement.integer.contains_key(p));
        if let Some(own) = own {
            writer.leave(value, plan.params(own, value).unwrap_or(activation.params));
            readers.retain(|&id| is_wide(id) != is_wide(own));
        }
        for id in readers {
            let params = plan.params(id, value).unwrap_or(activation.params);
            // A name for each pair.
            let mut name = writer.graph.name(value).to_string();
            if own.is_some() || is_wide(id) {
                name = format!("{name}_{}", params.dtype);
            }
            if let Entry::Vacant(pair) = entered.entry((value, is_wide(id))) {
                pair.insert(writer.enter(value, &name, params));
            }
        }
    }
    plan.rescaled.iter().for_each(|r| writer.rescale(r, plan.activations.get(&r.output)));
    for (&id, candidate) in &plan.placement.integer {
        if !writer.graph.has_node(id) {
            continue;
        }
        for slot in activation_slots(&candidate.rule, writer.graph.node(id).inputs) {
            if let Some(&pair) = writer.graph.input(id, slot).and_then(|v| entered.get(&(v, is_wide(id)))) {
                writer.graph.rewire(id, slot, Some(pair));
            }
        }
        for ((_, slot), constant) in plan.constants.range((id, 0)..=(id, usize::MAX)) {
            let bias = matches!(candidate.rule, Rule::Contraction { bias: Some(b), .. } if b == *slot);
            writer.constant(id, *slot, constant, bias);
        }
    }
    plan.rescaled.iter().for_each(|r| writer.drop_unread(r));
    let pools = writer.graph.nodes().filter(|id| !plan.placement.integer.contains_key(id));
    for id in pools.filter(|&id| writer.graph.node(id).is("MaxPool")).collect::<Vec<_>>() {
        if let Some(from) = writer.graph.input(id, 0).and_then(|x| writer.graph.producer(x))
            && writer.graph.node(from.0).is("DequantizeLinear")
        {
            writer.guard(id);
        }
        guarded.extend(writer.graph.output(id, 0));
    }
    guarded.into_iter().for_each(|value| writer.guard_exit(value));
}

/// The integer nodes that read the value as an activation, in their order.
fn readers(graph: &Graph, plan: &Plan, value: ValueId) -> Vec<NodeId> {
    let reads = |&id: &NodeId| {
        let Some(candidate) = plan.placement.integer.get(&id) else { return false };
        let mut slots = activation_slots(&candidate.rule, graph.node(id).inputs).into_iter();
        slots.any(|slot| graph.input(id, slot) == Some(value))
    };
    graph.uses(value).into_iter().map(|u| u.node).filter(reads).collect()
}

/// The outputs of operators that must stay float (`--exclude`) where ONNX Runtime would quantize their weights itself.
fn sandwiched(graph: &Graph, plan: &Plan) -> BTreeSet<ValueId> {
    let integer = |id: NodeId| plan.placement.integer.contains_key(&id);
    let float = graph.nodes().filter(|&id| !integer(id) && is_sandwiched(graph, id, &integer));
    let outputs = float.filter_map(|id| {
        let output = graph.output(id, 0)?;
        let reader = graph.only_use(output).map(|u| u.node).filter(|&n| !integer(n));
        reader.map_or(Some(output), |clamp| graph.output(clamp, 0))
    });
    outputs.collect()
}

struct Writer<'a> {
    graph: &'a mut Graph,
    /// Scale and zero point constants by their bits.
    params: BTreeMap<(u32, i32, DType), (ValueId, ValueId)>,
    /// Dequantized constants by original value and scales, so that a shared weight stays shared.
    weights: BTreeMap<(ValueId, Vec<u32>), ValueId>,
    /// The integers of each quantized value.
    stored: BTreeMap<ValueId, ValueId>,
}

impl Writer<'_> {
    /// The operator defines what its clamp defined.
    fn absorb(&mut self, id: NodeId, clamp: NodeId) {
        let (Some(inner), Some(outer)) = (self.graph.output(id, 0), self.graph.output(clamp, 0)) else {
            return;
        };
        let inputs = self.graph.inputs_of(clamp);
        self.graph.remove_node(clamp);
        self.graph.set_output(id, 0, outer);
        self.graph.remove_value_if_dead(inner);
        inputs.into_iter().flatten().filter(|&v| v != inner).for_each(|v| self.graph.remove_value_if_dead(v));
    }

    /// Scale and zero point of an activation, named after the first value that has them.
    fn params(&mut self, name: &str, params: QuantParams) -> (ValueId, ValueId) {
        let key = (params.scale.to_bits(), params.zero_point, params.dtype);
        if let Some(&known) = self.params.get(&key) {
            return known;
        }
        let scale = self.graph.add_constant(&format!("{name}_scale"), tensor(Array::scalar(params.scale)));
        let zero_point = match params.dtype {
            DType::I8 => Array::scalar(params.zero_point as i8),
            DType::U16 => Array::scalar(params.zero_point as u16),
            DType::I16 => Array::scalar(params.zero_point as i16),
            _ => Array::scalar(params.zero_point as u8),
        };
        let zero_point = self.graph.add_constant(&format!("{name}_zero_point"), tensor(zero_point));
        self.params.insert(key, (scale, zero_point));
        (scale, zero_point)
    }

    /// A product with a number becomes DequantizeLinear of the integers that were there before it.
    fn rescale(&mut self, rescaled: &Rescaled, activation: Option<&Activation>) {
        let (Some(&stored), Some(activation)) = (self.stored.get(&rescaled.input), activation) else {
            return;
        };
        let rank = self.graph.node(rescaled.node).rank;
        let inputs = self.graph.inputs_of(rescaled.node);
        self.graph.remove_node(rescaled.node);
        inputs.into_iter().flatten().for_each(|v| self.graph.remove_value_if_dead(v));
        let name = self.graph.name(rescaled.output).to_string();
        let (scale, zero_point) = self.params(&name, activation.params);
        let mut dequantize = node("DequantizeLinear", format!("{name}_DequantizeLinear"), vec![], 3);
        dequantize.rank = rank;
        let inputs = [Some(stored), Some(scale), Some(zero_point)];
        self.graph.add_node(dequantize, &inputs, &[Some(rescaled.output)]);
        self.stored.insert(rescaled.output, stored);
    }

    /// Removes the DequantizeLinear of a product's input if nobody but the product read it.
    fn drop_unread(&mut self, rescaled: &Rescaled) {
        let Some(&stored) = self.stored.get(&rescaled.input) else { return };
        for reader in self.graph.uses(stored).into_iter().map(|u| u.node).collect::<Vec<_>>() {
            let Some(real) = self.graph.output(reader, 0) else { continue };
            if self.graph.node(reader).is("DequantizeLinear")
                && self.graph.uses(real).is_empty()
                && !self.graph.is_output(real)
            {
                let inputs = self.graph.inputs_of(reader);
                self.graph.remove_node(reader);
                self.graph.remove_value_if_dead(real);
                inputs.into_iter().flatten().for_each(|v| self.graph.remove_value_if_dead(v));
            }
        }
    }

    /// Q and DQ between two values; returns the integers between them.
    fn pair(&mut self, name: &str, from: ValueId, to: ValueId, params: QuantParams, rank: u64) -> ValueId {
        let (scale, zero_point) = self.params(name, params);
        let ty = self.graph.ty(from).cloned().map(|t| TensorType { dtype: params.dtype, ..t });
        let stored = self.graph.add_fresh(&format!("{name}_quantized"), Value { ty, ..Value::default() });
        let mut quantize = node("QuantizeLinear", format!("{name}_QuantizeLinear"), vec![], 3);
        quantize.rank = rank;
        self.graph.add_node(quantize, &[Some(from), Some(scale), Some(zero_point)], &[Some(stored)]);
        let mut dequantize = node("DequantizeLinear", format!("{name}_DequantizeLinear"), vec![], 3);
        dequantize.rank = rank;
        self.graph.add_node(dequantize, &[Some(stored), Some(scale), Some(zero_point)], &[Some(to)]);
        stored
    }

    /// An integer node defines the value: its readers read the pair, under the old name.
    fn leave(&mut self, value: ValueId, params: QuantParams) {
        let Some((producer, slot)) = self.graph.producer(value) else { return };
        let name = self.graph.name(value).to_string();
        let ty = self.graph.ty(value).cloned();
        let raw = self.graph.add_fresh(&format!("{name}_raw"), Value { ty, ..Value::default() });
        self.graph.set_output(producer, slot, raw);
        let rank = self.graph.node(producer).rank;
        let stored = self.pair(&name, raw, value, params, rank);
        self.stored.insert(value, stored);
    }

    /// The value comes from the float world, or from operators on other bits; returns what its integer readers read.
    fn enter(&mut self, value: ValueId, name: &str, params: QuantParams) -> ValueId {
        let ty = self.graph.ty(value).cloned();
        let pair = self.graph.add_fresh(&format!("{name}_dequantized"), Value { ty, ..Value::default() });
        let rank = self.graph.producer(value).map_or(0, |(p, _)| self.graph.node(p).rank);
        let stored = self.pair(name, value, pair, params, rank);
        self.stored.entry(value).or_insert(stored);
        pair
    }

    /// Puts a Max of one value in front of a node's first input. Nothing is computed, but ONNX Runtime, which moves
    /// QuantizeLinear and DequantizeLinear through some operators and takes what is between them for a quantized
    /// operator, stops there: the node stays float.
    fn guard(&mut self, id: NodeId) {
        let Some(value) = self.graph.input(id, 0) else { return };
        let name = self.graph.name(value).to_string();
        let ty = self.graph.ty(value).cloned();
        let same = self.graph.add_fresh(&format!("{name}_guarded"), Value { ty, ..Value::default() });
        let mut max = node("Max", format!("{name}_Guard"), vec![], 1);
        max.rank = self.graph.node(id).rank;
        self.graph.add_node(max, &[Some(value)], &[Some(same)]);
        self.graph.rewire(id, 0, Some(same));
    }

    /// A guard where a float value becomes integers.
    fn guard_exit(&mut self, value: ValueId) {
        let readers = self.graph.uses(value).into_iter().map(|u| u.node);
        let quantizes = |id: &NodeId| self.graph.node(*id).is("QuantizeLinear");
        readers.filter(quantizes).collect::<Vec<_>>().into_iter().for_each(|id| self.guard(id));
    }

    fn constant(&mut self, id: NodeId, slot: usize, constant: &Constant, bias: bool) {
        let Some(original) = self.graph.input(id, slot) else { return };
        let key = (original, constant.scales.iter().map(|s| s.to_bits()).collect());
        let real = match self.weights.get(&key) {
            Some(&real) => real,
            None => {
                let real = self.dequantized(original, constant, bias, self.graph.node(id).rank);
                self.weights.insert(key, real);
                real
            }
        };
        self.graph.rewire(id, slot, Some(real));
        self.graph.remove_value_if_dead(original);
    }

    fn dequantized(&mut self, original: ValueId, constant: &Constant, bias: bool, rank: u64) -> ValueId {
        let name = self.graph.name(original).to_string();
        let ty = self.graph.ty(original).cloned();
        let stored = self.graph.add_constant(&format!("{name}_quantized"), tensor(constant.elements.clone()));
        let count = constant.scales.len();
        let vector = constant.axis.is_some();
        let scales =
            if vector { Array::vector(constant.scales.clone()) } else { Array::scalar(constant.scales[0]) };
        let scale = self.graph.add_constant(&format!("{name}_scale"), tensor(scales));
        let mut inputs = vec![Some(stored), Some(scale)];
        if !bias {
            let zeros = match constant.elements.dtype() {
                DType::I8 if vector => Array::vector(vec![constant.zero_point as i8; count]),
                DType::I8 => Array::scalar(constant.zero_point as i8),
                DType::U16 => Array::scalar(constant.zero_point as u16),
                DType::I16 => Array::scalar(constant.zero_point as i16),
                _ if vector => Array::vector(vec![constant.zero_point as u8; count]),
                _ => Array::scalar(constant.zero_point as u8),
            };
            inputs.push(Some(self.graph.add_constant(&format!("{name}_zero_point"), tensor(zeros))));
        }
        let axis = constant.axis.map(|a| attribute::int("axis", a as i64));
        let real = self.graph.add_fresh(&format!("{name}_dequantized"), Value { ty, ..Value::default() });
        let label = format!("{name}_DequantizeLinear");
        let mut dequantize = node("DequantizeLinear", label, axis.into_iter().collect(), inputs.len());
        dequantize.rank = rank;
        self.graph.add_node(dequantize, &inputs, &[Some(real)]);
        real
    }
}

fn tensor(array: Array) -> Tensor {
    Tensor::from_array(&array)
}

/// The node's name for the report.
pub fn label(graph: &Graph, id: NodeId) -> String {
    format!("{} `{}`", graph.node(id).op_type, node_label(graph, id))
}
