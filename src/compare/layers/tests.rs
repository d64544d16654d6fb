use std::path::Path;

use super::*;
use crate::calibrate::read::{self, open_inputs};
use crate::onnx::{import, text};
use crate::passes::infer;

fn graph(text: &str) -> Graph {
    let proto = text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let mut graph = import(proto, &|_| Err("no external data".into())).unwrap().graph;
    infer(&mut graph);
    graph
}

fn layers(a: &Graph, b: &Graph) -> Vec<Layer> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/digits/calib");
    let samples = read::open(&data, &open_inputs(a).unwrap(), None).unwrap();
    let (x, y) = (Program::new(a).unwrap(), Program::new(b).unwrap());
    let pair = Pair::new((&x, a), (&y, b)).unwrap();
    Layers::new(a, b, Numerics::Spec).unwrap().run(&pair, &samples, &[0, 1], &|| {}).unwrap()
}

const FLOAT: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[1,1,28,28] x) => (float[1,1,28,28] z) < float two = {2.0} > {
  a = Sigmoid (x)
  b = Relu (a)
  c = Mul (b, two)
  d = Sigmoid (c)
  z = Add (d, a)
}"#;

#[test]
fn an_error_is_local_where_it_arises_and_cumulative_after() {
    let a = graph(FLOAT);
    let b = graph(&FLOAT.replace("{2.0}", "{2.5}"));
    let found = layers(&a, &b);
    let names: Vec<&str> = found.iter().map(|l| l.value.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "z"]);
    let local: Vec<bool> = found.iter().map(|l| l.local_db.is_some()).collect();
    assert_eq!(local, [false, false, true, false, false]);
    let cumulative: Vec<bool> = found.iter().map(|l| l.cumulative_db.is_some()).collect();
    assert_eq!(cumulative, [false, false, true, true, true]);
    // 2.5·b against 2·b: noise is a quarter of the signal's amplitude.
    assert!((found[2].local_db.unwrap() - 20.0 * libm::log10(4.0)).abs() < 1e-5, "{:?}", found[2]);
    let (first, worst) = suspects(&found, 20.0);
    assert_eq!((first.unwrap().value.as_str(), worst.unwrap().value.as_str()), ("c", "c"));
}

/// A coarse quantizer on `b`, whose Relu was left to its range; `d` is quantized under its own name, finely.
const QUANTIZED: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
g (float[1,1,28,28] x) => (float[1,1,28,28] z) <
  float two = {2.0}, float coarse = {0.3}, float fine = {0.004}, uint8 zero = {0}
> {
  a = Sigmoid (x)
  aq = QuantizeLinear (a, coarse, zero)
  [first] ad = DequantizeLinear (aq, coarse, zero)
  c = Mul (ad, two)
  d_raw = Sigmoid (c)
  dq = QuantizeLinear (d_raw, fine, zero)
  d = DequantizeLinear (dq, fine, zero)
  z = Add (d, a)
}"#;

#[test]
fn quantized_values_are_found_by_the_name_they_keep() {
    let found = layers(&graph(FLOAT), &graph(QUANTIZED));
    let facts: Vec<(&str, &str, bool)> =
        found.iter().map(|l| (l.value.as_str(), l.operator.as_str(), l.quantized)).collect();
    assert_eq!(facts[0], ("a", "Sigmoid `a`", true));
    assert_eq!(facts[1], ("c", "Mul `c`", false));
    assert_eq!(facts[2], ("d", "Sigmoid `d_raw`", true));
    assert_eq!(facts[3], ("z", "Add `z`", false));
    // The coarse step is the error of `a`; `c` adds none, `d` a fine step's, far less than what has come down to it.
    assert!(found[0].local_db.unwrap() < 20.0 && found[0].local_db == found[0].cumulative_db);
    assert!(found[1].local_db.is_none() && found[1].cumulative_db.is_some());
    assert!(found[2].local_db.unwrap() > 40.0 && found[2].cumulative_db.unwrap() < 40.0);
    assert_eq!(suspects(&found, 20.0).1.unwrap().value, "a");
}

#[test]
fn weights_made_by_operators_are_no_layers() {
    let weight = FLOAT.replace(
        "  a = Sigmoid (x)",
        "  k = Constant <value_float = 2.0> ()\n  two = Exp (k)\n  a = Sigmoid (x)",
    );
    let a = graph(&weight.replace(" < float two = {2.0} >", ""));
    let b = graph(&FLOAT.replace("{2.0}", "{7.5}"));
    let found = layers(&a, &b);
    assert_eq!(found.iter().map(|l| l.value.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d", "z"]);
    assert!(found[2].local_db.is_some());
}

#[test]
fn a_factor_within_the_scale_is_not_taken_for_an_error() {
    let float = r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,28,28] x) => (float[1,1,28,28] z) <float six = {6}> {
          m = Mul (x, x)
          h = Div (m, six)
          z = Neg (h)
        }"#;
    let quantized = r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,1,28,28] x) => (float[1,1,28,28] z) <float wide = {0.06}, float fine = {0.01}, uint8 zero = {0}> {
          m = Mul (x, x)
          q = QuantizeLinear (m, wide, zero)
          h = DequantizeLinear (q, fine, zero)
          z = Neg (h)
        }"#;
    let found = layers(&graph(float), &graph(quantized));
    let facts: Vec<(&str, Option<f64>)> = found.iter().map(|l| (l.value.as_str(), l.local_db)).collect();
    assert_eq!((facts[0], facts[1].0), (("m", None), "h"));
    assert!(facts[1].1.unwrap() > 20.0, "{facts:?}");
}
