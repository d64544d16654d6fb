use super::*;
use crate::onnx::{import, text};
use crate::passes::infer;

fn graph(body: &str) -> Graph {
    let source = format!("< ir_version: 8, opset_import: [\"\" : 17] >\n{body}");
    let mut model = import(text::parse(&source).unwrap(), &|_| Err("no external data".into())).unwrap();
    infer(&mut model.graph);
    model.graph
}

/// BatchNormalization with these β and γ in front of `rest`.
fn normalized(rest: &str) -> Means {
    expected(&graph(&format!(
        "g (float[1,2,4,4] x) => (float[1,2,4,4] y) <
           float[2] gamma = {{2.0, -0.5}}, float[2] beta = {{-1.0, 3.0}},
           float[2] mean = {{7.0, 8.0}}, float[2] var = {{0.3, 0.2}}
         > {{ n = BatchNormalization (x, gamma, beta, mean, var) {rest} }}"
    )))
}

#[track_caller]
fn close(found: &[f64], wanted: [f64; 2], tolerance: f64) {
    assert_eq!(found.len(), 2);
    found.iter().zip(wanted).for_each(|(f, w)| assert!((f - w).abs() < tolerance, "{f} of {w}"));
}

/// The mean of `f` over a Gaussian, by the rectangle rule.
fn integral(mean: f64, deviation: f64, f: impl Fn(f64) -> f64) -> f64 {
    let step = 0.001;
    let points = (-8000..=8000).map(|i| f64::from(i) * step);
    let density = |t: f64| libm::exp(-t * t / 2.0) / libm::sqrt(2.0 * std::f64::consts::PI);
    points.map(|t| f(mean + deviation * t) * density(t) * step).sum()
}

#[test]
fn normalization_gives_beta_and_activations_the_mean_of_what_they_leave() {
    let means = normalized(
        "r = Relu (n) zero = Constant <value_float = 0.0> ()
         six = Constant <value_float = 6.0> () c = Clip (n, zero, six) y = Add (r, n)",
    );
    close(&means[&("n".to_string(), 1)], [-1.0, 3.0], 1e-6);
    let relu = |x: f64| x.max(0.0);
    let six = |x: f64| x.clamp(0.0, 6.0);
    close(&means[&("c".to_string(), 1)], [integral(-1.0, 2.0, six), integral(3.0, 0.5, six)], 0.02);
    close(&means[&("r".to_string(), 1)], [integral(-1.0, 2.0, relu), integral(3.0, 0.5, relu)], 0.02);
    // The sum has one origin: x + max(x, 0).
    close(&means[&("y".to_string(), 1)], [integral(-1.0, 2.0, |x| x + relu(x)), 6.0], 0.02);
}

#[test]
fn a_product_of_a_value_with_its_own_gate_is_not_independent() {
    let means = normalized("s = Sigmoid (n) y = Mul (n, s)");
    let silu = |x: f64| x / (1.0 + libm::exp(-x));
    close(&means[&("y".to_string(), 1)], [integral(-1.0, 2.0, silu), integral(3.0, 0.5, silu)], 0.02);
}

#[test]
fn constants_by_channel_and_gates_of_pooled_values() {
    let means = normalized(
        "k = Constant <value = float[2,1,1] {10.0, 100.0}> () y = Add (n, k)
         p = GlobalAveragePool (n) gated = Mul (y, p)",
    );
    close(&means[&("y".to_string(), 1)], [9.0, 103.0], 1e-4);
    close(&means[&("gated".to_string(), 1)], [-9.0, 309.0], 1e-2);
}

#[test]
fn convolutions_carry_means_on_and_unknown_inputs_stop() {
    let means = expected(&graph(
        "g (float[1,2,4,4] x) => (float[1,1,4,4] y) <
           float[2] gamma = {1.0, 1.0}, float[2] beta = {0.5, -2.0}, float[2] m = {0.0, 0.0}, float[2] v = {1.0, 1.0},
           float[1,2,1,1] w = {3.0, 4.0}, float[1] b = {0.25}
         > {
           u = Relu (x)
           n = BatchNormalization (u, gamma, beta, m, v)
           y = Conv (n, w, b)
         }",
    ));
    assert!((means[&("y".to_string(), 1)][0] - (1.5 - 8.0 + 0.25)).abs() < 1e-5);
    assert!(means.keys().all(|(name, _)| name != "u" && name != "x"));
}
