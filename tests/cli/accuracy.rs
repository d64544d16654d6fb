//! Bounds that a result must keep, and which layers stand in their way.

use serde_json::Value;

use super::compare::labelled;
use super::{Outcome, args, digits, qonnx, samples, tempdir};

fn report(path: &std::path::Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn integers(report: &Value) -> usize {
    report["quantized"]["nodes"].as_array().unwrap().len()
}

#[test]
fn a_bound_on_the_sqnr_is_kept_by_leaving_layers_in_float() {
    let dir = tempdir();
    let (out, json) = (dir.path().join("out.onnx"), dir.path().join("report.json"));
    let compile = |more: &[&str]| -> (Value, Outcome) {
        let mut arguments: Vec<&dyn AsRef<std::ffi::OsStr>> =
            vec![&"compile", digits_ref(), &out, &"--calib", samples_ref(), &"--json", &json];
        more.iter().for_each(|word| arguments.push(word));
        let outcome = qonnx(&arguments).code(0);
        (report(&json), outcome)
    };
    let (free, _) = compile(&[]);
    assert!(free["quantized"]["mark"].is_null());
    let (easy, outcome) = compile(&["--min-sqnr", "5"]);
    outcome.says(&["bound 5 dB SQNR: kept", "held-out samples"]);
    assert_eq!(integers(&easy), integers(&free), "a bound that is kept anyway changes nothing");
    let (hard, outcome) = compile(&["--min-sqnr", "45"]);
    outcome.says(&["bound 45 dB SQNR: kept"]);
    let mark = &hard["quantized"]["mark"];
    assert!(mark["met"].as_bool().unwrap());
    assert!(mark["reached"].as_f64().is_none_or(|db| db >= 45.0));
    assert!(integers(&hard) < integers(&free));
}

/// Paths that outlive a closure.
fn digits_ref() -> &'static std::path::PathBuf {
    static PATH: std::sync::LazyLock<std::path::PathBuf> = std::sync::LazyLock::new(digits);
    &PATH
}

fn samples_ref() -> &'static std::path::PathBuf {
    static PATH: std::sync::LazyLock<std::path::PathBuf> = std::sync::LazyLock::new(samples);
    &PATH
}

#[test]
fn bounds_on_the_best_class_with_and_without_labels() {
    let dir = tempdir();
    let (data, labels) = labelled(&dir, 40);
    let (out, json) = (dir.path().join("out.onnx"), dir.path().join("report.json"));
    qonnx(args!["compile", digits(), out, "--calib", data, "--max-drop", "0.5%", "--json", json])
        .code(0)
        .says(&["bound 0.5 points of rows with another best class: kept", "on 10 held-out samples"]);
    assert_eq!(report(&json)["quantized"]["mark"]["reached"], 0.0);
    qonnx(args!["compile", digits(), out, "--calib", data, "--max-drop", "1", "--labels", labels])
        .code(0)
        .says(&["bound 1 points of top-1 lost: kept", "on 10 held-out samples"]);
}

#[test]
fn bounds_that_cannot_be_judged_are_refused() {
    let dir = tempdir();
    let (data, labels) = labelled(&dir, 40);
    let out = dir.path().join("out.onnx");
    qonnx(args!["compile", digits(), out, "--min-sqnr", "20"]).code(1).says(&["a bound needs samples"]);
    qonnx(args!["compile", digits(), out, "--calib", data, "--min-sqnr", "20", "--effort", "fast"]).code(1);
    qonnx(args!["compile", digits(), out, "--calib", data, "--min-sqnr", "20", "--samples", "1"])
        .code(1)
        .says(&["none can be held out"]);
    qonnx(args!["compile", digits(), out, "--calib", data, "--max-drop", "few"]).code(2).says(&["points"]);
    qonnx(args!["compile", digits(), out, "--calib", data, "--labels", labels]).code(2);
    std::fs::write(&labels, "3\n4\n").unwrap();
    qonnx(args!["compile", digits(), out, "--calib", data, "--max-drop", "1", "--labels", labels])
        .code(1)
        .says(&["2 labels for 40"]);
    assert!(!out.exists());
}

#[test]
fn sensitivity_names_layers_and_choices() {
    let dir = tempdir();
    let json = dir.path().join("s.json");
    qonnx(args!["sensitivity", digits(), "--calib", samples(), "--top", "2", "--json", json])
        .code(0)
        .prints(&["output dB", "Conv", "more layers", "the default"]);
    let found = report(&json);
    let worst = |l: &Value| {
        let noise =
            |key: &str| l[key].as_f64().map_or(0.0, |db| libm::exp(-db * std::f64::consts::LN_10 / 10.0));
        noise("output_db") + noise("weight_db")
    };
    let noise: Vec<f64> = found["layers"].as_array().unwrap().iter().map(worst).collect();
    assert!(noise.len() > 3 && noise.is_sorted_by(|a, b| a >= b), "most sensitive first: {noise:?}");
    let choices = found["choices"].as_array().unwrap();
    let integer: Vec<u64> = choices.iter().map(|c| c["integer"].as_u64().unwrap()).collect();
    assert!(integer.is_sorted_by(|a, b| a >= b), "the dearer noise is, the less is integer: {integer:?}");
}
