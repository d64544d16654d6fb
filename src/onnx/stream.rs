//! Encoding a model piece by piece, so that no copy of its weights is made: each initializer goes to the file by
//! itself. The bytes are those of encoding it whole.

use std::io::{Error, Write};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::proto::{GraphProto, ModelProto};

/// `ModelProto.graph`.
const GRAPH: u32 = 7;
/// `GraphProto.initializer`.
const INITIALIZER: u32 = 5;

/// Writes the message; the number of bytes.
pub fn write(mut model: ModelProto, out: &mut dyn Write) -> Result<usize, Error> {
    let graph = model.graph.take();
    // Fields are written in the order of their numbers: those below the graph's, the graph, the others.
    let head = ModelProto {
        ir_version: model.ir_version.take(),
        producer_name: model.producer_name.take(),
        producer_version: model.producer_version.take(),
        domain: model.domain.take(),
        model_version: model.model_version.take(),
        doc_string: model.doc_string.take(),
        ..ModelProto::default()
    };
    let mut written = whole(&head, out)?;
    if let Some(graph) = graph {
        written += start(GRAPH, graph.encoded_len(), out)?;
        written += self::graph(graph, out)?;
    }
    Ok(written + whole(&model, out)?)
}

fn graph(mut graph: GraphProto, out: &mut dyn Write) -> Result<usize, Error> {
    let initializers = std::mem::take(&mut graph.initializer);
    let head = GraphProto {
        node: std::mem::take(&mut graph.node),
        name: graph.name.take(),
        ..GraphProto::default()
    };
    let mut written = whole(&head, out)?;
    for tensor in initializers {
        written += start(INITIALIZER, tensor.encoded_len(), out)?;
        written += whole(&tensor, out)?;
    }
    Ok(written + whole(&graph, out)?)
}

fn whole(message: &impl Message, out: &mut dyn Write) -> Result<usize, Error> {
    let bytes = message.encode_to_vec();
    out.write_all(&bytes)?;
    Ok(bytes.len())
}

/// Key and length of a message field.
fn start(tag: u32, length: usize, out: &mut dyn Write) -> Result<usize, Error> {
    let mut bytes = Vec::new();
    encode_key(tag, WireType::LengthDelimited, &mut bytes);
    encode_varint(length as u64, &mut bytes);
    debug_assert_eq!(bytes.len(), key_len(tag) + encoded_len_varint(length as u64));
    out.write_all(&bytes)?;
    Ok(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::text;

    #[test]
    fn the_bytes_are_those_of_encoding_it_whole() {
        let source =
            "< ir_version: 8, producer_name: \"p\", doc_string: \"d\", opset_import: [\"\" : 17, \"l\" : 1],
              metadata_props: [\"k\" : \"v\"] >
            g (float[2] x) => (float[2] y) <float[2] a = {1.0, 2.0}, float[2] b = {3.0, 4.0}, float[2] h>
            { h = Add (x, a)  y = Add (h, b) }
            < domain: \"l\", opset_import: [\"\" : 17] > f (a) => (b) { b = Relu (a) }";
        let model = text::parse(source).unwrap();
        let mut bytes = Vec::new();
        let written = write(model.clone(), &mut bytes).unwrap();
        assert_eq!(bytes, model.encode_to_vec());
        assert_eq!(written, bytes.len());
    }
}
