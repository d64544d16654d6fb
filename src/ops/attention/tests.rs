use super::*;
use crate::ir::attribute::{float, int};

#[test]
fn backend() {
    crate::ops::backend_tests::run("attention");
}

fn tensor(shape: &[usize], seed: usize) -> Array {
    let count: usize = shape.iter().product();
    let values = (0..count).map(|i| ((i * 37 + seed * 11) % 23) as f32 / 11.0 - 1.0).collect::<Vec<f32>>();
    Array::new(shape, values).unwrap()
}

/// One query that sees equal keys gets the mean of the values.
#[test]
fn equal_keys_give_the_mean() {
    let (q, k) = (tensor(&[1, 1, 1, 2], 1), Array::new(&[1, 1, 4, 2], vec![1f32; 8]).unwrap());
    let v = Array::new(&[1, 1, 4, 1], vec![1f32, 2.0, 3.0, 6.0]).unwrap();
    let op = (OPS[0].parse)(&mut Attrs::new(&[], 23, 3, 1)).unwrap();
    let y = op.float(&[Some(q), Some(k), Some(v)]).unwrap();
    assert!((y[0].slice::<f32>().unwrap()[0] - 3.0).abs() < 1e-6);
}

/// Feeding a sequence in two parts through the cache gives what feeding it whole gives.
#[test]
fn a_cache_continues_the_sequence() {
    let op = (OPS[0].parse)(&mut Attrs::new(&[int("is_causal", 1), float("softcap", 2.0)], 23, 6, 3)).unwrap();
    let [q, k, v] = [1, 2, 3].map(|seed| tensor(&[2, 3, 5, 4], seed));
    let whole = op.float(&[Some(q.clone()), Some(k.clone()), Some(v.clone())]).unwrap();
    let cut = |x: &Array, rows: &[usize]| Some(crate::kernels::strided::take_array(x, 2, rows).unwrap());
    let first = op.float(&[&q, &k, &v].map(|x| cut(x, &[0, 1, 2]))).unwrap();
    let [q, k, v] = [&q, &k, &v].map(|x| cut(x, &[3, 4]));
    let second = op.float(&[q, k, v, None, Some(first[1].clone()), Some(first[2].clone())]).unwrap();
    let found = append(Some(&first[0]), second[0].clone()).unwrap();
    for (a, b) in found.slice::<f32>().unwrap().iter().zip(whole[0].slice::<f32>().unwrap()) {
        assert!((a - b).abs() < 1e-6);
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let op = (OPS[0].parse)(&mut Attrs::new(&[], 23, 3, 1)).unwrap();
    let x = Some(tensor(&[1, 2, 3], 0));
    assert!(op.float(&[x.clone(), x.clone(), x]).is_err());
    let [q, k] = [tensor(&[1, 2, 3, 4], 0), tensor(&[1, 2, 3, 5], 0)].map(Some);
    assert!(op.float(&[q, k.clone(), k]).is_err());
}
