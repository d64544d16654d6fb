//! Convolution of bytes against its definition, in plain loops and 64-bit sums.

use proptest::prelude::*;

use super::*;
use crate::kernels::integer::pack::FLIP;
use crate::kernels::integer::windows::kernels;
use crate::kernels::window::{Padding, each_index};

fn bytes(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2654435761).wrapping_add(1);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            (state >> 24) as u8
        })
        .collect()
}

fn axis() -> impl Strategy<Value = Axis> {
    (1usize..40, 1usize..6, 1usize..4, 1usize..4, 0usize..4, 0usize..4)
        .prop_filter_map("the window must fit", |(x, k, s, d, b, e)| {
            Axis::new(x, k, s, d, Padding::Explicit(b, e), false).ok()
        })
}

fn value(byte: u8, signed: bool) -> i64 {
    if signed { (byte as i8).into() } else { byte.into() }
}

/// `Σ (x - zx)(w - zw) + bias` for every output.
#[allow(clippy::too_many_arguments)]
fn definition(
    ch: Channels,
    axes: &[Axis],
    x: &[u8],
    w: &[u8],
    (zx, zw): (i64, i64),
    signed: (bool, bool),
    bias: &[i32],
) -> Vec<i64> {
    let outputs: Vec<usize> = axes.iter().map(|a| a.output).collect();
    let kernels: Vec<usize> = axes.iter().map(|a| a.kernel).collect();
    let (plane, taps) = (volume(axes, |a| a.input), volume(axes, |a| a.kernel));
    let mut y = Vec::new();
    for n in 0..ch.batch {
        for m in 0..ch.groups * ch.output {
            each_index(&outputs, |o| {
                let mut sum = i64::from(bias[m]);
                for c in 0..ch.input {
                    let mut tap = 0;
                    each_index(&kernels, |t| {
                        let at = axes
                            .iter()
                            .zip(o.iter().zip(t))
                            .try_fold(0, |at, (a, (&o, &t))| a.source(o, t).map(|p| at * a.input + p));
                        if let Some(at) = at {
                            let channel = (n * ch.groups + m / ch.output) * ch.input + c;
                            let x = value(x[channel * plane + at], signed.0) - zx;
                            sum += x * (value(w[(m * ch.input + c) * taps + tap], signed.1) - zw);
                        }
                        tap += 1;
                    });
                }
                y.push(sum);
            });
        }
    }
    y
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn convolution_is_its_definition(
        axes in prop::collection::vec(axis(), 1..4),
        (batch, groups, input, output) in (1usize..3, 1usize..4, 1usize..6, 1usize..10),
        signed: (bool, bool),
        (zx, zw) in (any::<u8>(), prop_oneof![Just(None), any::<u8>().prop_map(Some)]),
        seed: u32,
    ) {
        prop_assume!(volume(&axes, |a| a.input) < 3000 && volume(&axes, |a| a.output) < 1500);
        let ch = Channels { batch, groups, input, output };
        let taps = volume(&axes, |a| a.kernel);
        let x = bytes(batch * groups * input * volume(&axes, |a| a.input), seed);
        let w = bytes(groups * output * input * taps, seed ^ 1);
        let bias: Vec<i32> = bytes(groups * output, seed ^ 2).iter().map(|&b| i32::from(b) * 50 - 5000).collect();
        let zw = zw.unwrap_or(if signed.1 { 0 } else { 128 });
        let sums = definition(ch, &axes, &x, &w, (value(zx, signed.0), value(zw, signed.1)), signed, &bias);

        let (x_flip, w_flip) = (if signed.0 { FLIP } else { 0 }, if signed.1 { 0 } else { FLIP });
        let kernel: Vec<usize> = axes.iter().map(|a| a.kernel).collect();
        let rows = kernels(&w, groups, input, &kernel, w_flip);
        let (zx_unsigned, zw_signed) = (i32::from(zx ^ x_flip), i32::from((zw ^ w_flip) as i8));
        let constant = (input * taps) as i32 * zx_unsigned * zw_signed;
        let row = axes.last().unwrap().kernel;
        let range = ByteRange::new(0, 255, 100);
        let scale = 0.003f32;
        let weights = Weights {
            offsets: rows.sums.iter().zip(&bias).map(|(s, b)| b - zx_unsigned * s + constant).collect(),
            rows,
            depthwise: (input == 1 && zw_signed == 0).then(|| Depthwise::new(&w, row, w_flip, output)),
            zero_points: if zw_signed == 0 { vec![] } else { vec![zw_signed; groups * output] },
            scales: (0..groups * output).map(|m| scale * (1.0 + m as f32)).collect(),
            range,
        };
        let plane = volume(&axes, |a| a.output);
        let expected: Vec<u8> = sums
            .iter()
            .enumerate()
            .map(|(i, &sum)| {
                let v = sum as i32 as f32 * weights.scales[i / plane % (groups * output)];
                (v.clamp(range.low, range.high).round_ties_even() as i32 + range.zero) as u8
            })
            .collect();
        for level in Level::all() {
            let mut y = vec![0; expected.len()];
            conv(level, ch, &axes, Input { planes: &x, flip: x_flip, pad: zx }, &weights, &mut y).unwrap();
            prop_assert_eq!(&y, &expected, "{:?}", level);
        }
    }
}
