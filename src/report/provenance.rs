//! Where a result comes from: every file that decides it, and one digest over all of that.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::calibrate::read::Samples;
use crate::compare::accuracy::read_labels;
use crate::error::Error;
use crate::ir::Model;
use crate::onnx::{self, FileDigest, Source};
use crate::options::Options;

/// The key under which a result carries the digest.
pub const KEY: &str = "qonnx.provenance_sha256";

/// What a result is made from.
#[derive(Debug, Clone)]
pub struct Provenance {
    /// The model, its external data, the samples, their labels.
    pub files: Vec<PathBuf>,
    /// A hash over version, options and the contents of all files but the following.
    beside: Sha256,
    /// The model, then the files that hold its external data: they may be large.
    model: Vec<FileDigest>,
}

impl Provenance {
    /// Takes down what a compilation in this mode is made from.
    pub fn of(
        input: &Path,
        source: &Source,
        samples: Option<&Samples>,
        options: &Options,
        mode: &str,
    ) -> Result<Self, Error> {
        let mut hash = Sha256::new();
        let mut add = |part: &str| {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        };
        let recipe = format!("{:?}", options.recipe);
        let (target, pins) = (target(options), format!("{:?}", options.pins));
        [env!("CARGO_PKG_VERSION"), mode, &target, &options.command, &recipe, &pins]
            .into_iter()
            .for_each(&mut add);
        let external = source.external();
        let mut files = vec![input.to_owned()];
        let mut model = vec![source.digest.clone()];
        for (path, digest) in external {
            files.push(path);
            model.push(digest);
        }
        if let Some(samples) = samples {
            add(&samples.digest()?);
            files.extend(samples.files().map(Path::to_owned));
        }
        if let Some(table) = &options.table {
            add(&std::fs::read_to_string(table).unwrap_or_default());
            files.push(table.clone());
        }
        if options.target.ends_with(".toml") {
            let table = PathBuf::from(&options.target);
            add(&std::fs::read_to_string(&table).unwrap_or_default());
            files.push(table);
        }
        if let Some(labels) = &options.labels {
            add(&format!("{:?}", read_labels(labels)?));
            files.push(labels.clone());
        }
        Ok(Self { files, beside: hash, model })
    }

    /// The first 16 digits of a SHA-256 over version, options, and the contents of the files.
    pub fn digest(&self) -> String {
        let hash = self.model.iter().fold(self.beside.clone(), |hash, file| hash.chain_update(file.get()));
        hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
    }

    /// Whatever else decides the result.
    pub fn add(&mut self, part: &str) {
        self.beside.update((part.len() as u64).to_le_bytes());
        self.beside.update(part.as_bytes());
    }

    /// Was the model in this file made from the same?
    pub fn made(&self, output: &Path) -> bool {
        let Ok(source) = onnx::read(output) else { return false };
        let entries = &source.model.rest.metadata_props;
        let own = self.digest();
        entries.iter().any(|e| e.key.as_deref() == Some(KEY) && e.value.as_ref() == Some(&own))
    }
}

/// The target's name; of a file, without its directory.
pub fn target(options: &Options) -> String {
    let file = Path::new(&options.target).file_name().unwrap_or_default();
    file.to_string_lossy().into_owned()
}

/// Did qonnx make the model in this mode, for this target, with these options?
pub fn is_own(model: &Model, mode: &str, options: &Options) -> bool {
    let entries = &model.rest.metadata_props;
    let says = |key: &str, value: &str| {
        entries.iter().any(|e| e.key.as_deref() == Some(key) && e.value.as_deref() == Some(value))
    };
    says("qonnx.mode", mode)
        && says("qonnx.target", &target(options))
        && says("qonnx.options", &options.command)
}

/// A rule for Make and Ninja: `output` depends on these files.
pub fn rule(output: &Path, files: &[PathBuf]) -> String {
    let escaped = |path: &Path| {
        let path = path.to_string_lossy();
        path.replace('\\', "\\\\").replace('$', "$$").replace('#', "\\#").replace(' ', "\\ ")
    };
    let mut text = format!("{}:", escaped(output));
    files.iter().for_each(|f| text.push_str(&format!(" \\\n  {}", escaped(f))));
    text + "\n"
}
