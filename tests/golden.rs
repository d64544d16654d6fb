//! What the compiler decides, on graphs written as text: passes, refusals, the plan and the resulting graph.
//!
//! Each `tests/golden/*.onnxtxt` is compiled with a few made-up samples; the outcome is compared with the snapshot beside
//! it. After a change on purpose: `INSTA_UPDATE=always cargo test --test golden`, then read the difference.

use std::fmt::Write;
use std::path::Path;

use qonnx::calibrate::observer::Observers;
use qonnx::calibrate::threshold::{Calibrator, Choice, Range};
use qonnx::interpret::Program;
use qonnx::ir::{Array, DType, Dim, Graph, Model, TensorType, ValueId};
use qonnx::onnx::{External, emit, import, text};
use qonnx::quantize::candidate::{Candidates, Filter, watched};
use qonnx::quantize::weights::Memo;
use qonnx::quantize::{Plan, Target, Types, insert, placement, plan};
use qonnx::report::Quantized;
use qonnx::{onnx, passes};

/// Symbolic and unknown dimensions get this extent.
const EXTENT: usize = 2;

fn shape(ty: &TensorType) -> Vec<usize> {
    ty.dims.iter().flatten().map(|d| d.known().unwrap_or(EXTENT)).collect()
}

/// Numbers in [-1, 1] that look random and never change.
fn sample(ty: &TensorType, seed: u64) -> Array {
    let shape = shape(ty);
    let count: usize = shape.iter().product();
    let noise = |i: usize| {
        let mut x =
            (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.wrapping_mul(0xD134_2543_DE82_EF95);
        x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    match ty.dtype {
        DType::F32 => Array::new(&shape, (0..count).map(noise).collect::<Vec<_>>()),
        DType::I64 => Array::new(&shape, (0..count).map(|i| i as i64 % 2).collect::<Vec<_>>()),
        DType::Bool => Array::new(&shape, (0..count).map(|i| i % 2 == 0).collect::<Vec<_>>()),
        other => Array::zeros(other, &shape),
    }
    .unwrap()
}

fn inputs(graph: &Graph, seed: u64) -> Vec<Array> {
    let open =
        graph.inputs.iter().filter(|&&v| graph.constant(v).is_none() && graph.value(v).default.is_none());
    open.map(|&v| sample(graph.ty(v).unwrap_or(&TensorType::new(DType::F32, vec![Dim::Known(1)])), seed))
        .collect()
}

/// Runs as much as can be run; the float outputs.
fn outputs(graph: &Graph, seed: u64) -> Vec<Option<Vec<f32>>> {
    let program = Program::new(graph).unwrap();
    let (found, _) = program.run_unwatched(&inputs(graph, seed)).unwrap();
    found.iter().map(|o| Some(o.as_ref()?.slice::<f32>().ok()?.to_vec())).collect()
}

fn quantize(model: &mut Model, target: &Target) -> String {
    quantize_with(model, target, &|_, _| ())
}

/// The same with a plan that `change` had a hand in.
fn quantize_with(model: &mut Model, target: &Target, change: &dyn Fn(&Graph, &mut Plan)) -> String {
    let graph = &mut model.graph;
    let program = Program::new(graph).unwrap();
    let mut seen = Observers::watching(watched(graph));
    for seed in 0..3 {
        let mut watch = |id: ValueId, array: &Array| {
            if let Ok(values) = array.slice::<f32>() {
                seen.observe(id, values, 0);
            }
        };
        program.run_as_far_as_possible(&inputs(graph, seed), &mut watch).unwrap();
    }
    let choices = plan::choices(&seen, Calibrator::MinMax);
    let candidates = Candidates::of(graph, target, &Filter::default(), &seen);
    let placed = placement::place(
        graph,
        target,
        target.noise_weight,
        candidates,
        &seen,
        &plan::noise(&seen, &choices),
    );
    let mut plan =
        Plan::solve(graph, placed, &seen, &choices, Calibrator::MinMax, (target, &Memo::default())).unwrap();
    change(graph, &mut plan);
    target.storage.apply(graph, &mut plan, (target, &Memo::default())).unwrap();
    let facts = Quantized::plan(graph, &plan, &seen, None);
    insert::insert(graph, &plan);
    let mut text = String::new();
    facts.nodes.iter().for_each(|n| writeln!(text, "integer  {n}").unwrap());
    facts.float.iter().for_each(|(n, why)| writeln!(text, "float    {n}: {why}").unwrap());
    for a in &facts.activations {
        let group = if a.group == a.value { String::new() } else { format!(", shared with {}", a.group) };
        writeln!(text, "value    {} scale {:.5} zero {}{group}", a.value, a.scale, a.zero_point).unwrap();
    }
    text
}

/// The noise of each output is below this share of its signal.
fn assert_close(float: &Graph, quantized: &Graph, share: f32, what: &str) {
    for (a, b) in outputs(float, 1).into_iter().zip(outputs(quantized, 1)) {
        let (Some(a), Some(b)) = (a, b) else { panic!("{what} cannot be run") };
        let signal: f32 = a.iter().map(|x| x * x).sum();
        let noise: f32 = a.iter().zip(&b).map(|(x, y)| (x - y) * (x - y)).sum();
        assert!(noise < share * signal, "{what}: noise {noise}, signal {signal}");
    }
}

#[test]
fn decisions() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "onnxtxt"));
    files.sort();
    assert!(files.len() > 10);
    for path in files {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let proto =
            text::parse(&std::fs::read_to_string(&path).unwrap()).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut model = import(proto, &|_| Err("no external data".into())).unwrap();
        let original = model.graph.clone();
        passes::upgrade(&mut model, 13).unwrap();
        let log = passes::run(&mut model, None).unwrap();
        passes::check(&model, "the passes").unwrap();
        for seed in 10..12 {
            for (a, b) in outputs(&original, seed).into_iter().zip(outputs(&model.graph, seed)) {
                let (Some(a), Some(b)) = (a, b) else { continue };
                assert_eq!(a.len(), b.len(), "{name}");
                for (x, y) in a.iter().zip(&b) {
                    assert!((x - y).abs() <= 1e-4 * (1.0 + x.abs()), "{name}: the passes changed {x} to {y}");
                }
            }
        }
        let mut text = String::new();
        log.applied.iter().for_each(|(p, n)| writeln!(text, "applied  {p}: {n}").unwrap());
        log.refused.iter().for_each(|(p, n, why)| writeln!(text, "refused  {p}: {n}: {why}").unwrap());
        text += &quantize(&mut model, &Target::named("ort-cpu").unwrap());
        passes::check(&model, "quantization").unwrap();
        let result = emit(&model, External::Keep).unwrap();
        text += "\n";
        text += &onnx::text::print(&result, onnx::text::Detail::Digest);
        insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, text);
        });
    }
}

/// Every second node reads and writes 16 bits: what goes from one width to the other is converted in front of its reader.
#[test]
fn activations_of_two_widths() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, beside) in [("inverted_residual", "qnn-htp"), ("attention", "integer-only")] {
        let source = std::fs::read_to_string(root.join(format!("{name}.onnxtxt"))).unwrap();
        let mut model = import(text::parse(&source).unwrap(), &|_| Err("no external data".into())).unwrap();
        passes::upgrade(&mut model, 21).unwrap();
        passes::run(&mut model, None).unwrap();
        let float = model.graph.clone();
        let mut target = Target::named(beside).unwrap();
        Types::default().settle(&mut target).unwrap();
        let facts = quantize_with(&mut model, &target, &|_, plan| {
            let nodes: Vec<_> = plan.placement.integer.keys().copied().step_by(2).collect();
            let (before, count) = (plan.placement.time, nodes.len());
            plan.widen(nodes, 2.0);
            assert!(plan.wide_activations.len() >= count && plan.placement.time > before);
        });
        passes::check(&model, beside).unwrap();
        assert_close(&float, &model.graph, 0.02, name);
        let text = facts
            + "\n"
            + &onnx::text::print(&emit(&model, External::Keep).unwrap(), onnx::text::Detail::Digest);
        insta::with_settings!({ snapshot_path => "golden/targets", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(format!("{beside}-two-widths"), text);
        });
    }
}

#[test]
fn biases_follow_a_range_that_is_chosen_once_more() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let source = std::fs::read_to_string(root.join("conv_relu.onnxtxt")).unwrap();
    for name in ["ort-cpu", "integer-only"] {
        let mut model = import(text::parse(&source).unwrap(), &|_| Err("no external data".into())).unwrap();
        passes::run(&mut model, None).unwrap();
        let mut target = Target::named(name).unwrap();
        Types::default().settle(&mut target).unwrap();
        quantize_with(&mut model, &target, &|graph, plan| {
            let memo = Memo::default();
            target.storage.apply(graph, plan, (&target, &memo)).unwrap();
            let (&node, candidate) = plan.placement.integer.iter().next().unwrap();
            let (input, output) = (candidate.activations[0], *plan.activations.keys().last().unwrap());
            let range = Range { lo: -20.0, hi: 31.0 };
            let choice = Choice { range, method: Calibrator::MinMax, mse: 0.0 };
            let again = plan.with_ranges(graph, &[(input, choice)].into(), (&target, &memo)).unwrap();
            let scale = again.activations[&input].params.scale;
            assert!((scale - 0.2).abs() < 1e-6);
            assert_eq!(again.activations[&input].params.dtype, target.storage.activation);
            assert_eq!(again.activations[&output].params, plan.activations[&output].params);
            let (weight, bias) = (&again.constants[&(node, 1)], &again.constants[&(node, 2)]);
            assert_eq!(bias.scales, weight.scales.iter().map(|w| w * scale).collect::<Vec<f32>>());
        });
    }
}

/// With 16 bits, ranges are a little wider than what was seen, but not beyond a clamp that the quantizer stands for.
#[test]
fn wide_activations_end_where_their_clamp_does() {
    let source = r#"<ir_version: 8, opset_import: ["" : 21]>
        g (float[1,8] x) => (float[1,8] y) <float[8,8] w = random(1, -4, 4), float[8,8] v = random(2, -1, 1),
            float low = {0}, float high = {6}> {
          m = Gemm (x, w)
          c = Clip (m, low, high)
          y = Gemm (c, v)
        }"#;
    let mut model = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap();
    passes::run(&mut model, None).unwrap();
    let float = model.graph.clone();
    let mut target = Target::named("integer-only").unwrap();
    Types { activation: Some(DType::I16), ..Types::default() }.settle(&mut target).unwrap();
    let facts = quantize(&mut model, &target);
    let clamped = facts.lines().find(|line| line.starts_with("value    c ")).unwrap();
    assert!(clamped.contains("scale 0.00009 zero -32768"), "{clamped}");
    assert_close(&float, &model.graph, 1e-3, "Gemm");
}

/// What each target makes of a convolution with Relu, a residual block and attention: the nodes and their types.
#[test]
fn targets() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for target in ["openvino", "tensorrt", "qnn-htp", "integer-only", "fbgemm", "qnnpack"] {
        let mut text = String::new();
        for name in ["conv_relu", "inverted_residual", "attention"] {
            let source = std::fs::read_to_string(root.join(format!("{name}.onnxtxt"))).unwrap();
            let mut model =
                import(text::parse(&source).unwrap(), &|_| Err("no external data".into())).unwrap();
            passes::upgrade(&mut model, 13).unwrap();
            passes::run(&mut model, None).unwrap();
            let float = model.graph.clone();
            let facts = quantize(&mut model, &Target::named(target).unwrap());
            passes::check(&model, target).unwrap();
            assert_close(&float, &model.graph, 0.02, &format!("{target}: {name}"));
            writeln!(text, "## {name}\n{facts}").unwrap();
            text += &onnx::text::print(&emit(&model, External::Keep).unwrap(), onnx::text::Detail::Digest);
        }
        insta::with_settings!({ snapshot_path => "golden/targets", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(target, text);
        });
    }
}
