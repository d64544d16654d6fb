//! External data: payloads that a model keeps in files beside it.
//!
//! A tensor names such a file in [`external_data`](https://onnx.ai/onnx/repo-docs/ExternalData.html): `location` is a
//! path relative to the model's directory, `offset` and `length` are in bytes. A model is not trusted with more than
//! its directory, so a location can neither leave it nor pass through a link, symbolic or hard, and sizes are compared before anything
//! is read. [`ExternalData::load`] is the only way to such bytes, wherever in a model the tensor stands.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;

use super::{FileDigest, map_file};
use crate::error::Fault;
use crate::fail;
use crate::ir::{DType, element_count};
use crate::proto::TensorProto;

/// Marks a location as an address in the memory of a running process; never valid in a file.
const MEMORY_ADDRESS: &str = "_ORT_MEM_ADDR_";

/// The files beside a model. Each is mapped once, when the first tensor asks for it.
#[derive(Debug)]
pub struct ExternalData {
    dir: PathBuf,
    files: Mutex<BTreeMap<PathBuf, Bytes>>,
}

impl ExternalData {
    /// The external data of a model in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), files: Mutex::default() }
    }

    /// The payload of a tensor, a slice of the mapped file: exactly as long as its type and shape need.
    pub fn load(&self, tensor: &TensorProto) -> Result<Bytes, Fault> {
        let entry = Entry::parse(tensor)?;
        let file = self.file(entry.location).map_err(|fault| within(entry.location, &fault))?;
        let (size, offset) = (file.len() as u64, entry.offset);
        let Some(rest) = size.checked_sub(offset) else {
            fail!("external data `{}`: offset {offset} lies behind its {size} bytes", entry.location);
        };
        let length = entry.length.unwrap_or(rest);
        if length > rest {
            fail!("external data `{}`: no {length} bytes at {offset}, it has {size}", entry.location);
        }
        let needed = byte_length(tensor)?;
        if length != needed {
            fail!("external data `{}`: the tensor needs {needed} bytes, {length} are given", entry.location);
        }
        // Both ends lie inside the file, so they are positions in memory too.
        Ok(file.slice(offset as usize..(offset + length) as usize))
    }

    /// The files that were asked for, with their digests.
    pub fn digests(&self) -> Vec<(PathBuf, FileDigest)> {
        let files = self.files.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        files.iter().map(|(path, bytes)| (path.clone(), FileDigest::of(bytes.clone()))).collect()
    }

    /// How many bytes the files that were asked for have.
    pub fn size(&self) -> usize {
        let files = self.files.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        files.values().map(Bytes::len).sum()
    }

    /// The bytes of a file in the model's directory.
    fn file(&self, location: &str) -> Result<Bytes, Fault> {
        let path = self.resolve(location)?;
        let mut files = self.files.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(bytes) = files.get(&path) {
            return Ok(bytes.clone());
        }
        let file = File::open(&path).map_err(unreadable)?;
        let bytes = map_file(&file).map_err(unreadable)?;
        files.insert(path, bytes.clone());
        Ok(bytes)
    }

    /// The path of a regular file that is reached by going down from the model's directory, through no link.
    fn resolve(&self, location: &str) -> Result<PathBuf, Fault> {
        if location.contains(MEMORY_ADDRESS) {
            fail!("an address in memory is not a file");
        }
        let mut path = self.dir.clone();
        let mut is_file = false;
        for component in Path::new(location).components() {
            match component {
                Component::Normal(name) => path.push(name),
                Component::CurDir => continue,
                _ => fail!("the location leaves the model's directory"),
            }
            let metadata = fs::symlink_metadata(&path).map_err(unreadable)?;
            if metadata.is_symlink() {
                let fault = Fault::new("the location passes through a symbolic link");
                return Err(fault.hint("copy the model and its data with the links resolved (cp -rL)"));
            }
            is_file = metadata.is_file();
            if is_file && links(&metadata) > 1 {
                let fault = Fault::new("the file has another name elsewhere (a hard link)");
                return Err(fault.hint("copy the model and its data (cp)"));
            }
        }
        if !is_file {
            fail!("not a regular file");
        }
        Ok(path)
    }
}

/// How many names a file has.
fn links(metadata: &fs::Metadata) -> u64 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::nlink(metadata);
    #[cfg(not(unix))]
    1
}

/// What `external_data` says. Keys other than these three (a checksum, say) are passed over.
struct Entry<'a> {
    location: &'a str,
    offset: u64,
    length: Option<u64>,
}

impl<'a> Entry<'a> {
    fn parse(tensor: &'a TensorProto) -> Result<Self, Fault> {
        let value = |key: &str| -> Result<Option<&'a str>, Fault> {
            let mut found = tensor.external_data.iter().filter(|entry| entry.key.as_deref() == Some(key));
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => fail!("external data: {key} is given twice"),
                (entry, _) => Ok(entry.map(|entry| entry.value.as_deref().unwrap_or_default())),
            }
        };
        let number = |key: &str| -> Result<Option<u64>, Fault> {
            let Some(text) = value(key)? else { return Ok(None) };
            match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => fail!("external data: {key} is `{text}`, not a number of bytes"),
            }
        };
        let Some(location) = value("location")?.filter(|location| !location.is_empty()) else {
            fail!("external data without a location");
        };
        Ok(Self { location, offset: number("offset")?.unwrap_or(0), length: number("length")? })
    }
}

/// Bytes that the elements of a tensor take.
fn byte_length(tensor: &TensorProto) -> Result<u64, Fault> {
    let code = tensor.data_type.unwrap_or(0);
    let Some(dtype) = DType::from_onnx(code) else { fail!("unknown element type {code}") };
    if dtype == DType::Str {
        fail!("strings cannot be external data");
    }
    let extent =
        |&dim: &i64| usize::try_from(dim).map_err(|_| Fault::new(format!("dimension {dim} is negative")));
    let shape = tensor.dims.iter().map(extent).collect::<Result<Vec<_>, _>>()?;
    match (element_count(&shape)? as u64).checked_mul(dtype.bits() as u64) {
        Some(bits) => Ok(bits.div_ceil(8)),
        None => fail!("the shape {shape:?} is too large"),
    }
}

fn within(location: &str, fault: &Fault) -> Fault {
    Fault::new(format!("external data `{location}`: {fault}"))
}

fn unreadable(error: io::Error) -> Fault {
    Fault::new(format!("cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Array, Tensor};
    use crate::proto::{StringStringEntryProto, tensor_proto::DataLocation};

    /// A tensor of `dims` floats with these entries.
    fn tensor(dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
        let text = |text: &str| Some(text.into());
        TensorProto {
            dims: dims.to_vec(),
            data_type: Some(DType::F32.to_onnx()),
            data_location: Some(DataLocation::External as i32),
            external_data: entries
                .iter()
                .map(|(key, value)| StringStringEntryProto { key: text(key), value: text(value) })
                .collect(),
            ..TensorProto::default()
        }
    }

    /// A directory with 24 bytes, the floats 0 to 5, in `w.bin` and `sub/w.bin`; `secret` lies beside it.
    fn model_dir() -> (tempfile::TempDir, ExternalData) {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let model = dir.path().join("model");
        fs::create_dir_all(model.join("sub")).unwrap();
        for path in ["secret", "model/w.bin", "model/sub/w.bin"] {
            fs::write(dir.path().join(path), &bytes).unwrap();
        }
        fs::write(model.join("empty"), "").unwrap();
        (dir, ExternalData::new(model))
    }

    #[test]
    fn payloads_are_slices_of_one_map() {
        let (_dir, data) = model_dir();
        let load = |dims: &[i64], entries: &[(&str, &str)]| {
            let proto = tensor(dims, entries);
            let bytes = data.load(&proto).unwrap();
            (bytes.as_ptr(), Tensor::from_proto(proto, Some(bytes)).unwrap().array().unwrap())
        };
        let (whole, array) = load(&[2, 3], &[("location", "w.bin")]);
        assert_eq!(array, Array::new(&[2, 3], (0..6).map(|i| i as f32).collect()).unwrap());
        let (part, array) =
            load(&[2], &[("location", "w.bin"), ("offset", "8"), ("length", "8"), ("checksum", "?")]);
        assert_eq!(array, Array::vector(vec![2f32, 3.0]));
        assert_eq!(part, whole.wrapping_add(8));
        assert_eq!(load(&[1], &[("location", "./sub/w.bin"), ("offset", "20")]).1, Array::vector(vec![5f32]));
        assert!(load(&[0], &[("location", "w.bin"), ("offset", "24")]).1.is_empty());
        assert!(load(&[0], &[("location", "empty")]).1.is_empty());
    }

    #[track_caller]
    fn check_refusal(data: &ExternalData, proto: &TensorProto, expected: &str) {
        let message = data.load(proto).expect_err("accepted").to_string();
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn a_location_stays_in_the_directory() {
        let (dir, data) = model_dir();
        let absolute = dir.path().join("model/w.bin");
        for (location, expected) in [
            ("../secret", "leaves the model's directory"),
            ("sub/../../secret", "leaves the model's directory"),
            ("sub/../w.bin", "leaves the model's directory"),
            (absolute.to_str().unwrap(), "leaves the model's directory"),
            ("*/_ORT_MEM_ADDR_/*", "an address in memory is not a file"),
            ("", "without a location"),
            (".", "not a regular file"),
            ("sub", "not a regular file"),
            ("missing", "external data `missing`: cannot be read"),
            ("w.bin/x", "cannot be read"),
            ("w.bin\0", "cannot be read"),
        ] {
            check_refusal(&data, &tensor(&[6], &[("location", location)]), expected);
        }
        check_refusal(&data, &tensor(&[6], &[]), "without a location");
    }

    #[cfg(unix)]
    #[test]
    fn links_and_devices_are_refused() {
        use std::os::unix::{fs::symlink, net::UnixListener};
        let (dir, data) = model_dir();
        let model = dir.path().join("model");
        symlink("../secret", model.join("link")).unwrap();
        symlink("w.bin", model.join("inner")).unwrap();
        symlink("..", model.join("up")).unwrap();
        for location in ["link", "inner", "up/secret", "up/model/w.bin"] {
            let proto = tensor(&[6], &[("location", location)]);
            check_refusal(&data, &proto, "passes through a symbolic link");
        }
        let _socket = UnixListener::bind(model.join("socket")).unwrap();
        check_refusal(&data, &tensor(&[6], &[("location", "socket")]), "not a regular file");
        check_refusal(
            &ExternalData::new("/dev"),
            &tensor(&[6], &[("location", "zero")]),
            "not a regular file",
        );
    }

    #[test]
    fn sizes_are_compared() {
        let (_dir, data) = model_dir();
        let max = u64::MAX.to_string();
        let check = |dims: &[i64], offset: &str, length: &str, expected| {
            let entries = [("location", "w.bin"), ("offset", offset), ("length", length)];
            check_refusal(&data, &tensor(dims, &entries), expected);
        };
        check(&[6], "25", "0", "offset 25 lies behind its 24 bytes");
        check(&[6], &max, "24", "lies behind");
        check(&[6], "8", "24", "no 24 bytes at 8, it has 24");
        check(&[6], "8", &max, "no 18446744073709551615 bytes at 8");
        check(&[6], "0", "20", "the tensor needs 24 bytes, 20 are given");
        check(&[5], "0", "24", "the tensor needs 20 bytes, 24 are given");
        check(&[1 << 62, 4], "0", "24", "too large");
        check(&[1 << 58], "0", "24", "the tensor needs 1152921504606846976 bytes");
        check(&[-1], "0", "24", "dimension -1 is negative");
        check(&[6], "-8", "24", "offset is `-8`, not a number of bytes");
        check(&[6], "0", "0x18", "length is `0x18`, not a number of bytes");
        check(&[6], "18446744073709551616", "24", "offset is `18446744073709551616`");
        check_refusal(&data, &tensor(&[5], &[("location", "w.bin")]), "needs 20 bytes, 24 are given");
        let twice = [("location", "w.bin"), ("location", "sub/w.bin")];
        check_refusal(&data, &tensor(&[6], &twice), "location is given twice");
        for (code, expected) in [(DType::Str.to_onnx(), "strings"), (99, "unknown element type 99")] {
            let proto = TensorProto { data_type: Some(code), ..tensor(&[6], &[("location", "w.bin")]) };
            check_refusal(&data, &proto, expected);
        }
    }
}
