//! GPTQ (Frantar et al. 2022, <https://arxiv.org/abs/2210.17323>): inputs are rounded one after the other, and what
//! rounding one of them changed at the outputs is made up for by those still to come, in proportion to how the samples
//! correlate them.
//!
//! With `H = Σ xᵀx` over the samples and `H⁻¹ = UᵀU`, `U` upper triangular, the error of input `i`, divided by `U[i][i]`
//! and times row `i` of `U`, is what the others take over. If `H` is factored from its last row to its first, `U` is
//! just the inverse of the factor: one Cholesky decomposition and one triangular inverse, in `f64`.

use rayon::prelude::*;

use super::blocked::{Algorithm, Chosen, nearest, scale_of};
use super::readers::{Role, readers};
use crate::calibrate::read::Samples;
use crate::error::Error;
use crate::interpret::Program;
use crate::ir::{Array, Graph, ValueId};
use crate::kernels::gemm::{Mat, MatMut, Size, gemm};
use crate::quantize::candidate::Filter;

/// What is added to the diagonal, as a share of its mean.
const DAMPING: f64 = 0.01;

/// Outputs that are solved together, side by side in vectors.
const SIDE_BY_SIDE: usize = 64;

/// Elements of all Gram matrices that one pass over the samples may fill.
const PASS: usize = 48 << 20;

/// The sum of `xᵀx` over all rows that reached a weight.
#[derive(Debug, Clone)]
pub struct Gram {
    /// Inputs × inputs.
    pub sums: Vec<f64>,
    /// Number of inputs.
    pub inputs: usize,
    /// Rows that were added.
    pub rows: usize,
}

impl Gram {
    fn new(inputs: usize) -> Self {
        Self { sums: vec![0.0; inputs * inputs], inputs, rows: 0 }
    }

    fn add(&mut self, x: &[f32], product: &mut Vec<f32>) {
        let (inputs, rows) = (self.inputs, x.len() / self.inputs.max(1));
        product.clear();
        product.resize(inputs * inputs, 0.0);
        let size = Size { m: inputs, n: inputs, k: rows };
        gemm(size, 1.0, Mat::transposed(x, inputs), Mat::rows(x, inputs), 0.0, MatMut::rows(product, inputs));
        self.sums.iter_mut().zip(&*product).for_each(|(s, p)| *s += f64::from(*p));
        self.rows += rows;
    }
}

/// The Gram matrices of the inputs of every weight of a product in the main graph.
pub fn grams(
    graph: &Graph,
    filter: &Filter,
    samples: &Samples,
    progress: &dyn Fn(usize, usize),
) -> Result<Vec<(ValueId, Gram)>, Error> {
    let mut wanted: Vec<(ValueId, ValueId, usize)> = Vec::new(); // weight, input, extent
    for &weight in &graph.constants {
        let Some(tensor) = super::is_large(graph, weight) else { continue };
        let readers = readers(graph, weight, filter);
        let input = |r: &super::readers::Reader| {
            let (id, slot) = r.place.filter(|_| matches!(r.role, Role::Weight(_)))?;
            let matrix = slot == 1 && (graph.node(id).is("MatMul") || graph.node(id).is("Gemm"));
            graph.input(id, 0).filter(|_| matrix && r.refused.is_none())
        };
        let (&[rows, columns], Some(input)) = (tensor.shape(), readers.iter().find_map(input)) else {
            continue;
        };
        let transposed = readers.iter().any(|r| {
            r.place.is_some_and(|(id, _)| {
                graph.node(id).op_as::<crate::ops::gemm::Gemm>().is_some_and(|g| g.trans_b)
            })
        });
        wanted.push((weight, input, if transposed { columns } else { rows }));
    }
    let program = Program::new(graph)?;
    let mut found = Vec::new();
    let mut product = Vec::new();
    let passes = in_passes(&wanted);
    for (pass, group) in passes.iter().enumerate() {
        let mut grams: std::collections::BTreeMap<ValueId, Gram> =
            group.iter().map(|&(_, input, extent)| (input, Gram::new(extent))).collect();
        for index in 0..samples.len() {
            let inputs = samples.load(index)?;
            program.run_as_far_as_possible(&inputs, &mut |id, array: &Array| {
                if let (Some(gram), Ok(x)) = (grams.get_mut(&id), array.slice::<f32>())
                    && array.shape().last() == Some(&gram.inputs)
                {
                    gram.add(x, &mut product);
                }
            })?;
            progress(pass * samples.len() + index + 1, passes.len() * samples.len());
        }
        let of = |&(weight, input, _): &(ValueId, ValueId, usize)| Some((weight, grams.get(&input)?.clone()));
        found.extend(group.iter().filter_map(of));
    }
    Ok(found)
}

/// Weights whose matrices fit into memory together.
fn in_passes(wanted: &[(ValueId, ValueId, usize)]) -> Vec<Vec<(ValueId, ValueId, usize)>> {
    let mut passes: Vec<Vec<_>> = Vec::new();
    let mut filled = PASS;
    for &entry in wanted {
        let size = entry.2 * entry.2;
        if filled + size > PASS {
            passes.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(last) = passes.last_mut() {
            last.push(entry);
        }
    }
    passes
}

/// The energy of what 4 bits change at the outputs, as a share of the outputs' own; without samples, of the weights.
pub fn loss(
    real: &[f32],
    chosen: &Chosen,
    [inputs, outputs]: [usize; 2],
    size: usize,
    gram: Option<&Gram>,
) -> f64 {
    let error: Vec<f32> = real.iter().enumerate().map(|(i, v)| v - chosen.value(i, outputs, size)).collect();
    let energy = |matrix: &[f32]| -> f64 {
        let Some(gram) = gram.filter(|g| g.inputs == inputs && g.rows > 0) else {
            return matrix.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        };
        let sums: Vec<f32> = gram.sums.iter().map(|&v| v as f32).collect();
        let mut product = vec![0f32; matrix.len()];
        let extents = Size { m: inputs, n: outputs, k: inputs };
        gemm(
            extents,
            1.0,
            Mat::rows(&sums, inputs),
            Mat::rows(matrix, outputs),
            0.0,
            MatMut::rows(&mut product, outputs),
        );
        product.iter().zip(matrix).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    energy(&error) / energy(real).max(f64::MIN_POSITIVE)
}

/// The integers by GPTQ; nothing if the samples say too little or the matrix cannot be factored.
pub fn solve(real: &[f32], [inputs, outputs]: [usize; 2], size: usize, gram: &Gram) -> Option<Chosen> {
    if gram.inputs != inputs || gram.rows < inputs {
        return None; // with fewer rows than inputs the matrix says nothing of some directions
    }
    let takeover = takeover(gram)?;
    let columns: Vec<usize> = (0..outputs).step_by(SIDE_BY_SIDE).collect();
    let solved: Vec<(usize, Vec<i8>, Vec<f32>)> = columns
        .into_par_iter()
        .map(|first| {
            let width = SIDE_BY_SIDE.min(outputs - first);
            let mut part: Vec<f32> =
                real.chunks(outputs).flat_map(|row| row[first..first + width].iter().copied()).collect();
            let (integers, scales) = columns_of(&mut part, width, size, &takeover, inputs);
            (first, integers, scales)
        })
        .collect();
    let blocks = inputs.div_ceil(size);
    let mut chosen = Chosen { integers: vec![0; inputs * outputs], scales: vec![0.0; blocks * outputs] };
    for (first, integers, scales) in solved {
        let width = SIDE_BY_SIDE.min(outputs - first);
        for (row, from) in chosen.integers.chunks_mut(outputs).zip(integers.chunks(width)) {
            row[first..first + width].copy_from_slice(from);
        }
        for (row, from) in chosen.scales.chunks_mut(outputs).zip(scales.chunks(width)) {
            row[first..first + width].copy_from_slice(from);
        }
    }
    Some(chosen)
}

/// A few outputs, all inputs one after the other. The matrix of inputs × outputs is used up.
fn columns_of(
    part: &mut [f32],
    width: usize,
    size: usize,
    takeover: &[f32],
    inputs: usize,
) -> (Vec<i8>, Vec<f32>) {
    let (mut integers, mut scales): (Vec<i8>, Vec<f32>) = (Vec::with_capacity(part.len()), Vec::new());
    let mut errors = vec![0f32; width];
    for i in 0..inputs {
        if i % size == 0 {
            let block = &part[i * width..(i + size).min(inputs) * width];
            for o in 0..width {
                let column: Vec<f32> = block.iter().skip(o).step_by(width).copied().collect();
                scales.push(scale_of(&column, Algorithm::Mse));
            }
        }
        let scales = &scales[i / size * width..][..width];
        let pivot = takeover[i * inputs + i];
        let (done, rest) = part.split_at_mut((i + 1) * width);
        let row = &done[i * width..];
        for ((error, &w), &scale) in errors.iter_mut().zip(row).zip(scales) {
            let q = nearest(w, scale);
            integers.push(q);
            *error = (w - f32::from(q) * scale) / pivot;
        }
        for (row, &factor) in rest.chunks_mut(width).zip(&takeover[i * inputs + i + 1..(i + 1) * inputs]) {
            row.iter_mut().zip(&errors).for_each(|(w, e)| *w -= factor * e);
        }
    }
    (integers, scales)
}

/// The upper triangular `U` with `UᵀU` the inverse of the damped Gram matrix.
fn takeover(gram: &Gram) -> Option<Vec<f32>> {
    let n = gram.inputs;
    let mean = (0..n).map(|i| gram.sums[i * n + i]).sum::<f64>() / n.max(1) as f64;
    // Rows and columns from the last to the first: then the lower factor, turned back, is an upper one.
    let mut factor: Vec<f64> = gram.sums.iter().rev().copied().collect();
    for i in 0..n {
        let diagonal = &mut factor[i * n + i];
        *diagonal = if *diagonal == 0.0 { 1.0 } else { *diagonal } + DAMPING * mean;
    }
    cholesky(&mut factor, n)?;
    let inverse = invert_lower(&factor, n);
    Some(inverse.iter().rev().map(|&v| v as f32).collect())
}

/// The lower Cholesky factor, in place; what lies above the diagonal becomes 0.
fn cholesky(a: &mut [f64], n: usize) -> Option<()> {
    for i in 0..n {
        let (above, own) = a.split_at_mut(i * n);
        for j in 0..i {
            let other = &above[j * n..];
            let sum = own[j] - dot(&own[..j], &other[..j]);
            own[j] = sum / other[j];
        }
        let rest = own[i] - dot(&own[..i], &own[..i]);
        if rest.is_nan() || rest <= 0.0 {
            return None;
        }
        own[i] = libm::sqrt(rest);
        own[i + 1..n].fill(0.0);
    }
    Some(())
}

/// Eight sums side by side, so that they become vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        sums.iter_mut().zip(x.iter().zip(y)).for_each(|(s, (x, y))| *s += x * y);
    }
    sums.iter().sum::<f64>() + tail
}

/// The inverse of a lower triangular matrix.
fn invert_lower(l: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0f64; n * n];
    for i in 0..n {
        let (above, own) = inverse.split_at_mut(i * n);
        let own = &mut own[..n];
        for (k, &factor) in l[i * n..i * n + i].iter().enumerate() {
            let row = &above[k * n..k * n + k + 1];
            own.iter_mut().zip(row).for_each(|(o, r)| *o -= factor * r);
        }
        own[i] = 1.0;
        own[..=i].iter_mut().for_each(|v| *v /= l[i * n + i]);
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantize::weight_only::blocked::rounded;

    fn noise(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Inputs that hang together: each is half the one before it.
    fn correlated(rows: usize, inputs: usize) -> Vec<f32> {
        let mut x = noise(3, rows * inputs);
        for row in x.chunks_mut(inputs) {
            for i in 1..inputs {
                row[i] = 0.8 * row[i - 1] + 0.3 * row[i];
            }
        }
        x
    }

    #[test]
    fn the_factor_of_the_inverse() {
        let n = 24;
        let mut gram = Gram::new(n);
        gram.add(&correlated(200, n), &mut Vec::new());
        let u: Vec<f64> = takeover(&gram).unwrap().iter().map(|&v| f64::from(v)).collect();
        let mean = (0..n).map(|i| gram.sums[i * n + i]).sum::<f64>() / n as f64;
        // H · UᵀU is the identity.
        for i in 0..n {
            for j in 0..n {
                let inverse = |k: usize| (0..n).map(|m| u[m * n + k] * u[m * n + j]).sum::<f64>();
                let damped = |k: usize| gram.sums[i * n + k] + if i == k { DAMPING * mean } else { 0.0 };
                let product: f64 = (0..n).map(|k| damped(k) * inverse(k)).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((product - expected).abs() < 1e-3, "{i} {j}: {product}");
                assert!(i <= j || u[i * n + j] == 0.0);
            }
        }
    }

    #[test]
    fn outputs_come_closer_than_by_rounding() {
        let (inputs, outputs, rows) = (64, 16, 400);
        let x = correlated(rows, inputs);
        let w = noise(5, inputs * outputs);
        let mut gram = Gram::new(inputs);
        gram.add(&x, &mut Vec::new());
        let error = |chosen: &Chosen| {
            let mut sum = 0.0;
            for row in x.chunks(inputs) {
                for o in 0..outputs {
                    let at = |i: usize| w[i * outputs + o] - chosen.value(i * outputs + o, outputs, 32);
                    let e: f32 = row.iter().enumerate().map(|(i, v)| v * at(i)).sum();
                    sum += e * e;
                }
            }
            sum
        };
        let solved = solve(&w, [inputs, outputs], 32, &gram).unwrap();
        let rounded = rounded(&w, outputs, 32, Algorithm::Mse);
        assert!(error(&solved) < 0.5 * error(&rounded), "{} {}", error(&solved), error(&rounded));
    }

    #[test]
    fn too_few_rows_are_no_basis() {
        let mut gram = Gram::new(64);
        gram.add(&correlated(10, 64), &mut Vec::new());
        assert!(solve(&noise(1, 64 * 4), [64, 4], 32, &gram).is_none());
    }
}
