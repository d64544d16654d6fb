//! Integer weights of the written model: types, and the steps of their channels.

use serde::Serialize;

use super::qdq;
use crate::ir::{DType, Graph};

/// Smaller constants are biases and operands.
const LEAST: usize = 64;
/// Bars of a picture.
const BARS: usize = 48;

/// An integer weight.
#[derive(Debug, Clone, Serialize)]
pub struct Weight {
    /// Name of the constant that holds the integers.
    pub name: String,
    /// Its type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How many scales it has.
    pub scales: usize,
    /// The least and the greatest of them.
    pub extremes: (f32, f32),
    /// The greatest scale in each of so many stretches of channels.
    #[serde(skip)]
    pub profile: Vec<f32>,
}

/// The weights behind DequantizeLinear in the main graph, in its order.
pub fn weights(graph: &Graph) -> Vec<Weight> {
    let mut found = Vec::new();
    for id in graph.nodes().filter(|&id| graph.node(id).is("DequantizeLinear")) {
        let Some(value) = graph.input(id, 0) else { continue };
        let Some(stored) = graph.constant(value).filter(|t| t.len() >= LEAST && t.dtype() != DType::I32)
        else {
            continue;
        };
        let Some(params) = qdq::params(graph, id) else { continue };
        let fold = |start: f32, of: fn(f32, f32) -> f32| params.scales.iter().copied().fold(start, of);
        let stretch = params.scales.len().div_ceil(BARS).max(1);
        found.push(Weight {
            name: graph.name(value).into(),
            dtype: stored.dtype().to_string(),
            shape: stored.shape().to_vec(),
            scales: params.scales.len(),
            extremes: (fold(f32::INFINITY, f32::min), fold(0.0, f32::max)),
            profile: params.scales.chunks(stretch).map(|c| c.iter().copied().fold(0.0, f32::max)).collect(),
        });
    }
    found
}
