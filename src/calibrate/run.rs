//! Running the graph over the samples, with observers on the values that matter.

use rayon::prelude::*;

use super::observer::Observers;
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
    let empty = || (Observers::watching(watched.iter().copied()), None);
    let merge = |(mut a, p): (Observers<ValueId>, Option<(usize, Error)>),
                 (b, q): (_, Option<(usize, Error)>)| {
        a.merge(b);
        let first = [p, q].into_iter().flatten().min_by_key(|(index, _)| *index);
        (a, first)
    };
    // One table of observers for each thread's share, not for each sample: tables are large.
    let share = indices.len().div_ceil(rayon::current_num_threads().max(1)).max(1);
    let (seen, problem) = indices
        .par_chunks(share)
        .map(|chunk| {
            let (mut table, mut problem) = empty();
            for &index in chunk {
                let inputs = samples.load(index)?;
                let (_, missed) = program.run_as_far_as_possible(&inputs, &mut |id, array| {
                    if let Array::F32(values) = array
                        && let Some(values) = values.as_slice()
                    {
                        table.observe(id, values, index);
                    }
                })?;
                problem = problem.or(missed.map(|error| (index, error)));
                progress();
            }
            Ok((table, problem))
        })
        .collect::<Result<Vec<_>, Error>>()?
        .into_iter()
        .fold(empty(), merge);
    if indices.is_empty() {
        return Err(Fault::new("there are no samples").at("calibration"));
    }
    Ok(Calibration { seen, problem: problem.map(|(_, error)| error) })
}
