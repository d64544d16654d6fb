//! Pooling against the definition, window by window, on whole numbers whose sums are exact in any order.

use proptest::prelude::*;

use super::*;
use crate::kernels::window::Padding;

fn axis() -> impl Strategy<Value = Axis> {
    (1usize..10, 1usize..4, 1usize..4, 1usize..3, (0usize..3, 0usize..3), any::<bool>())
        .prop_filter_map("the window must fit", |(x, k, s, d, (begin, end), ceil)| {
            Axis::new(x, k, s, d, Padding::Explicit(begin, end), ceil).ok()
        })
}

fn whole(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7 + seed * 13) % 23) as f32 - 11.0).collect()
}

/// For each window of a plane, the positions in the plane that its taps read; none is padding.
fn windows(axes: &[Axis]) -> Vec<Vec<Option<usize>>> {
    let extents = |e: fn(&Axis) -> usize| axes.iter().map(e).collect::<Vec<_>>();
    let mut all = Vec::new();
    each_index(&extents(|a| a.output), |window| {
        let mut taps = Vec::new();
        each_index(&extents(|a| a.kernel), |tap| {
            taps.push(axes.iter().zip(window.iter().zip(tap)).try_fold(0, |at, (a, (o, t))| {
                let position =
                    (o * a.stride + t * a.dilation).checked_sub(a.begin).filter(|&p| p < a.input)?;
                Some(at * a.input + position)
            }));
        });
        all.push(taps);
    });
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn pooling_is_its_definition(axes in prop::collection::vec(axis(), 1..4), planes in 1usize..3, seed in 0usize..9) {
        let (plane, windows) = (volume(&axes, |a| a.input), windows(&axes));
        let x = whole(planes * plane, seed);
        let read = |x: &[f32], taps: &[Option<usize>]| taps.iter().flatten().map(|&at| x[at]).collect::<Vec<_>>();
        let expected = |f: &dyn Fn(Vec<f32>) -> f32| -> Vec<f32> {
            x.chunks(plane).flat_map(|x| windows.iter().map(|taps| f(read(x, taps)))).collect()
        };
        let mut y = vec![f32::NAN; planes * windows.len()];
        pool(&axes, &x, &mut y, (0.0, 0.0), |a, b| a + b, None).unwrap();
        prop_assert_eq!(&y, &expected(&|v| v.iter().sum()));
        let counted = counts(&axes, false);
        prop_assert_eq!(&counted, &windows.iter().map(|t| t.iter().flatten().count()).collect::<Vec<_>>());
        let mean = |window: usize, sum: f32| sum / counted[window].max(1) as f32;
        pool(&axes, &x, &mut y, (0.0, 0.0), |a, b| a + b, Some(&mean)).unwrap();
        prop_assert_eq!(&y, &expected(&|v| v.iter().sum::<f32>() / v.len().max(1) as f32));
        let lowest = f32::NEG_INFINITY;
        pool(&axes, &x, &mut y, (lowest, lowest), f32::max, None).unwrap();
        let greatest = expected(&|v| v.into_iter().fold(lowest, f32::max));
        prop_assert_eq!(&y, &greatest);
        let (values, indices) = max_with_index(&axes, &x, lowest, false);
        prop_assert_eq!(&values, &greatest);
        for (i, (&value, &index)) in values.iter().zip(&indices).enumerate() {
            let (channel, taps) = (i / windows.len(), &windows[i % windows.len()]);
            let first = taps.iter().flatten().find(|&&at| x[channel * plane + at] == value);
            prop_assert_eq!(index, first.map_or(0, |at| channel * plane + at) as i64);
        }
    }

    #[test]
    fn the_way_back_is_the_adjoint(axes in prop::collection::vec(axis(), 1..4), seed in 0usize..9) {
        let (plane, windows) = (volume(&axes, |a| a.input), windows(&axes));
        let dy = whole(windows.len(), seed);
        let mut expected = vec![0.0; plane];
        for (taps, dy) in windows.iter().zip(&dy) {
            taps.iter().flatten().for_each(|&at| expected[at] += dy);
        }
        let mut dx = vec![f32::NAN; plane];
        pool_gradient(&axes, &dy, &mut dx).unwrap();
        prop_assert_eq!(dx, expected);
    }
}
