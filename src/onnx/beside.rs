//! Payloads in a file beside the model: a protobuf message ends at 2 GiB
//! (<https://onnx.ai/onnx/repo-docs/ExternalData.html>). The file is named after the model that is written, never by what
//! was read.

use std::io::{Result, Write};

use super::stream::Computed;
use crate::ir::Payload;
use crate::proto::tensor_proto::DataLocation;
use crate::proto::{ModelProto, StringStringEntryProto};

/// Smaller payloads stay in the model.
const SMALL: usize = 1024;
/// Payloads begin at multiples of this, so that they can be mapped as elements of any type.
const ALIGNMENT: u64 = 64;

/// Takes the payloads of initializers out of a message and notes where in the file `location` they lie: offsets and
/// payloads, in order. Those that are computed go there, whatever their size.
pub fn split(message: &mut ModelProto, location: &str, computed: &Computed) -> Vec<(u64, Payload)> {
    let (mut payloads, mut end) = (Vec::new(), 0u64);
    for tensor in message.graph.iter_mut().flat_map(|g| &mut g.initializer) {
        let held = tensor.raw_data.take_if(|bytes| bytes.len() >= SMALL).map(Payload::Held);
        let Some(payload) = held.or_else(|| computed(tensor).map(Payload::Computed)) else { continue };
        let offset = end.next_multiple_of(ALIGNMENT);
        end = offset + payload.len() as u64;
        let entry =
            |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
        tensor.external_data = vec![
            entry("location", location.into()),
            entry("offset", offset.to_string()),
            entry("length", payload.len().to_string()),
        ];
        tensor.data_location = Some(DataLocation::External as i32);
        payloads.push((offset, payload));
    }
    payloads
}

/// Writes the payloads; the number of bytes.
pub fn write(payloads: &[(u64, Payload)], out: &mut dyn Write) -> Result<usize> {
    let mut at = 0;
    for (offset, payload) in payloads {
        let gap = offset - at;
        out.write_all(&[0; ALIGNMENT as usize][..gap as usize])?;
        payload.write(out)?;
        at = offset + payload.len() as u64;
    }
    Ok(at as usize)
}
