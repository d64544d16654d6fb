//! Graph-to-graph rewrites before calibration, and the pipeline that orders them.
//!
//! A rewrite reads an immutable graph and returns an [`Edit`], nothing, or a [`Refusal`] with its reason; the engine
//! here commits it. No rewrite changes what the graph computes beyond the rounding of `f32`.

mod affine;
mod clean;
mod fold;
mod infer;
mod linear;
mod pad;
mod parameters;
mod pool;
mod qat;
mod upgrade;

use crate::error::Error;
use crate::interpret::node_label;
use crate::ir::{Edit, Graph, Model, Node, NodeId, Refusal, schedule, verify};
use crate::ops;

pub use infer::infer;
pub use upgrade::upgrade;

/// One local rewrite.
pub trait Rewrite {
    /// The name under which it is logged.
    fn name(&self) -> &'static str;

    /// What to change around this node; `None` if it does not match.
    fn rewrite(&self, graph: &Graph, node: NodeId) -> Result<Option<Edit>, Refusal>;
}

/// What the pipeline did.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// Pass and node of each edit, in order.
    pub applied: Vec<(&'static str, String)>,
    /// Pass, node and reason of each refusal, once each.
    pub refused: Vec<(&'static str, String, String)>,
    /// What could not be inferred or understood.
    pub warnings: Vec<String>,
}

impl Log {
    /// Did a pass bring what was trained with quantization into a form that runs on integers?
    pub fn lowered(&self) -> bool {
        self.applied.iter().any(|(pass, _)| qat::lowers(pass))
    }
}

/// Runs every pass on the main graph. `stop_after` bounds the number of edits, to find the one at fault by bisection.
pub fn run(model: &mut Model, stop_after: Option<usize>) -> Result<Log, Error> {
    let mut engine =
        Engine { log: Log::default(), left: stop_after.unwrap_or(usize::MAX), version: opset(model) };
    let weights = parameters::fix_weights(&mut model.graph);
    engine.log.warnings = infer(&mut model.graph);
    if let Some(first) = weights.first() {
        let text =
            format!("{} inputs are weights with a value and become constants: `{first}`, …", weights.len());
        engine.log.warnings.push(text);
    }
    let graph = &mut model.graph;
    // Constants first: the patterns below look for weights in initializers.
    engine.until_quiet(graph, &[&fold::Constants, &clean::Identity, &clean::NoOp])?;
    // What quantization-aware training left behind, before anything could fold it away.
    engine.until_quiet(graph, &[&qat::QonnxDialect, &qat::QuantizedConstant, &qat::IntegerClip])?;
    engine.until_quiet(graph, &[&qat::MoveIntegers, &qat::LatticeWeight])?;
    engine.until_quiet(graph, &[&qat::FoldIntoQuantized, &qat::IntegerBias])?;
    // x - c and x / c become sums and products, so that one pattern finds each affine map.
    engine.until_quiet(graph, &[&affine::SubtractConstant, &affine::DivideByConstant])?;
    engine.until_quiet(graph, &[&linear::FoldBatchNormalization, &linear::FoldScale, &linear::FoldShift])?;
    engine.until_quiet(graph, &[&linear::HardSigmoidToClip])?;
    // After folding: a bias that a MatMul gained is an Add again, and with it becomes a Gemm.
    engine.until_quiet(graph, &[&linear::MatMulAddToGemm, &pad::PadIntoConvolution, &pool::SpatialMean])?;
    engine.until_quiet(graph, &[&fold::Constants, &clean::Dead])?;
    clean::unused_constants(&mut model.graph);
    engine.fold_bodies(&mut model.graph)?;
    Ok(engine.log)
}

fn opset(model: &Model) -> i64 {
    model.opset(ops::ONNX).unwrap_or(0)
}

struct Engine {
    log: Log,
    left: usize,
    version: i64,
}

impl Engine {
    /// Applies the rewrites until none matches, at most three times over the graph.
    fn until_quiet(&mut self, graph: &mut Graph, rewrites: &[&dyn Rewrite]) -> Result<(), Error> {
        for _ in 0..3 {
            let mut changed = false;
            for rewrite in rewrites {
                changed |= self.sweep(graph, *rewrite)?;
            }
            if !changed {
                break;
            }
            infer(graph);
        }
        Ok(())
    }

    /// Constants in the bodies of If, Loop and Scan; nothing else is rewritten there.
    fn fold_bodies(&mut self, graph: &mut Graph) -> Result<(), Error> {
        let ids: Vec<NodeId> = graph.nodes().filter(|&n| !graph.node(n).bodies.is_empty()).collect();
        for id in ids {
            let mut bodies = std::mem::take(&mut graph.node_mut(id).bodies);
            for body in &mut bodies {
                self.until_quiet(&mut body.graph, &[&fold::Constants])?;
                self.fold_bodies(&mut body.graph)?;
            }
            graph.node_mut(id).bodies = bodies;
        }
        Ok(())
    }

    fn sweep(&mut self, graph: &mut Graph, rewrite: &dyn Rewrite) -> Result<bool, Error> {
        let mut changed = false;
        for id in schedule(graph).map_err(|f| f.at(rewrite.name()))? {
            if !graph.has_node(id) || self.left == 0 {
                continue;
            }
            let label = format!("{} `{}`", graph.node(id).op_type, node_label(graph, id));
            let result =
                rewrite.rewrite(graph, id).and_then(|edit| edit.map(|e| e.commit(graph)).transpose());
            match result {
                Ok(None) => {}
                Ok(Some(())) => {
                    changed = true;
                    self.left -= 1;
                    self.log.applied.push((rewrite.name(), label));
                }
                Err(Refusal(reason)) => {
                    let entry = (rewrite.name(), label, reason);
                    if !self.log.refused.contains(&entry) {
                        self.log.refused.push(entry);
                    }
                }
            }
        }
        debug_assert!(self.version > 0);
        Ok(changed)
    }
}

/// A node of an ONNX operator, in the form that holds from opset 13 to the newest.
pub fn node(op_type: &str, name: String, attributes: Vec<crate::ir::Attribute>, inputs: usize) -> Node {
    let known = [17, 21].into_iter().find_map(|opset| Some((ops::find(ops::ONNX, op_type, opset)?, opset)));
    let op =
        known.and_then(|(def, opset)| (def.parse)(&mut ops::Attrs::new(&attributes, opset, inputs, 1)).ok());
    let unknown = op.is_none().then(|| format!("operator {op_type} is not known"));
    Node {
        name,
        op_type: op_type.into(),
        domain: String::new(),
        attributes,
        op,
        unknown,
        bodies: Vec::new(),
        inputs: 0,
        outputs: 0,
        rank: 0,
        rest: Default::default(),
    }
}

/// What holds of a model that is about to be written: types as far as they follow, nodes told apart, every invariant.
pub fn finish(model: &mut Model, after: &str) -> Result<(), Error> {
    infer(&mut model.graph);
    clean::tell_nodes_apart(&mut model.graph);
    check(model, after)
}

/// Checks every invariant of the model; the faults are bugs of a pass, not of the user's file.
pub fn check(model: &Model, after: &str) -> Result<(), Error> {
    match verify(model).as_slice() {
        [] => Ok(()),
        faults => {
            Err(crate::error::Fault::new(faults.join("; ")).at(format_args!("graph is broken after {after}")))
        }
    }
}
