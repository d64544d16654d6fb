//! Every kind of finding, each on a model that is sound but for one thing.

use serde_json::Value;

use super::{Outcome, args, compiled, digits, model, qonnx, tempdir};

/// A convolution as integer kernels want it.
const SOUND: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[1,2,4,4] x) => (float[1,2,4,4] y) <
  float xs = {0.5}, uint8 xz = {128}, float ys = {0.25}, uint8 yz = {0},
  int8[2,2,1,1] w = {100, -50, 20, 70}, float[2] ws = {0.01, 0.02}, int8[2] wz = {0, 0},
  int32[2] b = {10, 20}, float[2] bs = {0.005, 0.01}
> {
  xq = QuantizeLinear (x, xs, xz)
  xd = DequantizeLinear (xq, xs, xz)
  wd = DequantizeLinear <axis = 0> (w, ws, wz)
  bd = DequantizeLinear <axis = 0> (b, bs)
  [conv] c = Conv (xd, wd, bd)
  cq = QuantizeLinear (c, ys, yz)
  y = DequantizeLinear (cq, ys, yz)
}"#;

/// Explains the sound model after replacements.
fn explain(replace: &[(&str, &str)], more: &[&str]) -> Outcome {
    let dir = tempdir();
    let mut text = SOUND.to_string();
    for (from, to) in replace {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let path = model(&dir, "m.onnx", &text);
    let mut parts: Vec<&dyn AsRef<std::ffi::OsStr>> = args!["explain", path].to_vec();
    parts.extend(more.iter().map(|m| m as &dyn AsRef<std::ffi::OsStr>));
    qonnx(&parts)
}

#[track_caller]
fn finds(replace: &[(&str, &str)], parts: &[&str]) {
    explain(replace, &["--deny", "warnings"]).code(1).prints(parts);
}

#[test]
fn sound_models_pass() {
    explain(&[], &["--deny", "warnings"]).code(0).prints(&["1 operators on integers", "0 warnings"]);
    let dir = tempdir();
    let outcome = qonnx(args!["explain", compiled(&dir), "--deny", "warnings"]).code(0);
    assert!(!outcome.out.contains("warning["), "{}", outcome.out);
    qonnx(args!["explain", digits()]).code(0).prints(&["note[not-quantized]"]);
}

#[test]
fn weights_and_biases() {
    finds(&[("{0.005, 0.01}", "{0.015, 0.03}")], &["warning[bias-scale]: Conv `conv`", "off by 200.0 %"]);
    finds(
        &[("wd = DequantizeLinear <axis = 0>", "wd = DequantizeLinear <axis = 1>")],
        &[
            "warning[weight-axis]: Conv `conv`: the scales of its weight run along axis 1, its output channels along 0",
        ],
    );
    finds(&[("int8[2] wz = {0, 0}", "int8[2] wz = {0, 1}")], &["warning[weight-zero-points]"]);
    finds(
        &[("int8[2,2,1,1] w = {100, -50", "uint8[2,2,1,1] w = {100, 50"), ("int8[2] wz", "uint8[2] wz")],
        &["warning[uint8-weight]"],
    );
    let saturating = [("{100, -50, 20, 70}", "{100, 50, 20, 70}")];
    finds(&saturating, &["warning[saturation]: Conv `conv`: 1 of 2 channels"]);
    explain(&saturating, &["--deny", "warnings", "--target", "ort-cpu-vnni"]).code(0);
    finds(&[("float ys = {0.25}", "float ys = {0.0}")], &["warning[bad-scale]"]);
}

#[test]
fn activations() {
    finds(
        &[("uint8 xz = {128}", "int8 xz = {0}"), ("uint8 yz = {0}", "int8 yz = {-128}")],
        &["warning[int8-activation]: QuantizeLinear `xq`"],
    );
    finds(
        &[
            (
                "  y = Deq",
                "  t = DequantizeLinear (cq, ys, yz)\n  tq = QuantizeLinear (t, ys, yz)\n  y = Deq",
            ),
            ("(cq, ys, yz)\n}", "(tq, ys, yz)\n}"),
        ],
        &["warning[double-qdq]: QuantizeLinear `tq`: undoes the DequantizeLinear before it"],
    );
}

#[test]
fn operators_that_do_not_fuse() {
    finds(
        &[("=> (float[1,2,4,4] y)", "=> (float[1,2,4,4] y, float[1,2,4,4] c)")],
        &[
            "warning[unfused]: Conv `conv`: its output is an output of the graph",
            "note[float-island]: 1 operators: Conv `conv`",
        ],
    );
    finds(
        &[
            ("  cq =", "  r = Relu (c)\n  cq ="),
            ("QuantizeLinear (c,", "QuantizeLinear (r,"),
            ("yz = {0}", "yz = {3}"),
        ],
        &["warning[unfused]: Conv `conv`: Relu stands between it and QuantizeLinear"],
    );
    explain(
        &[("  cq =", "  r = Relu (c)\n  cq ="), ("QuantizeLinear (c,", "QuantizeLinear (r,")],
        &["--deny", "warnings"],
    )
    .code(0);
    finds(
        &[("[conv] c = Conv (xd, wd, bd)", "[move] c = Transpose <perm = [0, 1, 3, 2]> (xd)")],
        &["warning[unfused]: Transpose `move`: it passes values on, but its output has another scale"],
    );
    finds(
        &[("[conv] c = Conv (xd, wd, bd)", "[tanh] c = Tanh (xd)")],
        &[
            "warning[useless-qdq]: QuantizeLinear `xq`",
            "note[float-island]: 1 operators: Tanh `tanh` (no integer kernel)",
        ],
    );
}

/// Where integers end and float begins, somebody reads dequantized values. That is no fault.
#[test]
fn borders_are_no_faults() {
    let float = |op: &str| {
        let then = format!("\n  [after] y = {op}\n}}");
        let replaced = [(
            "\n  y = DequantizeLinear (cq, ys, yz)\n}",
            format!("\n  d = DequantizeLinear (cq, ys, yz){then}"),
        )];
        let replaced: Vec<(&str, &str)> = replaced.iter().map(|(a, b)| (*a, b.as_str())).collect();
        explain(&replaced, &["--deny", "warnings"]).code(0)
    };
    float("Sigmoid (d)")
        .prints(&["note[float-island]: 1 operators: Sigmoid `after` (its output is an output"]);
    float("Mul (d, x)").prints(&["Mul `after` (input 1 is not quantized)"]);
    float("Transpose <perm = [0, 1, 3, 2]> (d)").prints(&["1 operators on integers, 0 with", "0 in float"]);
}

/// What ONNX Runtime 1.32 does with int8 activations on x86: it makes them uint8 if one operator reads them.
#[test]
fn int8_with_several_readers() {
    let int8 = [("uint8 xz = {128}", "int8 xz = {0}"), ("uint8 yz = {0}", "int8 yz = {-128}")];
    explain(&int8, &[]).code(0).prints(&["1 operators on integers, 0 with integer weights only, 0 in float"]);
    let twice = ("  cq =", "  t = Tanh (xd)\n  [second] u = Add (t, xd)\n  cq =");
    let outcome = explain(&[int8[0], int8[1], twice], &[]).code(0);
    outcome.prints(&["warning[unfused]: Conv `conv`: input 0 is int8 with several readers"]);
}

#[test]
fn findings_for_programs() {
    let outcome = explain(&[("{0.005, 0.01}", "{0.015, 0.03}")], &["--json"]).code(0);
    let found: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(found["findings"][0]["kind"], "bias-scale");
    assert_eq!(found["findings"][0]["level"], "warning");
    assert_eq!(found["integer"], 1);
}
