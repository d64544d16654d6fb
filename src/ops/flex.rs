//! FlexAttention (domain `ai.onnx.preview`): attention in which graphs inside the node may change the scores before the
//! softmax and the weights after it.

use std::sync::Arc;

use super::cast::convert;
use super::operand::{Real, elements, rounded};
use super::slots::{known, required};
use super::{Attrs, Control, Fact, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Hook, TensorType};
use crate::kernels::attention::Heads;
use crate::kernels::softmax::softmax;

/// The operators of this family.
pub const OPS: &[OpDef] =
    &[OpDef { domain: "ai.onnx.preview", name: "FlexAttention", since: 1, parse: FlexAttention::parse }];

/// Attention with graphs between its steps.
#[derive(Debug, Clone, PartialEq)]
pub struct FlexAttention {
    /// Factor of the products; the inverse root of the head size by default.
    pub scale: Option<f32>,
    /// Element type that scores and weights are computed in; at least `float` by default.
    pub precision: Option<DType>,
}

impl FlexAttention {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        attrs.note("score_mod")?;
        attrs.note("prob_mod")?;
        let precision = match attrs.opt_int("softmax_precision")? {
            None | Some(0) => None,
            Some(code) => match i32::try_from(code).ok().and_then(DType::from_onnx) {
                Some(dtype) if dtype.is_float() => Some(dtype),
                _ => fail!("softmax_precision is {code}"),
            },
        };
        Ok(Arc::new(Self { scale: attrs.opt_float("scale")?, precision }))
    }

    fn run<T: Real>(&self, inputs: &[Option<Array>], precision: DType, call: Hook) -> Result<Vec<Array>, Fault> {
        let (query, key, value) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let heads = Heads::new(query.shape(), key.shape(), value.shape())?;
        let scale = self.scale.map_or_else(|| 1.0 / (heads.size as f64).sqrt(), f64::from).sqrt();
        let scaled = |x: &Array| -> Result<Vec<T>, Fault> {
            let factor = rounded(T::array(&[1], vec![T::of(scale)])?, query.dtype());
            let factor = elements(&T::read(&factor)?)?[0];
            let y = T::read(x)?.iter().map(|&v| v * factor).collect();
            Ok(elements(&T::read(&rounded(T::array(x.shape(), y)?, x.dtype()))?)?.to_vec())
        };
        let (q, k, v) = (scaled(query)?, scaled(key)?, T::read(value)?);
        let group = heads.heads / heads.kv_heads;
        // For each row of queries the head of keys and values that it reads.
        let source = |row: usize| {
            let head = row / heads.queries;
            head / heads.heads * heads.kv_heads + head % heads.heads / group
        };
        let rows = heads.batch * heads.heads * heads.queries;
        let mut scores = Vec::with_capacity(rows * heads.keys);
        for row in 0..rows {
            let query = &q[row * heads.size..][..heads.size];
            for key in 0..heads.keys {
                let key = &k[(source(row) * heads.keys + key) * heads.size..][..heads.size];
                scores.push(query.iter().zip(key).fold(T::ZERO, |sum, (&a, &b)| sum + a * b));
            }
        }
        let shape = [heads.batch, heads.heads, heads.queries, heads.keys];
        let changed = |name: &str, values: Vec<T>| -> Result<Vec<T>, Fault> {
            let given = convert(&T::array(&shape, values)?, precision)?;
            let array = match call(name, std::slice::from_ref(&given))? {
                None => given,
                Some(outputs) => match outputs.as_slice() {
                    [one] if one.shape() == shape => one.clone(),
                    _ => fail!("{name} does not give back one tensor of the shape {shape:?}"),
                },
            };
            Ok(elements(&T::read(&array)?)?.to_vec())
        };
        let products = rounded(T::array(&shape, scores)?, query.dtype());
        let mut weights = changed("score_mod", elements(&T::read(&products)?)?.to_vec())?;
        softmax(&mut weights, (rows, heads.keys, 1));
        let weights = changed("prob_mod", weights)?;
        let v = elements(&v)?;
        let mut y = vec![T::ZERO; rows * heads.value_size];
        for (row, (target, weights)) in
            y.chunks_exact_mut(heads.value_size.max(1)).zip(weights.chunks_exact(heads.keys.max(1))).enumerate()
        {
            for (key, &weight) in weights.iter().enumerate() {
                let value = &v[(source(row) * heads.keys + key) * heads.value_size..][..heads.value_size];
                target.iter_mut().zip(value).for_each(|(y, &v)| *y += weight * v);
            }
        }
        let shape = [heads.batch, heads.heads, heads.queries, heads.value_size];
        Ok(vec![convert(&T::array(&shape, y)?, value.dtype())?])
    }
}

impl Op for FlexAttention {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 2).map(|v| TensorType::unranked(v.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        self.calling(inputs, &|_, _| Ok(None))
    }

    fn calling(&self, inputs: &[Option<Array>], call: Hook) -> Result<Vec<Array>, Fault> {
        let dtype = required(inputs, 0)?.dtype();
        let precision = match (self.precision, dtype) {
            (Some(precision), _) => precision,
            (None, DType::F64) => DType::F64,
            (None, _) => DType::F32,
        };
        match (dtype, precision) {
            (DType::F64, _) | (_, DType::F64) => self.run::<f64>(inputs, precision, call),
            _ => self.run::<f32>(inputs, precision, call),
        }
    }

    fn control(&self) -> Option<Control> {
        Some(Control::Inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("flex");
    }

    /// Without graphs it is attention.
    #[test]
    fn plain_attention() {
        let numbers = |shape: &[usize], seed: usize| {
            let count = shape.iter().product::<usize>();
            let values = (0..count).map(|i| ((i * 7 + seed) % 13) as f32 / 6.0 - 1.0).collect::<Vec<f32>>();
            Some(Array::new(shape, values).unwrap())
        };
        let inputs = [numbers(&[2, 4, 3, 5], 1), numbers(&[2, 2, 6, 5], 2), numbers(&[2, 2, 6, 7], 3)];
        let flex = FlexAttention { scale: None, precision: None }.float(&inputs).unwrap();
        let def = crate::ops::find("", "Attention", 23).unwrap();
        let plain = (def.parse)(&mut Attrs::new(&[], 23, 3, 1)).unwrap().float(&inputs).unwrap();
        for (a, b) in flex[0].slice::<f32>().unwrap().iter().zip(plain[0].slice::<f32>().unwrap()) {
            assert!((a - b).abs() < 1e-5);
        }
        // A graph that makes all scores equal makes all weights equal.
        let even = |name: &str, x: &[Array]| {
            Ok((name == "score_mod").then(|| vec![Array::zeros(DType::F32, x[0].shape()).unwrap()]))
        };
        let y = FlexAttention { scale: None, precision: None }.calling(&inputs, &even).unwrap();
        let v = inputs[2].as_ref().unwrap().slice::<f32>().unwrap();
        let mean: f32 = (0..6).map(|key| v[key * 7]).sum::<f32>() / 6.0;
        assert!((y[0].slice::<f32>().unwrap()[0] - mean).abs() < 1e-6);
    }
}
