//! Dynamic quantization: activations become integers when the model runs, from the range that they then have. No
//! operator but MatMul, Gemm and LSTM gains by it; other weights are stored as in
//! [`weight_only`]. ConvInteger is never written: it is slower than Conv in float, or missing.
//!
//! A product of an activation `x` with a constant `w` becomes
//!
//! ```text
//! xq, xs, xz = DynamicQuantizeLinear(x)             once for all readers of x
//! y = Cast(MatMulInteger(xq, wq, xz, 0)) · (xs · ws) + bias
//! ```
//!
//! in the order in which ONNX Runtime fuses it to one kernel. An LSTM has no standard form; `lstm` makes ONNX Runtime's
//! own operator of it where that is the target.

mod lstm;

use std::collections::{BTreeMap, BTreeSet};

use super::candidate::Filter;
use super::insert::label;
use super::target::Target;
use super::weight_only::{self, Storage, Stored};
use super::weights::{Form, weight_of};
use crate::calibrate::read::Samples;
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{
    Array, DType, Graph, Model, NodeId, Tensor, TensorType, Value, ValueId, attribute, schedule,
};
use crate::kernels::math::round;
use crate::ops::gemm::Gemm;
use crate::passes::node;

/// Products of smaller weights are left in float.
const MIN_ELEMENTS: usize = 256;

/// An activation whose signal-to-noise ratio in 8 bits is lower than this in dB stays float, and an LSTM that brings an
/// output of the model below it, if there are samples to tell.
pub const LEAST_DB: f64 = 22.0;

/// Samples that are looked at for that.
const SAMPLES: usize = 8;

/// Quantizes what can be: products and LSTMs dynamically, other weights for storage only. `noisy` activations stay float,
/// and LSTMs unless `with_lstm`.
pub fn quantize(
    model: &mut Model,
    filter: &Filter,
    target: &Target,
    noisy: &BTreeSet<ValueId>,
    with_lstm: bool,
) -> Result<Stored, Fault> {
    let mut done = Stored::default();
    let mut main = true;
    let graph = &mut model.graph;
    weight_only::each_graph(graph, &mut |graph| {
        let none = BTreeSet::new();
        let noisy = if std::mem::take(&mut main) { noisy } else { &none };
        let mut writer = Writer { graph, target, inputs: BTreeMap::new(), weights: BTreeMap::new() };
        for id in schedule(writer.graph)? {
            if filter.refuses(writer.graph, id).is_some() {
                continue; // told of when its weight is stored
            }
            let name = label(writer.graph, id);
            let coarse = writer.graph.input(id, 0).is_some_and(|v| noisy.contains(&v));
            if coarse && writer.product(id)?.is_some() {
                done.float.push((name, format!("8 bits give its input less than {LEAST_DB} dB")));
                continue;
            }
            if writer.multiply(id)? || with_lstm && lstm::rewrite(writer.graph, id, target)? {
                done.nodes.insert(name);
            }
        }
        Ok(())
    })?;
    let rest = weight_only::quantize(graph, filter, Storage::default())?;
    done.float.extend(rest.float);
    done.stored = rest.nodes;
    if let Some(domain) = lstm::domain_used(graph) {
        model.import(domain, 1);
    }
    Ok(done)
}

/// Has the graph an LSTM that computes dynamically?
pub fn has_lstm(graph: &Graph) -> bool {
    lstm::domain_used(graph).is_some()
}

/// The activations in front of products that 8 bits, with a range for each sample, represent badly.
pub fn noisy(graph: &Graph, samples: &Samples) -> Result<BTreeSet<ValueId>, Error> {
    let watched: BTreeSet<ValueId> = graph
        .nodes()
        .filter(|&n| graph.node(n).is("MatMul") || graph.node(n).is("Gemm"))
        .filter_map(|n| graph.input(n, 0))
        .collect();
    let program = Program::new(graph)?;
    let mut sums: BTreeMap<ValueId, (f64, f64)> = BTreeMap::new();
    for index in 0..samples.len().min(SAMPLES) {
        let inputs = samples.load(index)?;
        program.run_as_far_as_possible(&inputs, &mut |id, array: &Array| {
            if let (true, Ok(values)) = (watched.contains(&id), array.slice::<f32>()) {
                let (signal, noise) = quantization_noise(values);
                let sum = sums.entry(id).or_default();
                *sum = (sum.0 + signal, sum.1 + noise);
            }
        })?;
    }
    let limit = libm::pow(10.0, -LEAST_DB / 10.0);
    Ok(sums.into_iter().filter(|(_, (signal, noise))| *noise > limit * signal).map(|(v, _)| v).collect())
}

/// Energy of the values, and of the error that `uint8` over their range makes.
fn quantization_noise(values: &[f32]) -> (f64, f64) {
    let (low, high) = values.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let step = (high - low) / 255.0;
    if step == 0.0 {
        return (0.0, 0.0);
    }
    values.iter().fold((0.0, 0.0), |(signal, noise), &v| {
        let error = f64::from(v - round(v / step) * step);
        (signal + f64::from(v) * f64::from(v), noise + error * error)
    })
}

/// A product of an activation with a constant, read from a MatMul or Gemm.
struct Product {
    input: ValueId,
    weight: ValueId,
    /// Is the weight stored by output channel?
    transposed: bool,
    alpha: f32,
    bias: Option<ValueId>,
}

/// A quantized activation, or a quantized weight: integers, scale, zero point.
type Triple = (ValueId, ValueId, ValueId);

struct Writer<'a> {
    graph: &'a mut Graph,
    target: &'a Target,
    /// What was made of each activation.
    inputs: BTreeMap<ValueId, Triple>,
    /// What was made of each weight, transposed or not, with its factor.
    weights: BTreeMap<(ValueId, bool, u32), Triple>,
}

impl Writer<'_> {
    /// Reads a node as a product, if it is one that can be computed in integers.
    fn product(&self, id: NodeId) -> Result<Option<Product>, Fault> {
        let (graph, node) = (&*self.graph, self.graph.node(id));
        let (Some(input), Some(weight)) = (graph.input(id, 0), graph.input(id, 1)) else { return Ok(None) };
        let float = graph.ty(input).is_some_and(|t| t.dtype == DType::F32);
        let Some(tensor) = graph.constant(weight).filter(|_| float && graph.constant(input).is_none()) else {
            return Ok(None);
        };
        if tensor.dtype() != DType::F32 || tensor.shape().len() != 2 || tensor.len() < MIN_ELEMENTS {
            return Ok(None);
        }
        if tensor.array()?.slice::<f32>()?.iter().any(|v| !v.is_finite()) {
            return Ok(None);
        }
        let plain = Product { input, weight, transposed: false, alpha: 1.0, bias: None };
        if node.is("MatMul") {
            return Ok(Some(plain));
        }
        let Some(gemm) = node.op_as::<Gemm>().filter(|g| node.is("Gemm") && !g.trans_a) else {
            return Ok(None);
        };
        let bias = graph.input(id, 2).filter(|_| gemm.beta != 0.0);
        if bias.is_some() && gemm.beta != 1.0 {
            return Ok(None);
        }
        Ok(Some(Product { transposed: gemm.trans_b, alpha: gemm.alpha, bias, ..plain }))
    }

    /// Rewrites a product; was it one?
    fn multiply(&mut self, id: NodeId) -> Result<bool, Fault> {
        let (Some(product), Some(output)) = (self.product(id)?, self.graph.output(id, 0)) else {
            return Ok(false);
        };
        let (rank, name) = (self.graph.node(id).rank, self.graph.name(output).to_string());
        let (xq, xs, xz) = self.input(product.input, rank);
        let (wq, ws, wz) = self.weight(&product)?;
        let old = self.graph.inputs_of(id);
        self.graph.remove_node(id);
        let ty = self.graph.ty(output).cloned();
        let typed = |dtype| ty.clone().map(|t| TensorType { dtype, ..t });
        let scale = self.apply("Mul", &name, "scale", vec![], &[xs, ws], None, rank);
        let sum =
            self.apply("MatMulInteger", &name, "sum", vec![], &[xq, wq, xz, wz], typed(DType::I32), rank);
        let cast = attribute::int("to", DType::F32.to_onnx().into());
        let real = self.apply("Cast", &name, "real", vec![cast], &[sum], typed(DType::F32), rank);
        match product.bias {
            None => self.finish("Mul", &name, &[real, scale], output, rank),
            Some(bias) => {
                let scaled = self.apply("Mul", &name, "scaled", vec![], &[real, scale], ty, rank);
                self.finish("Add", &name, &[scaled, bias], output, rank);
            }
        }
        old.into_iter().flatten().for_each(|v| self.graph.remove_value_if_dead(v));
        Ok(true)
    }

    /// A node with one fresh output.
    #[allow(clippy::too_many_arguments, reason = "each is a part of the node")]
    fn apply(
        &mut self,
        op: &str,
        name: &str,
        what: &str,
        attributes: Vec<crate::ir::Attribute>,
        inputs: &[ValueId],
        ty: Option<TensorType>,
        rank: u64,
    ) -> ValueId {
        let output = self.graph.add_fresh(&format!("{name}_{what}"), Value { ty, ..Value::default() });
        let mut new = node(op, format!("{name}_{what}_{op}"), attributes, inputs.len());
        new.rank = rank;
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        self.graph.add_node(new, &inputs, &[Some(output)]);
        output
    }

    /// The node that defines the old output.
    fn finish(&mut self, op: &str, name: &str, inputs: &[ValueId], output: ValueId, rank: u64) {
        let mut new = node(op, format!("{name}_{op}"), vec![], inputs.len());
        new.rank = rank;
        let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
        self.graph.add_node(new, &inputs, &[Some(output)]);
    }

    /// The activation in integers, once for all its readers.
    fn input(&mut self, value: ValueId, rank: u64) -> Triple {
        if let Some(&known) = self.inputs.get(&value) {
            return known;
        }
        let name = self.graph.name(value).to_string();
        let dims = self.graph.ty(value).and_then(|t| t.dims.clone());
        let mut fresh = |what: &str, ty| {
            self.graph.add_fresh(&format!("{name}_{what}"), Value { ty: Some(ty), ..Value::default() })
        };
        let quantized = fresh("quantized", TensorType { dtype: DType::U8, dims });
        let scale = fresh("scale", TensorType::known(DType::F32, &[]));
        let zero = fresh("zero_point", TensorType::known(DType::U8, &[]));
        let mut quantize = node("DynamicQuantizeLinear", format!("{name}_DynamicQuantizeLinear"), vec![], 1);
        quantize.rank = rank;
        self.graph.add_node(quantize, &[Some(value)], &[Some(quantized), Some(scale), Some(zero)]);
        self.inputs.insert(value, (quantized, scale, zero));
        (quantized, scale, zero)
    }

    /// The weight in integers by output channel, once for all products with it.
    fn weight(&mut self, product: &Product) -> Result<Triple, Fault> {
        let key = (product.weight, product.transposed, product.alpha.to_bits());
        if let Some(&known) = self.weights.get(&key) {
            return Ok(known);
        }
        let name = self.graph.name(product.weight).to_string();
        let Some(tensor) = self.graph.constant(product.weight) else {
            crate::fail!("`{name}` is no constant")
        };
        let array = tensor.array()?;
        let array = if product.transposed { array.transposed(&[1, 0])? } else { array };
        let constant = weight_of(&array, Some(1), 1.0, &[], Form { by_channel: true, ..self.target.form() })?;
        let scales = constant.scales.iter().map(|s| s * product.alpha).collect();
        let mut add = |what: &str, array: &Array| {
            self.graph.add_constant(&format!("{name}_{what}"), Tensor::from_array(array))
        };
        let triple = (
            add("quantized", &constant.elements),
            add("scale", &Array::vector(scales)),
            add("zero_point", &Array::scalar(0i8)),
        );
        self.weights.insert(key, triple);
        Ok(triple)
    }
}

#[cfg(test)]
mod tests;
