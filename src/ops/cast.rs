//! Operators that keep or convert elements: `Cast`, `CastLike`, `Identity`, and `Dropout`, which is the identity at
//! inference.

use std::sync::Arc;

use super::elementwise::{like_first, numbers};
use super::slots::{known, optional, required};
use super::gradient::{Gradients, reshaped};
use super::{Attrs, Gradient, ONNX, Op, OpDef, Rule, Run};
use crate::error::Fault;
use crate::fail;
use crate::ir::small::{self, F8E8M0, Minifloat, Nibble, Towards};
use crate::ir::{Array, DType, Datum, Fact, TensorType};
use crate::kernels::math::map;
use crate::kernels::number::Number;

const fn def(name: &'static str, since: i64, parse: fn(&mut Attrs) -> Result<Arc<dyn Op>, Fault>) -> OpDef {
    OpDef { domain: ONNX, name, since, parse }
}

/// The family.
pub const OPS: &[OpDef] = &[
    def("Cast", 1, Cast::parse_name),
    def("Cast", 6, Cast::parse),
    def("CastLike", 15, |a| Ok(Arc::new(CastLike { rounding: Rounding::read(a)? }))),
    def("Identity", 1, |_| Ok(Arc::new(Identity))),
    def("Dropout", 1, |a| {
        a.opt_ints("consumed_inputs")?;
        a.opt_int("is_test")?;
        Dropout::parse(a, Mask::LikeInput)
    }),
    def("Dropout", 7, |a| Dropout::parse(a, Mask::LikeInput)),
    def("Dropout", 10, |a| Dropout::parse(a, Mask::Bool)),
    def("Dropout", 12, |a| {
        a.opt_int("seed")?;
        Dropout::parse(a, Mask::Bool)
    }),
];

/// How numbers become 8-bit floats; other types know one way only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rounding {
    /// Does a number that is too large become the largest one?
    pub saturate: bool,
    /// Which power of two a number between two becomes.
    pub towards: Towards,
}

impl Default for Rounding {
    fn default() -> Self {
        Self { saturate: true, towards: Towards::Up }
    }
}

impl Rounding {
    fn read(attrs: &mut Attrs) -> Result<Self, Fault> {
        let towards = match attrs.string("round_mode", "up")?.as_str() {
            "up" => Towards::Up,
            "down" => Towards::Down,
            "nearest" => Towards::Nearest,
            other => fail!("unknown round_mode {other}"),
        };
        Ok(Self { saturate: attrs.flag("saturate", true)?, towards })
    }
}

/// Converts to an element type. Integers keep their low bits; real numbers round to nearest, or towards zero for an
/// integer, and saturate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// The element type of the output.
    pub to: DType,
    /// How numbers become 8-bit floats.
    pub rounding: Rounding,
}

impl Cast {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let rounding = Rounding::read(attrs)?;
        let code = attrs.opt_int("to")?.ok_or("attribute to is missing")?;
        match i32::try_from(code).ok().and_then(DType::from_onnx) {
            Some(to) => Ok(Arc::new(Self { to, rounding })),
            None => fail!("unknown element type {code}"),
        }
    }

    /// Before opset 6 the type is given by its name.
    fn parse_name(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let name = attrs.opt_string("to")?.ok_or("attribute to is missing")?.to_lowercase();
        match (1..=16).filter_map(DType::from_onnx).find(|t| t.name() == name) {
            Some(to) => Ok(Arc::new(Self { to, rounding: Rounding::default() })),
            None => fail!("unknown element type {name}"),
        }
    }
}

impl Op for Cast {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = known(inputs, 0).and_then(|ty| ty.dims.clone());
        Ok(vec![Some(TensorType { dtype: self.to, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        Ok(vec![convert_rounding(required(inputs, 0)?, self.to, self.rounding)?])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        if self.to.is_float() { Some(self) } else { None }
    }
}

impl Gradient for Cast {
    fn backward(&self, run: &Run) -> Gradients {
        // The gradient of a real number has its type.
        Ok(vec![Some(convert(run.upstream(0)?, run.input(0)?.dtype())?)])
    }
}

/// Converts to the element type of the second input.
#[derive(Debug)]
pub struct CastLike {
    /// How numbers become 8-bit floats.
    pub rounding: Rounding,
}

impl Op for CastLike {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        match known(inputs, 1) {
            Some(like) => Cast { to: like.dtype, rounding: self.rounding }.infer(inputs),
            None => Ok(vec![None]),
        }
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        Cast { to: required(inputs, 1)?.dtype(), rounding: self.rounding }.float(inputs)
    }
}

/// Elements between two types, in a type that holds all of them.
enum Wide {
    Integers(Vec<i128>),
    Reals(Vec<f64>),
}

fn widen<T: Number>(x: &[T]) -> Wide {
    if T::INTEGER { Wide::Integers(map(x, T::to_i128)) } else { Wide::Reals(map(x, T::to_f64)) }
}

impl Wide {
    fn of(x: &Array) -> Result<Self, Fault> {
        match x {
            Array::Bool(_) => Ok(Self::Integers(map(x.slice::<bool>()?, i128::from))),
            Array::Str(_) => {
                Ok(Self::Reals(x.slice::<String>()?.iter().map(|s| parse(s)).collect::<Result<_, _>>()?))
            }
            Array::F8E4M3FN(a) => Ok(Self::Reals(a.iter().map(|v| v.to_f64()).collect())),
            Array::F8E4M3FNUZ(a) => Ok(Self::Reals(a.iter().map(|v| v.to_f64()).collect())),
            Array::F8E5M2(a) => Ok(Self::Reals(a.iter().map(|v| v.to_f64()).collect())),
            Array::F8E5M2FNUZ(a) => Ok(Self::Reals(a.iter().map(|v| v.to_f64()).collect())),
            Array::F8E8M0(a) => Ok(Self::Reals(a.iter().map(|v| v.to_f64()).collect())),
            Array::F4E2M1(a) => Ok(Self::Reals(a.iter().map(|v| v.to_f64()).collect())),
            Array::U4(a) => Ok(Self::Integers(a.iter().map(|v| v.to_i8().into()).collect())),
            Array::I4(a) => Ok(Self::Integers(a.iter().map(|v| v.to_i8().into()).collect())),
            Array::U2(a) => Ok(Self::Integers(a.iter().map(|v| v.to_i8().into()).collect())),
            Array::I2(a) => Ok(Self::Integers(a.iter().map(|v| v.to_i8().into()).collect())),
            x => numbers!(x, v => Ok(widen(v))),
        }
    }

    fn narrow<T: Number>(&self) -> Vec<T> {
        match self {
            Self::Integers(v) => map(v, T::from_i128),
            Self::Reals(v) => map(v, T::from_f64),
        }
    }

    fn minifloats<T: Minifloat>(&self, saturate: bool) -> Vec<T> {
        match self {
            Self::Integers(v) => map(v, |v| T::from_f64(v as f64, saturate)),
            Self::Reals(v) => map(v, |v| T::from_f64(v, saturate)),
        }
    }

    fn powers(&self, Rounding { saturate, towards }: Rounding) -> Vec<F8E8M0> {
        match self {
            Self::Integers(v) => map(v, |v| F8E8M0::from_f64(v as f64, saturate, towards)),
            Self::Reals(v) => map(v, |v| F8E8M0::from_f64(v, saturate, towards)),
        }
    }

    /// Real numbers are cut off; only the low bits are kept.
    fn nibbles<T: Nibble>(&self) -> Vec<T> {
        match self {
            Self::Integers(v) => map(v, |v| T::truncate(v as i8)),
            Self::Reals(v) => map(v, |v| T::truncate(v as i64 as i8)),
        }
    }

    fn truths(&self) -> Vec<bool> {
        match self {
            Self::Integers(v) => map(v, |v| v != 0),
            Self::Reals(v) => map(v, |v| v != 0.0),
        }
    }

    fn texts(&self) -> Vec<String> {
        match self {
            Self::Integers(v) => map(v, |v| v.to_string()),
            Self::Reals(v) => map(v, text),
        }
    }
}

/// A number in plain or scientific notation; `INF`, `-INF` and `NaN` in any case.
fn parse(text: &str) -> Result<f64, Fault> {
    text.trim().parse().map_err(|_| format!("\"{text}\" is not a number").into())
}

fn text(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "INF" } else { "-INF" }.into();
    }
    value.to_string()
}

/// The elements in another type.
pub(super) fn convert(x: &Array, to: DType) -> Result<Array, Fault> {
    convert_rounding(x, to, Rounding::default())
}

fn convert_rounding(x: &Array, to: DType, rounding: Rounding) -> Result<Array, Fault> {
    let shape = x.shape();
    match (x, to) {
        (x, to) if x.dtype() == to => return Ok(x.clone()),
        (Array::Bool(_) | Array::Str(_), _) => {}
        (x, DType::F32) if x.dtype().bits() > 8 => return Ok(x.to_f32()?.into()),
        // Through f64 the shortest digits of an f32 would be lost.
        (Array::F32(_), DType::Str) => {
            let texts =
                map(x.slice::<f32>()?, |v| if v.is_finite() { v.to_string() } else { text(v.into()) });
            return Array::new(shape, texts);
        }
        _ => {}
    }
    let wide = Wide::of(x)?;
    match to {
        DType::F32 => Array::new(shape, wide.narrow::<f32>()),
        DType::F64 => Array::new(shape, wide.narrow::<f64>()),
        DType::F16 => Array::new(shape, wide.narrow::<half::f16>()),
        DType::BF16 => Array::new(shape, wide.narrow::<half::bf16>()),
        DType::I8 => Array::new(shape, wide.narrow::<i8>()),
        DType::I16 => Array::new(shape, wide.narrow::<i16>()),
        DType::I32 => Array::new(shape, wide.narrow::<i32>()),
        DType::I64 => Array::new(shape, wide.narrow::<i64>()),
        DType::U8 => Array::new(shape, wide.narrow::<u8>()),
        DType::U16 => Array::new(shape, wide.narrow::<u16>()),
        DType::U32 => Array::new(shape, wide.narrow::<u32>()),
        DType::U64 => Array::new(shape, wide.narrow::<u64>()),
        DType::Bool => Array::new(shape, wide.truths()),
        DType::Str => Array::new(shape, wide.texts()),
        DType::F8E4M3FN => Array::new(shape, wide.minifloats::<small::F8E4M3FN>(rounding.saturate)),
        DType::F8E4M3FNUZ => Array::new(shape, wide.minifloats::<small::F8E4M3FNUZ>(rounding.saturate)),
        DType::F8E5M2 => Array::new(shape, wide.minifloats::<small::F8E5M2>(rounding.saturate)),
        DType::F8E5M2FNUZ => Array::new(shape, wide.minifloats::<small::F8E5M2FNUZ>(rounding.saturate)),
        DType::F8E8M0 => Array::new(shape, wide.powers(rounding)),
        DType::F4E2M1 => Array::new(shape, wide.minifloats::<small::F4E2M1>(rounding.saturate)),
        DType::U4 => Array::new(shape, wide.nibbles::<small::U4>()),
        DType::I4 => Array::new(shape, wide.nibbles::<small::I4>()),
        DType::U2 => Array::new(shape, wide.nibbles::<small::U2>()),
        DType::I2 => Array::new(shape, wide.nibbles::<small::I2>()),
        other @ (DType::C64 | DType::C128) => Err(Fault::unimplemented(format_args!("casts to {other}"))),
    }
}

/// The input as it is.
#[derive(Debug)]
pub struct Identity;

impl Op for Identity {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        like_first(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        Ok(vec![required(inputs, 0)?.clone()])
    }

    fn evaluate(&self, inputs: Vec<Option<Datum>>) -> Result<Vec<Datum>, Fault> {
        let input = inputs.into_iter().next().flatten();
        Ok(vec![input.ok_or_else(|| Fault::new("input 0 is missing"))?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Identity {
    fn backward(&self, run: &Run) -> Gradients {
        reshaped(run)
    }
}

/// The identity, and a mask that keeps every element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropout {
    /// The element type of the mask.
    pub mask: Mask,
}

/// The element type of [`Dropout`]'s second output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// That of the input (before opset 10).
    LikeInput,
    /// Truth values.
    Bool,
}

impl Dropout {
    fn parse(attrs: &mut Attrs, mask: Mask) -> Result<Arc<dyn Op>, Fault> {
        attrs.opt_float("ratio")?;
        Ok(Arc::new(Self { mask }))
    }
}

impl Op for Dropout {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let y = known(inputs, 0).cloned();
        let mask = y.clone().map(|ty| match self.mask {
            Mask::LikeInput => ty,
            Mask::Bool => TensorType { dtype: DType::Bool, ..ty },
        });
        Ok(vec![y, mask])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let training = optional(inputs, 2).map_or(Ok(false), Array::item::<bool>)?;
        let ratio = optional(inputs, 1).map(|r| convert(r, DType::F32)?.item::<f32>()).transpose()?;
        if training && ratio != Some(0.0) {
            return Err(Fault::unimplemented("Dropout in training mode"));
        }
        let kept = Array::new(x.shape(), vec![true; x.len()])?;
        let mask = match self.mask {
            Mask::LikeInput => convert(&kept, x.dtype())?,
            Mask::Bool => kept,
        };
        Ok(vec![x.clone(), mask])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Dropout {
    fn backward(&self, run: &Run) -> Gradients {
        reshaped(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("cast");
    }

    #[test]
    fn numbers_convert() {
        let reals = Array::vector(vec![-1.9f32, 0.0, 300.7, f32::NAN]);
        let cases = [
            (DType::I32, Array::vector(vec![-1i32, 0, 300, 0])),
            (DType::I8, Array::vector(vec![-1i8, 0, 127, 0])),
            (DType::Bool, Array::vector(vec![true, false, true, true])),
        ];
        for (to, expected) in cases {
            assert_eq!(convert(&reals, to).unwrap(), expected);
        }
        assert_eq!(convert(&Array::scalar(200i16), DType::I8).unwrap(), Array::scalar(-56i8));
        assert_eq!(convert(&Array::scalar(i64::MIN), DType::U64).unwrap(), Array::scalar(1u64 << 63));
        let odd = (1i64 << 53) + (1 << 29) + 1; // two roundings would lose the last bit
        assert_eq!(convert(&Array::scalar(odd), DType::F32).unwrap(), Array::scalar(odd as f32));
        assert_eq!(convert(&Array::scalar(true), DType::F32).unwrap(), Array::scalar(1f32));
        assert!(convert(&reals, DType::C64).unwrap_err().is_unimplemented());
    }

    #[test]
    fn texts_convert() {
        let texts = ["1e-5", "+INF", "-inf", "NaN", "100.5"].map(String::from);
        let y = convert(&Array::vector(texts.to_vec()), DType::F32).unwrap();
        let y = y.slice::<f32>().unwrap();
        assert_eq!((y[0], y[1], y[2], y[4]), (1e-5, f32::INFINITY, f32::NEG_INFINITY, 100.5));
        assert!(y[3].is_nan());
        let back = convert(&Array::vector(vec![0.1f32, f32::INFINITY, f32::NAN]), DType::Str).unwrap();
        assert_eq!(back.slice::<String>().unwrap(), ["0.1", "INF", "NaN"]);
        assert!(convert(&Array::scalar("Hello".to_string()), DType::F32).is_err());
    }

    #[test]
    fn dropout_keeps_everything_at_inference() {
        let x = Array::vector(vec![1f32, -2.0]);
        let y = Dropout { mask: Mask::Bool }.float(&[Some(x.clone())]).unwrap();
        assert_eq!(y, [x.clone(), Array::vector(vec![true, true])]);
        let y = Dropout { mask: Mask::LikeInput }.float(&[Some(x.clone())]).unwrap();
        assert_eq!(y[1], Array::vector(vec![1f32, 1.0]));
        let training = [Some(x), None, Some(Array::scalar(true))];
        assert!(Dropout { mask: Mask::Bool }.float(&training).unwrap_err().is_unimplemented());
    }
}
