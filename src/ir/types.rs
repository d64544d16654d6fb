//! Element types, symbolic dimensions and tensor types.

use std::fmt;

use half::{bf16, f16};

macro_rules! dtypes {
    ($($variant:ident = $code:literal, $name:literal, $bits:literal;)*) => {
        /// The element type of a tensor (`TensorProto.DataType`), under its name in ONNX text syntax.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(missing_docs)]
        pub enum DType { $($variant = $code),* }

        impl DType {
            /// The type with this `TensorProto.DataType` number.
            pub fn from_onnx(code: i32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// Bits of one element; 0 for strings, which have no fixed size.
            pub fn bits(self) -> usize {
                match self { $(Self::$variant => $bits),* }
            }

            /// The name in ONNX text syntax.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }
    };
}

dtypes! {
    F32 = 1, "float", 32; U8 = 2, "uint8", 8; I8 = 3, "int8", 8; U16 = 4, "uint16", 16; I16 = 5, "int16", 16;
    I32 = 6, "int32", 32; I64 = 7, "int64", 64; Str = 8, "string", 0; Bool = 9, "bool", 8; F16 = 10, "float16", 16;
    F64 = 11, "double", 64; U32 = 12, "uint32", 32; U64 = 13, "uint64", 64; C64 = 14, "complex64", 64;
    C128 = 15, "complex128", 128; BF16 = 16, "bfloat16", 16; F8E4M3FN = 17, "float8e4m3fn", 8;
    F8E4M3FNUZ = 18, "float8e4m3fnuz", 8; F8E5M2 = 19, "float8e5m2", 8; F8E5M2FNUZ = 20, "float8e5m2fnuz", 8;
    U4 = 21, "uint4", 4; I4 = 22, "int4", 4; F4E2M1 = 23, "float4e2m1", 4; F8E8M0 = 24, "float8e8m0", 8;
    U2 = 25, "uint2", 2; I2 = 26, "int2", 2;
}

impl DType {
    /// The `TensorProto.DataType` number.
    pub fn to_onnx(self) -> i32 {
        self as i32
    }

    /// Is it a floating-point type that operators compute in (f16, bf16, f32, f64)?
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that is the element type of an [`Array`](super::Array).
pub trait Element: Clone + Send + Sync + 'static {
    /// The ONNX type that it represents.
    const DTYPE: DType;
}

macro_rules! elements {
    ($($rust:ty => $variant:ident),*) => { $(impl Element for $rust { const DTYPE: DType = DType::$variant; })* };
}

elements! {
    f32 => F32, f64 => F64, f16 => F16, bf16 => BF16, i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8,
    u16 => U16, u32 => U32, u64 => U64, bool => Bool, String => Str
}

/// One dimension of a shape.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Known at compile time.
    Known(usize),
    /// A name shared by equal dimensions (`N`, `seq_len`).
    Symbol(String),
    /// Nothing is known.
    Unknown,
}

impl Dim {
    /// The extent if it is known.
    pub fn known(&self) -> Option<usize> {
        match self {
            Self::Known(extent) => Some(*extent),
            _ => None,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(extent) => write!(f, "{extent}"),
            Self::Symbol(name) => f.write_str(name),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// Element type and shape of a tensor; `dims: None` when not even the rank is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub dims: Option<Vec<Dim>>,
}

impl TensorType {
    /// A type of unknown rank.
    pub fn unranked(dtype: DType) -> Self {
        Self { dtype, dims: None }
    }

    /// A type with these dimensions.
    pub fn new(dtype: DType, dims: Vec<Dim>) -> Self {
        Self { dtype, dims: Some(dims) }
    }

    /// A type whose shape is wholly known.
    pub fn known(dtype: DType, shape: &[usize]) -> Self {
        Self::new(dtype, shape.iter().map(|&d| Dim::Known(d)).collect())
    }

    /// The rank if it is known.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }

    /// The shape if all of it is known.
    pub fn shape(&self) -> Option<Vec<usize>> {
        self.dims.as_ref()?.iter().map(Dim::known).collect()
    }

    /// Dimension `axis` (negative: from the end), if the rank is known and has it.
    pub fn dim(&self, axis: i64) -> Option<&Dim> {
        let dims = self.dims.as_ref()?;
        let index = if axis < 0 { axis + dims.len() as i64 } else { axis };
        usize::try_from(index).ok().and_then(|i| dims.get(i))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        if let Some(dims) = &self.dims {
            let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
            write!(f, "[{}]", dims.join(","))?;
        }
        Ok(())
    }
}

/// The number of elements of a shape, or a fault if it does not fit. An extent of 0 excuses no other extents, so that
/// the product of any of them fits as well.
pub fn element_count(shape: &[usize]) -> Result<usize, crate::error::Fault> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as usize / 16)
        .map(|n| if shape.contains(&0) { 0 } else { n })
        .ok_or_else(|| format!("the shape {shape:?} is too large").into())
}
