//! Valid graphs of operators that quantization rewrites: the passes change nothing that a run can tell, and what is
//! quantized is valid, runs, and stays finite.

use std::fmt::Write;

use arbitrary::{Result, Unstructured};
use qonnx::calibrate::observer::Observers;
use qonnx::calibrate::threshold::Calibrator;
use qonnx::interpret::Program;
use qonnx::ir::{Array, Model, ValueId};
use qonnx::onnx::{External, emit, import, text};
use qonnx::passes;
use qonnx::quantize::candidate::{Candidates, Filter, watched};
use qonnx::quantize::weights::Memo;
use qonnx::quantize::{Plan, Target, insert, placement, plan};

const CHANNELS: [usize; 3] = [2, 3, 4];

/// A value of the graph: its name, channels and extent.
type Known = (String, usize, usize);

/// A graph as text, of shape [1, c, n, n] throughout.
fn graph(u: &mut Unstructured) -> Result<String> {
    let mut known: Vec<Known> = vec![("x".into(), 3, 6)];
    let (mut body, mut weights) = (String::new(), String::new());
    let count = u.int_in_range(1..=10)?;
    for i in 0..count {
        let (x, c, n) = known[u.choose_index(known.len())?].clone();
        let y = format!("v{i}");
        let scale = *u.choose(&["0.1", "1.0", "8.0"])?;
        match u.int_in_range(0..=15u8)? {
            0..=3 => {
                let m = *u.choose(&CHANNELS)?;
                let k = *u.choose(&[1usize, 3])?;
                let bias = u.arbitrary::<bool>()?;
                let _ = write!(weights, "float[{m},{c},{k},{k}] w{i} = random({i}, -{scale}, {scale}), ");
                if bias {
                    let _ = write!(weights, "float[{m}] b{i} = random({}, -1.0, 1.0), ", i + 50);
                }
                let b = if bias { format!(", b{i}") } else { String::new() };
                let p = k / 2;
                let _ = writeln!(body, "{y} = Conv <pads = [{p}, {p}, {p}, {p}]> ({x}, w{i}{b})");
                known.push((y, m, n));
            }
            4 => {
                let _ = write!(weights, "float[{c},1,3,3] w{i} = random({i}, -1.0, {scale}), ");
                let _ = writeln!(body, "{y} = Conv <group = {c}, pads = [1, 1, 1, 1]> ({x}, w{i})");
                known.push((y, c, n));
            }
            5 => {
                for (name, low, high) in
                    [("g", -1.5, 1.5), ("be", -1.0, 1.0), ("m", -1.0, 1.0), ("va", 0.3, 2.0)]
                {
                    let _ =
                        write!(weights, "float[{c}] {name}{i} = random({}, {low:.1}, {high:.1}), ", i + 100);
                }
                let _ = writeln!(body, "{y} = BatchNormalization ({x}, g{i}, be{i}, m{i}, va{i})");
                known.push((y, c, n));
            }
            6 => {
                let op = *u.choose(&[
                    "Relu",
                    "Sigmoid",
                    "HardSigmoid",
                    "Tanh",
                    "Neg",
                    "Abs",
                    "Identity",
                    "HardSwish",
                ])?;
                let _ = writeln!(body, "{y} = {op} ({x})");
                known.push((y, c, n));
            }
            7 => {
                let low = *u.choose(&["-1.0", "0.0", "0.5"])?;
                let _ = write!(weights, "float lo{i} = {{{low}}}, float hi{i} = {{6.0}}, ");
                let _ = writeln!(body, "{y} = Clip ({x}, lo{i}, hi{i})");
                known.push((y, c, n));
            }
            8 | 9 => {
                let op = *u.choose(&["Add", "Mul", "Sub", "Max"])?;
                let other = known.iter().filter(|k| k.1 == c && k.2 == n).nth(u.choose_index(known.len())?);
                let other = other.map_or_else(|| x.clone(), |k| k.0.clone());
                let _ = writeln!(body, "{y} = {op} ({x}, {other})");
                known.push((y, c, n));
            }
            10 => {
                let op = *u.choose(&["Mul", "Add", "Div", "Sub"])?;
                let _ = write!(weights, "float[{c},1,1] k{i} = random({}, 0.2, 2.0), ", i + 200);
                let _ = writeln!(body, "{y} = {op} ({x}, k{i})");
                known.push((y, c, n));
            }
            11 => {
                let others: Vec<Known> = known.iter().filter(|k| k.2 == n).cloned().collect();
                let (other, d, _) = others[u.choose_index(others.len())?].clone();
                if c + d <= 8 {
                    let _ = writeln!(body, "{y} = Concat <axis = 1> ({x}, {other})");
                    known.push((y, c + d, n));
                }
            }
            12 if n >= 4 => {
                let op = *u.choose(&["MaxPool", "AveragePool"])?;
                let _ = writeln!(body, "{y} = {op} <kernel_shape = [2, 2], strides = [2, 2]> ({x})");
                known.push((y, c, n / 2));
            }
            13 => {
                let _ = writeln!(
                    body,
                    "p{i} = GlobalAveragePool ({x})\nq{i} = Sigmoid (p{i})\n{y} = Mul ({x}, q{i})"
                );
                known.push((y, c, n));
            }
            14 => {
                let _ = write!(weights, "int64[8] pad{i} = {{0, 0, 1, 1, 0, 0, 1, 1}}, ");
                if n <= 8 {
                    let _ = writeln!(body, "{y} = Pad ({x}, pad{i})");
                    known.push((y, c, n + 2));
                }
            }
            _ => {
                let _ = writeln!(body, "{y} = LeakyRelu <alpha = 0.1> ({x})");
                known.push((y, c, n));
            }
        }
    }
    let mut outputs: Vec<&Known> = vec![&known[known.len() - 1]];
    if u.ratio(1, 3)? {
        let other = &known[u.choose_index(known.len())?];
        if other.0 != outputs[0].0 && other.0 != "x" {
            outputs.push(other);
        }
    }
    if outputs[0].0 == "x" {
        return Err(arbitrary::Error::IncorrectFormat);
    }
    let outputs: Vec<String> =
        outputs.iter().map(|(name, c, n)| format!("float[1,{c},{n},{n}] {name}")).collect();
    let weights = weights.trim_end_matches(", ");
    let weights = if weights.is_empty() { String::new() } else { format!("< {weights} >") };
    Ok(format!(
        "<ir_version: 8, opset_import: [\"\" : 17]>\ng (float[1,3,6,6] x) => ({}) {weights} {{\n{body}}}",
        outputs.join(", ")
    ))
}

fn samples() -> Vec<Array> {
    let noise = |seed: usize| {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        Array::new(&[1, 3, 6, 6], (0..108).map(value).collect::<Vec<_>>()).expect("an array")
    };
    (0..4).map(noise).collect()
}

fn run(model: &Model, x: &Array) -> Vec<Vec<f32>> {
    let program = Program::new(&model.graph).expect("a program");
    let outputs = program.run(std::slice::from_ref(x)).expect("a run");
    outputs.iter().map(|o| o.slice::<f32>().expect("floats").to_vec()).collect()
}

/// The greatest difference over the greatest element.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    let size = a.iter().flatten().fold(1e-3f32, |m, v| m.max(v.abs()));
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size
}

/// One input.
pub fn check(bytes: &[u8]) {
    let Ok(source) = graph(&mut Unstructured::new(bytes)) else { return };
    let proto = text::parse(&source).unwrap_or_else(|e| panic!("{e}: {source}"));
    let mut model = import(proto, &|_| Err("none".into())).expect("a model");
    assert!(qonnx::ir::verify(&model).is_empty(), "{source}");
    let samples = samples();
    let before: Vec<_> = samples.iter().map(|x| run(&model, x)).collect();
    if before.iter().flatten().flatten().any(|v| v.is_nan() || v.abs() >= 1e6) {
        return;
    }
    passes::upgrade(&mut model, 17).expect("an upgrade");
    passes::run(&mut model, None).expect("passes");
    passes::check(&model, "the passes").expect("a valid model");
    for (x, wanted) in samples.iter().zip(&before) {
        let far = distance(wanted, &run(&model, x));
        assert!(far < 1e-4, "the passes are off by {far}: {source}");
    }
    let target = Target::named("ort-cpu").expect("a target");
    let graph = &mut model.graph;
    let program = Program::new(graph).expect("a program");
    let mut seen = Observers::watching(watched(graph));
    for x in &samples {
        let mut watch = |id: ValueId, array: &Array| {
            if let Ok(values) = array.slice::<f32>() {
                seen.observe(id, values, 0);
            }
        };
        program.run_as_far_as_possible(std::slice::from_ref(x), &mut watch).expect("a run");
    }
    let choices = plan::choices(&seen, Calibrator::MinMax);
    let candidates = Candidates::of(graph, &target, &Filter::default(), &seen);
    let noise = plan::noise(&seen, &choices);
    let placed = placement::place(graph, &target, target.noise_weight, candidates, &seen, &noise);
    let plan = Plan::solve(graph, placed, &seen, &choices, Calibrator::MinMax, (&target, &Memo::default()))
        .expect("a plan");
    insert::insert(graph, &plan);
    passes::finish(&mut model, "quantization").expect("a valid model");
    let written = emit(&model, External::Keep).expect("a message");
    let again = import(written, &|_| Err("none".into())).expect("what was written is read");
    for x in &samples {
        assert!(run(&again, x).iter().flatten().all(|v| v.is_finite()), "not finite: {source}");
    }
}
