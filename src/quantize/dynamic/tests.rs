use std::collections::{BTreeMap, BTreeSet};

use super::quantize;
use crate::interpret::Program;
use crate::ir::{Array, Model};
use crate::onnx::{import, text};
use crate::passes::{check, infer};
use crate::quantize::Target;
use crate::quantize::candidate::Filter;

fn read(body: &str) -> Model {
    let source = format!("< ir_version: 8, opset_import: [\"\" : 17] >\n{body}");
    let mut model = import(text::parse(&source).unwrap(), &|_| Err("no external data".into())).unwrap();
    infer(&mut model.graph);
    model
}

fn ramp(shape: &[usize]) -> Array {
    let count = shape.iter().product::<usize>();
    Array::new(shape, (0..count).map(|i| libm::sinf(i as f32 * 0.7)).collect::<Vec<f32>>()).unwrap()
}

/// Quantizes, checks that outputs stay within 30 dB, and counts operators.
#[track_caller]
fn close(body: &str, inputs: &[Array]) -> BTreeMap<String, usize> {
    let before = read(body);
    let mut after = before.clone();
    let target = Target::named("ort-cpu").unwrap();
    quantize(&mut after, &Filter::default(), &target, &BTreeSet::new(), true).unwrap();
    infer(&mut after.graph);
    check(&after, "dynamic quantization").unwrap();
    let run = |m: &Model| Program::new(&m.graph).unwrap().run(inputs).unwrap();
    for (x, y) in run(&before).iter().zip(run(&after)) {
        assert_eq!(x.tensor_type(), y.tensor_type());
        let (x, y) = (x.to_f32().unwrap(), y.to_f32().unwrap());
        let signal: f32 = x.iter().map(|v| v * v).sum();
        let noise: f32 = x.iter().zip(&y).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(noise > 0.0 && noise < signal * 1e-3, "noise {noise}, signal {signal}");
    }
    let mut counts = BTreeMap::new();
    for id in after.graph.nodes() {
        *counts.entry(after.graph.node(id).op_type.clone()).or_default() += 1;
    }
    counts
}

#[test]
fn products_share_their_activation_and_their_weight() {
    let body = "g (float[2,5,32] x) => (float[2,5,32] y, float[2,5,16] z) <float[32,32] w = random(1, -0.3, 0.3), \
                float[32,16] v = random(2, -0.3, 0.3)> { a = MatMul (x, w)  y = MatMul (a, w)  z = MatMul (x, v) }";
    let counts = close(body, &[ramp(&[2, 5, 32])]);
    assert_eq!((counts["MatMulInteger"], counts["DynamicQuantizeLinear"]), (3, 2));
}

#[test]
fn gemm_keeps_its_factor_and_its_bias() {
    let body = "g (float[4,32] x) => (float[4,16] y) <float[16,32] w = random(1, -0.3, 0.3), \
                float[16] b = random(2, -1.0, 1.0)> { y = Gemm <alpha = 0.5, transB = 1> (x, w, b) }";
    let counts = close(body, &[ramp(&[4, 32])]);
    assert_eq!((counts["MatMulInteger"], counts["Add"]), (1, 1));
}

#[test]
fn convolutions_store_their_weight_only() {
    let body =
        "g (float[1,8,9,9] x) => (float y) <float[16,8,3,3] w = random(1, -1.0, 1.0)> { y = Conv (x, w) }";
    let counts = close(body, &[ramp(&[1, 8, 9, 9])]);
    assert_eq!((counts.get("ConvInteger"), counts["DequantizeLinear"]), (None, 1));
}

#[test]
fn recurrent_layers_of_every_kind() {
    let weights = "float[2,64,24] w = random(1, -0.3, 0.3), float[2,64,16] r = random(2, -0.3, 0.3), \
                   float[2,128] b = random(3, -0.3, 0.3), float[2,48] p = random(4, -0.3, 0.3)";
    for (layout, x, h) in [(0, [5, 3, 24], [2, 3, 16]), (1, [3, 5, 24], [3, 2, 16])] {
        let shape = |d: &[usize]| format!("{d:?}").replace(' ', "");
        let body = format!(
            "g (float{0} x, float{1} h, float{1} c) => (float y, float yh, float yc) <{weights}> {{ y, yh, yc = \
             LSTM <hidden_size = 16, direction = \"bidirectional\", layout = {layout}> (x, w, r, b, , h, c, p) }}",
            shape(&x),
            shape(&h)
        );
        let counts = close(&body, &[ramp(&x), ramp(&h), ramp(&h)]);
        assert_eq!(counts["DynamicQuantizeLSTM"], 1);
        assert_eq!(counts.get("Transpose").copied().unwrap_or(0), if layout == 1 { 6 } else { 0 });
    }
}
