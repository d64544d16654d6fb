//! Gradients against those of PyTorch, which `tests/data/torch_gradients.py` wrote down.

use qonnx::ir::{Array, Attribute, Op, Run, attribute};
use qonnx::ops::{Attrs, find};
use serde_json::Value;
use std::sync::Arc;

const CASES: &str = include_str!("data/torch_gradients.json");

fn array(value: &Value) -> Option<Array> {
    let shape: Vec<usize> =
        value.get("shape")?.as_array()?.iter().map(|d| d.as_u64().unwrap() as usize).collect();
    if let Some(ints) = value.get("ints") {
        return Array::new(&shape, ints.as_array()?.iter().map(|v| v.as_i64().unwrap()).collect()).ok();
    }
    Array::new(&shape, value["data"].as_array()?.iter().map(|v| v.as_f64().unwrap()).collect()).ok()
}

fn arrays(value: &Value) -> Vec<Option<Array>> {
    value.as_array().unwrap().iter().map(array).collect()
}

fn attributes(value: &Value) -> Vec<Attribute> {
    let one = |(name, value): (&String, &Value)| match value {
        Value::String(s) => attribute::string(name, s),
        Value::Array(list) => {
            attribute::ints(name, list.iter().map(|v| v.as_i64().unwrap()).collect::<Vec<_>>())
        }
        Value::Number(n) if n.is_i64() => attribute::int(name, n.as_i64().unwrap()),
        other => attribute::float(name, other.as_f64().unwrap() as f32),
    };
    value.as_object().unwrap().iter().map(one).collect()
}

fn operator(
    name: &str,
    version: i64,
    attributes: &[Attribute],
    inputs: usize,
    outputs: usize,
) -> Arc<dyn Op> {
    let mut attrs = Attrs::new(attributes, version, inputs, outputs);
    (find("", name, version).unwrap().parse)(&mut attrs).unwrap()
}

/// The greatest difference, over the greatest element.
fn distance(found: &Array, wanted: &Array) -> f64 {
    let values = |a: &Array| -> Vec<f64> {
        match a {
            Array::F64(a) => a.iter().copied().collect(),
            other => other.to_f32().unwrap().iter().map(|&v| v.into()).collect(),
        }
    };
    assert_eq!(found.len(), wanted.len());
    let (a, b) = (values(found), values(wanted));
    let size = b.iter().fold(1e-6f64, |m, v| m.max(v.abs()));
    a.iter().zip(&b).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs())) / size
}

#[test]
fn operators_agree_with_pytorch() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    for case in cases.iter().filter(|c| c["op"] != "LearnedStep") {
        let (name, version) = (case["op"].as_str().unwrap(), case["version"].as_i64().unwrap());
        let (inputs, upstream) = (arrays(&case["inputs"]), arrays(&case["upstream"]));
        let op = operator(name, version, &attributes(&case["attributes"]), inputs.len(), upstream.len());
        let outputs: Vec<_> = op.float(&inputs).unwrap().into_iter().map(Some).collect();
        for (found, wanted) in outputs.iter().zip(arrays(&case["outputs"])) {
            assert!(distance(found.as_ref().unwrap(), &wanted.unwrap()) < 1e-6, "{name}: the output");
        }
        let gradients = arrays(&case["gradients"]);
        let wanted: Vec<bool> =
            (0..inputs.len()).map(|i| gradients.get(i).is_some_and(Option::is_some)).collect();
        let run = Run { inputs: &inputs, outputs: &outputs, upstream: &upstream, wanted: &wanted };
        let found = op.gradient().unwrap().backward(&run).unwrap();
        for (slot, gradient) in gradients.iter().enumerate().filter_map(|(i, g)| Some((i, g.as_ref()?))) {
            let error = distance(found[slot].as_ref().unwrap(), gradient);
            assert!(error < 1e-6, "{name}, input {slot}: {error:.1e} {}", case["attributes"]);
        }
    }
}

#[test]
fn the_quantization_pair_learns_its_step() {
    let cases: Vec<Value> = serde_json::from_str(CASES).unwrap();
    let case = cases.iter().find(|c| c["op"] == "LearnedStep").unwrap();
    let single = |a: Option<Array>| Some(a.unwrap().to_f32().unwrap().into());
    let inputs: Vec<Option<Array>> = arrays(&case["inputs"]).into_iter().map(single).collect();
    let upstream: Vec<Option<Array>> = arrays(&case["upstream"]).into_iter().map(single).collect();
    let scalar = |slot: usize| inputs[slot].as_ref().unwrap().item::<f32>().unwrap();
    let params = [Some(Array::scalar(scalar(1))), Some(Array::scalar(scalar(2) as u8))];
    let (quantize, dequantize) =
        (operator("QuantizeLinear", 13, &[], 3, 1), operator("DequantizeLinear", 13, &[], 3, 1));
    let before = [&inputs[..1], &params].concat();
    let q = [Some(quantize.float(&before).unwrap().remove(0))];
    let between = [&q[..], &params].concat();
    let y = [Some(dequantize.float(&between).unwrap().remove(0))];
    assert!(distance(y[0].as_ref().unwrap(), &array(&case["outputs"][0]).unwrap()) < 1e-6);
    let wanted = [true; 3];
    let run = Run { inputs: &between, outputs: &y, upstream: &upstream, wanted: &wanted };
    let outer = dequantize.gradient().unwrap().backward(&run).unwrap();
    let run = Run { inputs: &before, outputs: &q, upstream: &outer[..1], wanted: &wanted };
    let inner = quantize.gradient().unwrap().backward(&run).unwrap();
    let gradients = arrays(&case["gradients"]);
    assert!(distance(inner[0].as_ref().unwrap(), gradients[0].as_ref().unwrap()) < 1e-6);
    for slot in [1, 2] {
        let value = |g: &[Option<Array>]| f64::from(g[slot].as_ref().unwrap().item::<f32>().unwrap());
        let wanted = f64::from(gradients[slot].as_ref().unwrap().to_f32().unwrap()[0]);
        let found = value(&outer) + value(&inner);
        assert!((found - wanted).abs() < 1e-4 * wanted.abs().max(1.0), "{slot}: {found} {wanted}");
    }
}
