//! ONNX's own backend tests, run by the interpreter.
//!
//! `tests/backend.py DIR` writes them as files; `QONNX_BACKEND_TESTS=DIR` tells this test where. Element types and
//! shapes must be exact, real numbers within the tolerance that ONNX sets. `backend.txt` lists the cases that pass: one
//! that no longer does fails the test, and so does one that newly does and is not listed. `QONNX_BACKEND_UPDATE=1`
//! writes the list anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use prost::Message;
use qonnx::interpret::Program;
use qonnx::ir::{Array, DType, Datum, Graph, Tensor, ValueId};
use qonnx::proto::TensorProto;
use serde::Deserialize;

/// What `cases.json` says of a case.
#[derive(Deserialize)]
struct Case {
    rtol: f64,
    atol: f64,
    /// Its outputs depend on random numbers, so that it is run but not counted.
    random: bool,
    /// Main domain, tensors of numbers and truth values, no expanded function.
    core: bool,
}

enum Outcome {
    Passed,
    Failed(String),
    /// Something that the interpreter does not have.
    Skipped(String),
}

#[test]
fn backend_cases() {
    let Some(root) = std::env::var_os("QONNX_BACKEND_TESTS").map(PathBuf::from) else {
        eprintln!("skipped: QONNX_BACKEND_TESTS is not set (see tests/backend.py)");
        return;
    };
    let table = fs::read_to_string(root.join("cases.json")).unwrap_or_else(|e| panic!("cases.json: {e}"));
    let cases: BTreeMap<String, Case> = serde_json::from_str(&table).unwrap();

    let (mut passed, mut failed) = (BTreeSet::new(), BTreeMap::new());
    let mut skipped: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, case) in &cases {
        let outcome = catch_unwind(AssertUnwindSafe(|| run_case(&root.join(name), case)));
        match outcome.unwrap_or_else(|_| Outcome::Failed("panicked".into())) {
            Outcome::Passed => drop(passed.insert(name.clone())),
            Outcome::Failed(why) => drop(failed.insert(name.clone(), why)),
            Outcome::Skipped(why) => skipped.entry(why).or_default().push(name),
        }
    }
    for (name, why) in &failed {
        println!("failed: {name}: {why}");
    }
    for (why, names) in &skipped {
        println!("skipped: {} for {why} ({})", names.len(), names[0]);
    }
    let count = |wanted: &dyn Fn(&Case) -> bool| {
        let all: Vec<_> = cases.iter().filter(|(_, c)| !c.random && wanted(c)).collect();
        (all.iter().filter(|(name, _)| passed.contains(*name)).count(), all.len())
    };
    let (all, core) = (count(&|_| true), count(&|c| c.core));
    println!("{} of {} cases pass", all.0, all.1);
    println!(
        "{} of {} cases pass of the main domain, its number types and no expanded functions",
        core.0, core.1
    );
    compare_with_list(&passed, &failed);
}

/// What is listed must have passed, and nothing else.
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
    assert!(lost.is_empty(), "these passed before: {lost:#?}");
    assert!(gained.is_empty(), "these pass now; QONNX_BACKEND_UPDATE=1 lists them: {gained:#?}");
}

fn run_case(directory: &Path, case: &Case) -> Outcome {
    let source = match qonnx::onnx::read(&directory.join("model.onnx")) {
        Ok(source) => source,
        Err(e) if e.fault().is_unimplemented() => return Outcome::Skipped(e.fault().to_string()),
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    let graph = &source.model.graph;
    if let Some(op) = unknown_operator(graph) {
        return Outcome::Skipped(op);
    }
    let program = match Program::new(graph) {
        Ok(program) => program,
        Err(e) => return Outcome::Failed(e.to_string()),
    };
    for set in 0.. {
        let data = directory.join(format!("test_data_set_{set}"));
        if !data.is_dir() {
            break;
        }
        let read = |kind: &str, values: &[ValueId]| -> Result<Vec<Datum>, Outcome> {
            let one = |(i, _)| load(&data.join(format!("{kind}_{i}.pb")), &declared(&source, kind, i));
            values.iter().enumerate().map(one).collect()
        };
        // Inputs with a default come without a file.
        let has_file = |i: usize| data.join(format!("input_{i}.pb")).is_file();
        let given: Vec<ValueId> =
            graph.inputs.iter().enumerate().filter(|(i, _)| has_file(*i)).map(|(_, &v)| v).collect();
        let (inputs, expected) = match (read("input", &given), read("output", &graph.outputs)) {
            (Ok(inputs), Ok(outputs)) => (inputs, outputs),
            (Err(outcome), _) | (_, Err(outcome)) => return outcome,
        };
        let actual = match program.run_data(&inputs) {
            Ok(actual) => actual,
            Err(e) if e.fault().is_unimplemented() => return Outcome::Skipped(e.fault().to_string()),
            Err(e) => return Outcome::Failed(e.to_string()),
        };
        for (index, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            if let Err(why) = compare_data(actual, expected, case) {
                return Outcome::Failed(format!("output {index}: {why}"));
            }
        }
    }
    Outcome::Passed
}

/// The first operator, in this graph or a body inside it, that is not understood, and why.
fn unknown_operator(graph: &Graph) -> Option<String> {
    graph.nodes().map(|id| graph.node(id)).find_map(|node| {
        let unknown = node.op.is_none().then(|| format!("operator {} {}", node.domain, node.op_type));
        node.unknown
            .clone()
            .or(unknown)
            .or_else(|| node.bodies.iter().find_map(|body| unknown_operator(&body.graph)))
    })
}

/// A sequence of tensors as the files hold it.
#[derive(Clone, PartialEq, Message)]
struct SequenceProto {
    #[prost(message, repeated, tag = "3")]
    tensors: Vec<TensorProto>,
}

/// An optional value as the files hold it.
#[derive(Clone, PartialEq, Message)]
struct OptionalProto {
    #[prost(int32, optional, tag = "2")]
    kind: Option<i32>,
    #[prost(message, optional, tag = "3")]
    tensor: Option<TensorProto>,
    #[prost(message, optional, tag = "5")]
    sequence: Option<SequenceProto>,
}

/// The type that the model declares for one of its inputs or outputs.
fn declared(
    source: &qonnx::onnx::Source,
    kind: &str,
    index: usize,
) -> Option<qonnx::proto::type_proto::Value> {
    let graph = &source.model.graph.rest;
    let infos = if kind == "input" { &graph.input } else { &graph.output };
    infos.get(index)?.r#type.as_ref()?.value.clone()
}

fn load(path: &Path, declared: &Option<qonnx::proto::type_proto::Value>) -> Result<Datum, Outcome> {
    use qonnx::proto::type_proto::Value::{OptionalType, SequenceType};
    let bytes = fs::read(path).map_err(|e| Outcome::Failed(format!("{}: {e}", path.display())))?;
    let wrong = |e: prost::DecodeError| Outcome::Failed(format!("{}: {e}", path.display()));
    let array = |proto: TensorProto| {
        let tensor = Tensor::from_proto(proto, None).and_then(|t| t.array());
        tensor.map_err(|fault| Outcome::Failed(fault.to_string()))
    };
    let sequence = |proto: SequenceProto| {
        proto.tensors.into_iter().map(array).collect::<Result<Vec<_>, _>>().map(Datum::Sequence)
    };
    match declared {
        Some(SequenceType(_)) => sequence(SequenceProto::decode(bytes.as_slice()).map_err(wrong)?),
        Some(OptionalType(_)) => {
            let proto = OptionalProto::decode(bytes.as_slice()).map_err(wrong)?;
            match (proto.tensor, proto.sequence) {
                (Some(tensor), _) => array(tensor).map(Datum::Tensor),
                (None, Some(proto)) => sequence(proto),
                (None, None) => Ok(Datum::Absent),
            }
        }
        _ => array(TensorProto::decode(bytes.as_slice()).map_err(wrong)?).map(Datum::Tensor),
    }
}

fn compare_data(actual: &Datum, expected: &Datum, case: &Case) -> Result<(), String> {
    match (actual, expected) {
        (Datum::Tensor(actual), Datum::Tensor(expected)) => compare(actual, expected, case),
        (Datum::Sequence(actual), Datum::Sequence(expected)) if actual.len() == expected.len() => {
            actual.iter().zip(expected).try_for_each(|(a, e)| compare(a, e, case))
        }
        _ if actual == expected => Ok(()),
        _ => Err(format!("{} instead of {}", actual.describe(), expected.describe())),
    }
}

fn compare(actual: &Array, expected: &Array, case: &Case) -> Result<(), String> {
    if (actual.dtype(), actual.shape()) != (expected.dtype(), expected.shape()) {
        return Err(format!("{} instead of {}", actual.tensor_type(), expected.tensor_type()));
    }
    if !expected.dtype().is_float() {
        return if actual == expected { Ok(()) } else { Err(short(actual, expected)) };
    }
    // Two units in the last place, as ONNX's own runner has it.
    let rtol = if expected.dtype() == DType::BF16 { case.rtol.max(1.0 / 64.0) } else { case.rtol };
    for (index, (a, e)) in reals(actual).into_iter().zip(reals(expected)).enumerate() {
        let equal = a == e || (a.is_nan() && e.is_nan()) || (a - e).abs() <= case.atol + rtol * e.abs();
        if !equal {
            return Err(format!("element {index} is {a}, expected {e}"));
        }
    }
    Ok(())
}

/// The beginning of both.
fn short(actual: &Array, expected: &Array) -> String {
    let show = |array: &Array| format!("{array:?}").chars().take(200).collect::<String>();
    format!("{} instead of {}", show(actual), show(expected))
}

fn reals(array: &Array) -> Vec<f64> {
    match array.get::<f64>() {
        Some(values) => values.iter().copied().collect(),
        None => array.to_f32().unwrap().iter().map(|&v| v.into()).collect(),
    }
}
