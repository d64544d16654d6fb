//! ONNX files: reading one into a [`Model`], writing one back, and the text syntax.
//!
//! The file is mapped, and tensor payloads stay slices of the map from reading to writing. A model that no pass has
//! touched is written byte for byte as it was read.

mod audit;
mod beside;
mod emit;
mod external;
mod function;
mod import;
mod inline;
mod stream;
pub mod text;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use memmap2::Mmap;
use prost::Message;
use sha2::{Digest, Sha256};

pub use emit::{External, emit, value_info};
pub use external::ExternalData;
pub use import::{LoadExternal, import, parse};

use crate::budget;
use crate::error::{Error, Fault};
use crate::fail;
use crate::ir::{Model, verify};
use crate::proto;

/// Larger files cannot be a protobuf message.
const MAX_FILE: u64 = 2 << 30;

/// Larger messages are not written: protobuf's limit, less what other writers count differently.
const MAX_MESSAGE: u64 = (2 << 30) - (16 << 20);

/// A model as it was read.
pub struct Source {
    /// The model.
    pub model: Model,
    /// Size of the file in bytes, without external data.
    pub size: usize,
    /// The file's SHA-256.
    pub digest: FileDigest,
    /// Bytes that the schema has no field for; they are lost when the model is written.
    pub lost_bytes: usize,
    /// Some text was not UTF-8, and is written otherwise.
    pub escaped: bool,
    /// The files beside the model that hold payloads.
    beside: ExternalData,
}

impl Source {
    /// Size in bytes with the files beside it.
    pub fn whole_size(&self) -> usize {
        self.size + self.beside.size()
    }

    /// Files beside the model that hold payloads, with their digests.
    pub fn external(&self) -> Vec<(PathBuf, FileDigest)> {
        self.beside.digests()
    }
}

/// Reads a model file.
pub fn read(path: &Path) -> Result<Source, Error> {
    read_edited(path, &Ok)
}

/// What is done to a message before it becomes a graph.
type MessageEdit<'a> = &'a dyn Fn(proto::ModelProto) -> Result<proto::ModelProto, Fault>;

fn read_edited(path: &Path, edit: MessageEdit) -> Result<Source, Error> {
    let bytes = map(path).map_err(|f| f.at(path.display()))?;
    let beside = ExternalData::new(path.parent().unwrap_or(Path::new("")));
    let external = |tensor: &proto::TensorProto| beside.load(tensor);
    let (size, digest) = (bytes.len(), FileDigest::of(bytes.clone()));
    let (model, lost_bytes, escaped) =
        decode_edited(bytes, &external, edit).map_err(|e| e.within(path.display()))?;
    Ok(Source { model, size, digest, lost_bytes, escaped, beside })
}

/// Reads a model file and refuses a graph that breaks the rules.
pub fn read_valid(path: &Path) -> Result<Source, Error> {
    valid(path, read(path)?)
}

/// The same, with the model's functions in place of their calls.
pub fn read_inlined(path: &Path) -> Result<Source, Error> {
    valid(path, read_edited(path, &inline::inline)?)
}

fn valid(path: &Path, source: Source) -> Result<Source, Error> {
    match verify(&source.model).as_slice() {
        [] => Ok(source),
        faults => Err(Fault::new(faults.join("; ")).at("not a valid model").within(path.display())),
    }
}

/// Decodes a model from bytes; also the number of bytes that the schema has no field for.
pub fn decode(bytes: Bytes, external: LoadExternal) -> Result<(Model, usize), Error> {
    decode_edited(bytes, external, &Ok).map(|(model, lost, _)| (model, lost))
}

/// Also how many bytes the schema has no field for, and whether text had to be escaped.
fn decode_edited(
    bytes: Bytes,
    external: LoadExternal,
    edit: MessageEdit,
) -> Result<(Model, usize, bool), Error> {
    check_cost(&bytes).map_err(|f| f.at("not a usable model"))?;
    let what_is_it = |e: prost::DecodeError| not_a_model(&bytes, &e).at("not an ONNX model");
    let mut escaped = false;
    let decoded = match proto::decode(bytes.clone()) {
        Err(error) if error.to_string().contains("UTF-8") => {
            escaped = true;
            proto::decode(proto::wire::with_valid_text(&bytes).into()).map_err(what_is_it)?
        }
        other => other.map_err(what_is_it)?,
    };
    let message = edit(decoded.model).map_err(|f| f.at("functions"))?;
    Ok((import(message, external)?, decoded.lost_bytes, escaped))
}

/// Refuses a file whose messages would take far more memory than the file.
fn check_cost(bytes: &[u8]) -> Result<(), Fault> {
    const BASE: u64 = 64 << 20;
    const GROWTH: u64 = 40;
    let (cost, size) = (proto::wire::cost(bytes), bytes.len() as u64);
    if cost > (BASE + GROWTH * size).min(budget::memory()) {
        fail!("its messages would take {} MB of memory, the file has {} MB", cost >> 20, size >> 20);
    }
    Ok(())
}

/// Encodes a model; external data stays where it is.
pub fn encode(model: &Model) -> Result<Vec<u8>, Error> {
    Ok(emit(model, External::Keep)?.encode_to_vec())
}

/// Where the payloads of a written model lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Payloads {
    /// In the model, if it can hold them, else beside it.
    #[default]
    Inside,
    /// In a file beside the model.
    Beside,
}

/// Writes a model, each initializer by itself, as [`write_atomically`] does; the number of bytes. What lay in other
/// files is part of it: the result needs none of the files that it was made from.
pub fn write(path: &Path, model: &Model, payloads: Payloads) -> Result<usize, Error> {
    let mut message = emit(model, External::Stream)?;
    let computed = |tensor: &proto::TensorProto| {
        let value = model.graph.value(model.graph.find(tensor.name())?);
        value.constant.as_ref().or(value.default.as_ref())?.computed().cloned()
    };
    if payloads == Payloads::Inside && stream::length(&message, &computed) as u64 <= MAX_MESSAGE {
        return atomically(path, |file| buffered(file, |out| stream::write(message, &computed, out)));
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".data");
    let taken = beside::split(&mut message, &name.to_string_lossy(), &computed);
    let beside = path.with_file_name(&name);
    let mut size = 0;
    // Both are written before either is in its place, and the payloads are there before the model that refers to them.
    let written = atomically(path, |file| {
        let written = buffered(file, |out| stream::write(message, &|_| None, out))?;
        let payloads = atomically(&beside, |file| buffered(file, |out| beside::write(&taken, out)));
        size = payloads.map_err(|e| std::io::Error::other(e.fault().to_string()))?;
        Ok(written)
    })?;
    Ok(written + size)
}

/// Writes a model that nothing was changed in: the bytes that were read, as far as other files are where it says.
pub fn copy(from: &Path, path: &Path, model: &Model) -> Result<usize, Error> {
    let directory = |path: &Path| match path.parent() {
        Some(parent) if parent != Path::new("") => fs::canonicalize(parent),
        _ => fs::canonicalize("."),
    };
    let moved = directory(from).ok() != directory(path).ok();
    let outside = model.graph.values().any(|v| {
        let value = model.graph.value(v);
        value.constant.iter().chain(&value.default).any(|t| t.external().is_some())
    });
    if moved && outside {
        return write(path, model, Payloads::Inside);
    }
    let message = emit(model, External::Keep)?;
    atomically(path, |file| buffered(file, |out| stream::write(message, &|_| None, out)))
}

fn buffered(
    file: &mut File,
    fill: impl FnOnce(&mut dyn Write) -> std::io::Result<usize>,
) -> std::io::Result<usize> {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let written = fill(&mut out)?;
    out.flush()?;
    Ok(written)
}

/// Writes bytes to a temporary file beside `path`, then renames it: an existing file is replaced whole or left alone.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    atomically(path, |file| file.write_all(bytes))
}

/// Temporary files that are being written.
static PENDING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removes what is being written, for a process that is about to end: who would begin another file waits for that.
pub fn abandon() {
    if let Ok(mut pending) = PENDING.lock() {
        pending.drain(..).for_each(|path| drop(fs::remove_file(path)));
        std::mem::forget(pending);
    }
}

fn pending<R>(change: impl FnOnce(&mut Vec<PathBuf>) -> R) -> R {
    match PENDING.lock() {
        Ok(mut pending) => change(&mut pending),
        Err(poisoned) => change(&mut poisoned.into_inner()),
    }
}

fn atomically<T>(path: &Path, fill: impl FnOnce(&mut File) -> std::io::Result<T>) -> Result<T, Error> {
    let write = || -> std::io::Result<T> {
        let name = path.file_name().ok_or_else(|| std::io::Error::other("it names no file"))?;
        if path.is_dir() {
            return Err(std::io::Error::other("it is a directory"));
        }
        if path.exists() && !path.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(hidden);
        // An interrupt finds either no file or one that it knows of.
        let created = pending(|all| {
            all.push(temporary.clone());
            File::create(&temporary)
        });
        let done = created.and_then(|mut file| {
            let filled = fill(&mut file)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            Ok(filled)
        });
        pending(|all| all.retain(|path| *path != temporary));
        if done.is_err() {
            let _ = fs::remove_file(&temporary); // the first error is the one to tell
        }
        done
    };
    write().map_err(|e| Fault::new(format!("cannot be written: {e}")).at(path.display()))
}

/// The first 16 hexadecimal digits of the SHA-256 of a file. For a large one a thread of its own computes them while
/// the file is already used.
#[derive(Clone)]
pub struct FileDigest(Arc<(OnceLock<String>, Bytes)>);

impl FileDigest {
    const LARGE: usize = 16 << 20;

    fn of(bytes: Bytes) -> Self {
        let large = bytes.len() > Self::LARGE;
        let own = Self(Arc::new((OnceLock::new(), bytes)));
        if large {
            let ahead = own.clone();
            // Where no thread can be had, whoever asks computes.
            let _ = std::thread::Builder::new().spawn(move || {
                ahead.get();
            });
        }
        own
    }

    /// The digits.
    pub fn get(&self) -> &str {
        self.0.0.get_or_init(|| digest(&self.0.1))
    }
}

impl std::fmt::Debug for FileDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.get())
    }
}

impl serde::Serialize for FileDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.get())
    }
}

/// The first 16 hexadecimal digits of the SHA-256 of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

fn map(path: &Path) -> Result<Bytes, Fault> {
    let unreadable = |e: std::io::Error| Fault::new(format!("cannot be read: {e}"));
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        fail!("is not a regular file");
    }
    if metadata.len() > MAX_FILE {
        fail!("has {} bytes, but an ONNX file ends at 2 GiB", metadata.len());
    }
    if metadata.len() == 0 {
        fail!("is empty");
    }
    let file = File::open(path).map_err(unreadable)?;
    map_file(&file).map_err(unreadable)
}

/// The contents of a regular file, without a copy.
fn map_file(file: &File) -> std::io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new()); // nothing that could be mapped
    }
    // SAFETY: the map is read-only and private. Another process that truncates the file while it is read can make an
    // access fault, as with every mapped file; nothing here writes to it.
    let map = unsafe { Mmap::map(file) }?;
    Ok(Bytes::from_owner(map))
}

/// What a file is that does not decode.
fn not_a_model(bytes: &[u8], error: &prost::DecodeError) -> Fault {
    let kind = match bytes {
        [b'P', b'K', 3, 4, ..] => "it is a zip archive (a PyTorch or Keras file?)",
        [0x1f, 0x8b, ..] => "it is compressed by gzip",
        [b'{', ..] => "it looks like JSON",
        _ if bytes.starts_with(b"version https://git-lfs") => "it is a Git LFS pointer, not the file itself",
        _ if bytes.starts_with(b"ORTM") || bytes.get(4..8) == Some(b"ORTM") => {
            "it is in ONNX Runtime's ORT format"
        }
        _ => return Fault::new(error.to_string()).hint("is the file whole?"),
    };
    Fault::new(kind)
}
