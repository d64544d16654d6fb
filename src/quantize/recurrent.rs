//! Recurrent layers that compute in float: is a smaller file worth what their weights cost as integers?
//!
//! ONNX Runtime lays constant weights out once, when the model is loaded. Those behind a DequantizeLinear are made real in
//! every run, and are not laid out, which each step of the sequence pays for.

use std::collections::BTreeMap;

use super::Target;
use super::candidate::elements;
use crate::calibrate::observer::Observers;
use crate::ir::{Graph, NodeId, Tensor, ValueId};
use crate::ops::recurrent::Recurrent;

/// The slots of a recurrent layer that hold weights.
pub const WEIGHTS: [usize; 2] = [1, 2];

/// The layers whose weights are better integers, and by how much, as a share of the model's float time. All other nodes
/// take `rest` nanoseconds in float.
pub fn worthwhile(
    graph: &Graph,
    target: &Target,
    rest: f64,
    seen: &Observers<ValueId>,
) -> BTreeMap<NodeId, f64> {
    let Some(cost) = target.recurrent else { return BTreeMap::new() };
    let layers: Vec<(NodeId, f64, f64)> = graph.nodes().filter_map(|id| layer(graph, id, seen)).collect();
    let whole = rest + layers.iter().map(|(_, weights, steps)| cost.float * weights * steps).sum::<f64>();
    let all: usize = graph.constants.iter().filter_map(|&c| graph.constant(c)).map(Tensor::len).sum();
    let gain = |(id, weights, steps): (NodeId, f64, f64)| {
        let time = weights * (cost.dequantize + cost.step * steps) / whole;
        let gain = target.size_weight * weights / all.max(1) as f64 - time;
        (gain > 0.0).then_some((id, gain))
    };
    layers.into_iter().filter_map(gain).collect()
}

/// A recurrent layer with constant weights: how many they are, and how many steps a sequence has.
fn layer(graph: &Graph, id: NodeId, seen: &Observers<ValueId>) -> Option<(NodeId, f64, f64)> {
    graph.node(id).op_as::<Recurrent>()?;
    let weights = WEIGHTS.map(|slot| graph.constant_input(id, slot));
    let features = weights[0]?.shape().last().copied().filter(|&f| f > 0)?;
    let steps = elements(graph, graph.input(id, 0)?, seen) / features as f64;
    let weights: usize = weights.into_iter().map(|w| w.map(Tensor::len)).sum::<Option<usize>>()?;
    (steps > 0.0).then_some((id, weights as f64, steps))
}

#[cfg(test)]
mod tests {
    use super::super::candidate::watched;
    use super::*;
    use crate::onnx::{import, text};

    /// Of a layer of 64 states over sequences of this length, beside other nodes of so many nanoseconds.
    fn gain(steps: usize, rest: f64, target: &str) -> Option<f64> {
        let numbers = |count: usize| vec!["0.5"; count].join(", ");
        let (w, r) = (numbers(192 * 32), numbers(192 * 64));
        let source = format!(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[T, 1, 32] x) => (float[T, 1, 1, 64] y)
            <float[1, 192, 32] w = {{{w}}}, float[1, 192, 64] r = {{{r}}}> {{
              y = GRU <hidden_size = 64> (x, w, r)
            }}"#
        );
        let graph = import(text::parse(&source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let mut seen = Observers::watching(watched(&graph));
        seen.observe(graph.find("x").unwrap(), &vec![0.5; steps * 32], 0);
        let node = graph.producer(graph.find("y").unwrap()).unwrap().0;
        worthwhile(&graph, &Target::named(target).unwrap(), rest, &seen).get(&node).copied()
    }

    #[test]
    fn weights_become_integers_where_the_layer_takes_little_of_the_time() {
        assert!(gain(20, 1e6, "ort-cpu").is_some_and(|gain| gain > 0.05));
        assert!(gain(20, 1e6, "ort-cpu") > gain(200, 1e6, "ort-cpu"));
        // Where there is nothing else, all that it costs is seen.
        assert_eq!(gain(1, 0.0, "ort-cpu"), None);
        assert_eq!(gain(400, 0.0, "ort-cpu"), None);
        assert_eq!(gain(20, 1e6, "tensorrt"), None);
    }
}
