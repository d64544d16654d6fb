use super::{args, compiled, digits, qonnx, samples, tempdir};

#[test]
fn compiles_and_reports() {
    let dir = tempdir();
    let (out, json) = (dir.path().join("out.onnx"), dir.path().join("report.json"));
    let outcome =
        qonnx(args!["compile", digits(), out, "--calib", samples(), "--samples", "8", "--json", json]);
    let outcome = outcome.code(0).says(&["size ", "operators ", "worst ", "accuracy "]);
    assert!(outcome.out.is_empty(), "standard output is for what was asked for");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["mode"], "static");
    assert_eq!(
        std::fs::read(&out).unwrap(),
        std::fs::read(compiled(&dir)).unwrap(),
        "two runs, the same bytes"
    );
    assert!(qonnx(args!["compile", digits(), out, "-q"]).code(0).err.is_empty());
}

#[test]
fn the_page_stands_alone() {
    let dir = tempdir();
    let (out, page) = (dir.path().join("out.onnx"), dir.path().join("report.html"));
    qonnx(args!["compile", digits(), out, "--calib", samples(), "--samples", "8", "--report", page, "-q"])
        .code(0);
    let text = std::fs::read_to_string(page).unwrap();
    for part in [
        "<h2>Outputs</h2>",
        "<h2>Activations</h2>",
        "<h2>Operators</h2>",
        "prefers-color-scheme",
        "class=\"h\"",
    ] {
        assert!(text.contains(part), "{part}");
    }
    assert!(!text.contains("http"), "it asks for nothing from elsewhere");
    assert_eq!(text.matches("<tr>").count(), text.matches("</tr>").count());
}

#[test]
fn weights_alone_need_no_data() {
    let dir = tempdir();
    let out = dir.path().join("out.onnx");
    qonnx(args!["compile", digits(), out]).code(0).says(&["no calibration data"]);
    let before = std::fs::metadata(digits()).unwrap().len();
    assert!(std::fs::metadata(out).unwrap().len() < before);
}

#[test]
fn none_changes_no_byte() {
    let dir = tempdir();
    let out = dir.path().join("out.onnx");
    qonnx(args!["compile", digits(), out, "--mode", "none"]).code(0);
    assert_eq!(std::fs::read(out).unwrap(), std::fs::read(digits()).unwrap());
}
