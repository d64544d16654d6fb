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
    compile("[compile]\neffort = 'best'", &["--steps", "none"]).code(0);
    assert_eq!(report()["quantized"]["steps"], serde_json::json!([]));
    compile("[compile]\nefort = 'fast'", &[]).code(1).says(&["did you mean `effort`?"]);
    compile("[compile]\neffort = 'slow'", &[]).code(2);
    compile("[compile]\nper-tensor = 'yes'", &[]).code(1).says(&["true or false"]);
    compile("[[node]]\nname = '*'\nfloat = true", &["--effort", "fast"]).code(0);
    assert_eq!(report()["quantized"]["nodes"], serde_json::json!([]));
    let four = ["--effort", "fast", "--target", "qnn-htp", "--weight", "s4"];
    compile("[[node]]\nname = '*'\nweight = 's8'", &four).code(0);
    let weights = report()["quantized"]["weights"].clone();
    assert!(weights.as_array().unwrap().iter().all(|w| w["dtype"] == "int8"), "{weights}");
    let unsigned = ["--effort", "fast", "--target", "qnn-htp", "--weight", "u8"];
    compile("[[node]]\nname = '*'\nweight = 's8'", &unsigned).code(0);
    let weights = report()["quantized"]["weights"].clone();
    assert!(weights.as_array().unwrap().iter().all(|w| w["dtype"] == "uint8"), "{weights}");
    let integers = ["--effort", "fast", "--target", "integer-only"];
    compile("[[node]]\nname = '*'\nactivation = 's16'", &integers).code(0);
    let quantized = report()["quantized"].clone();
    let activations = quantized["activations"].as_array().unwrap();
    assert!(activations.iter().all(|a| a["dtype"] == "int16"), "{activations:?}");
    assert!(quantized["wide"].as_array().is_some_and(|wide| !wide.is_empty()));
    compile("[[node]]\nname = '*'\nactivation = 'u16'", &integers).code(1).says(&["no uint16 beside int8"]);
    compile("[[node]]\nname = '*'\nactivation = 'u16'", &[]).code(1).says(&["no uint16 beside uint8"]);
    compile("[[node]]\nname = '*'\nactivation = 'u8'", &[]).code(1).says(&["u16"]);
    compile("[[node]]\nname = '*'\nweight = 's16'", &[]).code(1).says(&["s8"]);
    compile("[[node]]\nname = '*'", &[]).code(1).says(&["neither `float`, `weight` nor `activation`"]);
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
    best.code(0).says(&["trade-off", "rounding", "ranges once more", "block training"]);
    qonnx(args!["compile", digits(), out, "--calib", samples(), "--steps", "magic"])
        .code(2)
        .says(&["smoothing"]);
}

#[test]
fn bad_numbers_of_a_target_are_refused() {
    let dir = tempdir();
    let (table, out) = (dir.path().join("mine.toml"), dir.path().join("out.onnx"));
    for (line, said) in [
        ("levels = 0", "levels is 0"),
        ("levels = 65535", "levels is 65535"),
        ("weight_limit = 0", "weight_limit is 0"),
        ("weight_limit = 128", "weight_limit is 128"),
        ("opset = 7", "opset is 7"),
        ("noise_weight = nan", "NaN is no cost"),
        ("noise_weight = -1.0", "-1 is no cost"),
        ("wider = { activation = \"uint16\", time = nan }", "NaN is no cost"),
        ("activations = []", "no types"),
        ("activations = [\"float\"]", "no activations of type float"),
        ("base = \"mine.toml\"", "duplicate key"),
        ("[integer]\nConv = { integer = inf, float = 1.0 }", "inf is no cost"),
    ] {
        std::fs::write(&table, format!("base = \"ort-cpu\"\n{line}\n")).unwrap();
        let outcome = qonnx(args!["compile", digits(), out, "--calib", samples(), "--target", table]);
        outcome.code(1).one_error().says(&[said]);
    }
    std::fs::write(&table, "base = \"mine.toml\"\n").unwrap();
    qonnx(args!["explain", digits(), "--target", table])
        .code(1)
        .one_error()
        .says(&["not the name of a target"]);
}

#[test]
fn pins_are_told_and_recorded() {
    let dir = tempdir();
    let (config, out) = (dir.path().join("q.toml"), dir.path().join("out.onnx"));
    std::fs::write(
        &config,
        "[[node]]\nname = 'nobody'\nfloat = true\nweight = 's8'\nactivation = 'u16'\n[[value]]\nname = 'nothing*'\nrange = [0.0, 1.0]\n",
    )
    .unwrap();
    let fast = ["--steps", "none"];
    qonnx(args!["compile", digits(), out, "--calib", samples(), "--config", config, fast[0], fast[1]])
        .code(0)
        .says(&["no node is called `nobody`", "no value is called `nothing*`"]);
    let metadata = qonnx(args!["inspect", "--text", out]).code(0).out;
    assert!(
        metadata.contains("[[node]] nobody float weight s8 activation u16")
            && metadata.contains("[[value]] nothing* [0.0, 1.0]")
    );
}

#[test]
fn errors_of_the_file_have_the_form_that_was_asked_for() {
    let dir = tempdir();
    let config = dir.path().join("q.toml");
    std::fs::write(&config, "[compile]\nefort = 'fast'").unwrap();
    let outcome = qonnx(args!["compile", "a", "b", "--config", config, "--message-format", "json"]).code(1);
    let message: serde_json::Value = serde_json::from_str(outcome.err.trim()).unwrap();
    assert_eq!((message["level"].as_str(), message["code"].as_i64()), (Some("error"), Some(1)));
}

#[test]
fn what_stands_in_the_way_of_training_is_told() {
    let dir = tempdir();
    let out = dir.path().join("out.onnx");
    let few = ["--samples", "3", "--steps", "block-training"];
    qonnx(args!["compile", digits(), out, "--calib", samples(), few[0], few[1], few[2], few[3]])
        .code(0)
        .says(&["block training was left out", "too few"]);
}
