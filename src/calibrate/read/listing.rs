//! Which samples a directory holds, and in which layout.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::unreadable;
use crate::error::Fault;
use crate::fail;

/// How samples are stored; one layout a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    /// `*.npz`, arrays named after the inputs.
    Npz,
    /// `*.npy`, for a model with one input.
    Npy,
    /// Sub-directories of `<input>.npy`.
    Directories,
    /// Sub-directories of `input_<number>.pb`, the form of ONNX's own test data.
    TestData,
    /// `*.png`, `*.jpg` and `*.jpeg`.
    Pictures,
}

impl Layout {
    /// For the user: what a file or directory of this layout is.
    fn describe(self) -> &'static str {
        match self {
            Self::Npz => ".npz",
            Self::Npy => ".npy",
            Self::Directories => "directory of .npy files",
            Self::TestData => "directory of input_*.pb",
            Self::Pictures => "picture",
        }
    }
}

/// The files of one sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The file or directory.
    pub path: PathBuf,
    /// Its files: sorted by name, those of [`Layout::TestData`] by number.
    pub files: Vec<PathBuf>,
}

/// Lists the samples below `path` (or `path` itself, if it is a sample), sorted by name, byte by byte.
/// Files of other kinds and hidden files are passed over.
pub fn list(path: &Path) -> Result<(Layout, Vec<Entry>), Fault> {
    fs::metadata(path).map_err(unreadable)?;
    if let Some((layout @ (Layout::Npz | Layout::TestData), entry)) = classify(path)? {
        return Ok((layout, vec![entry]));
    }
    let paths = if path.is_dir() { children(path)? } else { vec![path.to_owned()] };
    let mut found: BTreeMap<Layout, Vec<Entry>> = BTreeMap::new();
    for path in paths {
        if let Some((layout, entry)) = classify(&path)? {
            found.entry(layout).or_default().push(entry);
        }
    }
    let counts: Vec<String> = found.iter().map(|(l, e)| format!("{} × {}", e.len(), l.describe())).collect();
    match (found.pop_first(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (Some(_), false) => {
            let fault = Fault::new(format!("samples of different layouts: {}", counts.join(", ")));
            Err(fault.hint("keep one layout in a directory of its own"))
        }
        (None, _) => Err(Fault::new("no samples found").hint(
            "expected *.npz, *.npy (a model with one input), directories of <input>.npy, \
             test_data_set_*/input_*.pb, or pictures (*.png, *.jpg)",
        )),
    }
}

/// The layout of one file or sub-directory, if it is a sample.
fn classify(path: &Path) -> Result<Option<(Layout, Entry)>, Fault> {
    let entry = |files| Entry { path: path.to_owned(), files };
    if path.is_dir() {
        let files = children(path)?;
        let arrays: Vec<PathBuf> = files.iter().filter(|f| extension(f) == "npy").cloned().collect();
        if !arrays.is_empty() {
            return Ok(Some((Layout::Directories, entry(arrays))));
        }
        let mut inputs: Vec<(u32, PathBuf)> =
            files.into_iter().filter_map(|f| Some((input_number(&f)?, f))).collect();
        inputs.sort();
        if inputs.is_empty() {
            return Ok(None);
        }
        return Ok(Some((Layout::TestData, entry(inputs.into_iter().map(|(_, f)| f).collect()))));
    }
    let layout = match extension(path).as_str() {
        "npz" => Layout::Npz,
        "npy" => Layout::Npy,
        "png" | "jpg" | "jpeg" => Layout::Pictures,
        _ => return Ok(None),
    };
    Ok(Some((layout, entry(vec![path.to_owned()]))))
}

/// The entries of a directory, without hidden ones, sorted by name.
pub fn children(dir: &Path) -> Result<Vec<PathBuf>, Fault> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            paths.push(entry.path());
        }
    }
    paths.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    Ok(paths)
}

fn extension(path: &Path) -> String {
    path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase()
}

/// The number in `input_<number>.pb`.
fn input_number(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix("input_")?.strip_suffix(".pb")?.parse().ok()
}

/// Fails with a fault that says how to use a layout, if it does not fit a model with this many inputs.
pub fn check_inputs(layout: Layout, inputs: usize) -> Result<(), Fault> {
    match layout {
        Layout::Npy | Layout::Pictures if inputs != 1 => {
            fail!(
                "a {} is one array, and the model has {inputs} inputs; use *.npz with the arrays named after the inputs",
                layout.describe()
            )
        }
        _ => Ok(()),
    }
}
