//! Which layers the outputs feel most, and what it costs to spare them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::job::Job;
use super::{Watch, open_samples};
use crate::error::{Error, Fault};
use crate::interpret::node_label;
use crate::ir::NodeId;
use crate::onnx;
use crate::options::{Effort, Mode, Options};
use crate::passes;
use crate::quantize::Target;
use crate::tune::Judge;
use crate::tune::tradeoff::{Proposal, Search};

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

/// A way to quantize the model, from fast to exact.
#[derive(Debug, Clone, Serialize)]
pub struct Choice {
    /// Nodes in integers.
    pub integer: usize,
    /// Estimated time as a share of the float time.
    pub time: f64,
    /// SQNR of the outputs in dB, before weights are rounded anew; `None` if nothing is quantized.
    pub sqnr_db: Option<f64>,
    /// Is it what `compile` starts from?
    pub default: bool,
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
    /// What leaving the most sensitive layers in float gives and costs.
    pub choices: Vec<Choice>,
}

fn db(ratio: f64) -> Option<f64> {
    (ratio > 0.0).then(|| -10.0 * libm::log10(ratio))
}

/// Measures what each layer of the model alone does to its outputs in 8 bits.
pub fn sensitivity(input: &Path, options: &Options, watch: Watch) -> Result<Sensitivity, Error> {
    let mut target = Target::named(&options.target).map_err(|f| f.at("--target"))?;
    let options = &Options { effort: Effort::Balanced, ..options.clone() };
    target.rescaling = false;
    let mut model = onnx::read_inlined(input)?.model;
    let Some(samples) = open_samples(&model.graph, options, Mode::Static)? else {
        return Err(Fault::new("there are no samples").at("--calib"));
    };
    passes::upgrade(&mut model, target.opset)?;
    passes::run(&mut model, options.stop_after)?;
    passes::check(&model, "the passes")?;
    let graph = &mut model.graph;
    let job = Job { samples: Some(&samples), held_out: None, target: &target, options, watch };
    let ready = job.prepare(graph, &samples)?;
    let measured = job.measure(graph, &ready, &samples)?;
    let judge = Judge::new(graph, &samples)?;
    let solve = |proposal: Proposal| job.solve(graph, &ready, proposal);
    let search = Search {
        graph,
        judge: &judge,
        measured: &measured,
        own: &ready.choices,
        target: &target,
        exam: None,
        solve: &solve,
    };
    let points = search.curve()?;
    let choice = |p: &crate::tune::tradeoff::Point| Choice {
        integer: p.integer,
        time: p.time,
        sqnr_db: db(p.noise),
        default: p.dearer == 1.0,
    };
    let whole: f64 = ready.candidates.integer.values().map(|c| c.float_cost).sum();
    let mut ratios: BTreeMap<Option<NodeId>, Vec<(String, f64, f64)>> = BTreeMap::new();
    for (value, ratio) in measured.values() {
        let producer = graph.producer(value).map(|p| p.0);
        ratios.entry(producer).or_default().push((graph.name(value).to_string(), ratio, 0.0));
    }
    for (node, ratio) in measured.weights() {
        ratios.entry(Some(node)).or_default().push((String::new(), 0.0, ratio));
    }
    let mut layers: Vec<(f64, Layer)> = Vec::new();
    for (node, parts) in ratios {
        let Some(id) = node else {
            layers.extend(parts.into_iter().map(|(name, ratio, _)| (ratio, of_input(name, ratio))));
            continue;
        };
        let output = parts.iter().map(|p| p.1).fold(0.0, f64::max);
        let weight = parts.iter().map(|p| p.2).fold(0.0, f64::max);
        let cost = ready.candidates.integer.get(&id).map_or(0.0, |c| c.float_cost - c.integer_cost);
        let layer = Layer {
            node: node_label(graph, id),
            op: graph.node(id).op_type.clone(),
            output_db: db(output),
            weight_db: db(weight),
            saves: if whole > 0.0 { cost / whole } else { 0.0 },
        };
        layers.push((output + weight, layer));
    }
    layers.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.node.cmp(&b.1.node)));
    Ok(Sensitivity {
        model: input.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        samples: samples.len(),
        layers: layers.into_iter().map(|(_, layer)| layer).collect(),
        choices: points.iter().map(choice).collect(),
    })
}

fn of_input(name: String, ratio: f64) -> Layer {
    Layer { node: name, op: "input".into(), output_db: db(ratio), weight_db: None, saves: 0.0 }
}
