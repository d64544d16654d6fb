//! LSTM as ONNX Runtime's `DynamicQuantizeLSTM`: weights in `int8` with gates along the last axis, a scale for each gate
//! of each unit; the other inputs as they were. That operator has no `layout`: where the batch comes first, Transposes
//! around it bring time to the front and back.

use crate::error::Fault;
use crate::ir::{Array, DType, Graph, NodeId, Tensor, Value, ValueId, attribute};
use crate::ops::recurrent::Recurrent;
use crate::passes::node;
use crate::quantize::target::Target;
use crate::quantize::weights::{Form, weight_of};

/// Domain of ONNX Runtime's own operators.
const DOMAIN: &str = "com.microsoft";

/// Rewrites a node if it is an LSTM with constant weights, and the target has the operator.
pub fn rewrite(graph: &mut Graph, id: NodeId, target: &Target) -> Result<bool, Fault> {
    let Some(layer) = graph.node(id).op_as::<Recurrent>().filter(|_| graph.node(id).is("LSTM")).cloned()
    else {
        return Ok(false);
    };
    let float = graph.input(id, 0).and_then(|v| graph.ty(v)).is_some_and(|t| t.dtype == DType::F32);
    if !float || !target.name.starts_with("ort-cpu") {
        return Ok(false);
    }
    let (Some(weights), Some(recurrent)) = (matrix(graph, id, 1)?, matrix(graph, id, 2)?) else {
        return Ok(false);
    };
    let old: Vec<ValueId> = graph.inputs_of(id).into_iter().flatten().collect();
    for (slot, array, scale_slot) in [(1, weights, 8), (2, recurrent, 10)] {
        let name = graph.input(id, slot).map(|v| graph.name(v).to_string()).unwrap_or_default();
        let (elements, scales) = quantized(&array, target)?;
        let zeros = Array::zeros(DType::I8, scales.shape())?;
        for (slot, what, array) in [
            (slot, "quantized", elements),
            (scale_slot, "scale", scales),
            (scale_slot + 1, "zero_point", zeros),
        ] {
            let value = graph.add_constant(&format!("{name}_{what}"), Tensor::from_array(&array));
            graph.rewire(id, slot, Some(value));
        }
    }
    if layer.batch_first {
        time_first(graph, id);
    }
    let node = graph.node_mut(id);
    node.attributes.retain(|a| a.name.as_deref() != Some("layout"));
    node.op_type = "DynamicQuantizeLSTM".into();
    node.domain = DOMAIN.into();
    let (inputs, outputs) = (node.inputs, node.outputs);
    let attributes = node.attributes.clone();
    if let Some(def) = crate::ops::find(DOMAIN, "DynamicQuantizeLSTM", 1) {
        node.op = Some((def.parse)(&mut crate::ops::Attrs::new(&attributes, 1, inputs, outputs))?);
    }
    old.into_iter().for_each(|v| graph.remove_value_if_dead(v));
    Ok(true)
}

/// The name of the domain that the result needs imported, if a graph or a body in it uses it.
pub fn domain_used(graph: &Graph) -> Option<&'static str> {
    let uses = |id| {
        let node = graph.node(id);
        node.domain == DOMAIN || node.bodies.iter().any(|b| domain_used(&b.graph).is_some())
    };
    graph.nodes().any(uses).then_some(DOMAIN)
}

/// A constant of weights: directions × gates · units × inputs.
fn matrix(graph: &Graph, id: NodeId, slot: usize) -> Result<Option<Array>, Fault> {
    let tensor = graph.constant_input(id, slot);
    let Some(tensor) = tensor.filter(|t| t.dtype() == DType::F32 && t.shape().len() == 3) else {
        return Ok(None);
    };
    let array = tensor.array()?;
    let finite = array.slice::<f32>()?.iter().all(|v| v.is_finite());
    Ok(finite.then_some(array))
}

/// Directions × inputs × gates · units in `int8`, and scales by direction and gate.
fn quantized(array: &Array, target: &Target) -> Result<(Array, Array), Fault> {
    let turned = array.transposed(&[0, 2, 1])?;
    let &[ways, inputs, gates] = turned.shape() else { crate::fail!("weights of an LSTM have three axes") };
    let (mut elements, mut scales) = (Vec::new(), Vec::new());
    for part in turned.slice::<f32>()?.chunks((inputs * gates).max(1)) {
        let part = Array::new(&[inputs, gates], part.to_vec())?;
        let constant = weight_of(&part, Some(1), 1.0, &[], Form { by_channel: true, ..target.form() })?;
        elements.extend_from_slice(constant.elements.slice::<i8>()?);
        scales.extend(constant.scales);
    }
    Ok((Array::new(&[ways, inputs, gates], elements)?, Array::new(&[ways, gates], scales)?))
}

/// Puts Transposes around a layer whose inputs and outputs have the batch first.
fn time_first(graph: &mut Graph, id: NodeId) {
    let rank = graph.node(id).rank;
    for slot in [0, 5, 6] {
        let Some(value) = graph.input(id, slot) else { continue };
        let name = graph.name(value).to_string();
        let turned = graph.add_fresh(&format!("{name}_time_first"), Value::default());
        transpose(graph, value, turned, &[1, 0, 2], rank);
        graph.rewire(id, slot, Some(turned));
    }
    for (slot, order) in [(0, &[2, 0, 1, 3][..]), (1, &[1, 0, 2]), (2, &[1, 0, 2])] {
        let Some(value) = graph.output(id, slot) else { continue };
        let name = graph.name(value).to_string();
        let raw = graph.add_fresh(&format!("{name}_time_first"), Value::default());
        graph.set_output(id, slot, raw);
        transpose(graph, raw, value, order, rank);
    }
}

fn transpose(graph: &mut Graph, from: ValueId, to: ValueId, order: &[i64], rank: u64) {
    let name = format!("{}_Transpose", graph.name(to));
    let mut new = node("Transpose", name, vec![attribute::ints("perm", order)], 1);
    new.rank = rank;
    graph.add_node(new, &[Some(from)], &[Some(to)]);
}
