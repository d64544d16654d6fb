use super::*;

fn ints(shape: &[usize], values: &[i64]) -> Option<Array> {
    Some(Array::new(shape, values.to_vec()).unwrap())
}

#[test]
fn compress_picks_slices() {
    let x = ints(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let run = |axis, condition| Compress { axis }.float(&[x.clone(), Some(Array::vector(condition))]);
    assert_eq!(run(Some(-1), vec![true, false, true]).unwrap()[0], ints(&[2, 2], &[1, 3, 4, 6]).unwrap());
    assert_eq!(run(None, vec![false, true, false, true]).unwrap()[0], ints(&[2], &[2, 4]).unwrap());
    assert!(run(Some(0), vec![false, false, true]).is_err());
}

#[test]
fn coordinates_of_what_is_not_zero() {
    let found =
        NonZero.float(&[Some(Array::new(&[2, 2], vec![0f32, f32::NAN, -0.0, 3.0]).unwrap())]).unwrap();
    assert_eq!(found[0], ints(&[2, 2], &[0, 1, 1, 1]).unwrap());
    assert_eq!(NonZero.float(&[Some(Array::scalar(5i8))]).unwrap()[0].shape(), [0, 1]);
}

#[test]
fn one_hot_axes_and_ranges() {
    let run = |axis, indices, depth: f32| {
        let values = Some(Array::vector(vec![0i32, 7]));
        OneHot { axis }.float(&[ints(&[2], indices), Some(Array::scalar(depth)), values])
    };
    let expected = Array::new(&[3, 2], vec![0, 0, 0, 0, 7, 0]).unwrap();
    assert_eq!(run(0, &[-1, 9], 3.0).unwrap()[0], expected);
    assert_eq!(run(-1, &[1, 0], 2.0).unwrap()[0], Array::new(&[2, 2], vec![0, 7, 7, 0]).unwrap());
    for wrong in [-1.0, f32::INFINITY, 1e30] {
        assert!(run(0, &[0, 0], wrong).is_err(), "{wrong}");
    }
}

#[test]
fn triangles() {
    let x = ints(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let run = |upper, k| Trilu { upper }.float(&[x.clone(), Some(Array::scalar(k))]).unwrap().remove(0);
    assert_eq!(run(true, 0), ints(&[2, 3], &[1, 2, 3, 0, 5, 6]).unwrap());
    assert_eq!(run(false, 0), ints(&[2, 3], &[1, 0, 0, 4, 5, 0]).unwrap());
    assert_eq!(run(true, i64::MAX), ints(&[2, 3], &[0; 6]).unwrap());
    assert_eq!(Some(run(false, i64::MAX)), x);
    assert_eq!(run(false, i64::MIN), ints(&[2, 3], &[0; 6]).unwrap());
}

#[test]
fn reversed_sequences() {
    let x = ints(&[3, 2], &[0, 1, 2, 3, 4, 5]);
    let run = |lengths: &[i64]| ReverseSequence { time_first: true }.float(&[x.clone(), ints(&[2], lengths)]);
    assert_eq!(run(&[3, 2]).unwrap()[0], ints(&[3, 2], &[4, 3, 2, 1, 0, 5]).unwrap());
    assert!(run(&[4, 0]).is_err());
    assert!(run(&[-1, 0]).is_err());
}

#[test]
fn unique_by_first_appearance_and_with_nan() {
    let x = Some(Array::vector(vec![f32::NAN, 2.0, 1.0, f32::NAN, 2.0]));
    let found = Unique { axis: None, sorted: false }.float(std::slice::from_ref(&x)).unwrap();
    assert_eq!(found[1], ints(&[3], &[0, 1, 2]).unwrap());
    assert_eq!(found[2], ints(&[5], &[0, 1, 2, 0, 1]).unwrap());
    let found = Unique { axis: None, sorted: true }.float(&[x]).unwrap();
    assert_eq!(found[1], ints(&[3], &[2, 1, 0]).unwrap());
    assert_eq!(found[3], ints(&[3], &[1, 2, 2]).unwrap());
}

#[test]
fn backend_cases() {
    crate::ops::backend_tests::run("select");
}
