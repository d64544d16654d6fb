use super::*;

/// Every method that answers for itself.
const METHODS: [Calibrator; 6] = [
    Calibrator::MinMax,
    Calibrator::Percentile(99.999),
    Calibrator::Percentile(99.99),
    Calibrator::Entropy,
    Calibrator::Mse,
    Calibrator::Octav,
];

const N: usize = 1 << 15;

fn histogram(values: &[f32]) -> Histogram {
    let mut histogram = Histogram::new();
    histogram.record(values);
    histogram
}

/// Samples of a distribution given by its quantile function, at equidistant probabilities: no random numbers, and
/// the tail is as long as that of as many draws.
fn samples(quantile: impl Fn(f64) -> f64) -> Vec<f32> {
    (0..N).map(|i| quantile((i as f64 + 0.5) / N as f64) as f32).collect()
}

/// Quantile of the standard normal distribution, by bisection.
fn probit(p: f64) -> f64 {
    let (mut lo, mut hi) = (-9.0, 9.0);
    for _ in 0..60 {
        let mid = (lo + hi) / 2.0;
        if 0.5 * libm::erfc(-mid / std::f64::consts::SQRT_2) < p { lo = mid } else { hi = mid }
    }
    lo
}

fn normal() -> Vec<f32> {
    samples(probit)
}

fn relu() -> Vec<f32> {
    samples(|p| probit(p).max(0.0))
}

fn laplace() -> Vec<f32> {
    samples(|p| if p < 0.5 { libm::log(2.0 * p) } else { -libm::log(2.0 - 2.0 * p) })
}

fn skewed() -> Vec<f32> {
    samples(|p| -libm::log(1.0 - p) - 0.3)
}

fn with_outlier(mut values: Vec<f32>, outlier: f32) -> Vec<f32> {
    values.push(outlier);
    values
}

/// What a quantizer does to every sample, one after the other.
fn measured_error(values: &[f32], lo: f64, hi: f64, levels: u32) -> f64 {
    let steps = f64::from(levels - 1);
    let scale = (hi - lo) / steps;
    let zero = (-lo / scale).round_ties_even();
    let error = |x: f64| x - (((x / scale).round_ties_even() + zero).clamp(0.0, steps) - zero) * scale;
    values.iter().map(|&x| error(f64::from(x)).powi(2)).sum::<f64>() / values.len() as f64
}

fn close(found: f64, expected: f64, relative: f64) -> bool {
    (found - expected).abs() <= relative * expected.abs()
}

#[test]
fn expected_error_is_what_quantizing_gives() {
    for values in [normal(), relu(), laplace(), skewed(), with_outlier(normal(), 300.0)] {
        let h = histogram(&values);
        let (min, max) = h.extremes().unwrap();
        for (left, right) in [(1.0, 1.0), (0.7, 0.7), (0.3, 0.9), (0.05, 0.02)] {
            for levels in [4, 16, 255, 256] {
                let (lo, hi) = (min.min(0.0) * left, max * right);
                let expected = measured_error(&values, lo.into(), hi.into(), levels);
                let found = expected_error(&h, lo, hi, levels);
                assert!(close(found, expected, 0.02), "[{lo}, {hi}] / {levels}: {found} for {expected}");
            }
        }
    }
}

#[test]
fn expected_error_of_a_grid_on_the_data_is_nothing() {
    let h = histogram(&[0.0, 0.0, 6.0, 6.0]);
    assert_eq!(expected_error(&h, 0.0, 6.0, 256), 0.0);
    assert_eq!(expected_error(&h, 0.0, 5.0, 256), 0.5);
    assert_eq!(sqnr_db(&h, 0.0), f64::INFINITY);
    assert!(close(sqnr_db(&h, 0.18), 20.0, 1e-9));
}

#[test]
fn percentile_is_that_of_the_sorted_data() {
    for values in [normal(), relu(), laplace(), skewed(), with_outlier(laplace(), -900.0)] {
        let mut sorted = values.clone();
        sorted.sort_by(f32::total_cmp);
        for p in [90.0, 99.0, 99.9, 99.99] {
            let range = Calibrator::Percentile(p).choose(&histogram(&values), Grid::asymmetric(256)).range;
            let rank = ((sorted.len() - 1) as f64 * p / 100.0).round() as usize;
            let (lo, hi) = (sorted[sorted.len() - 1 - rank].min(0.0), sorted[rank]);
            assert!(close(range.hi.into(), hi.into(), 0.02), "{p}: {range:?} for {hi}");
            assert!(close(range.lo.into(), lo.into(), 0.02), "{p}: {range:?} for {lo}");
        }
    }
}

#[test]
fn nothing_below_zero_keeps_the_lower_end_at_zero() {
    for name in ["minmax", "percentile", "entropy", "mse", "auto"] {
        let method: Calibrator = name.parse().unwrap();
        let range = method.choose(&histogram(&relu()), Grid::asymmetric(256)).range;
        assert_eq!(range.lo.to_bits(), 0, "{name}");
        let negated: Vec<f32> = relu().iter().map(|x| -x).collect();
        let mirror = method.choose(&histogram(&negated), Grid::asymmetric(256)).range;
        assert!(mirror.hi == 0.0 && close((-mirror.lo).into(), range.hi.into(), 1e-3), "{name}: {mirror:?}");
    }
}

/// The best of all pairs of ends on a grid, by quantizing the samples.
fn brute_force(values: &[f32], levels: u32) -> f64 {
    let few: Vec<f32> = values.iter().step_by(4).copied().collect();
    let (min, max) =
        values.iter().fold((0.0f64, 0.0f64), |(lo, hi), &x| (lo.min(x.into()), hi.max(x.into())));
    let part = |i: u32| f64::from(i) / 24.0;
    let knots = (1..=24).flat_map(|i| (1..=24).map(move |j| (i, j)));
    let rough = |(i, j): (u32, u32)| measured_error(&few, min * part(i), max * part(j), levels);
    let mut ranked: Vec<(f64, (u32, u32))> = knots.map(|knot| (rough(knot), knot)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let exact =
        |&(_, (i, j)): &(f64, (u32, u32))| measured_error(values, min * part(i), max * part(j), levels);
    ranked.iter().take(12).map(exact).fold(f64::INFINITY, f64::min)
}

#[test]
fn least_squares_is_no_worse_than_trying_everything() {
    for values in [normal(), laplace(), skewed(), with_outlier(normal(), 12.0)] {
        for levels in [16, 256] {
            let choice = Calibrator::Mse.choose(&histogram(&values), Grid::asymmetric(levels));
            let measured = measured_error(&values, choice.range.lo.into(), choice.range.hi.into(), levels);
            let best = brute_force(&values, levels);
            assert!(measured <= best * 1.01, "{levels}: {choice:?} gives {measured}, best {best}");
            assert!(close(choice.mse, measured, 0.02), "{choice:?} gives {measured}");
        }
    }
}

#[test]
fn least_squares_finds_the_data_far_below_an_outlier() {
    for outlier in [20.0, 100.0, 1000.0] {
        let values = with_outlier(laplace(), outlier);
        let h = histogram(&values);
        let choice = Calibrator::Mse.choose(&h, Grid::asymmetric(256));
        let bare = Calibrator::MinMax.choose(&h, Grid::asymmetric(256));
        // Against all thresholds on one side, the other free of loss.
        let best = (1..400)
            .map(|i| {
                measured_error(&values, -11.8, f64::from(outlier) * libm::exp2(-f64::from(i) / 40.0), 256)
            })
            .fold(bare.mse, f64::min);
        assert!(choice.mse <= best * 1.01, "{outlier}: {choice:?}, best {best}, min-max {}", bare.mse);
    }
}

#[test]
fn the_fixed_point_is_near_the_least_error() {
    for values in [normal(), relu(), laplace(), skewed(), with_outlier(normal(), 40.0)] {
        let histogram = histogram(&values);
        for grid in [Grid::asymmetric(256), Grid::symmetric(255), Grid::asymmetric(16), Grid::symmetric(15)] {
            let [least, found] = [Calibrator::Mse, Calibrator::Octav].map(|m| m.choose(&histogram, grid));
            assert!(
                found.mse >= least.mse * 0.999 && found.mse < least.mse * 1.35,
                "{grid:?} {found:?} {least:?}"
            );
            assert!(found.mse < Calibrator::MinMax.choose(&histogram, grid).mse * 1.05);
        }
    }
}

/// The equation of the paper, on the samples themselves, for as many steps as the grid has (the paper has one more).
#[test]
fn the_fixed_point_is_that_of_the_paper() {
    let values = laplace();
    for bits in [4, 8] {
        let found = Calibrator::Octav.choose(&histogram(&values), Grid::symmetric((1 << bits) - 1)).range.hi;
        let mut end = values.iter().map(|x| x.abs()).sum::<f32>() / values.len() as f32;
        for _ in 0..100 {
            let beyond: Vec<f32> = values.iter().map(|x| x.abs()).filter(|&x| x > end).collect();
            let inside = (values.len() - beyond.len()) as f32;
            let noise = 1.0 / 3.0 / ((1 << bits) as f32 - 2.0).powi(2);
            end = beyond.iter().sum::<f32>() / (noise * inside + beyond.len() as f32);
        }
        assert!((found / end - 1.0).abs() < 0.03, "{bits} bits: {found} {end}");
    }
}

#[test]
fn entropy_clips_outliers_and_spares_what_is_dense() {
    let range = |values: &[f32]| Calibrator::Entropy.choose(&histogram(values), Grid::asymmetric(256)).range;
    // Dense up to its end: no clipping to speak of.
    assert!(range(&relu()).hi >= 4.1, "{:?}", range(&relu()));
    // A thin tail: a little clipping.
    let thin = range(&laplace());
    assert!(thin.hi > 9.0 && thin.hi < 11.5 && thin.lo == -thin.hi, "{thin:?}");
    // Outliers go, whatever their distance; the body stays.
    for outlier in [12.0, 100.0, 1000.0, 20000.0] {
        for (name, values) in [("normal", normal()), ("relu", relu())] {
            let hi = range(&with_outlier(values, outlier)).hi;
            assert!(hi > 3.9 && hi < 6.0, "{name} with {outlier}: {hi}");
        }
    }
}

/// The algorithm as published, bin by bin and level by level, for values from zero on.
fn naive_entropy(values: &[f32], levels: usize) -> f64 {
    let max = f64::from(values.iter().fold(0.0f32, |max, &x| max.max(x)));
    let mut bins = [0.0f64; 2048];
    for &x in values.iter().filter(|x| **x > 0.0) {
        bins[((f64::from(x) / max * 2048.0) as usize).min(2047)] += 1.0;
    }
    let total: f64 = bins.iter().sum();
    let mut best = (f64::INFINITY, 2048);
    for end in (2 * levels..=2048).rev().step_by(4) {
        let mut p = bins[..end].to_vec();
        let last = p.iter().rposition(|&x| x > 0.0).unwrap();
        p[last] += bins[end..].iter().sum::<f64>();
        let mut q = vec![0.0; end];
        for level in 0..levels {
            let group = (level * end).div_ceil(levels)..((level + 1) * end).div_ceil(levels);
            let members: Vec<usize> = group.filter(|&j| bins[j] > 0.0).collect();
            let mass: f64 = members.iter().map(|&j| bins[j]).sum();
            members.iter().for_each(|&j| q[j] = mass / members.len() as f64);
        }
        let inside: f64 = q.iter().sum();
        let terms = p.iter().zip(&q).filter(|(p, _)| **p > 0.0);
        let divergence: f64 = terms.map(|(p, q)| p / total * libm::log(p / total * inside / q)).sum();
        if divergence < best.0 {
            best = (divergence, end);
        }
    }
    max * best.1 as f64 / 2048.0
}

#[test]
fn entropy_agrees_with_the_published_procedure() {
    for (name, values) in [
        ("relu", relu()),
        ("exponential", samples(|p| -libm::log(1.0 - p))),
        ("heavy", samples(|p| 1.0 / (1.0 - p).sqrt().sqrt() - 1.0)),
    ] {
        let found = Calibrator::Entropy.choose(&histogram(&values), Grid::asymmetric(128)).range.hi;
        let expected = naive_entropy(&values, 128);
        assert!(close(found.into(), expected, 0.06), "{name}: {found} for {expected}");
    }
}

#[test]
fn auto_takes_the_least_error_and_clips_only_if_it_pays() {
    for values in [normal(), relu(), laplace(), skewed(), with_outlier(normal(), 50.0)] {
        let h = histogram(&values);
        for grid in [Grid::asymmetric(256), Grid::symmetric(255), Grid::asymmetric(16)] {
            let auto = Calibrator::Auto.choose(&h, grid);
            for method in METHODS {
                let other = method.choose(&h, grid);
                assert!(auto.mse * 0.97 <= other.mse, "{auto:?} against {other:?}");
                let Range { lo, hi } = other.range;
                assert!(close(other.mse, expected_error(&h, lo, hi, grid.levels()), 1e-3), "{other:?}");
            }
        }
    }
    let flat = samples(|p| 2.0 * p - 1.0);
    assert_eq!(Calibrator::Auto.choose(&histogram(&flat), Grid::asymmetric(256)).method, Calibrator::MinMax);
}

#[test]
fn symmetric_grids_reach_as_far_on_either_side() {
    let h = histogram(&skewed());
    assert_eq!((Grid::symmetric(255).levels(), Grid::symmetric(256).levels()), (255, 255));
    for method in METHODS {
        let Choice { range, .. } = method.choose(&h, Grid::symmetric(255));
        assert_eq!(range.lo, -range.hi, "{method}");
    }
}

#[test]
fn tensors_without_extent_are_no_trouble() {
    let cases: [&[f32]; 7] =
        [&[], &[0.0, 0.0], &[3.0], &[-2.0, -2.0], &[f32::NAN, f32::INFINITY], &[1e-44, -1e-44], &[9e29]];
    for values in cases {
        for method in METHODS.into_iter().chain([Calibrator::Auto]) {
            for grid in
                [Grid::asymmetric(256), Grid::symmetric(3), Grid::asymmetric(65536), Grid::asymmetric(0)]
            {
                let choice = method.choose(&histogram(values), grid);
                let Range { lo, hi } = choice.range;
                assert!(lo <= 0.0 && hi >= 0.0 && lo.is_finite() && hi.is_finite(), "{values:?} {choice:?}");
                assert!(choice.mse >= 0.0 && choice.mse.is_finite(), "{values:?} {choice:?}");
            }
        }
    }
}

#[test]
fn names_are_read_as_they_are_written() {
    for method in METHODS.into_iter().chain([Calibrator::Auto]) {
        assert_eq!(method.to_string().parse(), Ok(method));
    }
    assert_eq!("percentile".parse(), Ok(Calibrator::Percentile(99.99)));
    for wrong in ["", "max", "percentile=", "percentile=50", "percentile=100.1", "percentile=nan", "Auto"] {
        assert!(wrong.parse::<Calibrator>().is_err(), "{wrong}");
    }
}

#[test]
#[ignore = "a measurement"]
fn speed_of_choosing() {
    for (name, values) in
        [("relu", relu()), ("laplace", laplace()), ("outlier", with_outlier(normal(), 500.0))]
    {
        let h = histogram(&values);
        for method in [Calibrator::MinMax, Calibrator::Entropy, Calibrator::Mse, Calibrator::Auto] {
            let time = |_| {
                let start = std::time::Instant::now();
                (start, method.choose(&h, Grid::asymmetric(256))).0.elapsed()
            };
            println!("{name} {method}: {:.2?}", (0..20).map(time).min().unwrap());
        }
    }
}
