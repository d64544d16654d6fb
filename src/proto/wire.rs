//! Protobuf's wire format (<https://protobuf.dev/programming-guides/encoding/>), walked without decoding: how much memory
//! the messages of a file would take, and text that is not UTF-8.
//!
//! What is malformed is not told here; decoding does.

use std::borrow::Cow;

/// What a field holds that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text, which must be UTF-8.
    Text,
    /// The message with this number in the [`SCHEMA`].
    Message(usize),
}

/// A message of the schema.
#[derive(Debug)]
pub struct Message {
    /// Its full name.
    pub name: &'static str,
    /// How many fields it has.
    pub count: usize,
    /// Those that hold text or messages.
    pub fields: &'static [(u32, Kind)],
}

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// Deeper messages are not decoded anyway.
const DEPTH: usize = 100;

/// About what a field takes in memory, and a message beside its fields.
const FIELD: u64 = 24;
const REST: u64 = 16;

fn root() -> usize {
    SCHEMA.iter().position(|m| m.name == ".onnx.ModelProto").unwrap_or(0)
}

/// About how many bytes of memory the messages of a model take when they are decoded, payloads aside.
pub fn cost(model: &[u8]) -> u64 {
    fn walk(mut bytes: &[u8], message: usize, depth: usize) -> u64 {
        let mut total = REST + FIELD * SCHEMA[message].count as u64;
        while depth < DEPTH
            && let Some((number, field, rest)) = next(bytes)
        {
            if let (Some(Kind::Message(inner)), Payload::Bytes(payload)) = (kind(message, number), field) {
                total += walk(payload, inner, depth + 1);
            }
            bytes = rest;
        }
        total
    }
    walk(model, root(), 0)
}

/// The model with every byte of its texts that is not UTF-8 written as `\xNN`.
pub fn with_valid_text(model: &[u8]) -> Vec<u8> {
    fn walk(bytes: &[u8], message: usize, depth: usize) -> Cow<'_, [u8]> {
        let mut changed: Option<Vec<u8>> = None;
        let mut left = bytes;
        while depth < DEPTH
            && let Some((number, field, rest)) = next(left)
        {
            let here = bytes.len() - left.len();
            let new = match (kind(message, number), field) {
                (Some(Kind::Message(inner)), Payload::Bytes(payload)) => walk(payload, inner, depth + 1),
                (Some(Kind::Text), Payload::Bytes(text)) => escaped(text),
                _ => Cow::Borrowed(&[][..]),
            };
            let whole = &left[..left.len() - rest.len()];
            match (new, &mut changed) {
                (Cow::Owned(new), _) => {
                    let out = changed.get_or_insert_with(|| bytes[..here].to_vec());
                    write_varint(out, u64::from(number) << 3 | 2);
                    write_varint(out, new.len() as u64);
                    out.extend(new);
                }
                (Cow::Borrowed(_), Some(out)) => out.extend_from_slice(whole),
                (Cow::Borrowed(_), None) => {}
            }
            left = rest;
        }
        match changed {
            None => Cow::Borrowed(bytes),
            Some(mut out) => {
                out.extend_from_slice(left);
                Cow::Owned(out)
            }
        }
    }
    walk(model, root(), 0).into_owned()
}

fn escaped(text: &[u8]) -> Cow<'_, [u8]> {
    if std::str::from_utf8(text).is_ok() {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    for chunk in text.utf8_chunks() {
        out += chunk.valid();
        chunk.invalid().iter().for_each(|byte| out += &format!("\\x{byte:02X}"));
    }
    Cow::Owned(out.into_bytes())
}

fn kind(message: usize, number: u32) -> Option<Kind> {
    SCHEMA.get(message)?.fields.iter().find(|f| f.0 == number).map(|f| f.1)
}

enum Payload<'a> {
    Bytes(&'a [u8]),
    Other,
}

/// The first field: its number, what it holds, and the bytes behind it. `None` at the end, or where it is malformed.
fn next(bytes: &[u8]) -> Option<(u32, Payload<'_>, &[u8])> {
    let (key, rest) = varint(bytes)?;
    let number = u32::try_from(key >> 3).ok()?;
    Some(match key & 7 {
        0 => (number, Payload::Other, varint(rest)?.1),
        1 => (number, Payload::Other, rest.get(8..)?),
        2 => {
            let (length, rest) = varint(rest)?;
            let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (number, Payload::Bytes(payload), rest)
        }
        // A group is known to no field of the schema: its ends are passed over one by one.
        3 | 4 => (number, Payload::Other, rest),
        5 => (number, Payload::Other, rest.get(4..)?),
        _ => return None,
    })
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

fn write_varint(out: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{GraphProto, ModelProto, NodeProto};
    use prost::Message as _;

    fn model(name: &str) -> ModelProto {
        let node = NodeProto {
            name: Some(name.into()),
            input: vec!["x".into()],
            output: vec![name.into()],
            ..Default::default()
        };
        let graph = GraphProto { node: vec![node], name: Some("g".into()), ..Default::default() };
        ModelProto { ir_version: Some(8), graph: Some(graph), ..Default::default() }
    }

    #[test]
    fn empty_messages_cost_more_than_they_look() {
        let graph = GraphProto { node: vec![NodeProto::default(); 1000], ..Default::default() };
        let bytes = ModelProto { graph: Some(graph), ..Default::default() }.encode_to_vec();
        let real = 1000 * std::mem::size_of::<NodeProto>() as u64;
        let cost = cost(&bytes);
        assert!(cost > real / 2 && cost < 3 * real, "{cost} {real}");
    }

    #[test]
    fn text_that_is_not_utf8_is_escaped_and_the_rest_stays() {
        let mut bytes = model("abc").encode_to_vec();
        assert_eq!(with_valid_text(&bytes), bytes);
        bytes
            .windows(3)
            .enumerate()
            .filter(|(_, w)| w == b"abc")
            .map(|(i, _)| i)
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|at| bytes[at + 1] = 0xff);
        assert!(ModelProto::decode(&*bytes).is_err());
        let repaired = with_valid_text(&bytes);
        assert_eq!(ModelProto::decode(&*repaired).unwrap(), model("a\\xFFc"));
    }

    #[test]
    fn what_is_malformed_ends_the_walk() {
        let bytes = model("abc").encode_to_vec();
        for end in 0..bytes.len() {
            cost(&bytes[..end]);
            with_valid_text(&bytes[..end]);
        }
        assert!(varint(&[0x80; 12]).is_none() && next(&[0x07]).is_none());
    }
}
