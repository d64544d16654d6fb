use std::collections::BTreeMap;

use super::{Half, Halved, Range, Ranges, convert, opset};
use crate::interpret::Program;
use crate::ir::{Array, DType, Model};
use crate::onnx::{import, text};
use crate::passes::{check, infer, upgrade};

fn read(version: i64, body: &str) -> Model {
    let source = format!("< ir_version: 8, opset_import: [\"\" : {version}] >\n{body}");
    let mut model = import(text::parse(&source).unwrap(), &|_| Err("no external data".into())).unwrap();
    infer(&mut model.graph);
    model
}

#[track_caller]
fn halve(model: &mut Model, half: &Half, ranges: &[(&str, f32)]) -> Halved {
    let opset = opset(model, half);
    upgrade(model, opset).unwrap();
    let find =
        |&(name, largest): &(&str, f32)| (model.graph.find(name).unwrap(), Range { largest, elements: 1 });
    let ranges: Ranges = ranges.iter().map(find).collect();
    let done = convert(model, half, &ranges).unwrap();
    check(model, "half precision").unwrap();
    done
}

fn counts(model: &Model) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for id in model.graph.nodes() {
        *counts.entry(model.graph.node(id).op_type.clone()).or_default() += 1;
    }
    counts
}

fn casts(model: &Model) -> usize {
    counts(model).get("Cast").copied().unwrap_or(0)
}

fn ramp(shape: &[usize]) -> Array {
    let count = shape.iter().product::<usize>();
    Array::new(shape, (0..count).map(|i| libm::sinf(i as f32 * 0.7)).collect::<Vec<f32>>()).unwrap()
}

/// The first output of the model before and after, as far apart as half precision allows.
#[track_caller]
fn close(before: &Model, after: &Model, inputs: &[Array]) {
    let run = |m: &Model| Program::new(&m.graph).unwrap().run(inputs).unwrap();
    for (x, y) in run(before).iter().zip(run(after)) {
        assert_eq!(x.tensor_type(), y.tensor_type());
        for (a, b) in x.to_f32().unwrap().iter().zip(&y.to_f32().unwrap()) {
            assert!((a - b).abs() <= 2e-2 * (1.0 + a.abs()), "{a} became {b}");
        }
    }
}

const CHAIN: &str = "g (float[2,4] x) => (float[2,4] y) <float[4,4] w = random(1, -1.0, 1.0)> \
                     { a = MatMul (x, w)  b = Exp (a)  c = Neg (b)  y = Tanh (c) }";

#[test]
fn interface_stays_and_two_casts_do() {
    let before = read(13, CHAIN);
    let mut after = before.clone();
    let done = halve(&mut after, &Half::default(), &[]);
    assert_eq!((casts(&after), done.casts, done.nodes.len()), (2, 2, 4));
    let w = after.graph.find("w").unwrap();
    assert_eq!(after.graph.ty(w).unwrap().dtype, DType::F16);
    close(&before, &after, &[ramp(&[2, 4])]);
}

#[test]
fn without_float_interface_no_cast_is_needed() {
    let mut model = read(13, CHAIN);
    halve(&mut model, &Half { keep_io: false, ..Half::default() }, &[]);
    assert_eq!(casts(&model), 0);
    let x = model.graph.inputs[0];
    assert_eq!(model.graph.ty(x).unwrap().dtype, DType::F16);
    let array = ramp(&[2, 4]).to_f32().unwrap().map(|&v| half::f16::from_f32(v));
    let found = Program::new(&model.graph).unwrap().run(&[array.into()]).unwrap();
    assert_eq!(found[0].dtype(), DType::F16);
}

#[test]
fn kept_operators_and_what_lies_between_them() {
    let body = "g (float[2,8] x) => (float[2,8] y) <float[8,8] w = random(1, -1.0, 1.0)> \
                { a = MatMul (x, w)  b = Exp (a)  c = Neg (b)  d = Abs (c)  e = Exp (d)  y = MatMul (e, w) }";
    let mut model = read(13, body);
    let keep = vec!["Exp".to_string()];
    let done = halve(&mut model, &Half { keep, ..Half::default() }, &[]);
    assert_eq!(done.float.len(), 2);
    assert!(done.float.iter().all(|(_, why)| why == "kept by `Exp`"), "{:?}", done.float);
    // In, out, before the first Exp and after the second: Neg and Abs between them follow.
    assert_eq!(casts(&model), 4);
}

#[test]
fn overflowing_values_keep_their_operators() {
    let before = read(13, CHAIN);
    let mut after = before.clone();
    let done = halve(&mut after, &Half::default(), &[("x", 1.0), ("a", 12.0), ("b", 1e5), ("c", 1e5)]);
    let kept: Vec<&str> = done.float.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(kept, ["Exp `b`", "Neg `c`", "Tanh `y`"]);
    assert!(done.float[0].1.contains("reaches 1.0e5"), "{:?}", done.float);
}

#[test]
fn masks_beyond_the_range_saturate_or_keep_their_readers() {
    let body = "g (float[2,4] x, float[2,4] m) => (float[2,4] y) <float big = {-3.4028235e38}> \
                { a = Mul (m, big)  b = Add (x, a)  y = Softmax <axis = -1> (b) }";
    let mut alone = read(13, body);
    let done = halve(&mut alone, &Half::default(), &[]);
    assert!(done.warnings[0].contains("saturate"), "{:?}", done.warnings);
    let big = alone.graph.constant(alone.graph.find("big").unwrap()).unwrap().array().unwrap();
    assert_eq!(big, Array::scalar(half::f16::MIN));
    let mut calibrated = read(13, body);
    let done = halve(
        &mut calibrated,
        &Half::default(),
        &[("x", 1.0), ("m", 1.0), ("a", 3.4e38), ("b", 3.4e38), ("y", 1.0)],
    );
    assert_eq!(done.float.len(), 3);
    assert!(done.float[0].1.contains("-3.4028235e38"), "{:?}", done.float);
}

#[test]
fn a_vanishing_epsilon_keeps_what_divides_by_it() {
    let body = "g (float[2,4] x) => (float[2,4] y) <float eps = {1e-12}> \
                { a = Mul (x, x)  b = Add (a, eps)  c = Sqrt (b)  y = Div (x, c) }";
    let mut model = read(13, body);
    let done = halve(&mut model, &Half::default(), &[]);
    let kept: Vec<&str> = done.float.iter().map(|(n, _)| n.as_str()).collect();
    assert_eq!(kept, ["Add `b`", "Sqrt `c`", "Div `y`"]);
}

#[test]
fn bodies_follow_and_captures_are_converted_where_they_are_read() {
    let body = "g (bool c, float[2,4] x) => (float[2,4] y) { z = Exp (x) \
        y = If (c) <then_branch = t () => (float[2,4] p) <float[4,4] w = random(1, -1.0, 1.0)> { p = MatMul (z, w) }, \
                    else_branch = e () => (float[2,4] q) <float[4,4] w = random(2, -1.0, 1.0)> { r = Exp (z) q = MatMul (r, w) }> }";
    let before = read(13, body);
    let mut after = before.clone();
    halve(&mut after, &Half { keep: vec!["Exp".into()], ..Half::default() }, &[]);
    for c in [false, true] {
        close(&before, &after, &[Array::scalar(c), ramp(&[2, 4])]);
    }
    let node = after.graph.nodes().find(|&n| after.graph.node(n).is("If")).unwrap();
    for body in &after.graph.node(node).bodies {
        let graph = &body.graph;
        assert_eq!(graph.ty(graph.outputs[0]).unwrap().dtype, DType::F16);
        assert_eq!(graph.ty(graph.find("w").unwrap()).unwrap().dtype, DType::F16);
    }
}

#[test]
fn loops_carry_half_precision() {
    let body = "g (int64 n, float[2] x) => (float[2] y) <bool go = {1}> { y = Loop (n, go, x) \
        <body = b (int64 i, bool g, float[2] s) => (bool h, float[2] t) { h = Identity (g)  t = Add (s, s) }> }";
    let before = read(13, body);
    let mut after = before.clone();
    halve(&mut after, &Half::default(), &[]);
    assert_eq!(casts(&after), 2);
    close(&before, &after, &[Array::scalar(3i64), ramp(&[2])]);
}

#[test]
fn inputs_that_onnx_wants_in_float_stay_so() {
    let body = "g (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s = {1.0, 1.0, 2.0, 2.0}> \
                { y = Resize <mode = \"nearest\"> (x, , s) }";
    let before = read(13, body);
    let mut after = before.clone();
    halve(&mut after, &Half::default(), &[]);
    let s = after.graph.find("s").unwrap();
    assert_eq!(after.graph.ty(s).unwrap().dtype, DType::F32);
    close(&before, &after, &[ramp(&[1, 1, 2, 2])]);
}

#[test]
fn quantized_operators_are_left_alone() {
    let body = "g (float[1,4] x) => (float[1,16] y) <float s = {0.01}, uint8 z = {128}, float[4] ws = {0.01, 0.02, 0.01, 0.02}, \
        int8[4,4] w = random(3, -100, 100), float[4,16] v = random(4, -1.0, 1.0)> { \
        xq = QuantizeLinear (x, s, z)  xd = DequantizeLinear (xq, s, z)  wd = DequantizeLinear <axis = 1> (w, ws) \
        a = MatMul (xd, wd)  aq = QuantizeLinear (a, s, z)  ad = DequantizeLinear (aq, s, z)  y = MatMul (ad, v) }";
    let before = read(13, body);
    let mut after = before.clone();
    halve(&mut after, &Half::default(), &[]);
    assert_eq!(after.opset(""), Some(19));
    // The integer MatMul and what surrounds it are float32, the last DequantizeLinear answers in half precision.
    assert_eq!(casts(&after), 1);
    let integer = after.graph.find("a").unwrap();
    assert_eq!(after.graph.ty(integer).unwrap().dtype, DType::F32);
    close(&before, &after, &[ramp(&[1, 4])]);
}

#[test]
fn bfloat16_raises_the_opset() {
    let before = read(13, CHAIN);
    let mut after = before.clone();
    halve(&mut after, &Half { dtype: DType::BF16, ..Half::default() }, &[]);
    assert_eq!(after.opset(""), Some(22));
    let w = after.graph.find("w").unwrap();
    assert_eq!(after.graph.ty(w).unwrap().dtype, DType::BF16);
}
