use super::*;
use crate::ir::attribute;
use crate::ops::operand::run;

fn f32s(shape: &[usize], values: &[f32]) -> Option<Array> {
    Some(Array::new(shape, values.to_vec()).unwrap())
}

fn u8s(shape: &[usize], values: &[u8]) -> Option<Array> {
    Some(Array::new(shape, values.to_vec()).unwrap())
}

fn one(name: &str, version: i64, attributes: &[crate::ir::Attribute], inputs: &[Option<Array>]) -> Array {
    run(name, version, attributes, inputs, 1).unwrap().remove(0)
}

#[test]
fn one_scale_for_all() {
    let x = f32s(&[6], &[0.0, 2.0, 3.0, 1000.0, -254.0, -1000.0]);
    let y = one("QuantizeLinear", 10, &[], &[x, f32s(&[], &[2.0]), u8s(&[], &[128])]);
    assert_eq!(y, u8s(&[6], &[128, 129, 130, 255, 1, 0]).unwrap());
    let back = one("DequantizeLinear", 10, &[], &[Some(y), f32s(&[], &[2.0]), u8s(&[], &[128])]);
    assert_eq!(back, f32s(&[6], &[0.0, 2.0, 4.0, 254.0, -254.0, -256.0]).unwrap());
}

#[test]
fn without_a_zero_point() {
    let x = f32s(&[2], &[-3.0, 3.0]);
    let scale = f32s(&[1], &[0.5]);
    let y = one("QuantizeLinear", 13, &[], &[x.clone(), scale.clone()]);
    assert_eq!(y, u8s(&[2], &[0, 6]).unwrap());
    let y = one("QuantizeLinear", 21, &[attribute::int("output_dtype", 3)], &[x, scale]);
    assert_eq!(y, Array::vector(vec![-6i8, 6]));
}

#[test]
fn one_scale_per_slice() {
    let x = f32s(&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
    let (scale, zero) = (f32s(&[2], &[1.0, 0.5]), u8s(&[2], &[0, 100]));
    let y = one("QuantizeLinear", 13, &[], &[x.clone(), scale.clone(), zero.clone()]);
    assert_eq!(y, u8s(&[2, 2, 2], &[1, 2, 106, 108, 5, 6, 114, 116]).unwrap());
    let last = one("QuantizeLinear", 13, &[attribute::int("axis", -1)], &[x, scale, zero]);
    assert_eq!(last, u8s(&[2, 2, 2], &[1, 104, 3, 108, 5, 112, 7, 116]).unwrap());
}

#[test]
fn one_scale_per_block() {
    let attributes = [attribute::int("axis", 0), attribute::int("block_size", 2)];
    let q = u8s(&[3, 2], &[1, 2, 3, 4, 5, 6]);
    let scale = f32s(&[2, 2], &[1.0, 10.0, 100.0, 1000.0]);
    let y =
        one("DequantizeLinear", 21, &attributes, &[q.clone(), scale.clone(), u8s(&[2, 2], &[0, 1, 0, 1])]);
    assert_eq!(y, f32s(&[3, 2], &[1.0, 10.0, 3.0, 30.0, 500.0, 5000.0]).unwrap());
    let attributes = [attribute::int("axis", 1), attribute::int("block_size", 2)];
    assert!(run("DequantizeLinear", 21, &attributes, &[q.clone(), scale, None], 1).is_err());
    let y = one("DequantizeLinear", 21, &attributes, &[q, f32s(&[3, 1], &[1.0, 10.0, 100.0])]);
    assert_eq!(y, f32s(&[3, 2], &[1.0, 2.0, 30.0, 40.0, 500.0, 600.0]).unwrap());
}

#[test]
fn parameters_that_do_not_fit_are_faults() {
    let x = f32s(&[2, 3], &[0.0; 6]);
    let scale = f32s(&[2], &[1.0, 1.0]);
    assert!(run("QuantizeLinear", 13, &[], &[x.clone(), scale.clone(), None], 1).is_err());
    let zero = u8s(&[3], &[0; 3]);
    assert!(run("QuantizeLinear", 13, &[attribute::int("axis", 0)], &[x.clone(), scale, zero], 1).is_err());
    assert!(run("QuantizeLinear", 13, &[attribute::int("axis", 2)], &[x, f32s(&[3], &[1.0; 3])], 1).is_err());
}

#[test]
fn sixteen_bit_real_numbers() {
    let half = |v: &[f32]| Some(Array::vector(v.iter().map(|&v| half::f16::from_f32(v)).collect()));
    let x = half(&[1.0, 2.6]);
    let q = one("QuantizeLinear", 19, &[], &[x, half(&[0.5])]);
    assert_eq!(q, u8s(&[2], &[2, 5]).unwrap());
    assert_eq!(one("DequantizeLinear", 19, &[], &[Some(q), half(&[0.5])]), half(&[1.0, 2.5]).unwrap());
}

#[test]
fn dynamic_range() {
    let x = f32s(&[3], &[-1.0, 0.0, 4.1]);
    let found = run("DynamicQuantizeLinear", 11, &[], &[x], 3).unwrap();
    // 5.1 / 255 = 0.02; the zero point is 1 / 0.02.
    assert_eq!(
        found,
        [u8s(&[3], &[0, 50, 255]).unwrap(), Array::scalar(5.1f32 / 255.0), Array::scalar(50u8)]
    );
    let found = run("DynamicQuantizeLinear", 11, &[], &[f32s(&[2], &[0.0; 2])], 3).unwrap();
    assert_eq!(found, [u8s(&[2], &[0, 0]).unwrap(), Array::scalar(1.0f32), Array::scalar(0u8)]);
}

#[test]
fn backend() {
    crate::ops::backend_tests::run("quantize");
}
