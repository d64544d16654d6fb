use crate::interpret::Program;
use crate::ir::{Array, Model};
use crate::onnx::{import, text};
use crate::passes::{check, upgrade};

fn read(body: &str, opset: i64) -> Model {
    let source = format!("< ir_version: 8, opset_import: [\"\" : {opset}] >\n{body}");
    import(text::parse(&source).unwrap(), &|_| Err("no external data".into())).unwrap()
}

/// Raises a model and checks that it still computes the same.
#[track_caller]
fn same(body: &str, from: i64, to: i64, inputs: &[Array]) -> Model {
    let mut model = read(body, from);
    let before = Program::new(&model.graph).unwrap().run(inputs).unwrap();
    upgrade(&mut model, to).unwrap();
    check(&model, "raising the opset").unwrap();
    assert_eq!(model.opset(""), Some(to));
    let unknown: Vec<_> = model.graph.nodes().filter_map(|n| model.graph.node(n).unknown.clone()).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert_eq!(Program::new(&model.graph).unwrap().run(inputs).unwrap(), before);
    model
}

fn ramp(shape: &[usize]) -> Array {
    let count = shape.iter().product::<usize>();
    Array::new(shape, (0..count).map(|i| libm::sinf(i as f32 * 0.37)).collect::<Vec<f32>>()).unwrap()
}

#[test]
fn reductions_take_their_axes_as_an_input() {
    for op in ["ReduceMax", "ReduceMean", "ReduceL2", "ReduceSumSquare"] {
        let body = format!("g (float[2,3,4] x) => (float[2,1,4] y) {{ y = {op} <axes = [1]> (x) }}");
        let model = same(&body, 13, 18, &[ramp(&[2, 3, 4])]);
        let node = model.graph.nodes().next().unwrap();
        assert_eq!(model.graph.node(node).inputs, 2);
    }
}

#[test]
fn an_even_split_says_in_how_many() {
    let body = "g (float[2,6] x) => (float[2,3] a, float[2,3] b) { a, b = Split <axis = 1> (x) }";
    same(body, 13, 22, &[ramp(&[2, 6])]);
}

#[test]
fn modes_of_grid_sample_are_renamed() {
    let body = "g (float[1,1,4,4] x, float[1,2,2,2] at) => (float[1,1,2,2] y) { y = GridSample <mode = \"bilinear\"> (x, at) }";
    let mut model = read(body, 16);
    upgrade(&mut model, 20).unwrap();
    let node = model.graph.nodes().next().unwrap();
    assert_eq!(model.graph.node(node).attributes[0].s.as_deref(), Some(&b"linear"[..]));
}

#[test]
fn statistics_of_training_are_dropped_or_refused() {
    let form = |outputs: &str| {
        format!(
            "g (float[1,2,3] x) => ({outputs}) <float[2] s = {{1.0, 2.0}}, float[2] b = {{0.5, 0.0}}, \
             float[2] m = {{0.1, 0.2}}, float[2] v = {{1.0, 4.0}}> {{ y, mean, var = BatchNormalization (x, s, b, m, v) }}"
        )
    };
    let mut unused = read(&form("float[1,2,3] y"), 9);
    upgrade(&mut unused, 14).unwrap();
    let node = unused.graph.nodes().next().unwrap();
    assert_eq!(unused.graph.node(node).outputs, 1);
    let mut used = read(&form("float[1,2,3] y, float[2] mean"), 9);
    assert!(upgrade(&mut used, 14).is_err());
}

#[test]
fn groups_become_channels() {
    let body = "g (float[1,4,3] x) => (float[1,4,3] y) <float[2] s = {1.0, 2.0}, float[2] b = {0.5, 0.0}> \
                { y = GroupNormalization <num_groups = 2> (x, s, b) }";
    let mut model = read(body, 18);
    upgrade(&mut model, 21).unwrap();
    let node = model.graph.nodes().next().unwrap();
    let scale = model.graph.constant_input(node, 1).unwrap().array().unwrap();
    assert_eq!(scale, Array::vector(vec![1.0f32, 1.0, 2.0, 2.0]));
}
