//! The written model as a picture: operators by depth, coloured by the noise of what they return.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::{Activation, qdq};
use crate::interpret::node_label;
use crate::ir::{Graph, NodeId, ValueId, schedule};

/// An operator on the map.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Operator and node.
    pub label: String,
    /// The longest way from an input of the graph.
    pub depth: usize,
    /// Which of those of its depth.
    pub lane: usize,
    /// Signal to noise of quantizing its output alone, in dB; `None`: it stays float.
    pub db: Option<f64>,
    /// Places that it reads from.
    pub from: Vec<usize>,
}

/// The operators of the main graph, without what only stores or changes the form of numbers.
pub fn map(graph: &Graph, activations: &[Activation]) -> Vec<Place> {
    let noise: BTreeMap<&str, f64> = activations.iter().map(|a| (a.value.as_str(), a.sqnr_db)).collect();
    let passes_on = |id: NodeId| qdq::is_quantize(graph.node(id)) || graph.node(id).is("DequantizeLinear");
    let Ok(order) = schedule(graph) else { return Vec::new() };
    let mut places: Vec<Place> = Vec::new();
    // Where the numbers of a value come from, through quantization.
    let mut origin: BTreeMap<ValueId, usize> = BTreeMap::new();
    let mut lanes: BTreeMap<usize, usize> = BTreeMap::new();
    for id in order {
        let mut from: Vec<usize> =
            graph.inputs_of(id).into_iter().flatten().filter_map(|v| origin.get(&v).copied()).collect();
        from.dedup();
        let outputs = || graph.outputs_of(id).into_iter().flatten();
        if passes_on(id) {
            let db = outputs().find_map(|v| noise.get(graph.name(v)).copied());
            if let Some(&source) = from.first() {
                places[source].db = places[source].db.or(db);
                origin.extend(outputs().map(|v| (v, source)));
            }
            continue;
        }
        let depth = from.iter().map(|&p| places[p].depth + 1).max().unwrap_or(0);
        let lane = lanes.entry(depth).or_default();
        let db = outputs().find_map(|v| noise.get(graph.name(v)).copied());
        let label = format!("{} {}", graph.node(id).op_type, node_label(graph, id));
        origin.extend(outputs().map(|v| (v, places.len())));
        places.push(Place { label, depth, lane: *lane, db, from });
        *lane += 1;
    }
    places
}

/// The map as SVG, one column for each depth.
pub fn svg(places: &[Place], escaped: &dyn Fn(&str) -> String) -> String {
    const STEP: usize = 16;
    let x = |p: &Place| STEP * p.depth + STEP / 2;
    let y = |p: &Place| STEP * p.lane + STEP / 2;
    let extent = |of: fn(&Place) -> usize| STEP * (1 + places.iter().map(of).max().unwrap_or(0));
    let (width, height) = (extent(|p| p.depth), extent(|p| p.lane));
    let mut lines = String::new();
    for place in places {
        for source in place.from.iter().filter_map(|&p| places.get(p)) {
            let _ = write!(lines, "M{} {}L{} {}", x(source), y(source), x(place), y(place));
        }
    }
    let mut svg = format!(
        "<svg class=\"map\" style=\"width:{width}px;height:{height}px\" viewBox=\"0 0 {width} {height}\"><path d=\"{lines}\"/>"
    );
    for place in places {
        let (class, quality, told) = match place.db {
            Some(db) => ("", (db / 60.0).clamp(0.0, 1.0), format!("{db:.1} dB")),
            None => (" class=\"f\"", 0.0, "float".into()),
        };
        let _ = write!(
            svg,
            "<rect{class} style=\"--q:{quality:.2}\" x=\"{}\" y=\"{}\" width=\"10\" height=\"10\" rx=\"2\"><title>{}: {told}</title></rect>",
            x(place) - 5,
            y(place) - 5,
            escaped(&place.label)
        );
    }
    svg + "</svg>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{import, text};

    #[test]
    fn branches_lie_side_by_side() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[4] x) => (float[4] y) <float s = {0.1}, uint8 z = {0}> {
              a = Neg (x)
              q = QuantizeLinear (a, s, z)
              b = DequantizeLinear (q, s, z)
              c = Relu (b)
              d = Abs (b)
              y = Add (c, d)
            }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let found = map(&graph, &[]);
        let shape: Vec<_> = found.iter().map(|p| (p.depth, p.lane, p.from.clone())).collect();
        assert_eq!(shape, [(0, 0, vec![]), (1, 0, vec![0]), (1, 1, vec![0]), (2, 0, vec![1, 2])]);
        assert_eq!(svg(&found, &|s| s.into()).matches("<rect").count(), 4);
    }
}
