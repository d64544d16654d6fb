//! Models that were trained with quantization, as real exporters write them (`tests/data/qat_models.py`): what becomes of
//! them computes what they computed, with the scales that they learned.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::path::Path;

use ndarray::{ArrayD, Ix4};
use ndarray_npy::NpzReader;
use qonnx::interpret::Program;
use qonnx::ir::{Array, DType, Graph, Model};
use qonnx::{onnx, passes};

/// The model after the passes, and those that were applied or refused.
fn passed(name: &str) -> (Model, passes::Log) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/qat/{name}.onnx"));
    let mut model = onnx::read(&path).unwrap().model;
    passes::upgrade(&mut model, 17).unwrap();
    let log = passes::run(&mut model, None).unwrap();
    passes::check(&model, "the passes").unwrap();
    (model, log)
}

/// How many nodes of each operator there are.
fn operators(graph: &Graph) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    graph.nodes().for_each(|id| *counts.entry(graph.node(id).op_type.clone()).or_default() += 1);
    counts
}

/// The share of the output's elements that differ by more than this share of its largest, and the greatest difference.
fn difference(name: &str, graph: &Graph, hair: f32) -> (f64, f32) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/qat/{name}.npz"));
    let mut archive = NpzReader::new(File::open(path).unwrap()).unwrap();
    let x: ndarray::Array<f32, Ix4> = archive.by_name("x").unwrap();
    let y: ArrayD<f32> = archive.by_name("y").unwrap();
    let inputs = [Array::from(x.into_dyn())];
    let found = Program::new(graph).unwrap().run(&inputs).unwrap().remove(0);
    assert_eq!(found.shape(), y.shape());
    let pairs = found.slice::<f32>().unwrap().iter().zip(y.iter()).map(|(a, b)| (a - b).abs());
    let size = y.iter().fold(0f32, |m, v| m.max(v.abs()));
    let differing = pairs.clone().filter(|d| *d > hair * size).count();
    (differing as f64 / y.len() as f64, pairs.fold(0.0, f32::max))
}

/// Every weight of a Conv or Gemm is an integer constant behind DequantizeLinear.
fn weights_are_integers(graph: &Graph) {
    for id in graph.nodes().filter(|&id| ["Conv", "Gemm"].contains(&graph.node(id).op_type.as_str())) {
        let (dequantize, _) = graph.producer(graph.input(id, 1).unwrap()).expect("a weight behind a node");
        assert!(graph.node(dequantize).is("DequantizeLinear"));
        assert_eq!(graph.constant_input(dequantize, 0).unwrap().dtype(), DType::I8);
    }
}

#[test]
fn pytorch_leaves_real_weights_behind_quantize_linear() {
    let (model, _) = passed("torch_fake_quantize");
    weights_are_integers(&model.graph);
    let counts = operators(&model.graph);
    // Input, two convolutions, the sum, the mean, the matrix product.
    assert!(counts["QuantizeLinear"] <= 6, "{counts:?}");
    let (share, worst) = difference("torch_fake_quantize", &model.graph, 1e-5);
    assert!(share <= 0.2 && worst < 0.02, "{share} {worst}");
}

#[test]
fn brevitas_clips_integers() {
    let (model, _) = passed("brevitas_qcdq");
    weights_are_integers(&model.graph);
    let clips = model.graph.nodes().filter(|&id| model.graph.node(id).is("Clip"));
    for clip in clips {
        let x = model.graph.input(clip, 0).unwrap();
        assert!(model.graph.ty(x).is_some_and(|t| t.dtype == DType::F32), "a Clip on integers is left");
    }
    // Float sums in another order move an activation over a tie, on which every output depends a little.
    let (share, worst) = difference("brevitas_qcdq", &model.graph, 5e-3);
    assert!(share <= 0.2 && worst < 0.02, "{share} {worst}");
}

#[test]
fn the_qonnx_dialect_is_lowered() {
    let (model, log) = passed("brevitas_qonnx");
    weights_are_integers(&model.graph);
    let counts = operators(&model.graph);
    assert!(!counts.contains_key("Quant"), "{counts:?}, {:?}", log.refused);
    // Brevitas computes with real biases; in 32 bits they are off by half a step of theirs at most, which moves few of
    // the activations behind them by a step.
    let (share, worst) = difference("brevitas_qonnx", &model.graph, 5e-3);
    assert!(share <= 0.1 && worst < 0.02, "{share} {worst}");
}

#[test]
fn symmetric_pairs_keep_their_scales_and_the_real_branch_stays_real() {
    let (model, _) = passed("symmetric_residual");
    weights_are_integers(&model.graph);
    let counts = operators(&model.graph);
    assert_eq!((counts["QuantizeLinear"], counts["Add"]), (3, 1), "{counts:?}");
    let (share, worst) = difference("symmetric_residual", &model.graph, 1e-5);
    assert!(share <= 0.02 && worst <= 1.01 * 120.0 / 127.0, "{share} {worst}");
}

#[test]
fn normalization_goes_into_quantized_weights() {
    let (model, _) = passed("norm_after_quantized");
    weights_are_integers(&model.graph);
    assert!(!operators(&model.graph).contains_key("BatchNormalization"));
    let (share, worst) = difference("norm_after_quantized", &model.graph, 1e-5);
    assert!(share <= 0.02 && worst <= 0.101, "{share} {worst}");
}

#[test]
fn weights_that_tensorflow_rounded_are_integers_again() {
    let (model, _) = passed("tensorflow_fake_quant");
    let graph = &model.graph;
    for id in graph.nodes().filter(|&id| ["Conv", "MatMul"].contains(&graph.node(id).op_type.as_str())) {
        for slot in [0, 1] {
            let (producer, _) = graph.producer(graph.input(id, slot).unwrap()).expect("a pair");
            assert!(graph.node(producer).is("DequantizeLinear"), "{}", graph.node(id).name);
        }
        let (dequantize, _) = graph.producer(graph.input(id, 1).unwrap()).unwrap();
        assert!(matches!(graph.constant_input(dequantize, 0).unwrap().dtype(), DType::I8 | DType::U8));
    }
    let (share, worst) = difference("tensorflow_fake_quant", graph, 1e-5);
    // Some outputs fall on the other side of a tie.
    assert!(share <= 0.2 && worst <= 1.01 * 3.0 / 255.0, "{share} {worst}");
}

/// What the passes make of each model, as text.
#[test]
fn what_becomes_of_each_dialect() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/qat");
    let mut names: Vec<String> = std::fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .map(|p| p.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 6);
    for name in names {
        let (model, log) = passed(&name);
        let mut text = String::new();
        log.applied.iter().for_each(|(p, n)| writeln!(text, "applied  {p}: {n}").unwrap());
        log.refused.iter().for_each(|(p, n, why)| writeln!(text, "refused  {p}: {n}: {why}").unwrap());
        let result = onnx::emit(&model, onnx::External::Keep).unwrap();
        text += "\n";
        text += &onnx::text::print(&result, onnx::text::Detail::Digest);
        insta::with_settings!({ snapshot_path => "data/qat", prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, text);
        });
    }
}
