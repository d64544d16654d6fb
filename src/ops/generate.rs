//! Operators that make tensors from attributes, shapes or bounds: Constant, ConstantOfShape, Range, EyeLike and the
//! random ones, of which only the types are known here.

use std::sync::Arc;

use super::slots::{self, constant, constant_ints, known, required};
use super::{Attrs, ONNX, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, Fact, Op, Tensor, TensorType, element_count, with_array};

type Parsed = Result<Arc<dyn Op>, Fault>;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Constant", since: 1, parse: Constant::parse },
    OpDef { domain: ONNX, name: "ConstantOfShape", since: 9, parse: ConstantOfShape::parse },
    OpDef { domain: ONNX, name: "Range", since: 11, parse: Range::parse },
    OpDef { domain: ONNX, name: "EyeLike", since: 9, parse: EyeLike::parse },
    OpDef {
        domain: ONNX,
        name: "RandomNormal",
        since: 1,
        parse: |a| Random::of_shape(a, &["mean", "scale"]),
    },
    OpDef { domain: ONNX, name: "RandomUniform", since: 1, parse: |a| Random::of_shape(a, &["low", "high"]) },
    OpDef {
        domain: ONNX,
        name: "RandomNormalLike",
        since: 1,
        parse: |a| Random::like(a, &["mean", "scale"]),
    },
    OpDef { domain: ONNX, name: "RandomUniformLike", since: 1, parse: |a| Random::like(a, &["low", "high"]) },
    OpDef { domain: ONNX, name: "Bernoulli", since: 15, parse: |a| Random::like(a, &[]) },
    OpDef { domain: ONNX, name: "Multinomial", since: 7, parse: Random::multinomial },
];

/// `Constant`: the tensor in its one attribute, whatever its form.
#[derive(Debug, Clone)]
pub struct Constant {
    /// The value.
    pub value: Tensor,
}

impl Constant {
    fn parse(attrs: &mut Attrs) -> Parsed {
        let mut found = Vec::new();
        found.extend(attrs.opt_tensor("value")?);
        if attrs.version() >= 12 {
            let text = |s: Option<String>| s.map(Array::scalar);
            let forms = [
                attrs.opt_int("value_int")?.map(Array::scalar),
                attrs.opt_ints("value_ints")?.map(Array::vector),
                attrs.opt_float("value_float")?.map(Array::scalar),
                attrs.opt_floats("value_floats")?.map(Array::vector),
                text(attrs.opt_string("value_string")?),
                attrs.opt_strings("value_strings")?.map(Array::vector),
            ];
            found.extend(forms.iter().flatten().map(Tensor::from_array));
        }
        match found.len() {
            1 => Ok(Arc::new(Self { value: found.remove(0) })),
            0 => Err(Fault::unimplemented("a constant without a dense value")),
            _ => Err("more than one value attribute".into()),
        }
    }
}

impl Op for Constant {
    fn infer(&self, _: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![Some(self.value.tensor_type())])
    }

    fn float(&self, _: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        Ok(vec![self.value.array()?])
    }
}

/// `ConstantOfShape`: one value everywhere.
#[derive(Debug, Clone)]
pub struct ConstantOfShape {
    /// The value, a tensor of one element.
    pub value: Tensor,
}

impl ConstantOfShape {
    fn parse(attrs: &mut Attrs) -> Parsed {
        let value =
            attrs.opt_tensor("value")?.unwrap_or_else(|| Tensor::from_array(&Array::vector(vec![0f32])));
        if value.len() != 1 {
            fail!("the value has {} elements", value.len());
        }
        Ok(Arc::new(Self { value }))
    }
}

impl Op for ConstantOfShape {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = match constant_ints(inputs, 0)? {
            Some(shape) => TensorType::known(self.value.dtype(), &slots::extents(&shape)?).dims,
            None => slots::unknown_dims(inputs, 0),
        };
        Ok(vec![Some(TensorType { dtype: self.value.dtype(), dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let shape = slots::extents(&required(inputs, 0)?.to_i64()?)?;
        Ok(vec![with_array!(self.value.array()?, a => {
            let value = a.iter().next().cloned().unwrap_or_default();
            Array::new(&shape, vec![value; element_count(&shape)?])?
        })])
    }
}

/// `Range`: `start`, `start + delta`, … up to `limit`, which is left out.
#[derive(Debug, Clone)]
pub struct Range;

impl Range {
    fn parse(attrs: &mut Attrs) -> Parsed {
        if attrs.version() >= 27 && attrs.int("stash_type", 1)? != 1 {
            return Err(Fault::unimplemented("a range that is not accumulated in float"));
        }
        Ok(Arc::new(Self))
    }

    /// How many numbers there are from the first bound up or down to the second, by the third.
    fn count(bounds: [&Array; 3]) -> Result<usize, Fault> {
        let count = match bounds[0].dtype() {
            DType::I16 | DType::I32 | DType::I64 => {
                let whole = |a: &Array| a.to_i64()?.first().copied().map(i128::from).ok_or(Fault::new("no number"));
                let [first, last, step] = [whole(bounds[0])?, whole(bounds[1])?, whole(bounds[2])?];
                let distance = last - first;
                match step {
                    0 => fail!("the step is 0"),
                    _ if distance.signum() == step.signum() => (distance.abs() + step.abs() - 1) / step.abs(),
                    _ => 0,
                }
            }
            DType::F16 | DType::BF16 | DType::F32 | DType::F64 => {
                let real = |a: &Array| match a {
                    Array::F64(_) => a.item::<f64>(),
                    other => Ok(other.to_f32()?.first().copied().unwrap_or(f32::NAN).into()),
                };
                let [start, limit, delta] = [real(bounds[0])?, real(bounds[1])?, real(bounds[2])?];
                let count = ((limit - start) / delta).ceil();
                if count.is_nan() || count > 1e15 {
                    fail!("a range from {start} to {limit} by {delta} has no end");
                }
                count.max(0.0) as i128
            }
            other => return Err(Fault::unimplemented(format_args!("ranges of {other}"))),
        };
        element_count(&[usize::try_from(count).map_err(|_| "the range is too long")?])
    }

    fn values(bounds: [&Array; 3]) -> Result<Array, Fault> {
        let count = Self::count(bounds)?;
        macro_rules! integers {
            ($t:ty) => {{
                let [first, step]: [i128; 2] = [bounds[0].item()?, bounds[2].item()?].map(|v: $t| v.into());
                Array::vector((0..count as i128).map(|i| (first + i * step) as $t).collect())
            }};
        }
        macro_rules! reals {
            ($t:ty, $from:expr, $to:expr) => {{
                let [start, delta] = [bounds[0].item()?, bounds[2].item()?].map($from);
                Array::vector((0..count).map(|i| $to(start + i as $t * delta)).collect())
            }};
        }
        Ok(match bounds[0].dtype() {
            DType::I16 => integers!(i16),
            DType::I32 => integers!(i32),
            DType::I64 => integers!(i64),
            DType::F32 => reals!(f32, |v: f32| v, |v| v),
            DType::F64 => reals!(f64, |v: f64| v, |v| v),
            DType::F16 => reals!(f32, half::f16::to_f32, half::f16::from_f32),
            DType::BF16 => reals!(f32, half::bf16::to_f32, half::bf16::from_f32),
            other => return Err(Fault::unimplemented(format_args!("ranges of {other}"))),
        })
    }
}

impl Op for Range {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let count = match [constant(inputs, 0)?, constant(inputs, 1)?, constant(inputs, 2)?] {
            [Some(start), Some(limit), Some(delta)] => {
                Dim::Known(Self::count([&start, &limit, &delta])?)
            }
            _ => Dim::Unknown,
        };
        Ok(vec![Some(TensorType::new(ty.dtype, vec![count]))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        Ok(vec![Self::values([required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?])?])
    }
}

/// The element type that an attribute names.
fn dtype(attrs: &mut Attrs) -> Result<Option<DType>, Fault> {
    let Some(code) = attrs.opt_int("dtype")? else { return Ok(None) };
    let found = i32::try_from(code).ok().and_then(DType::from_onnx);
    found.map(Some).ok_or_else(|| format!("unknown element type {code}").into())
}

/// `EyeLike`: ones on a diagonal, zeros elsewhere, in the shape of the input.
#[derive(Debug, Clone)]
pub struct EyeLike {
    /// The element type; `None`: that of the input.
    pub dtype: Option<DType>,
    /// The diagonal: 0 is the main one, positive ones lie above.
    pub k: i64,
}

impl EyeLike {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { dtype: dtype(attrs)?, k: attrs.int("k", 0)? }))
    }
}

impl Op for EyeLike {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let like =
            |ty: &TensorType| TensorType { dtype: self.dtype.unwrap_or(ty.dtype), dims: ty.dims.clone() };
        Ok(vec![known(inputs, 0).map(like)])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let &[rows, columns] = x.shape() else { fail!("expected 2 axes, found {}", x.rank()) };
        let eye = (0..element_count(&[rows, columns])?)
            .map(|i| (i % columns) as i64 == self.k.saturating_add((i / columns) as i64));
        macro_rules! eye {
            ($($variant:ident = $one:expr),*) => {
                match self.dtype.unwrap_or(x.dtype()) {
                    $(DType::$variant => {
                        Array::new(&[rows, columns], eye.map(|on| if on { $one } else { Default::default() }).collect())
                    })*
                    other => Err(Fault::unimplemented(format_args!("EyeLike of {other}"))),
                }
            };
        }
        Ok(vec![eye!(
            F32 = 1f32,
            F64 = 1f64,
            F16 = half::f16::ONE,
            BF16 = half::bf16::ONE,
            I8 = 1i8,
            I16 = 1i16,
            I32 = 1i32,
            I64 = 1i64,
            U8 = 1u8,
            U16 = 1u16,
            U32 = 1u32,
            U64 = 1u64,
            Bool = true
        )?])
    }
}

/// An operator that draws random numbers: its type is known, its values are not computed.
#[derive(Debug, Clone)]
pub struct Random {
    /// The element type; `None`: that of the input.
    pub dtype: Option<DType>,
    /// The shape.
    pub shape: RandomShape,
}

/// Where the shape of random numbers comes from.
#[derive(Debug, Clone)]
pub enum RandomShape {
    /// The attribute.
    Known(Vec<usize>),
    /// The input's shape.
    Like,
    /// As many columns for each row of the input.
    Samples(usize),
}

impl Random {
    fn read(attrs: &mut Attrs, parameters: &[&str]) -> Result<Option<DType>, Fault> {
        for name in parameters.iter().chain(&["seed"]) {
            attrs.opt_float(name)?;
        }
        dtype(attrs)
    }

    fn of_shape(attrs: &mut Attrs, parameters: &[&str]) -> Parsed {
        let dtype = Self::read(attrs, parameters)?.or(Some(DType::F32));
        let shape = slots::extents(&attrs.opt_ints("shape")?.unwrap_or_default())?;
        Ok(Arc::new(Self { dtype, shape: RandomShape::Known(shape) }))
    }

    fn like(attrs: &mut Attrs, parameters: &[&str]) -> Parsed {
        Ok(Arc::new(Self { dtype: Self::read(attrs, parameters)?, shape: RandomShape::Like }))
    }

    fn multinomial(attrs: &mut Attrs) -> Parsed {
        let dtype = Self::read(attrs, &[])?.or(Some(DType::I32));
        let samples = slots::extents(&[attrs.int("sample_size", 1)?])?[0];
        Ok(Arc::new(Self { dtype, shape: RandomShape::Samples(samples) }))
    }
}

impl Op for Random {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let ty = known(inputs, 0);
        let Some(dtype) = self.dtype.or(ty.map(|ty| ty.dtype)) else { return Ok(vec![None]) };
        let dims = match &self.shape {
            RandomShape::Known(shape) => TensorType::known(dtype, shape).dims,
            RandomShape::Like => ty.and_then(|ty| ty.dims.clone()),
            RandomShape::Samples(n) => {
                let rows = ty.and_then(|ty| ty.dim(0)).cloned().unwrap_or(Dim::Unknown);
                Some(vec![rows, Dim::Known(*n)])
            }
        };
        Ok(vec![Some(TensorType { dtype, dims })])
    }

    fn float(&self, _: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        Err(Fault::unimplemented("random numbers"))
    }

    fn is_pure(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute;

    #[test]
    fn ranges() {
        let ints = |s: i32, l: i32, d: i32| {
            Range::values([&Array::scalar(s), &Array::scalar(l), &Array::scalar(d)])
                .map(|a| a.slice::<i32>().unwrap().to_vec())
        };
        assert_eq!(ints(3, 9, 3).unwrap(), [3, 6]);
        assert_eq!(ints(3, 10, 3).unwrap(), [3, 6, 9]);
        assert_eq!(ints(10, 4, -2).unwrap(), [10, 8, 6]);
        assert_eq!(ints(10, 5, -2).unwrap(), [10, 8, 6]);
        assert!((ints(4, 10, -2).unwrap()).is_empty());
        assert!((ints(4, 4, 1).unwrap()).is_empty());
        assert_eq!(ints(i32::MAX - 1, i32::MAX, 1).unwrap(), [i32::MAX - 1]);
        assert!(ints(0, 1, 0).is_err());
        let reals = |s: f32, l: f32, d: f32| {
            Range::values([&Array::scalar(s), &Array::scalar(l), &Array::scalar(d)])
                .map(|a| a.slice::<f32>().unwrap().to_vec())
        };
        assert_eq!(reals(1.0, 2.1, 0.5).unwrap(), [1.0, 1.5, 2.0]);
        assert!((reals(1.0, 0.0, 0.5).unwrap()).is_empty());
        for (l, d) in [(1.0, 0.0), (f32::INFINITY, 1.0), (f32::NAN, 1.0)] {
            assert!(reals(0.0, l, d).is_err(), "{l} {d}");
        }
        let [s, l, d] = [0, i64::MAX, 1].map(Array::scalar);
        assert!(Range::values([&s, &l, &d]).is_err());
    }

    #[test]
    fn constants_in_every_form() {
        let value = |a| Constant::parse(&mut Attrs::new(&[a], 13, 0, 1))?.float(&[]).map(|mut v| v.remove(0));
        assert_eq!(value(attribute::int("value_int", 3)).unwrap(), Array::scalar(3i64));
        assert_eq!(value(attribute::ints("value_ints", [3, 4])).unwrap(), Array::vector(vec![3i64, 4]));
        assert_eq!(value(attribute::float("value_float", 0.5)).unwrap(), Array::scalar(0.5f32));
        assert_eq!(value(attribute::floats("value_floats", [0.5])).unwrap(), Array::vector(vec![0.5f32]));
        assert_eq!(value(attribute::string("value_string", "a")).unwrap(), Array::scalar("a".to_string()));
        let tensor = Array::new(&[1, 2], vec![1u8, 2]).unwrap();
        assert_eq!(value(attribute::tensor("value", &Tensor::from_array(&tensor))).unwrap(), tensor);
        assert!(value(attribute::int("other", 3)).unwrap_err().is_unimplemented());
        let two = [attribute::int("value_int", 1), attribute::float("value_float", 1.0)];
        assert!(Constant::parse(&mut Attrs::new(&two, 13, 0, 1)).is_err());
    }

    #[test]
    fn random_types() {
        let samples = Random { dtype: Some(DType::I32), shape: RandomShape::Samples(4) };
        let x = TensorType::new(DType::F32, vec![Dim::Symbol("N".into()), Dim::Known(3)]);
        let found = samples.infer(&[Some(Fact { ty: &x, constant: None })]).unwrap();
        let expected = TensorType::new(DType::I32, vec![Dim::Symbol("N".into()), Dim::Known(4)]);
        assert_eq!(found, [Some(expected)]);
        assert!(!samples.is_pure());
        assert!(samples.float(&[]).unwrap_err().is_unimplemented());
    }

    #[test]
    fn backend_cases() {
        crate::ops::backend_tests::run("generate");
    }
}
