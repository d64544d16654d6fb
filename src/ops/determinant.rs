//! [Det](https://onnx.ai/onnx/operators/onnx__Det.html): determinants, by elimination with the greatest pivots.

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::slots::{known, required};
use super::{Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, TensorType};

/// The operators of this family.
pub const OPS: &[OpDef] = &[OpDef { domain: ONNX, name: "Det", since: 11, parse: |_| Ok(Arc::new(Det)) }];

/// The determinant of each matrix of the last two axes.
#[derive(Debug)]
pub struct Det;

/// The determinant of a matrix of `n` rows, which is used up.
fn determinant(m: &mut [f64], n: usize) -> f64 {
    let mut product = 1.0;
    for k in 0..n {
        let pivot = (k..n).fold(k, |best, row| if m[row * n + k].abs() > m[best * n + k].abs() { row } else { best });
        if pivot != k {
            (0..n).for_each(|column| m.swap(pivot * n + column, k * n + column));
            product = -product;
        }
        product *= m[k * n + k];
        if product == 0.0 || product.is_nan() {
            return product;
        }
        for row in k + 1..n {
            let factor = m[row * n + k] / m[k * n + k];
            (k..n).for_each(|column| m[row * n + column] -= factor * m[k * n + column]);
        }
    }
    product
}

impl Det {
    fn run<T: Real>(x: &Array) -> Result<Vec<Array>, Fault> {
        let &[ref batch @ .., rows, columns] = x.shape() else { fail!("{:?} holds no matrices", x.shape()) };
        if rows != columns {
            fail!("a matrix of {rows} × {columns} has no determinant");
        }
        let values = T::read(x)?;
        let size = rows * rows;
        let one = |index: usize| -> Result<T, Fault> {
            let mut matrix: Vec<f64> = elements(&values)?[index * size..][..size].iter().map(|&v| v.into()).collect();
            Ok(T::of(determinant(&mut matrix, rows)))
        };
        let y = (0..batch.iter().product()).map(one).collect::<Result<Vec<T>, Fault>>()?;
        Ok(vec![T::array(batch, y)?])
    }
}

impl Op for Det {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = x.dims.as_ref().map(|d| d.iter().take(d.len().saturating_sub(2)).cloned().collect());
        Ok(vec![Some(TensorType { dtype: x.dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        in_reals!(x.dtype(), T => Self::run::<T>(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("determinant");
    }

    /// By expansion along the first row.
    fn naive(m: &[f64], n: usize) -> f64 {
        if n == 0 {
            return 1.0;
        }
        (0..n)
            .map(|c| {
                let minor: Vec<f64> =
                    (1..n).flat_map(|r| (0..n).filter(move |&k| k != c).map(move |k| m[r * n + k])).collect();
                let sign = if c % 2 == 0 { 1.0 } else { -1.0 };
                sign * m[c] * naive(&minor, n - 1)
            })
            .sum()
    }

    #[test]
    fn the_expansion() {
        for n in 0..6usize {
            let matrix: Vec<f64> = (0..n * n).map(|i| ((i * i * 7 + 3 * i) % 11) as f64 - 5.0).collect();
            let expected = naive(&matrix, n);
            assert!((determinant(&mut matrix.clone(), n) - expected).abs() < 1e-9 * expected.abs().max(1.0));
        }
    }
}
