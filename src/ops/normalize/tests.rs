use super::*;
use crate::ir::Attribute;
use crate::ir::attribute::{float, int, ints};
use crate::ops::operand::run;

fn f64s(shape: &[usize], x: &[f64]) -> Array {
    Array::new(shape, x.to_vec()).unwrap()
}

fn apply(name: &str, version: i64, attributes: &[Attribute], inputs: &[Array]) -> Result<Vec<f64>, Fault> {
    let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
    Ok(run(name, version, attributes, &inputs, 1)?[0].slice::<f64>()?.to_vec())
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-8, "{found:?} {expected:?}");
    }
}

const NONE: [f32; 1] = [0.0];

#[test]
fn given_statistics() {
    let parameters = [&[2.0, 1.0], &[0.5, -1.0], &[1.0, 3.0], &[4.0, 0.25]].map(|v| f64s(&[2], v));
    let epsilon = [float("epsilon", NONE[0])];
    let inputs = |shape: &[usize], x: &[f64]| [&[f64s(shape, x)][..], &parameters].concat();
    let x = [1.0, 3.0, 3.0, 4.0];
    // (x - 1) / 2 · 2 + 0.5 and (x - 3) / 0.5 · 1 - 1
    close(
        &apply("BatchNormalization", 15, &epsilon, &inputs(&[1, 2, 2], &x)).unwrap(),
        &[0.5, 2.5, -1.0, 1.0],
    );
    close(&apply("BatchNormalization", 9, &epsilon, &inputs(&[2, 2], &x)).unwrap(), &[0.5, -1.0, 2.5, 1.0]);
    assert!(apply("BatchNormalization", 9, &epsilon, &inputs(&[1, 4], &x)).is_err());
}

#[test]
fn training_before_opset_14_is_not_implemented() {
    let parse = |version, attributes: &[_], outputs| {
        let def = crate::ops::find(ONNX, "BatchNormalization", version).unwrap();
        (def.parse)(&mut Attrs::new(attributes, version, 5, outputs))
    };
    assert!(parse(15, &[int("training_mode", 1)], 3).is_ok());
    assert!(parse(9, &[], 5).unwrap_err().is_unimplemented());
    assert!(parse(6, &[int("is_test", 1)], 1).is_ok());
}

#[test]
fn channels_and_groups() {
    let epsilon = float("epsilon", NONE[0]);
    let x = f64s(&[1, 2, 2], &[1.0, 3.0, 5.0, 5.0 + 8.0]);
    let (scale, bias) = (f64s(&[2], &[1.0, 2.0]), f64s(&[2], &[0.0, 10.0]));
    let inputs = [x, scale, bias];
    let found = apply("InstanceNormalization", 6, std::slice::from_ref(&epsilon), &inputs).unwrap();
    close(&found, &[-1.0, 1.0, 8.0, 12.0]);
    let groups = [epsilon.clone(), int("num_groups", 2)];
    for version in [18, 21] {
        close(&apply("GroupNormalization", version, &groups, &inputs).unwrap(), &[-1.0, 1.0, 8.0, 12.0]);
    }
    let x = f64s(&[1, 2, 1], &[2.0, 6.0]);
    let inputs = [x, inputs[1].clone(), inputs[2].clone()];
    close(
        &apply("GroupNormalization", 21, &[epsilon, int("num_groups", 1)], &inputs).unwrap(),
        &[-1.0, 12.0],
    );
}

#[test]
fn layers() {
    let epsilon = float("epsilon", NONE[0]);
    let x = f64s(&[2, 2], &[1.0, 3.0, 2.0, 10.0]);
    let inputs = [x.clone(), f64s(&[2], &[1.0, 2.0]), f64s(&[1], &[10.0])].map(Some);
    let found = run("LayerNormalization", 17, std::slice::from_ref(&epsilon), &inputs, 3).unwrap();
    close(found[0].slice().unwrap(), &[9.0, 12.0, 9.0, 12.0]);
    assert_eq!(found[1], Array::new(&[2, 1], vec![2.0f32, 6.0]).unwrap());
    assert_eq!(found[2], Array::new(&[2, 1], vec![1.0f32, 0.25]).unwrap());
    let x = f64s(&[1, 2], &[3.0, 4.0]);
    let found = apply("RMSNormalization", 23, &[epsilon], &[x, f64s(&[], &[2.0])]).unwrap();
    close(&found, &[6.0 / 12.5f64.sqrt(), 8.0 / 12.5f64.sqrt()]);
}

#[test]
fn scale_may_vary_along_other_axes() {
    let x = f64s(&[2, 2], &[1.0, 3.0, 1.0, 3.0]);
    let scale = f64s(&[2, 1], &[1.0, 5.0]);
    let found = apply("LayerNormalization", 17, &[float("epsilon", NONE[0])], &[x, scale]).unwrap();
    close(&found, &[-1.0, 1.0, -5.0, 5.0]);
}

#[test]
fn any_axes() {
    let x = f64s(&[2, 2, 1, 1], &[1.0, 10.0, 3.0, 30.0]);
    let found = apply("MeanVarianceNormalization", 13, &[], std::slice::from_ref(&x)).unwrap();
    close(&found, &[-1.0, -1.0, 1.0, 1.0]);
    let found = apply("MeanVarianceNormalization", 13, &[ints("axes", [1])], &[x]).unwrap();
    close(&found, &[-1.0, 1.0, -1.0, 1.0]);
}

#[test]
fn backend() {
    crate::ops::backend_tests::run("normalize");
}
