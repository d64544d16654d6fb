//! Tensor values at run time: typed, contiguous, cheap to clone.

use ndarray::{ArcArray, ArrayBase, ArrayD, Data, Dimension, IxDyn};

use super::small::{self, Nibble};
use super::types::{DType, Element, TensorType};
use crate::error::Fault;

/// A shared n-dimensional array in row-major order.
pub type Nd<T> = ArcArray<T, IxDyn>;

macro_rules! arrays {
    ($($variant:ident($rust:ty)),* $(,)?) => {
        /// A tensor value. The elements always lie contiguous in row-major order, so [`Array::slice`] never fails for
        /// the right type; clones share the elements.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(missing_docs)]
        pub enum Array { $($variant(Nd<$rust>)),* }

        /// Runs `$body` with `$a` bound to the typed array, whatever its element type.
        macro_rules! with_array {
            ($array:expr, $a:ident => $body:expr) => {
                match $array { $($crate::ir::Array::$variant($a) => $body),* }
            };
        }

        impl Array {
            /// The element type.
            pub fn dtype(&self) -> DType {
                match self { $(Self::$variant(_) => DType::$variant),* }
            }

            /// The elements as `T`, if that is their type.
            pub fn get<T: Element>(&self) -> Option<&Nd<T>> {
                match self { $(Self::$variant(a) => (a as &dyn std::any::Any).downcast_ref()),* }
            }

            /// A zero-filled array (false, empty strings).
            pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, Fault> {
                super::types::element_count(shape)?;
                match dtype {
                    $(DType::$variant => Ok(Nd::<$rust>::from_elem(IxDyn(shape), <$rust>::default()).into()),)*
                    other => Err(Fault::unimplemented(format_args!("arrays of {other}"))),
                }
            }
        }

        $(impl From<Nd<$rust>> for Array {
            fn from(a: Nd<$rust>) -> Self {
                Self::$variant(if a.is_standard_layout() { a } else { a.as_standard_layout().into_owned().into_shared() })
            }
        }
        impl From<ArrayD<$rust>> for Array {
            fn from(a: ArrayD<$rust>) -> Self { a.into_shared().into() }
        })*
    };
}

arrays! {
    F32(f32), F64(f64), F16(half::f16), BF16(half::bf16), I8(i8), I16(i16), I32(i32), I64(i64), U8(u8), U16(u16),
    U32(u32), U64(u64), Bool(bool), Str(String), F8E4M3FN(small::F8E4M3FN), F8E4M3FNUZ(small::F8E4M3FNUZ),
    F8E5M2(small::F8E5M2), F8E5M2FNUZ(small::F8E5M2FNUZ), F8E8M0(small::F8E8M0), F4E2M1(small::F4E2M1), U4(small::U4),
    I4(small::I4), U2(small::U2), I2(small::I2),
}

pub(crate) use with_array;

impl Array {
    /// An array of this shape from its elements in row-major order.
    pub fn new<T: Element>(shape: &[usize], elements: Vec<T>) -> Result<Self, Fault>
    where
        Self: From<ArrayD<T>>,
    {
        let count = super::types::element_count(shape)?;
        if count != elements.len() {
            crate::fail!("{} elements do not fill the shape {shape:?}", elements.len());
        }
        Ok(ArrayD::from_shape_vec(IxDyn(shape), elements)?.into())
    }

    /// A zero-dimensional array.
    pub fn scalar<T: Element>(value: T) -> Self
    where
        Self: From<ArrayD<T>>,
    {
        ArrayD::from_elem(IxDyn(&[]), value).into()
    }

    /// A one-dimensional array.
    pub fn vector<T: Element>(values: Vec<T>) -> Self
    where
        Self: From<ArrayD<T>>,
    {
        ndarray::Array1::from_vec(values).into_dyn().into()
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        with_array!(self, a => a.shape())
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape().len()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        with_array!(self, a => a.len())
    }

    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type with a known shape.
    pub fn tensor_type(&self) -> TensorType {
        TensorType::known(self.dtype(), self.shape())
    }

    /// The typed array, or a fault naming both types.
    pub fn typed<T: Element>(&self) -> Result<&Nd<T>, Fault> {
        self.get().ok_or_else(|| format!("expected {}, found {}", T::DTYPE, self.dtype()).into())
    }

    /// The elements in row-major order, or a fault naming both types.
    pub fn slice<T: Element>(&self) -> Result<&[T], Fault> {
        self.typed::<T>()?.as_slice().ok_or_else(|| "array is not contiguous".into())
    }

    /// The only element of a scalar or one-element array.
    pub fn item<T: Element>(&self) -> Result<T, Fault> {
        match self.slice::<T>()? {
            [value] => Ok(value.clone()),
            other => Err(format!("expected one element, found {}", other.len()).into()),
        }
    }

    /// The same elements under another shape of the same size.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Self, Fault> {
        if super::types::element_count(shape)? != self.len() {
            crate::fail!("cannot reshape {:?} to {shape:?}", self.shape());
        }
        Ok(with_array!(self, a => a.clone().into_shape_with_order(IxDyn(shape))?.into()))
    }

    /// The axes in another order.
    pub fn transposed(&self, order: &[usize]) -> Result<Self, Fault> {
        let mut seen = vec![false; self.rank()];
        for &axis in order {
            match seen.get_mut(axis) {
                Some(s) if !*s => *s = true,
                _ => crate::fail!("{order:?} is not an order of {} axes", self.rank()),
            }
        }
        if order.len() != self.rank() {
            crate::fail!("{order:?} is not an order of {} axes", self.rank());
        }
        Ok(with_array!(self, a => a.clone().permuted_axes(IxDyn(order)).into()))
    }

    /// Indices (`int32` or `int64`) as `i64`.
    pub fn to_i64(&self) -> Result<Vec<i64>, Fault> {
        match self {
            Self::I64(a) => Ok(a.iter().copied().collect()),
            Self::I32(a) => Ok(a.iter().map(|&v| v.into()).collect()),
            other => Err(format!("expected int32 or int64, found {}", other.dtype()).into()),
        }
    }

    /// Floating-point or integer elements as `f32`, rounded to nearest.
    pub fn to_f32(&self) -> Result<Nd<f32>, Fault> {
        fn map<T, S: Data<Elem = T>, D: Dimension>(a: &ArrayBase<S, D>, f: impl Fn(&T) -> f32) -> Nd<f32> {
            a.map(f).into_dyn().into_shared()
        }
        Ok(match self {
            Self::F32(a) => a.clone(),
            Self::F64(a) => map(a, |&v| v as f32),
            Self::F16(a) => map(a, |v| v.to_f32()),
            Self::BF16(a) => map(a, |v| v.to_f32()),
            Self::I8(a) => map(a, |&v| v.into()),
            Self::U8(a) => map(a, |&v| v.into()),
            Self::I16(a) => map(a, |&v| v.into()),
            Self::U16(a) => map(a, |&v| v.into()),
            Self::I32(a) => map(a, |&v| v as f32),
            Self::I64(a) => map(a, |&v| v as f32),
            Self::U32(a) => map(a, |&v| v as f32),
            Self::U64(a) => map(a, |&v| v as f32),
            Self::I4(a) => map(a, |v| v.to_i8().into()),
            Self::U4(a) => map(a, |v| v.to_i8().into()),
            Self::I2(a) => map(a, |v| v.to_i8().into()),
            Self::U2(a) => map(a, |v| v.to_i8().into()),
            other => return Err(format!("expected numbers, found {}", other.dtype()).into()),
        })
    }
}
