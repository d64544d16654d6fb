//! Layers against their formulas, one number at a time.

use proptest::prelude::*;

use super::*;

fn numbers(count: usize, seed: u32) -> Vec<f64> {
    let one =
        |i: u32| f64::from(i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) / f64::from(1 << 23) - 1.0;
    (0..count as u32).map(|i| one(i.wrapping_add(seed))).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// Gate `g` of state `j`: its products with input and state, and the sums with their biases.
fn gate(layer: &Layer<f64>, sizes: Sizes, g: usize, j: usize, x: &[f64], h: &[f64]) -> (f64, f64) {
    let row = g * sizes.hidden + j;
    let dot = |w: &[f64], x: &[f64]| -> f64 { w[row * x.len()..].iter().zip(x).map(|(w, x)| w * x).sum() };
    let bias = |b: Option<&[f64]>| b.map_or(0.0, |b| b[row]);
    (
        dot(layer.weights, x) + bias(layer.biases.map(|b| b.0)),
        dot(layer.recurrent, h) + bias(layer.biases.map(|b| b.1)),
    )
}

/// The states and cells after a step.
fn step(layer: &Layer<f64>, sizes: Sizes, x: &[f64], h: &[f64], c: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = sizes.hidden;
    let clip = |v: f64| layer.clip.map_or(v, |limit| v.clamp(-limit, limit));
    let sum = |g: usize, j: usize| {
        let (from_input, from_state) = gate(layer, sizes, g, j, x, h);
        from_input + from_state
    };
    let peephole = |g: usize, j: usize, c: f64| layer.peepholes.map_or(0.0, |p| p[g * n + j] * c);
    let one = |j: usize| match layer.cell {
        Cell::Lstm { coupled } => {
            let input = sigmoid(clip(sum(0, j) + peephole(0, j, c[j])));
            let forget = sigmoid(clip(sum(2, j) + peephole(2, j, c[j])));
            let keep = if coupled { 1.0 - input } else { forget };
            let cell = keep * c[j] + input * libm::tanh(clip(sum(3, j)));
            (sigmoid(clip(sum(1, j) + peephole(1, j, cell))) * libm::tanh(cell), cell)
        }
        Cell::Gru { linear_before_reset } => {
            let reset = |j: usize| sigmoid(clip(sum(1, j)));
            let hidden = if linear_before_reset {
                let (from_input, from_state) = gate(layer, sizes, 2, j, x, h);
                from_input + reset(j) * from_state
            } else {
                let kept: Vec<f64> = (0..n).map(|k| reset(k) * h[k]).collect();
                let (from_input, from_state) = gate(layer, sizes, 2, j, x, &kept);
                from_input + from_state
            };
            let update = sigmoid(clip(sum(0, j)));
            ((1.0 - update) * libm::tanh(clip(hidden)) + update * h[j], 0.0)
        }
        Cell::Plain => (libm::tanh(clip(sum(0, j))), 0.0),
    };
    (0..n).map(one).unzip()
}

fn cells() -> impl Strategy<Value = Cell> {
    prop_oneof![
        any::<bool>().prop_map(|coupled| Cell::Lstm { coupled }),
        any::<bool>().prop_map(|linear_before_reset| Cell::Gru { linear_before_reset }),
        Just(Cell::Plain),
    ]
}

proptest! {
    #[test]
    fn layers_follow_their_formulas(
        cell in cells(), reverse: bool, biased: bool, peeping: bool, clip in prop::option::of(0.1f64..2.0),
        (time, batch, input, hidden) in (0usize..5, 1usize..4, 1usize..5, 1usize..6),
        ends in prop::collection::vec(0usize..5, 4), seed: u32,
    ) {
        let sizes = Sizes { time, batch, input, hidden };
        let width = cell.gates() * hidden;
        let lengths: Vec<usize> = (0..batch).map(|b| ends[b].min(time)).collect();
        let (weights, recurrent) = (numbers(width * input, seed), numbers(width * hidden, seed ^ 1));
        let biases = [numbers(width, seed ^ 2), numbers(width, seed ^ 3)];
        let peepholes = numbers(3 * hidden, seed ^ 4);
        let plain = |function| Activation { function, alpha: 0.0, beta: 0.0 };
        let (sigmoid, tanh) = (plain(Function::Sigmoid), plain(Function::Tanh));
        let activations: &[Activation] = if cell == Cell::Plain { &[tanh] } else { &[sigmoid, tanh, tanh] };
        let layer = Layer {
            cell,
            reverse,
            weights: &weights,
            recurrent: &recurrent,
            ahead: [reverse, biased],
            biases: biased.then_some((&biases[0], &biases[1])),
            peepholes: peeping.then_some(&peepholes),
            activations,
            clip,
        };
        let x = numbers(time * batch * input, seed ^ 5);
        let (first, cells) = (numbers(batch * hidden, seed ^ 6), numbers(batch * hidden, seed ^ 7));
        let (mut h, mut c) = (first.clone(), cells.clone());
        let mut emitted = Vec::new();
        run(&layer, sizes, &x, &lengths, (&mut h, &mut c), |t, b, state| emitted.push((b, t, state.to_vec())));
        emitted.sort_by_key(|&(b, t, _)| (b, if reverse { time - t } else { t }));
        let mut emitted = emitted.into_iter();
        let close = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-10);
        for (b, &length) in lengths.iter().enumerate() {
            let own = b * hidden..(b + 1) * hidden;
            let (mut state, mut kept) = (first[own.clone()].to_vec(), cells[own.clone()].to_vec());
            for i in 0..length {
                let t = if reverse { length - 1 - i } else { i };
                let x = &x[(t * batch + b) * input..][..input];
                (state, kept) = step(&layer, sizes, x, &state, &kept);
                let (sequence, at, found) = emitted.next().unwrap();
                prop_assert!((sequence, at) == (b, t) && close(&found, &state));
            }
            prop_assert!(close(&h[own.clone()], &state));
            prop_assert!(cell.gates() != 4 || close(&c[own], &kept));
        }
        prop_assert!(emitted.next().is_none());
    }
}
