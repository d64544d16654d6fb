//! What small changes do to the outputs, estimated for all of them together.
//!
//! A change `d` of a value moves an output by `J d`, if it is small, where `J` holds the derivatives. With random signs
//! `s`, `(sᵀ J d)²` is `|J d|²` on average (Hutchinson 1990), and one way back gives `sᵀ J` for every value of the graph. So
//! a run and its way back tell of a sample, to about a factor, what some hundred replays would tell exactly; samples differ
//! by more than that, and many of them are affordable.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::Trial;
use crate::calibrate::read::Samples;
use crate::error::Error;
use crate::interpret::Program;
use crate::interpret::adjoint::Adjoint;
use crate::interpret::trace::Trace;
use crate::ir::{Array, Graph, ValueId, limits};
use crate::kernels::random::split_mix_64;
use crate::kernels::requantize::fake_quantize_slice;
use crate::kernels::simd::{self, Task};
use crate::tune::distance::Part;

/// Samples over which everything is followed.
const FEW: usize = 4;
/// The share of the noise that is quiet.
const QUIET: f64 = 0.05;
/// Elements that are summed in single precision, so many of them side by side.
const BLOCK: usize = 1024;
const LANES: usize = 16;
/// Blocks that tell how far a value is spread.
const BLOCKS: usize = 32;

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
    /// How many samples are followed side by side.
    pub abreast: usize,
}

/// One sample.
struct Seen<'a> {
    trace: &'a Trace,
    index: usize,
    /// What each part's signs are multiplied by.
    factors: &'a [f64],
}

impl Probes<'_> {
    /// What each trial does, over the samples of these indices; `None` where gradients do not tell. What is quiet in the
    /// first of them is not followed in the others. `powers` are those of the parts in a sample.
    pub fn estimate(
        &self,
        (samples, picked): (&Samples, &[usize]),
        powers: &[f64],
    ) -> Result<Vec<Option<Estimate>>, Error> {
        let shown: Vec<Option<ValueId>> = self.trials.iter().map(|trial| self.place(trial)).collect();
        let wanted: Vec<ValueId> = shown.iter().flatten().copied().collect();
        let targets: Vec<ValueId> = self.judged.iter().map(|part| part.value).collect();
        let adjoint = Adjoint::new(self.program, self.graph, &targets, &wanted);
        let factors = factors(powers, picked.len());
        let mut estimates = vec![Estimate::default(); self.trials.len()];
        let mut follow = |picked: &[usize], loud: &[bool]| {
            let mut places: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
            for (index, place) in shown.iter().enumerate().filter(|(index, _)| loud[*index]) {
                place.iter().for_each(|&place| places.entry(place).or_default().push(index));
            }
            let on = |&index: &usize| {
                super::go_on()?;
                let trace = &self.program.trace(&samples.load(index)?)?;
                self.back(&adjoint, &places, &Seen { trace, index, factors: &factors })
            };
            for some in picked.chunks(self.abreast) {
                let found: Vec<_> = some.par_iter().map(on).collect::<Result<_, Error>>()?;
                for (trial, sum, own) in found.into_iter().flatten() {
                    estimates[trial].ratio += sum * sum;
                    estimates[trial].own = estimates[trial].own.max(own);
                }
            }
            Ok::<_, Error>(estimates.clone())
        };
        let (few, others) = picked.split_at(picked.len().min(FEW));
        let found = follow(few, &vec![true; self.trials.len()])?;
        let loud = self.loud(&found);
        let mut found = follow(others, &loud)?;
        let share = picked.len() as f64 / few.len().max(1) as f64;
        found.iter_mut().zip(loud).filter(|(_, loud)| !loud).for_each(|(e, _)| e.ratio *= share);
        let told = |place: &Option<ValueId>| place.is_some_and(|place| adjoint.tells(place));
        Ok(shown.iter().zip(found).map(|(place, e)| told(place).then_some(e)).collect())
    }

    /// The trials of the values and weights that together bring nearly all of the noise.
    fn loud(&self, estimates: &[Estimate]) -> Vec<bool> {
        let mut loudness: BTreeMap<_, f64> = BTreeMap::new();
        for (trial, estimate) in self.trials.iter().zip(estimates) {
            let most = loudness.entry(trial.unit()).or_default();
            *most = most.max(estimate.ratio);
        }
        let mut units: Vec<_> = loudness.into_iter().collect();
        units.sort_by(|a, b| b.1.total_cmp(&a.1));
        let quiet = QUIET * units.iter().map(|unit| unit.1).sum::<f64>();
        let mut below: f64 = 0.0;
        while let Some(unit) = units.last().filter(|unit| below + unit.1 <= quiet) {
            below += unit.1;
            units.pop();
        }
        let units: BTreeSet<_> = units.into_iter().map(|unit| unit.0).collect();
        self.trials.iter().map(|trial| units.contains(&trial.unit())).collect()
    }

    /// The value whose change is followed: of a weight, that of what is computed with it.
    fn place(&self, trial: &Trial) -> Option<ValueId> {
        match trial {
            Trial::Value(id, ..) => Some(*id),
            Trial::Weight(node, ..) => self.graph.outputs_of(*node).into_iter().next()?,
        }
    }

    /// The trials, what a probe says of them, and how much the value itself changes.
    fn back(
        &self,
        adjoint: &Adjoint,
        places: &BTreeMap<ValueId, Vec<usize>>,
        seen: &Seen,
    ) -> Result<Vec<(usize, f64, f64)>, Error> {
        let mut found = Vec::new();
        adjoint.back(seen.trace, &self.seeds(seen), &mut |id, gradient| {
            let Some(Array::F32(old)) = self.program.traced(seen.trace, id) else { return };
            let (Some(old), Ok(gradient)) = (old.as_slice(), gradient.slice::<f32>()) else { return };
            let deviation = deviation(old);
            let told = |&trial: &usize| {
                let moved = self.moved(seen.trace, &self.trials[trial], (old, gradient))?;
                let own = if moved.far == 0.0 { 0.0 } else { moved.far / deviation };
                Some((trial, moved.along, own))
            };
            // Of a model whose values are many, one sample is followed at a time: then this is what others can do.
            let trials = places.get(&id).map_or(&[][..], Vec::as_slice);
            found.extend(trials.par_iter().map(told).collect::<Vec<_>>().into_iter().flatten());
        })?;
        Ok(found)
    }

    /// How the trial moves the value.
    fn moved(&self, trace: &Trace, trial: &Trial, (old, gradient): (&[f32], &[f32])) -> Option<Moved> {
        match trial {
            Trial::Value(_, params, _) => {
                let (low, high) = limits(params.dtype)?;
                Some(Moved::by(old, gradient, |_, block| {
                    fake_quantize_slice(block, params.scale, params.zero_point, low, high);
                }))
            }
            Trial::Weight(node, value, array) => {
                let new = self.program.once(trace, *node, (*value, array))?;
                let new = new.slice::<f32>().ok().filter(|new| new.len() == old.len())?;
                Some(Moved::by(old, gradient, |at, block| block.copy_from_slice(&new[at..][..block.len()])))
            }
        }
    }

    /// Random signs for every part.
    fn seeds(&self, seen: &Seen) -> Vec<(ValueId, Array)> {
        let mut state = seen.index as u64;
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

/// What makes noise of a part in so many samples its share of the mean noise over signal.
fn factors(powers: &[f64], samples: usize) -> Vec<f64> {
    let parts = powers.iter().filter(|&&power| power > 0.0).count();
    let factor = |power: f64| {
        if power > 0.0 { 1.0 / libm::sqrt(power * (samples * parts) as f64) } else { 0.0 }
    };
    powers.iter().map(|&power| factor(power)).collect()
}

/// How far a change moves a value.
#[derive(Default)]
struct Moved {
    /// `Σ gradient · (new - old)`.
    along: f64,
    /// `Σ |new - old|`.
    far: f64,
}

impl Moved {
    /// `change` is given where a block starts, and the block to change.
    fn by(old: &[f32], gradient: &[f32], change: impl Fn(usize, &mut [f32])) -> Self {
        let (mut moved, mut room) = (Self::default(), [0.0; BLOCK]);
        for (at, (old, gradient)) in old.chunks(BLOCK).zip(gradient.chunks(BLOCK)).enumerate() {
            let new = &mut room[..old.len()];
            new.copy_from_slice(old);
            change(at * BLOCK, new);
            let mut sums = [[0.0; LANES]; 2];
            simd::run(Move { gradient, old, new, sums: &mut sums });
            moved.along += f64::from(sums[0].iter().sum::<f32>());
            moved.far += f64::from(sums[1].iter().sum::<f32>());
        }
        moved
    }
}

/// The sums of [`Moved`] over a block.
struct Move<'a> {
    gradient: &'a [f32],
    old: &'a [f32],
    new: &'a [f32],
    sums: &'a mut [[f32; LANES]; 2],
}

impl Task for Move<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { gradient, old, new, sums: [along, far] } = self;
        let mut add = |lane: usize, gradient: f32, moved: f32| {
            along[lane] += gradient * moved;
            far[lane] += moved.abs();
        };
        let (gradients, rest) = gradient.as_chunks::<LANES>();
        let (olds, news) = (old.as_chunks::<LANES>(), new.as_chunks::<LANES>());
        for ((gradient, old), new) in gradients.iter().zip(olds.0).zip(news.0) {
            (0..LANES).for_each(|lane| add(lane, gradient[lane], new[lane] - old[lane]));
        }
        for (lane, ((gradient, old), new)) in rest.iter().zip(olds.1).zip(news.1).enumerate() {
            add(lane, *gradient, new - old);
        }
    }
}

/// `Σ |x - mean|`, of large values by some of their blocks: few loud elements do not hide that the others are lost.
fn deviation(x: &[f32]) -> f64 {
    let apart = x.len().div_ceil(BLOCK).div_ceil(BLOCKS).max(1);
    let blocks = || x.chunks(BLOCK).step_by(apart);
    let sum = |from: f32, absolute: bool| -> f64 {
        let block = |x: &[f32]| {
            let mut sums = [0.0; LANES];
            simd::run(Spread { x, from, absolute, sums: &mut sums });
            f64::from(sums.iter().sum::<f32>())
        };
        blocks().map(block).sum()
    };
    let count = blocks().map(<[f32]>::len).sum::<usize>().max(1) as f64;
    let mean = sum(0.0, false) / count;
    sum(mean as f32, true) * x.len() as f64 / count
}

/// `Σ (x - from)` over a block, or of its magnitudes.
struct Spread<'a> {
    x: &'a [f32],
    from: f32,
    absolute: bool,
    sums: &'a mut [f32; LANES],
}

impl Task for Spread<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { x, from, absolute, sums } = self;
        let mut add = |lane: usize, d: f32| sums[lane] += if absolute { d.abs() } else { d };
        let (chunks, rest) = x.as_chunks::<LANES>();
        for x in chunks {
            (0..LANES).for_each(|lane| add(lane, x[lane] - from));
        }
        rest.iter().enumerate().for_each(|(lane, x)| add(lane, x - from));
    }
}

#[cfg(test)]
mod tests {
    use super::super::change;
    use super::*;
    use crate::ir::{DType, QuantParams};
    use crate::onnx::{import, text};
    use crate::tune::distance::Distance;

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
        let probes =
            Probes { graph: &graph, program: &program, judged: &judged, trials: &trials, abreast: 2 };
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
        for index in 0..128 {
            for (trial, sum, own) in probes.back(&adjoint, &places, &Seen { index, ..seen }).unwrap() {
                estimates[trial] += sum * sum / 128.0;
                assert!(own < crate::tune::sensitivity::SMALL, "{own}");
            }
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
        let probes =
            Probes { graph: &graph, program: &program, judged: &judged, trials: &trials, abreast: 2 };
        let picked: Vec<usize> = (0..32).collect();
        let powers = crate::tune::Judge::on(&graph, &samples, &picked).unwrap().powers();
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| probes.estimate((&samples, &picked), &powers)).unwrap();
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
