//! Constant tensors, kept as the message they were read from until somebody asks for their elements.

use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};

use super::small::{self, Small};
use super::types::{DType, TensorType, element_count};
use super::{Array, Deferred, array::Nd};
use crate::error::Fault;
use crate::fail;
use crate::proto::{TensorProto, tensor_proto::DataLocation};

/// A constant: shape, element type and payload. The payload of an unchanged tensor is written back as it was read.
#[derive(Debug, Clone)]
pub struct Tensor {
    proto: Arc<TensorProto>,
    /// The bytes of external data, mapped by the importer.
    external: Option<Bytes>,
    /// The bytes of a payload that is computed when it is wanted.
    deferred: Option<Deferred>,
    dtype: DType,
    shape: Vec<usize>,
}

impl Tensor {
    /// Takes a message as it is; `external` holds the payload if it lies in another file.
    pub fn from_proto(proto: TensorProto, external: Option<Bytes>) -> Result<Self, Fault> {
        let code = proto.data_type.unwrap_or(0);
        let Some(dtype) = DType::from_onnx(code) else { fail!("unknown element type {code}") };
        let shape = proto
            .dims
            .iter()
            .map(|&d| usize::try_from(d).map_err(|_| Fault::new(format!("dimension {d} is negative"))))
            .collect::<Result<Vec<_>, _>>()?;
        element_count(&shape)?;
        let tensor = Self { proto: Arc::new(proto), external, deferred: None, dtype, shape };
        tensor.check_payload()?;
        Ok(tensor)
    }

    /// A new tensor with these elements, stored as `raw_data`.
    pub fn from_array(array: &Array) -> Self {
        fn raw<T, const N: usize>(a: &Nd<T>, f: impl Fn(&T) -> [u8; N]) -> Bytes {
            let mut bytes = Vec::with_capacity(a.len() * N);
            a.iter().for_each(|v| bytes.extend_from_slice(&f(v)));
            bytes.into()
        }
        fn packed<T: Small>(a: &Nd<T>) -> Bytes {
            small::pack(a.iter().copied(), a.len()).into()
        }
        let mut proto = TensorProto {
            dims: array.shape().iter().map(|&d| d as i64).collect(),
            data_type: Some(array.dtype().to_onnx()),
            ..Default::default()
        };
        match array {
            Array::Str(a) => {
                proto.string_data = a.iter().map(|s| Bytes::from(s.clone().into_bytes())).collect()
            }
            Array::F32(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::F64(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::F16(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::BF16(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::I8(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::I16(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::I32(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::I64(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::U8(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::U16(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::U32(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::U64(a) => proto.raw_data = Some(raw(a, |v| v.to_le_bytes())),
            Array::Bool(a) => proto.raw_data = Some(raw(a, |&v| [v.into()])),
            Array::F8E4M3FN(a) => proto.raw_data = Some(packed(a)),
            Array::F8E4M3FNUZ(a) => proto.raw_data = Some(packed(a)),
            Array::F8E5M2(a) => proto.raw_data = Some(packed(a)),
            Array::F8E5M2FNUZ(a) => proto.raw_data = Some(packed(a)),
            Array::F8E8M0(a) => proto.raw_data = Some(packed(a)),
            Array::F4E2M1(a) => proto.raw_data = Some(packed(a)),
            Array::U4(a) => proto.raw_data = Some(packed(a)),
            Array::I4(a) => proto.raw_data = Some(packed(a)),
            Array::U2(a) => proto.raw_data = Some(packed(a)),
            Array::I2(a) => proto.raw_data = Some(packed(a)),
        }
        let (dtype, shape) = (array.dtype(), array.shape().to_vec());
        Self { proto: Arc::new(proto), external: None, deferred: None, dtype, shape }
    }

    /// A new tensor whose payload, in the form of `raw_data`, is computed when it is wanted.
    pub fn deferred(dtype: DType, shape: &[usize], payload: Deferred) -> Self {
        let proto = TensorProto {
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type: Some(dtype.to_onnx()),
            ..Default::default()
        };
        Self { proto: Arc::new(proto), external: None, deferred: Some(payload), dtype, shape: shape.to_vec() }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the payload takes in a file.
    pub fn byte_len(&self) -> usize {
        match self.dtype {
            DType::Str => self.proto.string_data.iter().map(Bytes::len).sum(),
            dtype => (self.len() * dtype.bits()).div_ceil(8),
        }
    }

    /// The type with a known shape.
    pub fn tensor_type(&self) -> TensorType {
        TensorType::known(self.dtype, &self.shape)
    }

    /// The message, without a name, and without a payload that is still to be computed.
    pub fn proto(&self) -> &TensorProto {
        &self.proto
    }

    /// The message with the payload, unless that lies in another file.
    pub fn to_proto(&self) -> TensorProto {
        let mut proto = self.proto().clone();
        if let Some(payload) = &self.deferred {
            proto.raw_data = Some(payload.bytes());
        }
        proto
    }

    /// The payload that is computed when it is wanted.
    pub fn computed(&self) -> Option<&Deferred> {
        self.deferred.as_ref()
    }

    /// The payload in the form of `raw_data`, if it has that form. One that is computed is computed here.
    pub fn raw(&self) -> Option<Bytes> {
        let held = self.external.as_ref().or(self.proto.raw_data.as_ref());
        held.cloned().or_else(|| self.deferred.as_ref().map(Deferred::bytes))
    }

    /// The payload if it lies outside the model's file.
    pub fn external(&self) -> Option<&Bytes> {
        self.external.as_ref()
    }

    /// Exactly one payload, long enough for the shape.
    fn check_payload(&self) -> Result<(), Fault> {
        let p = &self.proto;
        let fields = [
            (p.raw_data.is_some(), "raw_data"),
            (!p.float_data.is_empty(), "float_data"),
            (!p.int32_data.is_empty(), "int32_data"),
            (!p.int64_data.is_empty(), "int64_data"),
            (!p.uint64_data.is_empty(), "uint64_data"),
            (!p.double_data.is_empty(), "double_data"),
            (!p.string_data.is_empty(), "string_data"),
        ];
        let used: Vec<&str> = fields.iter().filter(|f| f.0).map(|f| f.1).collect();
        if p.data_location == Some(DataLocation::External as i32) {
            return match (&self.external, used.is_empty()) {
                (Some(bytes), true) => self.check_length(bytes.len()),
                (Some(_), false) => Err("external data and a payload of its own".into()),
                (None, _) => Ok(()), // not loaded: whoever asks for the elements is told
            };
        }
        if used.len() > 1 {
            fail!("more than one payload: {}", used.join(" and "));
        }
        match &p.raw_data {
            Some(raw) => self.check_length(raw.len()),
            None => self.check_count(),
        }
    }

    /// The field for the element type holds as many numbers as there are elements.
    fn check_count(&self) -> Result<(), Fault> {
        let (p, len) = (&self.proto, self.len());
        let (found, expected) = match self.dtype {
            DType::F32 => (p.float_data.len(), len),
            DType::C64 => (p.float_data.len(), 2 * len),
            DType::F64 => (p.double_data.len(), len),
            DType::C128 => (p.double_data.len(), 2 * len),
            DType::I64 => (p.int64_data.len(), len),
            DType::U32 | DType::U64 => (p.uint64_data.len(), len),
            DType::Str => (p.string_data.len(), len),
            // A byte to each integer, which smaller elements share.
            dtype if dtype.bits() < 8 => (p.int32_data.len(), (len * dtype.bits()).div_ceil(8)),
            _ => (p.int32_data.len(), len),
        };
        if found != expected {
            fail!("{} needs {expected} numbers, found {found}", self.tensor_type());
        }
        Ok(())
    }

    fn check_length(&self, found: usize) -> Result<(), Fault> {
        let expected = self.byte_len();
        if self.dtype == DType::Str || found != expected {
            fail!("{} needs {expected} bytes, found {found}", self.tensor_type());
        }
        Ok(())
    }

    /// The elements. Complex types have no [`Array`] and give a fault.
    pub fn array(&self) -> Result<Array, Fault> {
        let p = &self.proto;
        let raw = &self.raw();
        if raw.is_none() && p.data_location == Some(DataLocation::External as i32) {
            return Err("its external data was not loaded".into());
        }
        let shape = &self.shape;
        macro_rules! numeric {
            ($t:ty, $field:expr, $convert:expr) => {{
                let values: Vec<$t> = match raw {
                    Some(bytes) => bytes
                        .chunks_exact(size_of::<$t>())
                        .map(|c| <$t>::from_le_bytes(c.try_into().unwrap_or_default()))
                        .collect(),
                    None => $field.iter().map($convert).collect(),
                };
                Array::new(shape, values)
            }};
        }
        // Elements are packed in the typed field as they are in raw data, a byte to each integer.
        macro_rules! small {
            ($t:ty) => {{
                let typed: Vec<u8>;
                let bytes: &[u8] = match raw {
                    Some(bytes) => bytes,
                    None => {
                        typed = p.int32_data.iter().map(|&v| v as u8).collect();
                        &typed
                    }
                };
                if (bytes.len() * 8) < self.len() * self.dtype.bits() {
                    fail!("{} needs more than {} bytes", self.tensor_type(), bytes.len());
                }
                Array::new(shape, small::unpack::<$t>(bytes, self.len()))
            }};
        }
        match self.dtype {
            DType::F32 => numeric!(f32, p.float_data, |&v| v),
            DType::F64 => numeric!(f64, p.double_data, |&v| v),
            DType::F16 => numeric!(f16, p.int32_data, |&v| f16::from_bits(v as u16)),
            DType::BF16 => numeric!(bf16, p.int32_data, |&v| bf16::from_bits(v as u16)),
            DType::I8 => numeric!(i8, p.int32_data, |&v| v as i8),
            DType::U8 => numeric!(u8, p.int32_data, |&v| v as u8),
            DType::I16 => numeric!(i16, p.int32_data, |&v| v as i16),
            DType::U16 => numeric!(u16, p.int32_data, |&v| v as u16),
            DType::I32 => numeric!(i32, p.int32_data, |&v| v),
            DType::I64 => numeric!(i64, p.int64_data, |&v| v),
            DType::U32 => numeric!(u32, p.uint64_data, |&v| v as u32),
            DType::U64 => numeric!(u64, p.uint64_data, |&v| v),
            DType::Bool => {
                let values: Vec<bool> = match raw {
                    Some(bytes) => bytes.iter().map(|&b| b != 0).collect(),
                    None => p.int32_data.iter().map(|&v| v != 0).collect(),
                };
                Array::new(shape, values)
            }
            DType::Str => {
                let text = |b: &Bytes| {
                    String::from_utf8(b.to_vec()).map_err(|_| Fault::new("a string is not UTF-8"))
                };
                Array::new(shape, p.string_data.iter().map(text).collect::<Result<Vec<_>, _>>()?)
            }
            DType::F8E4M3FN => small!(small::F8E4M3FN),
            DType::F8E4M3FNUZ => small!(small::F8E4M3FNUZ),
            DType::F8E5M2 => small!(small::F8E5M2),
            DType::F8E5M2FNUZ => small!(small::F8E5M2FNUZ),
            DType::F8E8M0 => small!(small::F8E8M0),
            DType::F4E2M1 => small!(small::F4E2M1),
            DType::U4 => small!(small::U4),
            DType::I4 => small!(small::I4),
            DType::U2 => small!(small::U2),
            DType::I2 => small!(small::I2),
            other @ (DType::C64 | DType::C128) => {
                Err(Fault::unimplemented(format_args!("reading constants of type {other}")))
            }
        }
    }
}
