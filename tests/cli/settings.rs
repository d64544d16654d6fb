//! qonnx.toml, targets and steps of tuning on the command line.

use super::{args, digits, qonnx, samples, tempdir};

#[test]
fn what_is_typed_wins_over_the_file() {
    let dir = tempdir();
    let (config, out, json) =
        (dir.path().join("q.toml"), dir.path().join("out.onnx"), dir.path().join("report.json"));
    let compile = |text: &str, more: &[&str]| {
        std::fs::write(&config, text).unwrap();
        let mut all: Vec<&dyn AsRef<std::ffi::OsStr>> = vec![&"compile"];
        let (model, data) = (digits(), samples());
        all.extend([&model as &dyn AsRef<std::ffi::OsStr>, &out, &"--calib", &data, &"--config", &config]);
        all.extend([&"--json" as &dyn AsRef<std::ffi::OsStr>, &json]);
        all.extend(more.iter().map(|m| m as &dyn AsRef<std::ffi::OsStr>));
        qonnx(&all)
    };
    let report = || -> serde_json::Value { serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap() };
    compile("[compile]\neffort = 'fast'\nsamples = 3\nexclude = ['*']", &[]).code(0);
    assert_eq!(report()["samples"], 3);
    assert_eq!(report()["quantized"]["nodes"], serde_json::json!([]));
    compile("[compile]\neffort = 'fast'\nsamples = 3", &["--samples", "5"]).code(0);
    assert_eq!(report()["samples"], 5);
    compile("[compile]\nefort = 'fast'", &[]).code(1).says(&["did you mean `effort`?"]);
    compile("[compile]\neffort = 'slow'", &[]).code(2);
    compile("[compile]\nper-tensor = 'yes'", &[]).code(1).says(&["true or false"]);
    compile("[[node]]\nname = '*'\nfloat = true", &["--effort", "fast"]).code(0);
    assert_eq!(report()["quantized"]["nodes"], serde_json::json!([]));
    compile("[[value]]\nname = '*'\nrange = [-64.0, 63.5]", &["--steps", "none"]).code(0);
    let activations = report()["quantized"]["activations"].clone();
    assert!(activations.as_array().unwrap().iter().all(|a| a["scale"] == 0.5), "{activations}");
    compile("[[value]]\nname = '*'\nrange = [1.0, 2.0]", &[]).code(1).says(&["with 0 between them"]);
}

#[test]
fn init_writes_what_compile_reads() {
    let dir = tempdir();
    let config = dir.path().join("qonnx.toml");
    qonnx(args!["init", digits(), "-o", config]).code(0);
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(
        text.contains("[compile]") && text.contains("# effort = \"balanced\"") && text.contains("# [[node]]")
    );
    qonnx(args!["compile", digits(), dir.path().join("out.onnx"), "--config", config, "-q"]).code(0);
    qonnx(args!["init", digits(), "-o", config]).code(1).says(&["is there already"]);
}

#[test]
fn a_table_of_ones_own_is_a_target() {
    let dir = tempdir();
    let (table, out) = (dir.path().join("mine.toml"), dir.path().join("out.onnx"));
    std::fs::write(&table, "base = \"qnn-htp\"\nopset = 21\n").unwrap();
    let how = ["--weight", "s4", "--steps", "rounding"];
    let all = args![
        "compile",
        digits(),
        out,
        "--calib",
        samples(),
        "--target",
        table,
        how[0],
        how[1],
        how[2],
        how[3]
    ];
    qonnx(all).code(0);
    qonnx(args!["inspect", out]).code(0).prints(&["int4", "ai.onnx 21"]);
    qonnx(args!["compare", digits(), out, "--data", samples(), "--min-sqnr", "10"]).code(0);
    std::fs::write(&table, "base = \"qnn-htp\"\nspeed = 3\n").unwrap();
    qonnx(args!["compile", digits(), out, "--calib", samples(), "--target", table]).code(1).says(&["speed"]);
    qonnx(args!["compile", digits(), out, "--calib", samples(), "--weight", "s4"])
        .code(1)
        .says(&["int8, uint8"]);
}

#[test]
fn steps_by_name() {
    let dir = tempdir();
    let out = dir.path().join("out.onnx");
    for (steps, said) in [
        ("bias-correction", "bias correction"),
        ("block-training", "block training"),
        ("trade-off,rounding", "rounding"),
    ] {
        qonnx(args!["compile", digits(), out, "--calib", samples(), "--steps", steps, "-v"])
            .code(0)
            .says(&[said]);
    }
    let best = qonnx(args![
        "compile",
        digits(),
        out,
        "--calib",
        samples(),
        "--effort",
        "best",
        "--per-tensor",
        "-v"
    ]);
    best.code(0).says(&["trade-off", "rounding", "block training"]);
    qonnx(args!["compile", digits(), out, "--calib", samples(), "--steps", "magic"])
        .code(2)
        .says(&["smoothing"]);
}
