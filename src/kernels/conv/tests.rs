//! The kernels against the definition, written as plain loops, on whole numbers whose sums are exact in any order.

use proptest::prelude::*;

use super::*;
use crate::kernels::window::Padding;

fn whole(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 5.0).collect()
}

/// All indices below the extents.
fn indices(extents: &[usize]) -> Vec<Vec<usize>> {
    extents.iter().fold(vec![vec![]], |all, &n| {
        all.iter().flat_map(|index| (0..n).map(move |i| [index.as_slice(), &[i]].concat())).collect()
    })
}

/// Row-major position.
fn flat(index: &[usize], extents: &[usize]) -> usize {
    index.iter().zip(extents).fold(0, |at, (i, n)| at * n + i)
}

/// Calls `f(x, w, y)` with the positions in one sample of every product of a convolution.
fn products(ch: Channels, axes: &[Axis], mut f: impl FnMut(usize, usize, usize)) {
    let extents = |e: fn(&Axis) -> usize| axes.iter().map(e).collect::<Vec<_>>();
    let (input, kernel, output) = (extents(|a| a.input), extents(|a| a.kernel), extents(|a| a.output));
    let volume = |e: &[usize]| e.iter().product::<usize>();
    for m in 0..ch.groups * ch.output {
        for c in 0..ch.input {
            for o in indices(&output) {
                for t in indices(&kernel) {
                    let at: Vec<i64> = axes
                        .iter()
                        .zip(o.iter().zip(&t))
                        .map(|(a, (&o, &t))| (o * a.stride + t * a.dilation) as i64 - a.begin as i64)
                        .collect();
                    if at.iter().zip(&input).all(|(&p, &n)| (0..n as i64).contains(&p)) {
                        let at: Vec<usize> = at.iter().map(|&p| p as usize).collect();
                        let x = (m / ch.output * ch.input + c) * volume(&input) + flat(&at, &input);
                        let w = (m * ch.input + c) * volume(&kernel) + flat(&t, &kernel);
                        f(x, w, m * volume(&output) + flat(&o, &output));
                    }
                }
            }
        }
    }
}

fn axis() -> impl Strategy<Value = Axis> {
    let padding = prop_oneof![
        (0usize..4, 0usize..4).prop_map(|(b, e)| Padding::Explicit(b, e)),
        Just(Padding::SameUpper),
        Just(Padding::SameLower),
    ];
    (1usize..12, 1usize..5, 1usize..4, 1usize..4, padding, any::<bool>())
        .prop_filter_map("the window must fit", |(x, k, s, d, p, ceil)| Axis::new(x, k, s, d, p, ceil).ok())
}

fn channels() -> impl Strategy<Value = Channels> {
    (1usize..3, 1usize..4, 1usize..4, 1usize..4).prop_map(|(batch, groups, input, output)| Channels {
        batch,
        groups,
        input,
        output,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn convolution_is_its_definition(ch in channels(), axes in prop::collection::vec(axis(), 1..4), seed in 0usize..9) {
        let (xs, ys) = (ch.groups * ch.input * volume(&axes, |a| a.input), ch.groups * ch.output * volume(&axes, |a| a.output));
        let x = whole(ch.batch * xs, seed);
        let w = whole(ch.groups * ch.output * ch.input * volume(&axes, |a| a.kernel), seed + 1);
        let bias = whole(ch.groups * ch.output, seed + 2);
        let mut expected = vec![0.0; ch.batch * ys];
        for n in 0..ch.batch {
            let plane = volume(&axes, |a| a.output);
            (0..ys).for_each(|i| expected[n * ys + i] = bias[i / plane]);
            products(ch, &axes, |xi, wi, yi| expected[n * ys + yi] += x[n * xs + xi] * w[wi]);
        }
        let y = conv(ch, &axes, &x, &w, Some(&bias)).unwrap();
        prop_assert_eq!(y, expected);
    }

    #[test]
    fn the_transpose_is_the_adjoint(ch in channels(), axes in prop::collection::vec(axis(), 1..3), seed in 0usize..9) {
        // The adjoint swaps input and output channels of each group; its weight is `[g·C, M, kernel]`.
        let adjoint = Channels { input: ch.output, output: ch.input, ..ch };
        let (xs, ys) = (ch.groups * ch.input * volume(&axes, |a| a.output), ch.groups * ch.output * volume(&axes, |a| a.input));
        let x = whole(ch.batch * xs, seed);
        let w = whole(ch.groups * ch.output * ch.input * volume(&axes, |a| a.kernel), seed + 1);
        let mut expected = vec![0.0; ch.batch * ys];
        for n in 0..ch.batch {
            products(adjoint, &axes, |yi, wi, xi| expected[n * ys + yi] += x[n * xs + xi] * w[wi]);
        }
        let mut y = vec![f32::NAN; ch.batch * ys];
        conv_transpose(ch, &axes, &x, &w, None, &mut y);
        prop_assert_eq!(y, expected);
    }
}

/// One output by the definition of [`Order::Blocks`]: the products of each part in order, fused; parts in order; the
/// bias.
fn in_blocks(ch: Channels, axes: &[Axis], x: &[f32], w: &[f32], window: &[usize], bias: f32) -> f32 {
    let kernels: Vec<usize> = axes.iter().map(|a| a.kernel).collect();
    let taps = indices(&kernels);
    let plane = volume(axes, |a| a.input);
    let points = taps.len() == 1 && axes.iter().all(|a| a.begin == 0 && a.end == 0);
    let channels = match ch.input {
        0..16 => 1,
        _ if points => 128,
        _ => 16,
    };
    let product = |sum: f32, c: usize, t: usize| {
        let source = axes
            .iter()
            .zip(window.iter().zip(&taps[t]))
            .try_fold(0, |at, (a, (&o, &t))| a.source(o, t).map(|position| at * a.input + position));
        source.map_or(sum, |at| w[c * taps.len() + t].mul_add(x[c * plane + at], sum))
    };
    let all: Vec<usize> = (0..ch.input).collect();
    let part = |block: &[usize]| {
        let order = (0..taps.len()).flat_map(|t| block.iter().map(move |&c| (c, t)));
        order.fold(0.0, |sum, (c, t)| product(sum, c, t))
    };
    all.chunks(channels).map(part).reduce(|a, b| a + b).unwrap() + bias
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn blocks_of_channels_have_the_bits_of_their_order(
        input in prop_oneof![1usize..16, Just(16), Just(20), Just(40), Just(132)], output in 1usize..5, points: bool,
        axes in prop::collection::vec(axis(), 2), seed in 0usize..9,
    ) {
        let point = |a: Axis| Axis::new(a.input, 1, a.stride, 1, Padding::Explicit(0, 0), false).unwrap();
        let axes: Vec<Axis> = axes.into_iter().map(|a| if points { point(a) } else { a }).collect();
        let ch = Channels { batch: 1, groups: 1, input, output };
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0;
        let (depth, plane) = (input * volume(&axes, |a| a.kernel), volume(&axes, |a| a.output));
        let x: Vec<f32> = (0..input * volume(&axes, |a| a.input)).map(number).collect();
        let w: Vec<f32> = (7..7 + output * depth).map(number).collect();
        let bias: Vec<f32> = (13..13 + output).map(number).collect();
        let mut finish = Finish::new(Limits::NONE);
        let end = Ending { bias: Some(&bias), added: None, finish: &mut finish };
        let y = conv_finished(ch, &axes, Order::Blocks, &x, (&w, None), end).unwrap();
        let outputs: Vec<usize> = axes.iter().map(|a| a.output).collect();
        for (m, y) in y.chunks_exact(plane).enumerate() {
            for (window, &y) in indices(&outputs).iter().zip(y) {
                prop_assert_eq!(y, in_blocks(ch, &axes, &x, &w[m * depth..][..depth], window, bias[m]));
            }
        }
    }
}

#[test]
fn weights_that_were_laid_out_give_the_same_bits() {
    let axis = |n, k, s| Axis::new(n, k, s, 1, Padding::SameUpper, false).unwrap();
    for (input, output, axes) in [
        (24, 40, [axis(7, 3, 1), axis(5, 3, 2)]),
        (200, 19, [axis(9, 1, 1), axis(6, 1, 1)]),
        // A single window, whose products are one column.
        (20, 24, [axis(3, 3, 3), axis(2, 2, 2)]),
    ] {
        let ch = Channels { batch: 2, groups: 1, input, output };
        let number = |i: usize| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0;
        let x: Vec<f32> = (0..2 * input * volume(&axes, |a| a.input)).map(number).collect();
        let w: Vec<f32> = (7..7 + output * input * volume(&axes, |a| a.kernel)).map(number).collect();
        let (bias, added) = (vec![0.5; output], vec![0.25; 2 * output * volume(&axes, |a| a.output)]);
        for order in [Order::Channels, Order::Fours, Order::Blocks] {
            assert_eq!(gains(ch, &axes, order), order == Order::Blocks || volume(&axes, |a| a.output) > 1);
            let panels = lay_out(ch, &axes, order, &w);
            let found = [None, Some(&panels)].map(|panels| {
                let mut finish = Finish::new(Limits { low: -1.0, high: 4.0 });
                let added = Some(Mat::rows(&added, volume(&axes, |a| a.output)));
                let end = Ending { bias: Some(&bias), added, finish: &mut finish };
                let y = conv_finished(ch, &axes, order, &x, (&w, panels), end).unwrap();
                (y, finish.extent())
            });
            assert_eq!(found[0], found[1], "{order:?}");
        }
    }
}

#[test]
fn blocks_need_channels_that_fit() {
    let fits = [([7, 3, 3, 3], 1), ([1, 20, 1, 1], 1), ([8, 1, 3, 3], 8), ([32, 16, 3, 3], 2)];
    let not = [([7, 18, 3, 3], 1), ([6, 1, 3, 3], 6), ([16, 16, 3, 3], 2), ([16, 8, 3, 3], 2)];
    assert!(fits.iter().all(|(w, groups)| Order::has_blocks(w, *groups)));
    assert!(
        !not.iter().any(|(w, groups)| Order::has_blocks(w, *groups)) && !Order::has_blocks(&[8, 8, 3], 1)
    );
}

#[test]
fn many_tiles_join_without_a_seam() {
    let ch = Channels { batch: 1, groups: 1, input: 40, output: 3 };
    let axis = |n| Axis::new(n, 3, 1, 1, Padding::SameUpper, false).unwrap();
    let axes = [axis(37), axis(41)];
    let (x, w) = (whole(40 * 37 * 41, 1), whole(3 * 40 * 9, 2));
    let mut expected = vec![0.0; 3 * 37 * 41];
    products(ch, &axes, |x_at, w_at, y_at| expected[y_at] += x[x_at] * w[w_at]);
    assert!(tile_width(360, 37 * 41) < 37 * 41);
    let y = conv(ch, &axes, &x, &w, None).unwrap();
    assert_eq!(y, expected);
}

/// All taps read padding: what an earlier convolution left in the buffer must not show.
#[test]
fn windows_over_an_empty_input_read_zeros() {
    let ch = Channels { batch: 1, groups: 1, input: 2, output: 3 };
    let axis = |input, pad| Axis::new(input, 2, 1, 1, Padding::Explicit(pad, pad), false).unwrap();
    let (w, bias) = (whole(3 * 2 * 4, 1), [1.0, 2.0, 3.0]);
    let full = [axis(6, 0), axis(6, 0)];
    conv(ch, &full, &whole(2 * 36, 2), &w, Some(&bias)).unwrap();
    let empty = [axis(0, 1), axis(0, 1)];
    assert_eq!(conv(ch, &empty, &[], &w, Some(&bias)).unwrap(), bias);
}
