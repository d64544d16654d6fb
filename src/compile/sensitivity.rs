//! Which layers the outputs feel most, and what it costs to spare them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::job::{Job, Prepared};
use super::{Watch, open_samples};
use crate::error::{Error, Fault};
use crate::interpret::node_label;
use crate::ir::{Graph, NodeId};
use crate::onnx;
use crate::options::{Effort, Mode, Options};
use crate::passes;
use crate::quantize::Target;
use crate::tune::sensitivity::Measured;
use crate::tune::tradeoff::{Point, Proposal, Search};
use crate::tune::{Judge, sqnr_db};

/// What a layer alone does to the outputs.
#[derive(Debug, Clone, Serialize)]
pub struct Layer {
    /// The node; for an input of the graph, its name.
    pub node: String,
    /// Its operator, or `input`.
    pub op: String,
    /// SQNR of the outputs in dB if its outputs alone are in 8 bits, over their widest range; `None` if they lose nothing or
    /// are not quantized by themselves.
    pub output_db: Option<f64>,
    /// The same for its weight.
    pub weight_db: Option<f64>,
    /// Estimated time saved by integers, before changes to and from float, as a share of the model's float time.
    pub saves: f64,
}

/// The layers, the most sensitive first, and the choices that there are.
#[derive(Debug, Clone, Serialize)]
pub struct Sensitivity {
    /// The model file.
    pub model: String,
    /// How many samples were run for calibration; a few of them were run again for each layer.
    pub samples: usize,
    /// Every layer that could become integer.
    pub layers: Vec<Layer>,
    /// What leaving the most sensitive layers in float gives and costs: from fast to exact.
    pub choices: Vec<Point>,
}

/// Measures what each layer of the model alone does to its outputs in 8 bits.
pub fn sensitivity(input: &Path, options: &Options, watch: Watch) -> Result<Sensitivity, Error> {
    let target = Target::named(&options.target).map_err(|f| f.at("--target"))?;
    let options = &Options { steps: Effort::Balanced.steps(), ..options.clone() };
    let mut model = onnx::read_inlined(input)?.model;
    let Some(samples) = open_samples(&model.graph, options, Mode::Static)? else {
        return Err(Fault::new("there are no samples").at("--calib"));
    };
    passes::upgrade(&mut model, target.opset)?;
    passes::run(&mut model, options.stop_after)?;
    passes::check(&model, "the passes")?;
    let graph = &mut model.graph;
    let job = Job::new(Some(&samples), &target, options, watch);
    let ready = job.prepare(graph)?;
    let judge = Judge::new(graph, &samples, options.budget.judging)?;
    let measured = job.measure(graph, &ready, &judge, true)?;
    let solve = |proposal: Proposal| job.solve(graph, &ready, proposal);
    let search = Search {
        graph,
        judge: &judge,
        measured: &measured,
        own: &ready.choices,
        target: &target,
        rounds: false,
        exam: None,
        solve: &solve,
    };
    let choices = search.curve()?;
    Ok(Sensitivity {
        model: input.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        samples: samples.len(),
        layers: layers(graph, &ready, &measured),
        choices,
    })
}

/// The nodes and the inputs that bring noise, the loudest first.
fn layers(graph: &Graph, ready: &Prepared, measured: &Measured) -> Vec<Layer> {
    let (mut outputs, mut found) = (BTreeMap::<NodeId, f64>::new(), Vec::new());
    for (value, ratio) in measured.values() {
        match graph.producer(value) {
            Some((node, _)) => {
                let loudest = outputs.entry(node).or_default();
                *loudest = loudest.max(ratio);
            }
            None => {
                let node = graph.name(value).to_string();
                let layer = Layer {
                    node,
                    op: "input".into(),
                    output_db: sqnr_db(ratio),
                    weight_db: None,
                    saves: 0.0,
                };
                found.push((ratio, layer));
            }
        }
    }
    let weights: BTreeMap<NodeId, f64> = measured.weights().collect();
    let candidates = &ready.candidates.integer;
    let whole: f64 = candidates.values().map(|c| c.float_cost).sum();
    let nodes: BTreeSet<NodeId> = outputs.keys().chain(weights.keys()).copied().collect();
    for id in nodes {
        let of = |ratios: &BTreeMap<NodeId, f64>| ratios.get(&id).copied().unwrap_or(0.0);
        let (output, weight) = (of(&outputs), of(&weights));
        let saved = candidates.get(&id).map_or(0.0, |c| c.float_cost - c.integer_cost);
        let layer = Layer {
            node: node_label(graph, id),
            op: graph.node(id).op_type.clone(),
            output_db: sqnr_db(output),
            weight_db: sqnr_db(weight),
            saves: if whole > 0.0 { saved / whole } else { 0.0 },
        };
        found.push((output + weight, layer));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.node.cmp(&b.1.node)));
    found.into_iter().map(|(_, layer)| layer).collect()
}
