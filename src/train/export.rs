//! From the student back to integers: parameters become the constants of the quantized graph.

use super::fake_quantize::FakeBias;
use super::student::{Kind, Student, bound};
use crate::error::{Error, Fault};
use crate::fail;
use crate::ir::affine::limits;
use crate::ir::{Array, DType, Graph, Tensor, TensorType, Value};
use crate::passes::node;

/// Integers in a storage type.
fn stored(shape: &[usize], integers: Vec<i32>, dtype: DType) -> Result<Array, Fault> {
    match dtype {
        DType::I8 => Array::new(shape, integers.into_iter().map(|q| q as i8).collect()),
        DType::U8 => Array::new(shape, integers.into_iter().map(|q| q as u8).collect()),
        DType::I16 => Array::new(shape, integers.into_iter().map(|q| q as i16).collect()),
        DType::U16 => Array::new(shape, integers.into_iter().map(|q| q as u16).collect()),
        other => fail!("integers of type {other}"),
    }
}

impl Student {
    /// The quantized graph with these values of the parameters. It computes what the student computes.
    pub fn export(&self, values: &[Array]) -> Result<Graph, Error> {
        self.write(values).map_err(|f| f.at("writing trained parameters"))
    }

    fn write(&self, values: &[Array]) -> Result<Graph, Fault> {
        let mut graph = self.quantized.clone();
        let [scale_of, zero_of] = [0, 1].map(|which| {
            move |quantizer: usize| -> Result<&Array, Fault> {
                let q = self.quantizers.get(quantizer).ok_or("no such quantizer")?;
                values
                    .get(if which == 0 { q.scale } else { q.zero })
                    .ok_or_else(|| "no such parameter".into())
            }
        });
        for (index, quantizer) in self.quantizers.iter().enumerate() {
            let (scale, zero) = (scale_of(index)?, zero_of(index)?.item::<f32>()?);
            let zero_point = quantizer.fake.zero_point(zero);
            let slots = match &quantizer.kind {
                Kind::Activation(id) => (graph.input(*id, 1), graph.input(*id, 2)),
                Kind::Weight { real, integers } => {
                    let dtype = graph.constant(*integers).map_or(DType::I8, Tensor::dtype);
                    let real = values.get(*real).ok_or("no such parameter")?;
                    let q = quantizer.fake.integers(real, scale.slice()?, zero)?;
                    graph.set_constant(*integers, Tensor::from_array(&stored(real.shape(), q, dtype)?));
                    let reader = graph.uses(*integers).first().map(|u| u.node);
                    (reader.and_then(|r| graph.input(r, 1)), reader.and_then(|r| graph.input(r, 2)))
                }
            };
            if let Some(constant) = slots.0 {
                graph.set_constant(constant, Tensor::from_array(scale));
            }
            if let Some(constant) = slots.1 {
                // Where channels came to share a scale, they share a zero point.
                let (dtype, shape) = match graph.constant(constant) {
                    Some(t) if t.len() == scale.len() => (t.dtype(), t.shape().to_vec()),
                    Some(t) => (t.dtype(), scale.shape().to_vec()),
                    None => continue,
                };
                let count = shape.iter().product();
                let zeros = stored(&shape, vec![zero_point; count], dtype)?;
                graph.set_constant(constant, Tensor::from_array(&zeros));
            }
        }
        for bias in &self.biases {
            let (input, weight) =
                (scale_of(bias.factors.0)?.item::<f32>()?, scale_of(bias.factors.1)?.to_f32()?);
            let real = values.get(bias.real).ok_or("no such parameter")?;
            let weight = weight.as_slice().unwrap_or_default();
            let (integers, scales) = FakeBias::integers(real.slice()?, input, weight);
            graph.set_constant(bias.integers, Tensor::from_array(&Array::new(real.shape(), integers)?));
            let shape = graph.constant(bias.scales).map_or(vec![], |t| t.shape().to_vec());
            let scales = match scales[..] {
                [one] => vec![one; shape.iter().product()],
                _ => scales,
            };
            graph.set_constant(bias.scales, Tensor::from_array(&Array::new(&shape, scales)?));
        }
        for (parameter, value) in self.parameters.iter().zip(values) {
            if graph.has_value(parameter.value)
                && graph.constant(parameter.value).is_some()
                && parameter.name == graph.name(parameter.value)
            {
                graph.set_constant(parameter.value, Tensor::from_array(value));
            }
        }
        self.narrow_activations(values, &mut graph)?;
        Ok(graph)
    }

    /// Fewer integers than the storage type has: a Clip before QuantizeLinear holds the numbers to them.
    fn narrow_activations(&self, values: &[Array], graph: &mut Graph) -> Result<(), Fault> {
        for quantizer in &self.quantizers {
            let Kind::Activation(id) = quantizer.kind else { continue };
            let (low, high) = (quantizer.fake.low, quantizer.fake.high);
            let Some(from) = graph.input(id, 0) else { continue };
            let dtype = graph.input(id, 2).and_then(|z| graph.constant(z)).map_or(DType::U8, Tensor::dtype);
            if limits(dtype) == Some((low, high)) {
                continue;
            }
            let (scale, zero) =
                (values[quantizer.scale].item::<f32>()?, values[quantizer.zero].item::<f32>()?);
            let real = |q: i32| (q - quantizer.fake.zero_point(zero)) as f32 * scale;
            let name = graph.name(from).to_string();
            let bounds = [(low, "low"), (high, "high")];
            let [low, high] = bounds.map(|(q, which)| bound(graph, &format!("{name}_{which}"), real(q)));
            let ty: Option<TensorType> = graph.ty(from).cloned();
            let clipped = graph.add_fresh(&format!("{name}_clipped"), Value { ty, ..Value::default() });
            let mut clip = node("Clip", format!("{name}_Clip"), vec![], 3);
            clip.rank = graph.node(id).rank;
            graph.add_node(clip, &[Some(from), Some(low), Some(high)], &[Some(clipped)]);
            graph.rewire(id, 0, Some(clipped));
        }
        Ok(())
    }
}
