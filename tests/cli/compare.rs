use std::path::{Path, PathBuf};

use ndarray::{Array1, Array3, Array4};
use ndarray_npy::{NpzReader, write_npy};
use serde_json::Value;
use tempfile::TempDir;

use super::{Outcome, args, compiled, digits, qonnx, repository, samples, tempdir};
use qonnx::ir::{Array, Tensor};

/// The first pictures that the classifier has not seen, and their labels.
pub fn labelled(dir: &TempDir, count: usize) -> (PathBuf, PathBuf) {
    let file = std::fs::File::open(repository("tests/data/digits/eval.npz")).unwrap();
    let mut archive = NpzReader::new(file).unwrap();
    let images: Array3<u8> = archive.by_name("images").unwrap();
    let labels: Array1<u8> = archive.by_name("labels").unwrap();
    let data = dir.path().join("eval");
    std::fs::create_dir(&data).unwrap();
    for index in 0..count {
        let picture =
            Array4::from_shape_fn((1, 1, 28, 28), |(_, _, y, x)| f32::from(images[[index, y, x]]) / 255.0);
        write_npy(data.join(format!("{index:03}.npy")), &picture).unwrap();
    }
    let path = dir.path().join("labels.txt");
    let text: Vec<String> = labels.iter().take(count).map(u8::to_string).collect();
    std::fs::write(&path, text.join("\n")).unwrap();
    (data, path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn outputs_labels_and_gates() {
    let dir = tempdir();
    let (b, out) = (compiled(&dir), dir.path().join("comparison.json"));
    let (data, labels) = labelled(&dir, 60);
    let compare = |more: &[&str]| -> Outcome {
        let a = digits();
        let fixed = args!["compare", a, b, "--data", data, "--labels", labels, "--json", out].to_vec();
        let more: Vec<&dyn AsRef<std::ffi::OsStr>> = more.iter().map(|m| m as _).collect();
        qonnx(&[fixed, more].concat())
    };
    let first = compare(&["--min-sqnr", "15", "--max-drop", "20", "--threads", "1"]).code(0);
    let first = first.prints(&["SQNR dB", "cosine", "max error", "argmax", "top-1", "top-5", "Newcombe"]);
    assert_eq!(first.out, compare(&["--threads", "2"]).code(0).out, "threads do not change the result");
    let found = json(&out);
    assert_eq!((found["samples"].as_u64(), found["accuracy"]["labels"].as_u64()), (Some(60), Some(60)));
    let sqnr = found["outputs"][0]["sqnr_db"].as_f64().unwrap();
    assert!((15.0..80.0).contains(&sqnr), "{sqnr}");
    assert!(found["outputs"][0]["cosine"].as_f64().unwrap() > 0.98);
    assert!(found["accuracy"]["top1"][0].as_f64().unwrap() > 0.8);
    let (low, high) = (&found["accuracy"]["interval"][0], &found["accuracy"]["interval"][1]);
    assert!(low.as_f64().unwrap() < high.as_f64().unwrap());
    // A gate that fails: still printed and written, with its reason.
    let failed = compare(&["--min-sqnr", "90"]).code(1).one_error();
    failed.says(&["--min-sqnr asks for 90"]).prints(&["SQNR dB"]);
    assert_eq!(json(&out)["failed"].as_array().unwrap().len(), 1);
    compare(&["--max-drop", "-101"]).code(1).says(&["--max-drop allows -101"]);
}

#[test]
fn a_model_is_equal_to_itself() {
    let all =
        args!["compare", digits(), digits(), "--data", samples(), "--samples", "3", "--min-sqnr", "200"];
    qonnx(all).code(0).prints(&["equal", "100.0%", "(3 samples)"]);
}

/// Compiles the digits, damages the weights of one convolution in the middle, and asks for the layer at fault.
#[test]
fn layers_names_the_damaged_layer() {
    let dir = tempdir();
    let path = compiled(&dir);
    let mut model = qonnx::onnx::read(&path).unwrap().model;
    let graph = &mut model.graph;
    let convolutions: Vec<_> =
        qonnx::ir::schedule(graph).unwrap().into_iter().filter(|&id| graph.node(id).is("Conv")).collect();
    assert!(convolutions.len() > 4);
    for victim in [convolutions[1], convolutions[convolutions.len() / 2]] {
        let (name, weight) = {
            let dequantize = graph.producer(graph.input(victim, 1).unwrap()).unwrap().0;
            (graph.node(victim).name.clone(), graph.input(dequantize, 0).unwrap())
        };
        let original = graph.constant(weight).unwrap().clone();
        let array = original.array().unwrap();
        // Every second weight loses its sign.
        let damaged: Vec<i8> = array
            .slice::<i8>()
            .unwrap()
            .iter()
            .enumerate()
            .map(|(i, &w)| if i % 2 == 0 { -w } else { w })
            .collect();
        graph.set_constant(weight, Tensor::from_array(&Array::new(array.shape(), damaged).unwrap()));
        let bad = dir.path().join("damaged.onnx");
        std::fs::write(&bad, emit(graph, &path)).unwrap();
        graph.set_constant(weight, original);
        let out = dir.path().join("layers.json");
        let all =
            args!["compare", digits(), bad, "--data", samples(), "--samples", "4", "--layers", "--json", out];
        let outcome = qonnx(all).code(0);
        let line =
            |start: &str| outcome.out.lines().find(|l| l.starts_with(start)).unwrap_or_default().to_string();
        let conv = format!("Conv `{name}`");
        assert!(line("most error of its own:").contains(&conv), "{conv}\n{}", outcome.out);
        assert!(line("first below 20 dB:").contains(&conv), "{conv}\n{}", outcome.out);
        let layers = json(&out)["layers"].as_array().unwrap().clone();
        assert!(layers.len() > convolutions.len());
        // Sound layers after it add little of their own, though they have inherited the error.
        let last = layers.last().unwrap();
        assert!(last["cumulative_db"].as_f64().unwrap() < 20.0 && last["local_db"].as_f64().unwrap() > 20.0);
    }
}

/// The model of `path` with another graph.
fn emit(graph: &qonnx::ir::Graph, path: &Path) -> Vec<u8> {
    let mut model = qonnx::onnx::read(path).unwrap().model;
    model.graph = graph.clone();
    qonnx::onnx::encode(&model).unwrap()
}

#[test]
fn what_cannot_be_compared_is_said() {
    let dir = tempdir();
    let other = super::golden(&dir, "conv_relu");
    qonnx(args!["compare", digits(), other, "--data", samples()]).code(1).one_error();
    let labels = dir.path().join("labels.txt");
    std::fs::write(&labels, "1\n2\nthree\n").unwrap();
    let with_labels = || {
        qonnx(args!["compare", digits(), digits(), "--data", samples(), "--samples", "3", "--labels", labels])
    };
    with_labels().code(1).says(&["line 3", "three"]).one_error();
    std::fs::write(&labels, "1\n2\n").unwrap();
    with_labels().code(1).says(&["2 labels for 3 samples"]).one_error();
    qonnx(args!["compare", digits(), digits(), "--data", samples(), "--max-drop", "1"])
        .code(2)
        .says(&["--labels"]);
}
