//! Making the quantized model better by measuring it: which values and weights the outputs can bear in 8 bits, which
//! ranges serve them best, how weights are rounded.
//!
//! Every step is judged by what it does to the outputs of the graph, not by the value it touches, and is taken back if
//! it does not help there.

pub mod distance;
pub mod layer;
pub mod reconstruct;
pub mod rounding;
pub mod sensitivity;
pub mod smooth;

use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use self::distance::{Distance, judged, mean_ratio};
use crate::calibrate::read::Samples;
use crate::error::Error;
use crate::interpret::Program;
use crate::ir::{Graph, ValueId};

/// Samples on which steps are judged, at most.
const JUDGING: usize = 16;

/// What a step of tuning did.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// What was done.
    pub name: &'static str,
    /// Signal over noise at the outputs before, in dB: the mean over all parts of the outputs.
    pub before_db: f64,
    /// The same afterwards.
    pub after_db: f64,
    /// Was it kept? If not, the model is as before.
    pub kept: bool,
    /// Time that it took.
    pub seconds: f64,
}

/// Noise over signal at the outputs of `quantized`, which was made from `reference`.
pub fn noise(reference: &Graph, quantized: &Graph, samples: &Samples) -> Result<f64, Error> {
    let (float, integer) = (Program::new(reference)?, Program::new(quantized)?);
    let parts: Vec<ValueId> = judged(reference).into_iter().filter(|&v| quantized.has_value(v)).collect();
    let count = samples.len().min(JUDGING);
    let distances: Vec<Vec<Distance>> = (0..count)
        .into_par_iter()
        .map(|i| {
            let inputs = samples.load(i * samples.len() / count)?;
            let (wanted, found) = (float.values(&inputs, &parts)?, integer.values(&inputs, &parts)?);
            let mut distances = vec![Distance::default(); parts.len()];
            for ((distance, wanted), found) in distances.iter_mut().zip(&wanted).zip(&found) {
                wanted.iter().for_each(|w| distance.add(w, found.as_ref()));
            }
            Ok(distances)
        })
        .collect::<Result<_, Error>>()?;
    let mut totals = vec![Distance::default(); parts.len()];
    distances.iter().for_each(|d| totals.iter_mut().zip(d).for_each(|(total, d)| total.merge(d)));
    Ok(mean_ratio(&totals))
}

/// Changes a quantized graph, and takes the change back if the outputs are not closer to those of `reference`.
pub fn attempt(
    name: &'static str,
    reference: &Graph,
    quantized: &mut Graph,
    samples: &Samples,
    change: impl FnOnce(&mut Graph) -> Result<(), Error>,
) -> Result<Step, Error> {
    let started = Instant::now();
    let before = noise(reference, quantized, samples)?;
    let backup = quantized.clone();
    change(quantized)?;
    let after = noise(reference, quantized, samples)?;
    let kept = after < before;
    if !kept {
        *quantized = backup;
    }
    let db = |ratio: f64| -10.0 * libm::log10(ratio.max(1e-20));
    let seconds = started.elapsed().as_secs_f64();
    Ok(Step { name, before_db: db(before), after_db: db(after), kept, seconds })
}
