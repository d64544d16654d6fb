//! Arrays to files: [`.npy`](https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html) where NumPy has
//! the element type, else a serialized `TensorProto`.

use std::collections::BTreeSet;

use prost::Message;

use crate::ir::{Array, DType, Tensor};

/// The longest file name that is made from a value's name, in bytes, without its ending.
const MAX_STEM: usize = 180;

/// An array as a NumPy file; `None` for element types that NumPy lacks.
pub fn npy(array: &Array) -> Option<Vec<u8>> {
    let descr = match array.dtype() {
        DType::F16 => "<f2",
        DType::F32 => "<f4",
        DType::F64 => "<f8",
        DType::I8 => "|i1",
        DType::I16 => "<i2",
        DType::I32 => "<i4",
        DType::I64 => "<i8",
        DType::U8 => "|u1",
        DType::U16 => "<u2",
        DType::U32 => "<u4",
        DType::U64 => "<u8",
        DType::Bool => "|b1",
        _ => return None,
    };
    let extents: Vec<String> = array.shape().iter().map(usize::to_string).collect();
    let comma = if extents.len() == 1 { "," } else { "" };
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}{comma}), }}", extents.join(", "));
    // Magic, version, length, header and a line feed fill whole blocks of 64 bytes.
    let unpadded = 10 + header.len() + 1;
    header.push_str(&" ".repeat(unpadded.next_multiple_of(64) - unpadded));
    header.push('\n');
    let length = u16::try_from(header.len()).ok()?;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(Tensor::from_array(array).proto().raw_data.as_deref()?);
    Some(bytes)
}

/// An array as a serialized `TensorProto` of this name.
pub fn protobuf(name: &str, array: &Array) -> Vec<u8> {
    let mut proto = Tensor::from_array(array).proto().clone();
    proto.name = Some(name.into());
    proto.encode_to_vec()
}

/// The name of a value as the stem of a file name: what separates directories or means something to a shell or a file
/// system becomes `_`.
pub fn file_stem(name: &str) -> String {
    let safe = |c: char| if c.is_control() || "/\\:*?\"<>|".contains(c) { '_' } else { c };
    let mut stem: String = name.chars().map(safe).collect();
    while stem.len() > MAX_STEM {
        stem.pop();
    }
    if stem.is_empty() || stem.starts_with('.') {
        stem.insert(0, '_');
    }
    stem
}

/// A file stem for each name, none twice, whatever the case of its letters.
pub fn file_stems<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut unique = |name: &str| {
        let stem = file_stem(name);
        let numbered = (1u64..).map(|i| format!("{stem}_{i}"));
        let mut stems = std::iter::once(stem.clone()).chain(numbered);
        stems.find(|s| taken.insert(s.to_lowercase())).unwrap_or_default()
    };
    names.into_iter().map(&mut unique).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numpy_files_are_read_back_by_another_reader() {
        use ndarray_npy::ReadNpyExt;
        let array = Array::new(&[2, 3], vec![1.5f32, -2.0, 0.0, f32::INFINITY, 1e-30, 7.0]).unwrap();
        let bytes = npy(&array).unwrap();
        assert_eq!(bytes.len() % 64, 24, "the header fills whole blocks");
        let read = ndarray::Array2::<f32>::read_npy(&bytes[..]).unwrap();
        assert_eq!(read.as_slice().unwrap(), array.slice::<f32>().unwrap());
        let vector = npy(&Array::vector(vec![3i64, -4])).unwrap();
        assert_eq!(ndarray::Array1::<i64>::read_npy(&vector[..]).unwrap().to_vec(), [3, -4]);
        let scalar = npy(&Array::scalar(true)).unwrap();
        assert!(ndarray::Array0::<bool>::read_npy(&scalar[..]).unwrap().into_scalar());
        assert!(npy(&Array::vector(vec![half::bf16::ONE])).is_none());
    }

    #[test]
    fn names_become_safe_and_stay_apart() {
        assert_eq!(file_stem("/layer1/conv:0"), "_layer1_conv_0");
        assert_eq!(file_stem(".."), "_..");
        assert_eq!(file_stem(""), "_");
        assert!(file_stem(&"é".repeat(500)).len() <= MAX_STEM);
        assert_eq!(file_stems(["a/b", "a:b", "A_B", "c"]), ["a_b", "a_b_1", "A_B_2", "c"]);
    }
}
