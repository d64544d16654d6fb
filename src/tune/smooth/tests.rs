use super::*;
use crate::onnx::{import, text};

fn graph(body: &str) -> Graph {
    let source = format!(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4,6] x) => (float[1,4,3] y) <
          float[6,3] w = random(1, -0.5, 0.5), float[6,3] v = random(2, -0.5, 0.5), float half = {{0.5}},
          float[6] gamma = random(3, 0.5, 1.5), float[6] beta = random(4, -0.2, 0.2)
        > {{ {body} }}"#
    );
    import(text::parse(&source).unwrap(), &|_| Err("none".into())).unwrap().graph
}

fn run(graph: &Graph) -> Vec<f32> {
    let x = Array::new(&[1, 4, 6], (0..24).map(|i| (i * 7 % 11) as f32 - 4.0).collect::<Vec<f32>>()).unwrap();
    Program::new(graph).unwrap().run(&[x]).unwrap()[0].slice::<f32>().unwrap().to_vec()
}

/// Applies factors to each input of matrices; the outputs must not move. Returns how many Mul nodes there are.
fn check(body: &str) -> usize {
    let mut graph = graph(body);
    let before = run(&graph);
    for reader in readers(&graph) {
        let factors: Vec<f32> = (0..reader.depth).map(|k| 0.25 * (k + 1) as f32).collect();
        apply(&mut graph, &reader, &factors).unwrap();
    }
    for (a, b) in before.iter().zip(run(&graph)) {
        assert!((a - b).abs() < 1e-4, "{a} became {b}");
    }
    graph.nodes().filter(|&n| graph.node(n).is("Mul")).count()
}

#[test]
fn a_constant_factor_takes_the_division() {
    assert_eq!(check("h = Mul (x, half) y = MatMul (h, w)"), 1);
}

#[test]
fn a_normalization_takes_the_division() {
    assert_eq!(check("h = LayerNormalization <axis = -1> (x, gamma, beta) y = MatMul (h, w)"), 0);
}

#[test]
fn other_readers_keep_the_value_as_it_is() {
    let body =
        "h = Mul (x, half) a = MatMul (h, w) r = ReduceMean <axes = [2], keepdims = 1> (h) y = Add (a, r)";
    assert_eq!(check(body), 2);
}

#[test]
fn matrices_that_read_the_same_value_share_the_factors() {
    assert_eq!(check("h = Mul (x, half) a = MatMul (h, w) b = MatMul (h, v) y = Add (a, b)"), 1);
}

#[test]
fn coarse_weights_gain_less() {
    let graph = graph("y = MatMul (x, w)");
    let reader = &readers(&graph)[0];
    // One channel is forty times as loud as the others.
    let loud = |k: usize| if k == 0 { 40.0 } else { 1.0 };
    let value = |i: usize| loud(i % 6) * (((i * 7919) % 2003) as f32 / 1001.5 - 1.0);
    let seen = Seen { largest: (0..6).map(loud).collect(), rows: (0..6 * 200).map(value).collect() };
    let (weights, widths) = stacked(&graph, reader).unwrap();
    let form = |limit| Form { limit, by_channel: true, pairs: false };
    let gain = |limit: i32| {
        let (depth, form) = (reader.depth, form(limit));
        let problem = Problem { rows: &seen.rows, weights: &weights, depth, widths: &widths, form };
        let exact = problem.products(&seen.rows, &weights);
        let error = |first: f32| problem.error(&[first, 1.0, 1.0, 1.0, 1.0, 1.0], &seen.largest, &exact);
        error(10.0) / error(1.0)
    };
    assert!(gain(127) < WORTHWHILE && gain(7) > 1.5 * gain(127), "{} {}", gain(127), gain(7));
    assert!(choose(&graph, reader, &seen, form(127)).unwrap().is_some());
}

#[test]
fn a_loud_output_channel_is_counted_where_others_share_its_scale() {
    let graph = graph("a = MatMul (x, w) b = MatMul (x, v) y = Add (a, b)");
    let value = |i: usize| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0;
    let rows: Vec<f32> = (0..6 * 200).map(value).collect();
    let (mut weights, widths) = stacked(&graph, &readers(&graph)[0]).unwrap();
    assert_eq!(widths, [3, 3]);
    // The first output channel of the first matrix.
    weights.iter_mut().step_by(6).for_each(|w| *w *= 4.0);
    let error = |widths: &[usize], by_channel| {
        let form = Form { limit: 7, by_channel, pairs: false };
        let problem = Problem { rows: &rows, weights: &weights, depth: 6, widths, form };
        problem.error(&[1.0; 6], &[1.0; 6], &problem.products(&rows, &weights))
    };
    let (by_channel, by_matrix, one_matrix) =
        (error(&widths, true), error(&widths, false), error(&[6], false));
    assert!(by_matrix > 2.0 * by_channel, "{by_matrix} {by_channel}");
    assert!(one_matrix > 1.5 * by_matrix, "{one_matrix} {by_matrix}");
}
