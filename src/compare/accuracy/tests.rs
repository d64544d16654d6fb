use super::*;

#[test]
fn best_classes_of_rows() {
    let scores =
        Array::new(&[2, 6, 1, 1], vec![0.0f32, 3.0, 3.0, -1.0, 9.0, 2.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]);
    assert_eq!(best(&scores.unwrap()).unwrap(), [vec![4, 1, 2, 5, 0], vec![0, 1, 2, 3, 4]]);
    assert!(best(&Array::new(&[1, 2, 3], vec![0f32; 6]).unwrap()).is_err());
    assert!(best(&Array::new(&[1, 2], vec![0i64; 2]).unwrap()).is_err());
}

#[test]
fn counts_hits() {
    let a: Best = vec![vec![0, 1], vec![1, 0], vec![1, 0], vec![0, 1]];
    let b: Best = vec![vec![0, 1], vec![1, 0], vec![0, 1], vec![1, 0]];
    let accuracy = Accuracy::of("y", [&a, &b], &[0, 1, 1, 0]).unwrap();
    assert!((accuracy.top1, accuracy.top5, accuracy.drop) == ([1.0, 0.5], [1.0, 1.0], 50.0));
    assert!(accuracy.interval.0 < 50.0 && accuracy.interval.1 > 50.0);
    assert!(Accuracy::of("y", [&a, &b], &[0, 1]).is_err());
}

/// The interval is not computed a second way but held to what it promises: for models that are right with known
/// probabilities, about 95 of 100 intervals hold the true difference, correlated or not.
#[test]
fn intervals_cover() {
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    for (both, first, second) in [(0.8, 0.1, 0.05), (0.5, 0.2, 0.1), (0.9, 0.02, 0.02), (0.1, 0.4, 0.3)] {
        let (mut covered, trials) = (0, 4000);
        for _ in 0..trials {
            let mut table = [[0.0; 2]; 2];
            for _ in 0..200 {
                let u = uniform();
                let cell =
                    [both, both + first, both + first + second].iter().filter(|&&edge| u >= edge).count();
                table[cell / 2][cell % 2] += 1.0;
            }
            let (low, high) = newcombe(table);
            covered += usize::from((low..=high).contains(&(first - second)));
        }
        let share = covered as f64 / f64::from(trials);
        assert!((0.935..0.985).contains(&share), "{share} for {both} {first} {second}");
    }
}

#[test]
fn perfect_agreement_is_no_certainty() {
    let (low, high) = newcombe([[90.0, 0.0], [0.0, 10.0]]);
    assert!(low < 0.0 && high > 0.0 && (low + high).abs() < 1e-12, "{low} {high}");
}
