//! Model-local functions: the graph that one call of a function stands for.
//!
//! The call itself stays a node, and the file keeps the function as it was; only the interpreter runs this graph.

use crate::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, ValueInfoProto};

/// The body of a function with the attributes of one call. An attribute that refers to one of the function takes the
/// call's value, else the function's default; without either it is left out.
pub fn body(function: &FunctionProto, call: &[AttributeProto]) -> GraphProto {
    let given = |name: &str| {
        call.iter()
            .chain(&function.attribute_proto)
            .find(|a| a.name() == name && a.ref_attr_name().is_empty())
    };
    let declare = |name: &String| ValueInfoProto { name: Some(name.clone()), ..Default::default() };
    let mut nodes = function.node.clone();
    nodes.iter_mut().for_each(|node| fill(node, &given));
    GraphProto {
        name: function.name.clone(),
        node: nodes,
        input: function.input.iter().map(declare).collect(),
        output: function.output.iter().map(declare).collect(),
        value_info: function.value_info.clone(),
        ..Default::default()
    }
}

fn fill<'a>(node: &mut NodeProto, given: &impl Fn(&str) -> Option<&'a AttributeProto>) {
    let attributes = std::mem::take(&mut node.attribute);
    node.attribute = attributes.into_iter().filter_map(|a| filled(a, given)).collect();
}

fn filled<'a>(
    mut attribute: AttributeProto,
    given: &impl Fn(&str) -> Option<&'a AttributeProto>,
) -> Option<AttributeProto> {
    if !attribute.ref_attr_name().is_empty() {
        let value = given(attribute.ref_attr_name())?.clone();
        return Some(AttributeProto { name: attribute.name, ..value });
    }
    for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
        graph.node.iter_mut().for_each(|node| fill(node, given));
    }
    Some(attribute)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::Program;
    use crate::ir::{Array, attribute};
    use crate::proto::{ModelProto, OperatorSetIdProto};

    fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
        OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) }
    }

    fn node(domain: &str, op: &str, input: &str, output: &str, attributes: Vec<AttributeProto>) -> NodeProto {
        NodeProto {
            domain: Some(domain.into()),
            op_type: Some(op.into()),
            input: vec![input.into()],
            output: vec![output.into()],
            attribute: attributes,
            ..Default::default()
        }
    }

    /// `Leak(x) = LeakyRelu(x, alpha = slope)`, with 0.5 as the default slope, and `Twice` that calls it two times.
    fn model() -> ModelProto {
        let reference =
            AttributeProto { ref_attr_name: Some("slope".into()), ..attribute::float("alpha", 0.0) };
        let leak = FunctionProto {
            name: Some("Leak".into()),
            domain: Some("mine".into()),
            input: vec!["x".into()],
            output: vec!["y".into()],
            attribute_proto: vec![attribute::float("slope", 0.5)],
            node: vec![node("", "LeakyRelu", "x", "y", vec![AttributeProto { f: None, ..reference }])],
            opset_import: vec![opset("", 16)],
            ..Default::default()
        };
        let twice = FunctionProto {
            name: Some("Twice".into()),
            node: vec![
                node("mine", "Leak", "x", "h", vec![]),
                node("mine", "Leak", "h", "y", vec![attribute::float("slope", 0.25)]),
            ],
            opset_import: vec![opset("mine", 1)],
            attribute_proto: Vec::new(),
            ..leak.clone()
        };
        let graph = GraphProto {
            name: Some("g".into()),
            node: vec![node("mine", "Twice", "a", "b", vec![])],
            input: vec![ValueInfoProto { name: Some("a".into()), ..Default::default() }],
            output: vec![ValueInfoProto { name: Some("b".into()), ..Default::default() }],
            ..Default::default()
        };
        ModelProto {
            ir_version: Some(10),
            opset_import: vec![opset("", 16), opset("mine", 1)],
            graph: Some(graph),
            functions: vec![leak, twice],
            ..Default::default()
        }
    }

    fn nothing(_: &crate::proto::TensorProto) -> Result<bytes::Bytes, crate::error::Fault> {
        Err("no external data".into())
    }

    #[test]
    fn functions_run_and_stay_in_the_file() {
        let proto = model();
        let model = crate::onnx::import(proto.clone(), &nothing).unwrap();
        let program = Program::new(&model.graph).unwrap();
        let y = program.run(&[Array::vector(vec![-8f32, 3.0])]).unwrap();
        assert_eq!(y, [Array::vector(vec![-1f32, 3.0])]);
        assert_eq!(crate::onnx::emit(&model, crate::onnx::External::Keep).unwrap(), proto);
    }

    #[test]
    fn a_function_that_calls_itself_is_refused() {
        let mut proto = model();
        proto.functions[0].node[0].op_type = Some("Leak".into());
        proto.functions[0].node[0].domain = Some("mine".into());
        let error = crate::onnx::import(proto, &nothing).unwrap_err().to_string();
        assert!(error.contains("`Leak` calls itself"), "{error}");
    }
}
