//! The loop: epochs over shuffled samples, a judgement of the integer model after each, the best one kept.
//!
//! Samples of a batch run on as many threads as there are, each whole and by itself; their gradients are added in the
//! order of the batch, so the result does not depend on the threads.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use super::checkpoint;
use super::features::features;
use super::loss::{self, Loss};
use super::metric::metric;
use super::optimizer::{Optimizer, Rates};
use super::student::Student;
use super::tape::Tape;
use crate::budget;
use crate::calibrate::read::Samples;
use crate::error::{Error, Fault};
use crate::interpret::adjoint::accumulate;
use crate::interpret::{Numerics, Program};
use crate::ir::{Array, Graph, ValueId};
use crate::kernels::random::split_mix_64;

/// Bytes of the teacher's answers that are kept; if there are more, they are computed each time.
const ANSWERS: usize = 256 << 20;

/// How far gradients go back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// From the outputs through the whole network.
    EndToEnd,
    /// To the beginning of the block: each block learns to end with the teacher's value (Li et al. 2021, BRECQ), the last
    /// one with what the loss asks for.
    Block,
}

impl FromStr for Reach {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "end-to-end" => Ok(Self::EndToEnd),
            "block" => Ok(Self::Block),
            other => Err(format!("`{other}` is no mode of training; there are block and end-to-end")),
        }
    }
}

/// What the user chooses.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What to make smaller.
    pub loss: Loss,
    /// How much the values inside the network count, beside a loss that includes the teacher's outputs.
    pub features: f64,
    /// How far gradients go back.
    pub reach: Reach,
    /// Compute values again on the way back instead of keeping them: less memory, more time, the same result.
    pub recompute: bool,
    /// Times over the samples.
    pub epochs: usize,
    /// Samples a step.
    pub batch: usize,
    /// Learning rates.
    pub rates: Rates,
    /// Scales and zero points stay as they are after this many steps.
    pub freeze_after: Option<u64>,
    /// Stop after this many epochs without a better one.
    pub patience: usize,
    /// Decides the order of samples.
    pub seed: u64,
    /// Where the state is kept between epochs.
    pub checkpoint: Option<PathBuf>,
}

/// What an epoch came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Epoch {
    /// Mean loss over the training samples, as they were met.
    pub loss: f64,
    /// Mean loss of the integer model over the held-out samples.
    pub held_out: f64,
    /// Of the integer model on the held-out samples: the share of right answers, or of the teacher's without labels; of
    /// models that are no classifiers, noise over signal.
    pub metric: f64,
}

/// What the state is between two epochs.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Parameters and moments.
    pub optimizer: Optimizer,
    /// The parameters of the best epoch.
    pub kept: Vec<Array>,
    /// Which epoch that is; `None`: the starting point.
    pub best: Option<usize>,
    /// The starting point, whose loss is that of its first held-out judgement, and then every epoch.
    pub epochs: Vec<Epoch>,
}

/// Samples with numbers and, if there are any, the labels of their rows.
pub struct Share<'a> {
    /// Where the samples are.
    pub samples: &'a Samples,
    /// Which of them.
    pub indices: Vec<usize>,
    /// The labels of each of them.
    pub labels: Option<Vec<Vec<usize>>>,
}

impl Share<'_> {
    fn labels(&self, at: usize) -> Option<&[usize]> {
        self.labels.as_ref().and_then(|l| l.get(at)).map(Vec::as_slice)
    }
}

/// A student, its teacher, and what it learns from.
pub struct Session<'a> {
    /// What is trained.
    pub student: &'a Student,
    /// The float graph.
    pub teacher: &'a Graph,
    /// Samples to learn from.
    pub training: Share<'a>,
    /// Samples to judge by.
    pub held_out: Share<'a>,
    /// The user's choice.
    pub settings: &'a Settings,
    /// Names the model, the data and the options of the run.
    pub fingerprint: String,
}

/// Told of each batch, as done of total, and of each epoch.
pub struct Watcher<'a> {
    /// A batch is done.
    pub batch: &'a dyn Fn(usize, usize),
    /// An epoch is done: its number (0: the starting point), what it came to, whether it is the best so far.
    pub epoch: &'a dyn Fn(usize, &Epoch, bool),
}

/// The teacher's program and its answers as far as they are kept.
struct Teacher {
    program: Program,
    /// By which it is learned from: outputs, and values inside.
    taps: Vec<ValueId>,
    /// How many of them are outputs.
    outputs: usize,
    answers: [Vec<Vec<Option<Array>>>; 2],
}

impl Teacher {
    fn new(session: &Session, features: &[ValueId]) -> Result<Self, Error> {
        let program = Program::new(session.teacher)?;
        let mut taps = loss::taps(session.teacher);
        let outputs = taps.len();
        taps.extend(features);
        let mut teacher = Self { program, taps, outputs, answers: Default::default() };
        let shares = [&session.training, &session.held_out];
        let Some(&first) = session.training.indices.first() else { return Ok(teacher) };
        for (which, share) in shares.into_iter().enumerate() {
            let one = teacher.compute(which, &session.training.samples.load(first)?)?;
            let size: usize = one.iter().flatten().map(|a| 4 * a.len()).sum();
            if size * share.indices.len() <= ANSWERS {
                let answer = |&i: &usize| teacher.compute(which, &share.samples.load(i)?);
                teacher.answers[which] =
                    share.indices.par_iter().map(answer).collect::<Result<_, Error>>()?;
            }
        }
        Ok(teacher)
    }

    /// What it says to a sample to learn from (0) or to judge by (1), for which the outputs are enough.
    fn compute(&self, which: usize, inputs: &[Array]) -> Result<Vec<Option<Array>>, Error> {
        let taps = if which == 0 { &self.taps } else { &self.taps[..self.outputs] };
        self.program.values(inputs, taps)
    }

    fn answer(&self, which: usize, at: usize, inputs: &[Array]) -> Result<Vec<Option<Array>>, Error> {
        match self.answers[which].get(at) {
            Some(known) => Ok(known.clone()),
            None => self.compute(which, inputs),
        }
    }
}

/// How a session ended.
pub struct Outcome {
    /// The state after the last epoch.
    pub state: State,
    /// Samples a second while learning.
    pub speed: f64,
    /// Nodes at which gradients end although a real number goes on.
    pub stopped: Vec<String>,
}

impl Session<'_> {
    /// Does a gradient of the outputs reach anything?
    fn can_learn(&self) -> Result<bool, Error> {
        let trainable = self.trainable();
        let tape = Tape::new(&self.student.graph, &trainable, &loss::taps(&self.student.graph))?;
        Ok((0..trainable.len()).any(|i| tape.reaches(i)))
    }

    fn trainable(&self) -> Vec<ValueId> {
        self.student.parameters.iter().filter(|p| p.trained).map(|p| p.value).collect()
    }

    /// Trains until the last epoch, or until there has been no better one for too long.
    pub fn run(&self, watcher: &Watcher) -> Result<Outcome, Error> {
        let mut taps = loss::taps(&self.student.graph);
        let inside = match self.settings.loss {
            Loss::CrossEntropy => Vec::new(),
            _ if self.settings.features <= 0.0 => Vec::new(),
            _ => features(self.teacher, &self.student.graph)?,
        };
        taps.extend(&inside);
        let trainable = self.trainable();
        let ends: &[ValueId] = match self.settings.reach {
            Reach::EndToEnd => &[],
            Reach::Block if inside.is_empty() => {
                let fault = Fault::new("no value inside the network is there to learn block by block from");
                let hint =
                    "it needs a loss that includes the float model, and a place that all values pass through";
                return Err(fault.hint(hint).at("--mode block"));
            }
            Reach::Block => &inside,
        };
        let mut tape = Tape::in_blocks(&self.student.graph, &trainable, &taps, ends)?;
        if self.settings.recompute {
            tape.recompute(&taps);
        }
        // Values inside the network help the outputs along; they are no end of their own.
        let learns = |tape: &Tape| (0..trainable.len()).any(|i| tape.reaches(i));
        if !learns(&tape) || !self.can_learn()? {
            let fault = Fault::new("no gradient reaches a weight");
            let fault = match tape.stopped().first() {
                Some(place) => fault.hint(format!("gradients end at {place}")),
                None => fault.hint("the model has no trainable constant between its inputs and outputs"),
            };
            return Err(fault.at("training"));
        }
        let teacher = Teacher::new(self, &inside)?;
        let optimizer = Optimizer::new(&self.student.parameters);
        let kept = optimizer.values.clone();
        let mut state = State { optimizer, kept, best: None, epochs: Vec::new() };
        match &self.settings.checkpoint {
            Some(path) if path.exists() => state = checkpoint::read(path, &self.fingerprint, &state)?,
            _ => {
                let (held_out, metric) = self.judge(&state.kept, &teacher)?;
                if !held_out.is_finite() {
                    return Err(self.not_finite(&tape));
                }
                state.epochs.push(Epoch { loss: held_out, held_out, metric });
                (watcher.epoch)(0, &state.epochs[0], true);
            }
        }
        let (mut seconds, mut met) = (0.0, 0);
        while state.epochs.len() <= self.settings.epochs && !self.is_over(&state) {
            let started = Instant::now();
            let loss = self.epoch(&mut tape, &taps, &teacher, &mut state, watcher)?;
            seconds += started.elapsed().as_secs_f64();
            met += self.training.indices.len();
            let (held_out, metric) = self.judge(&state.optimizer.values, &teacher)?;
            let before = state.epochs[state.best.unwrap_or(0)].held_out;
            let better = held_out < before;
            let number = state.epochs.len();
            if better {
                state.best = Some(number);
                state.kept = state.optimizer.values.clone();
            }
            state.epochs.push(Epoch { loss, held_out, metric });
            if let Some(path) = &self.settings.checkpoint {
                checkpoint::write(path, &self.fingerprint, &state)?;
            }
            (watcher.epoch)(number, &state.epochs[number], better);
        }
        let speed = if seconds > 0.0 { met as f64 / seconds } else { 0.0 };
        Ok(Outcome { state, speed, stopped: tape.stopped().to_vec() })
    }

    /// Where the starting point gives numbers that are not finite on the held-out samples.
    fn not_finite(&self, tape: &Tape) -> Error {
        let broken = |&index: &usize| -> Option<String> {
            tape.first_not_finite(&self.held_out.samples.load(index).ok()?).map(String::from)
        };
        let place = self.held_out.indices.iter().find_map(broken).unwrap_or_else(|| "the teacher".into());
        Fault::new("the loss of the starting point is not a finite number").at(place)
    }

    /// Has there been no better epoch for too long, or is it to end early?
    fn is_over(&self, state: &State) -> bool {
        state.epochs.len() > state.best.unwrap_or(0) + self.settings.patience || budget::is_ending()
    }

    /// One time over the samples; the mean loss.
    fn epoch(
        &self,
        tape: &mut Tape,
        taps: &[ValueId],
        teacher: &Teacher,
        state: &mut State,
        watcher: &Watcher,
    ) -> Result<f64, Error> {
        let parameters = &self.student.parameters;
        let trained: Vec<usize> = (0..parameters.len()).filter(|&i| parameters[i].trained).collect();
        let count = self.training.indices.len();
        let order = shuffled(count, self.settings.seed.wrapping_add(state.epochs.len() as u64));
        let steps = count.div_ceil(self.settings.batch) as u64;
        let total = steps * self.settings.epochs as u64;
        let mut sum = 0.0;
        let mut done = 0;
        for batch in order.chunks(self.settings.batch) {
            for (number, &index) in trained.iter().enumerate() {
                tape.set(number, state.optimizer.values[index].clone());
            }
            let (loss, found) = self.batch(tape, taps, teacher, batch)?;
            let mut gradients = vec![None; parameters.len()];
            trained.iter().zip(found).for_each(|(&index, g)| gradients[index] = g);
            let frozen = self.settings.freeze_after.is_some_and(|n| state.optimizer.step >= n);
            let rates = self.settings.rates;
            let followed = state.optimizer.follow(parameters, &gradients, rates, total, frozen);
            followed.map_err(|f| f.at("training"))?;
            sum += loss;
            done += batch.len();
            (watcher.batch)(done, count);
        }
        Ok(sum / count.max(1) as f64)
    }

    /// The summed loss of a batch and the gradient of its mean.
    fn batch(
        &self,
        tape: &Tape,
        taps: &[ValueId],
        teacher: &Teacher,
        batch: &[usize],
    ) -> Result<(f64, Vec<Option<Array>>), Error> {
        let mut total = 0.0;
        let mut sums: Vec<Option<Array>> = Vec::new();
        for some in batch.chunks(rayon::current_num_threads().max(1)) {
            let found: Vec<_> = some
                .par_iter()
                .map(|&at| self.sample(tape, taps, teacher, at, 1.0 / batch.len() as f32))
                .collect::<Result<_, Error>>()?;
            for (loss, gradients) in found {
                total += loss;
                sums.resize(gradients.len(), None);
                for (sum, gradient) in sums.iter_mut().zip(gradients) {
                    if let Some(gradient) = gradient {
                        accumulate(sum, gradient).map_err(|f| f.at("training"))?;
                    }
                }
            }
        }
        Ok((total, sums))
    }

    fn sample(
        &self,
        tape: &Tape,
        taps: &[ValueId],
        teacher: &Teacher,
        at: usize,
        share: f32,
    ) -> Result<(f64, Vec<Option<Array>>), Error> {
        let inputs = self.training.samples.load(self.training.indices[at])?;
        let wanted = teacher.answer(0, at, &inputs)?;
        let record = tape.forward(&inputs)?;
        let found: Vec<Option<&Array>> = taps.iter().map(|&v| tape.value(&record, v)).collect();
        let outputs = teacher.outputs;
        let lost = self.settings.loss.of(&found[..outputs], &wanted[..outputs], self.training.labels(at));
        let (mut loss, mut seeds) = lost.map_err(|f| f.at("the loss"))?;
        let inside = loss::inside(&found[outputs..], &wanted[outputs..], self.settings.features);
        let (more, gradients) = inside.map_err(|f| f.at("the loss inside the network"))?;
        loss += more;
        seeds.extend(gradients);
        if !loss.is_finite() {
            let place = tape.first_not_finite(&inputs).unwrap_or("the loss").to_string();
            let fault = Fault::new("the loss is not a finite number");
            return Err(fault.hint("a smaller --lr may help").at(place));
        }
        let scaled = |(&tap, seed): (&ValueId, Option<Array>)| {
            let seed = seed?;
            let values = seed.slice::<f32>().ok()?.iter().map(|g| g * share).collect();
            Some((tap, Array::new(seed.shape(), values).ok()?))
        };
        let seeds: Vec<(ValueId, Array)> = taps.iter().zip(seeds).filter_map(scaled).collect();
        Ok((loss, tape.backward(record, seeds)?))
    }

    /// Loss and metric of the integer model on the held-out samples.
    fn judge(&self, values: &[Array], teacher: &Teacher) -> Result<(f64, f64), Error> {
        let graph = self.student.export(values)?;
        let program = Program::with_numerics(&graph, Numerics::Ort)?;
        let taps = loss::taps(&graph);
        let one = |at: usize| -> Result<(f64, [f64; 2]), Error> {
            let inputs = self.held_out.samples.load(self.held_out.indices[at])?;
            let wanted = teacher.answer(1, at, &inputs)?;
            let found = program.values(&inputs, &taps)?;
            let found: Vec<Option<&Array>> = found.iter().map(Option::as_ref).collect();
            let labels = self.held_out.labels(at);
            let loss = match self.settings.loss {
                Loss::CrossEntropy | Loss::Both if labels.is_none() => Loss::Distill,
                loss => loss,
            };
            let (loss, _) = loss.of(&found, &wanted, labels).map_err(|f| f.at("the held-out loss"))?;
            Ok((loss, metric(&found, &wanted, labels)))
        };
        let count = self.held_out.indices.len();
        let rows: Vec<_> = (0..count).into_par_iter().map(one).collect::<Result<_, Error>>()?;
        let loss: f64 = rows.iter().map(|r| r.0).sum();
        let [part, whole] = rows.iter().fold([0.0; 2], |[a, b], (_, [c, d])| [a + c, b + d]);
        Ok((loss / count.max(1) as f64, part / f64::max(whole, 1e-12)))
    }
}

/// The numbers below `count` in an order that the seed decides.
fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut state = seed;
    for i in (1..count).rev() {
        order.swap(i, (split_mix_64(&mut state) % (i as u64 + 1)) as usize);
    }
    order
}
