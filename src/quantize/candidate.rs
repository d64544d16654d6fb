//! Which nodes could become integer, by the contract of the target, and why the others cannot.

use std::collections::BTreeMap;

use super::Target;
use crate::calibrate::observer::Observers;
use crate::ir::{DType, Graph, HUGE, Node, NodeId, Operands, Port, Rule, Tensor, ValueId};
use crate::ops::conv::Conv;
use crate::ops::gemm::Gemm;
use crate::ops::recurrent::Recurrent;

/// A node that the target could compute in integers.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The node.
    pub id: NodeId,
    /// Its rule, with constant bounds filled in.
    pub rule: Rule,
    /// The activations among its inputs that must be quantized.
    pub activations: Vec<ValueId>,
    /// Constant operands to be quantized like activations (`Add(x, c)`).
    pub constants: Vec<ValueId>,
    /// The outputs that will be quantized.
    pub outputs: Vec<ValueId>,
    /// May the output stay float while the inputs are integer (MatMul, Gemm)?
    pub float_output: bool,
    /// Estimated nanoseconds in the integer kernel.
    pub integer_cost: f64,
    /// Estimated nanoseconds in the float kernel.
    pub float_cost: f64,
    /// Becomes integer whatever it costs.
    pub forced: bool,
}

/// What the user left out.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Names or patterns (`*`, `?`) of nodes that stay float.
    pub exclude: Vec<String>,
    /// Names or patterns of nodes that become integer where that is possible, whatever it costs.
    pub force: Vec<String>,
    /// If not empty, the only operators to quantize.
    pub only_ops: Vec<String>,
}

impl Filter {
    fn forces(&self, graph: &Graph, id: NodeId) -> bool {
        let label = crate::interpret::node_label(graph, id);
        self.force.iter().any(|p| wildmatch::WildMatch::new(p).matches(&label))
    }

    /// Why the user's choice keeps this node float, if it does.
    pub fn refuses(&self, graph: &Graph, id: NodeId) -> Option<String> {
        let node = graph.node(id);
        let label = crate::interpret::node_label(graph, id);
        if let Some(p) = self.exclude.iter().find(|p| wildmatch::WildMatch::new(p).matches(&label)) {
            return Some(format!("excluded by `{p}`"));
        }
        let listed = self.only_ops.is_empty() || self.only_ops.contains(&node.op_type);
        (!listed).then(|| "not among the operators asked for".into())
    }
}

/// The quantization rule of a node, with the bounds of Clip read from constants.
pub fn rule_of(graph: &Graph, id: NodeId) -> Rule {
    let node = graph.node(id);
    let Some(op) = node.op.as_ref().filter(|_| node.unknown.is_none()) else { return Rule::Float };
    match op.rule() {
        Rule::Clamp { low, high } if node.is("Clip") => {
            let bound = |slot: usize, default: f32| match graph.input(id, slot) {
                None => Some(default),
                Some(v) => graph.constant(v).and_then(|t| t.array().ok()?.item::<f32>().ok()),
            };
            match (bound(1, low), bound(2, high)) {
                (Some(low), Some(high)) if low <= 0.0 && high >= 0.0 => Rule::Clamp { low, high },
                _ => Rule::Float,
            }
        }
        Rule::Clamp { low, high } if !(low <= 0.0 && high >= 0.0) => Rule::Float,
        rule => rule,
    }
}

/// A product with one positive number, for which another scale is enough.
fn rescale(graph: &Graph, id: NodeId) -> Option<Rule> {
    let number = |slot: usize| {
        let tensor = graph.constant_input(id, slot).filter(|t| t.len() == 1 && t.dtype() == DType::F32)?;
        tensor.array().ok()?.get::<f32>()?.first().copied().filter(|&c| c.is_normal() && c > 0.0)
    };
    let (slot, factor) = [(0, 1), (1, 0)].into_iter().find_map(|(x, c)| Some((x, number(c)?)))?;
    // The number must not add axes.
    let rank = |slot: usize| graph.ty(graph.input(id, slot)?)?.rank();
    let same = rank(slot).is_some_and(|x| rank(1 - slot).is_some_and(|c| c <= x));
    (graph.node(id).is("Mul") && graph.constant_input(id, slot).is_none() && same)
        .then_some(Rule::Rescale { slot, factor })
}

/// The slots of a node's data inputs that are quantized like activations.
pub fn activation_slots(rule: &Rule, inputs: usize) -> Vec<usize> {
    match rule {
        Rule::Contraction { weight, .. } => vec![0, *weight],
        Rule::Arithmetic(Operands::Two) => vec![0, 1],
        Rule::Arithmetic(Operands::All) => (0..inputs).collect(),
        Rule::Arithmetic(Operands::Branches) => vec![1, 2],
        Rule::Rescale { slot, .. } => vec![*slot],
        Rule::Float => vec![],
        _ => vec![0],
    }
}

/// Why what came quantized is left alone.
pub const ALREADY: &str = "it is quantized already";

/// Does the node read what a DequantizeLinear returns, or does a QuantizeLinear read what it returns?
pub fn is_quantized(graph: &Graph, id: NodeId) -> bool {
    let made = |v: ValueId| graph.producer(v).is_some_and(|(p, _)| graph.node(p).is("DequantizeLinear"));
    let read = |v: ValueId| graph.uses(v).iter().any(|u| graph.node(u.node).is("QuantizeLinear"));
    graph.inputs_of(id).into_iter().flatten().any(made)
        || graph.outputs_of(id).into_iter().flatten().any(read)
}

/// Is the node part of what came quantized: a pair, or what lies between the halves of one and works on integers?
fn is_between(graph: &Graph, id: NodeId) -> bool {
    let is = |id: NodeId, op: &str| graph.node(id).is(op);
    let made = |v: ValueId| graph.producer(v).is_some_and(|(p, _)| is(p, "QuantizeLinear"));
    let read = |v: ValueId| graph.uses(v).iter().any(|u| is(u.node, "DequantizeLinear"));
    is(id, "QuantizeLinear")
        || is(id, "DequantizeLinear")
        || graph.input(id, 0).is_some_and(made)
        || graph.output(id, 0).is_some_and(read)
}

/// The values whose distribution may be needed: what operators with an integer form read and write, and sequences, for
/// their length.
pub fn watched(graph: &Graph) -> Vec<ValueId> {
    let mut values = std::collections::BTreeSet::new();
    for id in graph.nodes() {
        if graph.node(id).op_as::<Recurrent>().is_some() {
            values.extend(graph.input(id, 0).filter(|&v| graph.constant(v).is_none()));
        }
        let slots = activation_slots(&rule_of(graph, id), graph.node(id).inputs);
        if slots.is_empty() {
            continue;
        }
        let read = slots.iter().filter_map(|&s| graph.input(id, s)).filter(|&v| graph.constant(v).is_none());
        values.extend(read.map(|v| limited(graph, v)));
        values.extend(graph.outputs_of(id).into_iter().flatten().map(|v| limited(graph, v)));
    }
    values.into_iter().collect()
}

/// What an operator that can saturate hands to nobody but a clamp is never quantized: what matters of it is what the
/// clamp leaves. Of any other value, the value itself.
fn limited(graph: &Graph, value: ValueId) -> ValueId {
    let saturates = |id| matches!(rule_of(graph, id), Rule::Contraction { .. } | Rule::Arithmetic(_));
    let Some(usage) = graph.only_use(value).filter(|u| u.port == Port::Input(0)) else { return value };
    let clamps = matches!(rule_of(graph, usage.node), Rule::Clamp { .. });
    let made = graph.producer(value).is_some_and(|(id, _)| saturates(id));
    graph.output(usage.node, 0).filter(|_| clamps && made).unwrap_or(value)
}

/// Every node of the main graph: a candidate, or the reason why it stays float.
#[derive(Debug, Clone, Default)]
pub struct Candidates {
    /// What could become integer.
    pub integer: BTreeMap<NodeId, Candidate>,
    /// What cannot, and why.
    pub float: BTreeMap<NodeId, String>,
}

impl Candidates {
    /// Looks at every node.
    pub fn of(graph: &Graph, target: &Target, filter: &Filter, seen: &Observers<ValueId>) -> Self {
        let mut found = Self::default();
        for id in graph.nodes() {
            match candidate(graph, id, target, filter, seen) {
                Ok(candidate) => drop(found.integer.insert(id, candidate)),
                Err(reason) => drop(found.float.insert(id, reason)),
            }
        }
        found
    }
}

/// The node as a candidate, or the reason why it stays float.
fn candidate(
    graph: &Graph,
    id: NodeId,
    target: &Target,
    filter: &Filter,
    seen: &Observers<ValueId>,
) -> Result<Candidate, String> {
    let node = graph.node(id);
    if let Some(unknown) = &node.unknown {
        return Err(unknown.clone());
    }
    if is_between(graph, id) {
        return Err(ALREADY.into());
    }
    let mut rule = rule_of(graph, id);
    if let (Rule::Arithmetic(Operands::Two), Some(rescale), true) =
        (&rule, rescale(graph, id), target.rescaling)
    {
        rule = rescale;
    }
    let clamp = matches!(rule, Rule::Clamp { .. });
    if !clamp && (rule == Rule::Float || !target.integer.contains_key(&node.op_type)) {
        return Err("no integer kernel".into());
    }
    if let Some(reason) = filter.refuses(graph, id).filter(|_| !clamp) {
        return Err(reason);
    }
    if is_quantized(graph, id) {
        return Err(ALREADY.into());
    }
    let slots = activation_slots(&rule, node.inputs);
    let mut found = Candidate {
        id,
        rule: rule.clone(),
        activations: Vec::new(),
        constants: Vec::new(),
        outputs: Vec::new(),
        float_output: !target.quantized_outputs || matches!(node.op_type.as_str(), "MatMul" | "Gemm"),
        integer_cost: 0.0,
        float_cost: 0.0,
        forced: filter.forces(graph, id),
    };
    for slot in slots {
        let Some(value) = graph.input(id, slot) else { return Err(format!("input {slot} is missing")) };
        let weight = matches!(rule, Rule::Contraction { weight, .. } if weight == slot);
        match graph.constant(value) {
            Some(t) if t.dtype() != DType::F32 => return Err(format!("input {slot} is {}", t.dtype())),
            Some(_) if weight => {}
            Some(_) if matches!(rule, Rule::SameScale) => return Err("its data is constant".into()),
            Some(t) if !bounded(t) => return Err("its constant holds mask values".into()),
            Some(_) => found.constants.push(value),
            None => {
                observable(limited(graph, value), seen).map_err(|why| format!("its input {why}"))?;
                found.activations.push(value);
            }
        }
    }
    if found.activations.is_empty() {
        return Err("it has no activation input".into());
    }
    for (slot, output) in graph.outputs_of(id).into_iter().enumerate() {
        match output {
            Some(value) if graph.uses(value).is_empty() && !graph.is_output(value) => {}
            Some(value) => {
                observable(limited(graph, value), seen).map_err(|why| format!("its output {slot} {why}"))?;
                found.outputs.push(value);
            }
            None if slot == 0 => return Err("its output is not used".into()),
            None => {}
        }
    }
    contract(graph, node, id, &rule)?;
    let cost = target.integer.get(cost_name(graph, node, id));
    let (work, fixed) = (work(graph, id, &found, seen), target.boundary.node);
    if let Some(cost) = cost {
        found.integer_cost = work * cost.integer + cost.fixed + fixed;
        found.float_cost = work * cost.float + fixed;
    }
    if let Rule::Contraction { weight, .. } = rule
        && graph.constant_input(id, weight).is_some()
    {
        found.float_cost += target.weight_credit;
    }
    match rule {
        Rule::Clamp { .. } => found.float_cost = work * 0.15 + fixed,
        // The node is gone.
        Rule::Rescale { .. } => found.integer_cost = 0.0,
        _ => {}
    }
    Ok(found)
}

/// Can a scale follow from what was seen of the value? If not, why.
fn observable(value: ValueId, seen: &Observers<ValueId>) -> Result<(), &'static str> {
    let Some(histogram) = seen.get(value).map(|o| &o.histogram) else { return Err("was not calibrated") };
    if histogram.nan() > 0 {
        return Err("is not a number in some sample");
    }
    // Attention masks: one of them would make the scale of everything else.
    if histogram.huge() > 0 || histogram.infinite() > 0 {
        return Err("holds mask values");
    }
    match histogram.extremes() {
        None => Err("was not calibrated as float"),
        Some((low, high)) if low == 0.0 && high == 0.0 => Err("was zero in every sample"),
        Some(_) => Ok(()),
    }
}

/// Are all elements of a constant operand numbers to compute with, not masks?
fn bounded(tensor: &Tensor) -> bool {
    let small = |values: &[f32]| values.iter().all(|v| v.abs() < HUGE);
    tensor.array().is_ok_and(|a| a.slice::<f32>().is_ok_and(small))
}

/// The preconditions of integer kernels beyond the rule.
fn contract(graph: &Graph, node: &Node, id: NodeId, rule: &Rule) -> Result<(), String> {
    if let Rule::Contraction { bias: Some(slot), .. } = rule
        && let Some(bias) = graph.input(id, *slot)
        && graph.constant(bias).is_none()
    {
        return Err("its bias is computed".into());
    }
    if let Some(gemm) = node.op_as::<Gemm>() {
        if gemm.trans_a || gemm.alpha != 1.0 || gemm.beta != 1.0 {
            return Err("transA, alpha or beta have no integer kernel".into());
        }
        let (weight, bias) = (graph.constant_input(id, 1), graph.constant_input(id, 2));
        let Some(weight) = weight else { return Err("its weight is computed".into()) };
        let channels = weight.shape().get(usize::from(!gemm.trans_b)).copied();
        if bias.is_some_and(|b| Some(b.len()) != channels) {
            return Err("its bias is not by column".into());
        }
    }
    if node.op_as::<Conv>().is_some() && graph.constant_input(id, 1).is_none() {
        return Err("its weight is computed".into());
    }
    let attribute = |name: &str| node.attributes.iter().find(|a| a.name.as_deref() == Some(name));
    let several = graph.outputs_of(id).iter().skip(1).flatten().any(|&v| !graph.uses(v).is_empty());
    match node.op_type.as_str() {
        "Resize" if attribute("mode").and_then(|a| a.s.as_deref()).is_some_and(|m| m != b"nearest") => {
            Err("only mode nearest has an integer kernel".into())
        }
        "MaxPool" if several => Err("its indices are used".into()),
        "AveragePool" if attribute("dilations").is_some_and(|a| a.ints.iter().any(|&d| d != 1)) => {
            Err("dilated average pooling has no integer kernel".into())
        }
        _ => Ok(()),
    }
}

/// Channels that the integer kernel of a depthwise convolution takes at a time.
const BLOCK: usize = 16;
/// A convolution over a window with fewer weights for an output channel does not fill the integer kernel.
const SHALLOW: usize = 64;

/// Under which name the target's table has the cost of a node.
fn cost_name<'a>(graph: &Graph, node: &'a Node, id: NodeId) -> &'a str {
    let constant = |slot| graph.constant_input(id, slot);
    let depthwise = |conv: &Conv| conv.group > 1 && constant(1).is_some_and(|w| w.shape().get(1) == Some(&1));
    let shallow = |w: &Tensor| match *w.shape() {
        [_, depth, ref window @ ..] => {
            let window: usize = window.iter().product();
            window > 1 && depth * window < SHALLOW
        }
        _ => false,
    };
    let ragged = |conv: &Conv| !conv.group.is_multiple_of(BLOCK);
    match node.op_type.as_str() {
        "Conv" if node.op_as::<Conv>().is_some_and(|c| depthwise(c) && ragged(c)) => "RaggedDepthwiseConv",
        "Conv" if node.op_as::<Conv>().is_some_and(depthwise) => "DepthwiseConv",
        "Conv" if constant(1).is_some_and(shallow) => "ShallowConv",
        "MatMul" if constant(0).is_none() && constant(1).is_none() => "ComputedMatMul",
        "MaxPool" if follows_conv(graph, id) => "NhwcMaxPool",
        op_type => op_type,
    }
}

/// Does the node read what a Conv writes, be it through a clamp?
fn follows_conv(graph: &Graph, id: NodeId) -> bool {
    let before = |id| graph.producer(graph.input(id, 0)?).map(|p| p.0);
    let clamp = |id: NodeId| ["Relu", "Clip"].iter().any(|op| graph.node(id).is(op));
    let producer = before(id).and_then(|p| if clamp(p) { before(p) } else { Some(p) });
    producer.is_some_and(|p| graph.node(p).is("Conv"))
}

/// Mean number of elements of a value over the samples.
pub fn elements(graph: &Graph, value: ValueId, seen: &Observers<ValueId>) -> f64 {
    seen.get(limited(graph, value)).map_or(0.0, |o| o.histogram.count() as f64 / o.batches.max(1) as f64)
}

/// Units of work of a node: multiply-accumulates or output elements.
fn work(graph: &Graph, id: NodeId, found: &Candidate, seen: &Observers<ValueId>) -> f64 {
    let size = |v: ValueId| graph.constant(v).map_or_else(|| elements(graph, v, seen), |t| t.len() as f64);
    let output: f64 = found.outputs.iter().map(|&v| size(v)).sum();
    let input = found.activations.first().map_or(0.0, |&v| size(v));
    match &found.rule {
        Rule::Contraction { weight, .. } => {
            let Some(weight) = graph.input(id, *weight) else { return output };
            match (graph.node(id).op_as::<Conv>(), graph.constant(weight)) {
                (Some(_), Some(w)) => {
                    output * (w.len() / w.shape().first().copied().unwrap_or(1).max(1)) as f64
                }
                // |A|·|B|·|Y| = (M·K)(K·N)(M·N) = (M·K·N)²
                _ => (input * size(weight) * output).sqrt(),
            }
        }
        _ if graph.node(id).op_type == "GlobalAveragePool" => input / 20.0,
        _ => output,
    }
}
