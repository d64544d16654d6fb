use proptest::prelude::*;

use super::*;

fn histogram(values: &[f32]) -> Histogram {
    let mut histogram = Histogram::new();
    histogram.record(values);
    histogram
}

/// A reproducible stream of uniform numbers in [0, 1).
fn uniform(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Floats of every scale, with the special ones over-represented.
fn any_float() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => (-1.0f32..1.0, -40i32..40).prop_map(|(x, e)| libm::ldexpf(x, e)),
        6 => -8.0f32..8.0,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(vec![
            0.0, -0.0, 1.0, -1.0, 2.0, 0.99999994, f32::MIN_POSITIVE, 1e-45, -1e-45, f32::NAN, f32::INFINITY,
            f32::NEG_INFINITY, f32::MIN, 1e30, -1e30, 9.999999e29, 6.0,
        ]),
    ]
}

proptest! {
    #[test]
    fn any_order_and_any_merge_tree_agree(
        values in prop::collection::vec(any_float(), 0..200),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..8),
        seed in any::<u64>(),
    ) {
        let expected = histogram(&values);
        let mut shuffled = values;
        let mut random = uniform(seed);
        for i in (1..shuffled.len()).rev() {
            shuffled.swap(i, (random() * (i + 1) as f64) as usize);
        }
        let mut parts = vec![shuffled];
        for (cut, _) in &cuts {
            let longest = parts.iter().enumerate().max_by_key(|(_, part)| part.len()).map_or(0, |(i, _)| i);
            let at = if parts[longest].is_empty() { 0 } else { cut.index(parts[longest].len()) };
            let tail = parts[longest].split_off(at);
            parts.push(tail);
        }
        let mut parts: Vec<Histogram> = parts.iter().map(|part| histogram(part)).collect();
        for (index, keep_left) in cuts.iter().cycle().take(64) {
            if parts.len() < 2 { break }
            let right = parts.swap_remove(index.index(parts.len()));
            let left = parts.swap_remove(index.index(parts.len()));
            let (mut into, from) = if *keep_left { (left, right) } else { (right, left) };
            into.merge(&from);
            parts.push(into);
        }
        prop_assert_eq!(&parts[0], &expected);
    }

    #[test]
    fn every_value_is_counted_once_and_in_a_cell_that_holds_it(
        values in prop::collection::vec(any_float(), 1..100),
    ) {
        let h = histogram(&values);
        let data: Vec<f64> = values.iter().filter(|x| x.abs() < HUGE).map(|&x| f64::from(x)).collect();
        prop_assert_eq!(h.count(), data.len() as u64);
        prop_assert_eq!(h.count() + h.nan() + h.infinite() + h.huge(), values.len() as u64);
        let cells: Vec<Cell> = h.cells().collect();
        prop_assert_eq!(cells.iter().map(|cell| cell.count).sum::<u64>(), h.count());
        prop_assert!(cells.windows(2).all(|pair| pair[0].hi <= pair[1].lo));
        for (i, cell) in cells.iter().enumerate() {
            let (first, last) = (i == 0, i + 1 == cells.len());
            let inside = |x: f64| match cell {
                _ if cell.lo == cell.hi => x == cell.lo,
                _ if cell.lo >= 0.0 => x > 0.0 && cell.lo <= x && (x < cell.hi || last && x == cell.hi),
                _ => x < 0.0 && (cell.lo < x || first && x == cell.lo) && x <= cell.hi,
            };
            prop_assert_eq!(data.iter().filter(|&&x| inside(x)).count() as u64, cell.count, "{:?}", cell);
        }
    }

    #[test]
    fn cells_are_fine(values in prop::collection::vec(-8.0f32..8.0, 1..100)) {
        let h = histogram(&values);
        let top = values.iter().fold(0.0f32, |top, x| top.max(x.abs()));
        for cell in h.cells() {
            let magnitude = cell.lo.abs().max(cell.hi.abs());
            let fine = (magnitude / 512.0).max(f64::from(top) / 32768.0);
            prop_assert!(cell.hi - cell.lo <= fine, "{cell:?} under {top}");
        }
    }
}

#[test]
fn special_values_are_counted_apart() {
    let h = histogram(&[0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN, 1e30, -2.5, 1.5]);
    assert_eq!((h.zeros(), h.nan(), h.infinite(), h.huge(), h.count()), (2, 1, 2, 2, 4));
    assert_eq!(h.extremes(), Some((-2.5, 1.5)));
    assert_eq!(histogram(&[f32::NAN]).extremes(), None);
    assert_eq!(histogram(&[-0.0]).extremes().map(|(lo, hi)| (lo.to_bits(), hi.to_bits())), Some((0, 0)));
}

#[test]
fn masks_and_outliers_leave_the_resolution_alone() {
    let data: Vec<f32> = (0..4000).map(|i| i as f32 / 4000.0).collect();
    let median = |h: &Histogram| {
        let cell = h.cells().scan(0, |sum, cell| {
            *sum += cell.count;
            Some((*sum, cell))
        });
        cell.skip_while(|(sum, _)| *sum < 2000).map(|(_, cell)| cell).next().unwrap()
    };
    for (extra, width) in [(f32::MIN, 1.0 / 1024.0), (60.0, 1.0 / 1024.0), (1000.0, 1.0 / 64.0)] {
        let cell = median(&histogram(&[&data[..], &[extra]].concat()));
        assert!(cell.lo <= 0.5 && cell.hi >= 0.4995 && cell.hi - cell.lo <= width, "{extra}: {cell:?}");
    }
}

#[test]
fn atoms_at_the_extremes_stay_atoms() {
    let h = histogram(&[6.0, 1.0, 6.0, 6.0]);
    assert_eq!(h.cells().last(), Some(Cell { lo: 6.0, hi: 6.0, count: 3 }));
}

/// All of a tensor that is not large is counted; of a large one, in many turns, about as much in every place as there
/// is.
#[test]
fn some_elements_of_a_large_tensor_stand_for_all() {
    const MOST: usize = 1 << 14;
    let mut random = uniform(3);
    let normal = |_| ((0..12).map(|_| random()).sum::<f64>() - 6.0) as f32;
    let values: Vec<f32> = (0..8 * MOST + 100).map(normal).collect();
    let small = &values[..MOST];
    let sampled = |values: &[f32], turns: usize| {
        let mut h = Histogram::new();
        for turn in 0..turns {
            h.sample(values, finish::extent(values), turn, MOST);
        }
        h
    };
    assert_eq!(sampled(small, 1), histogram(small));
    let all = histogram(&values);
    assert!(values.len() > usize::from(u16::MAX), "more than a small table holds");
    let mut every = Histogram::new();
    every.sample(&values, finish::extent(&values), 0, values.len());
    assert_eq!(every, all);
    // Masks among them are counted, all of them, and leave the rest as it is.
    let masked: Vec<f32> =
        values.chunks(99).flat_map(|some| [some, &[f32::MIN, f32::NAN]].concat()).collect();
    let mut some = Histogram::new();
    (0..9).for_each(|turn| {
        let greatest = some.sample(&masked, finish::extent(&masked), turn, MOST);
        assert_eq!(greatest, all.extremes().map(|(_, max)| max));
    });
    assert_eq!(some.extremes(), all.extremes());
    assert_eq!((some.huge(), some.nan()), (9 * values.len().div_ceil(99) as u64, some.huge()));
    let count = some.count() as f64 / (9 * values.len()) as f64;
    assert!((count - 1.0).abs() < 0.01, "{count}");
    let below = |h: &Histogram, x: f64| {
        let inside: u64 = h.cells().filter(|cell| cell.hi <= x).map(|cell| cell.count).sum();
        inside as f64 / h.count() as f64
    };
    for turns in [1, 9] {
        let some = sampled(&values, turns);
        assert_eq!(some.extremes(), all.extremes());
        let ends = |h: &Histogram| Some((h.cells().next()?.lo, h.cells().last()?.hi));
        assert_eq!(ends(&some), ends(&all), "the extremes may lie in no block");
        let count = some.count() as f64 / (turns * values.len()) as f64;
        assert!((count - 1.0).abs() < 0.01, "{turns}: {count}");
        for x in [-2.0, -0.5, 0.0, 1.0, 2.5] {
            // Nine turns start at each of the nine blocks that one is chosen of, so they count everything, and the
            // extremes nine times more.
            let limit = if turns == 9 { 2e-5 } else { 0.01 };
            assert!((below(&some, x) - below(&all, x)).abs() < limit, "{turns}: {x}");
        }
    }
}

/// Prints the cost for each kind of data: `cargo test --release … -- --ignored --nocapture speed_of_recording`.
#[test]
#[ignore = "a measurement"]
fn speed_of_recording() {
    let mut random = uniform(1);
    let n = 1 << 18;
    let normal: Vec<f32> = (0..n).map(|_| ((0..12).map(|_| random()).sum::<f64>() - 6.0) as f32).collect();
    let relu: Vec<f32> = normal.iter().map(|x| x.max(0.0)).collect();
    let zeros = vec![0.0; n];
    let ones = vec![1.0; n];
    let outlier: Vec<f32> =
        normal.iter().enumerate().map(|(i, &x)| if i == 7 { 5000.0 } else { x }).collect();
    for (name, data) in
        [("normal", normal), ("relu", relu), ("zeros", zeros), ("ones", ones), ("outlier", outlier)]
    {
        let mut h = Histogram::new();
        // The least of many short runs: the machine may have other work.
        let time = |_| {
            let start = std::time::Instant::now();
            h.record(&data);
            start.elapsed()
        };
        let least = (0..40).map(time).min().unwrap();
        println!("{name}: {:.2} ns a value", least.as_secs_f64() * 1e9 / n as f64);
    }
}
