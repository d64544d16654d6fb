//! Two models on the same samples: how close their outputs are, how often each is right, and which layer drifts apart.

pub mod accuracy;
pub mod closeness;
pub mod layers;

use rayon::prelude::*;

use crate::calibrate::read::{InputSpec, Samples, open_inputs};
use crate::calibrate::run::Progress;
use crate::error::{Error, Fault};
use crate::interpret::Program;
use crate::ir::{Array, DType, Graph};
use crate::ops::operand::rounded;

/// What both models compute from one sample: the outputs in the order of the pair.
pub type Outputs<'a> = (&'a [Option<Array>], &'a [Option<Array>]);

/// Two programs whose inputs and outputs are matched.
pub struct Pair<'a> {
    reference: &'a Program,
    other: &'a Program,
    /// For each input of the other, the reference's that it takes, and the type that it takes it in.
    inputs: Vec<(usize, DType)>,
    /// Positions of each common output in both.
    outputs: Vec<(usize, usize)>,
    /// Names of the common outputs.
    pub names: Vec<String>,
}

impl<'a> Pair<'a> {
    /// Matches inputs and outputs by name, or by position where no name fits.
    pub fn new(
        (reference, a): (&'a Program, &Graph),
        (other, b): (&'a Program, &Graph),
    ) -> Result<Self, Error> {
        let at = |f: Fault| f.at("matching the models");
        let specs = |graph| open_inputs(graph).map_err(at);
        let inputs = match_inputs(&specs(a)?, &specs(b)?).map_err(at)?;
        let names = |graph: &Graph| -> Vec<String> {
            graph.outputs.iter().map(|&v| graph.name(v).to_string()).collect()
        };
        let (wanted, found) = (names(a), names(b));
        let by_name = |name| found.iter().position(|n| n == name);
        let mut outputs: Vec<(usize, usize)> =
            wanted.iter().enumerate().filter_map(|(i, name)| Some((i, by_name(name)?))).collect();
        if outputs.is_empty() && wanted.len() == found.len() {
            outputs = (0..wanted.len()).map(|i| (i, i)).collect();
        }
        if outputs.is_empty() {
            let message = format!("no output has the same name: {}; {}", wanted.join(", "), found.join(", "));
            return Err(at(Fault::new(message)));
        }
        let names = outputs.iter().filter_map(|&(i, _)| wanted.get(i).cloned()).collect();
        Ok(Self { reference, other, inputs, outputs, names })
    }

    /// Runs both programs on the samples with these indices, several at a time, and gives what `look` makes of their
    /// outputs, in order.
    pub fn run<T: Send>(
        &self,
        samples: &Samples,
        indices: &[usize],
        progress: Progress,
        look: impl Fn(Outputs) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        self.each(samples, indices, progress, |inputs| {
            let (mut wanted, _) = self.reference.run_unwatched(inputs)?;
            let (mut found, _) = self.other.run_unwatched(&self.inputs_of_other(inputs))?;
            let take = |from: &mut Vec<Option<Array>>, i: usize| from.get_mut(i).and_then(Option::take);
            let (wanted, found): (Vec<_>, Vec<_>) =
                self.outputs.iter().map(|&(i, j)| (take(&mut wanted, i), take(&mut found, j))).unzip();
            look((&wanted, &found))
        })
    }

    /// What `look` makes of the samples with these indices, several at a time, in order.
    fn each<T: Send>(
        &self,
        samples: &Samples,
        indices: &[usize],
        progress: Progress,
        look: impl Fn(&[Array]) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let of_sample = |&index: &usize| {
            let found = look(&samples.load(index)?)?;
            progress();
            Ok(found)
        };
        indices.par_iter().map(of_sample).collect()
    }

    fn inputs_of_other(&self, inputs: &[Array]) -> Vec<Array> {
        self.inputs.iter().filter_map(|&(i, dtype)| Some(rounded(inputs.get(i)?.clone(), dtype))).collect()
    }
}

/// For each input in `b`, the position in `a` of the one that it takes, and the type in which it takes it: models of
/// different precision are compared on the same real numbers.
fn match_inputs(a: &[InputSpec], b: &[InputSpec]) -> Result<Vec<(usize, DType)>, Fault> {
    let position = |spec: &InputSpec| a.iter().position(|s| s.name == spec.name);
    let by_position = a.len() == b.len() && b.iter().all(|s| position(s).is_none());
    let mut matched = Vec::new();
    for (number, spec) in b.iter().enumerate() {
        let found = if by_position { Some(number) } else { position(spec) };
        let Some((index, wanted)) = found.and_then(|i| Some((i, a.get(i)?))) else {
            crate::fail!("the second model has an input `{}` that the first has not", spec.name);
        };
        let (taken, given) = (spec.ty.dtype, wanted.ty.dtype);
        if taken != given && !(taken.is_float() && given.is_float()) {
            crate::fail!(
                "input `{}` is {} in the first model and {} in the second",
                spec.name,
                wanted.ty,
                spec.ty
            );
        }
        matched.push((index, taken));
    }
    Ok(matched)
}
