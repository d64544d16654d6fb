use super::*;
use crate::ir::{DType, Tensor};

fn ints(shape: &[usize], values: &[i64]) -> Option<Array> {
    Some(Array::new(shape, values.to_vec()).unwrap())
}

/// Index by index. Unlike in Python, a start before the first element is the first one in steps backwards too.
fn naive(extent: i64, start: i64, end: i64, step: i64) -> Vec<i64> {
    let wrap = |at: i64| if at < 0 { at + extent } else { at };
    if step > 0 {
        let (start, end) = (wrap(start).max(0), wrap(end).min(extent));
        (0..).map(|i| start + i * step).take_while(|&i| i < end).collect()
    } else {
        let (start, end) = (wrap(start).clamp(0, extent - 1), wrap(end).max(-1));
        (0..).map(|i| start + i * step).take_while(|&i| i > end && i >= 0).collect()
    }
}

#[test]
fn slices_of_every_kind() {
    let x = ints(&[5], &[0, 1, 2, 3, 4]);
    let one = |value| Some(Array::vector(vec![value]));
    let op = Slice { attributes: None, inputs: 5 };
    for start in -6..7 {
        for end in -7..7 {
            for step in [-3, -2, -1, 1, 2, 7] {
                let inputs = [x.clone(), one(start), one(end), one(0), one(step)];
                let found = op.float(&inputs).unwrap().remove(0).to_i64().unwrap();
                assert_eq!(found, naive(5, start, end, step), "{start}:{end}:{step}");
            }
        }
    }
    let run = |start, end, step| op.float(&[x.clone(), one(start), one(end), one(0), one(step)]);
    assert_eq!(run(-1, i64::MIN, -1).unwrap()[0].to_i64().unwrap(), [4, 3, 2, 1, 0]);
    assert_eq!(run(0, i64::MAX, i64::MAX).unwrap()[0].to_i64().unwrap(), [0]);
    assert_eq!(run(4, i64::MIN, i64::MIN).unwrap()[0].to_i64().unwrap(), [4]);
    assert!(run(0, 5, 0).is_err());
}

#[test]
fn slices_keep_the_dimensions_they_do_not_touch() {
    let batch = Dim::Symbol("N".into());
    let ty = TensorType::new(DType::F32, vec![batch.clone(), Dim::Known(8), Dim::Known(9)]);
    let constants = [0, i64::MAX, 0].map(|v| Tensor::from_array(&Array::vector(vec![v])));
    let types = constants.each_ref().map(Tensor::tensor_type);
    let mut facts = vec![Some(Fact { ty: &ty, constant: None })];
    facts.extend(constants.iter().zip(&types).map(|(t, ty)| Some(Fact { ty, constant: Some(t) })));
    let op = Slice { attributes: None, inputs: 4 };
    assert_eq!(op.infer(&facts).unwrap(), [Some(ty.clone())]);
    facts[2] = None;
    let found = op.infer(&facts).unwrap();
    assert_eq!(found, [Some(TensorType::new(DType::F32, vec![Dim::Unknown, Dim::Known(8), Dim::Known(9)]))]);

    let bounds = Bounds { starts: vec![1], ends: vec![-1], axes: Some(vec![-1]), steps: None };
    let found = Slice { attributes: Some(bounds), inputs: 1 }.infer(&facts[..1]).unwrap();
    assert_eq!(found, [Some(TensorType::new(DType::F32, vec![batch, Dim::Known(8), Dim::Known(7)]))]);
}

#[test]
fn gather_replaces_the_axis() {
    let data = ints(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let run = |axis, indices| Gather { axis }.float(&[data.clone(), indices]);
    assert_eq!(run(1, ints(&[], &[-1])).unwrap()[0], ints(&[2], &[3, 6]).unwrap());
    assert_eq!(run(0, ints(&[1, 2], &[1, 0])).unwrap()[0], ints(&[1, 2, 3], &[4, 5, 6, 1, 2, 3]).unwrap());
    for wrong in [3, -4, i64::MIN, i64::MAX] {
        assert!(run(1, ints(&[1], &[wrong])).is_err());
    }
}

#[test]
fn tuples_with_batch_axes() {
    let data = ints(&[2, 2, 2], &[0, 1, 2, 3, 4, 5, 6, 7]);
    let found = GatherNd { batch_dims: 1 }.float(&[data.clone(), ints(&[2, 1], &[1, 0])]).unwrap();
    assert_eq!(found[0], ints(&[2, 2], &[2, 3, 4, 5]).unwrap());
    assert!(GatherNd { batch_dims: 2 }.float(&[data.clone(), ints(&[2, 1], &[1, 0])]).is_err());
    assert!(GatherNd { batch_dims: 0 }.float(&[data, ints(&[1, 4], &[0, 0, 0, 0])]).is_err());
}

#[test]
fn elements_by_index() {
    let data = ints(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let found = GatherElements { axis: 1 }.float(&[data.clone(), ints(&[1, 2], &[2, 0])]).unwrap();
    assert_eq!(found[0], ints(&[1, 2], &[3, 1]).unwrap());
    assert!(GatherElements { axis: 1 }.float(&[data, ints(&[3, 1], &[0, 0, 0])]).is_err());
}

#[test]
fn backend_cases() {
    crate::ops::backend_tests::run("gather");
}
