use super::blocked::{Algorithm, Blocked};
use super::{Storage, quantize};
use crate::interpret::Program;
use crate::ir::{Array, DType, Graph, Model};
use crate::onnx::{import, text};
use crate::passes::{check, infer};
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

fn bytes(graph: &Graph) -> usize {
    let inner = |n| graph.node(n).bodies.iter().map(|b| bytes(&b.graph)).sum::<usize>();
    let own: usize = graph.constants.iter().filter_map(|&c| graph.constant(c)).map(|t| t.byte_len()).sum();
    own + graph.nodes().map(inner).sum::<usize>()
}

/// Quantizes the weights, checks that outputs stay close and the constants shrink to this share.
#[track_caller]
fn shrinks(body: &str, inputs: &[Array], share: f64) -> (Model, Vec<String>) {
    let before = read(body);
    let mut after = before.clone();
    let done = quantize(&mut after.graph, &Filter::default(), Storage::default()).unwrap();
    infer(&mut after.graph);
    check(&after, "weights").unwrap();
    let run = |m: &Model| Program::new(&m.graph).unwrap().run(inputs).unwrap();
    for (x, y) in run(&before).iter().zip(run(&after)) {
        let (x, y) = (x.to_f32().unwrap(), y.to_f32().unwrap());
        let signal: f32 = x.iter().map(|v| v * v).sum();
        let noise: f32 = x.iter().zip(&y).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!(noise > 0.0 && noise < signal * 1e-3, "noise {noise}, signal {signal}");
    }
    let (small, large) = (bytes(&after.graph) as f64, bytes(&before.graph) as f64);
    assert!(small / large < share, "{small} of {large} bytes");
    (after, done.nodes.into_iter().collect())
}

#[test]
fn operators_that_multiply_by_a_weight() {
    let cases = [
        ("float[1,8,9,9] x", "float[16,8,3,3] w", "y = Conv (x, w)", vec![1, 8, 9, 9]),
        ("float[1,8,9,9] x", "float[8,4,3,3] w", "y = ConvTranspose <group = 2> (x, w)", vec![1, 8, 9, 9]),
        ("float[4,32] x", "float[64,32] w", "y = Gemm <transB = 1> (x, w)", vec![4, 32]),
        ("float[32,4] x", "float[64,32] w", "y = MatMul (w, x)", vec![32, 4]),
        ("float[3,4,32] x", "float[3,32,16] w", "y = MatMul (x, w)", vec![3, 4, 32]),
        (
            "float[2,5,32] x",
            "float[8,32,4] w",
            "y = Einsum <equation = \"btd,hdk->bthk\"> (x, w)",
            vec![2, 5, 32],
        ),
    ];
    for (x, w, node, shape) in cases {
        let body = format!("g ({x}) => (float y) <{w} = random(1, -1.0, 1.0)> {{ {node} }}");
        let (model, nodes) = shrinks(&body, &[ramp(&shape)], 0.3);
        assert_eq!(nodes.len(), 1, "{node}");
        let w = model.graph.find("w").unwrap();
        assert!(model.graph.producer(w).is_some(), "the weight keeps its name: {node}");
    }
}

#[test]
fn recurrent_layers() {
    let body = "g (float[5,1,16] x) => (float[5,1,1,16] y) <float[1,64,16] w = random(1, -0.3, 0.3), \
                float[1,64,16] r = random(2, -0.3, 0.3)> { y = LSTM <hidden_size = 16> (x, w, r) }";
    let (model, _) = shrinks(body, &[ramp(&[5, 1, 16])], 0.34);
    let node = model.graph.nodes().filter(|&n| model.graph.node(n).is("DequantizeLinear")).count();
    assert_eq!(node, 2);
}

#[test]
fn tables_are_gathered_as_integers() {
    let body =
        "g (int64[3] i) => (float[3,32] y) <float[99,32] t = random(1, -1.0, 1.0)> { y = Gather (t, i) }";
    let (model, _) = shrinks(body, &[Array::vector(vec![0i64, 98, 4])], 0.4);
    let gather = model.graph.nodes().find(|&n| model.graph.node(n).is("Gather")).unwrap();
    assert_eq!(model.graph.constant_input(gather, 0).unwrap().dtype(), DType::U8);
}

#[test]
fn shared_weights_are_stored_once_and_bodies_read_them_by_name() {
    let body = "g (bool c, float[2,32] x) => (float[2,32] y) <float[32,32] w = random(1, -0.3, 0.3)> { a = MatMul (x, w) \
        y = If (c) <then_branch = t () => (float[2,32] p) { p = MatMul (a, w) }, \
        else_branch = e () => (float[2,32] q) <float[32,32] v = random(2, -0.3, 0.3)> { q = MatMul (a, v) }> }";
    for c in [true, false] {
        let (_, nodes) = shrinks(body, &[Array::scalar(c), ramp(&[2, 32])], 0.3);
        assert_eq!(nodes, ["MatMul `a`", "MatMul `p`", "MatMul `q`"]);
    }
}

#[test]
fn what_the_user_excludes_keeps_its_weight() {
    let mut model = read(
        "g (float[2,32] x) => (float[2,32] y) <float[32,32] w = random(1, -0.3, 0.3)> { y = MatMul (x, w) }",
    );
    let filter = Filter { exclude: vec!["y".into()], ..Filter::default() };
    let done = quantize(&mut model.graph, &filter, Storage::default()).unwrap();
    assert_eq!(done.float, [("MatMul `y`".to_string(), "excluded by `y`".to_string())]);
    assert_eq!(model.graph.nodes().count(), 1);
}

#[test]
fn four_bits_in_blocks() {
    let body = "g (int64[3] i, float[2,64] x) => (float[2,32] y, float[3,128] z) <float[64,64] w = random(1, -0.3, 0.3), \
        float[32,64] v = random(2, -0.3, 0.3), float[99,128] t = random(3, -1.0, 1.0)> { \
        a = MatMul (x, w)  y = Gemm <transB = 1> (a, v)  z = Gather (t, i) }";
    for algorithm in [Algorithm::Rtn, Algorithm::Mse] {
        let before = read(body);
        let mut after = before.clone();
        crate::passes::upgrade(&mut after, 21).unwrap();
        let storage = Storage::new(Some(Blocked { size: 32, algorithm }), Default::default());
        let done = quantize(&mut after.graph, &Filter::default(), storage).unwrap();
        assert_eq!(done.nodes.len(), 3);
        infer(&mut after.graph);
        check(&after, "weights").unwrap();
        assert!(bytes(&after.graph) * 100 < bytes(&before.graph) * 17);
        let run = |m: &Model| {
            let inputs = [Array::vector(vec![0i64, 98, 4]), ramp(&[2, 64])];
            Program::new(&m.graph).unwrap().run(&inputs).unwrap()
        };
        for (x, y) in run(&before).iter().zip(run(&after)) {
            assert_eq!(x.shape(), y.shape());
            let (x, y) = (x.to_f32().unwrap(), y.to_f32().unwrap());
            let signal: f32 = x.iter().map(|v| v * v).sum();
            let noise: f32 = x.iter().zip(&y).map(|(a, b)| (a - b) * (a - b)).sum();
            assert!(noise > 0.0 && noise < signal * 0.03, "noise {noise}, signal {signal}");
        }
    }
}

#[test]
fn rows_in_front_of_a_product_are_no_quantized_activations() {
    let body = "g (int64[3] i) => (float[3,64] y) <float[99,64] t = random(1, -1.0, 1.0), \
        float[64,64] w = random(2, -0.3, 0.3)> { e = Gather (t, i)  y = MatMul (e, w) }";
    let (after, _) = shrinks(body, &[Array::vector(vec![0i64, 98, 4])], 0.3);
    let graph = &after.graph;
    let product = graph.nodes().find(|&n| graph.node(n).is("MatMul")).unwrap();
    let rows = graph.input(product, 0).and_then(|v| graph.producer(v)).unwrap();
    assert_eq!(graph.node(rows.0).op_type, "Mul");
}

#[test]
fn weights_behind_movements() {
    let body = "g (bool c, float[2,32] x) => (float[2,32] y) <float[32,32] w = random(1, -0.3, 0.3)> { \
        y = If (c) <then_branch = t () => (float[2,32] p) { v = Transpose (w)  p = MatMul (x, v) }, \
        else_branch = e () => (float[2,32] q) { q = MatMul (x, w) }> }";
    shrinks(body, &[Array::scalar(true), ramp(&[2, 32])], 0.3);
}

#[test]
fn each_channel_of_a_convolution_keeps_its_sum() {
    let body = "g (float[1,40,4,4] x) => (float[1,24,4,4] y) <float[24,40,1,1] w = random(1, -0.7, 1.0)> { y = Conv (x, w) }";
    let before = read(body);
    let w = before.graph.find("w").unwrap();
    let real = before.graph.constant(w).unwrap().array().unwrap();
    let mut after = before.clone();
    quantize(&mut after.graph, &Filter::default(), Storage::default()).unwrap();
    let inputs: Vec<Option<Array>> = {
        let (id, _) = after.graph.producer(w).unwrap();
        (0..3).map(|slot| Some(after.graph.constant_input(id, slot).unwrap().array().unwrap())).collect()
    };
    let [Some(q), Some(s), Some(z)] = &inputs[..] else { panic!() };
    let (q, s, z) = (q.to_f32().unwrap(), s.to_f32().unwrap(), z.to_f32().unwrap());
    let (q, real) = (q.as_slice().unwrap(), real.slice::<f32>().unwrap());
    for (c, (q, real)) in q.chunks(40).zip(real.chunks(40)).enumerate() {
        let errors: Vec<f32> = q.iter().zip(real).map(|(q, w)| (q - z[c]) - w / s[c]).collect();
        assert!(errors.iter().sum::<f32>().abs() < 0.51, "channel {c}: {}", errors.iter().sum::<f32>());
        assert!(errors.iter().all(|e| e.abs() < 1.0));
    }
}

#[test]
fn weights_of_raw_features_keep_16_bits_if_they_are_few() {
    let body = |first: usize| {
        format!(
            "g (float[5,1,{first}] x) => (float[5,1,64] y) <float[1,256,{first}] w = random(1, -0.3, 0.3), \
             float[1,256,64] r = random(2, -0.3, 0.3), float[64,1024] m = random(3, -0.2, 0.2), \
             float[1024,64] n = random(4, -0.1, 0.1), int64[1] axes = {{1}}> {{ \
             h = LSTM <hidden_size = 64> (x, w, r) s = Squeeze (h, axes) a = MatMul (s, m) y = MatMul (a, n) }}"
        )
    };
    for (first, op) in [(16, "Cast"), (64, "DequantizeLinear")] {
        let (model, nodes) = shrinks(&body(first), &[ramp(&[5, 1, first])], 0.3);
        let made = model.graph.producer(model.graph.find("w").unwrap()).unwrap().0;
        assert_eq!(model.graph.node(made).op_type, op, "{first} features");
        assert_eq!(nodes, ["LSTM `h`", "MatMul `a`", "MatMul `y`"]);
    }
}
