//! Encoding a model piece by piece, so that no copy of its weights is made: each initializer goes to the file by
//! itself. The bytes are those of encoding it whole.

use std::io::{Error, Write};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::ir::{Deferred, Payload};
use crate::proto::{GraphProto, ModelProto, TensorProto};

/// `ModelProto.graph`.
const GRAPH: u32 = 7;
/// `GraphProto.initializer`.
const INITIALIZER: u32 = 5;
/// `TensorProto.raw_data`.
const RAW_DATA: u32 = 9;

/// The payload of an initializer that the message leaves out. Such a message has no field behind `raw_data`.
pub type Computed<'a> = dyn Fn(&TensorProto) -> Option<Deferred> + 'a;

/// Length of the whole message in bytes.
pub fn length(model: &ModelProto, computed: &Computed) -> usize {
    let Some(graph) = &model.graph else { return model.encoded_len() };
    let [stated, whole] =
        [graph.encoded_len(), graph_length(graph, computed)].map(|n| n + encoded_len_varint(n as u64));
    model.encoded_len() - stated + whole
}

fn graph_length(graph: &GraphProto, computed: &Computed) -> usize {
    let more = |tensor: &TensorProto| {
        let [stated, whole] = [tensor.encoded_len(), tensor_length(tensor, computed(tensor).as_ref())]
            .map(|n| n + encoded_len_varint(n as u64));
        whole - stated
    };
    graph.encoded_len() + graph.initializer.iter().map(more).sum::<usize>()
}

fn tensor_length(tensor: &TensorProto, payload: Option<&Deferred>) -> usize {
    let field = |p: &Deferred| {
        let length = Payload::Computed(p.clone()).len();
        key_len(RAW_DATA) + encoded_len_varint(length as u64) + length
    };
    tensor.encoded_len() + payload.map_or(0, field)
}

/// Writes the message; the number of bytes.
pub fn write(mut model: ModelProto, computed: &Computed, out: &mut dyn Write) -> Result<usize, Error> {
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
        written += start(GRAPH, graph_length(&graph, computed), out)?;
        written += self::graph(graph, computed, out)?;
    }
    Ok(written + whole(&model, out)?)
}

fn graph(mut graph: GraphProto, computed: &Computed, out: &mut dyn Write) -> Result<usize, Error> {
    let initializers = std::mem::take(&mut graph.initializer);
    let head = GraphProto {
        node: std::mem::take(&mut graph.node),
        name: graph.name.take(),
        ..GraphProto::default()
    };
    let mut written = whole(&head, out)?;
    for tensor in initializers {
        let payload = computed(&tensor);
        written += start(INITIALIZER, tensor_length(&tensor, payload.as_ref()), out)?;
        written += whole(&tensor, out)?;
        if let Some(payload) = payload.map(Payload::Computed) {
            written += start(RAW_DATA, payload.len(), out)? + payload.len();
            payload.write(out)?;
        }
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
        let written = write(model.clone(), &|_| None, &mut bytes).unwrap();
        assert_eq!(bytes, model.encode_to_vec());
        assert_eq!((written, length(&model, &|_| None)), (bytes.len(), bytes.len()));
    }

    #[test]
    fn payloads_that_are_computed_lie_where_others_do() {
        for count in [1usize, 100, 127, 128, 20_000] {
            let mut whole = text::parse(
                "< ir_version: 8, opset_import: [\"\" : 17] >
                g (float[1] x) => (float[1] y) <float[1] b = {3.0}> { y = Add (x, b) }",
            )
            .unwrap();
            let bytes: Vec<u8> = (0..count).map(|i| i as u8).collect();
            let tensor = TensorProto {
                dims: vec![count as i64],
                data_type: Some(crate::ir::DType::U8.to_onnx()),
                name: Some("w".into()),
                ..Default::default()
            };
            let mut without = whole.clone();
            without.graph.as_mut().unwrap().initializer.push(tensor.clone());
            let held = TensorProto { raw_data: Some(bytes.clone().into()), ..tensor };
            whole.graph.as_mut().unwrap().initializer.push(held);
            let payload = Deferred::new(count, count.div_ceil(50), move |i| {
                bytes[i * 50..count.min(i * 50 + 50)].to_vec()
            });
            let computed = |t: &TensorProto| (t.name() == "w").then(|| payload.clone());
            let mut out = Vec::new();
            assert_eq!(length(&without, &computed), whole.encoded_len());
            assert_eq!(write(without, &computed, &mut out).unwrap(), out.len());
            assert_eq!(out, whole.encode_to_vec());
        }
    }
}
