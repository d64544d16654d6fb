//! What a model becomes after its passes have run: the static mode, and the choice between it and [the others](super::modes).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use super::Watch;
use super::fitting::{Fitted, Fitting, Plans};
use super::refine::Refine;
use super::table::{self, Known, interesting};
use crate::budget::{self, MayEndEarly};
use crate::calibrate::observer::Observers;
use crate::calibrate::read::Samples;
use crate::calibrate::run::{Calibration, calibrate};
use crate::calibrate::threshold::{Calibrator, Choice, Range, expected_error};
use crate::error::{Error, Fault};
use crate::interpret::{Program, node_label};
use crate::ir::{Graph, Model, NodeId, ValueId};
use crate::options::{Mode, Options, Tuning};
use crate::passes;
use crate::quantize::candidate::{Candidates, watched};
use crate::quantize::weight_only::{self, Stored};
use crate::quantize::{
    Plan, Target, insert,
    placement::{self, Noise},
    plan, weights,
};
use crate::report::Quantized;
use crate::tune::equalize::equalize;
use crate::tune::goal::{Exam, Goal};
use crate::tune::sensitivity::{Measured, Subject};
use crate::tune::shares::Shares;
use crate::tune::smooth::smooth;
use crate::tune::tradeoff::{Choices, Proposal, Search};
use crate::tune::{Judge, Step};

/// What a mode works with.
pub struct Job<'a> {
    /// The samples, if there are any.
    pub samples: Option<&'a Samples>,
    /// What is known of values without them.
    pub known: Option<&'a Known>,
    /// The bound that the result must keep, and samples held out of calibration to tell.
    pub held_out: Option<(Goal, Samples)>,
    /// What the result is for.
    pub target: &'a Target,
    /// What the user chose.
    pub options: &'a Options,
    /// May an interrupt end tuning with the best so far?
    pub may_end_early: bool,
    /// Told how far it is.
    pub watch: Watch<'a>,
}

/// A calibrated graph.
pub struct Prepared {
    /// Values whose loud channels were moved into the weights that read them.
    pub smoothed: Vec<String>,
    /// What the samples showed.
    pub calibration: Calibration,
    /// The range that suits each value by itself.
    pub choices: Choices,
    /// What could become integer.
    pub candidates: Candidates,
    /// Weights as far as they are quantized.
    pub weights: weights::Memo,
}

impl<'a> Job<'a> {
    /// Without knowledge of other tools, without a bound, and not to be ended early.
    pub fn new(
        samples: Option<&'a Samples>,
        target: &'a Target,
        options: &'a Options,
        watch: Watch<'a>,
    ) -> Self {
        Self { samples, known: None, held_out: None, target, options, may_end_early: false, watch }
    }

    /// Quantizes the model, whose main graph was `source` when it was read, in this mode.
    pub fn run(&self, source: &Graph, model: &mut Model, mode: Mode) -> Result<Quantized, Error> {
        let half = self.options.half(mode);
        match (mode, self.samples, half) {
            (Mode::Static, _, None) => Ok(self.integers(&mut model.graph)?.0),
            (Mode::Static, _, Some(half)) => {
                let (mut quantized, _) = self.integers(&mut model.graph)?;
                passes::infer(&mut model.graph);
                let rest = self.halve(model, &half)?;
                if quantized.nodes.is_empty() {
                    return Ok(rest);
                }
                quantized.warnings.extend(rest.warnings);
                Ok(quantized)
            }
            (_, _, Some(half)) => self.halve(model, &half),
            (Mode::Dynamic, samples, _) => self.dynamic(model, samples),
            _ => self.weights(source, model),
        }
    }

    /// The steps of tuning that can be taken: without samples none, and none that changes the graph if it is known what
    /// its values hold. Of ranges of other tools it is not known what clipping would cost.
    fn steps(&self) -> BTreeSet<Tuning> {
        let possible = |step: &Tuning| match (self.known, step) {
            (Some(_), Tuning::Equalization | Tuning::Smoothing) => false,
            (Some(Known::Ranges(_)), Tuning::TradeOff) => false,
            _ => self.samples.is_some(),
        };
        self.options.steps.iter().copied().filter(possible).collect()
    }

    fn calibrator(&self) -> Calibrator {
        table::calibrator(self.known, self.options.calibrator)
    }

    /// Calibrates: what the samples show of every value, and what could become integer.
    pub fn prepare(&self, graph: &mut Graph) -> Result<Prepared, Error> {
        let Self { target, options, watch, .. } = *self;
        let steps = self.steps();
        let smoothed = match self.samples.filter(|_| steps.contains(&Tuning::Smoothing)) {
            Some(samples) => smooth(graph, samples, target.form())?,
            None => Vec::new(),
        };
        let values = if steps.contains(&Tuning::TradeOff) { interesting(graph) } else { watched(graph) };
        let calibration = match (self.known, self.samples) {
            (Some(known), _) => {
                let seen = known.observers(graph, &values).map_err(|f| f.at("--table"))?;
                Calibration { seen, problem: None }
            }
            (None, Some(samples)) => {
                let done = AtomicUsize::new(0);
                let progress = || watch("calibrating", 1 + done.fetch_add(1, Relaxed), samples.len());
                calibrate(&Program::new(graph)?, &values, samples, &progress)?
            }
            (None, None) => return Err(Fault::new("there are no samples").at("--mode static")),
        };
        let choices = plan::choices(&calibration.seen, self.calibrator());
        let candidates = Candidates::of(graph, target, &options.filter, &calibration.seen);
        Ok(Prepared { smoothed, calibration, choices, candidates, weights: weights::Memo::default() })
    }

    /// What each value and each weight alone does to the outputs; exactly, or as far as it takes to decide.
    pub fn measure(
        &self,
        graph: &Graph,
        ready: &Prepared,
        judge: &Judge,
        exact: bool,
    ) -> Result<Measured, Error> {
        let subject = Subject {
            graph,
            candidates: &ready.candidates.integer,
            seen: &ready.calibration.seen,
            calibrator: self.calibrator(),
            target: self.target,
            judge,
            weights: &ready.weights,
            followed: self.options.budget.followed,
            exact,
        };
        subject.measure(&ready.choices, &|done, total| (self.watch)("measuring", done, total))
    }

    /// The plan for what noise costs, the noise of values, and their ranges.
    pub fn solve(
        &self,
        graph: &Graph,
        ready: &Prepared,
        (weight, noise, choices): (f64, &Noise, &Choices),
    ) -> Result<Plan, Error> {
        let target = self.target;
        let seen = &ready.calibration.seen;
        let choices = &self.pinned(graph, seen, choices);
        let placement = placement::place(graph, target, weight, ready.candidates.clone(), seen, noise);
        let mut plan =
            Plan::solve(graph, placement, seen, choices, self.calibrator(), (target, &ready.weights))
                .map_err(|f| f.at("solving scales and zero points"))?;
        let at = |f: Fault| f.at("storage types");
        self.widen(graph, &mut plan).map_err(at)?;
        target.storage.apply(graph, &mut plan, (target, &ready.weights)).map_err(at)?;
        Ok(plan)
    }

    /// Gives more bits to what the user has decided to have them.
    fn widen(&self, graph: &Graph, plan: &mut Plan) -> Result<(), Fault> {
        let (pins, storage, mut wide) = (&self.options.pins, self.target.storage, Vec::new());
        for &id in plan.placement.integer.keys().filter(|_| !pins.nodes.is_empty()) {
            let label = node_label(graph, id);
            if storage.has_four_bits() && pins.is_wide(&label) {
                plan.wide_weights.insert(id);
            }
            match pins.activation(&label) {
                Some(wanted) if storage.wider == Some(wanted) => wide.push(id),
                Some(wanted) if storage.activation == wanted => {}
                Some(wanted) => {
                    let Target { name, .. } = self.target;
                    crate::fail!("{name} has no {wanted} beside {} for `{label}`", storage.activation);
                }
                None => {}
            }
        }
        plan.widen(wide, self.target.wider.as_ref().map_or(1.0, |wider| wider.time));
        Ok(())
    }

    /// The ranges, with those that the user has decided in place of calibrated ones.
    fn pinned(&self, graph: &Graph, seen: &Observers<ValueId>, choices: &Choices) -> Choices {
        let mut choices = choices.clone();
        for (&value, choice) in choices.iter_mut().filter(|_| !self.options.pins.values.is_empty()) {
            let (Some([lo, hi]), Some(observer)) =
                (self.options.pins.range(graph.name(value)), seen.get(value))
            else {
                continue;
            };
            let mse = expected_error(&observer.histogram, lo, hi, 256);
            *choice = Choice { range: Range { lo, hi }, method: Calibrator::Given, mse };
        }
        choices
    }

    /// Equalizes the channels of neighbouring layers, if that brings the outputs closer.
    fn equalize(&self, graph: &mut Graph, samples: &Samples) -> Result<Option<Step>, Error> {
        let started = Instant::now();
        let mut other = graph.clone();
        if equalize(&mut other).map_err(|f| f.at("equalization"))? == 0 {
            return Ok(None);
        }
        let judge = Judge::new(graph, samples, self.options.budget.judging)?;
        let noise = |graph: &Graph| -> Result<f64, Error> {
            let mut graph = graph.clone();
            let plain = Options { steps: BTreeSet::new(), ..self.options.clone() };
            let job = Job { samples: Some(samples), held_out: None, options: &plain, ..*self };
            let ready = job.prepare(&mut graph)?;
            let (seen, choices) = (&ready.calibration.seen, &ready.choices);
            let plan =
                job.solve(&graph, &ready, (self.target.noise_weight, &plan::noise(seen, choices), choices))?;
            insert::insert(&mut graph, &plan);
            judge.noise(&graph)
        };
        let (before, after) = (noise(graph)?, noise(&other)?);
        let kept = after < before;
        if kept {
            *graph = other;
        }
        Ok(Some(Step::new("equalization", (before, if kept { after } else { before }), kept, started)))
    }

    /// Stores in integers what float operators read; in recurrent layers, whose states take every error along, only if the
    /// outputs do not lose more than is gained. Without a judge that is not asked.
    pub fn store_beside(
        &self,
        graph: &mut Graph,
        recurrent: &BTreeMap<NodeId, f64>,
        judge: Option<&Judge>,
    ) -> Result<Stored, Error> {
        let store = |graph: &mut Graph, recurrent: &BTreeMap<NodeId, f64>| {
            weight_only::quantize_beside(graph, &self.options.filter, recurrent).map_err(|f| f.at("weights"))
        };
        let Some(judge) = judge.filter(|_| !recurrent.is_empty()) else { return store(graph, recurrent) };
        let mut small = graph.clone();
        let stored = store(&mut small, recurrent)?;
        let none = store(graph, &BTreeMap::new())?;
        let lost = self.target.noise_weight * (judge.noise(&small)? - judge.noise(graph)?);
        if lost < recurrent.values().sum() {
            *graph = small;
            return Ok(stored);
        }
        Ok(none)
    }

    /// Do weights have fewer than eight bits?
    pub fn is_narrow(&self) -> bool {
        self.target.weight_limit < weights::FULL
    }

    /// The constants of a plan in the types that the target stores.
    pub fn solve_constants(&self, graph: &Graph, plan: &mut Plan, ready: &Prepared) -> Result<(), Error> {
        let target = self.target;
        let solved = target.storage.constants(graph, plan, (target, &ready.weights));
        solved.map_err(|f| f.at("storage types"))
    }

    /// The plans worth fitting weights for. Without a judge there is one.
    fn plans(
        &self,
        graph: &Graph,
        ready: &Prepared,
        judge: Option<&Judge>,
        exam: Option<&Exam>,
    ) -> Result<Plans, Error> {
        let Some(judge) = judge else {
            let noise = match self.target.storage.is_wide() {
                true => Noise::default(),
                false => plan::noise(&ready.calibration.seen, &ready.choices),
            };
            let plan = self.solve(graph, ready, (self.target.noise_weight, &noise, &ready.choices))?;
            return Ok(Plans { plans: vec![(plan, None)], noise });
        };
        // Few steps lose much until weights are fitted to them: where activations stay float is decided without.
        let target =
            &Target { weight_limit: self.target.weight_limit.max(weights::FULL), ..self.target.clone() };
        let job = Job { held_out: None, target, ..*self };
        let measured = &match job.measure(graph, ready, judge, false) {
            Err(_) if budget::is_ending() => return self.plans(graph, ready, None, exam),
            measured => measured?,
        };
        let solve = |proposal: Proposal| job.solve(graph, ready, proposal);
        let (own, rounds) = (&ready.choices, self.steps().contains(&Tuning::Rounding));
        let search = Search { graph, judge, measured, own, target, rounds, exam, solve: &solve };
        let found = search.run(if rounds { self.options.budget.finalists } else { 1 })?;
        let mut plans: Vec<_> = found.into_iter().map(|(plan, step)| (plan, Some(step))).collect();
        if self.is_narrow() {
            plans.iter_mut().try_for_each(|(plan, _)| self.solve_constants(graph, plan, ready))?;
        }
        let noise = Noise { values: measured.values().collect(), weights: measured.weights().collect() };
        Ok(Plans { plans, noise })
    }

    /// Weights and activations in integers, where they pay. Also returns the float graph whose weights became integers.
    pub fn integers(&self, graph: &mut Graph) -> Result<(Quantized, Graph), Error> {
        let Self { target, options, watch, .. } = *self;
        let exam = self.held_out.as_ref().map(|(goal, held)| Exam::new(graph, held, goal)).transpose()?;
        let steps = self.steps();
        let equalizes = steps.contains(&Tuning::Equalization) && target.per_tensor;
        let equalized = match self.samples.filter(|_| equalizes) {
            Some(samples) => self.equalize(graph, samples)?,
            None => None,
        };
        let mut ready = self.prepare(graph)?;
        let _keeping = self.may_end_early.then(MayEndEarly::begin);
        let shares = Shares::of(self.samples.map_or(0, Samples::len), options.budget.judging);
        let judged = self.samples.filter(|_| !steps.is_empty());
        let judge = judged.map(|samples| Judge::on(graph, samples, &shares.judging)).transpose()?;
        // What is integer is not learned from single samples: where few are held out, all may judge that.
        let few = judged.filter(|s| shares.judging.len() < options.budget.judging.min(s.len()));
        let all = few.map(|samples| Judge::new(graph, samples, options.budget.judging)).transpose()?;
        let trades = all.as_ref().or(judge.as_ref()).filter(|_| steps.contains(&Tuning::TradeOff));
        let reference = graph.clone();
        let refine = judge.as_ref().zip(self.samples).map(|(judge, samples)| {
            let (reference, exam, shares) = (&reference, exam.as_ref(), &shares);
            Refine { reference, samples, shares, budget: options.budget, judge, target, exam, watch }
        });
        let fit = |job: &Job, ready: &Prepared, bound: Option<&Exam>| {
            let plans = job.plans(&reference, ready, trades, bound)?;
            let (reference, before) = (&reference, equalized.clone());
            let refine = refine.as_ref().map(|refine| Refine { target: job.target, ..*refine });
            let (steps, refine, exam) = (&steps, refine.as_ref(), exam.as_ref());
            Fitting { job, reference, ready, steps, before, trades, refine, exam }.best(plans)
        };
        // More bits cost less than float: a bound is kept by them, if it can be.
        let wide = target.widened();
        let mut fitted = fit(self, &ready, exam.as_ref().filter(|_| wide.is_none()))?;
        if let (Some(exam), Some(target)) = (&exam, &wide)
            && !budget::is_ending()
            && !exam.mark(&fitted.graph)?.met
        {
            ready.candidates = Candidates::of(graph, target, &options.filter, &ready.calibration.seen);
            fitted = fit(&Job { held_out: None, target, ..*self }, &ready, Some(exam))?;
        }
        let Fitted { plan, graph: fitted, mut quantized, .. } = fitted;
        *graph = fitted;
        quantized.smoothed = ready.smoothed;
        quantized.warnings.extend(options.pins.idle(&reference));
        if let Some(refine) = refine.filter(|_| {
            steps.contains(&Tuning::BlockTraining) && !quantized.nodes.is_empty() && !budget::is_ending()
        }) {
            refine.train(graph, &mut quantized)?;
        }
        target.storage.store(graph, &plan).map_err(|f| f.at("storage types"))?;
        quantized.mark = exam.map(|exam| exam.mark(graph)).transpose()?;
        quantized.ended_early = budget::is_ending();
        Ok((quantized, reference))
    }
}
