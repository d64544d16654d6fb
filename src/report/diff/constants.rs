//! Constants that the same operator reads in the same slot.

use super::{Change, Side};
use crate::ir::{Array, Graph, Tensor, ValueId};
use crate::proto::TensorProto;
use crate::report::qdq;

/// Compares two constants, seen through DequantizeLinear.
pub fn compare(
    node: &str,
    slot: usize,
    (a, from): (&Graph, ValueId),
    (b, to): (&Graph, ValueId),
) -> Option<Change> {
    let mut parts = Vec::new();
    let (x, y) = (stored(a, from), stored(b, to));
    let ty =
        |array: &Option<Array>| array.as_ref().map_or_else(|| "?".into(), |t| t.tensor_type().to_string());
    if ty(&x) != ty(&y) {
        parts.push(format!("{} -> {}", ty(&x), ty(&y)));
    } else if let (Some(x), Some(y)) = (&x, &y)
        && let Some(moved) = moved(x, y)
    {
        parts.push(moved);
    }
    let params = |graph, v| qdq::dequantizer(graph, v).and_then(|id| qdq::params(graph, id));
    match (params(a, from), params(b, to)) {
        (Some(p), Some(q)) => {
            if let Some(moved) = super::quantization::moved(&p, &q) {
                parts.push(moved);
            }
        }
        (None, Some(q)) => parts.push(format!("quantized, {}", q.shown())),
        (Some(p), None) => parts.push(format!("no longer quantized, was {}", p.shown())),
        (None, None) => {}
    }
    let detail = format!("{slot}: {}", parts.join(", "));
    (!parts.is_empty()).then(|| Change::new(Side::Changed, "constant", node, detail))
}

/// The stored elements of a constant.
fn stored(graph: &Graph, value: ValueId) -> Option<Array> {
    qdq::constant(graph, qdq::original(graph, value))
}

/// How many elements of two arrays of one type differ, and by how much.
fn moved(x: &Array, y: &Array) -> Option<String> {
    if x == y {
        return None;
    }
    let (Ok(a), Ok(b)) = (x.to_f32(), y.to_f32()) else { return Some("other elements".into()) };
    let pairs = || a.iter().zip(b.iter()).filter(|(p, q)| p.to_bits() != q.to_bits());
    let largest = pairs().map(|(p, q)| (p - q).abs()).fold(0f32, f32::max);
    match pairs().count() {
        0 => None,
        n => Some(format!("{n} of {} elements differ, by up to {largest}", x.len())),
    }
}

/// A tensor in an attribute: its type and elements, or a digest of many.
pub fn shown_proto(proto: &TensorProto) -> String {
    const FEW: usize = 8;
    let Ok(tensor) = Tensor::from_proto(proto.clone(), None) else { return "a tensor".into() };
    let ty = tensor.tensor_type();
    match tensor.array() {
        Ok(array) if array.len() <= FEW && array.to_f32().is_ok() => {
            let values: Vec<f32> = array.to_f32().map(|a| a.iter().copied().collect()).unwrap_or_default();
            format!("{ty} {values:?}")
        }
        Ok(array) => match Tensor::from_array(&array).proto().raw_data.as_deref() {
            Some(bytes) => format!("{ty} sha256 {}", crate::onnx::digest(bytes)),
            None => ty.to_string(),
        },
        Err(_) => ty.to_string(),
    }
}
