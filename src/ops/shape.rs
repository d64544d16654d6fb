//! Operators that change or tell the shape and leave the values: Reshape, Flatten, Squeeze, Unsqueeze, Transpose,
//! Expand, Shape and Size.
//!
//! Shapes and axes were attributes first and became inputs later (Reshape 5, Squeeze and Unsqueeze 13); the structs
//! hold `None` where an input decides.

mod expand;
mod gradient;

use std::sync::Arc;

use super::slots::{self, constant_ints, dims, known, required};
use super::{Attrs, Gradient, ONNX, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, Fact, Op, Rule, TensorType, element_count};
use crate::kernels::strided::{View, read_array};
pub use expand::Expand;

type Parsed = Result<Arc<dyn Op>, Fault>;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Reshape", since: 1, parse: |a| Reshape::parse(a, true) },
    OpDef { domain: ONNX, name: "Reshape", since: 5, parse: |a| Reshape::parse(a, false) },
    OpDef { domain: ONNX, name: "Flatten", since: 1, parse: Flatten::parse },
    OpDef { domain: ONNX, name: "Squeeze", since: 1, parse: |a| Squeeze::parse(a, true) },
    OpDef { domain: ONNX, name: "Squeeze", since: 13, parse: |a| Squeeze::parse(a, false) },
    OpDef { domain: ONNX, name: "Unsqueeze", since: 1, parse: |a| Unsqueeze::parse(a, true) },
    OpDef { domain: ONNX, name: "Unsqueeze", since: 13, parse: |a| Unsqueeze::parse(a, false) },
    OpDef { domain: ONNX, name: "Transpose", since: 1, parse: Transpose::parse },
    OpDef { domain: ONNX, name: "Expand", since: 8, parse: |_| Ok(Arc::new(Expand)) },
    OpDef { domain: ONNX, name: "Shape", since: 1, parse: Shape::parse },
    OpDef { domain: ONNX, name: "Size", since: 1, parse: |_| Ok(Arc::new(Size)) },
];

/// One output of the first input's element type.
fn like(ty: &TensorType, dims: Option<Vec<Dim>>) -> Result<Vec<Option<TensorType>>, Fault> {
    Ok(vec![Some(TensorType { dtype: ty.dtype, dims })])
}

/// The product of the known dimensions and the other dimensions.
fn product(dims: &[Dim]) -> Result<(usize, Vec<&Dim>), Fault> {
    let known: Vec<usize> = dims.iter().filter_map(Dim::known).collect();
    Ok((element_count(&known)?, dims.iter().filter(|d| d.known().is_none()).collect()))
}

/// `Reshape`: the same elements under another shape.
#[derive(Debug, Clone)]
pub struct Reshape {
    /// The target of the first form; later the second input.
    pub shape: Option<Vec<i64>>,
    /// Is 0 in the target an extent of 0 rather than a copy of the input's extent?
    pub allow_zero: bool,
}

impl Reshape {
    fn parse(attrs: &mut Attrs, attribute: bool) -> Parsed {
        let shape = if attribute { Some(attrs.opt_ints("shape")?.unwrap_or_default()) } else { None };
        let allow_zero = attrs.version() >= 14 && attrs.flag("allowzero", false)?;
        Ok(Arc::new(Self { shape, allow_zero }))
    }

    /// The output's dimensions. `-1` takes what the others leave; a symbol that stands on both sides cancels.
    fn target(&self, target: &[i64], from: Option<&[Dim]>) -> Result<Vec<Dim>, Fault> {
        let mut dims = Vec::new();
        let mut rest = None;
        for (axis, &extent) in target.iter().enumerate() {
            dims.push(match extent {
                -1 if rest.replace(axis).is_some() => fail!("the target {target:?} has more than one -1"),
                -1 => Dim::Known(1),
                0 if !self.allow_zero => match from {
                    None => Dim::Unknown,
                    Some(from) => from.get(axis).cloned().ok_or_else(|| {
                        Fault::new(format!("the target {target:?} copies axis {axis} of {} axes", from.len()))
                    })?,
                },
                extent => Dim::Known(
                    usize::try_from(extent)
                        .map_err(|_| format!("the target {target:?} has a negative extent"))?,
                ),
            });
        }
        let Some(from) = from else {
            rest.into_iter().for_each(|axis| dims[axis] = Dim::Unknown);
            return Ok(dims);
        };
        let ((size, mut symbols), (filled, others)) = (product(from)?, product(&dims)?);
        let cancels = others.iter().all(|dim| match symbols.iter().position(|s| s == dim) {
            Some(at) if matches!(dim, Dim::Symbol(_)) => {
                symbols.remove(at);
                true
            }
            _ => false,
        });
        let left = match (cancels, symbols.as_slice()) {
            (true, []) if rest.is_none() && size != filled => {
                fail!("{size} elements do not fill the shape {target:?}")
            }
            (true, []) if filled != 0 && size % filled == 0 => Dim::Known(size / filled),
            (true, []) if rest.is_some() => fail!("{size} elements do not divide into the shape {target:?}"),
            (true, &[symbol]) if size == filled => symbol.clone(),
            _ => Dim::Unknown,
        };
        rest.into_iter().for_each(|axis| dims[axis] = left.clone());
        Ok(dims)
    }
}

impl Op for Reshape {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let target = match &self.shape {
            Some(shape) => Some(shape.clone()),
            None => constant_ints(inputs, 1)?,
        };
        let dims = match target {
            Some(target) => Some(self.target(&target, ty.dims.as_deref())?),
            None => slots::unknown_dims(inputs, 1),
        };
        like(ty, dims)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let target = match &self.shape {
            Some(shape) => shape.clone(),
            None => required(inputs, 1)?.to_i64()?,
        };
        let dims = self.target(&target, x.tensor_type().dims.as_deref())?;
        Ok(vec![x.reshaped(&dims.iter().filter_map(Dim::known).collect::<Vec<_>>())?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// `Flatten`: two axes, split before `axis`.
#[derive(Debug, Clone)]
pub struct Flatten {
    /// The first axis of the second output axis; negative from the end; may be the rank.
    pub axis: i64,
}

impl Flatten {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { axis: attrs.int("axis", 1)? }))
    }

    fn split(&self, rank: usize) -> Result<usize, Fault> {
        if self.axis == rank as i64 { Ok(rank) } else { slots::axis(self.axis, rank) }
    }
}

impl Op for Flatten {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let Some(dims) = &ty.dims else { return like(ty, Some(vec![Dim::Unknown; 2])) };
        let (a, b) = dims.split_at(self.split(dims.len())?);
        let fused = |dims| {
            Ok::<_, Fault>(match product(dims)? {
                (size, others) if others.is_empty() => Dim::Known(size),
                (1, others) if others.len() == 1 => others[0].clone(),
                _ => Dim::Unknown,
            })
        };
        like(ty, Some(vec![fused(a)?, fused(b)?]))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let (a, b) = x.shape().split_at(self.split(x.rank())?);
        Ok(vec![x.reshaped(&[element_count(a)?, element_count(b)?])?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// The axes of a Squeeze or Unsqueeze: its attribute, or the second input where there is one.
fn named_axes(attribute: &Option<Vec<i64>>, inputs: &[Option<Array>]) -> Result<Option<Vec<i64>>, Fault> {
    match attribute {
        Some(axes) => Ok(Some(axes.clone())),
        None => slots::optional(inputs, 1).map(Array::to_i64).transpose(),
    }
}

/// `Squeeze`: removes axes of extent 1.
#[derive(Debug, Clone)]
pub struct Squeeze {
    /// The axes of the attribute form.
    pub axes: Option<Vec<i64>>,
    /// Does the second input name the axes? If neither does, all axes of extent 1 go.
    pub axes_input: bool,
}

impl Squeeze {
    fn parse(attrs: &mut Attrs, attribute: bool) -> Parsed {
        let axes = if attribute { attrs.opt_ints("axes")? } else { None };
        Ok(Arc::new(Self { axes, axes_input: !attribute && attrs.inputs() > 1 }))
    }

    /// `None` if it cannot be known which axes go.
    fn kept(axes: Option<&[i64]>, dims: &[Dim]) -> Result<Option<Vec<Dim>>, Fault> {
        let Some(axes) = axes else {
            let known = dims.iter().all(|d| d.known().is_some());
            return Ok(known.then(|| dims.iter().filter(|d| d.known() != Some(1)).cloned().collect()));
        };
        let axes = slots::axes(axes, dims.len())?;
        for &axis in &axes {
            if let Some(extent) = dims[axis].known().filter(|&extent| extent != 1) {
                fail!("axis {axis} has extent {extent} and cannot be squeezed");
            }
        }
        Ok(Some(dims.iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d.clone()).collect()))
    }
}

impl Op for Squeeze {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let axes = if self.axes_input { constant_ints(inputs, 1)? } else { self.axes.clone() };
        let dims = match &ty.dims {
            Some(dims) if axes.is_some() || !self.axes_input => Self::kept(axes.as_deref(), dims)?,
            _ => None,
        };
        like(ty, dims)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let dims = x.tensor_type().dims.unwrap_or_default();
        let kept = Self::kept(named_axes(&self.axes, inputs)?.as_deref(), &dims)?.unwrap_or_default();
        Ok(vec![x.reshaped(&kept.iter().filter_map(Dim::known).collect::<Vec<_>>())?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// `Unsqueeze`: adds axes of extent 1.
#[derive(Debug, Clone)]
pub struct Unsqueeze {
    /// The axes of the attribute form, as axes of the output; later the second input.
    pub axes: Option<Vec<i64>>,
}

impl Unsqueeze {
    fn parse(attrs: &mut Attrs, attribute: bool) -> Parsed {
        let axes = if attribute { Some(attrs.opt_ints("axes")?.unwrap_or_default()) } else { None };
        Ok(Arc::new(Self { axes }))
    }

    fn widened<D: Clone>(axes: &[i64], dims: &[D], one: D) -> Result<Vec<D>, Fault> {
        let axes = slots::axes(axes, dims.len() + axes.len())?;
        let mut old = dims.iter().cloned();
        let slot = |axis| if axes.contains(&axis) { Some(one.clone()) } else { old.next() };
        Ok((0..dims.len() + axes.len()).filter_map(slot).collect())
    }
}

impl Op for Unsqueeze {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let axes = if self.axes.is_some() { self.axes.clone() } else { constant_ints(inputs, 1)? };
        let dims = match (axes, &ty.dims) {
            (Some(axes), Some(dims)) => Some(Self::widened(&axes, dims, Dim::Known(1))?),
            _ => None,
        };
        like(ty, dims)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let Some(axes) = named_axes(&self.axes, inputs)? else { fail!("input 1 is missing") };
        Ok(vec![x.reshaped(&Self::widened(&axes, x.shape(), 1)?)?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// `Transpose`: the axes in another order.
#[derive(Debug, Clone)]
pub struct Transpose {
    /// For each output axis the input axis; `None` reverses them.
    pub perm: Option<Vec<usize>>,
}

impl Transpose {
    fn parse(attrs: &mut Attrs) -> Parsed {
        let perm = attrs.opt_ints("perm")?.map(|perm| slots::axes(&perm, perm.len())).transpose()?;
        Ok(Arc::new(Self { perm }))
    }

    /// For each of `rank` output axes the input axis.
    pub fn order(&self, rank: usize) -> Result<Vec<usize>, Fault> {
        match &self.perm {
            None => Ok((0..rank).rev().collect()),
            Some(perm) if perm.len() == rank => Ok(perm.clone()),
            Some(perm) => Err(format!("{perm:?} is not an order of {rank} axes").into()),
        }
    }
}

impl Op for Transpose {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = match &ty.dims {
            Some(dims) => Some(self.order(dims.len())?.iter().map(|&axis| dims[axis].clone()).collect()),
            None => self.perm.as_ref().map(|perm| vec![Dim::Unknown; perm.len()]),
        };
        like(ty, dims)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        Ok(vec![read_array(x, &View::new(x.shape())?.permuted(&self.order(x.rank())?)?)?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// `Shape`: the extents of axes `start..end`, as a vector.
#[derive(Debug, Clone)]
pub struct Shape {
    /// First axis; negative from the end.
    pub start: i64,
    /// The axis after the last; `None`: all.
    pub end: Option<i64>,
}

impl Shape {
    fn parse(attrs: &mut Attrs) -> Parsed {
        let [start, end] = match attrs.version() {
            ..15 => [None, None],
            _ => [attrs.opt_int("start")?, attrs.opt_int("end")?],
        };
        Ok(Arc::new(Self { start: start.unwrap_or(0), end }))
    }

    /// The axes that are told of.
    pub fn range(&self, rank: usize) -> std::ops::Range<usize> {
        let rank = rank as i64;
        let clamp =
            |axis: i64| (if axis < 0 { axis.saturating_add(rank) } else { axis }).clamp(0, rank) as usize;
        let (start, end) = (clamp(self.start), clamp(self.end.unwrap_or(rank)));
        start..end.max(start)
    }
}

impl Op for Shape {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let count = dims(inputs, 0).map_or(Dim::Unknown, |dims| Dim::Known(self.range(dims.len()).len()));
        Ok(vec![Some(TensorType::new(DType::I64, vec![count]))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let shape = required(inputs, 0)?.shape();
        Ok(vec![Array::vector(shape[self.range(shape.len())].iter().map(|&d| d as i64).collect())])
    }
}

/// `Size`: the number of elements, as a scalar.
#[derive(Debug, Clone)]
pub struct Size;

impl Op for Size {
    fn infer(&self, _: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![Some(TensorType::known(DType::I64, &[]))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        Ok(vec![Array::scalar(required(inputs, 0)?.len() as i64)])
    }
}

#[cfg(test)]
mod tests;
