use std::path::Path;

use super::{args, compiled, digits, qonnx, qonnx_with, samples, tempdir};

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
fn pages_of_other_commands() {
    let dir = tempdir();
    let (page, out) = (dir.path().join("page.html"), compiled(&dir));
    let text = || std::fs::read_to_string(&page).unwrap();
    qonnx(args!["sensitivity", digits(), "--calib", samples(), "--samples", "8", "--report", page]).code(0);
    let parts = ["<h2>Each alone</h2>", "class=\"strip\"", "What there is to choose from"];
    parts.iter().for_each(|part| assert!(text().contains(part), "{part}"));
    qonnx(args![
        "compare",
        digits(),
        out,
        "--data",
        samples(),
        "--samples",
        "8",
        "--layers",
        "--report",
        page
    ])
    .code(0);
    ["<h2>Layers</h2>", "<h2>Outputs</h2>", "<h2>Map</h2>"]
        .iter()
        .for_each(|p| assert!(text().contains(p), "{p}"));
    assert!(!text().contains("http"), "it asks for nothing from elsewhere");
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
fn payloads_can_lie_beside_the_model() {
    let dir = tempdir();
    let (whole, split) = (dir.path().join("whole.onnx"), dir.path().join("split.onnx"));
    qonnx(args!["compile", digits(), whole, "--calib", samples(), "--samples", "8"]).code(0);
    qonnx(args!["compile", digits(), split, "--calib", samples(), "--samples", "8", "--external-data"])
        .code(0);
    let size = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(size(&split) < size(&whole) && size(&dir.path().join("split.onnx.data")) > 0);
    qonnx(args!["compare", whole, split, "--data", samples()]).code(0).prints(&["equal"]);
    // A result needs none of the files that it was made from: the directory of the split model goes away.
    let elsewhere = tempdir();
    let (again, none) = (elsewhere.path().join("again.onnx"), elsewhere.path().join("none.onnx"));
    qonnx(args!["compile", split, again, "--mode", "weight-only"]).code(0);
    qonnx(args!["compile", split, none, "--mode", "none"]).code(0);
    let same = dir.path().join("same.onnx");
    qonnx(args!["compile", split, same, "--mode", "none"]).code(0);
    assert_eq!(std::fs::read(&same).unwrap(), std::fs::read(&split).unwrap());
    std::fs::remove_file(dir.path().join("split.onnx.data")).unwrap();
    for path in [&again, &none] {
        qonnx(args!["compare", whole, path, "--data", samples()]).code(0).prints(&["equal"]);
    }
    qonnx(args!["inspect", split]).code(1).says(&["split.onnx.data"]);
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

/// Sums come in one order, whatever the vectors: a model does not depend on the processor that it was compiled on.
#[test]
fn every_kind_of_vectors_gives_the_same_bytes() {
    let dir = tempdir();
    let made = |isa: &str| {
        let out = dir.path().join(format!("{isa}.onnx"));
        qonnx_with(&[("QONNX_ISA", isa)], args!["compile", digits(), out, "--calib", samples(), "-q"])
            .code(0);
        std::fs::read(out).unwrap()
    };
    let widest = made("avx512");
    assert!(made("avx2") == widest && made("scalar") == widest);
    qonnx_with(&[("QONNX_ISA", "mmx")], args!["ops"])
        .code(1)
        .says(&["QONNX_ISA", "mmx", "avx512"])
        .one_error();
}
