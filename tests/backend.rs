//! ONNX's own node tests, run by the interpreter.
//!
//! `tests/backend.py DIR` writes them as files; `QONNX_BACKEND_TESTS=DIR` tells this test where. Cases whose operators
//! are all implemented are run; element types and shapes must be exact, real numbers within the tolerance that ONNX
//! sets. `backend.txt` lists the cases that pass and must go on passing;
//! `QONNX_BACKEND_UPDATE=1` writes it anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use prost::Message;
use qonnx::interpret::Program;
use qonnx::ir::{Array, Graph, Tensor};
use qonnx::proto::TensorProto;

/// Relative and absolute tolerance of ONNX's backend tests.
const RTOL: f32 = 1e-3;
const ATOL: f32 = 1e-7;

enum Outcome {
    Passed,
    Failed(String),
    /// Something that the interpreter does not have: an operator, an element type, sequences.
    Skipped(String),
}

#[test]
fn node_cases() {
    let Some(root) = std::env::var_os("QONNX_BACKEND_TESTS").map(PathBuf::from) else {
        eprintln!("skipped: QONNX_BACKEND_TESTS is not set (see tests/backend.py)");
        return;
    };
    let entries = fs::read_dir(&root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut cases: Vec<_> = entries.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    assert!(!cases.is_empty(), "no cases in {}", root.display());

    let (mut passed, mut failed, mut skipped) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
    for case in &cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let outcome = catch_unwind(AssertUnwindSafe(|| run_case(case)));
        match outcome.unwrap_or_else(|_| Outcome::Failed("panicked".into())) {
            Outcome::Passed => drop(passed.insert(name)),
            Outcome::Failed(why) => drop(failed.insert(name, why)),
            Outcome::Skipped(why) => *skipped.entry(why).or_insert(0) += 1,
        }
    }
    for (name, why) in &failed {
        println!("failed: {name}: {why}");
    }
    for (why, count) in &skipped {
        println!("skipped: {count} for {why}");
    }
    let not_run: usize = skipped.values().sum();
    println!("{} of {} cases pass, {} fail, {not_run} skipped", passed.len(), cases.len(), failed.len());
    compare_with_list(&passed, &failed);
}

/// What is listed must have passed.
fn compare_with_list(passed: &BTreeSet<String>, failed: &BTreeMap<String, String>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backend.txt");
    if std::env::var_os("QONNX_BACKEND_UPDATE").is_some() {
        let lines: String = passed.iter().map(|name| format!("{name}\n")).collect();
        fs::write(path, lines).unwrap();
        return;
    }
    let listed: BTreeSet<String> = fs::read_to_string(path).unwrap().lines().map(String::from).collect();
    let lost: Vec<_> = listed.difference(passed).map(|n| (n, failed.get(n))).collect();
    let gained: Vec<_> = passed.difference(&listed).collect();
    if !gained.is_empty() {
        println!("{} cases pass that are not listed; QONNX_BACKEND_UPDATE=1 lists them", gained.len());
    }
    assert!(lost.is_empty(), "these passed before: {lost:#?}");
}

fn run_case(case: &Path) -> Outcome {
    let source = match qonnx::onnx::read(&case.join("model.onnx")) {
        Ok(source) => source,
        Err(e) if e.fault().is_unimplemented() => return Outcome::Skipped(e.fault().to_string()),
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    let graph = &source.model.graph;
    if let Some(op) = unknown_operator(graph) {
        return Outcome::Skipped(format!("operator {op}"));
    }
    let program = match Program::new(graph) {
        Ok(program) => program,
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    for set in 0.. {
        let data = case.join(format!("test_data_set_{set}"));
        if !data.is_dir() {
            break;
        }
        let tensors = |kind: &str, count: usize| -> Result<Vec<Array>, Outcome> {
            (0..count).map(|i| load(&data.join(format!("{kind}_{i}.pb")))).collect()
        };
        let (inputs, expected) =
            match (tensors("input", graph.inputs.len()), tensors("output", graph.outputs.len())) {
                (Ok(inputs), Ok(outputs)) => (inputs, outputs),
                (Err(outcome), _) | (_, Err(outcome)) => return outcome,
            };
        let actual = match program.run(&inputs) {
            Ok(actual) => actual,
            Err(e) if e.fault().is_unimplemented() => return Outcome::Skipped(e.fault().to_string()),
            Err(e) => return Outcome::Failed(e.to_string()),
        };
        for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            if let Err(why) = compare(actual, expected) {
                return Outcome::Failed(format!("output {index}: {why}"));
            }
        }
    }
    Outcome::Passed
}

/// The first operator, in this graph or a body inside it, that has no implementation.
fn unknown_operator(graph: &Graph) -> Option<String> {
    graph.nodes().map(|id| graph.node(id)).find_map(|node| {
        let unknown = node.op.is_none() || node.unknown.is_some();
        let here = unknown.then(|| format!("{} {}", node.domain, node.op_type).trim().to_string());
        here.or_else(|| node.bodies.iter().find_map(|body| unknown_operator(&body.graph)))
    })
}

fn load(path: &Path) -> Result<Array, Outcome> {
    let bytes = fs::read(path).map_err(|_| Outcome::Skipped("an absent value".into()))?;
    let no_tensor = || Outcome::Skipped("sequences and optional values".into());
    let proto = TensorProto::decode(bytes.as_slice()).map_err(|_| no_tensor())?;
    let tensor = Tensor::from_proto(proto, None).map_err(|_| no_tensor())?;
    tensor.array().map_err(|fault| Outcome::Skipped(fault.to_string()))
}

fn compare(actual: &Array, expected: &Array) -> Result<(), String> {
    if (actual.dtype(), actual.shape()) != (expected.dtype(), expected.shape()) {
        let describe = |a: &Array| format!("{}{:?}", a.dtype(), a.shape());
        return Err(format!("{} instead of {}", describe(actual), describe(expected)));
    }
    if !expected.dtype().is_float() {
        return if actual == expected { Ok(()) } else { Err("elements differ".into()) };
    }
    let real = |a: &Array| a.to_f32().map_err(|fault| fault.to_string());
    for (index, (&a, &e)) in real(actual)?.iter().zip(real(expected)?.iter()).enumerate() {
        let equal = a == e || (a.is_nan() && e.is_nan()) || (a - e).abs() <= ATOL + RTOL * e.abs();
        if !equal {
            return Err(format!("element {index} is {a}, expected {e}"));
        }
    }
    Ok(())
}
