//! [Attention](https://onnx.ai/onnx/operators/onnx__Attention.html): `softmax(scale · Q·Kᵀ + mask) · V` for each head.
//!
//! Inputs have the heads as an axis of their own (rank 4) or side by side in the last one (rank 3). A cache of earlier
//! keys and values either comes as inputs of its own (`past_key`), before the new ones, or is the whole of K and V, of
//! which `nonpad_kv_seqlen` tells the valid length. The mask is a bias of `-inf` where a key must not be seen.

use std::sync::Arc;

use super::join::Concat;
use super::operand::rounded;
use super::slots::{known, optional, required};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, TensorType};
use crate::kernels::attention::{Bias, Heads, Probe, attend};

/// The operators of this family.
pub const OPS: &[OpDef] = &[OpDef { domain: ONNX, name: "Attention", since: 23, parse: Attention::parse }];

/// Scaled dot-product attention.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Factor of the products; the inverse root of the head size by default.
    pub scale: Option<f32>,
    /// Does a query see no later key?
    pub is_causal: bool,
    /// Heads of the queries, for inputs of rank 3.
    pub q_num_heads: Option<usize>,
    /// Heads of keys and values, for inputs of rank 3.
    pub kv_num_heads: Option<usize>,
    /// `x` becomes `softcap · tanh(x / softcap)`; 0: it stays.
    pub softcap: f32,
    /// Element type that the softmax is computed in.
    pub softmax_precision: Option<DType>,
    /// Which intermediate result the fourth output shows.
    pub probe: Probe,
    /// How many keys before and after its own position a query sees.
    pub window: (Option<usize>, Option<usize>),
}

impl Attention {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let mut count = |name: &str| {
            let value = attrs.opt_int(name)?;
            value.map(|v| usize::try_from(v).map_err(|_| Fault::new(format!("{name} is {v}")))).transpose()
        };
        let (q_num_heads, kv_num_heads) = (count("q_num_heads")?, count("kv_num_heads")?);
        let mut side = |name: &str| match attrs.int(name, -1)? {
            -1 => Ok(None),
            size => usize::try_from(size).map(Some).map_err(|_| Fault::new(format!("{name} is {size}"))),
        };
        let window = (side("left_window_size")?, side("right_window_size")?);
        let softmax_precision = match attrs.opt_int("softmax_precision")? {
            None | Some(0) => None,
            Some(code) => match i32::try_from(code).ok().and_then(DType::from_onnx) {
                Some(dtype) if dtype.is_float() => Some(dtype),
                _ => fail!("softmax_precision is {code}"),
            },
        };
        let mode = attrs.int("qk_matmul_output_mode", 0)?;
        Ok(Arc::new(Self {
            scale: attrs.opt_float("scale")?,
            is_causal: attrs.flag("is_causal", false)?,
            q_num_heads,
            kv_num_heads,
            softcap: attrs.float("softcap", 0.0)?,
            softmax_precision,
            probe: match mode {
                0 => Probe::Products,
                1 => Probe::Capped,
                2 => Probe::Biased,
                3 => Probe::Weights,
                other => fail!("qk_matmul_output_mode is {other}"),
            },
            window,
        }))
    }
}

/// Batch, heads, length and head size of an input; heads side by side become an axis of their own.
fn heads(x: &Array, count: Option<usize>) -> Result<Array, Fault> {
    match (x.shape(), count) {
        ([_, _, _, _], _) => Ok(x.clone()),
        (&[batch, length, width], Some(count)) if count > 0 && width % count == 0 => {
            x.reshaped(&[batch, length, count, width / count])?.transposed(&[0, 2, 1, 3])
        }
        (shape, count) => fail!("{shape:?} does not hold {} heads", count.unwrap_or(0)),
    }
}

fn append(past: Option<&Array>, new: Array) -> Result<Array, Fault> {
    let Some(past) = past else { return Ok(new) };
    let joined = Concat { axis: 2 }.float(&[Some(past.clone()), Some(new)])?;
    joined.into_iter().next().ok_or_else(|| "nothing was joined".into())
}

/// The mask as a bias: nothing where a key may be seen, `-inf` where it may not; short masks end in `-inf`.
fn bias(mask: &Array, keys: usize) -> Result<(Vec<f32>, Vec<usize>), Fault> {
    let values: Vec<f32> = match mask {
        Array::Bool(seen) => seen.iter().map(|&s| if s { 0.0 } else { f32::NEG_INFINITY }).collect(),
        other => other.to_f32()?.iter().copied().collect(),
    };
    let mut shape = mask.shape().to_vec();
    let Some(last) = shape.last_mut() else { fail!("the mask has no axes") };
    let width = std::mem::replace(last, keys);
    if width > keys || width == 0 {
        fail!("a mask for {width} of {keys} keys");
    }
    let missing = vec![f32::NEG_INFINITY; keys - width];
    Ok((values.chunks_exact(width).flat_map(|row| row.iter().chain(&missing)).copied().collect(), shape))
}

impl Op for Attention {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let like = |slot| known(inputs, slot).map(|ty| TensorType::unranked(ty.dtype));
        Ok(vec![like(0), like(1), like(2), like(0)])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (query, key, value) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let (past_key, past_value) = (optional(inputs, 4), optional(inputs, 5));
        let valid = optional(inputs, 6).map(Array::to_i64).transpose()?;
        let q = heads(query, self.q_num_heads)?;
        let k = append(past_key, heads(key, self.kv_num_heads)?)?;
        let v = append(past_value, heads(value, self.kv_num_heads)?)?;
        let sizes = Heads::new(q.shape(), k.shape(), v.shape())?;
        let past = past_key.map_or(Ok(0), |p| p.shape().get(2).copied().ok_or("past_key has no length"))?;
        let offsets: Vec<i64> = match (&valid, past_key) {
            (Some(valid), None) if valid.len() == sizes.batch => {
                valid.iter().map(|v| v.saturating_sub(sizes.queries as i64)).collect()
            }
            (Some(_), _) => fail!("nonpad_kv_seqlen needs one length for each sample, and no past_key"),
            (None, _) => vec![past as i64; sizes.batch],
        };
        let mask = optional(inputs, 3).map(|mask| bias(mask, sizes.keys)).transpose()?;
        let bias = Bias {
            mask: mask.as_ref().map(|(values, shape)| (values.as_slice(), shape.as_slice())),
            causal: self.is_causal,
            window: self.window,
            valid: valid.as_deref(),
            offsets: &offsets,
        };
        let dtype = query.dtype();
        let round = |dtype: DType| move |x: &mut [f32]| round_to(dtype, x);
        let precision = self.softmax_precision.unwrap_or(dtype);
        let scale = self.scale.map_or_else(|| 1.0 / (sizes.size as f64).sqrt(), f64::from).sqrt();
        let [q, k_all, v_all] = [&q, &k, &v].map(Array::to_f32);
        let (q, k_all, v_all) = (q?, k_all?, v_all?);
        let slice = |a| super::operand::elements(a);
        let (y, probe) = attend(
            &sizes,
            [slice(&q)?, slice(&k_all)?, slice(&v_all)?],
            (scale as f32, self.softcap),
            &bias,
            self.probe,
            (&round(dtype), &round(precision)),
        )?;
        let mut y = Array::new(&[sizes.batch, sizes.heads, sizes.queries, sizes.value_size], y)?;
        if query.rank() == 3 {
            let width = sizes.heads * sizes.value_size;
            y = y.transposed(&[0, 2, 1, 3])?.reshaped(&[sizes.batch, sizes.queries, width])?;
        }
        let probe = Array::new(&[sizes.batch, sizes.heads, sizes.queries, sizes.keys], probe)?;
        Ok(vec![rounded(y, dtype), k, v, rounded(probe, dtype)])
    }
}

/// Rounds to a 16-bit type, if it is one.
pub(super) fn round_to(dtype: DType, x: &mut [f32]) {
    match dtype {
        DType::F16 => x.iter_mut().for_each(|v| *v = half::f16::from_f32(*v).to_f32()),
        DType::BF16 => x.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32()),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
