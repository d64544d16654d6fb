//! Operators that pick elements by index: Gather, GatherElements, GatherND and Slice.

use std::sync::Arc;

use super::slots::{self, constant_ints, dims, known, required};
use super::gradient::{Gradients, moved};
use super::{Attrs, Gradient, ONNX, OpDef, Run};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Dim, Fact, Op, Rule, TensorType, element_count, with_array};
use crate::kernels::strided::{View, read_array, take, take_array};

type Parsed = Result<Arc<dyn Op>, Fault>;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Gather", since: 1, parse: Gather::parse },
    OpDef { domain: ONNX, name: "GatherElements", since: 11, parse: GatherElements::parse },
    OpDef { domain: ONNX, name: "GatherND", since: 11, parse: GatherNd::parse },
    OpDef { domain: ONNX, name: "Slice", since: 1, parse: |a| Slice::parse(a, true) },
    OpDef { domain: ONNX, name: "Slice", since: 10, parse: |a| Slice::parse(a, false) },
];

/// `Gather`: for each index the slice of the data there; the indices' shape takes the place of the axis.
#[derive(Debug, Clone)]
pub struct Gather {
    /// The axis of the data; negative from the end.
    pub axis: i64,
}

impl Gather {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { axis: attrs.int("axis", 0)? }))
    }
}

impl Op for Gather {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = match (&ty.dims, dims(inputs, 1)) {
            (Some(data), Some(indices)) => {
                let axis = slots::axis(self.axis, data.len())?;
                Some([&data[..axis], indices, &data[axis + 1..]].concat())
            }
            _ => None,
        };
        Ok(vec![Some(TensorType { dtype: ty.dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (data, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        let axis = slots::axis(self.axis, data.rank())?;
        let shape = [&data.shape()[..axis], indices.shape(), &data.shape()[axis + 1..]].concat();
        let rows = slots::indices(indices, data.shape()[axis])?;
        Ok(vec![take_array(data, axis, &rows)?.reshaped(&shape)?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Gather {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

/// For every element of `indices` the flat position in data of shape `data`: its own coordinates, but along `axis` the
/// index that it holds.
pub(super) fn element_positions(data: &[usize], indices: &Array, axis: usize) -> Result<Vec<usize>, Fault> {
    let shape = indices.shape();
    if shape.len() != data.len() {
        fail!("indices of {} axes for data of {}", shape.len(), data.len());
    }
    let along = slots::indices(indices, data[axis])?;
    if along.is_empty() {
        return Ok(Vec::new());
    }
    let mut view = View::new(data)?;
    for (other, &extent) in shape.iter().enumerate() {
        view = view.stepped(other, 0, 1, if other == axis { 1 } else { extent })?;
    }
    let stride: usize = data[axis + 1..].iter().product();
    let starts = view.broadcast(shape)?.positions()?;
    Ok(starts.into_iter().zip(along).map(|(start, index)| start + index * stride).collect())
}

/// `GatherElements`: for each index the element with the index's coordinates, but along the axis where it points.
#[derive(Debug, Clone)]
pub struct GatherElements {
    /// The axis; negative from the end.
    pub axis: i64,
}

impl GatherElements {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { axis: attrs.int("axis", 0)? }))
    }
}

impl Op for GatherElements {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        Ok(vec![Some(TensorType { dtype: ty.dtype, dims: dims(inputs, 1).map(<[Dim]>::to_vec) })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (data, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        let positions = element_positions(data.shape(), indices, slots::axis(self.axis, data.rank())?)?;
        Ok(vec![with_array!(data, a => {
            let elements = take(slots::like(a, data)?, [1, a.len(), 1], &positions)?;
            Array::new(indices.shape(), elements)?
        })])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for GatherElements {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

/// Where the tuples along the last axis of `indices` point in data of shape `data`, after `batch` leading axes that
/// both share: row numbers, and the number of elements of a row.
pub(super) fn tuple_rows(
    data: &[usize],
    indices: &Array,
    batch: usize,
) -> Result<(Vec<usize>, usize), Fault> {
    let shape = indices.shape();
    let Some((&depth, outer)) = shape.split_last() else { fail!("the indices have no axis") };
    if batch > outer.len() || batch + depth > data.len() || data[..batch] != outer[..batch] {
        fail!("indices {shape:?} do not point into data {data:?} with {batch} batch axes");
    }
    let (picked, inner) = (&data[batch..batch + depth], data[batch + depth..].iter().product());
    let (block, tuples) = (picked.iter().product::<usize>(), element_count(&outer[batch..])?);
    let indices = indices.to_i64()?;
    let row = |tuple: usize| {
        let mut row = 0;
        for (&i, &extent) in indices[tuple * depth..][..depth].iter().zip(picked) {
            match usize::try_from(if i < 0 { i + extent as i64 } else { i }) {
                Ok(index) if index < extent => row = row * extent + index,
                _ => fail!("index {i} is outside an axis of {extent}"),
            }
        }
        Ok(tuple / tuples * block + row)
    };
    let rows = (0..element_count(outer)?).map(row).collect::<Result<_, Fault>>()?;
    Ok((rows, inner))
}

/// `GatherND`: for each tuple along the last axis of the indices the slice of the data there.
#[derive(Debug, Clone)]
pub struct GatherNd {
    /// Leading axes that data and indices share.
    pub batch_dims: usize,
}

impl GatherNd {
    fn parse(attrs: &mut Attrs) -> Parsed {
        let batch = if attrs.version() >= 12 { attrs.int("batch_dims", 0)? } else { 0 };
        match usize::try_from(batch) {
            Ok(batch_dims) => Ok(Arc::new(Self { batch_dims })),
            Err(_) => Err(format!("batch_dims {batch} is negative").into()),
        }
    }

    fn shape<D: Clone>(&self, data: &[D], indices: &[D], depth: usize) -> Option<Vec<D>> {
        let (_, outer) = indices.split_last()?;
        Some([outer, data.get(self.batch_dims.checked_add(depth)?..)?].concat())
    }
}

impl Op for GatherNd {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = match (&ty.dims, dims(inputs, 1)) {
            (Some(data), Some(indices)) => match indices.last() {
                None => fail!("the indices have no axis"),
                Some(Dim::Known(depth)) => match self.shape(data, indices, *depth) {
                    None => fail!("tuples of {depth} are too long for {} axes", data.len()),
                    found => found,
                },
                Some(_) => None,
            },
            _ => None,
        };
        Ok(vec![Some(TensorType { dtype: ty.dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (data, indices) = (required(inputs, 0)?, required(inputs, 1)?);
        let (rows, inner) = tuple_rows(data.shape(), indices, self.batch_dims)?;
        let depth = indices.shape().last().copied().unwrap_or(0);
        let shape = self.shape(data.shape(), indices.shape(), depth).ok_or("the indices have no axis")?;
        let count: usize = data.shape()[..self.batch_dims + depth].iter().product();
        Ok(vec![with_array!(data, a => {
            Array::new(&shape, take(slots::like(a, data)?, [1, count, inner], &rows)?)?
        })])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for GatherNd {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

/// `Slice`: an arithmetic sequence of indices along each axis named.
#[derive(Debug, Clone)]
pub struct Slice {
    /// The bounds of the attribute form; later inputs 1 to 4.
    pub attributes: Option<Bounds>,
    /// Number of input slots of the node.
    pub inputs: usize,
}

/// What a [`Slice`] takes of each axis.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// First index; negative from the end.
    pub starts: Vec<i64>,
    /// The index after the last.
    pub ends: Vec<i64>,
    /// The axes; `None`: the first ones.
    pub axes: Option<Vec<i64>>,
    /// Steps between indices; `None`: 1.
    pub steps: Option<Vec<i64>>,
}

/// An axis with its start, end and step as they were given.
type Cut = (usize, i64, i64, i64);

impl Bounds {
    /// The cuts of a tensor of this rank.
    pub fn cuts(&self, rank: usize) -> Result<Vec<Cut>, Fault> {
        let count = self.starts.len();
        let axes = match &self.axes {
            Some(axes) => slots::axes(axes, rank)?,
            None => (0..count.min(rank)).collect(),
        };
        let steps = self.steps.clone().unwrap_or_else(|| vec![1; count]);
        if self.ends.len() != count || axes.len() != count || steps.len() != count {
            fail!("{count} starts, {} ends, {} axes, {} steps", self.ends.len(), axes.len(), steps.len());
        }
        let bounds = self.starts.iter().zip(&self.ends).zip(steps);
        Ok(axes.into_iter().zip(bounds).map(|(axis, ((&s, &e), step))| (axis, s, e, step)).collect())
    }
}

/// First index and number of indices that a cut takes of an axis.
fn span(extent: usize, (_, start, end, step): Cut) -> Result<(usize, usize), Fault> {
    let extent = extent as i128;
    let bound = |at: i64, low, high| {
        let at = i128::from(at);
        (if at < 0 { at + extent } else { at }).clamp(low, high)
    };
    let (start, distance) = match step {
        0 => fail!("the step is 0"),
        1.. => (bound(start, 0, extent), bound(end, 0, extent) - bound(start, 0, extent)),
        // from the last index down to, at the lowest, one before the first
        _ if extent == 0 => return Ok((0, 0)),
        _ => {
            let start = bound(start, 0, extent - 1);
            (start, start - bound(end, -1, extent - 1))
        }
    };
    let step = i128::from(step).abs();
    Ok((start as usize, ((distance + step - 1) / step).max(0) as usize))
}

impl Slice {
    fn parse(attrs: &mut Attrs, attribute: bool) -> Parsed {
        let mut bounds = Bounds::default();
        if attribute {
            bounds.starts = attrs.opt_ints("starts")?.unwrap_or_default();
            bounds.ends = attrs.opt_ints("ends")?.unwrap_or_default();
            bounds.axes = attrs.opt_ints("axes")?;
        }
        Ok(Arc::new(Self { attributes: attribute.then_some(bounds), inputs: attrs.inputs() }))
    }

    /// The bounds, if all of them are constant.
    pub fn constant_bounds(&self, inputs: &[Option<Fact>]) -> Result<Option<Bounds>, Fault> {
        if let Some(bounds) = &self.attributes {
            return Ok(Some(bounds.clone()));
        }
        let [starts, ends] = [constant_ints(inputs, 1)?, constant_ints(inputs, 2)?];
        let [axes, steps] = [constant_ints(inputs, 3)?, constant_ints(inputs, 4)?];
        let unknown = |slot, value: &Option<_>| slot < self.inputs && value.is_none();
        Ok(match (starts, ends) {
            _ if unknown(3, &axes) || unknown(4, &steps) => None,
            (Some(starts), Some(ends)) => Some(Bounds { starts, ends, axes, steps }),
            _ => None,
        })
    }
}

impl Op for Slice {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let Some(mut dims) = ty.dims.clone() else { return Ok(vec![Some(ty.clone())]) };
        if let Some(bounds) = self.constant_bounds(inputs)? {
            for cut in bounds.cuts(dims.len())? {
                let (axis, start, end, step) = cut;
                dims[axis] = match &dims[axis] {
                    Dim::Known(extent) => Dim::Known(span(*extent, cut)?.1),
                    whole if start == 0 && end >= i64::from(i32::MAX) && step == 1 => whole.clone(),
                    _ => Dim::Unknown,
                };
            }
        } else if let Some(axes) = constant_ints(inputs, 3)? {
            slots::axes(&axes, dims.len())?.into_iter().for_each(|axis| dims[axis] = Dim::Unknown);
        } else {
            dims.fill(Dim::Unknown);
        }
        Ok(vec![Some(TensorType::new(ty.dtype, dims))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let list = |slot| slots::optional(inputs, slot).map(Array::to_i64).transpose();
        let bounds = match &self.attributes {
            Some(bounds) => bounds.clone(),
            None => Bounds {
                starts: required(inputs, 1)?.to_i64()?,
                ends: required(inputs, 2)?.to_i64()?,
                axes: list(3)?,
                steps: list(4)?,
            },
        };
        let mut view = View::new(x.shape())?;
        for cut in bounds.cuts(x.rank())? {
            let (start, count) = span(x.shape()[cut.0], cut)?;
            view = view.stepped(cut.0, start, cut.3 as isize, count)?;
        }
        Ok(vec![read_array(x, &view)?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Slice {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

#[cfg(test)]
mod tests;
