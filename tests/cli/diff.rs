use serde_json::Value;

use super::{args, compiled, digits, golden, model, qonnx, samples, tempdir};

const BEFORE: &str = r#"<ir_version: 8, opset_import: ["" : 13]>
g (float[N,4] x) => (float[N,4] y) < float[4,4] w = random(1, -1, 1), float s = {0.5}, uint8 z = {0} > {
  [mul] a = MatMul (x, w)
  [leak] b = LeakyRelu <alpha = 0.1> (a)
  q = QuantizeLinear (b, s, z)
  y = DequantizeLinear (q, s, z)
}"#;

#[test]
fn exit_codes_are_those_of_diff() {
    let dir = tempdir();
    let (a, b) =
        (model(&dir, "a.onnx", BEFORE), model(&dir, "b.onnx", &BEFORE.replace("alpha = 0.1", "alpha = 0.2")));
    assert!(qonnx(args!["diff", a, a]).code(0).out.is_empty());
    qonnx(args!["diff", a, b]).code(1).prints(&["~ attribute   LeakyRelu `leak`  alpha 0.1 -> 0.2"]);
    assert!(qonnx(args!["diff", a, b, "-q"]).code(1).out.is_empty());
    qonnx(args!["diff", a, dir.path().join("none.onnx")]).code(2).one_error();
}

#[test]
fn names_of_constants_and_order_do_not_matter() {
    let dir = tempdir();
    let a = model(&dir, "a.onnx", BEFORE);
    let renamed =
        BEFORE.replace(" w = ", " weight = ").replace("(x, w)", "(x, weight)").replace("[leak]", "[other]");
    qonnx(args!["diff", a, model(&dir, "b.onnx", &renamed)]).code(0);
}

#[test]
fn what_moved_and_by_how_much() {
    let dir = tempdir();
    let a = model(&dir, "a.onnx", BEFORE);
    let changed = |from: &str, to: &str, expected: &str| {
        let b = model(&dir, "b.onnx", &BEFORE.replace(from, to));
        let outcome = qonnx(args!["diff", a, b]).code(1);
        assert!(outcome.out.lines().any(|l| l.starts_with(expected)), "no `{expected}` in\n{}", outcome.out);
    };
    changed(
        "float s = {0.5}, uint8 z = {0}",
        "float s = {0.6}, uint8 z = {7}",
        "~ quantized   b  scale 0.5 -> 0.6 (+20.00 %), zero 0 -> 7",
    );
    changed("\"\" : 13", "\"\" : 17", "~ opset       ai.onnx  13 -> 17");
    changed(
        "random(1, -1, 1)",
        "random(2, -1, 1)",
        "~ constant    MatMul `mul`  1: 16 of 16 elements differ, by up to ",
    );
    changed("float[N,4] x", "float[2,4] x", "~ input       x  float[N,4] -> float[2,4]");
    let gone =
        BEFORE.replace("  [leak] b = LeakyRelu <alpha = 0.1> (a)\n", "").replace("(b, s, z)", "(a, s, z)");
    qonnx(args!["diff", a, model(&dir, "b.onnx", &gone)]).code(1).prints(&["- node        LeakyRelu `leak`"]);
    changed(
        "[mul] a = MatMul (x, w)",
        "[pre] p = Relu (x)\n [mul] a = MatMul (p, w)",
        "~ input       MatMul `mul`  0: `x` -> `p`",
    );
}

#[test]
fn compiling_is_told_as_fusion_and_quantization() {
    let dir = tempdir();
    let a = golden(&dir, "conv_bn_relu6");
    let calib = dir.path().join("calib");
    std::fs::create_dir(&calib).unwrap();
    let shape = qonnx::onnx::read(&a).unwrap().model.graph;
    let shape: Vec<usize> = shape
        .ty(shape.inputs[0])
        .unwrap()
        .dims
        .as_ref()
        .unwrap()
        .iter()
        .map(|d| d.known().unwrap_or(1))
        .collect();
    let x = ndarray::ArrayD::<f32>::from_shape_fn(shape, |i| (i[1] + 3 * i[2] + 7 * i[3]) as f32 % 5.0 - 2.0);
    ndarray_npy::write_npy(calib.join("x.npy"), &x).unwrap();
    let b = dir.path().join("b.onnx");
    qonnx(args!["compile", a, b, "--calib", calib, "-q"]).code(0);
    let outcome = qonnx(args!["diff", a, b]).code(1);
    outcome.prints(&[
        "- node        BatchNormalization",
        "fused into Conv",
        "+ quantized ",
        "quantized, int8",
    ]);
    let json: Value = serde_json::from_str(&qonnx(args!["diff", a, b, "--json"]).code(1).out).unwrap();
    assert!(json.as_array().unwrap().iter().any(|c| c["kind"] == "quantized" && c["side"] == "added"));
}

#[test]
fn two_calibrations_differ_in_their_scales_alone() {
    let dir = tempdir();
    let (a, b) = (compiled(&dir), dir.path().join("b.onnx"));
    qonnx(args![
        "compile",
        digits(),
        b,
        "--calib",
        samples(),
        "--samples",
        "8",
        "-q",
        "--calibrator",
        "minmax"
    ])
    .code(0);
    let outcome = qonnx(args!["diff", a, b]).code(1);
    for line in outcome.out.lines() {
        assert!(["~ quantized ", "~ constant ", "~ metadata "].iter().any(|k| line.starts_with(k)), "{line}");
    }
}
