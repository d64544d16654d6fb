//! The QONNX dialect (<https://github.com/fastmachinelearning/qonnx>): `Quant`, `BipolarQuant` and `Trunc` nodes whose
//! integers may have any width.
//!
//! `Quant(x, scale, zero, bits)` is QuantizeLinear and DequantizeLinear if it rounds to nearest and has at most 8 bits;
//! fewer bits than the storage type has become a Clip. Constants may have up to 32 bits.

use super::{Rewrite, node, reals};
use crate::interpret::node_label;
use crate::ir::{Array, DType, Edit, Graph, Node, NodeId, Operand, Refusal, Tensor, ValueId, attribute};

/// Domains in which the nodes are found.
const DOMAINS: [&str; 4] = ["qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas", "brevitas"];

/// See the module.
pub struct QonnxDialect;

/// A quantizer of the dialect.
struct Quantizer {
    scales: Vec<f32>,
    axis: Option<usize>,
    zero: i32,
    low: i64,
    high: i64,
    dtype: DType,
}

impl Rewrite for QonnxDialect {
    fn name(&self) -> &'static str {
        "qonnx-dialect"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let operator = graph.node(id);
        if !DOMAINS.contains(&operator.domain.as_str()) {
            return Ok(None);
        }
        let (Some(x), Some(output)) = (graph.input(id, 0), graph.output(id, 0)) else { return Ok(None) };
        let quantizer = match operator.op_type.as_str() {
            "Quant" | "IntQuant" => quant(graph, id, x)?,
            "BipolarQuant" => bipolar(graph, id, x)?,
            "Trunc" => return Err("Trunc drops bits of an accumulator, which no QuantizeLinear does".into()),
            other => return Err(format!("{other} is no quantizer that is known").into()),
        };
        let mut edit = Edit::dropping(&[id]);
        let name = graph.name(output).to_string();
        let stored = match graph.constant(x) {
            Some(tensor) => {
                let integers = quantizer.integers(tensor, operator.op_type == "BipolarQuant")?;
                edit.constant(&format!("{name}_quantized"), Tensor::from_array(&integers))
            }
            None => quantizer.activation(graph, &mut edit, operator, (x, &name))?,
        };
        let parameters = quantizer.parameters(&mut edit, &name)?;
        let axis = quantizer.axis.map(|a| attribute::int("axis", a as i64));
        let label = format!("{}_DequantizeLinear", node_label(graph, id));
        let mut inputs = vec![stored, parameters[0]];
        inputs.extend((quantizer.dtype != DType::I32).then_some(parameters[1]));
        let mut dequantize = node("DequantizeLinear", label, axis.into_iter().collect(), inputs.len());
        dequantize.rank = operator.rank;
        edit.apply(dequantize, &inputs, output);
        Ok(Some(edit))
    }
}

fn text(operator: &Node, name: &str) -> Option<String> {
    let found = operator.attributes.iter().find(|a| a.name.as_deref() == Some(name))?;
    Some(String::from_utf8_lossy(found.s.as_ref()?).into_owned())
}

fn flag(operator: &Node, name: &str, default: bool) -> bool {
    let found = operator.attributes.iter().find(|a| a.name.as_deref() == Some(name));
    found.and_then(|a| a.i).map_or(default, |i| i != 0)
}

/// The scales in a slot, and the axis of `x` that they run along.
fn scales(graph: &Graph, id: NodeId, x: ValueId) -> Result<(Vec<f32>, Option<usize>), Refusal> {
    let Some(tensor) = graph.constant_input(id, 1) else { return Err("its scale is computed".into()) };
    let values = reals(tensor).ok_or("its scale is no number")?;
    if values.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
        return Err("its scale is not positive".into());
    }
    if values.len() == 1 {
        return Ok((values, None));
    }
    let rank = graph.ty(x).and_then(|t| t.rank()).ok_or("the rank of its input is unknown")?;
    let wide: Vec<usize> = (0..tensor.shape().len()).filter(|&a| tensor.shape()[a] > 1).collect();
    match (wide.as_slice(), rank.checked_sub(tensor.shape().len())) {
        (&[axis], Some(lead)) => Ok((values, Some(lead + axis))),
        _ => Err("its scales run along more than one axis".into()),
    }
}

fn quant(graph: &Graph, id: NodeId, x: ValueId) -> Result<Quantizer, Refusal> {
    let operator = graph.node(id);
    let mode = text(operator, "rounding_mode").unwrap_or_else(|| "ROUND".into()).to_uppercase();
    if mode != "ROUND" && mode != "HALF_EVEN" {
        return Err(format!("it rounds by {mode}, QuantizeLinear to the nearest").into());
    }
    let one =
        |slot: usize| graph.constant_input(id, slot).and_then(reals).filter(|v| v.len() == 1).map(|v| v[0]);
    let (Some(zero), Some(bits)) = (one(2), one(3)) else {
        return Err("its zero point or its number of bits is computed, or differs by channel".into());
    };
    let constant = graph.constant(x).is_some();
    let widest = if constant { 32.0 } else { 8.0 };
    if !(1.0..=widest).contains(&bits) || bits.fract() != 0.0 {
        return Err(format!("{bits} bits; {widest} are the most").into());
    }
    let (signed, narrow) = (flag(operator, "signed", true), flag(operator, "narrow", false));
    let (low, high) = match signed {
        true => (-(1i64 << (bits as u32 - 1)) + i64::from(narrow), (1i64 << (bits as u32 - 1)) - 1),
        false => (0, (1i64 << bits as u32) - 1 - i64::from(narrow)),
    };
    let dtype = match (bits <= 8.0, signed) {
        (true, true) => DType::I8,
        (true, false) => DType::U8,
        (false, true) if zero == 0.0 => DType::I32,
        _ => return Err(format!("{bits} bits with a zero point or without a sign").into()),
    };
    if zero.fract() != 0.0 || !(low as f32..=high as f32).contains(&zero) {
        return Err(format!("the zero point {zero} is not one of its integers").into());
    }
    let (scales, axis) = scales(graph, id, x)?;
    Ok(Quantizer { scales, axis, zero: zero as i32, low, high, dtype })
}

fn bipolar(graph: &Graph, id: NodeId, x: ValueId) -> Result<Quantizer, Refusal> {
    if graph.constant(x).is_none() {
        return Err("a bipolar activation has no zero, so QuantizeLinear cannot give it".into());
    }
    let (scales, axis) = scales(graph, id, x)?;
    Ok(Quantizer { scales, axis, zero: 0, low: -1, high: 1, dtype: DType::I8 })
}

impl Quantizer {
    /// Scale and zero point constants.
    fn parameters(&self, edit: &mut Edit, name: &str) -> Result<[Operand; 2], Refusal> {
        let count = self.scales.len();
        let vector = self.axis.is_some();
        let scales = if vector { Array::vector(self.scales.clone()) } else { Array::scalar(self.scales[0]) };
        let zeros = match (self.dtype, vector) {
            (DType::U8, true) => Array::vector(vec![self.zero as u8; count]),
            (DType::U8, false) => Array::scalar(self.zero as u8),
            (_, true) => Array::vector(vec![self.zero as i8; count]),
            (_, false) => Array::scalar(self.zero as i8),
        };
        let scale = edit.constant(&format!("{name}_scale"), Tensor::from_array(&scales));
        Ok([scale, edit.constant(&format!("{name}_zero_point"), Tensor::from_array(&zeros))])
    }

    /// The integers of a constant.
    fn integers(&self, tensor: &Tensor, bipolar: bool) -> Result<Array, Refusal> {
        let shape = tensor.shape();
        let values = reals(tensor).ok_or("its input is no number")?;
        let inner: usize = self.axis.map_or(1, |a| shape[a + 1..].iter().product());
        let scale = |i: usize| {
            self.scales[if self.axis.is_none() { 0 } else { i / inner.max(1) % self.scales.len() }]
        };
        let quantize = |(i, &v): (usize, &f32)| match bipolar {
            true if v >= 0.0 => 1,
            true => -1,
            false => {
                let q = f64::from((v / scale(i)).round_ties_even()) + f64::from(self.zero);
                q.clamp(self.low as f64, self.high as f64) as i64
            }
        };
        let integers = values.iter().enumerate().map(quantize);
        let array = match self.dtype {
            DType::U8 => Array::new(shape, integers.map(|q| q as u8).collect()),
            DType::I32 => Array::new(shape, integers.map(|q| q as i32).collect()),
            _ => Array::new(shape, integers.map(|q| q as i8).collect()),
        };
        array.map_err(|f| f.to_string().into())
    }

    /// QuantizeLinear of an activation, behind a Clip if it has fewer integers than its type.
    fn activation(
        &self,
        graph: &Graph,
        edit: &mut Edit,
        operator: &Node,
        (x, name): (ValueId, &str),
    ) -> Result<Operand, Refusal> {
        let mut from: Operand = x.into();
        let whole = if self.dtype == DType::U8 { (0, 255) } else { (-128, 127) };
        if (self.low, self.high) != whole {
            if self.axis.is_some() {
                return Err("fewer than 8 bits with a scale for each channel".into());
            }
            let real = |q: i64| {
                Tensor::from_array(&Array::scalar((q - i64::from(self.zero)) as f32 * self.scales[0]))
            };
            let low = edit.constant(&format!("{name}_low"), real(self.low));
            let high = edit.constant(&format!("{name}_high"), real(self.high));
            let clipped = edit.value(&format!("{name}_clipped"), graph.ty(x).cloned());
            let mut clip = node("Clip", format!("{name}_Clip"), vec![], 3);
            clip.rank = operator.rank;
            edit.apply(clip, &[from, low, high], clipped);
            from = clipped;
        }
        let parameters = self.parameters(edit, name)?;
        let ty = graph.ty(x).map(|t| crate::ir::TensorType { dtype: self.dtype, dims: t.dims.clone() });
        let stored = edit.value(&format!("{name}_quantized"), ty);
        let axis = self.axis.map(|a| attribute::int("axis", a as i64));
        let label = format!("{name}_QuantizeLinear");
        let mut quantize = node("QuantizeLinear", label, axis.into_iter().collect(), 3);
        quantize.rank = operator.rank;
        edit.apply(quantize, &[from, parameters[0], parameters[1]], stored);
        Ok(stored)
    }
}
