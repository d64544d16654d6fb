//! A bound that the result must keep on samples that took no part in making it.

use rayon::prelude::*;
use serde::Serialize;

use crate::calibrate::read::Samples;
use crate::compare::accuracy::{self, Accuracy, Best};
use crate::compare::closeness;
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Array, Graph};

/// What quantization may do to the outputs.
#[derive(Debug, Clone, PartialEq)]
pub enum Goal {
    /// Every float output has at least this signal-to-noise ratio, in dB.
    Sqnr(f64),
    /// The best class of the first output may be another in so many points of all rows.
    Changed(f64),
    /// Top-1 of the first output may fall by so many points; with the labels of each sample.
    Drop(f64, Vec<Vec<usize>>),
}

/// How a graph did.
#[derive(Debug, Clone, Serialize)]
pub struct Mark {
    /// What was measured, in words, with its unit.
    pub what: &'static str,
    /// The bound: the least SQNR, or the most points.
    pub bound: f64,
    /// What was reached; `None` where nothing differs.
    pub reached: Option<f64>,
    /// 95 % interval of `reached` where it is a proportion (Newcombe's for paired ones; Wilson's).
    pub interval: Option<(f64, f64)>,
    /// Is the bound kept?
    pub met: bool,
    /// On how many samples.
    pub samples: usize,
}

/// The samples that were held out, and what the float graph makes of them.
pub struct Exam<'a> {
    goal: &'a Goal,
    samples: &'a Samples,
    names: Vec<String>,
    wanted: Vec<Vec<Option<Array>>>,
}

type Answer = (Vec<Option<closeness::Sums>>, [Best; 2]);

impl<'a> Exam<'a> {
    /// Runs the float graph.
    pub fn new(reference: &Graph, samples: &'a Samples, goal: &'a Goal) -> Result<Self, Error> {
        let program = Program::new(reference)?;
        let run = |i| Ok(program.run_unwatched(&samples.load(i)?)?.0);
        let wanted = (0..samples.len()).into_par_iter().map(run).collect::<Result<_, Error>>()?;
        let names = reference.outputs.iter().map(|&v| reference.name(v).to_string()).collect();
        Ok(Self { goal, samples, names, wanted })
    }

    /// How a graph that was made from the float graph does.
    pub fn mark(&self, quantized: &Graph) -> Result<Mark, Error> {
        let program = Program::new(quantized)?;
        let answer = |(i, wanted): (usize, &Vec<Option<Array>>)| {
            let (found, _) = program.run_unwatched(&self.samples.load(i)?)?;
            let best = |side: &[Option<Array>]| match (self.goal, side.first()) {
                (Goal::Drop(..), Some(Some(array))) => accuracy::best(array).map_err(|f| f.at("--max-drop")),
                (Goal::Drop(..), _) => Err(Fault::new("there is no first output").at("--max-drop")),
                _ => Ok(Best::new()),
            };
            Ok((closeness::of_sample((wanted, &found)), [best(wanted)?, best(&found)?]))
        };
        let answers =
            self.wanted.par_iter().enumerate().map(answer).collect::<Result<Vec<Answer>, Error>>()?;
        self.judge(answers)
    }

    /// Puts `before` back if it keeps the bound and `graph`, which was made from it, does not; tells whether it did.
    pub fn restore(&self, graph: &mut Graph, before: Graph) -> Result<bool, Error> {
        let broken = !self.mark(graph)?.met && self.mark(&before)?.met;
        if broken {
            *graph = before;
        }
        Ok(broken)
    }

    fn judge(&self, answers: Vec<Answer>) -> Result<Mark, Error> {
        let (sums, bests): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        let outputs = closeness::total(&self.names, &sums);
        let samples = self.wanted.len();
        let broken = outputs.iter().any(|o| o.bad_samples > 0);
        Ok(match self.goal {
            Goal::Sqnr(bound) => {
                let worst = outputs.iter().filter(|o| o.float).filter_map(|o| o.sqnr_db).reduce(f64::min);
                let met = !broken && worst.is_none_or(|db| db >= *bound);
                Mark { what: "dB SQNR", bound: *bound, reached: worst, interval: None, met, samples }
            }
            Goal::Changed(bound) => {
                let Some(first) = outputs.first().filter(|o| o.rows > 0) else {
                    let fault = Fault::new("the first output has no scores by class");
                    return Err(fault.hint("--min-sqnr bounds outputs of any kind").at("--max-drop"));
                };
                let (rows, changed) = (first.rows as f64, (first.rows - first.agreeing) as f64);
                let (low, high) = accuracy::wilson(changed, rows);
                let points = 100.0 * changed / rows;
                Mark {
                    what: "points of rows with another best class",
                    bound: *bound,
                    reached: Some(points),
                    interval: Some((100.0 * low, 100.0 * high)),
                    met: !broken && points <= *bound,
                    samples,
                }
            }
            Goal::Drop(bound, labels) => {
                let side = |model: usize| -> Best { bests.iter().flat_map(|b| b[model].clone()).collect() };
                let labels: Vec<usize> = labels.iter().flatten().copied().collect();
                let name = self.names.first().map_or("", String::as_str);
                let found = Accuracy::of(name, [&side(0), &side(1)], &labels);
                let found = found.map_err(|f| f.at("--labels"))?;
                Mark {
                    what: "points of top-1 lost",
                    bound: *bound,
                    reached: Some(found.drop),
                    interval: Some(found.interval),
                    met: !broken && found.drop <= *bound,
                    samples,
                }
            }
        })
    }
}

impl Mark {
    /// One line: the bound, what was reached, and on what.
    pub fn summary(&self) -> String {
        let reached = self.reached.map_or_else(|| "equal".into(), |r| format!("{r:.2}"));
        let interval = self.interval.map_or(String::new(), |(l, h)| format!(" ({l:.2} to {h:.2})"));
        let verdict = if self.met { "kept" } else { "missed" };
        let Self { what, bound, samples, .. } = self;
        format!("bound {bound} {what}: {verdict}, {reached}{interval} on {samples} held-out samples")
    }
}
