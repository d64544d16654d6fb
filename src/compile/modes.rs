//! The modes beside the static one: integer weights, activations quantized as the model runs, half precision.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::distances;
use super::job::Job;
use crate::calibrate::read::Samples;
use crate::error::{Error, Fault};
use crate::ir::{Graph, Model};
use crate::passes;
use crate::quantize::weight_only::blocked::Algorithm;
use crate::quantize::weight_only::{self, Storage, gptq};
use crate::quantize::{Half, dynamic, half};
use crate::report::Quantized;
use crate::tune::{Judge, Step, bias, moments};

impl Job<'_> {
    /// Integer weights in front of float arithmetic; with samples, GPTQ learns how their inputs hang together.
    pub(super) fn weights(&self, source: &Graph, model: &mut Model) -> Result<Quantized, Error> {
        let (blocked, filter) = (self.options.blocked, &self.options.filter);
        let grams = match (blocked.map(|b| b.algorithm), self.samples) {
            (Some(Algorithm::Gptq), Some(samples)) => {
                let progress = |done, total| (self.watch)("calibrating", done, total);
                gptq::grams(&model.graph, filter, samples, &progress)?
            }
            _ => Vec::new(),
        };
        let storage = Storage::new(blocked, grams.into_iter().collect());
        let reference = model.graph.clone();
        let done = weight_only::quantize(&mut model.graph, filter, storage);
        let mut quantized = Quantized::weights(done.map_err(|f| f.at("weight quantization"))?);
        if !quantized.is_nothing() {
            self.correct_biases((source, &reference), &mut model.graph, &mut quantized)?;
        }
        Ok(quantized)
    }

    /// Takes what rounded weights add to the mean of each channel off the biases: by what the statistics in the model say
    /// of their inputs, or what the samples show, if the outputs become closer by it.
    fn correct_biases(
        &self,
        (source, float): (&Graph, &Graph),
        graph: &mut Graph,
        done: &mut Quantized,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let at = |f: Fault| f.at("bias correction");
        let Some(samples) = self.samples else {
            let mut source = source.clone();
            passes::infer(&mut source);
            done.corrected = bias::correct(float, graph, &moments::expected(&source)).map_err(at)?;
            return Ok(());
        };
        let progress = |step| (self.watch)("correcting", step, samples.len());
        let means = moments::measured(float, samples, &progress)?;
        let mut better = graph.clone();
        let corrected = bias::correct(float, &mut better, &means).map_err(at)?;
        if corrected.is_empty() {
            return Ok(());
        }
        let judge = Judge::new(float, samples, self.options.budget.judging)?;
        let noise = (judge.noise(graph)?, judge.noise(&better)?);
        let kept = noise.1 < noise.0;
        done.steps.push(Step::new(
            "bias correction",
            if kept { noise } else { (noise.0, noise.0) },
            kept,
            started,
        ));
        if kept {
            *graph = better;
            done.corrected = corrected;
        }
        Ok(())
    }

    /// Activations quantized as the model runs; with samples, those that 8 bits represent badly stay float, and LSTMs do
    /// if what they do to their own state would spoil the result.
    pub(super) fn dynamic(&self, model: &mut Model, samples: Option<&Samples>) -> Result<Quantized, Error> {
        let at = |f: Fault| f.at("dynamic quantization");
        let (filter, target) = (&self.options.filter, self.target);
        let noisy = samples.map(|s| dynamic::noisy(&model.graph, s)).transpose()?.unwrap_or_default();
        let float = model.clone();
        let mut done = dynamic::quantize(model, filter, target, &noisy, true).map_err(at)?;
        if let Some(samples) = samples.filter(|_| dynamic::has_lstm(&model.graph)) {
            let found = distances(&float.graph, &model.graph, samples, self.watch)?;
            if found.iter().filter_map(|c| c.sqnr_db).any(|db| db < dynamic::LEAST_DB) {
                *model = float;
                done = dynamic::quantize(model, filter, target, &noisy, false).map_err(at)?;
            }
        }
        Ok(Quantized::weights(done))
    }

    /// Half precision; with samples, what would leave its range stays float32.
    pub(super) fn halve(&self, model: &mut Model, half: &Half) -> Result<Quantized, Error> {
        let ranges = match self.samples {
            None => half::Ranges::new(),
            Some(samples) => {
                let steps = AtomicUsize::new(0);
                let step = || (self.watch)("calibrating", 1 + steps.fetch_add(1, Relaxed), samples.len());
                half::ranges(&model.graph, samples, &step)?
            }
        };
        let done = half::convert(model, half, &ranges).map_err(|f| f.at("half precision"))?;
        Ok(Quantized::half(done))
    }
}
