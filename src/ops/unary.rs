//! Functions of one element: roots, logarithms, trigonometry, rounding, signs and tests.

mod gradient;

use std::sync::Arc;

use super::elementwise::{RealMap, integers, like_first, numbers, real, through_reals};
use super::slots::{known, required};
use super::{Attrs, ONNX, Op, OpDef, integer, Gradient};
use crate::error::Fault;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{Array, DType, Fact, TensorType};
use crate::kernels::math::{Real, map, of_slice};
use crate::kernels::number::{Integer, Number};

macro_rules! functions {
    ($($name:ident $since:literal;)*) => {
        /// A function from each element to one of the same type.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum Unary { $($name),* }

        /// The family.
        pub const OPS: &[OpDef] = &[
            $(OpDef { domain: ONNX, name: stringify!($name), since: $since, parse: |a| plain(a, Unary::$name) },)*
            OpDef { domain: ONNX, name: "IsNaN", since: 9, parse: |_| Ok(Arc::new(IsNaN)) },
            OpDef { domain: ONNX, name: "IsInf", since: 10, parse: IsInf::parse },
            OpDef { domain: ONNX, name: "Not", since: 1, parse: |_| Ok(Arc::new(Not)) },
            OpDef { domain: ONNX, name: "BitwiseNot", since: 18, parse: |_| Ok(Arc::new(BitwiseNot)) },
        ];
    };
}

functions! {
    Abs 1; Neg 1; Sign 9; Exp 1; Log 1; Sqrt 1; Reciprocal 1; Floor 1; Ceil 1; Round 11; Erf 9; Sin 7; Cos 7; Tan 7;
    Asin 7; Acos 7; Atan 7; Sinh 9; Cosh 9; Asinh 9; Acosh 9; Atanh 9;
}

fn plain(attrs: &mut Attrs, function: Unary) -> Result<Arc<dyn Op>, Fault> {
    attrs.opt_ints("consumed_inputs")?; // opset 1: a hint about memory
    Ok(Arc::new(function))
}

impl RealMap for Unary {
    fn map<T: Real>(&self, x: &[T]) -> Vec<T> {
        let (zero, one) = (T::from(0.0), T::from(1.0));
        match self {
            Self::Abs => map(x, T::magnitude),
            Self::Neg => map(x, |v| -v),
            Self::Sign => map(x, |v| {
                if v > zero {
                    one
                } else if v < zero {
                    -one
                } else {
                    v
                }
            }),
            Self::Exp => of_slice(x, T::exp_slice),
            Self::Log => map(x, T::log),
            Self::Sqrt => map(x, T::root),
            Self::Reciprocal => map(x, |v| one / v),
            Self::Floor => map(x, T::floored),
            Self::Ceil => map(x, T::ceiled),
            Self::Round => map(x, T::rounded),
            Self::Erf => of_slice(x, T::erf_slice),
            Self::Sin => map(x, T::sine),
            Self::Cos => map(x, T::cosine),
            Self::Tan => map(x, T::tangent),
            Self::Asin => map(x, T::arcsine),
            Self::Acos => map(x, T::arccosine),
            Self::Atan => map(x, T::arctangent),
            Self::Sinh => map(x, T::hyperbolic_sine),
            Self::Cosh => map(x, T::hyperbolic_cosine),
            Self::Asinh => map(x, T::area_sine),
            Self::Acosh => map(x, T::area_cosine),
            Self::Atanh => map(x, T::area_tangent),
        }
    }
}

impl Op for Unary {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        like_first(inputs)
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        integer::elementwise::table(self, unit)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        if x.dtype().is_float() {
            return Ok(vec![real(self, x)?]);
        }
        let y = integers!(x, v => match self {
            Self::Abs => Array::new(x.shape(), map(v, Number::abs)),
            Self::Neg => Array::new(x.shape(), map(v, Number::neg)),
            Self::Sign => Array::new(x.shape(), map(v, Number::sign)),
            // Erf takes any number; so may the others.
            _ => Array::new(x.shape(), through_reals(self, v)),
        });
        Ok(vec![y?])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        if self.is_step() { None } else { Some(self) }
    }
}

/// A truth value with the dimensions of the first input.
fn boolean(inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
    let dims = known(inputs, 0).and_then(|ty| ty.dims.clone());
    Ok(vec![Some(TensorType { dtype: DType::Bool, dims })])
}

/// Is the element not a number?
#[derive(Debug)]
pub struct IsNaN;

impl Op for IsNaN {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        boolean(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        Ok(vec![numbers!(x, v => Array::new(x.shape(), map(v, Number::is_nan)))?])
    }
}

/// Is the element infinite?
#[derive(Debug)]
pub struct IsInf {
    /// Does `-inf` count?
    pub negative: bool,
    /// Does `+inf` count?
    pub positive: bool,
}

impl IsInf {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let (negative, positive) =
            (attrs.flag("detect_negative", true)?, attrs.flag("detect_positive", true)?);
        Ok(Arc::new(Self { negative, positive }))
    }
}

impl Op for IsInf {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        boolean(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let infinite = |v: f64| v.is_infinite() && if v < 0.0 { self.negative } else { self.positive };
        Ok(vec![numbers!(x, v => Array::new(x.shape(), map(v, |v| infinite(v.to_f64()))))?])
    }
}

/// Logical negation.
#[derive(Debug)]
pub struct Not;

impl Op for Not {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        boolean(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        Ok(vec![Array::new(x.shape(), map(x.slice::<bool>()?, |v| !v))?])
    }
}

/// Every bit inverted.
#[derive(Debug)]
pub struct BitwiseNot;

impl Op for BitwiseNot {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        like_first(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        Ok(vec![integers!(x, v => Array::new(x.shape(), map(v, Integer::not)))?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(op: &dyn Op, x: Array) -> Result<Array, Fault> {
        op.float(&[Some(x)]).map(|mut y| y.remove(0))
    }

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("unary");
    }

    #[test]
    fn halves_round_to_even() {
        let y = run(&Unary::Round, Array::vector(vec![0.5f32, 1.5, 2.5, -0.5, -1.5, -2.7])).unwrap();
        assert_eq!(y, Array::vector(vec![0.0f32, 2.0, 2.0, -0.0, -2.0, -3.0]));
    }

    #[test]
    fn integers_stay_integers() {
        assert_eq!(
            run(&Unary::Abs, Array::vector(vec![-3i8, -128])).unwrap(),
            Array::vector(vec![3i8, -128])
        );
        assert_eq!(run(&Unary::Sign, Array::vector(vec![7u8, 0])).unwrap(), Array::vector(vec![1u8, 0]));
        assert!(run(&Unary::Exp, Array::vector(vec![true])).is_err());
        assert!(Unary::Exp.float(&[]).is_err());
    }

    #[test]
    fn half_floats_round_once() {
        let y = run(&Unary::Sqrt, Array::vector(vec![half::f16::from_f32(2.0)])).unwrap();
        assert_eq!(y, Array::vector(vec![half::f16::from_f32(std::f32::consts::SQRT_2)]));
    }
}
