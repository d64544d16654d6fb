//! Samples for calibration: files of arrays or pictures, checked against the graph's inputs.
//!
//! | layout | files |
//! |---|---|
//! | archives | `*.npz`, the arrays named after the inputs; one sample or one batch a file |
//! | arrays | `*.npy`, for a model with one input |
//! | directories | `*/<input>.npy` |
//! | ONNX test data | `test_data_set_*/input_*.pb` |
//! | pictures | `*.png`, `*.jpg`, `*.jpeg`, with a [`Recipe`] |
//!
//! A directory holds one layout; its samples come in the order of their names. Where a name cannot be a file name,
//! `/` and `:` in an input's name may be written `_`. A file with several samples for a model of fixed batch size counts
//! as several samples.
//!
//! Opening lists the files and reads headers; [`Samples::load`] reads one sample and can be called from many threads.

mod accept;
mod listing;
mod npy;
pub mod one;
mod pictures;
mod protobuf;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest, Sha256};

use self::accept::{accept, batches, samples_in};
use self::listing::Layout;
use self::npy::{Npy, Npz};
use super::config::Recipe;
use crate::error::{Error, Fault};
use crate::fail;
use crate::ir::{Array, Graph, TensorType, ValueId};

/// An input of the graph that every sample has to give a value for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputSpec {
    /// The name in the graph.
    pub name: String,
    /// Element type and shape; only known dimensions are compared.
    pub ty: TensorType,
}

impl InputSpec {
    /// A value of the graph as an input; a fault if it is no tensor.
    pub fn of(graph: &Graph, value: ValueId) -> Result<Self, Fault> {
        let name = graph.name(value).to_string();
        match graph.ty(value).cloned() {
            Some(ty) => Ok(Self { name, ty }),
            None => Err(Fault::unimplemented(format_args!("input `{name}`, which is no tensor"))),
        }
    }
}

/// The inputs of a graph that have no default.
pub fn open_inputs(graph: &Graph) -> Result<Vec<InputSpec>, Fault> {
    let open = |v: &&ValueId| graph.value(**v).default.is_none() && graph.constant(**v).is_none();
    graph.inputs.iter().filter(open).map(|&v| InputSpec::of(graph, v)).collect()
}

/// The samples below a directory.
#[derive(Debug)]
pub struct Samples {
    root: PathBuf,
    layout: Layout,
    inputs: Vec<InputSpec>,
    recipe: Recipe,
    samples: Vec<Sample>,
    warnings: Mutex<BTreeSet<String>>,
}

#[derive(Debug)]
struct Sample {
    /// For the user: the path, and the number of the part in a file of several samples.
    name: String,
    files: Vec<PathBuf>,
    /// Number and count of parts along the first axis.
    part: (usize, usize),
}

/// Lists the samples below `path`, which may also be a single file. `recipe` is needed for pictures only.
pub fn open(path: &Path, inputs: &[InputSpec], recipe: Option<&Recipe>) -> Result<Samples, Error> {
    let here = |fault: Fault| fault.at(path.display());
    let (layout, entries) = listing::list(path).map_err(here)?;
    listing::check_inputs(layout, inputs.len()).map_err(here)?;
    if layout == Layout::Pictures && recipe.is_none() {
        let fault = Fault::new("pictures need a recipe that makes tensors of them");
        return Err(here(fault.hint("describe it under [preprocess] in a file given with --config")));
    }
    let recipe = recipe.cloned().unwrap_or_default();
    recipe.check().map_err(here)?;
    let mut samples = Samples {
        root: path.to_owned(),
        layout,
        inputs: inputs.to_vec(),
        recipe,
        samples: Vec::new(),
        warnings: Mutex::default(),
    };
    for entry in entries {
        let name = entry.path.display();
        let parts = samples.parts(&entry.files).map_err(|fault| fault.at(&name))?;
        samples.samples.extend((0..parts).map(|part| Sample {
            name: if parts == 1 { name.to_string() } else { format!("{name}[{part}]") },
            files: entry.files.clone(),
            part: (part, parts),
        }));
    }
    Ok(samples)
}

impl Samples {
    /// Number of samples.
    pub fn len(&self) -> usize {
        self.samples.len()
    }

    /// Are there none? (Only after [`Samples::truncate`]: opening nothing is an error.)
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// Keeps the first `count` samples.
    pub fn truncate(&mut self, count: usize) {
        self.samples.truncate(count);
    }

    /// Takes every `nth` sample out: those, and which they were.
    pub fn hold_out(&mut self, nth: usize) -> (Self, Vec<usize>) {
        let held = |i: usize| nth > 0 && i % nth == nth - 1;
        let indices: Vec<usize> = (0..self.len()).filter(|&i| held(i)).collect();
        let (mut out, mut kept) = (Vec::new(), Vec::new());
        for (i, sample) in std::mem::take(&mut self.samples).into_iter().enumerate() {
            if held(i) { out.push(sample) } else { kept.push(sample) }
        }
        self.samples = kept;
        let Self { root, layout, inputs, recipe, .. } = self;
        let (root, inputs, recipe) = (root.clone(), inputs.clone(), recipe.clone());
        (Self { root, layout: *layout, inputs, recipe, samples: out, warnings: Mutex::default() }, indices)
    }

    /// The samples' names for the user: a path, with a number if the file holds several.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.samples.iter().map(|sample| sample.name.as_str())
    }

    /// The files that hold the samples, each once.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let firsts = self.samples.iter().filter(|sample| sample.part.0 == 0);
        firsts.flat_map(|sample| &sample.files).map(PathBuf::as_path)
    }

    /// What the user should be told about the samples opened and loaded so far; sorted, each thing once.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.lock().map(|warnings| warnings.iter().cloned().collect()).unwrap_or_default()
    }

    /// Reads sample `index`: one array per input, in the order of the inputs, each of the input's type and shape.
    pub fn load(&self, index: usize) -> Result<Vec<Array>, Error> {
        let Some(sample) = self.samples.get(index) else {
            return Err(Fault::new(format!("there are {} samples", self.len())).at(format!("sample {index}")));
        };
        let here = |fault: Fault| fault.at(&sample.name);
        match (self.layout, sample.files.as_slice()) {
            (Layout::Npz, [file]) => {
                let mut archive = Npz::open(file).map_err(here)?;
                let members = self.assign(&archive.names()).map_err(here)?;
                self.accept_each(sample, members, |input, member| {
                    part(input, archive.array(member)?, sample.part)
                })
            }
            (Layout::Npy, [file]) => {
                self.accept_each(sample, [file], |input, file| part(input, npy::open(file)?, sample.part))
            }
            (Layout::Pictures, [file]) => {
                self.accept_each(sample, [file], |input, file| pictures::read(file, &self.recipe, input))
            }
            (Layout::Directories, files) => {
                let stem =
                    |file: &PathBuf| file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                let chosen = self.assign(&files.iter().map(stem).collect::<Vec<_>>()).map_err(here)?;
                let files = chosen.into_iter().filter_map(|i| files.get(i));
                self.accept_each(sample, files, |_, file| npy::open(file)?.array())
            }
            (Layout::TestData, files) => {
                let read = |file: &PathBuf| protobuf::read(file).map_err(|fault| fault.at(file.display()));
                let (names, arrays): (Vec<_>, Vec<_>) =
                    files.iter().map(read).collect::<Result<Vec<_>, _>>()?.into_iter().unzip();
                let any_named = self.inputs.iter().any(|input| names.contains(&input.name));
                let chosen = match arrays.len() == self.inputs.len() && !any_named {
                    true => (0..arrays.len()).collect(),
                    false => self.assign(&names).map_err(here)?,
                };
                let arrays = chosen.into_iter().filter_map(|i| arrays.get(i).cloned());
                self.accept_each(sample, arrays, |_, array| Ok(array))
            }
            _ => Err(here("a sample of one file has several".into())),
        }
    }

    /// Reads and checks the array of each input from the source at the same place in `sources`.
    fn accept_each<T>(
        &self,
        sample: &Sample,
        sources: impl IntoIterator<Item = T>,
        mut read: impl FnMut(&InputSpec, T) -> Result<Array, Fault>,
    ) -> Result<Vec<Array>, Error> {
        let checked = |(input, source): (&InputSpec, T)| {
            let array = read(input, source).and_then(|array| accept(input, array, |text| self.warn(text)));
            array.map_err(|fault| fault.at(format!("input `{}`", input.name)).within(&sample.name))
        };
        self.inputs.iter().zip(sources).map(checked).collect()
    }

    /// For each input, which of the arrays of these names is its value: the one of its name; else of its name with `_`
    /// for `/` and `:`, if no other input can be meant; else `arr_0` for the first input and so on, which is what
    /// `numpy.savez` calls arrays without a name.
    fn assign(&self, names: &[String]) -> Result<Vec<usize>, Fault> {
        let mangle = |name: &str| name.replace(['/', ':'], "_");
        let position = |wanted: &str| names.iter().position(|name| name == wanted);
        let mut chosen = Vec::with_capacity(self.inputs.len());
        for (number, input) in self.inputs.iter().enumerate() {
            let file_name = mangle(&input.name);
            let unique = self.inputs.iter().filter(|other| mangle(&other.name) == file_name).count() == 1;
            let found = position(&input.name)
                .or_else(|| position(&file_name).filter(|_| unique))
                .or_else(|| position(&format!("arr_{number}")).filter(|index| !chosen.contains(index)));
            match found {
                Some(index) => chosen.push(index),
                None => {
                    let fault = format!("no array for the input `{}`, but {}", input.name, quoted(names));
                    return Err(Fault::new(fault).hint(self.describe_inputs()));
                }
            }
        }
        let is_extra = |&(index, _): &(usize, &String)| !chosen.contains(&index);
        let extra: Vec<&String> = names.iter().enumerate().filter(is_extra).map(|(_, name)| name).collect();
        if !extra.is_empty() {
            self.warn(format!("arrays left aside: {}; {}", quoted(&extra), self.describe_inputs()));
        }
        Ok(chosen)
    }

    fn describe_inputs(&self) -> String {
        let inputs: Vec<String> = self.inputs.iter().map(|i| format!("`{}` {}", i.name, i.ty)).collect();
        format!("the model takes {}", inputs.join(", "))
    }

    fn warn(&self, warning: String) {
        if let Ok(mut warnings) = self.warnings.lock() {
            warnings.insert(warning);
        }
    }

    /// How many samples lie in one entry of the listing.
    fn parts(&self, files: &[PathBuf]) -> Result<usize, Fault> {
        let shapes = match (self.layout, files) {
            (Layout::Npz, [file]) => {
                let mut archive = Npz::open(file)?;
                let members = self.assign(&archive.names())?;
                members
                    .into_iter()
                    .map(|member| Ok(archive.array(member)?.shape))
                    .collect::<Result<_, Fault>>()?
            }
            (Layout::Npy, [file]) => vec![npy::open(file)?.shape],
            _ => return Ok(1),
        };
        Ok(samples_in(&self.inputs, &shapes))
    }

    /// The first 16 hexadecimal digits of a SHA-256 over the samples' file names (relative to the directory) and
    /// contents, in order.
    pub fn digest(&self) -> Result<String, Error> {
        let mut hash = Sha256::new();
        let firsts = self.samples.iter().filter(|sample| sample.part.0 == 0);
        for path in firsts.flat_map(|sample| &sample.files) {
            let at_file = |fault: Fault| fault.at(path.display());
            let name = path.strip_prefix(&self.root).unwrap_or(path);
            let name = name.to_string_lossy();
            let (mut file, size) = open_regular(path).map_err(at_file)?;
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(size.to_le_bytes());
            let mut buffer = vec![0; 1 << 16];
            loop {
                let read = file.read(&mut buffer).map_err(|error| at_file(unreadable(error)))?;
                match buffer.get(..read) {
                    Some(bytes) if read > 0 => hash.update(bytes),
                    _ => break,
                }
            }
        }
        Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The array of one sample in a file of many; an array that all samples share is taken whole.
fn part<R: Read>(input: &InputSpec, npy: Npy<R>, (index, parts): (usize, usize)) -> Result<Array, Fault> {
    match parts > 1 && batches(&input.ty, &npy.shape) == parts {
        true => npy.part(index, parts),
        false => npy.array(),
    }
}

/// Opens a regular file (a pipe or a device could block, or never end); returns its size too.
fn open_regular(path: &Path) -> Result<(File, u64), Fault> {
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        fail!("not a regular file");
    }
    Ok((File::open(path).map_err(unreadable)?, metadata.len()))
}

fn unreadable(error: std::io::Error) -> Fault {
    Fault::new(format!("cannot be read: {error}"))
}

fn quoted(names: &[impl std::fmt::Display]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests;
