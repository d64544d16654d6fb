//! Readers against files written by NumPy, by the `ndarray-npy` and `image` crates, and by hand where they must be wrong.

use std::fs;
use std::path::Path;

use ndarray::{Array2, ArrayD, IxDyn};
use ndarray_npy::{NpzWriter, write_npy};
use prost::Message;
use tempfile::TempDir;

use super::*;
use crate::calibrate::config::Config;
use crate::ir::{DType, Dim, Tensor};

fn input(name: &str, dtype: DType, dims: &str) -> InputSpec {
    let dims = dims.split_whitespace().map(|d| d.parse().map_or_else(|_| Dim::Symbol(d.into()), Dim::Known));
    InputSpec { name: name.into(), ty: TensorType::new(dtype, dims.collect()) }
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes a file below `dir`, with its directories.
fn put(dir: &TempDir, name: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Elements 0, 1, 2… plus `from`.
fn ramp(shape: &[usize], from: usize) -> ArrayD<f32> {
    let count: usize = shape.iter().product();
    ArrayD::from_shape_vec(IxDyn(shape), (from..from + count).map(|v| v as f32).collect()).unwrap()
}

fn npy_file(array: &ArrayD<f32>) -> Vec<u8> {
    let mut bytes = Vec::new();
    ndarray_npy::WriteNpyExt::write_npy(array, &mut bytes).unwrap();
    bytes
}

fn npz_file(arrays: &[(&str, ArrayD<f32>)], compressed: bool) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut npz = if compressed { NpzWriter::new_compressed(&mut bytes) } else { NpzWriter::new(&mut bytes) };
    for (name, array) in arrays {
        npz.add_array(*name, array).unwrap();
    }
    npz.finish().unwrap();
    bytes.into_inner()
}

/// A `.npy` file with this header and payload, whatever they say.
fn raw_npy(header: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The message of the first error when opening and loading all samples.
#[track_caller]
fn refusal(path: &Path, inputs: &[InputSpec], recipe: Option<&Recipe>) -> String {
    let all = open(path, inputs, recipe).and_then(|s| (0..s.len()).try_for_each(|i| s.load(i).map(drop)));
    all.expect_err("accepted").to_string()
}

#[track_caller]
fn check_refusal(path: &Path, inputs: &[InputSpec], expected: &str) {
    let message = refusal(path, inputs, None);
    assert!(message.contains(expected), "{message}");
}

#[test]
fn numpy_arrays_of_every_type() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/numpy_arrays.npz");
    let mut npz = Npz::open(&path).unwrap();
    let names = npz.names();
    assert_eq!(names.len(), 37);
    for (member, name) in names.iter().enumerate() {
        let array = npz.array(member).unwrap().array().unwrap();
        let shape = [2, 3, 4];
        macro_rules! expected {
            ($type:ty, $value:expr) => {
                Array::new(&shape, (0..24).map($value).collect::<Vec<$type>>()).unwrap()
            };
        }
        let expected = match name.split('_').next().unwrap() {
            "f2" => expected!(half::f16, |i: i16| half::f16::from_f32(f32::from(5 * i - 40))),
            "f4" => expected!(f32, |i: i16| f32::from(5 * i - 40)),
            "f8" => expected!(f64, |i: i16| f64::from(5 * i - 40)),
            "i1" => expected!(i8, |i| 5 * i - 40),
            "i2" => expected!(i16, |i| 5 * i - 40),
            "i4" => expected!(i32, |i| 5 * i - 40),
            "i8" => expected!(i64, |i| 5 * i - 40),
            "u1" => expected!(u8, |i| 5 * i),
            "u2" => expected!(u16, |i| 5 * i),
            "u4" => expected!(u32, |i| 5 * i),
            "u8" => expected!(u64, |i| 5 * i),
            "b1" => expected!(bool, |i| i % 3 == 0),
            _ => Array::scalar(7i64),
        };
        assert_eq!(array, expected, "{name}");
    }
    // Half of an array, row-major and column-major.
    for name in ["i2_c", "i2_f", "i2_be"] {
        let member = names.iter().position(|n| n == name).unwrap();
        let half = npz.array(member).unwrap().part(1, 2).unwrap();
        assert_eq!(
            half,
            Array::new(&[1, 3, 4], (12..24i16).map(|i| 5 * i - 40).collect()).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn archives() {
    let dir = dir();
    let inputs = [input("x", DType::F32, "N 3"), input("in/y:0", DType::F32, "N 2")];
    put(&dir, "b.npz", npz_file(&[("in/y:0", ramp(&[2, 2], 10)), ("x", ramp(&[2, 3], 0))], true));
    put(
        &dir,
        "a.npz",
        npz_file(&[("x", ramp(&[3], 5)), ("in_y_0", ramp(&[1, 2], 8)), ("z", ramp(&[1], 0))], false),
    );
    put(&dir, "notes.txt", "passed over");
    put(&dir, ".hidden.npz", "passed over");
    let samples = open(dir.path(), &inputs, None).unwrap();
    let names: Vec<_> = samples.names().map(|n| n.rsplit('/').next().unwrap()).collect();
    assert_eq!(names, ["a.npz", "b.npz"]);
    assert_eq!(samples.load(0).unwrap(), [ramp(&[1, 3], 5).into(), ramp(&[1, 2], 8).into()]);
    assert_eq!(samples.load(1).unwrap(), [ramp(&[2, 3], 0).into(), ramp(&[2, 2], 10).into()]);
    assert_eq!(
        samples.warnings(),
        ["arrays left aside: `z`; the model takes `x` float[N,3], `in/y:0` float[N,2]"]
    );
    assert!(samples.load(2).is_err());
}

#[test]
fn arrays_without_names_are_taken_in_order() {
    let dir = dir();
    let inputs = [input("a", DType::F32, "2"), input("b", DType::F32, "3")];
    put(&dir, "s.npz", npz_file(&[("arr_0", ramp(&[2], 0)), ("arr_1", ramp(&[3], 0))], false));
    let samples = open(&dir.path().join("s.npz"), &inputs, None).unwrap();
    assert_eq!(samples.load(0).unwrap(), [ramp(&[2], 0).into(), ramp(&[3], 0).into()]);
}

#[test]
fn names_that_only_differ_in_punctuation_need_the_exact_name() {
    let dir = dir();
    let inputs = [input("a/b", DType::F32, "1"), input("a:b", DType::F32, "1")];
    put(&dir, "s.npz", npz_file(&[("a_b", ramp(&[1], 0))], false));
    check_refusal(dir.path(), &inputs, "no array for the input `a/b`, but `a_b`");
}

#[test]
fn files_of_many_samples_are_split_for_a_fixed_batch_size() {
    let inputs =
        [input("x", DType::F32, "2 3"), input("shared", DType::F32, "2"), input("n", DType::F32, "N")];
    for compressed in [false, true] {
        let dir = dir();
        let arrays = [("x", ramp(&[6, 3], 0)), ("shared", ramp(&[2], 1)), ("n", ramp(&[6], 0))];
        put(&dir, "all.npz", npz_file(&arrays, compressed));
        let samples = open(dir.path(), &inputs, None).unwrap();
        assert_eq!(samples.len(), 3);
        assert!(samples.names().nth(2).unwrap().ends_with("all.npz[2]"));
        for i in 0..3 {
            let expected = [ramp(&[2, 3], 6 * i).into(), ramp(&[2], 1).into(), ramp(&[6], 0).into()];
            assert_eq!(samples.load(i).unwrap(), expected);
        }
    }
    // Inputs that do not agree on the number are not split but refused.
    let dir = dir();
    let arrays = [("x", ramp(&[6, 3], 0)), ("shared", ramp(&[4], 1)), ("n", ramp(&[6], 0))];
    put(&dir, "all.npz", npz_file(&arrays, false));
    check_refusal(dir.path(), &inputs, "input `x`: the model takes float[2,3], the sample holds float[6,3]");
}

#[test]
fn single_arrays_and_directories() {
    let files = dir();
    put(&files, "1.npy", npy_file(&ramp(&[1, 4], 1)));
    put(&files, "0.NPY", npy_file(&ramp(&[4], 0)));
    let x = [input("x", DType::F32, "1 4")];
    let samples = open(files.path(), &x, None).unwrap();
    assert_eq!(samples.load(0).unwrap(), [ramp(&[1, 4], 0).into()]);
    assert_eq!(samples.load(1).unwrap(), [ramp(&[1, 4], 1).into()]);
    let two = [x[0].clone(), input("y", DType::F32, "1 4")];
    check_refusal(files.path(), &two, "a .npy is one array, and the model has 2 inputs");

    let dirs = dir();
    for (name, from) in [("s1", 4), ("s0", 0)] {
        put(&dirs, &format!("{name}/x.npy"), npy_file(&ramp(&[1, 4], from)));
        put(&dirs, &format!("{name}/y.npy"), npy_file(&ramp(&[1, 4], from + 100)));
    }
    let samples = open(dirs.path(), &two, None).unwrap();
    assert_eq!(samples.load(0).unwrap(), [ramp(&[1, 4], 0).into(), ramp(&[1, 4], 100).into()]);
    assert_eq!(samples.load(1).unwrap(), [ramp(&[1, 4], 4).into(), ramp(&[1, 4], 104).into()]);
    put(&dirs, "s2/x.npy", npy_file(&ramp(&[1, 4], 0)));
    check_refusal(dirs.path(), &two, "s2: no array for the input `y`, but `x`");
}

#[test]
fn onnx_test_data() {
    let tensor = |name: Option<&str>, from| {
        let proto = Tensor::from_array(&ramp(&[2], from).into()).proto().clone();
        crate::proto::TensorProto { name: name.map(Into::into), ..proto }.encode_to_vec()
    };
    let inputs: Vec<InputSpec> = (0..11).map(|i| input(&format!("x{i}"), DType::F32, "2")).collect();
    let dir = dir();
    for i in 0..11usize {
        put(&dir, &format!("test_data_set_0/input_{i}.pb"), tensor(None, i)); // by number: input_10 is the last
        put(&dir, &format!("test_data_set_1/input_{i}.pb"), tensor(Some(&format!("x{}", 10 - i)), i)); // by name
    }
    put(&dir, "test_data_set_0/output_0.pb", tensor(None, 0));
    put(&dir, "model.onnx", "passed over");
    let samples = open(dir.path(), &inputs, None).unwrap();
    assert_eq!(samples.load(0).unwrap(), (0..11).map(|i| ramp(&[2], i).into()).collect::<Vec<_>>());
    assert_eq!(samples.load(1).unwrap(), (0..11).map(|i| ramp(&[2], 10 - i).into()).collect::<Vec<_>>());
    assert_eq!(open(&dir.path().join("test_data_set_1"), &inputs, None).unwrap().len(), 1);
    check_refusal(dir.path(), &inputs[..10], "no array for the input `x0`, but `");
    put(&dir, "test_data_set_0/input_3.pb", b"\x0a\xff\xff");
    check_refusal(dir.path(), &inputs, "input_3.pb: not a serialized tensor");
}

#[test]
fn types_shapes_and_values_are_checked() {
    let dir = dir();
    put(&dir, "a.npy", npy_file(&ramp(&[1, 2, 2, 3], 0)));
    let check = |dtype, dims, expected| check_refusal(dir.path(), &[input("x", dtype, dims)], expected);
    check(
        DType::I64,
        "1 2 2 3",
        "input `x`: the model takes int64, the sample holds float32 (hint: convert it with .astype(\"int64\"))",
    );
    check(DType::F64, "1 2 2 3", "the model takes float64, the sample holds float32");
    check(
        DType::F32,
        "1 3 N N",
        "takes float[1,3,N,N], the sample holds float[1,2,2,3] (hint: the channels lie on another axis; transpose with [0, 3, 1, 2])",
    );
    check(DType::F32, "4 2 2 3", "the model takes float[4,2,2,3]");
    check(DType::F32, "4 1 2 2 3", "the model takes float[4,1,2,2,3]");
    check(DType::F32, "1 2 3", "the model takes float[1,2,3]");
    for (value, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut array = ramp(&[2, 3], 0);
        array[[1, 1]] = value;
        put(&dir, "a.npy", npy_file(&array));
        let message = refusal(dir.path(), &[input("x", DType::F32, "N 3")], None);
        assert!(
            message.ends_with(&format!("a.npy: input `x`: element 4 of float[2,3], row by row, is {name}")),
            "{message}"
        );
    }
}

#[test]
fn doubles_are_converted_with_one_warning() {
    let dir = dir();
    for name in ["a.npy", "b.npy"] {
        write_npy(dir.path().join(name), &Array2::from_elem((1, 2), 0.1f64)).unwrap();
    }
    let inputs = [input("x", DType::F32, "N 2")];
    let samples = open(dir.path(), &inputs, None).unwrap();
    assert!(samples.warnings().is_empty());
    for i in 0..2 {
        assert_eq!(samples.load(i).unwrap(), [Array::new(&[1, 2], vec![0.1f32; 2]).unwrap()]);
    }
    assert_eq!(samples.warnings(), ["input `x`: the samples are float64 and were converted to float32"]);
    write_npy(dir.path().join("c.npy"), &Array2::from_elem((1, 2), 1e300f64)).unwrap();
    check_refusal(dir.path(), &inputs, "element 0 of float[1,2], row by row, is inf");
}

#[test]
fn directories_without_samples_and_mixed_ones() {
    let dir = dir();
    let inputs = [input("x", DType::F32, "2")];
    check_refusal(&dir.path().join("missing"), &inputs, "No such file or directory");
    check_refusal(dir.path(), &inputs, "no samples found (hint: expected *.npz");
    put(&dir, "sub/readme.md", "");
    check_refusal(dir.path(), &inputs, "no samples found");
    put(&dir, "a.npz", "");
    put(&dir, "b.JPG", "");
    put(&dir, "c.png", "");
    put(&dir, "d/x.npy", "");
    check_refusal(
        dir.path(),
        &inputs,
        "different layouts: 1 × .npz, 1 × directory of .npy files, 2 × picture",
    );
}

#[test]
fn lying_npy_files() {
    let inputs = [input("x", DType::F32, "N")];
    let header = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
    let good = raw_npy(&header("(2,)"), &[0; 8]);
    let nested = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {}", "(".repeat(60_000));
    let mut long = b"\x93NUMPY\x02\x00".to_vec();
    long.extend_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, expected) in [
        (good[..9].to_vec(), "ends inside the header"),
        (good[..40].to_vec(), "ends inside the header"),
        (good[..good.len() - 1].to_vec(), "promises 8 bytes of elements (float[2]), found 7"),
        ([good.as_slice(), b"x"].concat(), "promises 8 bytes of elements (float[2]), found 9"),
        (b"PK\x03\x04 not an array".to_vec(), "not a NumPy array file"),
        (b"\x93NUMPY\x09\x00".to_vec(), "version 9"),
        (long, "a header of 4294967295 bytes"),
        (raw_npy(&nested, &[]), "shape is not a tuple"),
        (raw_npy(&header("(4611686018427387904, 4)"), &[0; 8]), "too large"),
        (raw_npy(&header("(0, 18446744073709551615, 2)"), &[]), "too large"),
        (raw_npy(&header("(1000000000,)"), &[0; 8]), "too large"),
        (raw_npy(&header("(99999999999999999999999,)"), &[0; 8]), "is not an extent"),
        (raw_npy(&header("(-1,)"), &[0; 8]), "-1 is not an extent"),
        (raw_npy(&header(&format!("({})", "1,".repeat(100))), &[0; 4]), "100 dimensions"),
        (raw_npy(&header("2"), &[0; 8]), "shape is not a tuple"),
        (raw_npy("{'shape': (1,), 'fortran_order': False, 'descr': '|O'}", &[0; 8]), "Python objects"),
        (
            raw_npy("{'shape': (1,), 'fortran_order': False, 'descr': '<c8'}", &[0; 8]),
            "type <c8 are not read",
        ),
        (raw_npy("{'shape': (1,), 'fortran_order': False, 'descr': [('a', '<f4')]}", &[]), "structured"),
        (raw_npy("{'shape': (1,), 'fortran_order': 0, 'descr': '<f4'}", &[0; 4]), "neither True nor False"),
        (raw_npy("{'shape': (1,), 'fortran_order': True, 'descr': '<f4', 'x': 1}", &[0; 4]), "other keys"),
    ] {
        let dir = dir();
        put(&dir, "a.npy", bytes);
        check_refusal(dir.path(), &inputs, expected);
    }
}

#[test]
fn broken_archives() {
    let inputs = [input("x", DType::F32, "N")];
    let good = npz_file(&[("x", ramp(&[1000], 0))], true);
    for length in [0, 1, 30, 200, good.len() / 2, good.len() - 1] {
        let dir = dir();
        put(&dir, "a.npz", &good[..length]);
        check_refusal(dir.path(), &inputs, "a.npz: the archive cannot be read");
    }
    // A flipped byte is found by the checksum, if not before.
    let stored = npz_file(&[("x", ramp(&[1000], 0))], false);
    let mut flipped = stored.clone();
    flipped[2000] ^= 1;
    let dir = dir();
    put(&dir, "a.npz", flipped);
    check_refusal(dir.path(), &inputs, "the elements cannot be read");
    // A bomb: the array inside promises more than the archive does.
    let mut bytes = std::io::Cursor::new(Vec::new());
    let mut writer = zip::ZipWriter::new(&mut bytes);
    writer.start_file("x.npy", zip::write::SimpleFileOptions::default()).unwrap();
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (268435457,), }\n";
    std::io::Write::write_all(&mut writer, &raw_npy(header, &[0; 4096])).unwrap();
    writer.finish().unwrap();
    put(&dir, "a.npz", bytes.into_inner());
    check_refusal(dir.path(), &inputs, "too large; at most 1073741824 bytes");
}

#[test]
fn digests_depend_on_names_order_and_contents_only() {
    let digest = |files: &[(&str, usize)]| {
        let dir = dir();
        files.iter().for_each(|(name, from)| put(&dir, name, npy_file(&ramp(&[4], *from))));
        open(dir.path(), &[input("x", DType::F32, "N")], None).unwrap().digest().unwrap()
    };
    let first = digest(&[("a.npy", 0), ("b.npy", 1)]);
    assert!(first.len() == 16 && first.chars().all(|c| c.is_ascii_hexdigit()));
    assert_eq!(first, digest(&[("b.npy", 1), ("a.npy", 0)]));
    assert_ne!(first, digest(&[("a.npy", 1), ("b.npy", 0)]));
    assert_ne!(first, digest(&[("a.npy", 0), ("c.npy", 1)]));
    assert_ne!(first, digest(&[("a.npy", 0)]));
}

#[test]
fn loading_in_parallel_gives_the_same() {
    use rayon::prelude::*;
    let dir = dir();
    put(&dir, "all.npz", npz_file(&[("x", ramp(&[64, 100], 0))], true));
    let samples = open(dir.path(), &[input("x", DType::F32, "1 100")], None).unwrap();
    assert_eq!(samples.len(), 64);
    (0..64).into_par_iter().for_each(|i| {
        assert_eq!(samples.load(i).unwrap(), [ramp(&[1, 100], 100 * i).into()]);
    });
}

/// Writes a picture whose channels are 10x + y, 100 + 10x + y and 200 + y.
fn put_picture(dir: &TempDir, width: u32, height: u32) {
    let channels = |x, y| [10 * x + y, 100 + 10 * x + y, 200 + y].map(|v| v as u8);
    let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb(channels(x, y)));
    picture.save(dir.path().join("p.png")).unwrap();
}

fn recipe(text: &str) -> Recipe {
    Config::parse(&format!("[preprocess]\n{text}")).unwrap().preprocess.unwrap()
}

#[track_caller]
fn load_picture(dir: &TempDir, spec: InputSpec, text: &str) -> Array {
    let samples = open(dir.path(), &[spec], Some(&recipe(text))).unwrap();
    samples.load(0).unwrap().remove(0)
}

#[test]
fn pictures_become_tensors() {
    let dir = dir();
    put_picture(&dir, 3, 2);
    let x = |dims| input("x", DType::F32, dims);
    let array = load_picture(&dir, x("N 3 H W"), "scale = 1");
    let planes: Vec<f32> = vec![
        0., 10., 20., 1., 11., 21., 100., 110., 120., 101., 111., 121., 200., 200., 200., 201., 201., 201.,
    ];
    assert_eq!(array, Array::new(&[1, 3, 2, 3], planes).unwrap());
    let array =
        load_picture(&dir, x("1 1 1 3"), "scale = 1\nlayout = 'nhwc'\nchannels = 'bgr'\ncrop = [1, 1]");
    assert_eq!(array, Array::new(&[1, 1, 1, 3], vec![200f32, 110., 10.]).unwrap());
    let array = load_picture(&dir, x("3 1 1"), "crop = [1, 1]\nmean = [0.1, 0.2, 0.3]\nstd = [0.5]");
    let expected = [(10f64, 0.1), (110., 0.2), (200., 0.3)].map(|(v, mean)| ((v / 255. - mean) / 0.5) as f32);
    assert_eq!(array.shape(), [3, 1, 1]);
    for (found, expected) in array.slice::<f32>().unwrap().iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6);
    }
    let array = load_picture(&dir, x("1 1 2 3"), "scale = 1\nchannels = 'gray'");
    let luma = |r: f64, g: f64, b: f64| (0.299 * r + 0.587 * g + 0.114 * b).round() as f32;
    assert_eq!(array.slice::<f32>().unwrap()[..2], [luma(0., 100., 200.), luma(10., 110., 200.)]);
    let bytes = load_picture(&dir, input("x", DType::U8, "1 3 1 1"), "crop = [1, 1]");
    assert_eq!(bytes, Array::new(&[1, 3, 1, 1], vec![10u8, 110, 200]).unwrap());
    let unranked = InputSpec { name: "x".into(), ty: TensorType::unranked(DType::F32) };
    assert_eq!(load_picture(&dir, unranked, "").shape(), [1, 3, 2, 3]);
}

#[test]
fn pictures_are_resized_and_cropped() {
    let x = || input("x", DType::F32, "1 3 H W");
    let dir = dir();
    put_picture(&dir, 8, 4);
    // Two by two pixels are one: nearest takes one of them, bilinear weighs neighbours by 1, 3, 3, 1.
    let nearest = load_picture(&dir, x(), "resize = 2\nfilter = 'nearest'\nscale = 1");
    assert_eq!(nearest.shape(), [1, 3, 2, 4]);
    let values = nearest.slice::<f32>().unwrap();
    assert!(values[..4].windows(2).all(|w| w[1] - w[0] == 20.0), "{values:?}");
    let bilinear = load_picture(&dir, x(), "resize = [4, 2]\nscale = 1");
    let inner = bilinear.slice::<f32>().unwrap()[1];
    assert!((inner - 25.0).abs() <= 1.5, "{inner}"); // columns 2 and 3, rows 0 and 1 (and a little of row 2)
    assert_eq!(load_picture(&dir, x(), "resize = 6\nfilter = 'bicubic'").shape(), [1, 3, 6, 12]);
    // An odd margin of 3 rows above and below a single row: 1.5 is rounded to 2.
    let row = load_picture(&dir, x(), "crop = [8, 1]\nscale = 1");
    assert_eq!(row.slice::<f32>().unwrap()[0], 2.0);
}

#[test]
fn jpegs_are_read() {
    let dir = dir();
    image::RgbImage::from_pixel(16, 16, image::Rgb([90, 160, 30])).save(dir.path().join("p.jpeg")).unwrap();
    let array = load_picture(&dir, input("x", DType::F32, "1 3 16 16"), "scale = 1");
    for (plane, expected) in array.slice::<f32>().unwrap().chunks(256).zip([90.0, 160.0, 30.0]) {
        assert!(plane.iter().all(|v| (v - expected).abs() <= 4.0), "{plane:?}");
    }
}

#[test]
fn pictures_that_do_not_fit() {
    let dir = dir();
    put_picture(&dir, 8, 4);
    let x = [input("x", DType::F32, "1 3 4 4")];
    check_refusal(
        dir.path(),
        &x,
        "pictures need a recipe that makes tensors of them (hint: describe it under [preprocess]",
    );
    let refuse = |inputs: &[InputSpec], text: &str, expected: &str| {
        let message = refusal(dir.path(), inputs, Some(&recipe(text)));
        assert!(message.contains(expected), "{message}");
    };
    refuse(&x, "", "p.png: input `x`: the model takes float[1,3,4,4], the sample holds float[3,4,8]");
    refuse(&x, "crop = [4, 5]", "a picture of 8 × 4 pixels has no centre of 4 × 5");
    refuse(&x, "resize = 10000", "a picture of 20000 × 10000 pixels");
    refuse(&[input("x", DType::I64, "1 3 4 8")], "", "pictures for an input of type int64");
    refuse(&[x[0].clone(), x[0].clone()], "", "a picture is one array, and the model has 2 inputs");
    // A PNG header of 2^31 - 1 by 1 pixels, and one that is only a header.
    let png = fs::read(dir.path().join("p.png")).unwrap();
    for (width, expected) in
        [(0x7fff_ffff_u32, "the picture cannot be read"), (8, "the picture cannot be read")]
    {
        let mut cut = png[..40].to_vec();
        cut[16..20].copy_from_slice(&width.to_be_bytes());
        put(&dir, "p.png", cut);
        refuse(&x, "", expected);
    }
    put(&dir, "p.png", "text");
    refuse(&x, "", "neither a PNG nor a JPEG picture");
}

#[cfg(unix)]
#[test]
fn only_regular_files_are_read() {
    let dir = dir();
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("a.npy")).unwrap();
    check_refusal(dir.path(), &[input("x", DType::F32, "N")], "not a regular file");
}
