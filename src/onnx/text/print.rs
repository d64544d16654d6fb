//! A model as text: one value and one node a line, graphs indented inside their node.

use super::elements::{Element, elements, is_fill};
use super::{is_special_float, starts_type};
use crate::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::{DataLocation, DataType},
    tensor_shape_proto::dimension,
    type_proto,
};

/// Tensors with more elements are printed as a digest.
const MAX_INLINE: usize = 8;

/// How much of a model is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// For reading and for golden files. A tensor of more than 8 elements becomes a digest, `<288 elements,
    /// min -0.5, max 0.5, fnv 60c5…>`; its hash (64-bit FNV-1a over the elements) does not depend on how the tensor
    /// is encoded. Attributes are sorted by name, 16-bit floats are numbers, and the producer's name, version and
    /// remarks are left out.
    #[default]
    Digest,
    /// For reading back: every element, in the order of the model.
    Full,
}

/// Writes a model in the syntax that [`parse`](super::parse()) reads.
pub fn print(model: &ModelProto, detail: Detail) -> String {
    let mut printer = Printer { text: String::new(), indent: 0, detail };
    printer.header(model);
    if let Some(graph) = &model.graph {
        printer.graph("", graph, "");
    }
    for function in &model.functions {
        printer.function(function);
    }
    printer.text
}

struct Printer {
    text: String,
    indent: usize,
    detail: Detail,
}

impl Printer {
    fn line(&mut self, line: &str) {
        self.text.extend(std::iter::repeat_n("  ", self.indent));
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// The items one a line between `open` and `close`, with commas.
    fn block<T>(&mut self, open: &str, items: &[T], close: &str, mut item: impl FnMut(&mut Self, &T, &str)) {
        self.line(open);
        self.indent += 1;
        for (index, each) in items.iter().enumerate() {
            item(self, each, if index + 1 < items.len() { "," } else { "" });
        }
        self.indent -= 1;
        self.line(close);
    }

    fn properties(&mut self, properties: &[(&str, Option<String>)]) {
        let present: Vec<_> = properties
            .iter()
            .filter_map(|(key, value)| Some(format!("{key}: {}", value.as_ref()?)))
            .collect();
        if !present.is_empty() {
            self.block("<", &present, ">", |p, property, comma| p.line(&format!("{property}{comma}")));
        }
    }

    fn header(&mut self, model: &ModelProto) {
        let full = |property: &Option<String>| match self.detail {
            Detail::Full => property.as_deref().map(quoted),
            Detail::Digest => None,
        };
        self.properties(&[
            ("ir_version", model.ir_version.map(|version| version.to_string())),
            ("opset_import", opsets(&model.opset_import)),
            ("producer_name", full(&model.producer_name)),
            ("producer_version", full(&model.producer_version)),
            ("domain", model.domain.as_deref().map(quoted)),
            ("model_version", model.model_version.map(|version| version.to_string())),
            ("doc_string", full(&model.doc_string)),
            ("metadata_props", string_pairs(&model.metadata_props)),
        ]);
    }

    /// `head` and `tail` stand on the first and the last line of the graph.
    fn graph(&mut self, head: &str, graph: &GraphProto, tail: &str) {
        let values = |values: &[ValueInfoProto]| joined(values, ", ", value_info);
        let signature =
            format!("{} ({}) => ({})", name(graph.name()), values(&graph.input), values(&graph.output));
        let constants = graph
            .initializer
            .iter()
            .map(|tensor| format!("{} {} = {}", tensor_type(tensor), name(tensor.name()), self.data(tensor)));
        let facts: Vec<String> = constants.chain(graph.value_info.iter().map(value_info)).collect();
        if facts.is_empty() {
            self.line(&format!("{head}{signature} {{"));
        } else {
            let open = format!("{head}{signature} <");
            self.block(&open, &facts, "> {", |p, fact, comma| p.line(&format!("{fact}{comma}")));
        }
        self.nodes(&graph.node, tail);
    }

    /// Nodes, then the brace that closes them.
    fn nodes(&mut self, nodes: &[NodeProto], tail: &str) {
        self.indent += 1;
        for node in nodes {
            self.node(node);
        }
        self.indent -= 1;
        self.line(&format!("}}{tail}"));
    }

    fn node(&mut self, node: &NodeProto) {
        let label = node.name.as_ref().map_or(String::new(), |label| format!("[{}] ", name(label)));
        let mut operator = word(node.op_type());
        if !node.domain().is_empty() {
            operator = format!("{}.{operator}", domain(node.domain()));
        }
        if !node.overload().is_empty() {
            operator = format!("{operator}:{}", word(node.overload()));
        }
        let head = format!("{label}{} = {operator}", joined(&node.output, ", ", |id| name(id)));
        let inputs = joined(&node.input, ", ", |id| name(id));

        let mut attributes: Vec<_> = node.attribute.iter().collect();
        if self.detail == Detail::Digest {
            attributes.sort_by_key(|attribute| attribute.name());
        }
        if attributes.is_empty() {
            self.line(&format!("{head} ({inputs})"));
        } else if attributes.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty()) {
            self.block(&format!("{head} ({inputs}) <"), &attributes, ">", |p, attribute, comma| {
                p.attribute_lines(attribute, comma);
            });
        } else {
            let attributes = joined(&attributes, ", ", |attribute| self.attribute(attribute));
            self.line(&format!("{head} <{attributes}> ({inputs})"));
        }
    }

    fn attribute_lines(&mut self, attribute: &AttributeProto, comma: &str) {
        if let Some(graph) = &attribute.g {
            self.graph(&format!("{} = ", word(attribute.name())), graph, comma);
        } else if !attribute.graphs.is_empty() {
            let open = format!("{} = [", word(attribute.name()));
            let close = format!("]{comma}");
            self.block(&open, &attribute.graphs, &close, |p, graph, comma| p.graph("", graph, comma));
        } else {
            let line = self.attribute(attribute);
            self.line(&format!("{line}{comma}"));
        }
    }

    /// An attribute that is not a graph. Its type is spelt only where the value does not show it.
    fn attribute(&self, attribute: &AttributeProto) -> String {
        use AttributeType as A;
        let kind = attribute.r#type();
        let list = |items: String| (!items.is_empty()).then(|| format!("[{items}]"));
        let value = match kind {
            _ if attribute.ref_attr_name.is_some() => None,
            A::Float => Some(single(attribute.f())),
            A::Int => Some(attribute.i().to_string()),
            A::String => Some(quoted_bytes(attribute.s())),
            A::Tensor => attribute.t.as_ref().map(|tensor| self.tensor(tensor)),
            A::TypeProto => attribute.tp.as_ref().map(type_text),
            A::Floats => list(joined(&attribute.floats, ", ", |&x| single(x))),
            A::Ints => list(joined(&attribute.ints, ", ", i64::to_string)),
            A::Strings => list(joined(&attribute.strings, ", ", |x| quoted_bytes(x))),
            A::Tensors => list(joined(&attribute.tensors, ", ", |tensor| self.tensor(tensor))),
            A::TypeProtos => list(joined(&attribute.type_protos, ", ", type_text)),
            _ => None,
        };
        let key = word(attribute.name());
        if let Some(value) = value {
            return format!("{key} = {value}");
        }
        let value = match &attribute.ref_attr_name {
            Some(reference) => format!("@{}", word(reference)),
            None => "[]".to_string(),
        };
        match kind {
            A::Undefined => format!("{key} = {value}"),
            _ => format!("{key}: {} = {value}", kind.as_str_name().to_ascii_lowercase()),
        }
    }

    /// A tensor as the value of an attribute.
    fn tensor(&self, tensor: &TensorProto) -> String {
        let label = match tensor.name.as_deref() {
            Some(label) if is_fill(label) => format!("{} = ", quoted(label)),
            Some(label) => format!("{} = ", name(label)),
            None => String::new(),
        };
        format!("{} {label}{}", tensor_type(tensor), self.data(tensor))
    }

    fn data(&self, tensor: &TensorProto) -> String {
        if tensor.data_location() == DataLocation::External {
            return string_pairs(&tensor.external_data).unwrap_or_else(|| "[]".to_string());
        }
        let full = self.detail == Detail::Full;
        if full || elements(tensor, full).nth(MAX_INLINE).is_none() {
            let elements: Vec<_> = elements(tensor, full).map(element).collect();
            return format!("{{{}}}", elements.join(", "));
        }
        digest(tensor)
    }

    fn function(&mut self, function: &FunctionProto) {
        let doc = function.doc_string.as_deref().filter(|_| self.detail == Detail::Full);
        self.properties(&[
            ("domain", function.domain.as_deref().map(quoted)),
            ("overload", function.overload.as_deref().map(quoted)),
            ("opset_import", opsets(&function.opset_import)),
            ("doc_string", doc.map(quoted)),
        ]);
        let names = |names: &[String]| joined(names, ", ", |id| name(id));
        let defaults = function.attribute_proto.iter().map(|attribute| self.attribute(attribute));
        let attributes: Vec<_> = function.attribute.iter().map(|id| name(id)).chain(defaults).collect();
        let attributes =
            if attributes.is_empty() { String::new() } else { format!("<{}> ", attributes.join(", ")) };
        let head = format!("{} {attributes}", name(function.name()));
        let signature = format!("({}) => ({})", names(&function.input), names(&function.output));
        let values = match function.value_info.as_slice() {
            [] => String::new(),
            values => format!("<{}> ", joined(values, ", ", value_info)),
        };
        self.line(&format!("{head}{signature} {values}{{"));
        self.nodes(&function.node, "");
    }
}

fn joined<T>(items: &[T], separator: &str, text: impl Fn(&T) -> String) -> String {
    items.iter().map(text).collect::<Vec<_>>().join(separator)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn quoted_bytes(bytes: &[u8]) -> String {
    quoted(&String::from_utf8_lossy(bytes))
}

fn is_word(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.chars().all(word) && text.starts_with(|c: char| !c.is_ascii_digit())
}

fn word(text: &str) -> String {
    if is_word(text) { text.to_string() } else { quoted(text) }
}

/// A name where a type or a literal could stand as well.
fn name(text: &str) -> String {
    if starts_type(text) || is_special_float(text) { quoted(text) } else { word(text) }
}

fn domain(text: &str) -> String {
    if text.split('.').all(is_word) { text.to_string() } else { quoted(text) }
}

fn opsets(opsets: &[OperatorSetIdProto]) -> Option<String> {
    let opset = |opset: &OperatorSetIdProto| format!("{} : {}", quoted(opset.domain()), opset.version());
    (!opsets.is_empty()).then(|| format!("[{}]", joined(opsets, ", ", opset)))
}

fn string_pairs(pairs: &[StringStringEntryProto]) -> Option<String> {
    let pair = |pair: &StringStringEntryProto| format!("{}: {}", quoted(pair.key()), quoted(pair.value()));
    (!pairs.is_empty()).then(|| format!("[{}]", joined(pairs, ", ", pair)))
}

fn value_info(info: &ValueInfoProto) -> String {
    let kind = info.r#type.as_ref().map_or(String::new(), |kind| format!("{} ", type_text(kind)));
    kind + &name(info.name())
}

fn type_text(kind: &TypeProto) -> String {
    use type_proto::Value;
    let inner = |kind: &Option<Box<TypeProto>>| kind.as_deref().map(type_text).unwrap_or_default();
    match &kind.value {
        Some(Value::TensorType(tensor)) => data_type_name(tensor.elem_type()) + &shape(&tensor.shape),
        Some(Value::SequenceType(sequence)) => format!("seq({})", inner(&sequence.elem_type)),
        Some(Value::OptionalType(optional)) => format!("optional({})", inner(&optional.elem_type)),
        Some(Value::MapType(map)) => {
            format!("map({}, {})", data_type_name(map.key_type()), inner(&map.value_type))
        }
        Some(Value::SparseTensorType(tensor)) => {
            format!("sparse_tensor({}{})", data_type_name(tensor.elem_type()), shape(&tensor.shape))
        }
        Some(Value::OpaqueType(opaque)) => match &opaque.domain {
            Some(prefix) => format!("opaque({}, {})", domain(prefix), word(opaque.name())),
            None => format!("opaque({})", opaque.name.as_deref().map(domain).unwrap_or_default()),
        },
        None => "undefined".to_string(),
    }
}

fn data_type_name(code: i32) -> String {
    DataType::try_from(code).unwrap_or_default().as_str_name().to_ascii_lowercase()
}

fn shape(shape: &Option<TensorShapeProto>) -> String {
    let Some(shape) = shape else { return "[]".to_string() };
    if shape.dim.is_empty() {
        return String::new();
    }
    let dims = joined(&shape.dim, ",", |dim| match &dim.value {
        Some(dimension::Value::DimValue(size)) => size.to_string(),
        Some(dimension::Value::DimParam(symbol)) => word(symbol),
        None => "?".to_string(),
    });
    format!("[{dims}]")
}

fn tensor_type(tensor: &TensorProto) -> String {
    let dims = if tensor.dims.is_empty() {
        String::new()
    } else {
        format!("[{}]", joined(&tensor.dims, ",", i64::to_string))
    };
    data_type_name(tensor.data_type.unwrap_or_default()) + &dims
}

/// The shortest digits that read back as the same number, always recognizable as a float.
fn single(value: f32) -> String {
    if value.is_nan() { "nan".to_string() } else { format!("{value:?}") }
}

fn double(value: f64) -> String {
    if value.is_nan() { "nan".to_string() } else { format!("{value:?}") }
}

fn element(element: Element) -> String {
    match element {
        Element::Single(x) => single(x),
        Element::Double(x) => double(x),
        Element::Int(x) => x.to_string(),
        Element::Uint(x) => x.to_string(),
        Element::Text(x) => quoted_bytes(x),
    }
}

/// What identifies the elements of a large tensor, and a hint of their size.
fn digest(tensor: &TensorProto) -> String {
    let (mut count, mut low, mut high, mut hash) = (0usize, f64::INFINITY, f64::NEG_INFINITY, FNV_START);
    for element in elements(tensor, false) {
        let (bits, value) = match element {
            Element::Single(x) => (x.to_bits().into(), x.into()),
            Element::Double(x) => (x.to_bits(), x),
            Element::Int(x) => (x.cast_unsigned(), x as f64),
            Element::Uint(x) => (x, x as f64),
            Element::Text(x) => (fnv(FNV_START, x), f64::NAN),
        };
        (count, low, high) = (count + 1, low.min(value), high.max(value));
        hash = fnv(hash, &bits.to_le_bytes());
    }
    let range =
        if low <= high { format!("min {}, max {}, ", rounded(low), rounded(high)) } else { String::new() };
    format!("<{count} elements, {range}fnv {hash:016x}>")
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Six significant digits.
fn rounded(value: f64) -> String {
    let rounded = format!("{value:.5e}").parse().unwrap_or(value);
    if rounded.abs() < 1e16 && rounded.fract() == 0.0 { format!("{rounded}") } else { double(rounded) }
}
