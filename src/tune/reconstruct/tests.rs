use super::*;

#[test]
fn judges_took_no_part_however_many_run_side_by_side() {
    for (samples, most) in [(100, 100), (100, 30), (100, 5), (250, 100), (30, 100), (7, 5), (5, 5)] {
        let Shares { runs, learning, judging } = Shares::of(samples, most);
        assert_eq!(runs.len(), samples.min(most));
        assert!(runs.is_sorted() && judging.is_sorted());
        assert!(learning.iter().all(|i| runs.contains(i) && !judging.contains(i)), "{samples} {most}");
        assert!(runs.iter().all(|i| learning.contains(i) || judging.contains(i)));
        // Samples that could not be run for want of memory judge, so there are as many judges as without a bound.
        assert_eq!(judging.len(), Shares::all(samples).judging.len(), "{samples} {most}");
    }
}

#[test]
fn few_samples_all_judge() {
    let Shares { runs, learning, judging } = Shares::all(4);
    assert_eq!((runs, learning, judging), (vec![0, 1, 2, 3], vec![], vec![0, 1, 2, 3]));
}
