//! What small changes do to the outputs, estimated for all of them together.
//!
//! A change `d` of a value moves an output by `J d`, if it is small, where `J` holds the derivatives. With random signs
//! `s`, `(sᵀ J d)²` is `|J d|²` on average (Hutchinson 1990), and one way back gives `sᵀ J` for every value of the graph. So
//! a few of them tell what some hundred trials would, each to about a half.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{Trial, change};
use crate::calibrate::read::Samples;
use crate::error::Error;
use crate::interpret::Program;
use crate::interpret::adjoint::Adjoint;
use crate::interpret::trace::Trace;
use crate::ir::{Array, Graph, ValueId};
use crate::kernels::random::split_mix_64;
use crate::tune::distance::{Distance, Part};

/// Ways back for each sample.
const PROBES: usize = 4;
/// Elements that are summed in single precision.
const BLOCK: usize = 64;

/// What a trial does.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Estimate {
    /// Noise over signal at the outputs.
    pub ratio: f64,
    /// The change of the value itself over its mean deviation, in the sample where it is most.
    pub own: f64,
}

/// What is to be estimated.
pub(super) struct Probes<'a> {
    pub graph: &'a Graph,
    /// Computes the graph.
    pub program: &'a Program,
    /// What the outputs are judged by.
    pub judged: &'a [Part],
    pub trials: &'a [Trial],
}

/// One sample.
struct Seen<'a> {
    trace: &'a Trace,
    index: usize,
    /// What each part's signs are multiplied by.
    factors: &'a [f64],
}

impl Probes<'_> {
    /// What each trial does, over the samples of these indices; `None` where gradients do not tell.
    pub fn estimate(&self, samples: &Samples, picked: &[usize]) -> Result<Vec<Option<Estimate>>, Error> {
        let mut places: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        let shown: Vec<Option<ValueId>> = self.trials.iter().map(|trial| self.place(trial)).collect();
        for (index, place) in shown.iter().enumerate() {
            place.iter().for_each(|&place| places.entry(place).or_default().push(index));
        }
        let wanted: Vec<ValueId> = places.keys().copied().collect();
        let targets: Vec<ValueId> = self.judged.iter().map(|part| part.value).collect();
        let adjoint = Adjoint::new(self.program, self.graph, &targets, &wanted);
        let factors = self.factors(samples, picked, &targets)?;
        let abreast = PROBES.div_ceil(rayon::current_num_threads());
        let mut estimates = vec![Estimate::default(); self.trials.len()];
        for &index in picked {
            let trace = &self.program.trace(&samples.load(index)?)?;
            let seen = Seen { trace, index, factors: &factors };
            let probes: Vec<usize> = (0..PROBES).collect();
            let found = probes.par_chunks(abreast).map(|probes| self.back(&adjoint, &places, &seen, probes));
            for (trial, sum, own) in found.collect::<Result<Vec<_>, Error>>()?.into_iter().flatten() {
                estimates[trial].ratio += sum * sum / PROBES as f64;
                estimates[trial].own = estimates[trial].own.max(own);
            }
        }
        let told = |place: &Option<ValueId>| place.is_some_and(|place| adjoint.tells(place));
        Ok(shown.iter().zip(estimates).map(|(place, e)| told(place).then_some(e)).collect())
    }

    /// The value whose change is followed: of a weight, that of what is computed with it.
    fn place(&self, trial: &Trial) -> Option<ValueId> {
        match trial {
            Trial::Value(id, ..) => Some(*id),
            Trial::Weight(node, ..) => self.graph.outputs_of(*node).into_iter().next()?,
        }
    }

    /// What makes noise of a part its share of the mean noise over signal.
    fn factors(&self, samples: &Samples, picked: &[usize], targets: &[ValueId]) -> Result<Vec<f64>, Error> {
        let mut signals = vec![Distance::default(); targets.len()];
        for &index in picked {
            let found = self.program.values(&samples.load(index)?, targets)?;
            for ((signal, part), found) in signals.iter_mut().zip(self.judged).zip(&found) {
                found.iter().for_each(|f| signal.add(part, f, Some(f)));
            }
        }
        let count = signals.iter().filter(|s| s.signal() > 0.0).count();
        let factor = |power: f64| if power > 0.0 { 1.0 / libm::sqrt(power * count as f64) } else { 0.0 };
        Ok(signals.iter().map(|s| factor(s.signal())).collect())
    }

    /// The trials, what each of these probes says of them, and how much the value itself changes.
    fn back(
        &self,
        adjoint: &Adjoint,
        places: &BTreeMap<ValueId, Vec<usize>>,
        seen: &Seen,
        probes: &[usize],
    ) -> Result<Vec<(usize, f64, f64)>, Error> {
        let seeds: Vec<_> = probes.iter().map(|&probe| self.seeds(seen, probe)).collect();
        let mut found = Vec::new();
        adjoint.back(seen.trace, &seeds, &mut |id, gradients| {
            let Some(Array::F32(old)) = self.program.traced(seen.trace, id) else { return };
            for &trial in places.get(&id).into_iter().flatten() {
                let Some(Array::F32(new)) = self.changed(seen.trace, &self.trials[trial]) else { continue };
                let (Some(old), Some(new)) = (old.as_slice(), new.as_slice()) else { continue };
                let own = share_of_deviation(old, new);
                for gradient in gradients.iter().flatten() {
                    let gradient = gradient.slice::<f32>().unwrap_or_default();
                    found.push((trial, along(gradient, old, new), own));
                }
            }
        })?;
        Ok(found)
    }

    /// The value with the trial's change.
    fn changed(&self, trace: &Trace, trial: &Trial) -> Option<Array> {
        match trial {
            Trial::Value(..) => Some(change(self.program, trace, trial)?.1),
            Trial::Weight(node, value, array) => self.program.once(trace, *node, (*value, array)),
        }
    }

    /// Random signs for every part.
    fn seeds(&self, seen: &Seen, probe: usize) -> Vec<(ValueId, Array)> {
        let mut state = (seen.index * PROBES + probe) as u64;
        let mut sign = |x: &f32| match split_mix_64(&mut state) >> 63 {
            _ if !x.is_finite() => 0.0,
            0 => 1.0,
            _ => -1.0,
        };
        let seed = |(part, &factor): (&Part, &f64)| {
            let Array::F32(output) = self.program.traced(seen.trace, part.value)? else { return None };
            let mut signs: Vec<f32> = output.iter().map(&mut sign).collect();
            part.centre(output.shape(), &mut signs);
            signs.iter_mut().for_each(|s| *s *= factor as f32);
            Some((part.value, Array::new(output.shape(), signs).ok()?))
        };
        self.judged.iter().zip(seen.factors).filter_map(seed).collect()
    }
}

/// `Σ gradient · (new - old)`.
fn along(gradient: &[f32], old: &[f32], new: &[f32]) -> f64 {
    let blocks = gradient.chunks(BLOCK).zip(old.chunks(BLOCK)).zip(new.chunks(BLOCK));
    let sum = |((g, old), new): ((&[f32], &[f32]), &[f32])| {
        let terms = g.iter().zip(old).zip(new).map(|((g, old), new)| g * (new - old));
        f64::from(terms.sum::<f32>())
    };
    blocks.map(sum).sum()
}

/// `Σ |new - old|` over `Σ |old - mean|`: few loud elements do not hide that the others are lost. Infinite if something
/// changes that did not vary.
fn share_of_deviation(old: &[f32], new: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(f32, f32) -> f32| -> f64 {
        let of =
            |(old, new): (&[f32], &[f32])| old.iter().zip(new).map(|(&old, &new)| f(old, new)).sum::<f32>();
        old.chunks(BLOCK).zip(new.chunks(BLOCK)).map(|block| f64::from(of(block))).sum()
    };
    let mean = (sum(&|old, _| old) / old.len().max(1) as f64) as f32;
    let lost = sum(&|old, new| (new - old).abs());
    if lost == 0.0 { 0.0 } else { lost / sum(&|old, _| (old - mean).abs()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{DType, QuantParams};
    use crate::onnx::{import, text};

    /// Two products with something curved between them.
    const SOURCE: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[16,32] x) => (float[16,24] y)
        <float[32,40] a = random(1, -0.3, 0.3), float[40,24] b = random(2, -0.3, 0.3)> {
          m = MatMul (x, a)
          t = Tanh (m)
          n = MatMul (t, b)
          y = Sigmoid (n)
        }"#;

    #[test]
    fn probes_tell_what_trials_would() {
        let graph = import(text::parse(SOURCE).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let program = Program::new(&graph).unwrap();
        let id = |name: &str| graph.find(name).unwrap();
        let rounded =
            |name: &str| Trial::Value(id(name), QuantParams::asymmetric(-2.0, 2.0, DType::U8), None);
        let weight = |node: &str, name: &str| {
            let (node, _) = graph.producer(id(node)).unwrap();
            let array = graph.constant(id(name)).unwrap().array().unwrap();
            let values = array.slice::<f32>().unwrap().iter().map(|x| (x * 64.0).round() / 64.0).collect();
            Trial::Weight(node, id(name), Array::new(array.shape(), values).unwrap())
        };
        let trials = [rounded("x"), rounded("m"), rounded("t"), weight("m", "a"), weight("n", "b")];
        let judged = [Part::output(id("y"))];
        let probes = Probes { graph: &graph, program: &program, judged: &judged, trials: &trials };
        let values = (0..16 * 32).map(|i| ((i * 7919 + 13) % 2003) as f32 / 1001.0 - 1.0).collect();
        let trace = program.trace(&[Array::new(&[16, 32], values).unwrap()]).unwrap();
        let exact = |trial: &Trial| {
            let found =
                program.replay(&trace, &[change(&program, &trace, trial).unwrap()], &[id("y")]).unwrap();
            let mut distance = Distance::default();
            distance.add(&judged[0], program.traced(&trace, id("y")).unwrap(), found[0].as_ref());
            distance.ratio().unwrap()
        };
        let mut signal = Distance::default();
        let y = program.traced(&trace, id("y")).unwrap();
        signal.add(&judged[0], y, Some(y));
        let seen = Seen { trace: &trace, index: 3, factors: &[1.0 / libm::sqrt(signal.signal())] };
        let places = [("x", vec![0]), ("m", vec![1, 3]), ("t", vec![2]), ("n", vec![4])];
        let places: BTreeMap<ValueId, Vec<usize>> = places.into_iter().map(|(v, t)| (id(v), t)).collect();
        let wanted: Vec<ValueId> = places.keys().copied().collect();
        let adjoint = Adjoint::new(&program, &graph, &[id("y")], &wanted);
        let mut estimates = [0.0; 5];
        for (trial, sum, own) in probes.back(&adjoint, &places, &seen, &(0..32).collect::<Vec<_>>()).unwrap()
        {
            estimates[trial] += sum * sum / 32.0;
            assert!(own < crate::tune::sensitivity::SMALL, "{own}");
        }
        for (trial, estimate) in trials.iter().zip(estimates) {
            let exact = exact(trial);
            let off = 10.0 * libm::log10(estimate / exact);
            assert!(off.abs() < 2.0, "{off} dB off {exact:e}");
        }
    }

    #[test]
    fn estimates_over_samples_are_near_the_trials_and_the_same_on_any_number_of_threads() {
        let graph = import(text::parse(SOURCE).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let program = Program::new(&graph).unwrap();
        let id = |name: &str| graph.find(name).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for sample in 0..32 {
            let value = |i: usize| ((i * 7919 + sample * 104_729) % 2003) as f32 / 1001.0 - 1.0;
            let x = ndarray::Array2::from_shape_fn((16, 32), |(i, j)| value(i * 32 + j));
            ndarray_npy::write_npy(dir.path().join(format!("{sample}.npy")), &x).unwrap();
        }
        let inputs = crate::calibrate::read::open_inputs(&graph).unwrap();
        let samples = crate::calibrate::read::open(dir.path(), &inputs, None).unwrap();
        let params = QuantParams::asymmetric(-2.0, 2.0, DType::U8);
        let (node, _) = graph.producer(id("n")).unwrap();
        let weight = graph.constant(id("b")).unwrap().array().unwrap();
        let coarse = weight.slice::<f32>().unwrap().iter().map(|x| (x * 64.0).round() / 64.0).collect();
        let coarse = Array::new(weight.shape(), coarse).unwrap();
        let trials = [Trial::Value(id("m"), params, None), Trial::Weight(node, id("b"), coarse)];
        let judged = [Part::output(id("y"))];
        let probes = Probes { graph: &graph, program: &program, judged: &judged, trials: &trials };
        let picked: Vec<usize> = (0..32).collect();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| probes.estimate(&samples, &picked)).unwrap();
            found.into_iter().map(|e| e.unwrap().ratio).collect::<Vec<f64>>()
        };
        let estimates = on(1);
        assert_eq!(estimates, on(3));
        for (trial, estimate) in trials.iter().zip(estimates) {
            let mut distance = Distance::default();
            for &index in &picked {
                let trace = program.trace(&samples.load(index).unwrap()).unwrap();
                let change = change(&program, &trace, trial).unwrap();
                let found = program.replay(&trace, &[change], &[id("y")]).unwrap();
                distance.add(&judged[0], program.traced(&trace, id("y")).unwrap(), found[0].as_ref());
            }
            let off = 10.0 * libm::log10(estimate / distance.ratio().unwrap());
            assert!(off.abs() < 1.5, "{off} dB off");
        }
    }
}
