//! Reductions over axes and running sums.
//!
//! The axes are an attribute, or since opset 18 (ReduceSum: 13) an input; without any, all dimensions go, unless
//! `noop_with_empty_axes` says that none does. Then only the step on each element remains: the squares of
//! ReduceSumSquare, the logarithms of ReduceLogSum.
//! See <https://onnx.ai/onnx/operators/onnx__ReduceSum.html> and its neighbours.

mod gradient;

use std::sync::Arc;

use super::operand::{elements};
use super::slots::{self, around, constant, known, optional, required};
use super::{Attrs, Fact, Gradient, ONNX, Op, OpDef, Rule, Runtime};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Dim, TensorType};
use number::Number;

pub(super) mod number;

const fn def(name: &'static str, parse: fn(&mut Attrs) -> Result<Arc<dyn Op>, Fault>) -> OpDef {
    OpDef { domain: ONNX, name, since: 1, parse }
}

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    def("ReduceSum", |a| Reduce::parse(a, Kind::Sum, 13)),
    def("ReduceMean", |a| Reduce::parse(a, Kind::Mean, 18)),
    def("ReduceMax", |a| Reduce::parse(a, Kind::Max, 18)),
    def("ReduceMin", |a| Reduce::parse(a, Kind::Min, 18)),
    def("ReduceProd", |a| Reduce::parse(a, Kind::Prod, 18)),
    def("ReduceL1", |a| Reduce::parse(a, Kind::L1, 18)),
    def("ReduceL2", |a| Reduce::parse(a, Kind::L2, 18)),
    def("ReduceSumSquare", |a| Reduce::parse(a, Kind::SumSquare, 18)),
    def("ReduceLogSum", |a| Reduce::parse(a, Kind::LogSum, 18)),
    def("ReduceLogSumExp", |a| Reduce::parse(a, Kind::LogSumExp, 18)),
    OpDef { domain: ONNX, name: "CumSum", since: 11, parse: |a| Cumulative::parse(a, false) },
    OpDef { domain: ONNX, name: "CumProd", since: 26, parse: |a| Cumulative::parse(a, true) },
];

/// What becomes of the elements that are reduced to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Σ x
    Sum,
    /// Σ x / n; integers are truncated.
    Mean,
    /// The greatest.
    Max,
    /// The least.
    Min,
    /// Π x
    Prod,
    /// Σ |x|
    L1,
    /// √ Σ x²
    L2,
    /// Σ x²
    SumSquare,
    /// ln Σ x
    LogSum,
    /// ln Σ e^x
    LogSumExp,
}

/// A reduction.
#[derive(Debug, Clone, PartialEq)]
pub struct Reduce {
    /// What is computed.
    pub kind: Kind,
    /// The axes, unless they are an input; none: all.
    pub axes: Vec<i64>,
    /// Do the reduced dimensions stay, with extent 1?
    pub keepdims: bool,
    /// Does an empty list of axes mean none instead of all?
    pub noop_with_empty_axes: bool,
}

/// Elements, extents and the shape of the result of a reduction.
type Arranged = (Array, (usize, usize, usize), Vec<usize>);

impl Reduce {
    fn parse(attrs: &mut Attrs, kind: Kind, axes_are_input: i64) -> Result<Arc<dyn Op>, Fault> {
        let input = attrs.version() >= axes_are_input;
        Ok(Arc::new(Self {
            kind,
            axes: if input { Vec::new() } else { attrs.opt_ints("axes")?.unwrap_or_default() },
            keepdims: attrs.flag("keepdims", true)?,
            noop_with_empty_axes: input && attrs.flag("noop_with_empty_axes", false)?,
        }))
    }

    /// Which dimensions go.
    fn mask(&self, input: Option<&Array>, rank: usize) -> Result<Vec<bool>, Fault> {
        let axes = input.map(Array::to_i64).transpose()?;
        let axes = axes.as_ref().unwrap_or(&self.axes);
        let mut mask = vec![axes.is_empty() && !self.noop_with_empty_axes; rank];
        for &axis in axes {
            mask[slots::axis(axis, rank)?] = true;
        }
        Ok(mask)
    }

    /// The elements with those that are reduced to one side by side, the extents before, of and behind them, and the
    /// shape of the result.
    fn arrange(&self, x: &Array, mask: &[bool]) -> Result<Arranged, Fault> {
        let shape = x.shape();
        let run = mask.iter().position(|&m| m).map_or(shape.len()..shape.len(), |first| {
            first..first + mask[first..].iter().take_while(|&&m| m).count()
        });
        // One run of neighbouring axes is reduced in place; otherwise they move to the end first.
        let (moved, extents) = if mask[run.end..].contains(&true) {
            let (reduced, kept): (Vec<_>, Vec<_>) = (0..mask.len()).partition(|&a| mask[a]);
            let order: Vec<usize> = kept.iter().chain(&reduced).copied().collect();
            let count = |axes: &[usize]| axes.iter().map(|&a| shape[a]).product();
            (x.transposed(&order)?, (count(&kept), count(&reduced), 1))
        } else {
            let count = |part: &[usize]| part.iter().product();
            (x.clone(), (count(&shape[..run.start]), count(&shape[run.clone()]), count(&shape[run.end..])))
        };
        let kept = shape.iter().zip(mask).filter_map(|(&d, &m)| match (m, self.keepdims) {
            (false, _) => Some(d),
            (true, true) => Some(1),
            (true, false) => None,
        });
        Ok((moved, extents, kept.collect()))
    }

    fn run<T: Number>(&self, x: &Array, mask: &[bool]) -> Result<Array, Fault> {
        let (moved, extents, shape) = self.arrange(x, mask)?;
        T::array(&shape, T::reduce(self.kind, elements(moved.typed::<T>()?)?, extents)?)
    }
}

/// A norm whose squares of `f32` are added one after the other, as ONNX Runtime does along the last axes.
#[derive(Debug)]
struct InOrder(Reduce);

impl Op for InOrder {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        self.0.infer(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let (moved, (_, n, inner), shape) = self.0.arrange(x, &self.0.mask(optional(inputs, 1), x.rank())?)?;
        if moved.get::<f32>().is_none() || inner != 1 || n == 0 {
            return self.0.float(inputs);
        }
        let norm = |run: &[f32]| run.iter().fold(0.0, |sum, v| sum + v * v).sqrt();
        let y = elements(moved.typed::<f32>()?)?.chunks_exact(n).map(norm).collect();
        Ok(vec![Array::new(&shape, y)?])
    }
}

impl Op for Reduce {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let axes = constant(inputs, 1)?;
        let computed = inputs.get(1).is_some() && axes.is_none();
        let Some(dims) = &x.dims else { return Ok(vec![Some(x.clone())]) };
        if computed {
            // Axes that are not known: with `keepdims` at least the rank is.
            let dims = self.keepdims.then(|| vec![Dim::Unknown; dims.len()]);
            return Ok(vec![Some(TensorType { dtype: x.dtype, dims })]);
        }
        let mask = self.mask(axes.as_ref(), dims.len())?;
        let dims = dims.iter().zip(mask).filter_map(|(d, gone)| match (gone, self.keepdims) {
            (false, _) => Some(d.clone()),
            (true, true) => Some(Dim::Known(1)),
            (true, false) => None,
        });
        Ok(vec![Some(TensorType::new(x.dtype, dims.collect()))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let mask = self.mask(optional(inputs, 1), x.rank())?;
        let wide = number::widened(x)?;
        let y: Result<Array, Fault> = number::dispatch!(wide.dtype(), T => self.run::<T>(&wide, &mask));
        Ok(vec![number::narrowed(y?, x.dtype())])
    }

    fn in_runtime(&self, _: &Runtime) -> Option<Arc<dyn Op>> {
        (self.kind == Kind::L2).then(|| Arc::new(InOrder(self.clone())) as Arc<dyn Op>)
    }

    fn rule(&self) -> Rule {
        match self.kind {
            Kind::Max | Kind::Min => Rule::SameScale,
            _ => Rule::Float,
        }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        if self.kind.is_smooth() { Some(self) } else { None }
    }
}

/// CumSum and CumProd: what has been added or multiplied up to each element along the axis that input 1 names.
/// See <https://onnx.ai/onnx/operators/onnx__CumSum.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct Cumulative {
    /// Product instead of sum.
    pub product: bool,
    /// The element itself does not count.
    pub exclusive: bool,
    /// From the end to the start.
    pub reverse: bool,
}

impl Cumulative {
    fn parse(attrs: &mut Attrs, product: bool) -> Result<Arc<dyn Op>, Fault> {
        let (exclusive, reverse) = (attrs.flag("exclusive", false)?, attrs.flag("reverse", false)?);
        Ok(Arc::new(Self { product, exclusive, reverse }))
    }

    fn run<T: Number>(&self, x: &Array, axis: usize) -> Result<Array, Fault> {
        let (_, n, inner) = around(x.shape(), axis);
        let from = elements(x.typed::<T>()?)?;
        let mut y = vec![T::default(); from.len()];
        if from.is_empty() {
            return T::array(x.shape(), y);
        }
        let mut totals = vec![T::default(); inner];
        for (from, to) in from.chunks_exact(n * inner).zip(y.chunks_exact_mut(n * inner)) {
            totals.fill(if self.product { T::one() } else { T::default() });
            for step in 0..n {
                let row = if self.reverse { n - 1 - step } else { step } * inner;
                let pairs = to[row..row + inner].iter_mut().zip(&from[row..row + inner]);
                for ((y, &x), total) in pairs.zip(&mut totals) {
                    let next = if self.product { total.times(x) } else { total.plus(x) };
                    *y = if self.exclusive { *total } else { next };
                    *total = next;
                }
            }
        }
        T::array(x.shape(), y)
    }
}

impl Op for Cumulative {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, along) = (required(inputs, 0)?, required(inputs, 1)?.to_i64()?);
        let [along] = along[..] else { fail!("the axis is not one number") };
        let axis = slots::axis(along, x.rank())?;
        let wide = number::widened(x)?;
        let y: Result<Array, Fault> = number::dispatch!(wide.dtype(), T => self.run::<T>(&wide, axis));
        Ok(vec![number::narrowed(y?, x.dtype())])
    }
}

#[cfg(test)]
mod tests;
