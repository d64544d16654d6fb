use serde_json::Value;

use super::{args, compiled, digits, golden, model, qonnx, repository, tempdir};

const SMALL: &str = r#"<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>
small (float[N,3,8,8] x) => (float[N,10] y) <
  float[4,3,3,3] w = random(7, -0.5, 0.5), float[4] b = {0, 1, 2, 3}, float[256,10] m = fill(0.5), int64[2] shape = {0, -1}
> {
  [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  [warp] e = com.example.Warp (c)
  f = Reshape (c, shape)
  [fc] y = MatMul (f, m)
}"#;

#[test]
fn facts() {
    let dir = tempdir();
    let path = model(&dir, "small.onnx", SMALL);
    let outcome = qonnx(args!["inspect", path, "--json"]).code(0);
    let facts: Value = serde_json::from_str(&outcome.out).unwrap();
    assert_eq!(facts["inputs"][0]["type"], "float[N,3,8,8]");
    assert_eq!(facts["opsets"]["com.example"], 1);
    let parameters = 4 * 27 + 4 + 2560 + 2;
    assert_eq!(facts["parameters"], parameters);
    assert_eq!(facts["parameter_bytes"], parameters * 4 + 2 * 4);
    // 4 channels of 8·8 sums of 27 products, and 10 sums of 256.
    assert_eq!(facts["macs"], 4 * 64 * 27 + 256 * 10);
    assert_eq!(facts["quantization"]["state"], "float");
    assert_eq!(facts["not_implemented"][0], "not implemented: Warp (com.example, opset 1)");
    assert_eq!(facts["operators"][0]["operator"], "MatMul");
    let text = qonnx(args!["inspect", path]).code(0);
    text.prints(&["input         x float[N,3,8,8]", "com.example 1", "9472 multiply-accumulates", "MatMul"]);
}

#[test]
fn quantization_is_seen() {
    let dir = tempdir();
    let state = |path: &std::path::Path| {
        let facts: Value =
            serde_json::from_str(&qonnx(args!["inspect", path, "--json"]).code(0).out).unwrap();
        (facts["quantization"]["state"].clone(), facts["quantization"]["integer_bytes"].as_f64().unwrap())
    };
    assert_eq!(state(&digits()), ("float".into(), 0.0));
    let (state, share) = state(&compiled(&dir));
    assert!(state == "static (Q/DQ)" && share > 0.5, "{state} {share}");
}

#[test]
fn text_and_drawing() {
    let dir = tempdir();
    let path = golden(&dir, "if_capture");
    let first = qonnx(args!["inspect", path, "--text"]).code(0).out;
    assert_eq!(first, qonnx(args!["inspect", path, "--text"]).code(0).out);
    qonnx::onnx::text::parse(
        &std::fs::read_to_string(repository("tests/golden/if_capture.onnxtxt")).unwrap(),
    )
    .unwrap();
    assert!(first.contains("opset_import") && first.contains("If"), "{first}");
    let dot = qonnx(args!["inspect", path, "--dot"]).code(0).out;
    assert!(dot.starts_with("digraph model {") && dot.trim_end().ends_with('}'), "{dot}");
    assert_eq!(dot.matches('{').count(), dot.matches('}').count());
    qonnx(args!["inspect", path, "--dot", "--json"]).code(2);
}

#[test]
fn the_table_of_operators_in_the_readme_is_current() {
    let table = qonnx(args!["ops", "--markdown"]).code(0).out;
    let path = repository("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (start, end) = ("<!-- qonnx ops -->\n", "<!-- /qonnx ops -->");
    let (before, rest) = readme.split_once(start).unwrap();
    let (found, after) = rest.split_once(end).unwrap();
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(&path, format!("{before}{start}{table}{end}{after}")).unwrap();
        return;
    }
    assert!(found == table, "run: UPDATE_README=1 cargo test --test cli readme");
}

#[test]
fn operators() {
    let table = qonnx(args!["ops"]).code(0).out;
    let row = |name: &str| {
        let found = table.lines().find(|l| l.split_whitespace().next() == Some(name)).unwrap_or_default();
        found.split_whitespace().map(str::to_string).collect::<Vec<_>>()
    };
    assert_eq!(row("Conv")[1..5], ["yes", "yes", "yes", "contraction"]);
    assert_eq!(row("Tanh")[1..5], ["yes", "-", "yes", "float"]);
    assert_eq!(row("Shape")[1..5], ["yes", "-", "-", "float"]);
    assert_eq!(row("Concat")[4], "arithmetic");
    let json: Value = serde_json::from_str(&qonnx(args!["ops", "--json"]).code(0).out).unwrap();
    assert_eq!(json.as_array().unwrap().len(), table.lines().count() - 1);
}
