//! The choice of elements by size: ArgMax, ArgMin and TopK.
//!
//! Of equal elements the one with the lowest index comes first. Not-a-number counts as the greatest.

use std::cmp::Ordering;
use std::sync::Arc;

use half::{bf16, f16};

use super::operand::{elements};
use super::slots::{self, around, constant, known, required};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, Element, TensorType, element_count};
use crate::kernels::reduce::position_axis;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "ArgMax", since: 1, parse: |a| Arg::parse(a, true) },
    OpDef { domain: ONNX, name: "ArgMin", since: 1, parse: |a| Arg::parse(a, false) },
    OpDef { domain: ONNX, name: "TopK", since: 1, parse: TopK::parse },
];

/// An element type with an order.
trait Ranked: Element {
    fn rank(&self, other: &Self) -> Ordering;
}

macro_rules! ranked {
    (whole: $($t:ty),*; real: $($r:ty),*) => {
        $(impl Ranked for $t { fn rank(&self, other: &Self) -> Ordering { self.cmp(other) } })*
        $(impl Ranked for $r {
            fn rank(&self, other: &Self) -> Ordering {
                self.partial_cmp(other).unwrap_or_else(|| self.is_nan().cmp(&other.is_nan()))
            }
        })*
        macro_rules! by_type {
            ($array:expr, $a:ident => $body:expr) => {
                match $array {
                    Array::F32($a) => $body, Array::F64($a) => $body, Array::F16($a) => $body,
                    Array::BF16($a) => $body, Array::I8($a) => $body, Array::I16($a) => $body,
                    Array::I32($a) => $body, Array::I64($a) => $body, Array::U8($a) => $body,
                    Array::U16($a) => $body, Array::U32($a) => $body, Array::U64($a) => $body,
                    other => Err(format!("expected numbers, found {}", other.dtype()).into()),
                }
            };
        }
    };
}
ranked!(whole: i8, i16, i32, i64, u8, u16, u32, u64; real: f32, f64, f16, bf16);

/// ArgMax and ArgMin: the index of the greatest or least element along an axis.
/// See <https://onnx.ai/onnx/operators/onnx__ArgMax.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct Arg {
    /// The greatest, not the least.
    pub largest: bool,
    /// The axis searched.
    pub axis: i64,
    /// Does the axis stay, with extent 1?
    pub keepdims: bool,
    /// Of equal elements the last instead of the first.
    pub select_last_index: bool,
}

impl Arg {
    fn parse(attrs: &mut Attrs, largest: bool) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self {
            largest,
            axis: attrs.int("axis", 0)?,
            keepdims: attrs.flag("keepdims", true)?,
            select_last_index: attrs.version() >= 12 && attrs.flag("select_last_index", false)?,
        }))
    }
}

impl Op for Arg {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let mut dims = known(inputs, 0).and_then(|t| t.dims.clone());
        if let Some(dims) = &mut dims {
            let axis = slots::axis(self.axis, dims.len())?;
            match self.keepdims {
                true => dims[axis] = Dim::Known(1),
                false => drop(dims.remove(axis)),
            }
        }
        Ok(vec![Some(TensorType { dtype: DType::I64, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let axis = slots::axis(self.axis, x.rank())?;
        let extents @ (outer, n, inner) = around(x.shape(), axis);
        if n == 0 && outer * inner > 0 {
            fail!("{:?} has no element along axis {axis}", x.shape());
        }
        let wanted = if self.largest { Ordering::Greater } else { Ordering::Less };
        let positions: Result<Vec<i64>, Fault> = by_type!(x, a => {
            let last = self.select_last_index;
            Ok(position_axis(elements(a)?, extents, |v, best| {
                let order = v.rank(&best);
                order == wanted || (last && order == Ordering::Equal)
            }))
        });
        let mut shape = x.shape().to_vec();
        match self.keepdims {
            true => shape[axis] = 1,
            false => drop(shape.remove(axis)),
        }
        Ok(vec![Array::new(&shape, positions?)?])
    }
}

/// TopK: the greatest or least elements along an axis, with their indices.
/// See <https://onnx.ai/onnx/operators/onnx__TopK.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct TopK {
    /// How many; `None`: input 1 says.
    pub k: Option<i64>,
    /// The axis searched.
    pub axis: i64,
    /// The greatest, not the least.
    pub largest: bool,
    /// In order of size; otherwise in any order, here that of the indices.
    pub sorted: bool,
}

impl TopK {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let version = attrs.version();
        let k = if version < 10 { attrs.opt_int("k")? } else { None };
        if version < 10 && k.is_none() {
            fail!("attribute k is missing");
        }
        let (largest, sorted) = match version {
            ..11 => (true, true),
            _ => (attrs.flag("largest", true)?, attrs.flag("sorted", true)?),
        };
        Ok(Arc::new(Self { k, axis: attrs.int("axis", -1)?, largest, sorted }))
    }

    fn count(&self, input: Option<&Array>) -> Result<Option<usize>, Fault> {
        let k = match (self.k, input) {
            (Some(k), _) => k,
            (None, Some(input)) => input.item::<i64>()?,
            (None, None) => return Ok(None),
        };
        usize::try_from(k).map(Some).map_err(|_| format!("K is {k}").into())
    }

    fn run<T: Ranked>(
        &self,
        x: &[T],
        shape: &[usize],
        axis: usize,
        k: usize,
    ) -> Result<(Vec<T>, Vec<i64>), Fault> {
        let (outer, n, inner) = around(shape, axis);
        if k > n {
            fail!("K is {k}, but axis {axis} of {shape:?} has {n} elements");
        }
        let count = element_count(&[outer, k, inner])?;
        let (mut values, mut indices) = (Vec::with_capacity(count), vec![0; count]);
        let mut order: Vec<usize> = Vec::new();
        for column in 0..if k == 0 { 0 } else { outer * inner } {
            let (o, i) = (column / inner, column % inner);
            let at = |index: usize| &x[(o * n + index) * inner + i];
            let before = |a: &usize, b: &usize| {
                let size = at(*a).rank(at(*b));
                if self.largest { size.reverse() } else { size }.then(a.cmp(b))
            };
            order.clear();
            order.extend(0..n);
            if k < n {
                order.select_nth_unstable_by(k - 1, before);
                order.truncate(k);
            }
            match self.sorted {
                true => order.sort_unstable_by(before),
                false => order.sort_unstable(),
            }
            for (row, &index) in order.iter().enumerate() {
                indices[(o * k + row) * inner + i] = index as i64;
            }
        }
        for (position, &index) in indices.iter().enumerate() {
            let (o, i) = (position / (k * inner), position % inner);
            values.push(x[(o * n + index as usize) * inner + i].clone());
        }
        Ok((values, indices))
    }
}

impl Op for TopK {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let k = self.count(constant(inputs, 1)?.as_ref())?;
        let mut dims = x.dims.clone();
        if let Some(dims) = &mut dims {
            let axis = slots::axis(self.axis, dims.len())?;
            dims[axis] = k.map_or(Dim::Unknown, Dim::Known);
        }
        let indices = TensorType { dtype: DType::I64, dims: dims.clone() };
        Ok(vec![Some(TensorType { dtype: x.dtype, dims }), Some(indices)])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let axis = slots::axis(self.axis, x.rank())?;
        let Some(k) = self.count(slots::optional(inputs, 1))? else { fail!("K is missing") };
        let mut shape = x.shape().to_vec();
        shape[axis] = k;
        by_type!(x, a => {
            let (values, indices) = self.run(elements(a)?, x.shape(), axis, k)?;
            Ok(vec![Array::new(&shape, values)?, Array::new(&shape, indices)?])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::int;
    use crate::ops::operand::run;

    fn f32s(shape: &[usize], x: &[f32]) -> Option<Array> {
        Some(Array::new(shape, x.to_vec()).unwrap())
    }

    #[test]
    fn index_of_the_extreme() {
        let x = f32s(&[2, 3], &[2.0, 7.0, 7.0, 1.0, 1.0, 5.0]);
        let arg = |name, attributes: &[_]| run(name, 13, attributes, std::slice::from_ref(&x), 1).unwrap().remove(0);
        assert_eq!(arg("ArgMax", &[int("axis", 1)]), Array::new(&[2, 1], vec![1i64, 2]).unwrap());
        assert_eq!(arg("ArgMin", &[int("axis", -1), int("keepdims", 0)]), Array::vector(vec![0i64, 0]));
        let last = [int("axis", 1), int("keepdims", 0), int("select_last_index", 1)];
        assert_eq!(arg("ArgMax", &last), Array::vector(vec![2i64, 2]));
        assert_eq!(arg("ArgMin", &last), Array::vector(vec![0i64, 1]));
        assert_eq!(arg("ArgMax", &[]), Array::new(&[1, 3], vec![0i64, 0, 0]).unwrap());
    }

    #[test]
    fn greatest_and_least() {
        let x = f32s(&[2, 4], &[1.0, 9.0, 9.0, 3.0, f32::NAN, 2.0, -1.0, 0.0]);
        let k = Some(Array::vector(vec![2i64]));
        let found = run("TopK", 11, &[], &[x.clone(), k.clone()], 2).unwrap();
        assert_eq!(found[1], Array::new(&[2, 2], vec![1i64, 2, 0, 1]).unwrap());
        assert_eq!(found[0].slice::<f32>().unwrap()[..2], [9.0, 9.0]);
        let found = run("TopK", 11, &[int("largest", 0)], &[x, k.clone()], 2).unwrap();
        assert_eq!(found[0], f32s(&[2, 2], &[1.0, 3.0, -1.0, 0.0]).unwrap());
        let x = f32s(&[3, 2], &[1.0, 6.0, 3.0, 5.0, 2.0, 4.0]);
        let found = run("TopK", 11, &[int("axis", 0), int("sorted", 0)], &[x.clone(), k], 2).unwrap();
        assert_eq!(found[1], Array::new(&[2, 2], vec![1i64, 0, 2, 1]).unwrap());
        assert_eq!(found[0], f32s(&[2, 2], &[3.0, 6.0, 2.0, 5.0]).unwrap());
        assert!(run("TopK", 11, &[], &[x.clone(), Some(Array::vector(vec![3i64]))], 2).is_err());
        assert_eq!(run("TopK", 1, &[int("k", 1)], &[x], 2).unwrap()[1].slice::<i64>().unwrap(), [1, 1, 1]);
    }

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("select");
    }
}
