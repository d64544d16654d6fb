//! Sums, products, means and shares of bytes against their formulas, one element at a time.

use proptest::prelude::*;

use super::*;
use crate::kernels::integer::finish::ByteRange;
use crate::kernels::integer::{pool, softmax};

fn params() -> impl Strategy<Value = Bytes> {
    (0.001f32..0.5, 0i32..256, any::<bool>()).prop_map(|(scale, zero, signed)| Bytes {
        scale,
        zero,
        flip: if signed { 0x80 } else { 0 },
    })
}

fn rounded(v: f32) -> u8 {
    f64::from(v).round_ties_even().clamp(0.0, 255.0) as u8
}

fn sum(a: (u8, Bytes), b: (u8, Bytes), c: Bytes) -> u8 {
    let (ra, rb) = (a.1.scale / c.scale, b.1.scale / c.scale);
    let fixed = c.zero as f32 - ra.mul_add(a.1.zero as f32, rb * b.1.zero as f32);
    rounded(f32::from(a.0).mul_add(ra, f32::from(b.0).mul_add(rb, fixed)))
}

proptest! {
    #[test]
    fn sums_and_products_follow_their_formulas(
        a in params(), b in params(), c in params(), rows in 1usize..5, columns in 2usize..40, seed: u8, kind in 0usize..4,
    ) {
        let shapes: [&[usize]; 4] = [&[rows, columns], &[columns], &[rows, 1], &[1]];
        let shape = shapes[kind];
        let count: usize = shape.iter().product();
        let byte = |i: usize| (i * 89 + usize::from(seed)) as u8;
        let full: Vec<u8> = (0..rows * columns).map(byte).collect();
        let other: Vec<u8> = (0..count).map(|i| byte(i * 7 + 3)).collect();
        let at = |i: usize| other[match kind { 0 => i, 1 => i % columns, 2 => i / columns, _ => 0 }];
        let (left, right) = ((&full[..], &[rows, columns][..], a), (&other[..], shape, b));
        let (got, swapped) = (
            binary(Function::Add, left, right, c).unwrap().1,
            binary(Function::Add, right, left, c).unwrap().1,
        );
        let product = binary(Function::Mul, left, right, c).unwrap().1;
        for (i, &x) in full.iter().enumerate() {
            let (x, y) = ((x ^ a.flip, a), (at(i) ^ b.flip, b));
            prop_assert_eq!(got[i] ^ c.flip, sum(x, y, c));
            // An operand that is repeated along a row comes second, whichever it is.
            let repeated = kind >= 2;
            prop_assert_eq!(swapped[i] ^ c.flip, if repeated { sum(x, y, c) } else { sum(y, x, c) });
            let exact = (i32::from(x.0) - a.zero) * (i32::from(y.0) - b.zero);
            prop_assert_eq!(product[i] ^ c.flip, rounded(exact as f32 * (a.scale * b.scale / c.scale) + c.zero as f32));
        }
    }

    #[test]
    fn means_and_shares_are_near_the_real_ones(
        x in prop::collection::vec(any::<u8>(), 1..200), flip in prop_oneof![Just(0u8), Just(0x80)], scale in 0.005f32..0.2,
    ) {
        let n = x.len();
        let unsigned: Vec<f64> = x.iter().map(|b| f64::from(b ^ flip)).collect();
        let mean = unsigned.iter().sum::<f64>() / n as f64;
        let means = pool::plane_means(&x, n, flip, 0, 1.0 / n as f32, ByteRange::new(0, 255, 0));
        prop_assert!((f64::from(means[0]) - mean).abs() <= 0.5 + 1e-3);

        let powers = softmax::powers(scale, n);
        let shares = softmax::rows(&x, n, flip, &powers, 256.0, 0);
        let total: f64 = unsigned.iter().map(|v| libm::exp(v * f64::from(scale))).sum();
        for (share, v) in shares.iter().zip(&unsigned) {
            let exact = (256.0 * libm::exp(v * f64::from(scale)) / total).min(255.0);
            prop_assert!((f64::from(share ^ flip) - exact).abs() <= 0.5 + 1e-2);
        }
    }
}
