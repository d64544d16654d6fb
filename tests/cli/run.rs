use ndarray::{Array1, Array2, array};
use ndarray_npy::{read_npy, write_npy};

use super::{args, digits, model, qonnx, samples, tempdir};

const ODD: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
odd (float[N] a, float[N] b, float[2] scale) => (float[N] "sum/total:0", bfloat16[N] half, bool[N] more)
< float[2] scale = {2.0, 3.0} > {
  s = Add (a, b)
  "sum/total:0" = Mul (s, scale)
  half = Cast <to = 16> (s)
  more = Greater (a, b)
}"#;

#[test]
fn inputs_by_name_or_number_and_outputs_under_safe_names() {
    let dir = tempdir();
    let path = model(&dir, "odd.onnx", ODD);
    let (inputs, out) = (dir.path().join("in"), dir.path().join("new/out"));
    std::fs::create_dir(&inputs).unwrap();
    write_npy(inputs.join("a.npy"), &array![1.0f32, f32::NAN]).unwrap();
    write_npy(inputs.join("input_1.npy"), &array![10.0f32, 20.0]).unwrap();
    qonnx(args!["run", path, "--input-dir", inputs, "--out", out]).code(0).says(&[
        "`sum/total:0` float[2]",
        "sum_total_0.npy (the name is no file name)",
        "output_1.pb",
    ]);
    let sum: Array1<f32> = read_npy(out.join("sum_total_0.npy")).unwrap();
    assert!(sum[0] == 22.0 && sum[1].is_nan(), "the default of `scale` holds, NaN is let through: {sum}");
    let more: Array1<bool> = read_npy(out.join("more.npy")).unwrap();
    assert_eq!(more.to_vec(), [false, false]);
    // A default can be overridden, and what was written can be read.
    write_npy(inputs.join("scale.npy"), &array![0.5f32, 0.5]).unwrap();
    qonnx(args!["run", path, "--input-dir", inputs, "--out", out, "-q"]).code(0);
    let sum: Array1<f32> = read_npy(out.join("sum_total_0.npy")).unwrap();
    assert_eq!(sum[0], 5.5);
    let back = model(
        &dir,
        "back.onnx",
        r#"<ir_version: 8, opset_import: ["" : 17]> g (bfloat16[N] half) => (float[N] y) { y = Cast <to = 1> (half) }"#,
    );
    let again = dir.path().join("again");
    std::fs::create_dir(&again).unwrap();
    std::fs::copy(out.join("output_1.pb"), again.join("input_0.pb")).unwrap();
    qonnx(args!["run", back, "--input-dir", again, "--out", again, "-q"]).code(0);
    let y: Array1<f32> = read_npy(again.join("y.npy")).unwrap();
    assert_eq!(y[0], 11.0);
}

#[test]
fn digits_as_onnx_runtime_computes_them() {
    // From ONNX Runtime 1.32 with optimizations off, on sample 0: the two largest scores.
    let dir = tempdir();
    let (inputs, out) = (dir.path().join("in"), dir.path().join("out"));
    std::fs::create_dir(&inputs).unwrap();
    let mut archive =
        ndarray_npy::NpzReader::new(std::fs::File::open(samples().join("00.npz")).unwrap()).unwrap();
    let x: ndarray::Array4<f32> = archive.by_name("x").unwrap();
    write_npy(inputs.join("input_0.npy"), &x).unwrap();
    qonnx(args!["run", digits(), "--input-dir", inputs, "--out", out, "--threads", "1"]).code(0);
    let files: Vec<_> = std::fs::read_dir(&out).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(files.len(), 1);
    let scores: Array2<f32> = read_npy(&files[0]).unwrap();
    EXPECTED.iter().for_each(|&(class, score)| {
        assert!(
            (scores[[0, class]] - score).abs() < 1e-3,
            "class {class}: {} for {score}",
            scores[[0, class]]
        );
    });
}

const EXPECTED: [(usize, f32); 2] = [(7, 16.3287), (9, 4.3488)];

#[test]
fn a_missing_operator_is_told_by_its_own_code() {
    let dir = tempdir();
    let path = super::golden(&dir, "unknown_op");
    let inputs = dir.path().join("in");
    std::fs::create_dir(&inputs).unwrap();
    write_npy(inputs.join("x.npy"), &ndarray::Array4::<f32>::zeros((1, 3, 8, 8))).unwrap();
    let out = dir.path().join("out");
    qonnx(args!["run", path, "--input-dir", inputs, "--out", out])
        .code(3)
        .says(&["error: not implemented: Warp (com.example, opset 1) at node `warp`"])
        .one_error();
    assert!(!out.exists());
}

#[test]
fn missing_and_doubtful_files_are_refused() {
    let dir = tempdir();
    let path = model(&dir, "odd.onnx", ODD);
    let inputs = dir.path().join("in");
    std::fs::create_dir(&inputs).unwrap();
    let run = || qonnx(args!["run", path, "--input-dir", inputs, "--out", dir.path().join("out")]);
    write_npy(inputs.join("a.npy"), &array![1.0f32, 2.0]).unwrap();
    run().code(1).says(&["no file for input `b`", "`b.npy` or `input_1.npy`"]).one_error();
    write_npy(inputs.join("b.npy"), &array![1i32, 2]).unwrap();
    run().code(1).says(&["input `b`", "int32"]).one_error();
    write_npy(inputs.join("b.npy"), &array![[1.0f32, 2.0]]).unwrap();
    run().code(1).says(&["input `b`", "float[1,2]"]).one_error();
    write_npy(inputs.join("b.npy"), &array![1.0f32, 2.0]).unwrap();
    write_npy(inputs.join("input_0.npy"), &array![1.0f32, 2.0]).unwrap();
    run().code(1).says(&["are all for input `a`"]).one_error();
    std::fs::rename(inputs.join("input_0.npy"), inputs.join("c.npy")).unwrap();
    run().code(0).says(&["warning: files that are for no input: `c.npy`"]);
}
