//! Which layer drifts apart: every value that both models have, compared twice.
//!
//! Values are matched by name; where the second model quantizes a value (QuantizeLinear, DequantizeLinear), what counts
//! is the value that comes back from it. The *cumulative* error is that of the value when each model runs by itself. The
//! *local* error is that of the value when everything the second model reads to compute it comes from the first model:
//! what this layer, its quantized weights and its quantized output add of their own. For that the second graph is cut
//! open at every matched value, and the first model's values are fed in. An operator that so reads real numbers computes on
//! them, by the ONNX definition, whatever the numerics.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::Pair;
use super::closeness::Sums;
use crate::calibrate::read::Samples;
use crate::calibrate::run::Progress;
use crate::error::{Error, Fault};
use crate::interpret::{Numerics, Program, node_label};
use crate::ir::{Array, Graph, NodeId, Port, Value, ValueId, schedule};

/// One value of both models.
#[derive(Debug, Clone, Serialize)]
pub struct Layer {
    /// Name of the value in the first model.
    pub value: String,
    /// Operator type and node that compute it in the second model.
    pub operator: String,
    /// Signal-to-noise ratio of what the layer itself adds; equal values give `None`.
    pub local_db: Option<f64>,
    /// Signal-to-noise ratio of everything up to here; equal values give `None`.
    pub cumulative_db: Option<f64>,
    /// Does the second model quantize the value?
    pub quantized: bool,
    /// Samples in which it has another shape, or is not finite where the first is.
    pub bad_samples: bool,
}

/// The layers of two models, ready to run.
pub struct Layers {
    reference: Program,
    other: Program,
    /// The second graph, cut open: the inputs of the graph, then one for each match.
    cut: Program,
    matches: Vec<Match>,
}

/// A value of both graphs.
struct Match {
    name: String,
    operator: String,
    quantized: bool,
    /// In the first graph.
    wanted: ValueId,
    /// In the second graph, on the far side of Q/DQ.
    found: ValueId,
}

/// What is added up for a value: its local and its cumulative error.
type Errors = (Option<Sums>, Option<Sums>);

/// The readers of a value in the second graph, through QuantizeLinear and DequantizeLinear.
struct Readers {
    /// Uses that read the value, or what comes back from quantizing it.
    uses: Vec<(NodeId, usize)>,
    /// The first value that comes back from quantizing it.
    dequantized: Option<ValueId>,
}

impl Readers {
    fn of(graph: &Graph, value: ValueId) -> Self {
        let mut readers = Self { uses: Vec::new(), dequantized: None };
        readers.add(graph, value);
        readers
    }

    fn add(&mut self, graph: &Graph, value: ValueId) {
        for usage in graph.uses(value) {
            let Port::Input(slot) = usage.port else { continue };
            let quantized = graph.node(usage.node).is("QuantizeLinear") && slot == 0;
            let pairs = quantized.then(|| dequantizers(graph, usage.node));
            match pairs.filter(|d| !d.is_empty()) {
                None => self.uses.push((usage.node, slot)),
                Some(values) => {
                    self.dequantized = self.dequantized.or(values.first().copied());
                    values.into_iter().for_each(|v| self.add(graph, v));
                }
            }
        }
    }
}

/// What DequantizeLinear makes of a quantized value. With another scale it makes another value of it: a division by a
/// constant may have gone into the scale.
fn dequantizers(graph: &Graph, quantize: NodeId) -> Vec<ValueId> {
    let Some(quantized) = graph.output(quantize, 0) else { return Vec::new() };
    let scale = |node| graph.input(node, 1);
    let same = |node| match (scale(quantize), scale(node)) {
        (Some(a), Some(b)) if a != b => {
            let array = |v| graph.constant(v).and_then(|t| t.array().ok());
            array(a).is_some() && array(a) == array(b)
        }
        (a, b) => a == b,
    };
    let read = graph.uses(quantized).into_iter().filter(|u| u.port == Port::Input(0));
    let dequantize = read.filter(|u| graph.node(u.node).is("DequantizeLinear") && same(u.node));
    dequantize.filter_map(|u| graph.output(u.node, 0)).collect()
}

/// The values that depend on the inputs: the others are weights, whatever operators they are made with.
fn varying(graph: &Graph) -> Result<BTreeSet<ValueId>, Error> {
    let mut found: BTreeSet<ValueId> = graph.inputs.iter().copied().collect();
    for id in schedule(graph).map_err(|f| f.at("scheduling"))? {
        let mut read = graph.inputs_of(id).into_iter().flatten().chain(graph.captures_of(id));
        if read.any(|v| found.contains(&v)) {
            found.extend(graph.outputs_of(id).into_iter().flatten());
        }
    }
    Ok(found)
}

fn is_float(graph: &Graph, value: ValueId) -> bool {
    graph.ty(value).is_some_and(|t| t.dtype.is_float())
}

/// The value to hold against one that is quantized: its activation's, if the second model has left the activation to
/// the range of the quantized value.
fn clamped(a: &Graph, b: &Graph, value: ValueId) -> ValueId {
    let only = a.only_use(value).filter(|u| u.port == Port::Input(0));
    let clamp = only.filter(|u| a.node(u.node).is("Relu") || a.node(u.node).is("Clip"));
    match clamp.and_then(|u| a.output(u.node, 0)) {
        Some(after) if b.find(a.name(after)).is_none() => after,
        _ => value,
    }
}

impl Layers {
    /// Matches the values of two graphs whose types have been inferred.
    pub fn new(a: &Graph, b: &Graph, numerics: Numerics) -> Result<Self, Error> {
        let mut cut = b.clone();
        let mut matches = Vec::new();
        let varying = varying(a)?;
        for id in schedule(b).map_err(|f| f.at("scheduling"))? {
            for value in b.outputs_of(id).into_iter().flatten() {
                let Some(wanted) = a.find(b.name(value)) else { continue };
                if !varying.contains(&wanted) || !is_float(a, wanted) || !is_float(b, value) {
                    continue;
                }
                let readers = Readers::of(b, value);
                let found = readers.dequantized.unwrap_or(value);
                let name = b.name(value).to_string();
                let wanted = if readers.dequantized.is_some() { clamped(a, b, wanted) } else { wanted };
                let (operator, quantized) = computed_by(b, value);
                let quantized = quantized || readers.dequantized.is_some();
                let ty = a.ty(wanted).cloned();
                let fed = cut.add_fresh(&format!("{name}_reference"), Value { ty, ..Value::default() });
                cut.inputs.push(fed);
                readers.uses.iter().for_each(|&(node, slot)| cut.rewire(node, slot, Some(fed)));
                matches.push(Match { name, operator, quantized, wanted, found });
            }
        }
        if matches.is_empty() {
            return Err(Fault::new("no value between the layers has the same name").at("matching the models"));
        }
        let program = |graph| Program::with_numerics(graph, numerics);
        Ok(Self { reference: program(a)?, other: program(b)?, cut: program(&cut)?, matches })
    }

    /// Runs both models and the cut one on the samples with these indices; the layers in the order in which the second
    /// model computes them.
    pub fn run(
        &self,
        pair: &Pair,
        samples: &Samples,
        indices: &[usize],
        progress: Progress,
    ) -> Result<Vec<Layer>, Error> {
        let watch_all = |program: &Program, inputs: &[Array], wanted: &dyn Fn(&Match) -> ValueId| {
            let ids: BTreeMap<ValueId, ()> = self.matches.iter().map(|m| (wanted(m), ())).collect();
            let mut seen: HashMap<ValueId, Array> = HashMap::new();
            let mut keep = |id: ValueId, array: &Array| {
                if ids.contains_key(&id) {
                    seen.insert(id, array.clone());
                }
            };
            program.run_as_far_as_possible(inputs, &mut keep).map(|(_, problem)| (seen, problem))
        };
        let of_sample = |inputs: &[Array]| -> Result<Vec<Errors>, Error> {
            let (wanted, problem) = watch_all(&self.reference, inputs, &|m| m.wanted)?;
            let mut fed = pair.inputs_of_other(inputs);
            let (found, _) = watch_all(&self.other, &fed, &|m| m.found)?;
            for m in &self.matches {
                let missing =
                    || problem.clone().unwrap_or_else(|| Fault::new("was not computed").at(&m.name));
                fed.push(wanted.get(&m.wanted).cloned().ok_or_else(missing)?);
            }
            let (local, _) = watch_all(&self.cut, &fed, &|m| m.found)?;
            let sums = |m: &Match, seen: &HashMap<_, _>| Sums::of(wanted.get(&m.wanted)?, seen.get(&m.found));
            Ok(self.matches.iter().map(|m| (sums(m, &local), sums(m, &found))).collect())
        };
        let rows = pair.each(samples, indices, progress, of_sample)?;
        let total = |index: usize, side: fn(&Errors) -> Option<Sums>| {
            rows.iter().filter_map(|row| side(row.get(index)?)).reduce(Sums::plus).unwrap_or_default()
        };
        let layer = |(index, m): (usize, &Match)| {
            let (local, cumulative) = (total(index, |s| s.0), total(index, |s| s.1));
            Layer {
                value: m.name.clone(),
                operator: m.operator.clone(),
                local_db: local.sqnr_db(),
                cumulative_db: cumulative.sqnr_db(),
                quantized: m.quantized,
                bad_samples: local.is_bad() || cumulative.is_bad(),
            }
        };
        Ok(self.matches.iter().enumerate().map(layer).collect())
    }
}

/// The operator that computes a value, behind DequantizeLinear and QuantizeLinear; is there such a pair?
fn computed_by(graph: &Graph, value: ValueId) -> (String, bool) {
    let shown = |id| format!("{} `{}`", graph.node(id).op_type, node_label(graph, id));
    let Some((id, _)) = graph.producer(value) else { return (String::new(), false) };
    let before = |id, op: &str| {
        let input = graph.input(id, 0).filter(|_| graph.node(id).is(op));
        input.and_then(|v| graph.producer(v)).map(|(p, _)| p)
    };
    let quantize = before(id, "DequantizeLinear").filter(|&q| graph.node(q).is("QuantizeLinear"));
    match quantize.and_then(|q| before(q, "QuantizeLinear")) {
        Some(operator) => (shown(operator), true),
        None => (shown(id), false),
    }
}

/// The first layer in which the models are further apart than `db`, and the layer that adds most error of its own.
pub fn suspects(layers: &[Layer], db: f64) -> (Option<&Layer>, Option<&Layer>) {
    let apart = |l: &&Layer| l.bad_samples || l.cumulative_db.is_some_and(|d| d < db);
    let error =
        |l: &Layer| if l.bad_samples { f64::NEG_INFINITY } else { l.local_db.unwrap_or(f64::INFINITY) };
    let worst = layers.iter().min_by(|a, b| error(a).total_cmp(&error(b)));
    (layers.iter().find(apart), worst.filter(|l| l.bad_samples || l.local_db.is_some()))
}

#[cfg(test)]
mod tests;
