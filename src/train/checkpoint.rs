//! The state between two epochs, in a file from which training goes on as if it had never stopped.
//!
//! Little-endian throughout: a mark, the fingerprint of the run, then counts and numbers as their bits, so that nothing
//! is lost on the way.

use std::path::Path;

use super::optimizer::Optimizer;
use super::session::{Epoch, State};
use crate::error::{Error, Fault};
use crate::ir::Array;
use crate::onnx::write_atomically;

const MARK: &[u8; 8] = b"qonnxtr1";

#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn real(&mut self, value: f64) {
        self.number(value.to_bits());
    }

    fn reals(&mut self, values: &[f32]) {
        self.number(values.len() as u64);
        values.iter().for_each(|v| self.0.extend_from_slice(&v.to_le_bytes()));
    }

    fn arrays(&mut self, arrays: &[Array]) -> Result<(), Fault> {
        arrays.iter().try_for_each(|a| a.slice::<f32>().map(|values| self.reals(values)))
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let (head, rest) = self.0.split_at_checked(count).ok_or("the file is cut short")?;
        self.0 = rest;
        Ok(head)
    }

    fn number(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().unwrap_or_default()))
    }

    fn real(&mut self) -> Result<f64, Fault> {
        self.number().map(f64::from_bits)
    }

    fn reals(&mut self) -> Result<Vec<f32>, Fault> {
        let count = self.number()?;
        let bytes =
            count.checked_mul(4).and_then(|n| usize::try_from(n).ok()).ok_or("a count is too large")?;
        let real = |c: &[u8]| f32::from_le_bytes(c.try_into().unwrap_or_default());
        Ok(self.take(bytes)?.chunks_exact(4).map(real).collect())
    }

    /// Arrays with the shapes of others.
    fn arrays(&mut self, like: &[Array]) -> Result<Vec<Array>, Fault> {
        like.iter().map(|a| Array::new(a.shape(), self.reals()?)).collect()
    }
}

/// Writes the state of a run with this fingerprint.
pub fn write(path: &Path, fingerprint: &str, state: &State) -> Result<(), Error> {
    let mut out = Writer(MARK.to_vec());
    out.number(fingerprint.len() as u64);
    out.0.extend_from_slice(fingerprint.as_bytes());
    out.number(state.optimizer.step);
    out.number(state.best.map_or(0, |b| b as u64 + 1));
    out.number(state.epochs.len() as u64);
    for epoch in &state.epochs {
        out.real(epoch.loss);
        out.real(epoch.held_out);
        out.real(epoch.metric);
    }
    let arrays = out.arrays(&state.optimizer.values).and_then(|()| out.arrays(&state.kept));
    arrays.map_err(|f| f.at(path.display()))?;
    state.optimizer.moments.iter().flatten().for_each(|m| out.reals(m));
    write_atomically(path, &out.0)
}

/// Reads a state; `start` is that before the first epoch of the same run.
pub fn read(path: &Path, fingerprint: &str, start: &State) -> Result<State, Error> {
    let bytes = std::fs::read(path).map_err(|e| Fault::new(e.to_string()).at(path.display()))?;
    parse(&bytes, fingerprint, start).map_err(|f| f.at(path.display()))
}

fn parse(bytes: &[u8], fingerprint: &str, start: &State) -> Result<State, Fault> {
    let mut from = Reader(bytes);
    if from.take(MARK.len())? != MARK {
        crate::fail!("this is no checkpoint");
    }
    let length = from.number()?;
    let known = from.take(usize::try_from(length).map_err(|_| "a count is too large")?)?;
    if known != fingerprint.as_bytes() {
        let fault = Fault::new("it belongs to a run with another model, other data or other options");
        return Err(fault.hint("remove it to start anew, or name another file with --checkpoint"));
    }
    let step = from.number()?;
    let best = from.number()?.checked_sub(1).map(|b| b as usize);
    let count = from.number()?;
    let mut epochs = Vec::new();
    for _ in 0..count {
        epochs.push(Epoch { loss: from.real()?, held_out: from.real()?, metric: from.real()? });
    }
    let values = from.arrays(&start.optimizer.values)?;
    let kept = from.arrays(&start.kept)?;
    let mut moments = Vec::new();
    for _ in &start.optimizer.moments {
        moments.push([from.reals()?, from.reals()?]);
    }
    Ok(State { optimizer: Optimizer { values, moments, step }, kept, best, epochs })
}
