//! Units: which nodes compute on integers, and what a watch sees of them.

use std::collections::BTreeMap;

use crate::interpret::{Numerics, Program};
use crate::ir::{Array, Graph, ValueId};
use crate::onnx::{import, text};

fn graph(body: &str, constants: &str, output: &str) -> Graph {
    let source = format!(
        "<ir_version: 8, opset_import: [\"\": 13]> g (uint8[2,4] x) => ({output}) <{constants}> {{ {body} }}"
    );
    import(text::parse(&source).unwrap(), &|_| Err("none".into())).unwrap().graph
}

const CONSTANTS: &str = "float s = {0.05}, uint8 z = {7}, int8[4,3] w = {1,-2,3,4,5,-6,7,8,9,-10,11,12}, \
    float[3] ws = {0.1, 0.2, 0.3}, int8[3] wz = {0, 0, 0}, float t = {0.3}, uint8 u = {100}, int64[1] flat = {-1}";

const PRODUCT: &str =
    "a = DequantizeLinear(x, s, z) b = DequantizeLinear<axis = 1>(w, ws, wz) p = MatMul(a, b)";

fn input() -> Array {
    Array::new(&[2, 4], vec![0u8, 255, 7, 90, 12, 200, 30, 4]).unwrap()
}

fn watched(graph: &Graph, numerics: Numerics) -> (Vec<Array>, BTreeMap<String, Array>, usize) {
    let program = Program::with_numerics(graph, numerics).unwrap();
    let mut seen = BTreeMap::new();
    let outputs = program
        .run_watched(&[input()], &mut |id: ValueId, array: &Array| {
            let twice = seen.insert(graph.name(id).to_string(), array.clone());
            assert!(twice.is_none(), "{} is shown twice", graph.name(id));
        })
        .unwrap();
    assert_eq!(outputs, program.run(&[input()]).unwrap());
    (outputs, seen, program.integer_steps())
}

#[test]
fn a_watch_sees_what_integers_mean() {
    let body = format!(
        "{PRODUCT} q = QuantizeLinear(p, t, u) d = DequantizeLinear(q, t, u) r = Reshape(d, flat) y = Neg(r)"
    );
    let graph = graph(&body, CONSTANTS, "float[6] y");
    let (spec, spec_seen, none) = watched(&graph, Numerics::Spec);
    let (ort, ort_seen, some) = watched(&graph, Numerics::Ort);
    assert_eq!((none, some), (0, 1));
    assert_eq!(spec, ort);
    assert_eq!(spec_seen.keys().collect::<Vec<_>>(), ort_seen.keys().collect::<Vec<_>>());
    for (name, array) in &spec_seen {
        // Inside the unit the product is known as its output is quantized only.
        let expected = if name == "p" { &spec_seen["d"] } else { array };
        assert_eq!(&ort_seen[name], expected, "{name}");
    }
}

#[test]
fn a_product_that_is_read_elsewhere_stays_real() {
    let body = format!("{PRODUCT} q = QuantizeLinear(p, t, u)");
    let (_, _, steps) = watched(&graph(&body, CONSTANTS, "uint8[2,3] q"), Numerics::Ort);
    assert_eq!(steps, 1);
    let both = graph(&body, CONSTANTS, "uint8[2,3] q, float[2,3] p");
    // The product itself is computed on integers, with real numbers as its output.
    let (outputs, _, steps) = watched(&both, Numerics::Ort);
    assert_eq!((outputs[1].dtype(), steps), (crate::ir::DType::F32, 1));
    let body = "a = DequantizeLinear(x, s, z) p = Sigmoid(a) q = QuantizeLinear(p, t, u)";
    assert_eq!(watched(&graph(body, CONSTANTS, "uint8[2,4] q"), Numerics::Ort).2, 1);
    assert_eq!(watched(&graph(body, CONSTANTS, "uint8[2,4] q, float[2,4] p"), Numerics::Ort).2, 0);
}

#[test]
fn a_clamp_counts_only_where_it_clamps() {
    let with = |zero: &str| {
        let body = format!("{PRODUCT} c = Relu(p) y = QuantizeLinear(c, t, {zero})");
        let graph = graph(&body, &format!("{CONSTANTS}, uint8 lowest = {{0}}"), "uint8[2,3] y");
        let (spec, ort) = (watched(&graph, Numerics::Spec), watched(&graph, Numerics::Ort));
        assert_eq!(spec.0, ort.0);
        ort.1["c"].clone()
    };
    // The unit ends after a clamp that quantization makes superfluous; otherwise the product is exact up to the clamp.
    assert!(
        with("lowest")
            .slice::<f32>()
            .unwrap()
            .iter()
            .all(|v| (v / 0.3).fract().abs() < 1e-3 || (v / 0.3).fract() > 0.999)
    );
    assert!(with("u").slice::<f32>().unwrap().iter().any(|v| (v / 0.3).fract() > 1e-3));
}

#[test]
fn signed_activations_that_others_read_stay_real() {
    let constants = "float s = {0.05}, uint8 z = {7}, float t = {0.02}, int8 n = {-3}";
    let body = |readers: &str| {
        format!(
            "a = DequantizeLinear(x, s, z) k = QuantizeLinear(a, t, n) b = DequantizeLinear(k, t, n) \
             c = Sigmoid(b) q = QuantizeLinear(c, t, n) y = DequantizeLinear(q, t, n) {readers}"
        )
    };
    assert_eq!(watched(&graph(&body(""), constants, "float[2,4] y"), Numerics::Ort).2, 1);
    let alone = graph(&body("w = Neg(y)"), constants, "float[2,4] w");
    assert_eq!(watched(&alone, Numerics::Ort).2, 1);
    let twice = graph(&body("w = Neg(y)"), constants, "float[2,4] w, float[2,4] y");
    assert_eq!(watched(&twice, Numerics::Ort).2, 0);
    let shared = graph(&body("w = Neg(y) v = Neg(b)"), constants, "float[2,4] w, float[2,4] v");
    assert_eq!(watched(&shared, Numerics::Ort).2, 0);
}

#[test]
fn a_constant_that_is_added_to_a_product_is_its_bias() {
    let constants = format!("{CONSTANTS}, float[3] bias = {{0.5, -0.26, 3}}");
    for add in ["Add(p, bias)", "Add(bias, p)"] {
        let graph = |after: &str, output: &str| {
            graph(&format!("{PRODUCT} v = {add} f = Reshape(v, flat) {after}"), &constants, output)
        };
        let mut unit = graph("y = QuantizeLinear(f, t, u)", "uint8[6] y");
        crate::passes::infer(&mut unit);
        let (ort, seen, steps) = watched(&unit, Numerics::Ort);
        // The bias in the scale of the sums, 0.05 times that of each column: 100, -26, 200.
        let sums = |row: [i32; 4]| {
            [[1, 4, 7, -10], [-2, 5, 8, 11], [3, -6, 9, 12]]
                .map(|w: [i32; 4]| w.iter().zip(row).map(|(w, x)| w * (x - 7)).sum::<i32>())
        };
        let byte = |(i, sum): (usize, i32)| {
            let scale = 0.05 * [0.1, 0.2, 0.3f32][i];
            ((sum + [100, -26, 200][i]) as f32 * (scale / 0.3)).round_ties_even().clamp(-100.0, 155.0) as i32
                + 100
        };
        let rows = [[0, 255, 7, 90], [12, 200, 30, 4]];
        let expected: Vec<u8> = rows
            .iter()
            .flat_map(|&row| sums(row).into_iter().enumerate().map(byte))
            .map(|b| b as u8)
            .collect();
        assert_eq!((ort[0].slice::<u8>().unwrap(), steps), (&expected[..], 1));
        assert!(!seen.contains_key("p") && seen.contains_key("v"));
        // Nothing of it is on integers if its result stays real.
        let mut real = graph("", "float[6] f");
        crate::passes::infer(&mut real);
        let (ort, _, steps) = watched(&real, Numerics::Ort);
        assert_eq!((ort, steps), (watched(&real, Numerics::Spec).0, 0));
        // Read elsewhere, it is an addition of real numbers.
        let mut both = graph("y = QuantizeLinear(f, t, u)", "uint8[6] y, float[2,3] p");
        crate::passes::infer(&mut both);
        assert_eq!(watched(&both, Numerics::Ort).0[1].dtype(), crate::ir::DType::F32);
    }
}
