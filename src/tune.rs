//! Making the quantized model better by measuring it: which values and weights the outputs can bear in 8 bits, which
//! ranges serve them best, how weights are rounded.
//!
//! Every step is judged by what it does to the outputs of the graph, not by the value it touches, and is taken back if
//! it does not help there.

pub mod bias;
pub mod distance;
pub mod equalize;
pub mod goal;
pub mod layer;
pub mod moments;
pub mod reconstruct;
pub mod rounding;
pub mod sensitivity;
pub mod shares;
pub mod smooth;
pub mod tradeoff;

use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use self::distance::{Distance, Part, judged, mean_ratio};
use self::shares::spread;
use crate::calibrate::read::Samples;
use crate::error::Error;
use crate::interpret::{Numerics, Program};
use crate::ir::{Array, Graph, Tensor, ValueId};

/// In so many parts a sequence of changes is judged, and so many times as many samples as show at once what is worse.
const QUARTERS: usize = 4;

/// Constants that change together.
pub type Change = Vec<(ValueId, Array)>;

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

/// What the outputs should be, to judge quantized graphs by.
pub struct Judge<'a> {
    samples: &'a Samples,
    /// What is judged, and behind it the outputs, in case a graph has nothing of that.
    parts: Vec<Part>,
    judged: usize,
    /// Their names: the id of a part that a graph no longer has may be another value's there.
    names: Vec<String>,
    /// Index of a sample and the parts of the outputs there.
    wanted: Vec<(usize, Vec<Option<Array>>)>,
}

impl<'a> Judge<'a> {
    /// Runs the float graph on at most so many of the samples, evenly spread.
    pub fn new(reference: &Graph, samples: &'a Samples, most: usize) -> Result<Self, Error> {
        Self::on(reference, samples, &spread(&(0..samples.len()).collect::<Vec<_>>(), most))
    }

    /// Runs the float graph on the samples with these indices.
    pub fn on(reference: &Graph, samples: &'a Samples, indices: &[usize]) -> Result<Self, Error> {
        let (program, mut parts) = (Program::new(reference)?, judged(reference));
        let judged = parts.len();
        parts.extend(reference.outputs.iter().map(|&output| Part::output(output)));
        let values: Vec<ValueId> = parts.iter().map(|part| part.value).collect();
        let wanted =
            indices.par_iter().map(|&index| Ok((index, program.values(&samples.load(index)?, &values)?)));
        let names = values.iter().map(|&v| reference.name(v).to_string()).collect();
        Ok(Self { samples, wanted: wanted.collect::<Result<_, Error>>()?, parts, judged, names })
    }

    /// The mean power of each part in a sample.
    pub fn powers(&self) -> Vec<f64> {
        let power = |(index, part): (usize, &Part)| {
            let mut distance = Distance::default();
            for (_, values) in &self.wanted {
                values[index].iter().for_each(|v| distance.add(part, v, Some(v)));
            }
            distance.signal() / self.wanted.len().max(1) as f64
        };
        self.parts[..self.judged].iter().enumerate().map(power).collect()
    }

    /// Noise over signal at the outputs of a graph that was made from the float graph.
    pub fn noise(&self, quantized: &Graph) -> Result<f64, Error> {
        Ok(self.race(quantized, &|_| false)?.1.unwrap_or_default())
    }

    /// The same on a quarter of the samples, and on all of them unless the quarter shows enough to give up.
    pub fn race(
        &self,
        quantized: &Graph,
        give_up: &dyn Fn(f64) -> bool,
    ) -> Result<(f64, Option<f64>), Error> {
        // A part that the integer graph no longer has is not judged.
        let has = |&i: &usize| {
            let part = self.parts[i].value;
            quantized.has_value(part) && quantized.name(part) == self.names[i]
        };
        let mut here: Vec<usize> = (0..self.judged).filter(has).collect();
        if here.is_empty() {
            here = (self.judged..self.parts.len()).filter(has).collect();
        }
        let parts: Vec<ValueId> = here.iter().map(|&i| self.parts[i].value).collect();
        // On integers, as it will run, unless a part then lies inside of an operator.
        let mut program = Program::with_numerics(quantized, Numerics::Ort)?;
        if !parts.iter().all(|&part| program.shows(part)) {
            program = Program::new(quantized)?;
        }
        let measure = |(index, wanted): &(usize, Vec<Option<Array>>)| {
            let found = program.values(&self.samples.load(*index)?, &parts)?;
            let mut distances = vec![Distance::default(); parts.len()];
            for ((distance, &part), found) in distances.iter_mut().zip(&here).zip(&found) {
                wanted[part].iter().for_each(|w| distance.add(&self.parts[part], w, found.as_ref()));
            }
            Ok(distances)
        };
        let mut totals = vec![Distance::default(); parts.len()];
        let mut add = |first: bool| {
            let share = self.wanted.par_iter().enumerate();
            let share =
                share.filter(|(i, _)| (i % QUARTERS == 0) == first).map(|(_, sample)| measure(sample));
            let distances = share.collect::<Result<Vec<_>, Error>>()?;
            distances.iter().for_each(|d| totals.iter_mut().zip(d).for_each(|(total, d)| total.merge(d)));
            Ok::<_, Error>(mean_ratio(&totals))
        };
        let quarter = add(true)?;
        Ok((quarter, if give_up(quarter) { None } else { Some(add(false)?) }))
    }

    /// Makes changes to a quantized graph, each of which stands on those before it: all of them if the outputs become
    /// closer by it, or else as many quarters as bring them closest, or none.
    pub fn advance(
        &self,
        name: &'static str,
        quantized: &mut Graph,
        changes: &[Change],
        started: Instant,
    ) -> Result<(Step, usize), Error> {
        let before = self.noise(quantized)?;
        let (mut least, mut best) = (before, (quantized.clone(), 0));
        for quarters in (1..=QUARTERS).rev() {
            let end = changes.len() * quarters / QUARTERS;
            let mut changed = quantized.clone();
            for (constant, array) in changes[..end].iter().flatten() {
                changed.set_constant(*constant, Tensor::from_array(array));
            }
            let noise = self.noise(&changed)?;
            if noise < least {
                (least, best) = (noise, (changed, end));
            }
            if quarters == QUARTERS && best.1 > 0 {
                break;
            }
        }
        *quantized = best.0;
        Ok((Step::new(name, (before, least), best.1 > 0, started), best.1))
    }
}

/// Noise over signal in dB; `None` if there is no noise.
pub fn sqnr_db(ratio: f64) -> Option<f64> {
    (ratio > 0.0).then(|| -10.0 * libm::log10(ratio))
}

impl Step {
    /// A step that changed noise over signal from the one to the other.
    pub fn new(name: &'static str, (before, after): (f64, f64), kept: bool, started: Instant) -> Self {
        let db = |ratio: f64| -10.0 * libm::log10(ratio.max(1e-20));
        let seconds = started.elapsed().as_secs_f64();
        Self { name, before_db: db(before), after_db: db(after), kept, seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::read::{open, open_inputs};
    use crate::onnx::{import, text};

    /// Twelve samples, each of which has power of its own, and a graph that multiplies them by a constant.
    fn with_judge(check: impl Fn(&Judge, &Graph, &dyn Fn(f32) -> Array)) {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[4] x) => (float[4] y) <float[1] c = {1}> { y = Mul (x, c) }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let dir = tempfile::tempdir().unwrap();
        for sample in 1..=12 {
            let x = ndarray::Array1::from_elem(4, sample as f32);
            ndarray_npy::write_npy(dir.path().join(format!("{sample:02}.npy")), &x).unwrap();
        }
        let samples = open(dir.path(), &open_inputs(&graph).unwrap(), None).unwrap();
        check(&Judge::new(&graph, &samples, 12).unwrap(), &graph, &|c| Array::vector(vec![c]));
    }

    fn changed(graph: &Graph, array: &Array) -> Graph {
        let mut graph = graph.clone();
        let constant = graph.find("c").unwrap();
        graph.set_constant(constant, Tensor::from_array(array));
        graph
    }

    #[test]
    fn noise_is_over_signal_and_what_a_quarter_shows_to_be_bad_is_not_run_further() {
        with_judge(|judge, graph, c| {
            let other = changed(graph, &c(1.1));
            assert_eq!(judge.noise(graph).unwrap(), 0.0);
            assert!((judge.noise(&other).unwrap() - 0.01).abs() < 1e-6);
            let (quarter, all) = judge.race(&other, &|noise| noise > 0.02).unwrap();
            assert!((quarter - 0.01).abs() < 1e-6 && (all.unwrap() - 0.01).abs() < 1e-6);
            assert_eq!(judge.race(&other, &|noise| noise > 0.005).unwrap(), (quarter, None));
        });
    }

    #[test]
    fn of_changes_as_many_quarters_are_kept_as_bring_the_outputs_closest() {
        with_judge(|judge, graph, c| {
            let constant = graph.find("c").unwrap();
            let advance = |changes: &[f32]| {
                let changes: Vec<Change> = changes.iter().map(|&x| vec![(constant, c(x))]).collect();
                let mut quantized = changed(graph, &c(1.5));
                let (step, kept) = judge.advance("x", &mut quantized, &changes, Instant::now()).unwrap();
                assert_eq!(step.kept, kept > 0);
                (kept, quantized.constant(constant).unwrap().array().unwrap())
            };
            assert_eq!(advance(&[1.2, 1.1, 3.0, 4.0]), (2, c(1.1)));
            assert_eq!(advance(&[3.0, 1.0, 1.0, 1.4]), (4, c(1.4)), "all of them, if they help at all");
            assert_eq!(advance(&[2.0, 3.0, 4.0, 5.0]), (0, c(1.5)));
            assert_eq!(advance(&[]), (0, c(1.5)));
        });
    }
}
