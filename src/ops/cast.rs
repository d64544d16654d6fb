//! Operators that keep or convert elements: `Cast`, `CastLike`, `Identity`, and `Dropout`, which is the identity at
//! inference.

use std::sync::Arc;

use super::elementwise::{like_first, numbers};
use super::slots::{known, optional, required};
use super::{Attrs, ONNX, Op, OpDef, Rule};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Fact, TensorType};
use crate::kernels::math::map;
use crate::kernels::number::Number;

const fn def(name: &'static str, since: i64, parse: fn(&mut Attrs) -> Result<Arc<dyn Op>, Fault>) -> OpDef {
    OpDef { domain: ONNX, name, since, parse }
}

/// The family.
pub const OPS: &[OpDef] = &[
    def("Cast", 1, Cast::parse_name),
    def("Cast", 6, Cast::parse),
    def("CastLike", 15, |a| {
        rounding(a)?;
        Ok(Arc::new(CastLike))
    }),
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

/// The attributes that concern 8-bit floats only, which no array holds.
fn rounding(attrs: &mut Attrs) -> Result<(), Fault> {
    attrs.opt_int("saturate")?;
    attrs.opt_string("round_mode")?;
    Ok(())
}

/// Converts to an element type. Integers keep their low bits; real numbers round to nearest, or towards zero for an
/// integer, and saturate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    /// The element type of the output.
    pub to: DType,
}

impl Cast {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        rounding(attrs)?;
        let code = attrs.opt_int("to")?.ok_or("attribute to is missing")?;
        match i32::try_from(code).ok().and_then(DType::from_onnx) {
            Some(to) => Ok(Arc::new(Self { to })),
            None => fail!("unknown element type {code}"),
        }
    }

    /// Before opset 6 the type is given by its name.
    fn parse_name(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let name = attrs.opt_string("to")?.ok_or("attribute to is missing")?.to_lowercase();
        match (1..=16).filter_map(DType::from_onnx).find(|t| t.name() == name) {
            Some(to) => Ok(Arc::new(Self { to })),
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
        Ok(vec![convert(required(inputs, 0)?, self.to)?])
    }
}

/// Converts to the element type of the second input.
#[derive(Debug)]
pub struct CastLike;

impl Op for CastLike {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        match known(inputs, 1) {
            Some(like) => Cast { to: like.dtype }.infer(inputs),
            None => Ok(vec![None]),
        }
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        Cast { to: required(inputs, 1)?.dtype() }.float(inputs)
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
            x => numbers!(x, v => Ok(widen(v))),
        }
    }

    fn narrow<T: Number>(&self) -> Vec<T> {
        match self {
            Self::Integers(v) => map(v, T::from_i128),
            Self::Reals(v) => map(v, T::from_f64),
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
    let shape = x.shape();
    match (x, to) {
        (x, to) if x.dtype() == to => return Ok(x.clone()),
        (Array::Bool(_) | Array::Str(_), _) => {}
        (_, DType::F32) => return Ok(x.to_f32()?.into()),
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
        other => Err(Fault::unimplemented(format_args!("casts to {other}"))),
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

    fn rule(&self) -> Rule {
        Rule::SameScale
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
        assert!(convert(&reals, DType::U4).unwrap_err().is_unimplemented());
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
