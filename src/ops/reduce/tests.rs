use super::*;
use crate::ir::Attribute;
use crate::ir::attribute::{int, ints};
use crate::ops::operand::run;

fn f32s(shape: &[usize], x: &[f32]) -> Array {
    Array::new(shape, x.to_vec()).unwrap()
}

fn one(name: &str, version: i64, attributes: &[Attribute], inputs: &[&Array]) -> Array {
    let inputs: Vec<_> = inputs.iter().map(|&i| Some(i.clone())).collect();
    run(name, version, attributes, &inputs, 1).unwrap().remove(0)
}

/// The definition, element by element, over any axes.
fn definition(name: &str, x: &Array, axes: &[usize]) -> Vec<f64> {
    let shape = x.shape();
    let values = x.slice::<f32>().unwrap();
    let kept: Vec<usize> = (0..shape.len()).filter(|a| !axes.contains(a)).collect();
    let count: usize = kept.iter().map(|&a| shape[a]).product();
    let mut groups = vec![Vec::new(); count];
    for (position, &v) in values.iter().enumerate() {
        let mut rest = position;
        let mut index = vec![0; shape.len()];
        for a in (0..shape.len()).rev() {
            index[a] = rest % shape[a];
            rest /= shape[a];
        }
        groups[kept.iter().fold(0, |p, &a| p * shape[a] + index[a])].push(f64::from(v));
    }
    let reduce = |g: Vec<f64>| {
        let sum = |f: &dyn Fn(f64) -> f64| g.iter().map(|&v| f(v)).sum::<f64>();
        match name {
            "ReduceSum" => sum(&|v| v),
            "ReduceMean" => sum(&|v| v) / g.len() as f64,
            "ReduceMax" => g.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            "ReduceMin" => g.iter().copied().fold(f64::INFINITY, f64::min),
            "ReduceProd" => g.iter().product(),
            "ReduceL1" => sum(&f64::abs),
            "ReduceL2" => sum(&|v| v * v).sqrt(),
            "ReduceSumSquare" => sum(&|v| v * v),
            "ReduceLogSum" => libm::log(sum(&|v| v)),
            _ => libm::log(sum(&libm::exp)),
        }
    };
    groups.into_iter().map(reduce).collect()
}

#[test]
fn every_reduction_over_every_set_of_axes() {
    let x = f32s(&[2, 3, 4, 5], &(0..120).map(|i| 0.5 + (i * 37 % 120) as f32 / 100.0).collect::<Vec<_>>());
    for def in OPS.iter().filter(|d| d.name.starts_with("Reduce")) {
        for set in 1u32..16 {
            let axes: Vec<usize> = (0..4).filter(|a| set & 1 << a != 0).collect();
            let list = Array::vector(axes.iter().map(|&a| a as i64 - 4).collect());
            let found = one(def.name, 18, &[int("keepdims", 0)], &[&x, &list]);
            let attributes = [ints("axes", axes.iter().map(|&a| a as i64).collect::<Vec<_>>())];
            let older = one(def.name, 11, &attributes, &[&x]);
            assert_eq!(found.slice::<f32>().unwrap(), older.slice::<f32>().unwrap());
            assert_eq!(older.rank(), 4);
            for (f, e) in found.slice::<f32>().unwrap().iter().zip(definition(def.name, &x, &axes)) {
                assert!(
                    (f64::from(*f) - e).abs() <= 1e-5 * e.abs().max(1.0),
                    "{} {axes:?}: {f} {e}",
                    def.name
                );
            }
        }
    }
}

#[test]
fn without_axes_all_or_none() {
    let x = f32s(&[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    assert_eq!(one("ReduceSum", 13, &[], &[&x]), f32s(&[1, 1], &[10.0]));
    assert_eq!(one("ReduceSum", 13, &[int("noop_with_empty_axes", 1)], &[&x]), x);
    let empty = Array::vector(Vec::<i64>::new());
    let squares = one("ReduceSumSquare", 18, &[int("noop_with_empty_axes", 1)], &[&x, &empty]);
    assert_eq!(squares, f32s(&[2, 2], &[1.0, 4.0, 9.0, 16.0]));
}

#[test]
fn of_nothing() {
    let x = f32s(&[2, 0, 3], &[]);
    let axes = Array::vector(vec![1i64]);
    for (name, expected) in [("ReduceSum", 0.0), ("ReduceProd", 1.0), ("ReduceMin", f32::INFINITY)] {
        assert_eq!(one(name, 18, &[], &[&x, &axes]), f32s(&[2, 1, 3], &[expected; 6]));
    }
    let log = one("ReduceLogSumExp", 18, &[], &[&x, &axes]);
    assert_eq!(log, f32s(&[2, 1, 3], &[f32::NEG_INFINITY; 6]));
}

#[test]
fn other_types() {
    let x = Array::vector(vec![-7i32, 2, 2]);
    assert_eq!(one("ReduceMean", 13, &[], &[&x]), Array::vector(vec![-1i32]));
    assert_eq!(one("ReduceL1", 13, &[], &[&x]), Array::vector(vec![11i32]));
    let flags = Array::vector(vec![true, false]);
    assert_eq!(one("ReduceMax", 20, &[], &[&flags]), Array::vector(vec![true]));
    assert_eq!(one("ReduceMin", 20, &[], &[&flags]), Array::vector(vec![false]));
    let half = Array::vector([1.0f32, 2.0].map(half::f16::from_f32).to_vec());
    assert_eq!(one("ReduceSum", 13, &[], &[&half]), Array::vector(vec![half::f16::from_f32(3.0)]));
    assert!(run("ReduceSum", 13, &[], &[Some(Array::vector(vec![String::new()]))], 1).is_err());
}

#[test]
fn axes_out_of_range_are_faults() {
    let x = Some(f32s(&[2], &[1.0, 2.0]));
    for axis in [1, -2, i64::MIN, i64::MAX] {
        assert!(run("ReduceSum", 13, &[], &[x.clone(), Some(Array::vector(vec![axis]))], 1).is_err());
    }
}

#[test]
fn running_sums() {
    let x = f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let axis = Array::scalar(1i64);
    let cum = |attributes: &[_]| one("CumSum", 14, attributes, &[&x, &axis]).slice::<f32>().unwrap().to_vec();
    assert_eq!(cum(&[]), [1.0, 3.0, 6.0, 4.0, 9.0, 15.0]);
    assert_eq!(cum(&[int("exclusive", 1)]), [0.0, 1.0, 3.0, 0.0, 4.0, 9.0]);
    assert_eq!(cum(&[int("reverse", 1)]), [6.0, 5.0, 3.0, 15.0, 11.0, 6.0]);
    assert_eq!(cum(&[int("reverse", 1), int("exclusive", 1)]), [5.0, 3.0, 0.0, 11.0, 6.0, 0.0]);
    let down = one("CumSum", 14, &[], &[&x, &Array::vector(vec![-2i32])]);
    assert_eq!(down, f32s(&[2, 3], &[1.0, 2.0, 3.0, 5.0, 7.0, 9.0]));
}

#[test]
fn backend() {
    crate::ops::backend_tests::run("reduce");
}
