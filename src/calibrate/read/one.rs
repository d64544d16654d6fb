//! One value for each input, from files named after it or its number: `<name>.npy`, `input_<i>.npy`, or the same as `.pb`.

use std::path::{Path, PathBuf};

use super::accept::accept_any_value;
use super::{InputSpec, npy, protobuf, quoted};
use crate::calibrate::write::file_stem;
use crate::error::{Error, Fault};
use crate::ir::Array;

/// What a directory gives for the inputs of a model.
#[derive(Debug)]
pub struct Given {
    /// A value for each input, in their order; `None` if there is no file for it.
    pub arrays: Vec<Option<Array>>,
    /// What the user should be told.
    pub warnings: Vec<String>,
}

/// Reads the files for `inputs` in `dir`; the `i`-th input is also called `input_<i>`. Types and shapes must fit.
pub fn read(dir: &Path, inputs: &[InputSpec]) -> Result<Given, Error> {
    let mut left = super::listing::children(dir).map_err(|f| f.at(dir.display()))?;
    left.retain(|f| f.is_file());
    let mut given = Given { arrays: Vec::new(), warnings: Vec::new() };
    for (number, input) in inputs.iter().enumerate() {
        let stems = [input.name.clone(), file_stem(&input.name), format!("input_{number}")];
        let is_meant = |file: &PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let stem = name.strip_suffix(".npy").or_else(|| name.strip_suffix(".pb"));
            stem.is_some_and(|stem| stems.iter().any(|s| s == stem))
        };
        let found: Vec<PathBuf> = left.extract_if(.., |file| is_meant(file)).collect();
        let array = match found.as_slice() {
            [] => None,
            [file] => {
                let array = read_file(file).and_then(|a| accept_any_value(input, a, |_| {}));
                Some(array.map_err(|f| f.at(format!("input `{}`", input.name)).within(file.display()))?)
            }
            several => {
                let names: Vec<_> = several.iter().map(|f| f.display()).collect();
                let fault = Fault::new(format!("{} are all for input `{}`", quoted(&names), input.name));
                return Err(fault.at(dir.display()));
            }
        };
        given.arrays.push(array);
    }
    if !left.is_empty() {
        let names: Vec<_> =
            left.iter().map(|f| f.file_name().unwrap_or_default().to_string_lossy()).collect();
        given.warnings.push(format!("files that are for no input: {}", quoted(&names)));
    }
    Ok(given)
}

/// The array in a `.npy` or `.pb` file.
pub fn read_file(file: &Path) -> Result<Array, Fault> {
    match file.extension().is_some_and(|e| e == "npy") {
        true => npy::open(file)?.array(),
        false => protobuf::read(file).map(|(_, array)| array),
    }
}
