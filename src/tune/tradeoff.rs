//! Time against noise: several ways to quantize are tried, each on the whole quantized graph.
//!
//! What a value alone does to the outputs is a guide, not the truth: errors of many values add up where they are loud in
//! the same samples, and a few samples say little about rare ones. So the guide makes proposals, which differ in how much
//! they clip and in how dear noise is to them, and what they really do to the outputs decides.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::goal::Exam;
use super::sensitivity::Measured;
use super::{Judge, Step, sqnr_db};
use crate::budget;
use crate::calibrate::threshold::Choice;
use crate::error::Error;
use crate::ir::{Graph, ValueId};
use crate::quantize::placement::{Noise, Placement};
use crate::quantize::{Plan, Target, insert};

/// The ranges of values.
pub type Choices = BTreeMap<ValueId, Choice>;

/// Share of the widest range's noise that another must have no more than, value by value: from no clipping to much.
const CLIPPING: [f64; 3] = [0.0, 0.5, 0.9];
/// Samples to come may be louder than those that were judged: noise of clipped values counts for more by this factor.
const CLIPPED: f64 = 1.05;
/// What rounding weights for what they compute leaves of the noise: between a quarter and four fifths in most models.
const AFTER_ROUNDING: f64 = 0.65;
/// Less than this share of the cost is not worth clipping.
const WORTHWHILE: f64 = 0.995;
/// How many times dearer than the target says noise is made, to see whether that pays.
const DEARER: [f64; 3] = [3.0, 10.0, 30.0];
/// Less than this share of the cost is not worth a float operator between integer ones.
const BROKEN: f64 = 0.98;
/// More than this share of the best one's cost on a quarter of the samples is given up.
const LOST: f64 = 1.05;

/// To keep a bound, noise is made three times dearer at most this often: then hardly anything is left in integers.
const STEPS: usize = 12;
/// How often the gap between too cheap and dear enough is halved after that.
const HALVINGS: usize = 2;
/// How dear noise is at the points of the curve.
const CURVE: [f64; 8] = [0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0];

/// What noise costs, the noise of values, and their ranges.
pub type Proposal<'a> = (f64, &'a Noise, &'a Choices);

/// A way to quantize, and what it gives.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Point {
    /// How many times dearer noise is than the target says; at 1 it is what the search starts from.
    pub dearer: f64,
    /// Nodes in integers.
    pub integer: usize,
    /// Estimated time as a share of the float time.
    pub time: f64,
    /// SQNR of the outputs in dB, before weights are rounded anew; `None` if they lose nothing.
    pub sqnr_db: Option<f64>,
}

/// A way to quantize and what it gives.
struct Attempt {
    plan: Plan,
    graph: Graph,
    share: f64,
    dearer: f64,
    /// Noise over signal at the outputs, on a quarter of the samples that judge and on all of them.
    quarter: f64,
    noise: f64,
    /// Time and noise in the currency of the target: shares of the float time.
    cost: f64,
}

impl Attempt {
    /// Gives its place to another one that costs less than this share of it. What did not win is returned.
    fn meets(&mut self, other: Self, worthwhile: f64) -> Self {
        match other.cost < self.cost * worthwhile {
            true => std::mem::replace(self, other),
            false => other,
        }
    }
}

/// What a placement with this noise over signal at the outputs costs, as a share of the float time.
pub fn price(target: &Target, placement: &Placement, noise: f64) -> f64 {
    placement.time + target.size_weight * placement.float_weights + target.noise_weight * noise
}

/// What came of trying to be better than the best.
enum Rival {
    /// It would be the same.
    Same,
    /// It is much worse on few samples.
    Lost,
    /// It may be better.
    Open(Box<Attempt>),
}

/// What is tried, and on what.
pub struct Search<'a> {
    /// The float graph.
    pub graph: &'a Graph,
    /// What judges.
    pub judge: &'a Judge<'a>,
    /// What each value alone does.
    pub measured: &'a Measured,
    /// Ranges of values that were not measured.
    pub own: &'a Choices,
    /// What noise and float weights cost.
    pub target: &'a Target,
    /// Will weights be rounded anew after that, for what they compute?
    pub rounds: bool,
    /// The bound that the result must keep, if there is one.
    pub exam: Option<&'a Exam<'a>>,
    /// Makes a plan.
    pub solve: &'a dyn Fn(Proposal) -> Result<Plan, Error>,
}

impl Search<'_> {
    /// The plans that cost least of those that were tried, at most so many, the best one first, and how each was arrived
    /// at. Where there is a bound, the one that costs least of those that keep it.
    pub fn run(&self, most: usize) -> Result<Vec<(Plan, Step)>, Error> {
        let started = Instant::now();
        let mut best = self.attempt(CLIPPING[0], 1.0)?;
        let (before, mut others) = (best.noise, Vec::new());
        for &share in CLIPPING[1..].iter().take_while(|_| !budget::is_ending()) {
            if let Rival::Open(other) = self.rival(&best, share, 1.0)? {
                others.push(best.meets(*other, WORTHWHILE));
            }
        }
        for dearer in DEARER.into_iter().take_while(|_| !budget::is_ending()) {
            let worthwhile = if best.dearer > 1.0 { 1.0 } else { BROKEN };
            match self.rival(&best, best.share, dearer)? {
                Rival::Open(other) => others.push(best.meets(*other, worthwhile)),
                Rival::Same => {}
                // What is dearer still costs even more.
                Rival::Lost => break,
            }
        }
        if let Some(exam) = self.exam {
            best = self.keep(exam, best)?;
            others.clear();
        }
        others.sort_by(|a, b| a.cost.total_cmp(&b.cost));
        let mut found = vec![best];
        for other in others {
            if found.len() < most && !found.iter().any(|known| known.plan.is_like(&other.plan)) {
                found.push(other);
            }
        }
        let told = |Attempt { plan, noise, .. }| {
            (plan, Step::new("trade-off", (before, noise), noise != before, started))
        };
        Ok(found.into_iter().map(told).collect())
    }

    /// What comes out where noise is cheap, and where it is dear.
    pub fn curve(&self) -> Result<Vec<Point>, Error> {
        let point = |dearer: f64| {
            let Attempt { plan: Plan { placement, .. }, noise, .. } = self.attempt(CLIPPING[0], dearer)?;
            let (integer, sqnr_db) = (placement.integer.len(), sqnr_db(noise));
            Ok(Point { dearer, integer, time: placement.time, sqnr_db })
        };
        CURVE.iter().map(|&dearer| point(dearer)).collect()
    }

    fn attempt(&self, share: f64, dearer: f64) -> Result<Attempt, Error> {
        let open = self.open(share, dearer)?;
        let (quarter, noise) = self.noise(&open, &|_| false)?;
        let noise = noise.unwrap_or_default();
        Ok(Attempt { quarter, noise, cost: self.cost(&open, noise), ..open })
    }

    /// An attempt that is other than the best and may be better.
    fn rival(&self, best: &Attempt, share: f64, dearer: f64) -> Result<Rival, Error> {
        let open = self.open(share, dearer)?;
        if open.plan.is_like(&best.plan) {
            return Ok(Rival::Same);
        }
        let lost = self.cost(best, best.quarter) * LOST;
        let (quarter, noise) = self.noise(&open, &|quarter| self.cost(&open, quarter) > lost)?;
        Ok(match noise {
            None => Rival::Lost,
            Some(noise) => {
                let cost = self.cost(&open, noise);
                Rival::Open(Box::new(Attempt { quarter, noise, cost, ..open }))
            }
        })
    }

    /// An attempt before it is judged.
    fn open(&self, share: f64, dearer: f64) -> Result<Attempt, Error> {
        let (picked, noise) = self.measured.pick(share);
        let mut choices = self.own.clone();
        choices.extend(picked);
        let plan = (self.solve)((self.target.noise_weight * dearer, &noise, &choices))?;
        let mut graph = self.graph.clone();
        insert::insert(&mut graph, &plan);
        Ok(Attempt { plan, graph, share, dearer, quarter: 0.0, noise: 0.0, cost: 0.0 })
    }

    /// Noise over signal on a quarter of the samples, and on all unless it is to be given up.
    fn noise(&self, attempt: &Attempt, give_up: &dyn Fn(f64) -> bool) -> Result<(f64, Option<f64>), Error> {
        if attempt.plan.activations.is_empty() {
            return Ok((0.0, Some(0.0)));
        }
        self.judge.race(&attempt.graph, give_up)
    }

    fn cost(&self, attempt: &Attempt, noise: f64) -> f64 {
        let counted = if attempt.share > 0.0 { noise * CLIPPED } else { noise };
        let left = if self.rounds { AFTER_ROUNDING } else { 1.0 };
        price(self.target, &attempt.plan.placement, left * counted)
    }

    /// The fastest attempt found that keeps the bound: noise is made dearer until it does, then as cheap as it may be.
    fn keep(&self, exam: &Exam, best: Attempt) -> Result<Attempt, Error> {
        let passes = |a: &Attempt| Ok::<_, Error>(a.plan.activations.is_empty() || exam.mark(&a.graph)?.met);
        if passes(&best)? {
            return Ok(best);
        }
        let (share, mut cheap) = (best.share, best.dearer);
        let mut kept = best;
        for _ in (0..STEPS).take_while(|_| !budget::is_ending()) {
            kept = self.attempt(share, kept.dearer * 3.0)?;
            if passes(&kept)? {
                break;
            }
            cheap = kept.dearer;
        }
        for _ in (0..HALVINGS).take_while(|_| !budget::is_ending()) {
            let between = self.attempt(share, libm::sqrt(cheap * kept.dearer))?;
            match passes(&between)? {
                true if between.plan.placement.time <= kept.plan.placement.time => kept = between,
                _ => cheap = between.dearer,
            }
        }
        Ok(kept)
    }
}
