//! Running the graph over the samples, with observers on the values that matter.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rayon::prelude::*;

use super::observer::{Observer, Observers};
use super::read::Samples;
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Array, ValueId};

/// Told after each sample; called from several threads.
pub type Progress<'a> = &'a (dyn Fn() + Sync);

/// What the samples showed.
pub struct Calibration {
    /// Distribution of each watched value.
    pub seen: Observers<ValueId>,
    /// Why a part of the graph could not be run, if so.
    pub problem: Option<Error>,
}

/// A tensor of so many elements is counted by its thread alone, and then added; a smaller one is not worth that.
const LARGE: usize = 1 << 13;

/// Interprets `program` on every sample, whole samples in parallel. The result does not depend on their order.
pub fn calibrate(
    program: &Program,
    watched: &[ValueId],
    samples: &Samples,
    progress: Progress,
) -> Result<Calibration, Error> {
    let indices: Vec<usize> = (0..samples.len()).collect();
    calibrate_on(program, watched, samples, &indices, progress)
}

/// The same on the samples with these indices.
pub fn calibrate_on(
    program: &Program,
    watched: &[ValueId],
    samples: &Samples,
    indices: &[usize],
    progress: Progress,
) -> Result<Calibration, Error> {
    // One table for all threads: tables are large, and adding to one of a value takes little of the time of a run.
    let table: BTreeMap<ValueId, Mutex<Observer>> =
        watched.iter().map(|&id| (id, Mutex::default())).collect();
    let lost = || Fault::new("a thread failed").at("calibration");
    let share = indices.len().div_ceil(rayon::current_num_threads().max(1)).max(1);
    let problems = indices.par_chunks(share).map(|chunk| {
        let (mut own, mut problem, mut failed) = (Observer::default(), None, false);
        for &index in chunk {
            let inputs = samples.load(index)?;
            let (_, missed) = program.run_as_far_as_possible(&inputs, &mut |id, array| {
                let (Array::F32(values), Some(shared)) = (array, table.get(&id)) else { return };
                let Some(values) = values.as_slice() else { return };
                if values.len() >= LARGE {
                    own.clear();
                    own.observe(values, index);
                }
                match shared.lock() {
                    Ok(mut shared) if values.len() >= LARGE => shared.merge(&own),
                    Ok(mut shared) => shared.observe(values, index),
                    Err(_) => failed = true,
                }
            })?;
            if failed {
                return Err(lost());
            }
            problem = problem.or(missed.map(|error| (index, error)));
            progress();
        }
        Ok(problem)
    });
    let problems = problems.collect::<Result<Vec<_>, Error>>()?;
    let problem = problems.into_iter().flatten().min_by_key(|(index, _)| *index);
    let mut seen = Observers::watching([]);
    for (id, observer) in table {
        seen.put(id, observer.into_inner().map_err(|_| lost())?);
    }
    if indices.is_empty() {
        return Err(Fault::new("there are no samples").at("calibration"));
    }
    Ok(Calibration { seen, problem: problem.map(|(_, error)| error) })
}
