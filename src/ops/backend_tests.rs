//! ONNX's own node cases against the operators of one family, straight through [`Op::infer`] and [`Op::float`].
//!
//! The cases are the files that `tests/backend.py` writes; the environment variable `QONNX_BACKEND_TESTS` names their
//! directory, without it nothing runs. A family's tests call [`run`] with its name.

use std::fs;
use std::path::Path;

use prost::Message;

use super::{Attrs, FAMILIES, Fact, Op};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, Tensor, TensorType};
use crate::proto::{ModelProto, TensorProto, ValueInfoProto, type_proto::Value};

const RTOL: f64 = 1e-3;
const ATOL: f64 = 1e-7;

/// Runs every case whose only node is an operator of `family`; lists what is not implemented, panics on failures.
pub(super) fn run(family: &str) {
    run_except(family, &[]);
}

/// The same without cases that cannot be met; the caller says why.
pub(super) fn run_except(family: &str, except: &[&str]) {
    let Some(root) = std::env::var_os("QONNX_BACKEND_TESTS") else { return };
    let (_, defs) = FAMILIES.iter().find(|(name, _)| *name == family).unwrap();
    let mut cases: Vec<_> =
        fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    cases.sort();
    let (mut passed, mut skipped, mut failed) = (0, Vec::new(), Vec::new());
    for case in cases {
        let model = ModelProto::decode(fs::read(case.join("model.onnx")).unwrap().as_slice()).unwrap();
        let graph = model.graph.as_ref().unwrap();
        let ([node], []) = (graph.node.as_slice(), graph.initializer.as_slice()) else { continue };
        if !defs.iter().any(|d| d.domain == node.domain() && d.name == node.op_type()) {
            continue;
        }
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        if except.contains(&name.as_str()) {
            continue;
        }
        match one(&model, &case) {
            Ok(()) => passed += 1,
            Err(fault) if fault.is_unimplemented() => skipped.push(format!("{name}: {fault}")),
            Err(fault) => failed.push(format!("{name}: {fault}")),
        }
    }
    println!("{family}: {passed} passed, {} not implemented\n{}", skipped.len(), skipped.join("\n"));
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

fn one(model: &ModelProto, case: &Path) -> Result<(), Fault> {
    let graph = model.graph.as_ref().unwrap();
    let node = &graph.node[0];
    let is_tensor =
        |v: &ValueInfoProto| matches!(v.r#type.as_ref().unwrap().value, Some(Value::TensorType(_)));
    if !graph.input.iter().chain(&graph.output).all(is_tensor) {
        return Err(Fault::unimplemented("values that are not tensors"));
    }
    if node.attribute.iter().any(|a| a.g.is_some()) {
        return Err(Fault::unimplemented("graphs inside the node, which need the interpreter"));
    }
    let version = model.opset_import.iter().find(|o| o.domain() == node.domain()).unwrap().version();
    let def = super::find(node.domain(), node.op_type(), version)
        .ok_or_else(|| Fault::unimplemented(format_args!("opset {version}")))?;
    let mut attrs = Attrs::new(&node.attribute, version, node.input.len(), node.output.len());
    let op = (def.parse)(&mut attrs)?;
    if !attrs.unread().is_empty() {
        return Err(format!("attributes not read: {:?}", attrs.unread()).into());
    }
    for set in (0..).map(|k| case.join(format!("test_data_set_{k}"))).take_while(|d| d.is_dir()) {
        let read = |prefix: &str, infos: &[ValueInfoProto], names: &[String]| {
            let tensor = |name: &String| match infos.iter().position(|v| v.name() == name) {
                None => Ok(None),
                Some(i) => {
                    let bytes = fs::read(set.join(format!("{prefix}_{i}.pb"))).unwrap();
                    Tensor::from_proto(TensorProto::decode(bytes.as_slice()).unwrap(), None).map(Some)
                }
            };
            names.iter().map(tensor).collect::<Result<Vec<_>, _>>()
        };
        let inputs = read("input", &graph.input, &node.input)?;
        let expected = read("output", &graph.output, &node.output)?;
        check_inference(&*op, &inputs, &expected)?;
        let array = |t: &Option<Tensor>| t.as_ref().map(Tensor::array).transpose();
        let outputs = op.float(&inputs.iter().map(array).collect::<Result<Vec<_>, _>>()?)?;
        for (i, expected) in expected.iter().enumerate().filter_map(|(i, t)| Some((i, t.as_ref()?))) {
            let found = outputs.get(i).ok_or_else(|| format!("output {i} is missing"))?;
            if op.is_pure() {
                compare(found, &expected.array()?).map_err(|e| format!("output {i}: {e}"))?;
            }
        }
    }
    Ok(())
}

/// What inference says must hold, be the inputs constants, of known type, of known rank, or unknown.
fn check_inference(op: &dyn Op, inputs: &[Option<Tensor>], expected: &[Option<Tensor>]) -> Result<(), Fault> {
    let types: Vec<_> = inputs.iter().map(|t| t.as_ref().map(Tensor::tensor_type)).collect();
    let no_rank: Vec<_> = types.iter().map(|t| t.as_ref().map(|t| TensorType::unranked(t.dtype))).collect();
    let nothing = vec![None; inputs.len()];
    for (types, constants) in [(&types, true), (&types, false), (&no_rank, false), (&nothing, false)] {
        let facts: Vec<_> = types
            .iter()
            .zip(inputs)
            .map(|(ty, t)| ty.as_ref().map(|ty| Fact { ty, constant: t.as_ref().filter(|_| constants) }))
            .collect();
        for (i, inferred) in op.infer(&facts)?.iter().enumerate() {
            let (Some(inferred), Some(Some(tensor))) = (inferred, expected.get(i)) else { continue };
            let fits = |dims: &Vec<Dim>| {
                dims.len() == tensor.shape().len()
                    && dims.iter().zip(tensor.shape()).all(|(d, &s)| d.known().is_none_or(|d| d == s))
            };
            if inferred.dtype != tensor.dtype() || !inferred.dims.as_ref().is_none_or(fits) {
                fail!("output {i}: inferred {inferred}, expected {}", tensor.tensor_type());
            }
        }
    }
    Ok(())
}

fn compare(found: &Array, expected: &Array) -> Result<(), String> {
    if found.tensor_type() != expected.tensor_type() {
        return Err(format!("{} instead of {}", found.tensor_type(), expected.tensor_type()));
    }
    if !expected.dtype().is_float() {
        return if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) };
    }
    let real = |a: &Array| match a.dtype() {
        DType::F64 => a.slice::<f64>().unwrap().to_vec(),
        _ => a.to_f32().unwrap().iter().map(|&v| v.into()).collect(),
    };
    // Two units in the last place of bfloat16, as ONNX's own runner has it.
    let rtol = if expected.dtype() == DType::BF16 { 1.0 / 64.0 } else { RTOL };
    for (i, (f, e)) in real(found).into_iter().zip(real(expected)).enumerate() {
        if !(f == e || (f.is_nan() && e.is_nan()) || (f - e).abs() <= ATOL + rtol * e.abs()) {
            return Err(format!("element {i}: {f} instead of {e}"));
        }
    }
    Ok(())
}
