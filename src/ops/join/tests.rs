use super::*;

fn f32s(shape: &[usize], values: &[f32]) -> Option<Array> {
    Some(Array::new(shape, values.to_vec()).unwrap())
}

#[test]
fn concat_shapes_and_values() {
    let op = Concat { axis: -1 };
    let [a, b] = [f32s(&[2, 1], &[1., 2.]), f32s(&[2, 2], &[3., 4., 5., 6.])];
    assert_eq!(
        op.float(&[a.clone(), b.clone()]).unwrap()[0],
        f32s(&[2, 3], &[1., 3., 4., 2., 5., 6.]).unwrap()
    );
    assert!(Concat { axis: 0 }.float(&[a.clone(), b]).is_err());
    assert!(op.float(&[a, Some(Array::vector(vec![1i64]))]).is_err());

    let batch = Dim::Symbol("N".into());
    let (x, y) = ([batch.clone(), Dim::Known(3)], [Dim::Unknown, Dim::Known(4)]);
    assert_eq!(op.joined(&[&x, &y], true).unwrap(), [batch.clone(), Dim::Known(7)]);
    assert_eq!(op.joined(&[&x, &y], false).unwrap(), [batch, Dim::Unknown]);
}

#[test]
fn split_into_parts() {
    let split = |outputs| Split { axis: 0, split: None, split_input: false, outputs };
    assert_eq!(split(3).parts(None, 7).unwrap(), [3, 3, 1]);
    assert_eq!(split(2).parts(Some(&[0, 5]), 5).unwrap(), [0, 5]);
    assert!(split(2).parts(Some(&[2, 2]), 5).is_err());
    assert!(split(2).parts(Some(&[-1, 6]), 5).is_err());
    assert!(split(1).parts(Some(&[2, 3]), 5).is_err());
    let parts = Split { axis: 1, split: None, split_input: false, outputs: 2 }
        .float(&[f32s(&[2, 3], &[1., 2., 3., 4., 5., 6.])])
        .unwrap();
    assert_eq!(parts, [f32s(&[2, 2], &[1., 2., 4., 5.]).unwrap(), f32s(&[2, 1], &[3., 6.]).unwrap()]);
}

#[test]
fn tile_repeats() {
    let twice = Some(Array::vector(vec![1i64, 2]));
    let found = Tile.float(&[f32s(&[2, 2], &[1., 2., 3., 4.]), twice.clone()]).unwrap();
    assert_eq!(found[0], f32s(&[2, 4], &[1., 2., 1., 2., 3., 4., 3., 4.]).unwrap());
    assert!(Tile.float(&[f32s(&[2], &[1., 2.]), twice]).is_err());
    assert!(Tile.float(&[f32s(&[1], &[1.]), Some(Array::vector(vec![i64::MAX]))]).is_err());
}

#[test]
fn space_and_depth_are_inverse() {
    let x = f32s(&[1, 8, 2, 3], &(0..48).map(|i| i as f32).collect::<Vec<_>>());
    for columns_first in [true, false] {
        let wide =
            DepthToSpace { block: 2, columns_first }.float(std::slice::from_ref(&x)).unwrap().remove(0);
        assert_eq!(wide.shape(), [1, 2, 4, 6]);
        let back = SpaceToDepth { block: 2, columns_first }.float(&[Some(wide)]).unwrap().remove(0);
        assert_eq!(Some(back), x);
    }
}

#[test]
fn backend_cases() {
    crate::ops::backend_tests::run("join");
}
