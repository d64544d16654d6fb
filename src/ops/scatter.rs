//! Operators that write elements by index into a copy of the data: ScatterElements (once Scatter) and ScatterND.

use std::sync::Arc;

use half::{bf16, f16};

use super::gather::{element_positions, tuple_rows};
use super::slots::{self, known, required};
use super::{Attrs, ONNX, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Fact, Op, TensorType, with_array};
use crate::ir::small;

type Parsed = Result<Arc<dyn Op>, Fault>;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Scatter", since: 9, parse: ScatterElements::parse },
    OpDef { domain: ONNX, name: "ScatterElements", since: 11, parse: ScatterElements::parse },
    OpDef { domain: ONNX, name: "ScatterND", since: 11, parse: ScatterNd::parse },
];

/// How an update meets the element that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// It replaces it.
    None,
    /// It is added to it.
    Add,
    /// It is multiplied with it.
    Mul,
    /// The smaller one stays.
    Min,
    /// The greater one stays.
    Max,
}

impl Reduction {
    fn parse(attrs: &mut Attrs) -> Result<Self, Fault> {
        let name = if attrs.version() >= 16 { attrs.opt_string("reduction")? } else { None };
        Ok(match name.as_deref().unwrap_or("none") {
            "none" => Self::None,
            "add" => Self::Add,
            "mul" => Self::Mul,
            "min" => Self::Min,
            "max" => Self::Max,
            other => fail!("reduction {other} is unknown"),
        })
    }
}

/// An element type that a scatter can reduce.
trait Reduce: Clone {
    fn reduce(&mut self, update: &Self, reduction: Reduction) -> Result<(), Fault>;
}

macro_rules! reduce {
    ($($t:ty),*; $add:expr, $mul:expr) => { $(impl Reduce for $t {
        fn reduce(&mut self, update: &Self, reduction: Reduction) -> Result<(), Fault> {
            let (x, u): ($t, $t) = (*self, *update);
            *self = match reduction {
                Reduction::None => u,
                Reduction::Add => $add(x, u),
                Reduction::Mul => $mul(x, u),
                // a comparison with NaN is false, so that NaN stays whichever side it is on
                #[allow(clippy::eq_op)]
                Reduction::Min => if x < u || x != x { x } else { u },
                #[allow(clippy::eq_op)]
                Reduction::Max => if x > u || x != x { x } else { u },
            };
            Ok(())
        }
    })* };
}

reduce!(f32, f64, f16, bf16; |x, u| x + u, |x, u| x * u);
reduce!(i8, i16, i32, i64, u8, u16, u32, u64; |x: Self, u| x.wrapping_add(u), |x: Self, u| x.wrapping_mul(u));
reduce!(bool; |x, u| x | u, |x, u| x & u);

macro_rules! replace_only {
    ($($t:ty),*) => { $(impl Reduce for $t {
        fn reduce(&mut self, update: &Self, reduction: Reduction) -> Result<(), Fault> {
            match reduction {
                Reduction::None => self.clone_from(update),
                _ => fail!("elements of this type cannot be reduced"),
            }
            Ok(())
        }
    })* };
}

replace_only!(String, small::F8E4M3FN, small::F8E4M3FNUZ, small::F8E5M2, small::F8E5M2FNUZ, small::F8E8M0);
replace_only!(small::F4E2M1, small::U4, small::I4, small::U2, small::I2);

/// A copy of `data` in which the rows of `inner` elements met the rows of `updates`, in order.
fn scatter(
    data: &Array,
    rows: &[usize],
    inner: usize,
    updates: &Array,
    reduction: Reduction,
) -> Result<Array, Fault> {
    Ok(with_array!(data, a => {
        let mut elements = slots::like(a, data)?.to_vec();
        let updates = slots::like(a, updates)?;
        if updates.len() != rows.len() * inner {
            fail!("{} updates for {} rows of {inner} elements", updates.len(), rows.len());
        }
        for (i, row) in rows.iter().enumerate() {
            let update = &updates[i * inner..][..inner];
            let target = elements.get_mut(row * inner..(row + 1) * inner).ok_or("an index leaves the data")?;
            target.iter_mut().zip(update).try_for_each(|(x, u)| x.reduce(u, reduction))?;
        }
        Array::new(data.shape(), elements)?
    }))
}

/// `ScatterElements`: each update goes where its coordinates say, but along the axis where its index points.
#[derive(Debug, Clone)]
pub struct ScatterElements {
    /// The axis; negative from the end.
    pub axis: i64,
    /// How updates meet the data.
    pub reduction: Reduction,
}

impl ScatterElements {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { axis: attrs.int("axis", 0)?, reduction: Reduction::parse(attrs)? }))
    }
}

impl Op for ScatterElements {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (data, indices, updates) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        if indices.shape() != updates.shape() {
            fail!("indices {:?} and updates {:?} differ in shape", indices.shape(), updates.shape());
        }
        let positions = element_positions(data.shape(), indices, slots::axis(self.axis, data.rank())?)?;
        Ok(vec![scatter(data, &positions, 1, updates, self.reduction)?])
    }
}

/// `ScatterND`: each slice of updates goes where the tuple along the last axis of the indices points.
#[derive(Debug, Clone)]
pub struct ScatterNd {
    /// How updates meet the data.
    pub reduction: Reduction,
}

impl ScatterNd {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { reduction: Reduction::parse(attrs)? }))
    }
}

impl Op for ScatterNd {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (data, indices, updates) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let (rows, inner) = tuple_rows(data.shape(), indices, 0)?;
        Ok(vec![scatter(data, &rows, inner, updates, self.reduction)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reductions_wrap_and_keep_nan() {
        let mut x = 200u8;
        x.reduce(&100, Reduction::Add).unwrap();
        assert_eq!(x, 44);
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            for reduction in [Reduction::Min, Reduction::Max, Reduction::Add] {
                let mut x: f32 = a;
                x.reduce(&b, reduction).unwrap();
                assert!(x.is_nan(), "{reduction:?} {a} {b}");
            }
        }
        assert!(String::new().reduce(&String::new(), Reduction::Max).is_err());
    }

    #[test]
    fn duplicates_meet_in_order() {
        let data = Some(Array::new(&[1, 3], vec![1.0f32, 2.0, 3.0]).unwrap());
        let indices = Some(Array::new(&[1, 2], vec![1i64, -2]).unwrap());
        let updates = Some(Array::new(&[1, 2], vec![5.0f32, 6.0]).unwrap());
        let inputs = [data, indices, updates];
        let run = |reduction| ScatterElements { axis: 1, reduction }.float(&inputs).unwrap().remove(0);
        assert_eq!(run(Reduction::None), Array::new(&[1, 3], vec![1.0f32, 6.0, 3.0]).unwrap());
        assert_eq!(run(Reduction::Mul), Array::new(&[1, 3], vec![1.0f32, 60.0, 3.0]).unwrap());
        assert!(ScatterElements { axis: 2, reduction: Reduction::None }.float(&inputs).is_err());
    }

    #[test]
    fn updates_must_fit() {
        let data = Some(Array::new(&[2, 2], vec![0i32; 4]).unwrap());
        let indices = Some(Array::new(&[1, 1], vec![1i64]).unwrap());
        let op = ScatterNd { reduction: Reduction::Add };
        let run = |updates| op.float(&[data.clone(), indices.clone(), Some(Array::vector(updates))]);
        assert_eq!(run(vec![3, 4]).unwrap()[0], Array::new(&[2, 2], vec![0, 0, 3, 4]).unwrap());
        assert!(run(vec![3]).is_err());
    }

    #[test]
    fn backend_cases() {
        crate::ops::backend_tests::run("scatter");
    }
}
