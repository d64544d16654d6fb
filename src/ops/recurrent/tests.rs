use super::*;
use crate::ir::Attribute;
use crate::ir::attribute::{float, floats, int, string};
use crate::ops::operand;

#[test]
fn backend() {
    crate::ops::backend_tests::run("recurrent");
}

fn f64s(shape: &[usize], x: &[f64]) -> Option<Array> {
    Some(Array::new(shape, x.to_vec()).unwrap())
}

fn names(name: &str, values: &[&str]) -> Attribute {
    let strings = values.iter().map(|s| s.to_string().into()).collect();
    Attribute { name: Some(name.into()), strings, ..Default::default() }
}

fn apply(name: &str, attributes: &[Attribute], inputs: &[Option<Array>]) -> Vec<Vec<f64>> {
    let found = operand::run(name, 14, attributes, inputs, 3).unwrap();
    found.iter().map(|a| a.slice::<f64>().unwrap().to_vec()).collect()
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-9, "{found:?} {expected:?}");
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// One state, weights 1 and recurrent weight 0.5, no activation: h = x + h / 2.
fn linear(
    direction: &str,
    ways: usize,
    lengths: Option<Array>,
    layout: i64,
    x: Option<Array>,
) -> Vec<Vec<f64>> {
    let affine = names("activations", &vec!["Affine"; ways]);
    let attributes = [affine, string("direction", direction), int("hidden_size", 1), int("layout", layout)];
    let (w, r) = (f64s(&[ways, 1, 1], &vec![1.0; ways]), f64s(&[ways, 1, 1], &vec![0.5; ways]));
    apply("RNN", &attributes, &[x, w, r, None, lengths])
}

#[test]
fn directions() {
    let x = || f64s(&[3, 1, 1], &[4.0, 8.0, 16.0]);
    assert_eq!(linear("forward", 1, None, 0, x()), [vec![4.0, 10.0, 21.0], vec![21.0]]);
    assert_eq!(linear("reverse", 1, None, 0, x()), [vec![12.0, 16.0, 16.0], vec![12.0]]);
    let both = [vec![4.0, 12.0, 10.0, 16.0, 21.0, 16.0], vec![21.0, 12.0]];
    assert_eq!(linear("bidirectional", 2, None, 0, x()), both);
}

#[test]
fn sequences_end_early() {
    let x = f64s(&[2, 3, 1], &[4.0, 8.0, 16.0, 4.0, 8.0, 16.0]);
    let lengths = Some(Array::vector(vec![2i32, 0]));
    let forward = linear("forward", 1, lengths.clone(), 1, x.clone());
    assert_eq!(forward, [vec![4.0, 10.0, 0.0, 0.0, 0.0, 0.0], vec![10.0, 0.0]]);
    let reverse = linear("reverse", 1, lengths, 1, x.clone());
    assert_eq!(reverse, [vec![8.0, 8.0, 0.0, 0.0, 0.0, 0.0], vec![8.0, 0.0]]);
    let x = [x, f64s(&[1, 1, 1], &[1.0]), f64s(&[1, 1, 1], &[1.0]), None, Some(Array::vector(vec![9i32; 2]))];
    assert!(operand::run("RNN", 14, &[], &x, 2).is_err());
}

#[test]
fn lstm_with_peepholes_and_clip() {
    // Gates i, o, f, c with input weights 1, 2, 3, 4 and biases; one step from given states.
    let inputs = |clip: bool| {
        let attributes: Vec<_> = clip.then(|| float("clip", 0.5)).into_iter().collect();
        let bias = [0.1, 0.2, 0.3, 0.4, 0.01, 0.02, 0.03, 0.04];
        let p = f64s(&[1, 3], &[0.5, 0.6, 0.7]);
        let (h, c) = (f64s(&[1, 1, 1], &[0.5]), f64s(&[1, 1, 1], &[-1.0]));
        let r = f64s(&[1, 4, 1], &[1.0, -1.0, 2.0, 0.5]);
        let w = f64s(&[1, 4, 1], &[1.0, 2.0, 3.0, 4.0]);
        apply("LSTM", &attributes, &[f64s(&[1, 1, 1], &[0.25]), w, r, f64s(&[1, 8], &bias), None, h, c, p])
    };
    for limit in [f64::INFINITY, 0.5] {
        let clip = |v: f64| v.clamp(-limit, limit);
        let (h, c) = (0.5, -1.0);
        let i = sigmoid(clip(0.25 + h + 0.11 + 0.5 * c));
        let f = sigmoid(clip(0.75 + 2.0 * h + 0.33 + 0.7 * c));
        let cell = f * c + i * libm::tanh(clip(1.0 + 0.5 * h + 0.44));
        let o = sigmoid(clip(0.5 - h + 0.22 + 0.6 * cell));
        let found = inputs(limit.is_finite());
        close(&found[2], &[cell]);
        close(&found[0], &[o * libm::tanh(cell)]);
    }
}

#[test]
fn gru_resets_before_or_after() {
    let bias = [0.1, 0.2, 0.3, 0.01, 0.02, 0.03];
    let (x, h) = (0.25, 0.5);
    let z = sigmoid(x + h + 0.11);
    let r = sigmoid(2.0 * x - h + 0.22);
    for linear in [0, 1] {
        let inputs = [
            f64s(&[1, 1, 1], &[x]),
            f64s(&[1, 3, 1], &[1.0, 2.0, 3.0]),
            f64s(&[1, 3, 1], &[1.0, -1.0, 2.0]),
            f64s(&[1, 6], &bias),
            None,
            f64s(&[1, 1, 1], &[h]),
        ];
        let state = if linear == 1 { r * (2.0 * h + 0.03) } else { 2.0 * (r * h) + 0.03 };
        let new = libm::tanh(3.0 * x + 0.3 + state);
        let found = apply("GRU", &[int("linear_before_reset", linear)], &inputs);
        close(&found[1], &[(1.0 - z) * new + z * h]);
    }
}

#[test]
fn activations_take_their_constants_in_turn() {
    let attributes = [
        names("activations", &["ScaledTanh", "relu", "Affine"]),
        floats("activation_alpha", [2.0, 3.0]),
        floats("activation_beta", [0.5]),
    ];
    let mut attrs = Attrs::new(&attributes, 14, 3, 1);
    let op = (crate::ops::find(ONNX, "LSTM", 14).unwrap().parse)(&mut attrs).unwrap();
    let found = &op.as_a::<Recurrent>().unwrap().activations;
    assert_eq!(found[0], Activation { function: Function::ScaledTanh, alpha: 2.0, beta: 0.5 });
    assert_eq!(found[1].function, Function::Relu);
    assert_eq!(found[2], Activation { function: Function::Affine, alpha: 3.0, beta: 0.0 });
}

#[test]
fn weights_that_do_not_fit_are_faults() {
    let x = f64s(&[1, 1, 2], &[1.0, 2.0]);
    let (w, r) = (f64s(&[1, 1, 2], &[1.0, 1.0]), f64s(&[1, 1, 1], &[1.0]));
    assert!(operand::run("RNN", 14, &[], &[x.clone(), r.clone(), r.clone()], 2).is_err());
    assert!(
        operand::run("RNN", 14, &[int("hidden_size", 2)], &[x.clone(), w.clone(), r.clone()], 2).is_err()
    );
    assert!(operand::run("RNN", 14, &[string("direction", "bidirectional")], &[x, w, r], 2).is_err());
}
