//! Operators that pick, mark or order elements by a condition: Compress, NonZero, OneHot, Trilu, ReverseSequence and
//! Unique.

use std::cmp::Ordering;
use std::sync::Arc;

use super::slots::{self, constant, dims, known, required};
use super::{Attrs, ONNX, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, Fact, Op, TensorType, element_count, with_array};
use crate::kernels::strided::{View, read, take_array};

type Parsed = Result<Arc<dyn Op>, Fault>;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Compress", since: 9, parse: Compress::parse },
    OpDef { domain: ONNX, name: "NonZero", since: 9, parse: |_| Ok(Arc::new(NonZero)) },
    OpDef { domain: ONNX, name: "OneHot", since: 9, parse: OneHot::parse },
    OpDef { domain: ONNX, name: "Trilu", since: 14, parse: Trilu::parse },
    OpDef { domain: ONNX, name: "ReverseSequence", since: 10, parse: ReverseSequence::parse },
    OpDef { domain: ONNX, name: "Unique", since: 11, parse: Unique::parse },
];

/// The array as one axis if none is named, and that axis.
fn flat_unless(axis: Option<i64>, x: &Array) -> Result<(Array, usize), Fault> {
    match axis {
        Some(axis) => Ok((x.clone(), slots::axis(axis, x.rank())?)),
        None => Ok((x.reshaped(&[x.len()])?, 0)),
    }
}

/// The type of an array of which some slices along the axis, or some elements, are kept.
fn thinned(axis: Option<i64>, ty: &TensorType) -> Result<TensorType, Fault> {
    let dims = match (axis, &ty.dims) {
        (None, _) => Some(vec![Dim::Unknown]),
        (Some(_), None) => None,
        (Some(axis), Some(dims)) => {
            let mut dims = dims.clone();
            let axis = slots::axis(axis, dims.len())?;
            dims[axis] = Dim::Unknown;
            Some(dims)
        }
    };
    Ok(TensorType { dtype: ty.dtype, dims })
}

/// `Compress`: the slices whose condition is true.
#[derive(Debug, Clone)]
pub struct Compress {
    /// The axis; negative from the end; `None`: the flattened input.
    pub axis: Option<i64>,
}

impl Compress {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { axis: attrs.opt_int("axis")? }))
    }
}

impl Op for Compress {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).map(|ty| thinned(self.axis, ty)).transpose()?])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, axis) = flat_unless(self.axis, required(inputs, 0)?)?;
        let condition = required(inputs, 1)?.slice::<bool>()?;
        let rows: Vec<usize> = (0..condition.len()).filter(|&i| condition[i]).collect();
        Ok(vec![take_array(&x, axis, &rows)?])
    }
}

/// `NonZero`: the coordinates of the elements that are not zero, one column each.
#[derive(Debug, Clone)]
pub struct NonZero;

fn nonzero<T: Default + PartialEq>(elements: &[T]) -> Vec<usize> {
    let zero = T::default();
    (0..elements.len()).filter(|&i| elements[i] != zero).collect()
}

impl Op for NonZero {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let rank = dims(inputs, 0).map_or(Dim::Unknown, |dims| Dim::Known(dims.len()));
        Ok(vec![Some(TensorType::new(DType::I64, vec![rank, Dim::Unknown]))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let found = with_array!(x, a => nonzero(slots::like(a, x)?));
        let mut coordinates = Vec::with_capacity(element_count(&[x.rank(), found.len()])?);
        for (axis, extent) in x.shape().iter().enumerate() {
            let stride: usize = x.shape()[axis + 1..].iter().product();
            coordinates.extend(found.iter().map(|i| (i / stride % extent) as i64));
        }
        Ok(vec![Array::new(&[x.rank(), found.len()], coordinates)?])
    }
}

/// `OneHot`: a new axis on which one element, where the index points, is on and the others are off.
#[derive(Debug, Clone)]
pub struct OneHot {
    /// Where the new axis goes, as an axis of the output.
    pub axis: i64,
}

impl OneHot {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { axis: attrs.int("axis", -1)? }))
    }

    fn depth(depth: &Array) -> Result<usize, Fault> {
        match slots::integers(depth)?.as_slice() {
            &[depth] if depth >= 0 => Ok(depth as usize),
            other => Err(format!("{other:?} is not a depth").into()),
        }
    }
}

impl Op for OneHot {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(values) = known(inputs, 2) else { return Ok(vec![None]) };
        let Some(dims) = dims(inputs, 0) else { return Ok(vec![Some(TensorType::unranked(values.dtype))]) };
        let depth = match constant(inputs, 1)? {
            Some(depth) => Dim::Known(Self::depth(&depth)?),
            None => Dim::Unknown,
        };
        let mut dims = dims.to_vec();
        dims.insert(slots::axis(self.axis, dims.len() + 1)?, depth);
        Ok(vec![Some(TensorType::new(values.dtype, dims))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (indices, depth) = (required(inputs, 0)?, Self::depth(required(inputs, 1)?)?);
        let axis = slots::axis(self.axis, indices.rank() + 1)?;
        let inner: usize = indices.shape()[axis..].iter().product();
        let mut shape = indices.shape().to_vec();
        shape.insert(axis, depth);
        let count = element_count(&shape)?;
        let indices = slots::integers(indices)?;
        let values = required(inputs, 2)?;
        Ok(vec![with_array!(values, a => {
            Array::new(&shape, one_hot(&indices, slots::like(a, values)?, [count, depth, inner])?)?
        })])
    }
}

/// An index out of range marks nothing.
fn one_hot<T: Clone>(
    indices: &[i64],
    values: &[T],
    [count, depth, inner]: [usize; 3],
) -> Result<Vec<T>, Fault> {
    let [off, on] = values else { fail!("expected an off and an on value, found {}", values.len()) };
    let mut elements = vec![off.clone(); count];
    for (i, &index) in indices.iter().enumerate() {
        let index = usize::try_from(if index < 0 { index + depth as i64 } else { index });
        if let Some(index) = index.ok().filter(|&index| index < depth) {
            elements[(i / inner * depth + index) * inner + i % inner] = on.clone();
        }
    }
    Ok(elements)
}

/// `Trilu`: the upper or lower triangle of the last two axes; the rest is 0.
#[derive(Debug, Clone)]
pub struct Trilu {
    /// The upper triangle?
    pub upper: bool,
}

impl Trilu {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { upper: attrs.flag("upper", true)? }))
    }
}

impl Op for Trilu {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let k = slots::optional(inputs, 1).map_or(Ok(0), Array::item::<i64>)?;
        let &[.., rows, columns] = x.shape() else { fail!("expected at least 2 axes, found {}", x.rank()) };
        Ok(vec![with_array!(x, a => {
            let mut elements = slots::like(a, x)?.to_vec();
            for (i, row) in elements.chunks_exact_mut(columns.max(1)).enumerate() {
                // the first element that the upper triangle keeps; the lower one ends just after the diagonal
                let diagonal = k.saturating_add((i % rows) as i64).saturating_add(i64::from(!self.upper));
                let (lower, upper) = row.split_at_mut(diagonal.clamp(0, columns as i64) as usize);
                if self.upper { lower } else { upper }.fill(Default::default());
            }
            Array::new(x.shape(), elements)?
        })])
    }
}

/// `ReverseSequence`: for each batch entry the first elements along the time axis backwards.
#[derive(Debug, Clone)]
pub struct ReverseSequence {
    /// Is time the first axis and batch the second, or the other way round?
    pub time_first: bool,
}

impl ReverseSequence {
    fn parse(attrs: &mut Attrs) -> Parsed {
        match (attrs.int("time_axis", 0)?, attrs.int("batch_axis", 1)?) {
            (0, 1) => Ok(Arc::new(Self { time_first: true })),
            (1, 0) => Ok(Arc::new(Self { time_first: false })),
            (time, batch) => Err(format!("time axis {time} and batch axis {batch} are not 0 and 1").into()),
        }
    }
}

impl Op for ReverseSequence {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, lengths) = (required(inputs, 0)?, slots::integers(required(inputs, 1)?)?);
        let &[first, second, ref rest @ ..] = x.shape() else { fail!("expected at least 2 axes") };
        let (time, batch) = if self.time_first { (first, second) } else { (second, first) };
        if lengths.len() != batch || lengths.iter().any(|&n| n < 0 || n > time as i64) {
            fail!("the lengths {lengths:?} do not fit {batch} sequences of {time}");
        }
        let row = |i: usize| {
            let (t, b) = if self.time_first { (i / batch, i % batch) } else { (i % time, i / time) };
            let length = lengths[b] as usize;
            let t = if t < length { length - 1 - t } else { t };
            if self.time_first { t * batch + b } else { b * time + t }
        };
        let rows: Vec<usize> = (0..first * second).map(row).collect();
        let inner: usize = rest.iter().product();
        Ok(vec![take_array(&x.reshaped(&[first * second, inner])?, 0, &rows)?.reshaped(x.shape())?])
    }
}

/// `Unique`: the distinct elements, or slices along an axis, where each came first, which one each is, and how often
/// it came.
#[derive(Debug, Clone)]
pub struct Unique {
    /// The axis; negative from the end; `None`: the flattened input.
    pub axis: Option<i64>,
    /// Ascending, or in the order of their first appearance?
    pub sorted: bool,
}

impl Unique {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { axis: attrs.opt_int("axis")?, sorted: attrs.flag("sorted", true)? }))
    }
}

/// Slices in lexicographic order; NaN comes last and equals itself.
#[allow(clippy::eq_op)]
fn compare<T: PartialOrd>(a: &[T], b: &[T]) -> Ordering {
    let element = |(a, b): (&T, &T)| a.partial_cmp(b).unwrap_or((a != a).cmp(&(b != b)));
    a.iter().zip(b).map(element).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
}

/// The slices along `axis` in groups of equal ones, each group and the groups in ascending order.
fn groups<T: PartialOrd + Clone + Default>(
    elements: &[T],
    shape: &[usize],
    axis: usize,
) -> Result<Vec<Vec<usize>>, Fault> {
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order[..=axis].rotate_right(1);
    let rows = read(elements, &View::new(shape)?.permuted(&order)?)?;
    let inner = rows.len() / shape[axis].max(1);
    let row = |i: usize| &rows[i * inner..][..inner];
    let mut sorted: Vec<usize> = (0..shape[axis]).collect();
    sorted.sort_by(|&a, &b| compare(row(a), row(b)));
    Ok(sorted.chunk_by(|&a, &b| compare(row(a), row(b)).is_eq()).map(<[usize]>::to_vec).collect())
}

impl Op for Unique {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let vector = |dim| Some(TensorType::new(DType::I64, vec![dim]));
        let values = known(inputs, 0).map(|ty| thinned(self.axis, ty)).transpose()?;
        Ok(vec![values, vector(Dim::Unknown), vector(Dim::Unknown), vector(Dim::Unknown)])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, axis) = flat_unless(self.axis, required(inputs, 0)?)?;
        let mut groups = with_array!(&x, a => groups(slots::like(a, &x)?, x.shape(), axis)?);
        if !self.sorted {
            groups.sort_by_key(|group| group[0]);
        }
        let first: Vec<usize> = groups.iter().map(|group| group[0]).collect();
        let mut inverse = vec![0; x.shape()[axis]];
        for (id, group) in groups.iter().enumerate() {
            group.iter().for_each(|&member| inverse[member] = id as i64);
        }
        Ok(vec![
            take_array(&x, axis, &first)?,
            Array::vector(first.iter().map(|&i| i as i64).collect()),
            Array::vector(inverse),
            Array::vector(groups.iter().map(|group| group.len() as i64).collect()),
        ])
    }
}

#[cfg(test)]
mod tests;
