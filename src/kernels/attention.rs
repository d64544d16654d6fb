//! Attention, head by head: products of queries and keys, their bias and softmax, and the values weighted by it.

use super::gemm::{Mat, MatMut, Size, gemm};
use super::math;
use super::real::Real;
use crate::error::Fault;
use crate::fail;

/// The extents of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Samples.
    pub batch: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, each shared by as many heads of the queries.
    pub kv_heads: usize,
    /// Positions of the queries.
    pub queries: usize,
    /// Positions of keys and values.
    pub keys: usize,
    /// Numbers in a query or key.
    pub size: usize,
    /// Numbers in a value.
    pub value_size: usize,
}

impl Heads {
    /// The extents of tensors of these shapes: batch, heads, length, size.
    pub fn new(q: &[usize], k: &[usize], v: &[usize]) -> Result<Self, Fault> {
        match (q, k, v) {
            (&[batch, heads, queries, size], &[b, kv_heads, keys, s], &[c, h, l, value_size])
                if (b, c, s, h, l) == (batch, batch, size, kv_heads, keys)
                    && kv_heads > 0
                    && heads % kv_heads == 0 =>
            {
                Ok(Self { batch, heads, kv_heads, queries, keys, size, value_size })
            }
            _ => fail!("Q {q:?}, K {k:?} and V {v:?} do not fit each other"),
        }
    }
}

/// Which intermediate result is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// The scaled products.
    Products,
    /// The products after the soft cap.
    Capped,
    /// Those plus the bias.
    Biased,
    /// The softmax.
    Weights,
}

/// What is added to the products: `-inf` where a query must not see a key.
#[derive(Debug, Clone, Copy)]
pub struct Bias<'a> {
    /// A bias that broadcasts to batch, heads, queries and keys, and its shape.
    pub mask: Option<(&'a [f32], &'a [usize])>,
    /// Does a query see no later key?
    pub causal: bool,
    /// How many keys before and after its own position a query sees.
    pub window: (Option<usize>, Option<usize>),
    /// How many of the keys of each sample are there.
    pub valid: Option<&'a [i64]>,
    /// The position of the first query of each sample among the keys.
    pub offsets: &'a [i64],
}

impl Bias<'_> {
    /// The distance between neighbours along each axis of the mask, 0 where it is repeated.
    fn strides(&self, heads: &Heads) -> Result<[usize; 4], Fault> {
        let Some((values, shape)) = self.mask else { return Ok([0; 4]) };
        let full = [heads.batch, heads.heads, heads.queries, heads.keys];
        let Some(skip) = 4usize.checked_sub(shape.len()) else { fail!("the mask has the shape {shape:?}") };
        let mut strides = [0; 4];
        let mut step = 1;
        for (axis, &extent) in shape.iter().enumerate().rev() {
            if extent != 1 {
                if extent != full[skip + axis] {
                    fail!("the mask {shape:?} does not broadcast to {full:?}");
                }
                strides[skip + axis] = step;
            }
            step *= extent;
        }
        if step != values.len() {
            fail!("the mask has {} elements for the shape {shape:?}", values.len());
        }
        Ok(strides)
    }

    /// Writes the bias of one query for all keys.
    fn row(&self, strides: [usize; 4], [batch, head, query]: [usize; 3], row: &mut [f32]) {
        let start = batch * strides[0] + head * strides[1] + query * strides[2];
        let own = query as i64 + self.offsets.get(batch).copied().unwrap_or(0);
        let valid = self.valid.and_then(|v| v.get(batch).copied()).unwrap_or(i64::MAX);
        for (key, bias) in row.iter_mut().enumerate() {
            let given = self.mask.and_then(|(values, _)| values.get(start + key * strides[3]).copied());
            let distance = own - key as i64;
            let hidden = (self.causal && distance < 0)
                || self.window.0.is_some_and(|left| distance > left as i64)
                || self.window.1.is_some_and(|right| -distance > right as i64)
                || key as i64 >= valid;
            *bias = if hidden { f32::NEG_INFINITY } else { given.unwrap_or(0.0) };
        }
    }
}

/// Rounds numbers to the type that a step is computed in.
pub type Round<'a> = &'a dyn Fn(&mut [f32]);

/// The weighted values and the intermediate result asked for. Both factors of a product are scaled by `scale`. A query
/// that sees no key gets zeros. `rounds` are those of the operands and of the softmax.
pub fn attend(
    heads: &Heads,
    [q, k, v]: [&[f32]; 3],
    (scale, softcap): (f32, f32),
    bias: &Bias,
    probe: Probe,
    (round, round_weights): (Round, Round),
) -> Result<(Vec<f32>, Vec<f32>), Fault> {
    let &Heads { queries, keys, size, value_size, .. } = heads;
    let strides = bias.strides(heads)?;
    let mut factor = [scale];
    round(&mut factor);
    let scaled = |x: &[f32]| {
        let mut y: Vec<f32> = x.iter().map(|v| v * factor[0]).collect();
        round(&mut y);
        y
    };
    let (q, k) = (scaled(q), scaled(k));
    let group = heads.heads / heads.kv_heads;
    let mut output = vec![0.0; heads.batch * heads.heads * queries * value_size];
    let mut shown = vec![0.0; heads.batch * heads.heads * queries * keys];
    let mut biases = vec![0.0; queries * keys];
    for index in 0..heads.batch * heads.heads {
        let (batch, head) = (index / heads.heads, index % heads.heads);
        let source = batch * heads.kv_heads + head / group;
        let part = |x: &[f32], i: usize, len: usize| x.get(i * len..(i + 1) * len).map(<[f32]>::to_vec);
        let (Some(q), Some(k), Some(v)) = (
            part(&q, index, queries * size),
            part(&k, source, keys * size),
            part(v, source, keys * value_size),
        ) else {
            fail!("Q, K or V is too short");
        };
        let mut scores = vec![0.0; queries * keys];
        let extents = Size { m: queries, n: keys, k: size };
        gemm(
            extents,
            1.0,
            Mat::rows(&q, size),
            Mat::transposed(&k, size),
            0.0,
            MatMut::rows(&mut scores, keys),
        );
        round(&mut scores);
        let shown = shown.get_mut(index * queries * keys..(index + 1) * queries * keys).unwrap_or_default();
        let mut show = |at: Probe, scores: &[f32]| {
            if probe == at {
                shown.copy_from_slice(scores);
            }
        };
        show(Probe::Products, &scores);
        if softcap > 0.0 {
            scores.iter_mut().for_each(|x| *x = math::tanh(*x / softcap) * softcap);
            round(&mut scores);
        }
        show(Probe::Capped, &scores);
        for (query, row) in biases.chunks_exact_mut(keys.max(1)).enumerate() {
            bias.row(strides, [batch, head, query], row);
        }
        scores.iter_mut().zip(&biases).for_each(|(x, b)| *x += b);
        round(&mut scores);
        show(Probe::Biased, &scores);
        weigh(&mut scores, &biases, keys, round_weights);
        show(Probe::Weights, &scores);
        round(&mut scores);
        let target = output.get_mut(index * queries * value_size..(index + 1) * queries * value_size);
        let extents = Size { m: queries, n: value_size, k: keys };
        let rows = MatMut::rows(target.unwrap_or_default(), value_size);
        gemm(extents, 1.0, Mat::rows(&scores, keys), Mat::rows(&v, value_size), 0.0, rows);
    }
    Ok((output, shown))
}

/// The softmax of each row, every step of it rounded; zeros where the bias hides every key or every score is `-inf`.
fn weigh(scores: &mut [f32], biases: &[f32], keys: usize, round: Round) {
    round(scores);
    let hidden = |row: &[f32]| row.iter().all(|&v| v == f32::NEG_INFINITY);
    for (row, bias) in scores.chunks_exact_mut(keys.max(1)).zip(biases.chunks_exact(keys.max(1))) {
        if hidden(bias) || hidden(row) {
            row.fill(0.0);
        } else {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, Real::maximum);
            row.iter_mut().for_each(|x| *x -= greatest);
            round(row);
            math::exp_slice(row);
            round(row);
            let mut sum = [row.iter().sum::<f32>()];
            round(&mut sum);
            row.iter_mut().for_each(|x| *x /= sum[0]);
            round(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Straight from the definition, in `f64`.
    fn naive(
        h: &Heads,
        [q, k, v]: [&[f32]; 3],
        scale: f64,
        seen: impl Fn(usize, usize, usize) -> bool,
    ) -> Vec<f64> {
        let mut y = Vec::new();
        for b in 0..h.batch {
            for head in 0..h.heads {
                let kv = b * h.kv_heads + head / (h.heads / h.kv_heads);
                for i in 0..h.queries {
                    let at = ((b * h.heads + head) * h.queries + i) * h.size;
                    let weight = |j: usize| {
                        let dot: f64 = (0..h.size)
                            .map(|d| f64::from(q[at + d]) * f64::from(k[(kv * h.keys + j) * h.size + d]))
                            .sum();
                        if seen(b, i, j) { libm::exp(dot * scale) } else { 0.0 }
                    };
                    let total: f64 = (0..h.keys).map(weight).sum();
                    for d in 0..h.value_size {
                        let value = |j: usize| f64::from(v[(kv * h.keys + j) * h.value_size + d]);
                        let sum: f64 = (0..h.keys).map(|j| weight(j) * value(j)).sum();
                        y.push(if total > 0.0 { sum / total } else { 0.0 });
                    }
                }
            }
        }
        y
    }

    proptest! {
        #[test]
        fn the_definition(
            (batch, kv_heads, group) in (1usize..3, 1usize..3, 1usize..4),
            (queries, keys, size, value_size) in (1usize..6, 1usize..9, 1usize..9, 1usize..9),
            (causal, left, right) in (any::<bool>(), prop::option::of(0usize..4), prop::option::of(0usize..4)),
            (offset, scale, seed) in (-2i64..5, 0.1f32..1.5, 0usize..99),
            valid in prop::option::of(prop::collection::vec(0i64..9, 2)),
        ) {
            let heads = kv_heads * group;
            let of = |heads: usize, length: usize, size: usize| [batch, heads, length, size];
            let (q_shape, k_shape) = (of(heads, queries, size), of(kv_heads, keys, size));
            let h = Heads::new(&q_shape, &k_shape, &of(kv_heads, keys, value_size)).unwrap();
            let numbers = |n: usize, seed: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * 31 + seed * 17) % 29) as f32 / 14.0 - 1.0).collect()
            };
            let q = numbers(q_shape.iter().product(), seed);
            let k = numbers(k_shape.iter().product(), seed + 1);
            let v = numbers(batch * kv_heads * keys * value_size, seed + 2);
            let offsets = vec![offset; batch];
            let bias = Bias { mask: None, causal, window: (left, right), valid: valid.as_deref(), offsets: &offsets };
            let exact: Round = &|_| {};
            let all = [q.as_slice(), &k, &v];
            let (y, _) = attend(&h, all, (scale.sqrt(), 0.0), &bias, Probe::Products, (exact, exact)).unwrap();
            let seen = |b: usize, i: usize, j: usize| {
                let distance = i as i64 + offset - j as i64;
                !(causal && distance < 0
                    || left.is_some_and(|l| distance > l as i64)
                    || right.is_some_and(|r| -distance > r as i64)
                    || valid.as_ref().is_some_and(|v| j as i64 >= v[b]))
            };
            for (a, b) in y.iter().zip(naive(&h, all, scale.into(), seen)) {
                prop_assert!((f64::from(*a) - b).abs() < 2e-5, "{} instead of {}", a, b);
            }
        }
    }
}
