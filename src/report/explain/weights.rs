//! Weights and biases: types, axes, zero points, saturation, scales that do not fit each other.

use super::{Context, Finding, Kernel, Level};
use crate::ir::{Array, DType, NodeId, Rule};
use crate::quantize::candidate::rule_of;
use crate::quantize::weights::saturating_channels;
use crate::report::qdq::{self, Params};

/// A bias whose scale is off by more than this share is not what the kernel takes it for.
const BIAS_TOLERANCE: f64 = 0.01;

/// Checks the constants of one operator.
pub fn check(context: &Context, id: NodeId, kernel: &Kernel, findings: &mut Vec<Finding>) {
    let graph = context.graph;
    if *kernel == Kernel::IntegerOperator {
        return operator(context, id, findings);
    }
    let Rule::Contraction { weight, channel_axis, bias } = rule_of(graph, id) else {
        return softmax(context, id, findings);
    };
    let mut find = |level, kind, message: String| findings.push(context.finding(level, kind, id, message));
    let dequantized = |slot| {
        let dequantize = graph.input(id, slot).and_then(|v| qdq::dequantizer(graph, v))?;
        Some((dequantize, qdq::params(graph, dequantize)?))
    };
    let Some((dequantize, params)) = dequantized(weight) else { return };
    let stored = graph.input(dequantize, 0).and_then(|v| qdq::constant(graph, v));
    let Some(stored) = stored else { return };
    if params.dtype == DType::U8 && context.target.storage.weight == DType::I8 {
        find(Level::Warning, "uint8-weight", "its weight is uint8: the fast x86 kernels take int8".into());
    }
    axis(&params, &stored, channel_axis, &mut find);
    if params.zero_points.windows(2).any(|w| w.first() != w.last()) {
        let message =
            "its weight has different zero points by channel, which ONNX Runtime refuses at run time";
        find(Level::Warning, "weight-zero-points", message.into());
    }
    if context.target.saturating_pairs && *kernel == Kernel::Integer {
        saturation(channel_axis == Some(0), &stored, &mut find);
    }
    let Some((input, (_, bias))) = dequantized(0).map(|i| i.1).zip(bias.and_then(dequantized)) else {
        return;
    };
    bias_scale(&input, &params, &bias, graph.node(id).is("Gemm"), &mut find);
}

fn axis(
    params: &Params,
    stored: &Array,
    channels: Option<usize>,
    find: &mut impl FnMut(Level, &'static str, String),
) {
    let (count, rank) = (params.scales.len(), stored.rank() as i64);
    if count < 2 || params.block > 0 {
        return;
    }
    let along = if params.axis < 0 { params.axis + rank } else { params.axis };
    match channels {
        Some(wanted) if along != wanted as i64 => {
            let message = format!(
                "the scales of its weight run along axis {along}, its output channels along {wanted}"
            );
            find(Level::Warning, "weight-axis", message);
        }
        None => {
            find(Level::Warning, "weight-axis", "its weight has several scales, its kernel takes one".into())
        }
        _ => {}
    }
    let extent = usize::try_from(along).ok().and_then(|a| stored.shape().get(a));
    if extent != Some(&count) {
        let message =
            format!("{count} scales do not fit axis {along} of its weight {}", stored.tensor_type());
        find(Level::Warning, "weight-axis", message);
    }
}

fn saturation(by_row: bool, stored: &Array, find: &mut impl FnMut(Level, &'static str, String)) {
    let Ok(weights) = stored.slice::<i8>() else { return };
    if stored.rank() < 2 {
        return;
    }
    let (bad, all) = saturating_channels(stored.shape(), by_row, weights);
    if bad > 0 {
        let message = format!(
            "{bad} of {all} channels have pairs of weights that can saturate 16 bits on x86 without VNNI"
        );
        find(Level::Warning, "saturation", message);
    }
}

fn bias_scale(
    input: &Params,
    weight: &Params,
    bias: &Params,
    gemm: bool,
    find: &mut impl FnMut(Level, &'static str, String),
) {
    let Some(&x) = input.scales.first() else { return };
    if bias.zero_points.iter().any(|&z| z != 0) {
        find(Level::Warning, "bias-zero-point", "its bias has a zero point, so it is not fused".into());
    }
    let pick = |p: &Params, i: usize| p.scales.get(if p.scales.len() == 1 { 0 } else { i }).copied();
    let count = weight.scales.len().max(bias.scales.len());
    let off = (0..count).filter_map(|i| {
        let wanted = f64::from(x) * f64::from(pick(weight, i)?);
        Some((f64::from(pick(bias, i)?) / wanted - 1.0).abs())
    });
    let worst = off.fold(0.0, f64::max);
    if worst > BIAS_TOLERANCE {
        let result = match gemm {
            true => "the fused kernel does not look and computes something else",
            false => "the operator may stay in float",
        };
        let message = format!(
            "the scale of its bias is off by {:.1} % from input times weight: {result}",
            100.0 * worst
        );
        find(Level::Warning, "bias-scale", message);
    }
}

/// The fused Softmax multiplies by the whole part of 1/scale.
fn softmax(context: &Context, id: NodeId, findings: &mut Vec<Finding>) {
    let graph = context.graph;
    if !graph.node(id).is("Softmax") {
        return;
    }
    let quantize = graph.output(id, 0).and_then(|v| qdq::only_quantizer(graph, v));
    let params = quantize.and_then(|q| qdq::params(graph, q));
    let Some(&[scale]) = params.as_ref().map(|p| p.scales.as_slice()) else { return };
    let inverse = 1.0 / f64::from(scale);
    if (inverse - inverse.round()).abs() > 1e-3 || inverse.round() == 255.0 {
        let message = "the scale of its output is not 1/256, with which the kernel's rows sum up best";
        findings.push(context.finding(Level::Note, "softmax-scale", id, message));
    }
}

/// Types of the operands of QLinearConv, QLinearMatMul and their like.
fn operator(context: &Context, id: NodeId, findings: &mut Vec<Finding>) {
    let graph = context.graph;
    let weight = match graph.node(id).op_type.as_str() {
        "QLinearConv" | "QLinearMatMul" | "QGemm" => 3,
        "MatMulInteger" | "ConvInteger" => 1,
        _ => return,
    };
    let dtype = |slot| graph.input(id, slot).and_then(|v| graph.ty(v)).map(|t| t.dtype);
    if dtype(0) == Some(DType::I8) {
        findings.push(context.finding(
            Level::Warning,
            "int8-activation",
            id,
            "its activations are int8: x86 kernels take uint8",
        ));
    }
    if dtype(weight) == Some(DType::U8) {
        findings.push(context.finding(
            Level::Warning,
            "uint8-weight",
            id,
            "its weight is uint8: the fast x86 kernels take int8",
        ));
    }
}
