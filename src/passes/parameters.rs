//! Weights that a file also lists as graph inputs.
//!
//! Since format 4 such an initializer is a default that callers may override, and old exporters wrote every weight so
//! (`keep_initializers_as_inputs`). Nobody overrides a weight that is to be folded or quantized.

use crate::ir::{Graph, Port, ValueId};

/// Turns defaults that are only read as weights, biases or statistics into constants; their names, in order.
pub fn fix_weights(graph: &mut Graph) -> Vec<String> {
    let weights: Vec<ValueId> = graph.inputs.iter().copied().filter(|&v| is_weight(graph, v)).collect();
    for &weight in &weights {
        let value = graph.value_mut(weight);
        value.constant = value.default.take();
    }
    graph.inputs.retain(|v| !weights.contains(v));
    let names: Vec<String> = weights.iter().map(|&v| graph.name(v).to_string()).collect();
    graph.rest.input.retain(|i| !names.iter().any(|n| Some(n) == i.name.as_ref()));
    names
}

fn is_weight(graph: &Graph, id: ValueId) -> bool {
    let uses = graph.uses(id);
    let Some(tensor) = graph.value(id).default.as_ref().filter(|_| !graph.is_output(id) && !uses.is_empty())
    else {
        return false;
    };
    uses.iter().all(|usage| {
        let Port::Input(slot) = usage.port else { return false };
        match graph.node(usage.node).op_type.as_str() {
            "Conv" | "ConvTranspose" | "Gemm" | "PRelu" => slot >= 1,
            "BatchNormalization" | "InstanceNormalization" | "LayerNormalization" => slot >= 1,
            "GroupNormalization" => slot >= 1,
            // The initial states are no weights.
            "RNN" | "GRU" | "LSTM" => (1..=3).contains(&slot),
            "Gather" => slot == 0,
            "QuantizeLinear" | "DequantizeLinear" | "Quant" | "IntQuant" | "BipolarQuant" => true,
            "MatMul" | "Transpose" => tensor.shape().len() >= 2,
            "Add" | "Sub" | "Mul" | "Div" => tensor.len() > 1,
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::onnx::{import, text};

    #[test]
    fn weights_become_constants_and_states_do_not() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[4,8] x, float[8,2] w, float limit) => (float[4,2] y)
            <float[8,2] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}, float limit = {6}>
            { p = MatMul(x, w) y = Min(p, limit) }"#;
        let mut model = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap();
        assert_eq!(super::fix_weights(&mut model.graph), ["w"]);
        let graph = &model.graph;
        let names: Vec<&str> = graph.inputs.iter().map(|&v| graph.name(v)).collect();
        assert_eq!(names, ["x", "limit"]);
        assert!(graph.constant(graph.find("w").unwrap()).is_some());
        assert_eq!(super::fix_weights(&mut model.graph), [""; 0]);
    }
}
