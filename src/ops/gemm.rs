//! Matrix products: [Gemm](https://onnx.ai/onnx/operators/onnx__Gemm.html) and
//! [MatMul](https://onnx.ai/onnx/operators/onnx__MatMul.html).

mod batches;
mod gradient;

use std::sync::Arc;

pub(super) use self::batches::Batches;
use super::operand::{added, elements};
use super::ready::Ready;
use super::slots::{known, optional, required};
use super::{Attrs, Fact, ONNX, Op, OpDef, Rule, Runtime, integer, Gradient};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{After, Array, Dim, Element, Extent, Limits, Nd, TensorType, element_count};
use crate::kernels::finish::Finish;
use crate::kernels::gemm::{Mat, MatMut, Number, Parts, Size, contract, gemm_in_parts};
use crate::kernels::product::{Ending, Panels, Product, Start};
use crate::kernels::simd::Isa;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Gemm", since: 1, parse: |attrs| Ok(Arc::new(Gemm::read(attrs)?)) },
    OpDef { domain: ONNX, name: "MatMul", since: 1, parse: |_| Ok(Arc::new(MatMul::default())) },
];

/// A type in which sums of products are computed: every number type but the 16-bit floating-point ones, which go
/// through `f32`.
pub(super) trait Summed: Number + Element {
    /// The elements of an array in this type.
    fn read(array: &Array) -> Result<Nd<Self>, Fault> {
        array.typed::<Self>().cloned()
    }

    /// The value nearest to a coefficient.
    fn coefficient(value: f32) -> Self;
}

macro_rules! summed {
    ($($t:ty),*) => { $(impl Summed for $t {
        fn coefficient(value: f32) -> Self { value as Self }
    })* };
}

summed!(f64, i32, i64, u32, u64);

impl Summed for f32 {
    fn read(array: &Array) -> Result<Nd<f32>, Fault> {
        array.to_f32()
    }

    fn coefficient(value: f32) -> f32 {
        value
    }
}

/// Evaluates `$body` (a `Result<Array, Fault>`) with `$T` as the type in which elements of `$dtype` are summed, and
/// rounds the result back to it.
macro_rules! in_sums {
    ($dtype:expr, $T:ident => $body:expr) => {{
        let dtype: crate::ir::DType = $dtype;
        let result: Result<crate::ir::Array, crate::error::Fault> =
            crate::ops::gemm::in_sums!(@ dtype, $T, $body, F32 F16 BF16 = f32; F64 = f64; I32 = i32; I64 = i64; U32 = u32; U64 = u64;);
        result.map(|y| vec![crate::ops::operand::rounded(y, dtype)])
    }};
    (@ $dtype:ident, $T:ident, $body:expr, $($($variant:ident)* = $rust:ty;)*) => {
        match $dtype {
            $($(crate::ir::DType::$variant)|* => {
                type $T = $rust;
                $body
            })*
            other => Err(crate::error::Fault::unimplemented(format_args!("sums of products of {other}"))),
        }
    };
}
pub(super) use in_sums;

/// `Y = alpha · A′ · B′ + beta · C`, where a prime may transpose and `C` is broadcast.
#[derive(Debug, Clone)]
pub struct Gemm {
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of `C`.
    pub beta: f32,
    /// `A` is given transposed.
    pub trans_a: bool,
    /// `B` is given transposed.
    pub trans_b: bool,
    /// How its sums are made.
    pub right: Right,
    /// The right matrix if it is a constant.
    ready: Option<Arc<Ready>>,
}

/// What is known of the right matrix of a product, on which the parts of sums depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Right {
    /// It is a weight, laid out ahead of the run if it has two dimensions.
    #[default]
    Weight,
    /// It is computed.
    Computed,
}

impl Right {
    fn of(runtime: &Runtime) -> Self {
        if runtime.ahead(1).is_some() { Self::Weight } else { Self::Computed }
    }
}

impl Default for Gemm {
    /// `Y = A · B + C`.
    fn default() -> Self {
        Self { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: false, right: Right::Weight, ready: None }
    }
}

impl Gemm {
    fn read(attrs: &mut Attrs) -> Result<Self, Fault> {
        // Before opset 7, `broadcast` allowed C to be broadcast; broadcasting an equal shape changes nothing.
        attrs.int("broadcast", 0)?;
        Ok(Self {
            alpha: attrs.float("alpha", 1.0)?,
            beta: attrs.float("beta", 1.0)?,
            trans_a: attrs.flag("transA", false)?,
            trans_b: attrs.flag("transB", false)?,
            ..Self::default()
        })
    }

    fn size(&self, a: &[usize], b: &[usize]) -> Result<Size, Fault> {
        let (&[a0, a1], &[b0, b1]) = (a, b) else {
            fail!("A has the shape {a:?} and B {b:?}, not two dimensions each");
        };
        let (m, k) = if self.trans_a { (a1, a0) } else { (a0, a1) };
        let (other, n) = if self.trans_b { (b1, b0) } else { (b0, b1) };
        if k != other {
            fail!("A has {k} columns, B {other} rows");
        }
        Ok(Size { m, n, k })
    }

    fn matrices<'a, T>(&self, Size { m, n, k }: Size, a: &'a [T], b: &'a [T]) -> (Mat<'a, T>, Mat<'a, T>) {
        let a = if self.trans_a { Mat::transposed(a, m) } else { Mat::rows(a, k) };
        (a, if self.trans_b { Mat::transposed(b, k) } else { Mat::rows(b, n) })
    }

    /// The parts of sums of products.
    fn parts(&self, size: Size) -> Parts {
        match self.right {
            Right::Weight => Parts::CONSTANT,
            // A matrix that is turned over on the way comes in narrow parts, however few columns there are.
            Right::Computed if self.trans_a && size.n > 1 => Parts::each(128),
            Right::Computed => Parts::of(size),
        }
    }

    fn compute<T: Summed>(
        &self,
        a: &Array,
        b: &Array,
        c: Option<&Array>,
    ) -> Result<(Vec<T>, [usize; 2]), Fault> {
        let size @ Size { m, n, .. } = self.size(a.shape(), b.shape())?;
        let zero = T::default();
        let (alpha, beta) = (T::coefficient(self.alpha), T::coefficient(self.beta));
        let mut y = vec![zero; element_count(&[m, n])?];
        if let Some(c) = c.filter(|_| beta != zero) {
            let c = T::read(c)?;
            let c = c.broadcast([m, n]).ok_or_else(|| format!("C {:?} does not fit {m}×{n}", c.shape()))?;
            y.iter_mut().zip(c.iter()).for_each(|(y, &c)| *y = beta.times(c));
        }
        let (a, b) = (T::read(a)?, T::read(b)?);
        let (a, b) = self.matrices(size, elements(&a)?, elements(&b)?);
        gemm_in_parts(size, (alpha, T::ONE), a, b, MatMut::rows(&mut y, n), self.parts(size));
        Ok((y, [m, n]))
    }
}

impl Op for Gemm {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let (a, b) = (known(inputs, 0), known(inputs, 1));
        let Some(dtype) = a.or(b).map(|t| t.dtype) else { return Ok(vec![None]) };
        let sides = |ty: Option<&TensorType>, swap: bool| match ty.and_then(|t| t.dims.as_deref()) {
            None => Ok((Dim::Unknown, Dim::Unknown)),
            Some([rows, columns]) if swap => Ok((columns.clone(), rows.clone())),
            Some([rows, columns]) => Ok((rows.clone(), columns.clone())),
            Some(other) => Err(Fault::new(format!("a matrix with {} dimensions", other.len()))),
        };
        let ((m, k), (other, n)) = (sides(a, self.trans_a)?, sides(b, self.trans_b)?);
        same_length(&k, &other)?;
        Ok(vec![Some(TensorType::new(dtype, vec![m, n]))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        in_sums!(a.dtype(), T => {
            let (y, shape) = self.compute::<T>(a, b, optional(inputs, 2))?;
            Array::new(&shape, y)
        })
    }

    fn with_constants(&self, constants: &[Option<&Array>]) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Self { ready: Some(Ready::of(*constants.get(1)?, 2)?), ..self.clone() }))
    }

    fn finishes(&self) -> bool {
        true
    }

    fn finished(&self, inputs: &[Option<Array>], after: After) -> Option<Result<(Array, Extent), Fault>> {
        let real = |slot| optional(inputs, slot).map(|a| Some((a.get::<f32>()?.as_slice()?, a.shape())));
        let (a, b, c) = (real(0)??, real(1)??, real(2));
        let compute = |size: Size, parts: Parts, start: Start, added| {
            let mut y = f32::result(element_count(&[size.m, size.n])?);
            let (a, b) = self.matrices(size, a.0, b.0);
            let mut finish = Finish::new(after.limits);
            let end = Some(Ending { bias: None, added, finish: &mut finish });
            let (alpha, c) = (self.alpha, MatMut::rows(&mut y, size.n));
            let ready = self.ready.as_ref().filter(|_| Panels::pay(&b, size));
            let panels = || Panels::of(b, (size.k, size.n), parts);
            let panels = ready.and_then(|ready| ready.panels(b.data, panels));
            Product { size, alpha, a, b, start, c, parts, end, panels }.compute(Isa::detect());
            Ok((Array::new(&[size.m, size.n], y)?, finish.extent()))
        };
        // What does not fit is told by whoever computes it in the other form.
        let size = self.size(a.1, b.1).ok()?;
        let parts = Some(self.parts(size)).filter(|parts| !parts.line)?;
        let start = match c {
            None => Start::Nothing,
            Some(c) => match c? {
                (row, [1, n] | [n]) if *n == size.n && self.beta == 1.0 => Start::Row(row),
                _ => return None,
            },
        };
        let added = match after.added {
            Some(array) => Some(added(array, &[size.m, size.n], size.n)?),
            None => None,
        };
        Some(compute(size, parts, start, added))
    }

    fn in_runtime(&self, runtime: &Runtime) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Self { right: Right::of(runtime), ..self.clone() }))
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        integer::product::gemm(self, unit)
    }

    fn rule(&self) -> Rule {
        Rule::Contraction { weight: 1, channel_axis: Some(usize::from(!self.trans_b)), bias: Some(2) }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

fn same_length(k: &Dim, other: &Dim) -> Result<(), Fault> {
    match (k.known(), other.known()) {
        (Some(k), Some(other)) if k != other => fail!("rows of {k} elements times columns of {other}"),
        _ => Ok(()),
    }
}

/// The product of matrices; leading axes are broadcast, one-dimensional operands are a row or a column.
#[derive(Debug, Clone, Default)]
pub struct MatMul {
    /// How its sums are made.
    pub right: Right,
    /// The right matrix if it is a constant.
    ready: Option<Arc<Ready>>,
}

impl MatMul {
    /// The product and its shape.
    pub fn compute<T: Number>(
        a: (&[T], &[usize]),
        b: (&[T], &[usize]),
    ) -> Result<(Vec<T>, Vec<usize>), Fault> {
        Self::default().compute_finished(a, b, (None, &mut Finish::new(Limits::NONE)))
    }

    fn parts(&self, size: Size, b_shape: &[usize]) -> Parts {
        let ahead = self.right == Right::Weight && b_shape.len() <= 2;
        if ahead { Parts::CONSTANT } else { Parts::of(size) }
    }

    /// The same; then something may be added, and elements of `f32` are limited and noted.
    fn compute_finished<T: Number>(
        &self,
        (a, a_shape): (&[T], &[usize]),
        (b, b_shape): (&[T], &[usize]),
        (added, finish): (Option<Mat<T>>, &mut Finish),
    ) -> Result<(Vec<T>, Vec<usize>), Fault> {
        let batches = Batches::new(a_shape, b_shape)?;
        let size @ Size { m, n, k } = batches.size;
        let mut y = T::result(element_count(&batches.shape)?);
        if y.is_empty() {
            return Ok((y, batches.shape));
        }
        let parts = self.parts(size, b_shape);
        let mut end = Ending { bias: None, added, finish };
        let mut results = y.chunks_exact_mut(m * n).enumerate();
        batches.each(|i, j| {
            let Some((at, y)) = results.next() else { return };
            let (a, b) = (Mat::rows(&a[i * m * k..][..m * k], k), Mat::rows(&b[j * k * n..][..k * n], n));
            contract(size, (a, None), b, MatMut::rows(y, n), parts, end.from(at * m, 0));
        });
        drop(results);
        Ok((y, batches.shape))
    }

    /// The type of the product as far as known; only the shapes of the operands matter.
    pub fn infer_dims(a: Option<&[Dim]>, b: Option<&[Dim]>) -> Result<Option<Vec<Dim>>, Fault> {
        let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
        let (a_batch, m, k) = match a {
            [k] => (&[][..], None, k),
            [batch @ .., m, k] => (batch, Some(m), k),
            [] => fail!("a scalar has no matrix product"),
        };
        let (b_batch, other, n) = match b {
            [k] => (&[][..], k, None),
            [batch @ .., k, n] => (batch, k, Some(n)),
            [] => fail!("a scalar has no matrix product"),
        };
        same_length(k, other)?;
        let rank = a_batch.len().max(b_batch.len());
        let mut dims = Vec::new();
        for i in 0..rank {
            let at = |d: &'_ [Dim]| (i + d.len()).checked_sub(rank).and_then(|i| d.get(i)).cloned();
            let (a, b) = (at(a_batch).unwrap_or(Dim::Known(1)), at(b_batch).unwrap_or(Dim::Known(1)));
            dims.push(match (a, b) {
                (Dim::Known(1), other) | (other, Dim::Known(1)) => other,
                (Dim::Known(a), Dim::Known(b)) if a != b => fail!("cannot broadcast {a} and {b}"),
                (Dim::Known(a), _) | (_, Dim::Known(a)) => Dim::Known(a),
                (a, b) if a == b => a,
                _ => Dim::Unknown,
            });
        }
        Ok(Some(dims.into_iter().chain(m.cloned()).chain(n.cloned()).collect()))
    }
}

impl Op for MatMul {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let (a, b) = (known(inputs, 0), known(inputs, 1));
        let Some(dtype) = a.or(b).map(|t| t.dtype) else { return Ok(vec![None]) };
        let dims = |ty: Option<&TensorType>| ty.and_then(|t| t.dims.clone());
        Ok(vec![Some(TensorType { dtype, dims: Self::infer_dims(dims(a).as_deref(), dims(b).as_deref())? })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        in_sums!(a.dtype(), T => {
            let (xs, ws) = (T::read(a)?, T::read(b)?);
            let (a, b) = ((elements(&xs)?, a.shape()), (elements(&ws)?, b.shape()));
            let (y, shape) = self.compute_finished(a, b, (None, &mut Finish::new(Limits::NONE)))?;
            Array::new(&shape, y)
        })
    }

    fn with_constants(&self, constants: &[Option<&Array>]) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Self { ready: Some(Ready::of(*constants.get(1)?, 2)?), ..self.clone() }))
    }

    fn finishes(&self) -> bool {
        true
    }

    fn finished(&self, inputs: &[Option<Array>], after: After) -> Option<Result<(Array, Extent), Fault>> {
        let real = |slot| optional(inputs, slot).and_then(|a| Some((a.get::<f32>()?.as_slice()?, a.shape())));
        let (a, b, mut finish) = (real(0)?, real(1)?, Finish::new(after.limits));
        // What does not fit is told by whoever computes it in the other form.
        let Batches { size, batch, shape, .. } = Batches::new(a.1, b.1).ok()?;
        let added = match after.added {
            Some(array) => Some(added(array, &shape, size.n)?),
            None => None,
        };
        let parts = self.parts(size, b.1);
        let right = Mat::rows(b.0, size.n);
        let pay = batch.is_empty() && !parts.line && Panels::pay(&right, size);
        let panels = || Panels::of(right, (size.k, size.n), parts);
        let ready = self.ready.as_ref().filter(|_| pay);
        let Some(panels) = ready.and_then(|ready| ready.panels(b.0, panels)) else {
            let found = self.compute_finished(a, b, (added, &mut finish));
            return Some(found.and_then(|(y, shape)| Ok((Array::new(&shape, y)?, finish.extent()))));
        };
        let mut compute = || {
            let mut y = f32::result(element_count(&shape)?);
            let (a, b) = (Mat::rows(a.0, size.k), Mat::rows(b.0, size.n));
            let end = Some(Ending { bias: None, added, finish: &mut finish });
            let (alpha, start, c, panels) = (1.0, Start::Nothing, MatMut::rows(&mut y, size.n), Some(panels));
            Product { size, alpha, a, b, start, c, parts, end, panels }.compute(Isa::detect());
            Ok((Array::new(&shape, y)?, finish.extent()))
        };
        Some(compute())
    }

    fn in_runtime(&self, runtime: &Runtime) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Self { right: Right::of(runtime), ready: None }))
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        integer::product::matmul(unit)
    }

    fn rule(&self) -> Rule {
        Rule::Contraction { weight: 1, channel_axis: Some(1), bias: None }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn backend_cases() {
        crate::ops::backend_tests::run("gemm");
    }

    #[test]
    fn a_matrix_that_is_laid_out_once_gives_the_same_bits_and_another_in_its_place_its_own() {
        let numbers = |seed: usize, shape: &[usize]| {
            let count = shape.iter().product();
            let values = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0);
            Array::new(shape, values.collect::<Vec<f32>>()).unwrap()
        };
        for (m, k, n) in [(130, 300, 530), (130, 70, 512), (1, 300, 530), (5, 300, 530), (140, 270, 40)] {
            let (x, w, other) = (numbers(1, &[2, m, k]), numbers(2, &[k, n]), numbers(3, &[k, n]));
            let plain = MatMul::default();
            let ready = plain.with_constants(&[None, Some(&w)]).unwrap();
            for w in [&w, &other, &w] {
                let inputs = [Some(x.clone()), Some(w.clone())];
                let want = plain.float(&inputs).unwrap();
                let (found, _) = ready.finished(&inputs, After { added: None, limits: Limits::NONE }).unwrap().unwrap();
                assert_eq!([found], want[..], "{m} {k} {n}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_finished_at_once_has_the_bits_of_the_other_form(
            (m, n, k) in (1usize..20, 1usize..60, 1usize..300), trans_a: bool, trans_b: bool, alpha in 1u8..3,
            addend in 0u8..5, comes_after in 0u8..3, limited: bool, computed: bool, constant: bool,
        ) {
            let right = if computed { Right::Computed } else { Right::Weight };
            let numbers = |seed: usize, shape: &[usize]| {
                let count = shape.iter().product();
                let values = (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0);
                Array::new(shape, values.collect::<Vec<f32>>()).unwrap()
            };
            let shape = |swap: bool, a: usize, b: usize| if swap { [b, a] } else { [a, b] };
            let mut inputs = vec![
                Some(numbers(1, &shape(trans_a, m, k))),
                Some(numbers(2, &shape(trans_b, k, n))),
            ];
            let beta = if addend == 4 { 0.5 } else { 1.0 };
            let mut gemm = Gemm { alpha: alpha.into(), beta, trans_a, trans_b, right, ready: None };
            if constant {
                gemm.ready = Ready::of(inputs[1].as_ref(), 2);
            }
            inputs.push(match addend {
                0 => None,
                1 => Some(numbers(3, &[n])),
                2 => Some(numbers(3, &[1, n])),
                3 => Some(numbers(3, &[m, n])),
                _ => Some(numbers(3, &[n])),
            });
            let limits = if limited { Limits { low: -0.5, high: 2.0 } } else { Limits::NONE };
            let want = gemm.float(&inputs).unwrap().remove(0);
            let added = match comes_after {
                0 => None,
                1 => Some(numbers(4, &[1, n])),
                _ => Some(numbers(4, &[m, n])),
            };
            let added_to = |at: usize| added.as_ref().map(|a| a.slice::<f32>().unwrap()[at % a.len()]);
            let want: Vec<f32> = want.slice::<f32>().unwrap().iter().enumerate()
                .map(|(at, &y)| limits.apply(added_to(at).map_or(y, |a| y + a))).collect();
            match gemm.finished(&inputs, After { added: added.as_ref(), limits }) {
                Some(found) => {
                    let (y, extent) = found.unwrap();
                    prop_assert_eq!(y.shape(), &[m, n]);
                    prop_assert_eq!(y.slice::<f32>().unwrap(), &want[..]);
                    prop_assert_eq!(extent, crate::kernels::finish::extent(&want));
                }
                None => {
                    let line = gemm.parts(Size { m, n, k }).line;
                    prop_assert!(addend > 2 && (m > 1 || addend == 4) || line);
                }
            }
        }
    }
}
