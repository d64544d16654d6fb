use proptest::prelude::*;

use super::*;

/// The definition, one number at a time in `f64` steps that are exact.
fn definition<Q: Quantized>(x: f32, scale: f32, zero_point: i32) -> i32 {
    let v = x / scale;
    if v.is_nan() {
        return Q::MIN;
    }
    (f64::from(v.round_ties_even()) + f64::from(zero_point)).clamp(Q::MIN.into(), Q::MAX.into()) as i32
}

fn numbers() -> Vec<f32> {
    let mut state = 12345u32;
    let mut x = vec![
        0.0,
        -0.0,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        -2.5,
        126.5,
        127.5,
        254.5,
        255.5,
        -128.5,
        65534.5,
        65535.5,
        1e30,
        -1e30,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MIN_POSITIVE,
        0.49999997,
        8388609.0,
    ];
    x.extend((0..2000).map(|_| {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state as f32 / u32::MAX as f32 - 0.5) * 700.0
    }));
    x
}

fn check<Q: Narrow>(scale: f32, zero_point: i32) {
    check_on::<Q>(&numbers(), scale, zero_point);
}

fn check_on<Q: Narrow>(x: &[f32], scale: f32, zero_point: i32) {
    let mut q = vec![Q::default(); x.len()];
    quantize_slice(x, scale, Q::truncate(zero_point), &mut q);
    let mut back = vec![0.0; x.len()];
    dequantize_slice(&q, scale, Q::truncate(zero_point), &mut back);
    let mut fake = x.to_vec();
    fake_quantize_slice(&mut fake, scale, zero_point, Q::MIN, Q::MAX);
    for (i, &x) in x.iter().enumerate() {
        let expected = definition::<Q>(x, scale, zero_point);
        assert_eq!(q[i].widen(), expected, "{x} / {scale} + {zero_point}");
        assert_eq!(back[i], (expected - zero_point) as f32 * scale);
        assert_eq!(fake[i].to_bits(), back[i].to_bits());
    }
}

#[test]
fn rounds_half_to_even_and_saturates() {
    for scale in [1.0, 0.5, 0.017, 3.0] {
        for zero_point in [0, 1, 128, 255] {
            check::<u8>(scale, zero_point);
            check::<u16>(scale, zero_point * 257);
        }
        for zero_point in [-128, -1, 0, 127] {
            check::<i8>(scale, zero_point);
            check::<i16>(scale, zero_point * 256);
        }
    }
}

#[test]
fn plain_and_wide_loops_agree() {
    let x = numbers();
    let (mut a, mut b) = (vec![0u8; x.len()], vec![0u8; x.len()]);
    quantize_slice(&x, 0.3, 77, &mut a);
    Quantize { x: &x, scale: 0.3, zero_point: 77, out: &mut b }.run();
    assert_eq!(a, b);
}

#[test]
fn thirty_two_bit_values_dequantize() {
    let mut x = [0.0; 3];
    dequantize_slice(&[i32::MIN, -7, i32::MAX], 0.5, 0, &mut x);
    assert_eq!(x, [-1073741824.0, -3.5, 1073741824.0]);
}

proptest! {
    #[test]
    fn any_numbers_are_quantized_by_definition(
        x in prop::collection::vec(prop_oneof![4 => -900f32..900.0, 1 => any::<f32>()], 0..60),
        scale in prop_oneof![1e-3f32..9.0, Just(f32::MIN_POSITIVE), Just(1e30f32)],
        zero_point: u16,
    ) {
        let signed = i32::from(zero_point.cast_signed());
        check_on::<u8>(&x, scale, i32::from(zero_point % 256));
        check_on::<i8>(&x, scale, signed / 256);
        check_on::<u16>(&x, scale, zero_point.into());
        check_on::<i16>(&x, scale, signed);
    }
}
