//! Kernels of units against their formulas, one element at a time.

use proptest::prelude::*;

use super::values_of;
use crate::ir::attribute::{int, ints};
use crate::ir::integer::{Operand, Scales, Unit};
use crate::ir::{Array, Attribute, DType, QuantParams};
use crate::ops::{Attrs, find};

fn params() -> impl Strategy<Value = QuantParams> {
    (any::<bool>(), 0.01f32..0.3, any::<u8>()).prop_map(|(signed, scale, zero)| {
        let (dtype, zero_point) =
            if signed { (DType::I8, i32::from(zero as i8)) } else { (DType::U8, zero.into()) };
        QuantParams { scale, zero_point, dtype }
    })
}

/// The same type for both, as units want it.
fn alike(x: QuantParams, y: QuantParams) -> QuantParams {
    let shift = if x.dtype == y.dtype {
        0
    } else if y.dtype == DType::U8 {
        -128
    } else {
        128
    };
    QuantParams { dtype: x.dtype, zero_point: y.zero_point + shift, ..y }
}

fn tensor(dtype: DType, shape: &[usize], seed: u32) -> Array {
    let byte = |i: u32| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24) as u8;
    let bytes = (0..shape.iter().product::<usize>() as u32).map(byte);
    match dtype {
        DType::I8 => Array::new(shape, bytes.map(|b| b as i8).collect::<Vec<_>>()).unwrap(),
        _ => Array::new(shape, bytes.collect::<Vec<_>>()).unwrap(),
    }
}

/// An operand with these parameters, whose values are known or not.
fn whole(p: QuantParams, constant: Option<&Array>) -> Option<Operand> {
    let scales =
        Scales { dtype: p.dtype, scales: vec![p.scale], zero_points: vec![p.zero_point], axis: None };
    Some(Operand::Integer(scales, constant.cloned()))
}

/// What the kernel of an operator computes as the output `y` of the unit.
fn run(
    name: &str,
    attributes: &[Attribute],
    unit: Vec<Option<Operand>>,
    y: QuantParams,
    inputs: &[&Array],
) -> Vec<i32> {
    let def = find("", name, 13).unwrap();
    let op = (def.parse)(&mut Attrs::new(attributes, 13, inputs.len(), 1)).unwrap();
    let kernel = op.integer(&Unit { inputs: unit, outputs: vec![Some(y)] }).unwrap();
    let inputs: Vec<Option<Array>> = inputs.iter().map(|&a| Some(a.clone())).collect();
    values_of(&kernel.run(&inputs).unwrap()[0]).unwrap()
}

/// A sum of 32 bits as an integer of the output: one product, rounded once.
fn rounded(sum: i64, factor: f32, y: &QuantParams) -> i32 {
    let (low, high) = if y.dtype == DType::I8 { (-128, 127) } else { (0, 255) };
    let v = f64::from((sum as f32 * factor).round_ties_even()) + f64::from(y.zero_point);
    v.clamp(low.into(), high.into()) as i32
}

/// The scale of column `j` of a weight, and its factor.
fn factor(x: &QuantParams, w: &Scales, y: &QuantParams, j: usize) -> f32 {
    x.scale * w.scales[if w.scales.len() == 1 { 0 } else { j }] / y.scale
}

fn bias_scales(x: &QuantParams, w: &Scales) -> Scales {
    let scales: Vec<f32> = w.scales.iter().map(|s| x.scale * s).collect();
    Scales {
        dtype: DType::I32,
        zero_points: vec![0; scales.len()],
        axis: (scales.len() > 1).then_some(0),
        scales,
    }
}

/// A weight's parameters: a scale for each of `count` indices along an axis, or one.
fn weight(p: QuantParams, count: usize, axis: Option<i64>) -> Scales {
    let n = if axis.is_some() { count } else { 1 };
    let scales = (0..n).map(|i| p.scale * (1.0 + i as f32 / 7.0)).collect();
    Scales { dtype: p.dtype, scales, zero_points: vec![p.zero_point; n], axis }
}

proptest! {
    #[test]
    fn products(
        x in params(), w in params(), y in params(), (m, n, k) in (1usize..7, 1usize..40, 1usize..20),
        turned: (bool, bool), each: bool, constant: bool, biased: bool, seed: u32,
    ) {
        let y = alike(x, y);
        let a = tensor(x.dtype, &if turned.0 { [k, m] } else { [m, k] }, seed);
        let b = tensor(w.dtype, &if turned.1 { [n, k] } else { [k, n] }, seed ^ 77);
        let bias: Vec<i32> = (0..n as i32).map(|j| (j - 9) * 700).collect();
        let each = each && constant && n > 1;
        let scales = weight(w, n, each.then_some(if turned.1 { 0 } else { 1 }));
        let own = Array::vector(bias.clone());
        let mut unit = vec![
            whole(x, None),
            Some(Operand::Integer(scales.clone(), constant.then(|| b.clone()))),
        ];
        unit.extend(biased.then(|| Some(Operand::Integer(bias_scales(&x, &scales), Some(own.clone())))));
        let turns = [int("transA", turned.0.into()), int("transB", turned.1.into())];
        let found = run("Gemm", &turns, unit, y, &[&a, &b, &own][..if biased { 3 } else { 2 }]);
        let (a, b) = (values_of(&a).unwrap(), values_of(&b).unwrap());
        for (at, &found) in found.iter().enumerate() {
            let (i, j) = (at / n, at % n);
            let sum: i64 = (0..k)
                .map(|p| {
                    let a = a[if turned.0 { p * m + i } else { i * k + p }] - x.zero_point;
                    let b = b[if turned.1 { j * k + p } else { p * n + j }] - w.zero_point;
                    i64::from(a) * i64::from(b)
                })
                .sum();
            let sum = sum + if biased { i64::from(bias[j]) } else { 0 };
            prop_assert_eq!(found, rounded(sum, factor(&x, &scales, &y, j), &y));
        }
    }

    #[test]
    fn convolutions(
        x in params(), w in params(), y in params(), each: bool, biased: bool, symmetric: bool, seed: u32,
        (batch, groups, input, output) in (1usize..3, 1usize..4, 1usize..4, 1usize..4),
        (height, width, rows, columns) in (3usize..8, 3usize..20, 1usize..4, 1usize..4),
        (stride, dilation, pad) in (1usize..3, 1usize..3, 0usize..2),
    ) {
        prop_assume!((rows - 1) * dilation < height + 2 * pad && (columns - 1) * dilation < width + 2 * pad);
        let y = alike(x, y);
        let w = if symmetric { QuantParams { dtype: DType::I8, zero_point: 0, ..w } } else { w };
        let channels = groups * output;
        let a = tensor(x.dtype, &[batch, groups * input, height, width], seed);
        let b = tensor(w.dtype, &[channels, input, rows, columns], seed ^ 77);
        let bias: Vec<i32> = (0..channels as i32).map(|j| (j - 3) * 700).collect();
        let scales = weight(w, channels, (each && channels > 1).then_some(0));
        let own = Array::vector(bias.clone());
        let mut unit = vec![whole(x, None), Some(Operand::Integer(scales.clone(), Some(b.clone())))];
        unit.extend(biased.then(|| Some(Operand::Integer(bias_scales(&x, &scales), Some(own.clone())))));
        let twice = |v: usize| [v as i64; 2];
        let attributes = [
            int("group", groups as i64),
            ints("strides", twice(stride)),
            ints("dilations", twice(dilation)),
            ints("pads", [pad as i64; 4]),
        ];
        let found = run("Conv", &attributes, unit, y, &[&a, &b, &own][..if biased { 3 } else { 2 }]);
        let (a, b) = (values_of(&a).unwrap(), values_of(&b).unwrap());
        let extent = |size: usize, taps: usize| (size + 2 * pad - (taps - 1) * dilation - 1) / stride + 1;
        let (tall, wide) = (extent(height, rows), extent(width, columns));
        prop_assert_eq!(found.len(), batch * channels * tall * wide);
        for (at, &found) in found.iter().enumerate() {
            let (c, r, q) = (at / (tall * wide), at / wide % tall, at % wide);
            let (sample, c) = (c / channels, c % channels);
            let mut sum = if biased { i64::from(bias[c]) } else { 0 };
            for tap in 0..input * rows * columns {
                let (i, tr, tq) = (tap / (rows * columns), tap / columns % rows, tap % columns);
                let (r, q) = (r * stride + tr * dilation, q * stride + tq * dilation);
                if (pad..pad + height).contains(&r) && (pad..pad + width).contains(&q) {
                    let plane = (sample * groups + c / output) * input + i;
                    let a = a[(plane * height + r - pad) * width + q - pad] - x.zero_point;
                    sum += i64::from(a) * i64::from(b[c * input * rows * columns + tap] - w.zero_point);
                }
            }
            prop_assert_eq!(found, rounded(sum, factor(&x, &scales, &y, c), &y));
        }
    }

    #[test]
    fn tables_and_moves(x in params(), other in params(), y in params(), (m, n) in (1usize..5, 1usize..9), seed: u32) {
        let (other, y) = (alike(x, other), alike(x, y));
        let (a, b) = (tensor(x.dtype, &[m, n], seed), tensor(x.dtype, &[m, n], seed ^ 5));
        let real = |p: QuantParams, q: &i32| p.dequantize(*q);
        let (left, right) = (values_of(&a).unwrap(), values_of(&b).unwrap());
        let found = run("Sigmoid", &[], vec![whole(x, None)], y, &[&a]);
        let expected = left.iter().map(|q| y.quantize(crate::kernels::math::sigmoid(real(x, q))));
        prop_assert!(found.iter().copied().eq(expected));
        let found = run("Concat", &[int("axis", 0)], vec![whole(x, None), whole(other, None)], y, &[&a, &b]);
        let expected = left.iter().map(|q| y.quantize(real(x, q)));
        let expected = expected.chain(right.iter().map(|q| y.quantize(real(other, q))));
        prop_assert!(found.iter().copied().eq(expected));
        let mask: Vec<bool> = left.iter().map(|q| q % 3 == 0).collect();
        let condition = Array::new(&[m, n], mask.clone()).unwrap();
        let unit = vec![Some(Operand::Plain(None)), whole(x, None), whole(other, None)];
        let found = run("Where", &[], unit, y, &[&condition, &a, &b]);
        let choice = |(i, &first): (usize, &bool)| y.quantize(if first { real(x, &left[i]) } else { real(other, &right[i]) });
        prop_assert!(found.iter().copied().eq(mask.iter().enumerate().map(choice)));
    }

    #[test]
    fn means_and_shares(x in params(), y in params(), (channels, height, width) in (1usize..4, 2usize..6, 2usize..6), seed: u32) {
        let y = alike(x, y);
        let a = tensor(x.dtype, &[1, channels, height, width], seed);
        let reals: Vec<f64> = values_of(&a).unwrap().iter().map(|&q| x.dequantize(q).into()).collect();
        // A step of the output that the mean or share lies nearest to; ties may go either way.
        let near = |found: i32, real: f64, y: QuantParams| {
            let (low, high) = if y.dtype == DType::I8 { (-128.0, 127.0) } else { (0.0, 255.0) };
            let exact = (real / f64::from(y.scale) + f64::from(y.zero_point)).clamp(low, high);
            (f64::from(found) - exact).abs() <= 0.5 + 1e-3
        };
        let plane = height * width;
        let found = run("GlobalAveragePool", &[], vec![whole(x, None)], y, &[&a]);
        for (found, plane) in found.iter().zip(reals.chunks(plane)) {
            prop_assert!(near(*found, plane.iter().sum::<f64>() / plane.len() as f64, y));
        }
        let found = run("AveragePool", &[ints("kernel_shape", [2, 2])], vec![whole(x, None)], y, &[&a]);
        for (at, found) in found.iter().enumerate() {
            let (c, r, q) = (at / ((height - 1) * (width - 1)), at / (width - 1) % (height - 1), at % (width - 1));
            let one = |r: usize, q: usize| reals[(c * height + r) * width + q];
            let mean = (one(r, q) + one(r, q + 1) + one(r + 1, q) + one(r + 1, q + 1)) / 4.0;
            prop_assert!(near(*found, mean, y));
        }
        // Shares end at the output's highest integer, in steps of 1/256.
        let zero_point = if x.dtype == DType::I8 { -128 } else { 0 };
        let y = QuantParams { scale: 1.0 / 256.0, zero_point, dtype: x.dtype };
        let found = run("Softmax", &[int("axis", -1)], vec![whole(x, None)], y, &[&a]);
        for (found, row) in found.chunks(width).zip(reals.chunks(width)) {
            let total: f64 = row.iter().map(|&v| libm::exp(v - row[0])).sum();
            for (found, v) in found.iter().zip(row) {
                prop_assert!(near(*found, libm::exp(v - row[0]) / total, y));
            }
        }
    }
}

#[test]
fn real_rows_are_rounded_for_a_product_with_bytes() {
    let op = (find("", "MatMul", 13).unwrap().parse)(&mut Attrs::new(&[], 13, 2, 1)).unwrap();
    let x: Vec<f32> = (0..2 * 70).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    for (dtype, zero_point) in [(DType::U8, 120), (DType::I8, -5)] {
        let w = tensor(dtype, &[70, 5], 3);
        let p = QuantParams { scale: 0.02, zero_point, dtype };
        let operands = vec![Some(Operand::Plain(None)), whole(p, Some(&w))];
        let kernel = op.integer(&Unit { inputs: operands.clone(), outputs: vec![None] }).unwrap();
        let y = kernel.run(&[Some(Array::new(&[1, 2, 70], x.clone()).unwrap()), None]).unwrap().remove(0);
        assert_eq!(y.shape(), [1, 2, 5]);
        let weights = values_of(&w).unwrap();
        for (at, &y) in y.slice::<f32>().unwrap().iter().enumerate() {
            let row = &x[at / 5 * 70..][..70];
            let weight = |k: usize| (weights[k * 5 + at % 5] - zero_point) as f32 * p.scale;
            let real: f32 = row.iter().enumerate().map(|(k, x)| x * weight(k)).sum();
            let allowed: f32 = (0..70).map(|k| weight(k).abs() * 0.51 / 127.0).sum();
            assert!((y - real).abs() <= allowed + 1e-3, "{y} is not {real}");
        }
        // What is quantized after it, and a matrix that is not known, are left to others.
        assert!(op.integer(&Unit { inputs: operands, outputs: vec![Some(p)] }).is_none());
        assert!(
            op.integer(&Unit {
                inputs: vec![Some(Operand::Plain(None)), whole(p, None)],
                outputs: vec![None]
            })
            .is_none()
        );
    }
}
