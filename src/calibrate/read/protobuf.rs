//! ONNX test data: one serialized `TensorProto` a file.

use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::open_regular;
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Tensor};
use crate::proto::TensorProto;

/// The longest file, in bytes. It bounds memory too: elements take as many bytes in a file as in memory, or more.
const MAX_BYTES: u64 = 1 << 30;

/// The name (empty if it has none) and the elements of a tensor in a file.
pub fn read(path: &Path) -> Result<(String, Array), Fault> {
    let (file, size) = open_regular(path)?;
    if size > MAX_BYTES {
        fail!("a file of {size} bytes; at most {MAX_BYTES} are read");
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| Fault::new(format!("cannot be read: {error}")))?;
    let mut proto = TensorProto::decode(Bytes::from(bytes))
        .map_err(|error| Fault::new(format!("not a serialized tensor: {error}")))?;
    let name = proto.name.take().unwrap_or_default();
    Ok((name, Tensor::from_proto(proto, None)?.array()?))
}
