//! The ONNX messages, generated from `proto/onnx.proto`, with decoding that notices what it cannot keep.

#![allow(missing_docs, clippy::all)]

pub mod wire;

use bytes::Bytes;
use prost::Message;

include!(concat!(env!("OUT_DIR"), "/onnx.rs"));

/// A decoded model and the bytes that the schema has no field for (dropped if the model is written again).
pub struct Decoded {
    pub model: ModelProto,
    pub lost_bytes: usize,
}

/// Decodes a model; payloads stay slices of `bytes`.
pub fn decode(bytes: Bytes) -> Result<Decoded, prost::DecodeError> {
    let length = bytes.len();
    let model = ModelProto::decode(bytes)?;
    let lost_bytes = length.saturating_sub(model.encoded_len());
    Ok(Decoded { model, lost_bytes })
}
