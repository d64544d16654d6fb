use super::*;

/// The largest relative error of `f` against `exact`, over floats spread evenly over all bit patterns in
/// `[from, to]` (of one sign).
fn worst(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, from: f32, to: f32) -> (f64, f32) {
    let (low, high) = (from.to_bits().min(to.to_bits()), from.to_bits().max(to.to_bits()));
    let step = ((high - low) / 300_000).max(1);
    let error = |bits| {
        let x = f32::from_bits(bits);
        let e = exact(x.into());
        let spacing = e.abs().max(f64::from(f32::MIN_POSITIVE));
        ((f64::from(f(x)) - e).abs() / spacing, x)
    };
    (low..=high).step_by(step as usize).map(error).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

#[track_caller]
fn close(f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64, ranges: &[(f32, f32)], tolerance: f64) {
    for &(from, to) in ranges {
        let (error, at) = worst(&f, &exact, from, to);
        assert!(error <= tolerance, "relative error {error:e} at {at}");
    }
}

#[test]
fn slices_have_the_bits_of_single_elements() {
    let x: Vec<f32> = (0..2000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761))).collect();
    type Both = (fn(f32) -> f32, fn(&mut [f32]));
    let functions: [Both; 5] = [
        (exp, exp_slice),
        (exp_m1, exp_m1_slice),
        (tanh, tanh_slice),
        (sigmoid, sigmoid_slice),
        (erf, erf_slice),
    ];
    for (f, slice) in functions {
        let single: Vec<u32> = x.iter().map(|&v| f(v).to_bits()).collect();
        let bits = |y: &[f32]| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let mut y = x.clone();
        map_in_place(&mut y, f);
        // Which NaN comes out is not ours to say.
        let same = |found: Vec<u32>| {
            let nan = |bits: u32| f32::from_bits(bits).is_nan();
            found.iter().zip(&single).all(|(&a, &b)| a == b || nan(a) && nan(b))
        };
        assert!(same(bits(&map(&x, f))) && same(bits(&y)) && same(bits(&of_slice(&x, slice))));
        let composed = through(&x, |v| v, slice, |v, y| if v == 0.0 { v } else { y });
        let wanted = x.iter().zip(&single).map(|(&v, &y)| if v == 0.0 { v } else { f32::from_bits(y) });
        assert!(composed.iter().zip(wanted).all(|(a, b)| a.to_bits() == b.to_bits() || b.is_nan()));
    }
}

/// What ONNX Runtime 1.32 gives with AVX2 or AVX-512: bits of `x`, of `exp(x)` and of `erf(x)`.
#[test]
fn exp_and_erf_have_the_bits_of_onnx_runtime() {
    let cases = [
        (0xbe736afd, 0x3f49d67d, 0xbe86ca53),
        (0x3fa9a0b0, 0x4070d4fb, 0x3f70681e),
        (0x40294caf, 0x41616769, 0x3f7ff3fd),
        (0x3d9483b2, 0x3f89a083, 0x3da7498d),
        (0xbed007d2, 0x3f2a85c8, 0xbede6f71),
        (0x3fcca124, 0x409e4937, 0x3f79ea56),
        (0xc039cf8e, 0x3d60a257, 0xbf7ffd5c),
        (0x3f7098a1, 0x4023cf90, 0x3f50f1e8),
        (0xbeb918fb, 0x3f325587, 0xbec81b6e),
        (0xbdd4e73e, 0x3f66b942, 0xbdef5f7f),
        (0x40035d07, 0x40f9354f, 0x3f7f0d95),
        (0x402788e5, 0x415b45fa, 0x3f7ff1fc),
        (0xbef7f486, 0x3f1dbb18, 0xbf01af7e),
        (0xbf49366b, 0x3ee94d91, 0xbf3bd1c5),
        (0xbee23a6b, 0x3f24917a, 0xbeef9691),
        (0xbf80f12f, 0x3ebaf917, 0xbf588201),
        (0x3e02b452, 0x3f916d33, 0x3e12afe2),
        (0xbf5a0715, 0x3eda789f, 0xbf458666),
        (0x407daf7a, 0x4252a2b7, 0x3f800000),
        (0x3fc24766, 0x4091fd81, 0x3f77d9c8),
        (0x4010bef7, 0x4119955f, 0x3f7fa575),
        (0x4025f714, 0x4155f60a, 0x3f7feff0),
        (0x3f3cef0a, 0x4005dff7, 0x3f341115),
        (0x3f104bcf, 0x3fe0e832, 0x3f131aa1),
        (0xc046878b, 0x3d38260e, 0xbf7fff3f),
        (0xbe9b2446, 0x3f3d144b, 0xbea9d869),
        (0x3f9c424d, 0x4058f29e, 0x3f6a6d53),
        (0xbfb8d7a9, 0x3e71a037, 0xbf7578a6),
        (0x3f6c0000, 0x4020e55f, 0x3f4ec3b4),
        (0x3f800000, 0x402df854, 0x3f57bb3d),
        (0x406e6666, 0x4225e28a, 0x3f7ffffe),
        (0x40800000, 0x425a6481, 0x3f800000),
        (0xc100bf28, 0x39a7dc09, 0xbf800000),
        (0xc0fa228a, 0x39d3420e, 0xbf800000),
        (0xc1271370, 0x37f4b9e2, 0xbf800000),
        (0xc1118d16, 0x38eae590, 0xbf800000),
        (0x418c8239, 0x4c21e4a0, 0x3f800000),
        (0x40a20a53, 0x431e2f29, 0x3f800000),
        (0x414db024, 0x48baf541, 0x3f800000),
        (0x40d99446, 0x446050e0, 0x3f800000),
    ];
    for (x, e, f) in cases {
        let found = (exp(f32::from_bits(x)).to_bits(), erf(f32::from_bits(x)).to_bits());
        assert_eq!(found, (e, f), "{}", f32::from_bits(x));
    }
}

#[test]
fn rounding_is_that_of_the_library() {
    let some = (0..2_000_000u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
    let halves = (-2000..2000).map(|i| i as f32 * 0.25);
    for x in some.chain(halves).chain([8_388_607.5, -8_388_608.0, f32::INFINITY, -0.0, 0.49999997]) {
        assert!(round(x).to_bits() == libm::rintf(x).to_bits() || x.is_nan() && round(x).is_nan(), "{x}");
    }
}

const ALL: [(f32, f32); 2] = [(0.0, f32::MAX), (-0.0, f32::MIN)];

#[test]
fn exp_is_exact_to_float_precision() {
    close(exp, libm::exp, &[(0.0, 88.7), (-0.0, -103.0), (0.1, 10.0), (-0.1, -10.0)], 1.6e-7);
    assert_eq!(
        (exp(0.0), exp(-0.0), exp(f32::INFINITY), exp(f32::NEG_INFINITY)),
        (1.0, 1.0, f32::INFINITY, 0.0)
    );
    assert_eq!(
        (exp(89.0), exp(f32::MAX), exp(-104.0), exp(f32::MIN)),
        (f32::INFINITY, f32::INFINITY, 0.0, 0.0)
    );
    assert!(exp(f32::NAN).is_nan());
    assert_eq!(exp(-100.0), libm::exp(-100.0) as f32);
}

#[test]
fn exp_m1_keeps_its_digits_near_zero() {
    close(exp_m1, libm::expm1, &[(0.0, 88.7), (-0.0, f32::MIN), (1e-3, 1.0), (-1e-3, -1.0)], 2.5e-7);
    assert_eq!((exp_m1(0.0), exp_m1(f32::NEG_INFINITY), exp_m1(f32::INFINITY)), (0.0, -1.0, f32::INFINITY));
    assert!(exp_m1(f32::NAN).is_nan());
}

#[test]
fn tanh_is_odd_and_saturates() {
    close(tanh, libm::tanh, &ALL, 3e-7);
    close(tanh, libm::tanh, &[(0.01, 9.0), (-0.01, -9.0)], 3e-7);
    assert_eq!((tanh(f32::INFINITY), tanh(f32::NEG_INFINITY)), (1.0, -1.0));
    assert!(tanh(f32::NAN).is_nan() && tanh(-0.0).is_sign_negative());
    assert!((0..20_000).map(|i| tanh(i as f32 * 1e-3)).all(|y| y <= 1.0));
}

#[test]
fn sigmoid_keeps_small_values() {
    let exact = |x: f64| 1.0 / (1.0 + libm::exp(-x));
    close(sigmoid, exact, &[(0.0, f32::MAX), (-0.0, -80.0), (-1.0, -30.0), (0.01, 20.0)], 3e-7);
    assert_eq!((sigmoid(0.0), sigmoid(f32::INFINITY), sigmoid(f32::NEG_INFINITY)), (0.5, 1.0, 0.0));
    assert!(sigmoid(f32::NAN).is_nan());
}

#[test]
fn erf_is_odd_and_saturates() {
    close(erf, libm::erf, &ALL, 2.5e-7);
    close(erf, libm::erf, &[(0.1, 4.5), (-0.1, -4.5)], 2.5e-7);
    assert_eq!((erf(f32::INFINITY), erf(f32::NEG_INFINITY)), (1.0, -1.0));
    assert!(erf(f32::NAN).is_nan() && erf(-0.0).is_sign_negative());
}
