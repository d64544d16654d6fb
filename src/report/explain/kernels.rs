//! Does an operator become an integer kernel, and if not, why?

use super::{Context, is_byte};
use crate::ir::{DType, Graph, Node, NodeId, Port, Rule, ValueId};
use crate::quantize::candidate::{activation_slots, rule_of};
use crate::report::qdq::{self, Params};

/// How an operator is computed.
#[derive(Debug, Clone, PartialEq)]
pub enum Kernel {
    /// On integers, between Q and DQ.
    Integer,
    /// On integers by itself.
    IntegerOperator,
    /// In float, with weights that are stored as integers.
    WeightOnly,
    /// In float, for this reason.
    Float(String),
    /// In float although its inputs are quantized: Q and DQ cost time and accuracy for nothing.
    Broken(String),
    /// It only moves values, or computes on shapes.
    Moves,
}

/// Operators of ONNX and of ONNX Runtime's domain that take and give integers.
fn is_integer_operator(node: &Node) -> bool {
    let op = node.op_type.as_str();
    op.starts_with("QLinear")
        || op.ends_with("Integer")
        || ["QGemm", "QAttention", "MatMulNBits", "DynamicQuantizeMatMul"].contains(&op)
}

/// How the target computes a node.
pub fn kernel(context: &Context, id: NodeId) -> Kernel {
    let (graph, node) = (context.graph, context.graph.node(id));
    if is_integer_operator(node) {
        return Kernel::IntegerOperator;
    }
    let floats = |v: &ValueId| graph.ty(*v).is_none_or(|t| t.dtype.is_float());
    if node.is("Constant") || node.is("Identity") || !graph.outputs_of(id).iter().flatten().any(floats) {
        return Kernel::Moves;
    }
    if let Some(why) = &node.unknown {
        return Kernel::Float(why.clone());
    }
    let rule = rule_of(graph, id);
    if matches!(rule, Rule::Clamp { .. }) {
        return clamp(context, id);
    }
    let slots = activation_slots(&rule, node.inputs);
    let moves = rule == Rule::SameScale;
    let quantized = |slot: &usize| graph.input(id, *slot).and_then(|v| qdq::dequantizer(graph, v)).is_some();
    let weight = match rule {
        Rule::Contraction { weight, .. } => Some(weight),
        _ => None,
    };
    let (from_integers, from_float): (Vec<usize>, Vec<usize>) = if slots.is_empty() {
        (0..node.inputs).filter(|s| graph.input(id, *s).is_some()).partition(quantized)
    } else {
        slots.iter().copied().partition(quantized)
    };
    let supported = context.target.integer.contains_key(&node.op_type);
    let by_user = excluded(context, id);
    match (from_integers.as_slice(), from_float.as_slice()) {
        ([], _) if moves => Kernel::Moves,
        ([], _) => Kernel::Float(match by_user {
            Some(pattern) => format!("excluded by `{pattern}`"),
            None if !supported || slots.is_empty() => no_kernel_here(node).into(),
            None => "its inputs are not quantized".into(),
        }),
        (&[only], [_]) if weight == Some(only) => Kernel::WeightOnly,
        (_, _) if !supported || slots.is_empty() => no_kernel(graph, id, moves),
        (_, &[slot, ..]) => match graph.input(id, slot) {
            Some(v) if weight == Some(slot) && qdq::is_constant(graph, v) => {
                Kernel::Broken("its weight is not quantized, so it runs in float".into())
            }
            _ => at_border(moves, format!("input {slot} is not quantized")),
        },
        (_, []) => match obstacle(context, id, &rule, &slots) {
            None => Kernel::Integer,
            // The weights of a contraction were quantized for it to run on integers.
            Some(why) if weight.is_none() && leaves(graph, id) => at_border(moves, why),
            Some(why) => Kernel::Broken(why),
        },
    }
}

/// An operator in float beside one on integers: somewhere the integers end.
fn at_border(moves: bool, why: String) -> Kernel {
    if moves { Kernel::Moves } else { Kernel::Float(why) }
}

/// Does no output of the node become integers again?
fn leaves(graph: &Graph, id: NodeId) -> bool {
    let quantized = |v: ValueId| {
        graph.uses(v).iter().any(|u| qdq::is_quantize(graph.node(u.node))) || behind_clamp(graph, v).is_some()
    };
    !graph.outputs_of(id).into_iter().flatten().any(quantized)
}

/// Relu or Clip: part of the integer operator before it, or left to the range of the quantizer behind it.
fn clamp(context: &Context, id: NodeId) -> Kernel {
    let graph = context.graph;
    let Some(input) = graph.input(id, 0) else { return Kernel::Float("it has no input".into()) };
    let quantize = graph.output(id, 0).and_then(|v| qdq::only_quantizer(graph, v));
    if let Some((producer, _)) = graph.producer(input)
        && !matches!(rule_of(graph, producer), Rule::Clamp { .. })
        && kernel(context, producer) == Kernel::Integer
    {
        return Kernel::Moves;
    }
    match (qdq::dequantizer(graph, input), quantize) {
        (Some(_), Some(quantize)) if redundant(graph, id, quantize) => Kernel::Integer,
        (Some(_), Some(_)) => Kernel::Broken("the quantized range does not end where it does".into()),
        _ => Kernel::Float("it does not follow an integer operator alone".into()),
    }
}

/// Does the operator, or the one whose output it limits, compute on integers?
pub fn is_integer(context: &Context, id: NodeId) -> bool {
    let graph = context.graph;
    let before = || graph.input(id, 0).and_then(|v| graph.producer(v)).map(|(producer, _)| producer);
    let limited = || {
        matches!(rule_of(graph, id), Rule::Clamp { .. })
            && before().is_some_and(|p| kernel(context, p) == Kernel::Integer)
    };
    matches!(kernel(context, id), Kernel::Integer | Kernel::IntegerOperator) || limited()
}

/// A node without an integer kernel that reads dequantized values. That is how a float island begins, and nothing to
/// complain about, unless it goes back to integers at once.
fn no_kernel(graph: &Graph, id: NodeId, moves: bool) -> Kernel {
    let back = graph.outputs_of(id).into_iter().flatten().all(|v| qdq::only_quantizer(graph, v).is_some());
    match back && moves {
        true => Kernel::Broken("has no integer kernel, but Q and DQ on both sides".into()),
        false => Kernel::Float(no_kernel_here(graph.node(id)).into()),
    }
}

fn no_kernel_here(node: &Node) -> &'static str {
    match node.is("BatchNormalization") {
        true => "no integer kernel: it belongs folded into the operator before, ahead of quantization",
        false => "no integer kernel",
    }
}

fn excluded<'a>(context: &'a Context, id: NodeId) -> Option<&'a String> {
    let name = crate::interpret::node_label(context.graph, id);
    context.excluded.iter().find(|p| wildmatch::WildMatch::new(p).matches(&name))
}

/// Why a node whose inputs are all dequantized does not become an integer kernel.
fn obstacle(context: &Context, id: NodeId, rule: &Rule, slots: &[usize]) -> Option<String> {
    let (graph, node) = (context.graph, context.graph.node(id));
    let mut inputs = Vec::new();
    for &slot in slots {
        let dequantize = qdq::dequantizer(graph, graph.input(id, slot)?)?;
        let Some(params) = qdq::params(graph, dequantize) else {
            return Some(format!("the scale of input {slot} is computed at run time"));
        };
        if params.scale_dtype != DType::F32 {
            return Some(format!("the scale of input {slot} is {}, only float is fused", params.scale_dtype));
        }
        if !is_byte(params.dtype) && *rule != Rule::SameScale {
            return Some(format!("input {slot} is {}, and kernels take 8 bits", params.dtype));
        }
        if shared_int8(context, &params, quantizer(graph, dequantize)) {
            return Some(format!("input {slot} is int8 with several readers, which x86 kernels do not take"));
        }
        inputs.push(params);
    }
    let first = inputs.first()?;
    if let Rule::Contraction { bias: Some(bias), .. } = rule
        && let Some(value) = graph.input(id, *bias)
        && qdq::dequantizer(graph, value).is_none()
        && !qdq::is_constant(graph, value)
    {
        return Some("its bias is computed at run time".into());
    }
    attributes(node).or_else(|| outputs(context, id, rule, first))
}

fn attributes(node: &Node) -> Option<String> {
    let number = |name: &str| {
        let attribute = node.attributes.iter().find(|a| a.name.as_deref() == Some(name))?;
        attribute.f.or(attribute.i.map(|i| i as f32))
    };
    let text = |name: &str| node.attributes.iter().find(|a| a.name.as_deref() == Some(name))?.s.as_deref();
    if node.is("Gemm") {
        let wrong = |name: &str, wanted: f32| number(name).is_some_and(|v| v != wanted);
        if wrong("alpha", 1.0) || wrong("beta", 1.0) || wrong("transA", 0.0) {
            return Some("alpha, beta or transA have no integer kernel".into());
        }
    }
    let linear = node.is("Resize") && text("mode").is_some_and(|m| m != b"nearest");
    linear.then(|| "only mode nearest has an integer kernel".into())
}

/// The QuantizeLinear before a DequantizeLinear.
fn quantizer(graph: &Graph, dequantize: NodeId) -> Option<NodeId> {
    let (id, _) = graph.producer(graph.input(dequantize, 0)?)?;
    qdq::is_quantize(graph.node(id)).then_some(id)
}

/// The runtime makes int8 activations uint8 on x86, but only those that one operator reads.
fn shared_int8(context: &Context, params: &Params, quantize: Option<NodeId>) -> bool {
    let graph = context.graph;
    let Some(quantize) = quantize.filter(|_| params.dtype == DType::I8) else { return false };
    let readers = qdq::dequantized(graph, quantize).into_iter();
    let readers: usize = readers.map(|v| graph.uses(v).len() + usize::from(graph.is_output(v))).sum();
    context.target.storage.activation == DType::U8 && readers > 1
}

fn outputs(context: &Context, id: NodeId, rule: &Rule, input: &Params) -> Option<String> {
    let (graph, node) = (context.graph, context.graph.node(id));
    for value in graph.outputs_of(id).into_iter().flatten() {
        if graph.uses(value).is_empty() && !graph.is_output(value) {
            continue;
        }
        let quantize = match qdq::only_quantizer(graph, value) {
            Some(quantize) => quantize,
            None => match behind_clamp(graph, value) {
                Some((clamp, quantize)) => match redundant(graph, clamp, quantize) {
                    true => quantize,
                    false => {
                        return Some(format!(
                            "{} stands between it and QuantizeLinear, and the quantized range does not end where that does",
                            graph.node(clamp).op_type
                        ));
                    }
                },
                // The product may stay in float.
                None if node.is("MatMul") || node.is("Gemm") => match float_product(graph, id, value) {
                    Some(why) => return Some(why),
                    None => continue,
                },
                None => return Some(reader(graph, value)),
            },
        };
        let Some(output) = qdq::params(graph, quantize) else {
            return Some("the scale of its output is computed at run time".into());
        };
        if shared_int8(context, &output, Some(quantize)) {
            return Some("its output is int8 with several readers, which x86 kernels do not give".into());
        }
        if output.dtype != input.dtype {
            return Some(format!("its input is {} and its output {}", input.dtype, output.dtype));
        }
        if *rule == Rule::SameScale && !output.same(input) {
            return Some(
                "it passes values on, but its output has another scale or zero point than its input".into(),
            );
        }
        if *rule == Rule::SameScale && (output.zero_points.is_empty() || input.zero_points.is_empty()) {
            return Some("it passes values on, and its Q or DQ has no explicit zero point".into());
        }
    }
    None
}

/// Why a product with a float output is not computed on integers.
fn float_product(graph: &Graph, id: NodeId, value: ValueId) -> Option<String> {
    if graph.node(id).is("Gemm") {
        let bias = graph.input(id, 2)?;
        let float = qdq::dequantizer(graph, bias).is_none();
        return float.then(|| "its bias is float and its output is not quantized".into());
    }
    // The runtime makes a Gemm of both, with a float bias and no quantized output.
    let add = graph.only_use(value).filter(|u| graph.node(u.node).is("Add"))?;
    let matrix = graph.ty(value).and_then(|t| t.rank()) == Some(2);
    let bias = graph.inputs_of(add.node).into_iter().flatten().find(|&v| v != value)?;
    (matrix && qdq::is_constant(graph, bias))
        .then(|| "with the Add behind it, it becomes a float Gemm".into())
}

/// Relu or Clip alone between a value and its quantizer.
fn behind_clamp(graph: &Graph, value: ValueId) -> Option<(NodeId, NodeId)> {
    let only = graph.only_use(value).filter(|u| u.port == Port::Input(0))?;
    matches!(rule_of(graph, only.node), Rule::Clamp { .. }).then_some(())?;
    Some((only.node, qdq::only_quantizer(graph, graph.output(only.node, 0)?)?))
}

/// Does quantizing limit the value to where the clamp does?
fn redundant(graph: &Graph, clamp: NodeId, quantize: NodeId) -> bool {
    let Rule::Clamp { low, high } = rule_of(graph, clamp) else { return false };
    let Some(params) = qdq::params(graph, quantize) else { return false };
    let (Some((qmin, qmax)), &[scale]) = (crate::ir::affine::limits(params.dtype), params.scales.as_slice())
    else {
        return false;
    };
    let at = |bound: f32| f64::from((bound / scale).round_ties_even()) + f64::from(params.zero_point(0));
    at(low) <= qmin.into() && at(high) >= qmax.into()
}

/// Who keeps the output of an operator in float.
fn reader(graph: &Graph, value: ValueId) -> String {
    if graph.is_output(value) {
        return "its output is an output of the graph, in float".into();
    }
    let uses = graph.uses(value);
    let float = uses.iter().find(|u| !qdq::is_quantize(graph.node(u.node)));
    match float {
        Some(u) => {
            format!("its output is read in float by {}", crate::quantize::insert::label(graph, u.node))
        }
        None => "its output is quantized more than once".into(),
    }
}
