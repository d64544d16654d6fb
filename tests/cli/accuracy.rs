//! Bounds that a result must keep, and which layers stand in their way.

use serde_json::Value;

use super::compare::labelled;
use super::{args, digits, model, qonnx, samples, tempdir};

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
    qonnx(args!["compile", digits(), out, "--calib", samples(), "--json", json]).code(0);
    let free = report(&json);
    assert!(free["quantized"]["mark"].is_null());
    let bound = |db: &str| {
        qonnx(args!["compile", digits(), out, "--calib", samples(), "--json", json, "--min-sqnr", db])
    };
    bound("5").code(0).says(&["bound 5 dB SQNR: kept", "held-out samples"]);
    assert_eq!(integers(&report(&json)), integers(&free), "a bound that is kept anyway changes nothing");
    bound("45").code(0).says(&["bound 45 dB SQNR: kept"]);
    let hard = report(&json);
    let mark = &hard["quantized"]["mark"];
    assert!(mark["met"].as_bool().unwrap());
    assert!(mark["reached"].as_f64().is_none_or(|db| db >= 45.0));
    assert!(integers(&hard) < integers(&free));
}

#[test]
fn where_four_bits_break_a_bound_as_few_weights_as_it_takes_get_eight() {
    let dir = tempdir();
    let (out, json) = (dir.path().join("out.onnx"), dir.path().join("report.json"));
    let types = |db: &str| {
        let files = args!["compile", digits(), out, "--calib", samples(), "--json", json];
        let narrow = args!["--target", "qnn-htp", "--weight", "s4", "--min-sqnr", db];
        qonnx(&[files.as_slice(), narrow].concat()).code(0).says(&["kept"]);
        let report = report(&json);
        let step = |s: &Value| s["name"] == "wider weights";
        assert_eq!(report["quantized"]["steps"].as_array().unwrap().iter().any(step), db != "5");
        let weights = report["quantized"]["weights"].as_array().unwrap().clone();
        let of = |ty: &str| weights.iter().filter(|w| w["dtype"] == ty).count();
        (of("int4"), of("int8"), weights.len())
    };
    let (four, eight, all) = types("5");
    assert_eq!((four, eight), (all, 0), "a bound that is kept anyway changes nothing");
    let (four, eight, all) = types("26");
    assert!(four > 0 && eight > 0 && four + eight == all, "{four} {eight} {all}");
}

#[test]
fn where_eight_bits_break_a_bound_as_few_activations_as_it_takes_get_sixteen() {
    let dir = tempdir();
    let (out, json) = (dir.path().join("out.onnx"), dir.path().join("report.json"));
    for (target, wide_type) in [("integer-only", "int16"), ("qnn-htp", "uint16")] {
        let compile = |db: &str| {
            let files = args!["compile", digits(), out, "--calib", samples(), "--json", json];
            let bound = args!["--target", target, "--min-sqnr", db];
            qonnx(&[files.as_slice(), bound].concat()).code(0).says(&["kept"]);
            let quantized = report(&json)["quantized"].clone();
            let step = |s: &Value| s["name"] == "wider activations";
            assert_eq!(quantized["steps"].as_array().unwrap().iter().any(step), db != "5");
            let count = |key: &str| quantized[key].as_array().unwrap().len();
            let types = quantized["activations"].as_array().unwrap().clone();
            (count("wide"), count("nodes"), types.iter().filter(|a| a["dtype"] == wide_type).count())
        };
        let (wide, all, values) = compile("5");
        assert_eq!((wide, values), (0, 0), "a bound that is kept anyway changes nothing");
        let (some, as_before, values) = compile("40");
        assert!(some > 0 && some < all && as_before == all && values > 0, "{some} of {all}, {values}");
    }
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
    qonnx(args!["compile", digits(), out, "--mode", "none", "--min-sqnr", "20"]).code(1);
    qonnx(args!["compile", digits(), out, "--calib", data, "--min-sqnr", "20", "--float", "fp16"]).code(1);
    assert!(!out.exists());
}

#[test]
fn rows_without_classes_have_no_best_class() {
    let dir = tempdir();
    let text = "<ir_version: 8, opset_import: [\"\" : 17]> one (float[1,4] x) => (float[1,1] y) \
                <float[4,1] w = {1, -2, 3, 0.5}> { y = MatMul(x, w) }";
    let (source, out) = (model(&dir, "one.onnx", text), dir.path().join("out.onnx"));
    let data = inputs(&dir, 4);
    qonnx(args!["compile", source, out, "--calib", data, "--max-drop", "1"])
        .code(1)
        .says(&["scores by class"]);
}

/// Eight samples of one row.
fn inputs(dir: &tempfile::TempDir, columns: usize) -> std::path::PathBuf {
    let data = dir.path().join("rows");
    std::fs::create_dir(&data).unwrap();
    for i in 0..8 {
        let row = ndarray::Array2::from_shape_fn((1, columns), |(_, j)| {
            ((i * 37 + j * 17) % 29) as f32 / 7.0 - 2.0
        });
        ndarray_npy::write_npy(data.join(format!("{i}.npy")), &row).unwrap();
    }
    data
}

#[test]
fn weights_beside_the_integers_keep_the_bound_too() {
    let dir = tempdir();
    let weights: Vec<String> =
        (0..256).map(|i| format!("{}", f64::from(i * 7919 % 1009) / 500.0 - 1.0)).collect();
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> m (float[1,16] x) => (float[1,16] y) \
         <float[16,16] w = {{{}}}> {{ p = MatMul(x, w) y = Tanh(p) }}",
        weights.join(", ")
    );
    let (source, out) = (model(&dir, "matmul.onnx", &text), dir.path().join("out.onnx"));
    let data = inputs(&dir, 16);
    qonnx(args!["compile", source, out, "--calib", data]).code(0).says(&["operators 1 in integers"]);
    let outcome = qonnx(args!["compile", source, out, "--calib", data, "--min-sqnr", "200"]).code(0);
    let outcome = outcome.says(&["0 in integers", "bound 200 dB SQNR: kept"]);
    assert!(!outcome.err.contains("with integer weights"), "{}", outcome.err);
}

/// `count` numbers from -scale to scale.
fn numbers(count: usize, scale: f64) -> String {
    let number = |i: usize| format!("{}", (((i * 7919) % 1009) as f64 / 504.0 - 1.0) * scale);
    (0..count).map(number).collect::<Vec<_>>().join(", ")
}

#[test]
fn weights_of_a_recurrent_layer_that_takes_little_time_become_integers() {
    let dir = tempdir();
    let text = format!(
        "<ir_version: 8, opset_import: [\"\" : 17]> m (float[1,12288] x) => (float[48,1,1,24] y) \
         <int64[4] image = {{1, 8, 32, 48}}, float[24,8,3,3] w = {{{}}}, float[24,24,3,3] v = {{{}}}, \
          int64[1] rows = {{2}}, float[1,72,24] g = {{{}}}, float[1,72,24] r = {{{}}}> {{
           i = Reshape(x, image) a = Conv <pads = [1, 1, 1, 1]> (i, w) b = Relu(a)
           c = Conv <pads = [1, 1, 1, 1]> (b, v) d = Relu(c) p = MaxPool <kernel_shape = [32, 1]> (d)
           s = Squeeze(p, rows) t = Transpose <perm = [2, 0, 1]> (s)
           y = GRU <hidden_size = 24> (t, g, r) }}",
        numbers(24 * 8 * 9, 0.3),
        numbers(24 * 24 * 9, 0.1),
        numbers(72 * 24, 0.4),
        numbers(72 * 24, 0.4),
    );
    let (source, out) = (model(&dir, "recurrent.onnx", &text), dir.path().join("out.onnx"));
    let json = dir.path().join("report.json");
    let data = inputs(&dir, 12288);
    let stored = |report: &Value| report["quantized"]["stored"].to_string().contains("GRU");
    qonnx(args!["compile", source, out, "--calib", data, "--json", json]).code(0);
    assert!(stored(&report(&json)), "{}", report(&json)["quantized"]["stored"]);
    // Whoever gives a bound for the outputs gives one for these weights.
    qonnx(args!["compile", source, out, "--calib", data, "--json", json, "--min-sqnr", "200"]).code(0);
    assert!(!stored(&report(&json)));
}

#[test]
fn other_labels_make_another_result() {
    let dir = tempdir();
    let (data, labels) = labelled(&dir, 12);
    let (out, depfile) = (dir.path().join("out.onnx"), dir.path().join("out.d"));
    let compile = || {
        qonnx(args![
            "compile",
            digits(),
            out,
            "--calib",
            data,
            "--max-drop",
            "50",
            "--labels",
            labels,
            "--if-changed",
            "--depfile",
            depfile,
        ])
        .code(0)
    };
    compile();
    compile().says(&["unchanged"]);
    assert!(std::fs::read_to_string(&depfile).unwrap().contains("labels.txt"));
    std::fs::write(&labels, "1\n".repeat(12)).unwrap();
    assert!(!compile().err.contains("unchanged"));
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
