//! The gradients of matrix products: `∂A = ∂Y·Bᵀ` and `∂B = Aᵀ·∂Y`, summed over the axes that were broadcast.

use super::{Gemm, MatMul};
use crate::error::Fault;
use crate::ir::{Array, Gradient, Run};
use crate::kernels::gemm::{Mat, MatMut, Number, Size, gemm};
use crate::ops::gradient::{Gradients, in_floats, unbroadcast};
use crate::ops::operand::Real;

/// One product into a new matrix.
fn product<T: Real + Number>(size: Size, factor: T, a: Mat<T>, b: Mat<T>) -> Vec<T> {
    let mut c = vec![T::ZERO; size.m * size.n];
    gemm(size, factor, a, b, T::ZERO, MatMut::rows(&mut c, size.n));
    c
}

/// The transpose of a view.
fn turned<T>(m: Mat<T>) -> Mat<T> {
    Mat { data: m.data, row: m.col, col: m.row }
}

impl Gemm {
    fn back<T: Real + Number>(&self, run: &Run) -> Gradients {
        let (a, b, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let (&[a0, a1], &[b0, b1], &[m, n]) = (a.shape(), b.shape(), dy.shape()) else {
            return Err("A, B or Y is no matrix".into());
        };
        let k = if self.trans_a { a0 } else { a1 };
        let (alpha, beta) = (T::of(self.alpha.into()), T::of(self.beta.into()));
        let (av, bv, dv) = (a.slice::<T>()?, b.slice::<T>()?, dy.slice::<T>()?);
        let av = if self.trans_a { Mat::transposed(av, m) } else { Mat::rows(av, k) };
        let bv = if self.trans_b { Mat::transposed(bv, k) } else { Mat::rows(bv, n) };
        let d = Mat::rows(dv, n);
        let da = |run: &Run| match (run.wants(0), self.trans_a) {
            (false, _) => Ok(None),
            (_, false) => T::array(&[a0, a1], product(Size { m, n: k, k: n }, alpha, d, turned(bv))).map(Some),
            (_, true) => T::array(&[a0, a1], product(Size { m: k, n: m, k: n }, alpha, bv, turned(d))).map(Some),
        };
        let db = |run: &Run| match (run.wants(1), self.trans_b) {
            (false, _) => Ok(None),
            (_, false) => T::array(&[b0, b1], product(Size { m: k, n, k: m }, alpha, turned(av), d)).map(Some),
            (_, true) => T::array(&[b0, b1], product(Size { m: n, n: k, k: m }, alpha, turned(d), av)).map(Some),
        };
        let dc = |run: &Run| match run.inputs.get(2) {
            Some(Some(c)) if run.wants(2) => {
                let scaled = dv.iter().map(|&v| v * beta).collect();
                unbroadcast((dy.shape(), scaled), c.shape()).map(Some)
            }
            _ => Ok(None),
        };
        Ok(vec![da(run)?, db(run)?, dc(run)?])
    }
}

impl Gradient for Gemm {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}

/// The last two axes swapped.
fn swapped(array: &Array) -> Result<Array, Fault> {
    let rank = array.rank();
    let mut order: Vec<usize> = (0..rank).collect();
    order.swap(rank - 2, rank - 1);
    array.transposed(&order)
}

fn matmul<T: Real + Number>(a: &Array, b: &Array, to: &[usize]) -> Result<Array, Fault> {
    let (values, shape) = MatMul::compute((a.slice::<T>()?, a.shape()), (b.slice::<T>()?, b.shape()))?;
    unbroadcast((&shape, values), to)
}

impl MatMul {
    fn back<T: Real + Number>(run: &Run) -> Gradients {
        let (a, b, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        // Vectors become matrices of one row or one column.
        let wide = |x: &Array, row: bool| match x.shape() {
            &[n] => x.reshaped(&if row { [1, n] } else { [n, 1] }),
            _ => Ok(x.clone()),
        };
        let (wa, wb) = (wide(a, true)?, wide(b, false)?);
        let ([.., k], [.., n]) = (wa.shape(), wb.shape()) else { return Err("A or B is a scalar".into()) };
        let (k, n) = (*k, *n);
        let mut shape = dy.shape().to_vec();
        if b.rank() == 1 {
            shape.push(1);
        }
        if a.rank() == 1 {
            shape.insert(shape.len() - 1, 1);
        }
        let dy = dy.reshaped(&shape)?;
        let (mut da, mut db) = (None, None);
        if run.wants(0) {
            da = Some(matmul::<T>(&dy, &swapped(&wb)?, wa.shape())?.reshaped(a.shape())?);
        }
        let shared = wb.len() == k * n && wa.len() * n == dy.len() * k;
        if run.wants(1) && shared {
            let size = Size { m: k, n, k: dy.len() / n.max(1) };
            let (av, dv) = (wa.slice::<T>()?, dy.slice::<T>()?);
            let values = product(size, T::of(1.0), Mat::transposed(av, k), Mat::rows(dv, n));
            db = Some(T::array(b.shape(), values)?);
        } else if run.wants(1) {
            db = Some(matmul::<T>(&swapped(&wa)?, &dy, wb.shape())?.reshaped(b.shape())?);
        }
        Ok(vec![da, db])
    }
}

impl Gradient for MatMul {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => Self::back::<T>(run))
    }
}
