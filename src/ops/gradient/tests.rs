//! Every gradient against central differences in double precision. `cargo test --lib gradient -- --nocapture` prints
//! the greatest error of each operator.

use crate::ir::attribute::{float, floats, int, ints, string};
use crate::ir::{Array, Attribute, Run};
use crate::ops::{Attrs, ONNX, find};

/// Numbers between -1 and 1 that do not repeat.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn array(&mut self, shape: &[usize]) -> Array {
        let count = shape.iter().product();
        Array::new(shape, (0..count).map(|_| self.next()).collect::<Vec<f64>>()).unwrap()
    }
}

/// An operator on some inputs, of which real ones are differentiated.
struct Case {
    name: &'static str,
    version: i64,
    attributes: Vec<Attribute>,
    inputs: Vec<Option<Array>>,
    outputs: usize,
    /// Inputs that have no gradient although they are real.
    fixed: &'static [usize],
}

fn case(name: &'static str, attributes: &[Attribute], shapes: &[&[usize]]) -> Case {
    let mut noise = Noise(name.len() as u64 * 7919 + shapes.len() as u64);
    let inputs = shapes.iter().map(|s| Some(noise.array(s))).collect();
    Case { name, version: 17, attributes: attributes.to_vec(), inputs, outputs: 1, fixed: &[] }
}

impl Case {
    fn version(mut self, version: i64) -> Self {
        self.version = version;
        self
    }

    fn outputs(mut self, outputs: usize) -> Self {
        self.outputs = outputs;
        self
    }

    fn fixed(mut self, fixed: &'static [usize]) -> Self {
        self.fixed = fixed;
        self
    }

    /// One more input.
    fn and(mut self, input: impl Into<Option<Array>>) -> Self {
        self.inputs.push(input.into());
        self
    }

    /// Every real input mapped.
    fn map(mut self, f: impl Fn(f64) -> f64) -> Self {
        for input in self.inputs.iter_mut().flatten() {
            if let Array::F64(a) = &*input {
                *input = a.map(|&v| f(v)).into();
            }
        }
        self
    }

    /// The greatest difference between the gradient and central differences, over the greatest gradient.
    fn error(&self) -> f64 {
        let def = find(ONNX, self.name, self.version).expect("a known operator");
        let mut attrs = Attrs::new(&self.attributes, self.version, self.inputs.len(), self.outputs);
        let op = (def.parse)(&mut attrs).unwrap();
        let mut noise = Noise(99);
        let outputs: Vec<_> = op.float(&self.inputs).unwrap().into_iter().map(Some).collect();
        let real = |a: &Option<Array>| matches!(a, Some(Array::F64(_)));
        let upstream: Vec<Option<Array>> = outputs
            .iter()
            .map(|y| if real(y) { y.as_ref().map(|y| noise.array(y.shape())) } else { None })
            .collect();
        let wanted: Vec<bool> =
            self.inputs.iter().enumerate().map(|(i, x)| real(x) && !self.fixed.contains(&i)).collect();
        let gradient = op.gradient().unwrap_or_else(|| panic!("{} has no gradient", self.name));
        let run = Run { inputs: &self.inputs, outputs: &outputs, upstream: &upstream, wanted: &wanted };
        let found = gradient.backward(&run).unwrap();
        let loss = |inputs: &[Option<Array>]| -> f64 {
            let outputs = op.float(inputs).unwrap();
            let pairs = outputs.iter().zip(&upstream).filter_map(|(y, u)| Some((y, u.as_ref()?)));
            let dot = |(y, u): (&Array, &Array)| -> f64 {
                y.slice::<f64>().unwrap().iter().zip(u.slice::<f64>().unwrap()).map(|(y, u)| y * u).sum()
            };
            pairs.map(dot).sum()
        };
        let (mut worst, mut size) = (0f64, 1e-3f64);
        for slot in (0..self.inputs.len()).filter(|&s| wanted[s]) {
            let x = self.inputs[slot].clone().unwrap();
            let dx = found[slot].clone().unwrap_or_else(|| panic!("{}: no gradient {slot}", self.name));
            assert_eq!(dx.shape(), x.shape(), "{} input {slot}", self.name);
            for (i, &analytic) in dx.slice::<f64>().unwrap().iter().enumerate() {
                let moved = |by: f64| {
                    let mut values = x.slice::<f64>().unwrap().to_vec();
                    values[i] += by;
                    let mut inputs = self.inputs.clone();
                    inputs[slot] = Some(Array::new(x.shape(), values).unwrap());
                    loss(&inputs)
                };
                // Richardson: the error falls with the fourth power of the step.
                let h = 1e-4;
                let coarse = (moved(h) - moved(-h)) / (2.0 * h);
                let fine = (moved(h / 2.0) - moved(-h / 2.0)) / h;
                let numeric = (4.0 * fine - coarse) / 3.0;
                worst = worst.max((analytic - numeric).abs());
                size = size.max(analytic.abs());
            }
        }
        worst / size
    }
}

fn i64s(values: &[i64]) -> Array {
    Array::vector(values.to_vec())
}

fn check(cases: Vec<Case>) {
    let mut errors: std::collections::BTreeMap<&str, (usize, f64)> = Default::default();
    for case in &cases {
        let entry = errors.entry(case.name).or_default();
        *entry = (entry.0 + 1, entry.1.max(case.error()));
    }
    for (name, (count, error)) in &errors {
        println!("{name:24} {count:2} cases  {error:.1e}");
    }
    let bad: Vec<_> = errors.iter().filter(|(_, (_, error))| *error >= 1e-7 || error.is_nan()).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn convolutions() {
    let pads = ints("pads", [1, 0, 2, 1]);
    let strides = ints("strides", [2, 1]);
    let dilations = ints("dilations", [1, 2]);
    let image: &[usize] = &[2, 4, 7, 6];
    check(vec![
        case("Conv", &[], &[image, &[3, 4, 1, 1], &[3]]),
        case("Conv", std::slice::from_ref(&strides), &[image, &[3, 4, 1, 1]]),
        case("Conv", std::slice::from_ref(&pads), &[image, &[3, 4, 3, 2], &[3]]),
        case("Conv", &[pads.clone(), strides.clone(), dilations.clone()], &[image, &[3, 4, 3, 2], &[3]]),
        case("Conv", &[int("group", 2), pads.clone(), strides.clone()], &[image, &[6, 2, 3, 3], &[6]]),
        case("Conv", &[int("group", 4), pads.clone()], &[image, &[4, 1, 3, 3], &[4]]),
        case(
            "Conv",
            &[int("group", 4), pads.clone(), ints("strides", [2, 2])],
            &[image, &[8, 1, 3, 3], &[8]],
        ),
        case("Conv", &[int("group", 4), strides.clone(), dilations.clone()], &[image, &[4, 1, 2, 3]]),
        case("Conv", &[string("auto_pad", "SAME_UPPER"), strides.clone()], &[image, &[2, 4, 3, 3]]),
        case("Conv", &[ints("strides", [3])], &[&[2, 3, 11], &[2, 3, 2], &[2]]),
        case("Conv", &[], &[&[1, 1, 5, 5], &[2, 1, 3, 3], &[2]]),
        case("Conv", &[int("group", 2)], &[&[1, 2, 3, 4, 3], &[2, 1, 2, 2, 2], &[2]]),
        case("ConvTranspose", &[], &[&[2, 4, 3, 2], &[4, 3, 2, 3], &[3]]),
        case("ConvTranspose", &[strides, pads, dilations], &[&[2, 4, 4, 3], &[4, 3, 3, 3], &[3]]),
        case(
            "ConvTranspose",
            &[int("group", 2), ints("strides", [2, 2])],
            &[&[1, 4, 3, 2], &[4, 1, 2, 2], &[2]],
        ),
        case(
            "ConvTranspose",
            &[ints("strides", [2]), ints("output_padding", [1])],
            &[&[1, 2, 4], &[2, 3, 3]],
        ),
    ]);
}

#[test]
fn products() {
    check(vec![
        case("Gemm", &[], &[&[3, 4], &[4, 5], &[5]]),
        case("Gemm", &[int("transA", 1), float("alpha", 0.5)], &[&[4, 3], &[4, 5]]),
        case("Gemm", &[int("transB", 1), float("beta", 2.0)], &[&[3, 4], &[5, 4], &[3, 1]]),
        case("Gemm", &[int("transA", 1), int("transB", 1)], &[&[4, 3], &[5, 4], &[]]),
        case("MatMul", &[], &[&[3, 4], &[4, 5]]),
        case("MatMul", &[], &[&[2, 3, 4], &[4, 5]]),
        case("MatMul", &[], &[&[2, 1, 3, 4], &[3, 4, 5]]),
        case("MatMul", &[], &[&[3, 4], &[2, 4, 5]]),
        case("MatMul", &[], &[&[4], &[4]]),
        case("MatMul", &[], &[&[4], &[2, 4, 5]]),
        case("MatMul", &[], &[&[2, 3, 4], &[4]]),
        case("MatMul", &[], &[&[1, 3, 4], &[1, 4, 2]]),
        case("Einsum", &[string("equation", "bij,bjk->bik")], &[&[2, 3, 4], &[2, 4, 2]]),
        case("Einsum", &[string("equation", "...ii,i->...")], &[&[2, 3, 3], &[3]]),
    ]);
}

#[test]
fn arithmetic() {
    let mut cases = Vec::new();
    for name in ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"] {
        let away = |v: f64| if v < 0.0 { v - 0.3 } else { v + 0.3 };
        cases.push(case(name, &[], &[&[2, 3, 4], &[2, 3, 4]]).map(away));
        cases.push(case(name, &[], &[&[2, 3, 4], &[3, 1]]).map(away));
        cases.push(case(name, &[], &[&[4], &[2, 3, 1]]).map(away));
        cases.push(case(name, &[], &[&[2, 3], &[]]).map(away));
    }
    cases.push(case("Add", &[int("broadcast", 1), int("axis", 1)], &[&[2, 3, 4], &[3]]).version(6));
    cases.push(case("Sum", &[], &[&[3], &[2, 3], &[1]]));
    cases.push(case("Pow", &[], &[&[2, 3], &[3]]).map(|v| v.abs() + 0.2));
    cases.push(case("Pow", &[], &[&[2, 3]]).and(Array::scalar(2.0f64)).fixed(&[1]));
    cases.push(case("Pow", &[], &[&[2, 3]]).map(|v| v.abs() + 0.2).and(Array::scalar(0.5f64)));
    cases.push(case("Where", &[], &[]).and(Array::vector(vec![true, false, true])));
    let mut noise = Noise(3);
    let choose = cases.pop().unwrap();
    cases.push(choose.and(noise.array(&[2, 3])).and(noise.array(&[1])));
    check(cases);
}

#[test]
fn activations() {
    let mut cases = Vec::new();
    let plain =
        ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Selu", "Celu", "Softplus", "Softsign"];
    for name in plain.into_iter().chain(["Mish", "ThresholdedRelu"]) {
        cases.push(case(name, &[], &[&[5, 8]]).version(20).map(|v| 4.0 * v));
    }
    cases.push(case("HardSigmoid", &[float("alpha", 0.3)], &[&[5, 8]]).map(|v| 4.0 * v));
    cases.push(case("Swish", &[float("alpha", 1.5)], &[&[5, 8]]).version(24).map(|v| 4.0 * v));
    cases.push(case("Shrink", &[float("bias", 0.2)], &[&[5, 8]]).map(|v| 4.0 * v));
    for kind in ["none", "tanh"] {
        cases.push(case("Gelu", &[string("approximate", kind)], &[&[5, 8]]).version(20).map(|v| 3.0 * v));
    }
    cases.push(
        case("Clip", &[], &[&[5, 8]]).and(Array::scalar(-0.4f64)).and(Array::scalar(0.6f64)).fixed(&[1, 2]),
    );
    cases.push(case("Clip", &[], &[&[5, 8]]).and(None).and(Array::scalar(0.5f64)).fixed(&[2]));
    cases.push(case("PRelu", &[], &[&[2, 3, 4], &[3, 1]]));
    cases.push(case("PRelu", &[], &[&[2, 3, 4], &[3]]).version(6));
    check(cases);
}

#[test]
fn functions_of_one_element() {
    let mut cases = Vec::new();
    for name in [
        "Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh",
        "Atanh",
    ] {
        cases.push(case(name, &[], &[&[30]]).map(|v| 0.9 * v));
    }
    for name in ["Log", "Sqrt", "Reciprocal"] {
        cases.push(case(name, &[], &[&[30]]).map(|v| v.abs() + 0.3));
    }
    cases.push(case("Acosh", &[], &[&[30]]).map(|v| v.abs() + 1.3));
    for name in ["Softmax", "LogSoftmax"] {
        cases.push(case(name, &[], &[&[2, 3, 4]]).map(|v| 3.0 * v));
        cases.push(case(name, &[int("axis", 1)], &[&[2, 3, 4]]).map(|v| 3.0 * v));
        cases.push(case(name, &[int("axis", 1)], &[&[2, 3, 4]]).version(11).map(|v| 3.0 * v));
    }
    check(cases);
    assert!(["Sign", "Floor", "Ceil", "Round"].iter().all(|name| {
        let op = (find(ONNX, name, 17).unwrap().parse)(&mut Attrs::new(&[], 17, 1, 1)).unwrap();
        op.gradient().is_none()
    }));
}

#[test]
fn pools_and_reductions() {
    let window = [ints("kernel_shape", [3, 2]), ints("strides", [2, 1]), ints("pads", [1, 0, 0, 1])];
    let with = |more: &[Attribute]| [&window[..], more].concat();
    let image: &[usize] = &[2, 3, 7, 6];
    let mut cases = vec![
        case("MaxPool", &window, &[image]),
        case("MaxPool", &window, &[image]).outputs(2),
        case("MaxPool", &with(&[int("ceil_mode", 1)]), &[image]),
        case("MaxPool", &with(&[ints("dilations", [1, 2])]), &[image]),
        case("AveragePool", &window, &[image]),
        case("AveragePool", &with(&[int("count_include_pad", 1)]), &[image]),
        case("AveragePool", &with(&[int("ceil_mode", 1)]), &[image]).version(19),
        case("AveragePool", &[ints("kernel_shape", [2])], &[&[1, 2, 5]]),
        case("GlobalAveragePool", &[], &[image]),
        case("GlobalMaxPool", &[], &[image]),
        case("GlobalLpPool", &[int("p", 3)], &[image]),
    ];
    for name in ["ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"] {
        let axes = |version: i64, list: &[i64]| {
            let case = case(name, &[int("keepdims", 0)], &[&[2, 3, 4]]).version(version);
            case.and(i64s(list))
        };
        cases.push(axes(18, &[1]));
        cases.push(axes(18, &[0, -1]));
        cases.push(case(name, &[int("keepdims", 1)], &[&[2, 3, 4]]).version(18));
        cases.push(case(name, &[], &[&[2, 3, 4]]).version(11));
    }
    cases.push(case("ReduceLogSum", &[], &[&[2, 3, 4]]).map(|v| v.abs() + 0.2));
    check(cases);
}

#[test]
fn normalizations() {
    let image: &[usize] = &[2, 4, 3, 5];
    let positive = |c: Case| c.map(|v| v.abs() + 0.2);
    let layer = |axis: i64, shapes: &[&[usize]]| case("LayerNormalization", &[int("axis", axis)], shapes);
    check(vec![
        positive(case("BatchNormalization", &[], &[image, &[4], &[4], &[4], &[4]]).fixed(&[3, 4])),
        case("InstanceNormalization", &[], &[image, &[4], &[4]]),
        case("GroupNormalization", &[int("num_groups", 2)], &[image, &[4], &[4]]).version(21),
        case("GroupNormalization", &[int("num_groups", 2)], &[image, &[2], &[2]]).version(18),
        layer(-1, &[image, &[5], &[5]]),
        layer(1, &[image, &[4, 3, 5], &[4, 3, 5]]),
        layer(2, &[image, &[3, 5]]),
        case("RMSNormalization", &[int("axis", -1)], &[image, &[5]]).version(23),
    ]);
}

#[test]
fn movements() {
    let cube: &[usize] = &[2, 3, 4];
    let pads = |mode: &str| {
        case("Pad", &[string("mode", mode)], &[cube]).version(19).and(i64s(&[0, 1, 2, 1, 0, -1]))
    };
    let slice = |steps: &[i64]| {
        let case = case("Slice", &[], &[cube]).and(i64s(&[3, 0])).and(i64s(&[-9, 2]));
        case.and(i64s(&[2, 1])).and(i64s(steps))
    };
    let resize = |attributes: &[Attribute], sizes: &[i64]| {
        case("Resize", attributes, &[&[1, 2, 3, 4]]).and(None).and(None).and(i64s(sizes))
    };
    let linear = string("mode", "linear");
    let corners = string("coordinate_transformation_mode", "align_corners");
    check(vec![
        case("Reshape", &[], &[cube]).and(i64s(&[-1, 2])),
        case("Flatten", &[], &[cube]),
        case("Squeeze", &[], &[&[2, 1, 3]]).and(i64s(&[1])),
        case("Unsqueeze", &[], &[cube]).and(i64s(&[0, 2])),
        case("Transpose", &[ints("perm", [2, 0, 1])], &[cube]),
        case("Expand", &[], &[&[3, 1]]).and(i64s(&[2, 3, 4])),
        case("Identity", &[], &[cube]),
        case("Dropout", &[], &[cube]),
        case("Cast", &[int("to", 11)], &[cube]),
        case("Concat", &[int("axis", 1)], &[cube, &[2, 1, 4], &[2, 2, 4]]),
        case("Split", &[int("axis", -1)], &[cube]).and(i64s(&[1, 3])).outputs(2),
        case("Tile", &[], &[cube]).and(i64s(&[1, 2, 3])),
        case("DepthToSpace", &[int("blocksize", 2)], &[&[1, 8, 2, 3]]),
        case("DepthToSpace", &[int("blocksize", 2), string("mode", "CRD")], &[&[1, 8, 2, 3]]),
        case("SpaceToDepth", &[int("blocksize", 2)], &[&[1, 2, 4, 6]]),
        case("Gather", &[int("axis", 1)], &[cube]).and(Array::new(&[2, 2], vec![0i64, 2, -1, 0]).unwrap()),
        case("GatherElements", &[int("axis", 1)], &[&[2, 3]])
            .and(Array::new(&[2, 2], vec![0i64, 0, 2, 1]).unwrap()),
        case("GatherND", &[], &[cube]).and(Array::new(&[2, 2], vec![0i64, 2, 1, 1]).unwrap()),
        slice(&[-1, 1]),
        slice(&[-2, 1]),
        pads("constant"),
        pads("reflect"),
        pads("edge"),
        pads("wrap"),
        case("Pad", &[ints("pads", [1, 0, 0, 0, 1, 2]), float("value", 0.5)], &[cube]).version(10),
        resize(&[], &[1, 2, 6, 5]),
        resize(std::slice::from_ref(&linear), &[1, 2, 6, 5]),
        resize(std::slice::from_ref(&linear), &[1, 2, 2, 3]),
        resize(&[linear, corners], &[1, 2, 7, 9]),
        resize(&[string("mode", "cubic")], &[1, 2, 6, 7]),
    ]);
}

#[test]
fn recurrent_layers() {
    let (time, batch, input, n) = (4, 2, 3, 2);
    let layer = |name, gates: usize, ways: usize, attributes: &[Attribute], biased: bool| {
        let shapes = [vec![time, batch, input], vec![ways, gates * n, input], vec![ways, gates * n, n]];
        let mut c = case(name, attributes, &shapes.each_ref().map(Vec::as_slice)).outputs(3);
        let mut noise = Noise(gates as u64 + ways as u64);
        if biased {
            c.inputs.push(Some(noise.array(&[ways, 2 * gates * n])));
            c.inputs.push(Some(Array::vector(vec![4i32, 3])));
            c.inputs.push(Some(noise.array(&[ways, batch, n])));
            if name == "LSTM" {
                c.inputs.push(Some(noise.array(&[ways, batch, n])));
                c.inputs.push(Some(noise.array(&[ways, 3 * n])));
            }
        }
        c
    };
    let way = |d: &str| string("direction", d);
    let (before, coupled) = (int("linear_before_reset", 1), int("input_forget", 1));
    let others = attribute_strings(&["HardSigmoid", "Softsign", "Elu"]);
    let mut cases = vec![
        layer("LSTM", 4, 1, &[], false),
        layer("LSTM", 4, 1, &[], true),
        layer("LSTM", 4, 1, &[way("reverse"), coupled], true),
        layer("LSTM", 4, 2, &[way("bidirectional")], true),
        layer("LSTM", 4, 1, &[others, floats("activation_alpha", [0.2, 1.5])], true),
        layer("GRU", 3, 1, &[], false),
        layer("GRU", 3, 1, &[], true),
        layer("GRU", 3, 1, &[before.clone(), way("reverse")], true),
        layer("GRU", 3, 2, &[before, way("bidirectional")], true),
        layer("RNN", 1, 2, &[way("bidirectional")], true),
    ];
    let mut first = layer("GRU", 3, 1, &[int("layout", 1)], false);
    first.inputs[0] = Some(Noise(1).array(&[batch, time, input]));
    cases.push(first);
    check(cases);
}

fn attribute_strings(values: &[&str]) -> Attribute {
    Attribute {
        name: Some("activations".into()),
        strings: values.iter().map(|s| s.to_string().into_bytes().into()).collect(),
        r#type: Some(8),
        ..Attribute::default()
    }
}

/// Rounding has no gradient but the straight-through one: what is differentiated is the pair with the error of rounding
/// held still, `y(x, s) = s·(clip(x/s + z) + e - z)`, in double precision.
#[test]
fn quantization_pairs() {
    let (mut noise, mut worst, mut size, mut count) = (Noise(7), 0f64, 0f64, 0);
    let (low, high) = (0.0, 255.0);
    for (scales, zero) in
        [(vec![0.011f64], 100u8), (vec![0.002, 0.02, 0.007], 0), (vec![0.004, 0.05, 0.009], 128)]
    {
        let x: Vec<f64> = (0..12).map(|_| noise.next()).collect();
        let upstream: Vec<f64> = (0..12).map(|_| noise.next()).collect();
        let single = |v: &[f64]| v.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        let zeros = Array::vector(vec![zero; scales.len()]);
        let (steps, zeros) = match scales.len() {
            1 => (Array::scalar(scales[0] as f32), Array::scalar(zero)),
            _ => (Array::vector(single(&scales)), zeros),
        };
        let run = |name: &str, inputs: &[Option<Array>], upstream: Option<Array>| {
            let axis = [int("axis", 1)];
            let mut attrs = Attrs::new(&axis, 13, 3, 1);
            let op = (find(ONNX, name, 13).unwrap().parse)(&mut attrs).unwrap();
            let output = Some(op.float(inputs).unwrap().remove(0));
            let upstream = [upstream];
            let found = upstream[0].is_some().then(|| {
                let outputs = [output.clone()];
                let wanted = [true, true, false];
                let run = Run { inputs, outputs: &outputs, upstream: &upstream, wanted: &wanted };
                op.gradient().unwrap().backward(&run).unwrap()
            });
            (output, found.unwrap_or_default())
        };
        let before =
            [Some(Array::new(&[4, 3], single(&x)).unwrap()), Some(steps.clone()), Some(zeros.clone())];
        let (q, _) = run("QuantizeLinear", &before, None);
        let between = [q.clone(), Some(steps), Some(zeros)];
        let (_, outer) =
            run("DequantizeLinear", &between, Some(Array::new(&[4, 3], single(&upstream)).unwrap()));
        let (_, inner) = run("QuantizeLinear", &before, outer[0].clone());
        let stored = q.unwrap().to_f32().unwrap();
        let z = f64::from(zero);
        let error: Vec<f64> = stored
            .iter()
            .enumerate()
            .map(|(i, &q)| f64::from(q) - (x[i] / scales[i % scales.len()] + z).clamp(low, high))
            .collect();
        let loss = |x: &[f64], scales: &[f64]| -> f64 {
            let y = |i: usize, s: f64| s * ((x[i] / s + z).clamp(low, high) + error[i] - z);
            (0..12).map(|i| upstream[i] * y(i, scales[i % scales.len()])).sum()
        };
        let mut compare = |found: f64, moved: &dyn Fn(f64) -> f64, h: f64| {
            let coarse = (moved(h) - moved(-h)) / (2.0 * h);
            let fine = (moved(h / 2.0) - moved(-h / 2.0)) / h;
            worst = worst.max((found - (4.0 * fine - coarse) / 3.0).abs());
            size = size.max(found.abs());
        };
        let with = |values: &[f64], i: usize, by: f64| {
            let mut values = values.to_vec();
            values[i] += by;
            values
        };
        for i in 0..12 {
            let found = inner[0].as_ref().unwrap().slice::<f32>().unwrap()[i];
            compare(found.into(), &|by| loss(&with(&x, i, by), &scales), 1e-6);
        }
        for i in 0..scales.len() {
            let part = |g: &[Option<Array>]| f64::from(g[1].as_ref().unwrap().slice::<f32>().unwrap()[i]);
            compare(part(&outer) + part(&inner), &|by| loss(&x, &with(&scales, i, by)), 1e-8);
        }
        count += 1;
    }
    println!("{:24} {count:2} cases  {:.1e}", "Quantize/Dequantize", worst / size);
    assert!(worst / size < 1e-5, "{worst} of {size}");
}
