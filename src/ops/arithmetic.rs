//! Arithmetic on two or more broadcast operands, and on the bits of integers.
//!
//! Before opset 7 the second operand of `Add` and its kin was aligned by the attributes `broadcast` and `axis` instead
//! of at its last axis; see `align`.

mod gradient;

use std::borrow::Cow;
use std::sync::Arc;

use super::cast::convert;
use super::elementwise::{broadcast_dims, broadcast_type, first_dtype, integers, like_first, numbers};
use super::slots::{known, required};
use super::{Attrs, ONNX, Op, OpDef, Operands, Rule, integer, Gradient};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{Array, DType, Fact, TensorType};
use crate::kernels::broadcast::zip;
use crate::kernels::math::{Real, map};
use crate::kernels::number::{Integer, Number};

const fn def(name: &'static str, since: i64, parse: fn(&mut Attrs) -> Result<Arc<dyn Op>, Fault>) -> OpDef {
    OpDef { domain: ONNX, name, since, parse }
}

/// The family.
pub const OPS: &[OpDef] = &[
    def("Add", 1, |a| Binary::parse(a, Function::Add)),
    def("Sub", 1, |a| Binary::parse(a, Function::Sub)),
    def("Mul", 1, |a| Binary::parse(a, Function::Mul)),
    def("Div", 1, |a| Binary::parse(a, Function::Div)),
    def("Pow", 1, |a| Ok(Arc::new(Pow { axis: legacy_axis(a)? }))),
    def("Mod", 10, |a| {
        let truncate = a.flag("fmod", false)?;
        Binary::parse(a, if truncate { Function::Rem } else { Function::Mod })
    }),
    def("Min", 1, |a| Variadic::parse(a, Fold::Min)),
    def("Max", 1, |a| Variadic::parse(a, Fold::Max)),
    def("Sum", 1, |a| Variadic::parse(a, Fold::Sum)),
    def("Mean", 1, |a| Variadic::parse(a, Fold::Mean)),
    def("BitShift", 11, |a| match a.string("direction", "")?.as_str() {
        "LEFT" => Ok(Arc::new(Bits::ShiftLeft)),
        "RIGHT" => Ok(Arc::new(Bits::ShiftRight)),
        other => fail!("direction is \"{other}\", not LEFT or RIGHT"),
    }),
    def("BitwiseAnd", 18, |_| Ok(Arc::new(Bits::And))),
    def("BitwiseOr", 18, |_| Ok(Arc::new(Bits::Or))),
    def("BitwiseXor", 18, |_| Ok(Arc::new(Bits::Xor))),
];

/// Reads `broadcast` and `axis` (before opset 7): the axis of the first operand at which the second one starts.
pub(super) fn legacy_axis(attrs: &mut Attrs) -> Result<Option<i64>, Fault> {
    if attrs.version() >= 7 {
        return Ok(None);
    }
    attrs.opt_ints("consumed_inputs")?; // opset 1: a hint about memory
    let (axis, broadcast) = (attrs.opt_int("axis")?, attrs.flag("broadcast", false)?);
    Ok(axis.filter(|_| broadcast))
}

/// Appends axes of extent 1 to `b` so that its first axis falls on `axis` of an operand of rank `rank`.
pub(super) fn align(b: &Array, rank: usize, axis: Option<i64>) -> Result<Cow<'_, Array>, Fault> {
    let Some(axis) = axis else { return Ok(Cow::Borrowed(b)) };
    let start = if axis < 0 { axis.checked_add(rank as i64) } else { Some(axis) };
    let start = start.and_then(|s| usize::try_from(s).ok());
    let Some(trailing) = start.and_then(|s| rank.checked_sub(s)?.checked_sub(b.rank())) else {
        if b.len() == 1 {
            return Ok(Cow::Borrowed(b));
        }
        fail!("{} axes from axis {axis} do not fit into rank {rank}", b.rank());
    };
    let mut shape = b.shape().to_vec();
    shape.resize(shape.len() + trailing, 1);
    b.reshaped(&shape).map(Cow::Owned)
}

/// The type of a binary operator's output, with the element type `dtype`.
pub(super) fn binary_type(
    inputs: &[Option<Fact>],
    axis: Option<i64>,
    dtype: Option<DType>,
) -> Result<Vec<Option<TensorType>>, Fault> {
    match axis {
        None => broadcast_type(dtype, inputs.get(..2).unwrap_or(inputs)),
        Some(_) => {
            let dims = known(inputs, 0).and_then(|ty| ty.dims.clone());
            Ok(vec![dtype.map(|dtype| TensorType { dtype, dims })])
        }
    }
}

/// An operator on two numbers of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binary {
    /// What it computes.
    pub function: Function,
    /// Before opset 7: where the second operand starts.
    pub axis: Option<i64>,
}

/// What a [`Binary`] computes. Integers wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a · b
    Mul,
    /// a / b; integers round towards zero.
    Div,
    /// Remainder with the sign of b.
    Mod,
    /// Remainder with the sign of a.
    Rem,
}

impl Binary {
    fn parse(attrs: &mut Attrs, function: Function) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { function, axis: legacy_axis(attrs)? }))
    }

    fn compute<T: Number>(
        &self,
        a: (&[T], &[usize]),
        b: (&[T], &[usize]),
    ) -> Result<(Vec<usize>, Vec<T>), Fault> {
        let divides = matches!(self.function, Function::Div | Function::Mod | Function::Rem);
        if T::INTEGER && divides && b.0.contains(&T::default()) {
            return Err("integer division by zero".into());
        }
        match self.function {
            Function::Add => zip(a, b, |x, y| x.add(*y)),
            Function::Sub => zip(a, b, |x, y| x.sub(*y)),
            Function::Mul => zip(a, b, |x, y| x.mul(*y)),
            Function::Div => zip(a, b, |x, y| x.div(*y)),
            Function::Mod => zip(a, b, |x, y| x.modulo(*y)),
            Function::Rem => zip(a, b, |x, y| x.rem(*y)),
        }
    }
}

impl Op for Binary {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        binary_type(inputs, self.axis, first_dtype(inputs))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let a = required(inputs, 0)?;
        let b = align(required(inputs, 1)?, a.rank(), self.axis)?;
        let y = numbers!(a, x => {
            let (shape, values) = self.compute((x, a.shape()), (b.slice()?, b.shape()))?;
            Array::new(&shape, values)
        });
        Ok(vec![y?])
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        match self.function {
            Function::Add if self.axis.is_none() => integer::elementwise::binary(integer::Function::Add, unit),
            Function::Mul if self.axis.is_none() => integer::elementwise::binary(integer::Function::Mul, unit),
            _ => None,
        }
    }

    fn rule(&self) -> Rule {
        match self.function {
            Function::Add | Function::Mul => Rule::Arithmetic(Operands::Two),
            _ => Rule::Float,
        }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        match self.function {
            Function::Mod | Function::Rem => None,
            _ => Some(self),
        }
    }
}

/// The first operand to the power of the second, in the type of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pow {
    /// Before opset 7: where the second operand starts.
    pub axis: Option<i64>,
}

/// Exact, wrapping, where the exponent is not negative.
fn integer_power<T: Integer>(x: &T, exponent: &i64) -> T {
    match u64::try_from(*exponent) {
        Ok(n) => x.power(n),
        Err(_) => real_power(x, &(*exponent as f64)),
    }
}

fn real_power<T: Number>(x: &T, exponent: &f64) -> T {
    T::from_f64(libm::pow(x.to_f64(), *exponent))
}

impl Pow {
    fn float_32(x: &[f32], shape: &[usize], b: &Array) -> Result<(Vec<usize>, Vec<f32>), Fault> {
        let e: &[f32] = b.slice()?;
        match e {
            [2.0] => zip((x, shape), (e, b.shape()), |x, _| x * x),
            [0.5] => {
                zip(
                    (x, shape),
                    (e, b.shape()),
                    |x, _| if x.is_finite() { (x + 0.0).sqrt() } else { x.power(0.5) },
                )
            }
            _ => zip((x, shape), (e, b.shape()), |x, e| x.power(*e)),
        }
    }
}

impl Op for Pow {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        binary_type(inputs, self.axis, known(inputs, 0).map(|ty| ty.dtype))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let a = required(inputs, 0)?;
        let b = align(required(inputs, 1)?, a.rank(), self.axis)?;
        if let (Array::F32(_), Array::F32(_)) = (a, &*b) {
            let (shape, values) = Self::float_32(a.slice()?, a.shape(), &b)?;
            return Ok(vec![Array::new(&shape, values)?]);
        }
        let y = if a.dtype().is_float() || b.dtype().is_float() {
            let e = convert(&b, DType::F64)?;
            numbers!(a, x => {
                let (shape, values) = zip((x, a.shape()), (e.slice()?, e.shape()), real_power)?;
                Array::new(&shape, values)
            })
        } else {
            let e = convert(&b, DType::I64)?;
            integers!(a, x => {
                let (shape, values) = zip((x, a.shape()), (e.slice()?, e.shape()), integer_power)?;
                Array::new(&shape, values)
            })
        };
        Ok(vec![y?])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// One result from any number of operands of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variadic {
    /// How they are combined.
    pub fold: Fold,
}

/// How a [`Variadic`] combines its operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// The least; NaN if any is.
    Min,
    /// The greatest; NaN if any is.
    Max,
    /// The sum, from the first to the last.
    Sum,
    /// The sum over the number of operands.
    Mean,
}

impl Variadic {
    fn parse(attrs: &mut Attrs, fold: Fold) -> Result<Arc<dyn Op>, Fault> {
        attrs.opt_ints("consumed_inputs")?; // opset 1: a hint about memory
        Ok(Arc::new(Self { fold }))
    }

    fn compute<T: Number>(
        &self,
        a: (&[T], &[usize]),
        b: (&[T], &[usize]),
    ) -> Result<(Vec<usize>, Vec<T>), Fault> {
        match self.fold {
            Fold::Min => zip(a, b, |x, y| x.min(*y)),
            Fold::Max => zip(a, b, |x, y| x.max(*y)),
            Fold::Sum | Fold::Mean => zip(a, b, |x, y| x.add(*y)),
        }
    }
}

impl Op for Variadic {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        match inputs {
            [_] => like_first(inputs),
            _ => Ok(vec![
                first_dtype(inputs)
                    .map(|d| Ok::<_, Fault>(TensorType { dtype: d, dims: broadcast_dims(inputs)? }))
                    .transpose()?,
            ]),
        }
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let mut total = required(inputs, 0)?.clone();
        for slot in 1..inputs.len() {
            let next = required(inputs, slot)?;
            total = numbers!(&total, x => {
                let (shape, values) = self.compute((x, total.shape()), (next.slice()?, next.shape()))?;
                Array::new(&shape, values)
            })?;
        }
        if self.fold == Fold::Mean {
            let count = inputs.len() as f64;
            total = numbers!(&total, x => Array::new(total.shape(), map(x, |v| quotient(v, count))))?;
        }
        Ok(vec![total])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

fn quotient<T: Number>(value: T, by: f64) -> T {
    T::from_f64(value.to_f64() / by)
}

/// An operator on the bits of two integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Bits {
    And,
    Or,
    Xor,
    ShiftLeft,
    /// Keeps the sign.
    ShiftRight,
}

impl Op for Bits {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        binary_type(inputs, None, first_dtype(inputs))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let y = integers!(a, x => {
            let (x, y) = ((x, a.shape()), (b.slice()?, b.shape()));
            let (shape, values) = match self {
                Self::And => zip(x, y, |x, y| x.and(*y)),
                Self::Or => zip(x, y, |x, y| x.or(*y)),
                Self::Xor => zip(x, y, |x, y| x.xor(*y)),
                Self::ShiftLeft => zip(x, y, |x, y| x.shift_left(*y)),
                Self::ShiftRight => zip(x, y, |x, y| x.shift_right(*y)),
            }?;
            Array::new(&shape, values)
        });
        Ok(vec![y?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("arithmetic");
    }

    fn run(op: &dyn Op, inputs: &[Array]) -> Result<Array, Fault> {
        op.float(&inputs.iter().cloned().map(Some).collect::<Vec<_>>()).map(|mut y| y.remove(0))
    }

    #[test]
    fn the_second_operand_is_aligned_before_opset_7() {
        let a = Array::new(&[2, 3, 2], vec![0f32; 12]).unwrap();
        let b = Array::vector(vec![1f32, 2.0, 3.0]);
        let op = Binary { function: Function::Add, axis: Some(1) };
        let y = run(&op, &[a.clone(), b.clone()]).unwrap();
        assert_eq!(y.slice::<f32>().unwrap(), [1., 1., 2., 2., 3., 3., 1., 1., 2., 2., 3., 3.]);
        let negative = Binary { function: Function::Add, axis: Some(-2) };
        assert_eq!(run(&negative, &[a.clone(), b.clone()]).unwrap(), y);
        for axis in [3, 2, -4, i64::MAX, i64::MIN] {
            assert!(run(&Binary { axis: Some(axis), ..op }, &[a.clone(), b.clone()]).is_err());
        }
    }

    #[test]
    fn integer_division_by_zero_is_a_fault() {
        let op = Binary { function: Function::Div, axis: None };
        assert!(run(&op, &[Array::scalar(1i32), Array::scalar(0i32)]).is_err());
        assert!(run(&op, &[Array::scalar(1i32), Array::scalar(0f32)]).is_err());
        assert_eq!(
            run(&op, &[Array::scalar(1f32), Array::scalar(0f32)]).unwrap(),
            Array::scalar(f32::INFINITY)
        );
    }

    #[test]
    fn powers() {
        let x = Array::vector(vec![-3f32, 0.0, 2.0, f32::NEG_INFINITY]);
        let y = run(&Pow { axis: None }, &[x.clone(), Array::scalar(2f32)]).unwrap();
        assert_eq!(y.slice::<f32>().unwrap(), [9.0, 0.0, 4.0, f32::INFINITY]);
        let y = run(&Pow { axis: None }, &[x, Array::scalar(0.5f32)]).unwrap();
        assert!(y.slice::<f32>().unwrap()[0].is_nan());
        assert_eq!(y.slice::<f32>().unwrap()[1..], [0.0, std::f32::consts::SQRT_2, f32::INFINITY]);
        let exact = run(&Pow { axis: None }, &[Array::scalar(3i64), Array::scalar(39i64)]).unwrap();
        assert_eq!(exact, Array::scalar(4_052_555_153_018_976_267i64));
    }

    #[test]
    fn means_and_extremes_of_many() {
        let inputs = [1f32, 4.0, 2.5].map(Array::scalar);
        let run = |fold| run(&Variadic { fold }, &inputs).unwrap().item::<f32>().unwrap();
        assert_eq!([Fold::Min, Fold::Max, Fold::Sum, Fold::Mean].map(run), [1.0, 4.0, 7.5, 2.5]);
    }
}
