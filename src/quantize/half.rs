//! Half precision: a typed rewrite of every float32 tensor to float16 or bfloat16, in the main graph and in the bodies
//! of If, Loop and Scan.
//!
//! `slots` holds what ONNX defines in which type; `decide` chooses the operators that stay in float32, and says why;
//! `rewrite` gives every value its type, converts constants and puts a Cast only where a float32 value meets a reader
//! in half precision or the other way round, one for all readers.

mod decide;
mod rewrite;
mod slots;

use std::collections::BTreeMap;

use crate::calibrate::read::Samples;
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Array, DType, Graph, Model, NodeId, ValueId};
use crate::ops::ONNX;

/// What the user wants of half precision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Half {
    /// `F16` or `BF16`.
    pub dtype: DType,
    /// Do the model's inputs and outputs stay float32?
    pub keep_io: bool,
    /// Names or patterns of nodes, or operators, that stay float32.
    pub keep: Vec<String>,
}

impl Default for Half {
    fn default() -> Self {
        Self { dtype: DType::F16, keep_io: true, keep: Vec::new() }
    }
}

/// What the samples showed of a value.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Range {
    /// Largest magnitude among its finite elements.
    pub largest: f32,
    /// The most elements that it had.
    pub elements: usize,
}

/// What the samples showed of each float32 value of the main graph; empty without samples.
pub type Ranges = BTreeMap<ValueId, Range>;

/// What was done.
#[derive(Debug, Clone, Default)]
pub struct Halved {
    /// Nodes that compute in half precision.
    pub nodes: Vec<String>,
    /// Nodes that stay float32, and why.
    pub float: Vec<(String, String)>,
    /// Casts that were inserted.
    pub casts: usize,
    /// What half precision does to constants.
    pub warnings: Vec<String>,
}

/// The least opset that the result needs: bfloat16 came to most operators in 22, and to scales of quantized values
/// float16 came in 19.
pub fn opset(model: &Model, half: &Half) -> i64 {
    match half.dtype {
        DType::BF16 => 22,
        _ if has(&model.graph, &["QuantizeLinear", "DequantizeLinear"]) => 19,
        _ if has(&model.graph, &["CumSum"]) => 14,
        _ => 13,
    }
}

fn has(graph: &Graph, op_types: &[&str]) -> bool {
    graph.nodes().map(|id| graph.node(id)).any(|node| {
        op_types.iter().any(|op| node.is(op)) || node.bodies.iter().any(|b| has(&b.graph, op_types))
    })
}

/// Rewrites the model, whose types must be inferred.
pub fn convert(model: &mut Model, half: &Half, ranges: &Ranges) -> Result<Halved, Fault> {
    let version = model.opset(ONNX).unwrap_or(0);
    let mut done = Halved::default();
    rewrite::main_graph(&mut model.graph, half, version, ranges, &mut done)?;
    Ok(done)
}

/// The largest magnitude of every float32 value over the samples.
pub fn ranges(graph: &Graph, samples: &Samples, step: &dyn Fn()) -> Result<Ranges, Error> {
    let program = Program::new(graph)?;
    let mut ranges = Ranges::new();
    for index in 0..samples.len() {
        let inputs = samples.load(index)?;
        let mut watch = |id: ValueId, array: &Array| {
            let Array::F32(values) = array else { return };
            let finite = values.iter().map(|v| v.abs()).filter(|v| v.is_finite());
            let range = ranges.entry(id).or_default();
            range.largest = finite.fold(range.largest, f32::max);
            range.elements = range.elements.max(values.len());
        };
        program.run_as_far_as_possible(&inputs, &mut watch)?;
        step();
    }
    Ok(ranges)
}

/// The node's name for the report.
fn label(graph: &Graph, id: NodeId) -> String {
    super::insert::label(graph, id)
}

#[cfg(test)]
mod tests;
