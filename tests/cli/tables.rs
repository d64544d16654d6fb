//! Calibration tables: shards, merging, other tools' formats, and compiling from them.

use super::{args, digits, qonnx, samples, tempdir};

#[test]
fn shards_merge_to_the_bytes_of_one_run() {
    let dir = tempdir();
    let path = |name: &str| dir.path().join(name);
    let whole = path("whole.json");
    qonnx(args!["calibrate", digits(), "--calib", samples(), "-o", whole, "--threads", "1"]).code(0);
    for share in ["1/3", "2/3", "3/3"] {
        let part = path(&format!("{}.json", &share[..1]));
        qonnx(args!["calibrate", digits(), "--calib", samples(), "--shard", share, "-o", part, "-q"]).code(0);
    }
    let merged = path("merged.json");
    qonnx(args!["merge", path("3.json"), path("1.json"), path("2.json"), "-o", merged]).code(0);
    assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&merged).unwrap());
    qonnx(args!["merge", path("1.json"), path("1.json"), "-o", merged])
        .code(1)
        .says(&["in more than one table"]);
    qonnx(args!["calibrate", digits(), "--calib", samples(), "--shard", "4/3", "-o", merged]).code(2);
}

#[test]
fn a_table_stands_for_the_samples() {
    let dir = tempdir();
    let path = |name: &str| dir.path().join(name);
    let table = path("table.json");
    qonnx(args!["calibrate", digits(), "--calib", samples(), "-o", table, "-q"]).code(0);
    qonnx(args!["compile", digits(), path("a.onnx"), "--table", table, "-q"]).code(0);
    let fast = ["--effort", "fast"];
    qonnx(args!["compile", digits(), path("b.onnx"), "--calib", samples(), fast[0], fast[1], "-q"]).code(0);
    let differ = qonnx(args!["diff", path("a.onnx"), path("b.onnx")]).code(1).out;
    assert!(differ.lines().all(|line| line.contains("metadata")), "{differ}");
    let both = args!["compile", digits(), path("c.onnx"), "--table", table, "--calib", samples(), "-v"];
    qonnx(both).code(0).says(&["trade-off", "rounding"]);
    qonnx(args!["compile", path("a.onnx"), path("d.onnx"), "--table", table])
        .code(1)
        .says(&["the table is of model"]);
    std::fs::write(&table, "{}").unwrap();
    qonnx(args!["compile", digits(), path("d.onnx"), "--table", table]).code(1).one_error();
}

#[test]
fn ranges_of_other_tools() {
    let dir = tempdir();
    let path = |name: &str| dir.path().join(name);
    for (format, target) in [("tensorrt", "tensorrt"), ("aimet", "ort-cpu")] {
        let (ranges, out) = (path(format), path("out.onnx"));
        qonnx(args!["calibrate", digits(), "--calib", samples(), "-o", ranges, "--format", format]).code(0);
        qonnx(args!["compile", digits(), out, "--table", ranges, "--target", target, "-q"]).code(0);
        let compared = qonnx(args!["compare", digits(), out, "--data", samples(), "--min-sqnr", "20"]);
        compared.code(0);
    }
}

/// Broken tables: told in one line, never a panic.
#[test]
fn broken_tables_are_refused() {
    let dir = tempdir();
    let (table, out) = (dir.path().join("table.json"), dir.path().join("out.onnx"));
    qonnx(args!["calibrate", digits(), "--calib", samples(), "--samples", "2", "-o", table, "-q"]).code(0);
    let good = std::fs::read_to_string(&table).unwrap();
    let first = good.find("\"batches\":").unwrap();
    let huge =
        format!("{}\"batches\":{},{}", &good[..first], u64::MAX, &good[first..].split_once(',').unwrap().1);
    let bins = good.replacen("\"bins\":[[", "\"bins\":[[99999,1],[", 1);
    let zeros = good.replacen("\"zeros\":", "\"zeros\":9999999999999999", 1);
    for text in [
        &good[..good.len() / 2],
        &huge,
        &bins,
        &zeros,
        "[]",
        "TRT-1\nx",
        "",
        "{\"format\":\"qonnx calibration 9\"}",
    ] {
        std::fs::write(&table, text).unwrap();
        qonnx(args!["compile", digits(), out, "--table", table]).code(1).one_error();
        assert!(!out.exists());
    }
    let nowhere = dir.path().join("nowhere.json");
    qonnx(args!["compile", digits(), out, "--table", nowhere]).code(1).one_error();
    std::fs::write(&table, &good).unwrap();
    let other = args!["compile", digits(), out, "--table", table, "--mode", "fp16"];
    qonnx(other).code(1).says(&["--table goes with --mode static"]);
    // Places of samples that are not there.
    let few = args!["compile", digits(), out, "--table", table, "--calib", samples(), "--samples", "1"];
    qonnx(few).code(0);
}
