//! Running the graph over the samples, with observers on the values that matter.

use std::collections::BTreeMap;
use std::sync::Mutex;

use rayon::prelude::*;

use super::observer::{Observer, Observers};
use super::read::Samples;
use crate::error::{Error, Fault};
use crate::interpret::{Program, Watch};
use crate::ir::{Array, Extent, ValueId};

/// Elements of a value that are counted over all samples, about: enough to see one in a hundred thousand.
const COUNTED: usize = 1 << 20;
/// Least and most elements of one tensor that are counted.
const COUNTED_OF_EACH: (usize, usize) = (1 << 12, 1 << 16);

/// Told after each sample; called from several threads.
pub type Progress<'a> = &'a (dyn Fn() + Sync);

/// What the samples showed.
pub struct Calibration {
    /// Distribution of each watched value.
    pub seen: Observers<ValueId>,
    /// Why a part of the graph could not be run, if so.
    pub problem: Option<Error>,
}

/// Shows values of one thread's samples to the table of all.
struct Recorder<'a> {
    table: &'a BTreeMap<ValueId, Mutex<Observer>>,
    /// How many elements of a tensor are counted.
    most: usize,
    sample: usize,
    failed: bool,
}

impl Watch for Recorder<'_> {
    fn wants(&self, id: ValueId) -> bool {
        self.table.contains_key(&id)
    }

    fn see(&mut self, id: ValueId, value: &Array, extent: Option<Extent>) {
        let (Array::F32(values), Some(shared)) = (value, self.table.get(&id)) else { return };
        let Some(values) = values.as_slice() else { return };
        match shared.lock() {
            Ok(mut shared) => shared.observe(values, extent, self.sample, self.most),
            Err(_) => self.failed = true,
        }
    }
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
    // One table for all threads: tables are large, and adding to one of a value takes little of the time of a run.
    let table: BTreeMap<ValueId, Mutex<Observer>> =
        watched.iter().map(|&id| (id, Mutex::default())).collect();
    // All machines that share the samples count alike.
    let most = (COUNTED / samples.len().max(1)).clamp(COUNTED_OF_EACH.0, COUNTED_OF_EACH.1);
    let lost = || Fault::new("a thread failed").at("calibration");
    let share = indices.len().div_ceil(rayon::current_num_threads().max(1)).max(1);
    let problems = indices.par_chunks(share).map(|chunk| {
        let mut recorder = Recorder { table: &table, most, sample: 0, failed: false };
        let mut problem = None;
        for &index in chunk {
            let inputs = samples.load(index)?;
            recorder.sample = index;
            let (_, missed) = program.run_as_far_as_possible(&inputs, &mut recorder)?;
            if recorder.failed {
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
