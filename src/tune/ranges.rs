//! How much may be clipped: several sets of ranges are tried, each on the whole quantized graph.
//!
//! A value that is clipped alone does little harm, and rounds more finely. But what is clipped is loud in the same
//! samples for many values at once, so that their errors add up instead of averaging out, and samples to come may be
//! louder. Hence clipping must show that it pays, with all values quantized.

use std::collections::BTreeMap;
use std::time::Instant;

use super::sensitivity::Measured;
use super::{Judge, Step};
use crate::calibrate::threshold::Choice;
use crate::error::Error;
use crate::ir::{Graph, ValueId};
use crate::quantize::{Plan, insert};

/// The ranges of values.
pub type Choices = BTreeMap<ValueId, Choice>;

/// Share of the widest range's noise that another must have no more than, value by value: from no clipping to much.
const CLIPPING: [f64; 3] = [0.0, 0.5, LEAST_NOISE];
/// The share at which little more than noise itself decides.
pub const LEAST_NOISE: f64 = 0.9;
/// More clipping must bring the noise of the outputs below this share of what it is with less.
const WORTHWHILE: f64 = 0.95;

/// The plan with the ranges that serve the outputs best. `own` are the ranges of values that were not measured.
pub fn choose(
    graph: &Graph,
    judge: &Judge,
    measured: &Measured,
    own: &Choices,
    solve: impl Fn(&Choices) -> Result<Plan, Error>,
) -> Result<(Plan, Step), Error> {
    let started = Instant::now();
    let attempt = |share: f64| {
        let mut choices = own.clone();
        choices.extend(measured.pick(share).0);
        let plan = solve(&choices)?;
        let mut quantized = graph.clone();
        insert::insert(&mut quantized, &plan);
        let noise = if plan.activations.is_empty() { 0.0 } else { judge.noise(&quantized)? };
        Ok::<_, Error>((plan, noise))
    };
    let (mut plan, widest) = attempt(CLIPPING[0])?;
    let mut least = widest;
    for &share in &CLIPPING[1..] {
        let (other, noise) = attempt(share)?;
        if noise < least * WORTHWHILE {
            (plan, least) = (other, noise);
        }
    }
    Ok((plan, Step::new("clipping", (widest, least), least < widest, started)))
}
