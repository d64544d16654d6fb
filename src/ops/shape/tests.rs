use super::*;
use crate::ir::Tensor;

fn reshape(target: &[i64], from: &[Dim], allow_zero: bool) -> Result<Vec<Dim>, Fault> {
    Reshape { shape: None, allow_zero }.target(target, Some(from))
}

fn known(shape: &[usize]) -> Vec<Dim> {
    shape.iter().map(|&d| Dim::Known(d)).collect()
}

fn symbol(name: &str) -> Dim {
    Dim::Symbol(name.into())
}

#[test]
fn reshape_targets() {
    assert_eq!(reshape(&[0, -1], &known(&[2, 3, 4]), false).unwrap(), known(&[2, 12]));
    assert_eq!(reshape(&[0, 5], &known(&[0, 5]), true).unwrap(), known(&[0, 5]));
    let batch = [symbol("N"), Dim::Known(3), Dim::Known(4)];
    assert_eq!(reshape(&[0, -1], &batch, false).unwrap(), [symbol("N"), Dim::Known(12)]);
    assert_eq!(reshape(&[-1, 12], &batch, false).unwrap(), [symbol("N"), Dim::Known(12)]);
    assert_eq!(reshape(&[-1, 6], &batch, false).unwrap(), [Dim::Unknown, Dim::Known(6)]);
    for wrong in [&[-1, -1][..], &[5, -1], &[2, 3], &[-2, 12], &[0, 0, 0, 0]] {
        assert!(reshape(wrong, &known(&[2, 3, 4]), false).is_err(), "{wrong:?}");
    }
    assert!(reshape(&[i64::MAX, i64::MAX], &known(&[4]), false).is_err());
}

#[test]
fn reshape_without_a_constant_knows_the_rank() {
    let (x, target) = (TensorType::new(DType::F32, vec![symbol("N")]), TensorType::known(DType::I64, &[3]));
    let facts = [Some(Fact { ty: &x, constant: None }), Some(Fact { ty: &target, constant: None })];
    let found = Reshape { shape: None, allow_zero: false }.infer(&facts).unwrap();
    assert_eq!(found, [Some(TensorType::new(DType::F32, vec![Dim::Unknown; 3]))]);
}

#[test]
fn squeeze_and_unsqueeze_axes() {
    assert_eq!(Unsqueeze::widened(&[-1, 0], &[5, 6], 1).unwrap(), [1, 5, 6, 1]);
    assert!(Unsqueeze::widened(&[1, 1], &[5, 6], 1).is_err());
    assert!(Unsqueeze::widened(&[i64::MIN], &[5, 6], 1).is_err());
    assert_eq!(Squeeze::kept(None, &known(&[1, 4, 1])).unwrap().unwrap(), known(&[4]));
    assert_eq!(Squeeze::kept(None, &[symbol("N"), Dim::Known(1)]).unwrap(), None);
    assert_eq!(Squeeze::kept(Some(&[1]), &[symbol("N"), Dim::Known(1)]).unwrap().unwrap(), [symbol("N")]);
    assert!(Squeeze::kept(Some(&[1]), &known(&[1, 4])).is_err());
}

#[test]
fn expand_keeps_symbols_where_the_target_is_one() {
    let from = [symbol("N"), Dim::Known(1)];
    assert_eq!(Expand::target(&from, &[3, 1, 4]).unwrap(), [Dim::Known(3), symbol("N"), Dim::Known(4)]);
    let ty = TensorType::new(DType::F32, from.to_vec());
    let to = Tensor::from_array(&Array::vector(vec![-1i64]));
    let facts =
        [Some(Fact { ty: &ty, constant: None }), Some(Fact { ty: &to.tensor_type(), constant: Some(&to) })];
    assert!(Expand.infer(&facts).is_err());
}

#[test]
fn values_move() {
    let x = Some(Array::new(&[2, 3], vec![1i8, 2, 3, 4, 5, 6]).unwrap());
    let y = Transpose { perm: None }.float(std::slice::from_ref(&x)).unwrap();
    assert_eq!(y, [Array::new(&[3, 2], vec![1i8, 4, 2, 5, 3, 6]).unwrap()]);
    let y = Flatten { axis: -2 }.float(std::slice::from_ref(&x)).unwrap();
    assert_eq!(y[0].shape(), [1, 6]);
    let y = Shape { start: -1, end: None }.float(&[x]).unwrap();
    assert_eq!(y, [Array::vector(vec![3i64])]);
}

#[test]
fn backend_cases() {
    crate::ops::backend_tests::run("shape");
}
