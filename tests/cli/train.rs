//! `qonnx train`.

use super::*;

/// The digits model and its calibration samples.
fn digits() -> (PathBuf, PathBuf) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    (data.join("digits.onnx"), data.join("digits/calib"))
}

#[test]
fn train_tells_of_every_epoch_and_the_report_holds_the_curve() {
    let dir = TempDir::new().unwrap();
    let (out, json) = (dir.path().join("out.onnx"), dir.path().join("report.json"));
    let (model, data) = digits();
    let how = ["--bits", "4", "--epochs", "1", "--lr", "3e-4", "--effort", "fast"];
    let mut parts: Vec<&dyn AsRef<std::ffi::OsStr>> =
        vec![&"train", &model, &out, &"--data", &data, &"--json", &json];
    parts.extend(how.iter().map(|p| p as &dyn AsRef<std::ffi::OsStr>));
    qonnx(&parts).code(0).says(&["start ", "epoch   1 ", "training  epoch ", "accuracy "]);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["training"]["epochs"].as_array().unwrap().len(), 2);
    qonnx(&[&"inspect", &out]).code(0);
}

#[test]
fn bad_training_data_is_refused_and_the_output_stays() {
    let dir = TempDir::new().unwrap();
    let (out, labels) = (dir.path().join("out.onnx"), dir.path().join("labels.txt"));
    std::fs::write(&out, "as it was").unwrap();
    let (model, data) = digits();
    let train: [&dyn AsRef<std::ffi::OsStr>; 7] =
        [&"train", &model, &out, &"--data", &data, &"--effort", &"fast"];
    let with = |more: &[&dyn AsRef<std::ffi::OsStr>]| qonnx(&[&train[..], more].concat());
    let needed = "cross-entropy and both need --labels";
    with(&[&"--loss", &"cross-entropy"]).code(1).one_error().says(&[needed]);
    std::fs::write(&labels, "1\n2\n").unwrap();
    with(&[&"--labels", &labels]).code(1).one_error().says(&["2 labels", "labels.txt"]);
    std::fs::write(&labels, "10\n".repeat(64)).unwrap();
    with(&[&"--labels", &labels]).code(1).one_error().says(&["label 10, but there are 10 classes"]);
    with(&[&"--bits", &"9"]).code(2);
    with(&[&"--lr", &"-1"]).code(2);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "as it was");
}
