//! Training from file to file: it helps or does no harm, and the same run gives the same bytes.

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};

use ndarray_npy::NpzReader;
use qonnx::Options;
use qonnx::calibrate::read;
use qonnx::compile::{TrainOptions, train};
use qonnx::error::Error;
use qonnx::interpret::Program;
use qonnx::ir::Graph;
use qonnx::onnx;
use qonnx::options::Effort;
use qonnx::report::Report;
use qonnx::train::loss::{Loss, taps};
use qonnx::train::optimizer::{Method, Rates, Schedule};
use qonnx::train::tape::Tape;
use qonnx::train::{Reach, Settings, Student};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn options() -> Options {
    Options { calib: Some(data().join("digits/calib")), steps: Effort::Fast.steps(), ..Options::default() }
}

/// The pictures that the digits example is evaluated on, as samples.
fn pictures(dir: &Path) -> Options {
    let mut archive = NpzReader::new(File::open(data().join("digits/eval.npz")).unwrap()).unwrap();
    let images: ndarray::Array3<u8> = archive.by_name("images").unwrap();
    std::fs::create_dir(dir).unwrap();
    for (i, picture) in images.outer_iter().enumerate().take(300) {
        let pixels = picture.mapv(|p| f32::from(p) / 255.0).into_shape_with_order((1, 1, 28, 28)).unwrap();
        ndarray_npy::write_npy(dir.join(format!("{i:03}.npy")), &pixels).unwrap();
    }
    Options { calib: Some(dir.to_owned()), ..options() }
}

fn training() -> TrainOptions {
    let rates = Rates { method: Method::Adam, schedule: Schedule::Cosine, weights: 3e-4, scales: 1e-3 };
    TrainOptions {
        settings: Settings {
            loss: Loss::Distill,
            features: 16.0,
            reach: Reach::EndToEnd,
            recompute: false,
            epochs: 3,
            batch: 8,
            rates,
            freeze_after: None,
            patience: 5,
            seed: 1,
            checkpoint: None,
        },
        labels: None,
        validation: None,
        validation_labels: None,
        weight_bits: 4,
        activation_bits: 4,
        per_tensor: false,
    }
}

fn run(to: &Path, training: &TrainOptions, told: &dyn Fn(usize)) -> Result<Report, Error> {
    train(&data().join("digits.onnx"), to, &options(), training, &|_, _, _| {}, &|n, _, _| told(n))
}

fn with_threads<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn four_bits_are_better_after_training_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["one.onnx", "two.onnx"].map(|name| dir.path().join(name));
    let options = pictures(&dir.path().join("pictures"));
    let learn = |path: &Path| {
        let model = data().join("digits.onnx");
        train(&model, path, &options, &training(), &|_, _, _| {}, &|_, _, _| {}).unwrap()
    };
    let facts = with_threads(1, || learn(&paths[0])).training.unwrap();
    assert!(facts.epochs[facts.written].held_out < 0.7 * facts.epochs[0].held_out, "{:?}", facts.epochs);
    with_threads(2, || learn(&paths[1]));
    assert_eq!(std::fs::read(&paths[0]).unwrap(), std::fs::read(&paths[1]).unwrap());
}

#[test]
fn values_that_are_computed_again_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, again) = (dir.path().join("kept.onnx"), dir.path().join("again.onnx"));
    run(&kept, &training(), &|_| {}).unwrap();
    let mut training = training();
    training.settings.recompute = true;
    run(&again, &training, &|_| {}).unwrap();
    assert_eq!(std::fs::read(&kept).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn blocks_learn_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("blocks.onnx");
    let mut training = training();
    training.settings.reach = Reach::Block;
    let trained = run(&out, &training, &|_| {}).unwrap().training.unwrap();
    assert!(trained.written > 0);
    assert!(
        trained.epochs[trained.written].held_out < 0.8 * trained.epochs[0].held_out,
        "{:?}",
        trained.epochs
    );
    training.settings.features = 0.0;
    let error = run(&out, &training, &|_| {}).unwrap_err().to_string();
    assert!(error.contains("--mode block"), "{error}");
}

#[test]
fn a_run_that_was_interrupted_ends_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let with = |checkpoint: PathBuf| {
        let mut training = training();
        training.settings.checkpoint = Some(checkpoint);
        training
    };
    let early = |n: usize| {
        if n == 1 {
            std::fs::copy(at("state"), at("early")).unwrap();
        }
    };
    run(&at("whole.onnx"), &with(at("state")), &early).unwrap();
    let told = RefCell::new(Vec::new());
    run(&at("resumed.onnx"), &with(at("early")), &|n| told.borrow_mut().push(n)).unwrap();
    assert_eq!(told.into_inner(), [2, 3]);
    assert_eq!(std::fs::read(at("whole.onnx")).unwrap(), std::fs::read(at("resumed.onnx")).unwrap());
    assert_eq!(std::fs::read(at("state")).unwrap(), std::fs::read(at("early")).unwrap());
    // Another run does not go on from it.
    let mut other = with(at("state"));
    other.settings.seed = 2;
    assert!(run(&at("other.onnx"), &other, &|_| {}).unwrap_err().to_string().contains("belongs to a run"));
    assert!(!at("other.onnx").exists());
}

#[test]
fn a_run_that_makes_things_worse_writes_the_starting_point() {
    let dir = tempfile::tempdir().unwrap();
    let mut training = TrainOptions { weight_bits: 8, activation_bits: 8, ..training() };
    training.settings.epochs = 1;
    training.settings.rates.weights = 3.0;
    let report = run(&dir.path().join("worse.onnx"), &training, &|_| {}).unwrap();
    assert_eq!(report.training.unwrap().written, 0);
    assert!(report.warnings.iter().any(|w| w.contains("starting point")), "{:?}", report.warnings);
}

#[test]
fn what_is_trained_is_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let int8 = dir.path().join("int8.onnx");
    let static_mode = Options { mode: qonnx::Mode::Static, ..options() };
    qonnx::compile(&data().join("digits.onnx"), &int8, &static_mode, &|_, _, _| {}).unwrap();
    let quantized = onnx::read(&int8).unwrap().model.graph;
    let reference = onnx::read(&data().join("digits.onnx")).unwrap().model.graph;
    for joined in [false, true] {
        let mut student = Student::new(&quantized, &reference).unwrap();
        if joined {
            student.join_channels();
        }
        student.narrow_weights(5).unwrap();
        written_as_trained(&student, &reference);
    }
}

/// The student's forward pass and the model that is written from it give the same bits.
fn written_as_trained(student: &Student, reference: &Graph) {
    let values: Vec<_> = student.parameters.iter().map(|p| p.start.clone()).collect();
    let taps = taps(&student.graph);
    let mut tape = Tape::new(&student.graph, &[], &taps).unwrap();
    assert!(tape.stopped().is_empty());
    let parameters: Vec<_> = student.parameters.iter().map(|p| p.value).collect();
    tape = Tape::new(&student.graph, &parameters, &taps).unwrap();
    values.iter().enumerate().for_each(|(i, v)| tape.set(i, v.clone()));
    let written = student.export(&values).unwrap();
    let program = Program::new(&written).unwrap();
    let inputs = read::open_inputs(reference).unwrap();
    let samples = read::open(&data().join("digits/calib"), &inputs, None).unwrap();
    for sample in (0..samples.len()).take(8) {
        let inputs = samples.load(sample).unwrap();
        let record = tape.forward(&inputs).unwrap();
        let own = tape.value(&record, taps[0]).unwrap().slice::<f32>().unwrap();
        let other = program.run(&inputs).unwrap().remove(0);
        let other = other.slice::<f32>().unwrap();
        assert_eq!(own, other);
    }
}

#[test]
fn bad_input_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (out, labels) = (dir.path().join("out.onnx"), dir.path().join("labels.txt"));
    let samples = read::open(
        &data().join("digits/calib"),
        &read::open_inputs(&onnx::read(&data().join("digits.onnx")).unwrap().model.graph).unwrap(),
        None,
    );
    let count = samples.unwrap().len();
    let message = |text: String, change: &dyn Fn(&mut TrainOptions)| {
        std::fs::write(&labels, text).unwrap();
        let mut training = TrainOptions { labels: Some(labels.clone()), ..training() };
        training.settings.loss = Loss::Both;
        change(&mut training);
        let error = run(&out, &training, &|_| {}).unwrap_err();
        assert!(!out.exists());
        error.to_string()
    };
    assert!(message("1\n2\n".into(), &|_| {}).contains("2 labels"));
    assert!(message("11\n".repeat(count), &|_| {}).contains("there are 10 classes"));
    assert!(message("x\n".into(), &|_| {}).contains("no class number"));
}

/// Trains a model given as text, with random samples of four numbers.
fn run_text(model: &str) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let (path, samples) = (dir.path().join("model.onnx"), dir.path().join("samples"));
    let model = onnx::import(onnx::text::parse(model).unwrap(), &|_| Err("none".into())).unwrap();
    std::fs::write(&path, onnx::encode(&model).unwrap()).unwrap();
    std::fs::create_dir(&samples).unwrap();
    for i in 0..10i16 {
        let x: Vec<f32> = (0..4i16).map(|k| f32::from((7 * i + 3 * k) % 11 - 5)).collect();
        let array = ndarray::Array2::from_shape_vec((1, 4), x).unwrap();
        ndarray_npy::write_npy(samples.join(format!("{i}.npy")), &array).unwrap();
    }
    let options = Options { calib: Some(samples), ..options() };
    let out = dir.path().join("out.onnx");
    let error = train(&path, &out, &options, &training(), &|_, _, _| {}, &|_, _, _| {}).unwrap_err();
    assert!(!out.exists());
    error
}

#[test]
fn the_node_where_a_number_broke_is_named() {
    let error = run_text(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4] x) => (float[1,3] y) < float[4,3] w = random(1, -1.0, 1.0) > {
          p = MatMul (x, w)
          [logarithm] y = Log (p)
        }"#,
    );
    let text = error.to_string();
    assert!(text.contains("not a finite number") && text.contains("logarithm"), "{text}");
}

#[test]
fn a_model_without_a_weight_is_refused() {
    let error = run_text(
        r#"<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,4] x) => (float[1,4] y) < float[4,4] w = random(1, -1.0, 1.0) > {
          p = MatMul (x, w)
          [steps] y = Floor (p)
        }"#,
    );
    let text = error.to_string();
    assert!(text.contains("no gradient reaches a weight") && text.contains("steps"), "{text}");
}

#[test]
fn weights_that_are_kept_leave_biases_and_scales_of_activations_to_train() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("integers.onnx");
    let model = data().join("digits.onnx");
    qonnx::compile(&model, &path, &options(), &|_, _, _| {}).unwrap();
    let (quantized, reference) = (onnx::read(&path).unwrap().model, onnx::read(&model).unwrap().model);
    let mut student = Student::new(&quantized.graph, &reference.graph).unwrap();
    student.keep_weights();
    let trained = |p: &&qonnx::train::student::Parameter| p.trained;
    let names: Vec<&str> = student.parameters.iter().filter(trained).map(|p| p.name.as_str()).collect();
    assert!(
        names.iter().any(|n| n.contains("bias")) && names.iter().any(|n| n.contains("scale")),
        "{names:?}"
    );
    assert!(!names.iter().any(|n| n.contains("weight")), "{names:?}");
}
