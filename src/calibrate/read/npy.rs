//! NumPy's array files: [`.npy`](https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html), and `.npz`,
//! a zip archive of them.
//!
//! A file is a magic string, a version, the length of a header, the header, and the elements. The header is a Python
//! dictionary with three keys, `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`. It is searched for these
//! keys rather than parsed as Python, so that no header can nest, and nothing is allocated before its claims have been
//! compared with the size of the file.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::path::Path;

use half::f16;
use ndarray::{ArrayD, Axis, IxDyn, ShapeBuilder};
use zip::ZipArchive;

use super::open_regular;
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, element_count};

/// The most bytes that the elements of one array may take.
const MAX_BYTES: usize = 1 << 30;
/// Bytes.
const MAX_HEADER: u32 = 1 << 16;
const MAX_RANK: usize = 64;
const MAX_MEMBERS: usize = 10_000;

/// An open `.npy` file whose header has been read and agrees with the size of the file.
pub struct Npy<R> {
    /// The extents, outermost first.
    pub shape: Vec<usize>,
    dtype: DType,
    big_endian: bool,
    fortran: bool,
    reader: R,
}

impl<R: Read> Npy<R> {
    /// Reads the header from a reader of `size` bytes.
    pub fn new(mut reader: R, size: u64) -> Result<Self, Fault> {
        let cut = |_: io::Error| Fault::new("the file ends inside the header of the array");
        let mut start = [0; 8];
        reader.read_exact(&mut start).map_err(cut)?;
        let [magic @ .., major, _minor] = start;
        if magic != *b"\x93NUMPY" {
            fail!("not a NumPy array file");
        }
        let (prefix, length) = match major {
            1 => {
                let mut bytes = [0; 2];
                reader.read_exact(&mut bytes).map_err(cut)?;
                (10, u32::from(u16::from_le_bytes(bytes)))
            }
            2 | 3 => {
                let mut bytes = [0; 4];
                reader.read_exact(&mut bytes).map_err(cut)?;
                (12, u32::from_le_bytes(bytes))
            }
            other => fail!("version {other} of the NumPy array format is unknown"),
        };
        if length > MAX_HEADER {
            fail!("a header of {length} bytes; at most {MAX_HEADER} are read");
        }
        let mut header = Vec::new();
        reader.by_ref().take(length.into()).read_to_end(&mut header).map_err(cut)?;
        if header.len() as u64 != u64::from(length) {
            fail!("the file ends inside the header of the array");
        }
        let Ok(header) = std::str::from_utf8(&header) else { fail!("the header is not text") };
        let (dtype, big_endian) = descr(value(header, "descr")?)?;
        let fortran = match value(header, "fortran_order")? {
            v if v.starts_with("True") => true,
            v if v.starts_with("False") => false,
            _ => fail!("the header's fortran_order is neither True nor False"),
        };
        let shape = shape(value(header, "shape")?)?;
        if header.matches(':').count() != 3 {
            fail!("the header has other keys than descr, fortran_order and shape");
        }
        let npy = Self { shape, dtype, big_endian, fortran, reader };
        let needed = npy.bytes(&npy.shape)?;
        let found = size.saturating_sub(prefix + u64::from(length));
        if needed as u64 != found {
            fail!("the header promises {needed} bytes of elements ({}{:?}), found {found}", dtype, npy.shape);
        }
        Ok(npy)
    }

    fn bytes(&self, shape: &[usize]) -> Result<usize, Fault> {
        let bytes = element_count(shape)?.checked_mul(self.dtype.bits() / 8);
        match bytes.filter(|&bytes| bytes <= MAX_BYTES) {
            Some(bytes) => Ok(bytes),
            None => fail!("an array of shape {shape:?} is too large; at most {MAX_BYTES} bytes are read"),
        }
    }

    /// All elements.
    pub fn array(mut self) -> Result<Array, Fault> {
        let shape = std::mem::take(&mut self.shape);
        let array = self.elements(&shape, None)?;
        // Reading to the end also lets a zip archive compare its checksum.
        match self.reader.read(&mut [0]).map_err(unreadable)? {
            0 => Ok(array),
            _ => Err("bytes follow the elements".into()),
        }
    }

    /// Part `index` of `parts` equal parts along the first axis.
    pub fn part(mut self, index: usize, parts: usize) -> Result<Array, Fault> {
        let mut shape = self.shape.clone();
        let Some(first) = shape.first_mut().filter(|n| parts > 0 && **n % parts == 0) else {
            fail!("an array of shape {shape:?} has no {parts} equal parts");
        };
        *first /= parts;
        let first = *first;
        if self.fortran {
            let rows = first.saturating_mul(index)..first.saturating_mul(index.saturating_add(1));
            let whole = self.shape.clone();
            return self.elements(&whole, Some(rows));
        }
        let skip = (self.bytes(&shape)? as u64).saturating_mul(index as u64);
        io::copy(&mut self.reader.by_ref().take(skip), &mut io::sink()).map_err(unreadable)?;
        self.elements(&shape, None)
    }

    /// The next elements of the file as an array of this shape, or only these `rows` of it.
    fn elements(&mut self, shape: &[usize], rows: Option<Range<usize>>) -> Result<Array, Fault> {
        let needed = self.bytes(shape)?;
        let mut bytes = Vec::new();
        self.reader.by_ref().take(needed as u64).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() != needed {
            fail!("the elements end after {} of {needed} bytes", bytes.len());
        }
        macro_rules! array {
            ($type:ty, $decode:expr) => {{
                let (words, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
                let elements: Vec<$type> = words.iter().map(|&word| $decode(word)).collect();
                let array = ArrayD::from_shape_vec(IxDyn(shape).set_f(self.fortran), elements)?;
                match rows {
                    None => Ok(array.into()),
                    Some(rows) if rows.end <= array.len_of(Axis(0)) => {
                        Ok(array.slice_axis(Axis(0), rows.into()).to_owned().into())
                    }
                    Some(rows) => fail!("there are no rows {rows:?}"),
                }
            }};
            ($type:ty) => {
                array!($type, |w| if self.big_endian {
                    <$type>::from_be_bytes(w)
                } else {
                    <$type>::from_le_bytes(w)
                })
            };
        }
        match self.dtype {
            DType::F16 => array!(f16),
            DType::F32 => array!(f32),
            DType::F64 => array!(f64),
            DType::I8 => array!(i8),
            DType::I16 => array!(i16),
            DType::I32 => array!(i32),
            DType::I64 => array!(i64),
            DType::U8 => array!(u8),
            DType::U16 => array!(u16),
            DType::U32 => array!(u32),
            DType::U64 => array!(u64),
            DType::Bool => array!(bool, |[byte]: [u8; 1]| byte != 0),
            other => Err(Fault::unimplemented(format_args!("NumPy arrays of {other}"))),
        }
    }
}

fn unreadable(error: io::Error) -> Fault {
    Fault::new(format!("the elements cannot be read: {error}"))
}

/// The text that follows `'key':` in a header.
fn value<'a>(header: &'a str, key: &str) -> Result<&'a str, Fault> {
    let after = ['\'', '"'].iter().find_map(|quote| header.split_once(&format!("{quote}{key}{quote}")));
    match after.and_then(|(_, rest)| rest.trim_start().strip_prefix(':')) {
        Some(rest) => Ok(rest.trim_start()),
        None => fail!("the header has no key {key}"),
    }
}

/// An element type and whether it is big-endian, from text such as `'<f4', …`.
fn descr(text: &str) -> Result<(DType, bool), Fault> {
    if text.starts_with('[') {
        fail!("structured arrays are not read");
    }
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'));
    let Some((name, _)) = quote.and_then(|quote| text.get(1..)?.split_once(quote)) else {
        fail!("the header's descr is not a string");
    };
    let dtype = match name.trim_start_matches(['<', '>', '|', '=']) {
        "f2" => DType::F16,
        "f4" => DType::F32,
        "f8" => DType::F64,
        "i1" => DType::I8,
        "i2" => DType::I16,
        "i4" => DType::I32,
        "i8" => DType::I64,
        "u1" => DType::U8,
        "u2" => DType::U16,
        "u4" => DType::U32,
        "u8" => DType::U64,
        "b1" => DType::Bool,
        "O" => fail!("an array of Python objects is not read"),
        _ => fail!("NumPy arrays of type {name} are not read"),
    };
    Ok((dtype, name.starts_with('>')))
}

/// The extents, from text such as `(3, 4), …`.
fn shape(text: &str) -> Result<Vec<usize>, Fault> {
    let Some((inside, _)) = text.strip_prefix('(').and_then(|text| text.split_once(')')) else {
        fail!("the header's shape is not a tuple");
    };
    let extents = inside.split(',').map(str::trim).filter(|extent| !extent.is_empty());
    let shape: Vec<usize> = extents
        .map(|extent| extent.parse().map_err(|_| Fault::new(format!("{extent} is not an extent"))))
        .collect::<Result<_, _>>()?;
    if shape.len() > MAX_RANK {
        fail!("{} dimensions; at most {MAX_RANK} are read", shape.len());
    }
    Ok(shape)
}

/// Opens a `.npy` file.
pub fn open(path: &Path) -> Result<Npy<BufReader<File>>, Fault> {
    let (file, size) = open_regular(path)?;
    Npy::new(BufReader::new(file), size)
}

/// A `.npz` archive.
pub struct Npz(ZipArchive<BufReader<File>>);

impl Npz {
    /// Opens an archive and reads its directory.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let (file, _) = open_regular(path)?;
        let archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
        if archive.len() > MAX_MEMBERS {
            fail!("{} members; at most {MAX_MEMBERS} are read", archive.len());
        }
        Ok(Self(archive))
    }

    /// The names of the arrays, in the order of the archive.
    pub fn names(&self) -> Vec<String> {
        self.0.file_names().map(|name| name.strip_suffix(".npy").unwrap_or(name).to_owned()).collect()
    }

    /// Opens array number `index` of [`Npz::names`].
    pub fn array(&mut self, index: usize) -> Result<Npy<impl Read + use<'_>>, Fault> {
        let member = self.0.by_index(index).map_err(broken)?;
        let size = member.size();
        Npy::new(member, size)
    }
}

fn broken(error: zip::result::ZipError) -> Fault {
    Fault::new(format!("the archive cannot be read: {error}"))
}
