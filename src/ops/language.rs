//! Pieces of language models beside attention: RotaryEmbedding, SwiGLU, TensorScatter, LinearAttention and
//! CausalConvWithState.

use std::sync::Arc;

use super::operand::{elements, rounded};
use super::slots::{self, around, indices, known, optional, required};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, TensorType};
use crate::kernels::math;
use crate::kernels::recurrence::{State, Step, advance};
use crate::kernels::strided::take_array;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "RotaryEmbedding", since: 23, parse: RotaryEmbedding::parse },
    OpDef { domain: ONNX, name: "SwiGLU", since: 27, parse: SwiGlu::parse },
    OpDef { domain: ONNX, name: "TensorScatter", since: 24, parse: TensorScatter::parse },
    OpDef { domain: ONNX, name: "LinearAttention", since: 27, parse: LinearAttention::parse },
    OpDef { domain: ONNX, name: "CausalConvWithState", since: 27, parse: CausalConv::parse },
];

fn count(attrs: &mut Attrs, name: &str) -> Result<usize, Fault> {
    let value = attrs.int(name, 0)?;
    usize::try_from(value).map_err(|_| format!("{name} is {value}").into())
}

/// [RotaryEmbedding](https://onnx.ai/onnx/operators/onnx__RotaryEmbedding.html): pairs of numbers turned by an angle
/// that depends on their position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RotaryEmbedding {
    /// Are the pairs neighbours, rather than as far apart as half the turned part?
    pub interleaved: bool,
    /// How many numbers of a head are turned; 0: all.
    pub dim: usize,
    /// Heads of an input of rank 3.
    pub num_heads: usize,
}

impl RotaryEmbedding {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self {
            interleaved: attrs.flag("interleaved", false)?,
            dim: count(attrs, "rotary_embedding_dim")?,
            num_heads: count(attrs, "num_heads")?,
        }))
    }
}

impl Op for RotaryEmbedding {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, cosines, sines) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        // Batch, length, heads, size: the length comes before the heads only if these lie side by side.
        let (batch, length, heads, size, heads_first) = match *x.shape() {
            [batch, heads, length, size] => (batch, length, heads, size, true),
            [batch, length, width] if self.num_heads > 0 && width % self.num_heads == 0 => {
                (batch, length, self.num_heads, width / self.num_heads, false)
            }
            _ => fail!("{:?} does not hold {} heads", x.shape(), self.num_heads),
        };
        let dim = if self.dim == 0 { size } else { self.dim };
        let half = dim / 2;
        if dim > size || dim % 2 != 0 {
            fail!("{dim} of {size} numbers cannot be turned in pairs");
        }
        let positions = optional(inputs, 3);
        let table = |cache: &Array| -> Result<Vec<f32>, Fault> {
            let rows = match positions {
                Some(ids) => {
                    let extent = cache.shape().first().copied().unwrap_or(0);
                    take_array(cache, 0, &indices(ids, extent)?)?
                }
                None => cache.clone(),
            };
            let values: Vec<f32> = rows.to_f32()?.iter().copied().collect();
            if values.len() != batch * length * half {
                fail!("the cache {:?} does not fit {batch} × {length} positions of {dim} numbers", cache.shape());
            }
            Ok(values)
        };
        let (cosines, sines) = (table(cosines)?, table(sines)?);
        let mut y: Vec<f32> = x.to_f32()?.iter().copied().collect();
        for (index, head) in y.chunks_exact_mut(size.max(1)).enumerate() {
            let (sample, rest) = (index / (heads * length), index % (heads * length));
            let position = if heads_first { rest % length } else { rest / heads };
            let row = (sample * length + position) * half;
            for i in 0..half {
                let (a, b) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
                let (cos, sin, u, v) = (cosines[row + i], sines[row + i], head[a], head[b]);
                (head[a], head[b]) = (cos * u - sin * v, sin * u + cos * v);
            }
        }
        Ok(vec![rounded(Array::new(x.shape(), y)?, x.dtype())])
    }
}

/// SwiGLU: `a · sigmoid(alpha · a) · b`.
#[derive(Debug, Clone, PartialEq)]
pub struct SwiGlu {
    /// Factor inside the sigmoid.
    pub alpha: f32,
}

impl SwiGlu {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { alpha: attrs.float("alpha", 1.0)? }))
    }
}

impl Op for SwiGlu {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        if a.tensor_type() != b.tensor_type() {
            fail!("the inputs {} and {} differ in type", a.tensor_type(), b.tensor_type());
        }
        let gate = |(&a, &b): (&f32, &f32)| a * math::sigmoid(self.alpha * a) * b;
        let y = a.to_f32()?.iter().zip(b.to_f32()?.iter()).map(gate).collect();
        Ok(vec![rounded(Array::new(a.shape(), y)?, a.dtype())])
    }
}

/// [TensorScatter](https://onnx.ai/onnx/operators/onnx__TensorScatter.html): a cache in which new rows take the place of
/// old ones, from a position on that each sample has for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorScatter {
    /// The axis of the rows.
    pub axis: i64,
    /// Does the cache begin anew at its end?
    pub circular: bool,
}

impl TensorScatter {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let circular = match attrs.string("mode", "linear")?.as_str() {
            "linear" => false,
            "circular" => true,
            other => fail!("unknown mode {other}"),
        };
        Ok(Arc::new(Self { axis: attrs.int("axis", -2)?, circular }))
    }
}

impl Op for TensorScatter {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (cache, update) = (required(inputs, 0)?, required(inputs, 1)?);
        let axis = slots::axis(self.axis, cache.rank())?;
        let starts = optional(inputs, 2).map(Array::to_i64).transpose()?;
        let (outer, rows, inner) = around(cache.shape(), axis);
        let mut expected = cache.shape().to_vec();
        let new = update.shape().get(axis).copied().unwrap_or(0);
        expected[axis] = new;
        let batch = cache.shape().first().copied().unwrap_or(1);
        if axis == 0 || update.shape() != expected || new > rows {
            fail!("an update {:?} of {:?} along axis {axis}", update.shape(), cache.shape());
        }
        let mut places = Vec::with_capacity(outer * new);
        for block in 0..outer {
            let sample = block / (outer / batch.max(1)).max(1);
            let start = starts.as_ref().map_or(Some(0), |s| s.get(sample).copied());
            let Some(start) = start.and_then(|s| usize::try_from(s).ok()) else {
                fail!("sample {sample} has no position to write at");
            };
            for row in 0..new {
                let row = start.saturating_add(row);
                let row = if self.circular { row % rows } else { row };
                if row >= rows {
                    fail!("row {row} of a cache of {rows}");
                }
                places.push((block * rows + row) as i64);
            }
        }
        let (flat, rows) = ([outer * rows, inner], [places.len(), inner]);
        let scatter = super::scatter::ScatterNd { reduction: super::scatter::Reduction::None };
        let indices = Array::new(&[places.len(), 1], places)?;
        let inputs = [cache.reshaped(&flat)?, indices, update.reshaped(&rows)?].map(Some);
        let y = scatter.float(&inputs)?;
        y.into_iter().map(|y| y.reshaped(cache.shape())).collect()
    }
}

/// LinearAttention: a memory, a matrix for each head, that decays and takes in `key ⊗ value` at every position before
/// the query reads it.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearAttention {
    q_num_heads: usize,
    kv_num_heads: usize,
    /// Factor of what is read; 0: the inverse root of the key size.
    scale: f32,
    /// Does the memory decay?
    gated: bool,
    /// Is only written what the memory does not know yet?
    delta: bool,
}

impl LinearAttention {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        attrs.opt_int("chunk_size")?; // a hint for how to compute it
        let (gated, delta) = match attrs.string("update_rule", "gated_delta")?.as_str() {
            "linear" => (false, false),
            "gated" => (true, false),
            "delta" => (false, true),
            "gated_delta" => (true, true),
            other => fail!("unknown update_rule {other}"),
        };
        let (q_num_heads, kv_num_heads) = (count(attrs, "q_num_heads")?, count(attrs, "kv_num_heads")?);
        if kv_num_heads == 0 || q_num_heads == 0 || q_num_heads % kv_num_heads != 0 {
            fail!("{q_num_heads} heads of queries for {kv_num_heads} of keys");
        }
        Ok(Arc::new(Self { q_num_heads, kv_num_heads, scale: attrs.float("scale", 0.0)?, gated, delta }))
    }
}

impl Op for LinearAttention {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let x = known(inputs, 0).map(|t| TensorType::unranked(t.dtype));
        // Without a past state its type is the query's; whether the slot is filled cannot be seen here.
        Ok(vec![x, known(inputs, 3).map(|t| TensorType::unranked(t.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (query, key, value) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let (past, decay, beta) = (optional(inputs, 3), optional(inputs, 4), optional(inputs, 5));
        let (&[batch, length, q_width], &[_, _, v_width]) = (query.shape(), value.shape()) else {
            fail!("Q {:?}, V {:?}", query.shape(), value.shape());
        };
        let heads = self.kv_num_heads;
        let (size, value_size) = (q_width / self.q_num_heads, v_width / heads);
        let fits = key.shape() == [batch, length, heads * size]
            && value.shape() == [batch, length, heads * value_size]
            && q_width == size * self.q_num_heads;
        if !fits || self.gated != decay.is_some() || self.delta != beta.is_some() {
            fail!("Q {:?}, K {:?}, V {:?}, or a missing or needless decay or beta", query.shape(), key.shape(), value.shape());
        }
        let read = |x: &Array| -> Result<Vec<f32>, Fault> { Ok(x.to_f32()?.iter().copied().collect()) };
        let (q, k, v) = (read(query)?, read(key)?, read(value)?);
        let (decay, beta) = (decay.map(read).transpose()?, beta.map(read).transpose()?);
        let positions = (batch * length).max(1);
        let widths = [decay.as_ref(), beta.as_ref()].map(|x| x.map_or(0, |x| x.len() / positions));
        if !([0, heads, heads * size].contains(&widths[0]) && [0, 1, heads].contains(&widths[1])) {
            fail!("a decay of {} and a beta of {} numbers for {heads} heads of {size}", widths[0], widths[1]);
        }
        let shape = [batch, heads, size, value_size];
        let mut memory = match past {
            Some(past) if past.shape() == shape => read(past)?,
            Some(past) => fail!("a past state {:?} instead of {shape:?}", past.shape()),
            None => vec![0.0; shape.iter().product()],
        };
        let scale = if self.scale == 0.0 { 1.0 / (size as f32).sqrt() } else { self.scale };
        let group = self.q_num_heads / heads;
        let mut y = vec![0.0; batch * length * self.q_num_heads * value_size];
        for (index, memory) in memory.chunks_exact_mut((size * value_size).max(1)).enumerate() {
            let (sample, head) = (index / heads, index % heads);
            let mut state = State { memory, value_size };
            for position in sample * length..(sample + 1) * length {
                let own = |x: &[f32], width: usize, size: usize| {
                    x[position * width + if width > 1 { head * size } else { 0 }..][..size].to_vec()
                };
                let decay = decay.as_ref().map(|d| match widths[0] == heads && heads * size != heads {
                    true => vec![d[position * heads + head]; size],
                    false => own(d, heads * size, size),
                });
                let beta = beta.as_ref().map(|b| own(b, widths[1], 1)[0]);
                let key = own(&k, heads * size, size);
                let value = own(&v, heads * value_size, value_size);
                advance(&mut state, &Step { key: &key, value: &value, decay: decay.as_deref(), beta });
                for reader in head * group..(head + 1) * group {
                    let query = &q[(position * self.q_num_heads + reader) * size..][..size];
                    let target = &mut y[(position * self.q_num_heads + reader) * value_size..][..value_size];
                    state.read(query, scale, target);
                }
            }
        }
        let y = Array::new(&[batch, length, self.q_num_heads * value_size], y)?;
        let state = rounded(Array::new(&shape, memory)?, past.unwrap_or(query).dtype());
        Ok(vec![rounded(y, query.dtype()), state])
    }
}

/// CausalConvWithState: each channel convolved with taps of its own, over itself and what came before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CausalConv {
    /// Does `x · sigmoid(x)` follow?
    pub silu: bool,
}

impl CausalConv {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let silu = match attrs.string("activation", "none")?.as_str() {
            "none" => false,
            "silu" | "swish" => true,
            other => fail!("unknown activation {other}"),
        };
        Ok(Arc::new(Self { silu }))
    }
}

impl Op for CausalConv {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let x = known(inputs, 0);
        Ok(vec![x.cloned(), x.map(|x| TensorType::unranked(x.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, weight) = (required(inputs, 0)?, required(inputs, 1)?);
        let (&[batch, channels, length], &[m, 1, taps]) = (x.shape(), weight.shape()) else {
            fail!("input {:?} and weight {:?}", x.shape(), weight.shape());
        };
        let (bias, past) = (optional(inputs, 2).map(Array::to_f32).transpose()?, optional(inputs, 3));
        let state = [batch, channels, taps.saturating_sub(1)];
        if m != channels
            || taps == 0
            || bias.as_ref().is_some_and(|b| b.len() != channels)
            || past.is_some_and(|p| p.shape() != state)
        {
            fail!("weight, bias or past state do not fit {channels} channels");
        }
        let past = past.map(Array::to_f32).transpose()?;
        let (values, weights) = (x.to_f32()?, weight.to_f32()?);
        let (values, weights) = (elements(&values)?, elements(&weights)?);
        let (mut y, mut present) = (Vec::with_capacity(values.len()), Vec::new());
        for row in 0..batch * channels {
            let mut line = match &past {
                Some(past) => elements(past)?[row * (taps - 1)..][..taps - 1].to_vec(),
                None => vec![0.0; taps - 1],
            };
            line.extend_from_slice(&values[row * length..][..length]);
            let weights = &weights[row % channels * taps..][..taps];
            let bias = bias.as_ref().map_or(Ok(0.0), |b| elements(b).map(|b| b[row % channels]))?;
            y.extend(line.windows(taps).map(|w| bias + w.iter().zip(weights).map(|(a, b)| a * b).sum::<f32>()));
            present.extend_from_slice(&line[length..]);
        }
        let mut y = rounded(Array::new(x.shape(), y)?, x.dtype());
        if self.silu {
            let gated = y.to_f32()?.map(|&v| v * math::sigmoid(v));
            y = rounded(gated.into(), x.dtype());
        }
        Ok(vec![y, rounded(Array::new(&state, present)?, x.dtype())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::{int, string};
    use crate::ops::operand::run;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("language");
    }

    /// A quarter turn of each pair.
    #[test]
    fn pairs_turn() {
        let x = Array::new(&[1, 1, 1, 4], vec![1f32, 2.0, 3.0, 4.0]).unwrap();
        let (cos, sin) = (vec![0f32, 0.0], vec![1f32, 1.0]);
        let cache = |v: &Vec<f32>| Some(Array::new(&[1, 1, 2], v.clone()).unwrap());
        let turn = |interleaved| {
            let inputs = [Some(x.clone()), cache(&cos), cache(&sin)];
            let y = run("RotaryEmbedding", 23, &[int("interleaved", interleaved)], &inputs, 1).unwrap();
            y[0].slice::<f32>().unwrap().to_vec()
        };
        assert_eq!(turn(0), [-3.0, -4.0, 1.0, 2.0]);
        assert_eq!(turn(1), [-2.0, 1.0, -4.0, 3.0]);
    }

    #[test]
    fn a_cache_wraps_around() {
        let cache = Array::new(&[1, 3, 1], vec![1i64, 2, 3]).unwrap();
        let update = Array::new(&[1, 2, 1], vec![8i64, 9]).unwrap();
        let inputs = [cache, update, Array::vector(vec![2i64])].map(Some);
        let y = run("TensorScatter", 24, &[string("mode", "circular")], &inputs, 1).unwrap();
        assert_eq!(y[0].slice::<i64>().unwrap(), [9, 2, 8]);
        assert!(run("TensorScatter", 24, &[], &inputs, 1).is_err());
    }
}
