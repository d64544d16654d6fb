//! If, Loop and Scan: operators that run the graphs inside them
//! (<https://onnx.ai/onnx/operators/onnx__Loop.html>, <https://onnx.ai/onnx/operators/onnx__Scan.html>).

use super::{Program, room};
use crate::budget::{self, Holding};
use crate::error::{Error, Fault};
use crate::ir::{Array, Control, Datum, Op};
use crate::kernels::strided::take_array;
use crate::ops::join::Concat;

/// A loop that runs longer than this is taken for endless.
const MAX_ITERATIONS: i64 = 10_000_000;

/// The values around the node, by name.
pub type Scope<'a> = &'a dyn Fn(&str) -> Option<Datum>;

/// Runs a control-flow node.
pub fn run(
    (op, control): (&dyn Op, &Control),
    bodies: &[(String, Program)],
    inputs: &[Option<Datum>],
    scope: Scope,
) -> Result<Vec<Datum>, Error> {
    let body = |name: &str| {
        let found = bodies.iter().find(|(n, _)| n == name);
        found
            .map(|(_, program)| program)
            .ok_or_else(|| Fault::new(format!("it has no {name}")).at("control flow"))
    };
    match control {
        Control::If => {
            let condition = required(inputs, 0)?;
            let taken = truth(condition)?;
            body(if taken { "then_branch" } else { "else_branch" })?.run_inside(&[], scope)
        }
        Control::Inside => run_inside_out(op, bodies, inputs, scope),
        Control::ScanBatch { scanned, input_reverse } => {
            run_scan_batch(body("body")?, *scanned, input_reverse, inputs, scope)
        }
        Control::Map => run_map(body("body")?, inputs, scope),
        Control::Call => {
            let program = body("function")?;
            let inputs: Vec<Datum> = (0..program.inputs.len())
                .map(|i| inputs.get(i).cloned().flatten().unwrap_or(Datum::Absent))
                .collect();
            program.run_inside(&inputs, scope)
        }
        Control::Loop => run_loop(body("body")?, inputs, scope),
        Control::Scan { scanned, input_axes, input_reverse, output_axes, output_reverse } => {
            let plan = ScanPlan { scanned: *scanned, input_axes, input_reverse, output_axes, output_reverse };
            plan.run(body("body")?, inputs, scope)
        }
    }
}

fn required(inputs: &[Option<Datum>], slot: usize) -> Result<&Datum, Error> {
    let value = inputs.get(slot).and_then(Option::as_ref);
    value.ok_or_else(|| Fault::new(format!("input {slot} is missing")).at("control flow"))
}

fn truth(value: &Datum) -> Result<bool, Error> {
    value.as_tensor().and_then(Array::item::<bool>).map_err(|f| f.at("condition"))
}

impl Program {
    /// Runs a body: `inputs` fill its inputs, captured names come from `scope`.
    fn run_inside(&self, inputs: &[Datum], scope: Scope) -> Result<Vec<Datum>, Error> {
        let mut values = self.initial.clone();
        for (name, slot) in &self.captures {
            values[*slot] = scope(name);
        }
        if inputs.len() != self.inputs.len() {
            let message = format!("the body has {} inputs, {} were given", self.inputs.len(), inputs.len());
            return Err(Fault::new(message).at("control flow"));
        }
        for (&slot, value) in self.inputs.iter().zip(inputs) {
            values[slot] = Some(value.clone());
        }
        // A nested body captures through this one: its scope is the values here, then those around.
        let problem = self.execute(&mut values, None)?;
        let missing =
            || problem.clone().unwrap_or_else(|| Fault::new("an output was not computed").at("body"));
        self.outputs.iter().map(|&slot| values[slot].clone().ok_or_else(missing)).collect()
    }
}

fn run_loop(body: &Program, inputs: &[Option<Datum>], scope: Scope) -> Result<Vec<Datum>, Error> {
    let at = |f: Fault| f.at("Loop");
    let limit = match inputs.first().and_then(Option::as_ref) {
        Some(trips) => trips.as_tensor().and_then(Array::item::<i64>).map_err(at)?,
        None => i64::MAX,
    };
    let mut go_on = inputs.get(1).and_then(Option::as_ref).map_or(Ok(true), truth)?;
    let carried = inputs.len().saturating_sub(2);
    let mut state: Vec<Datum> =
        (0..carried).map(|i| required(inputs, i + 2).cloned()).collect::<Result<_, _>>()?;
    let scans = body.outputs.len().saturating_sub(1 + carried);
    let mut stacks: Vec<Vec<Datum>> = vec![Vec::new(); scans];
    let (mut iteration, mut grown) = (0, Holding::default());
    while go_on && iteration < limit {
        if iteration >= MAX_ITERATIONS {
            return Err(at(Fault::new(format!("it runs more than {MAX_ITERATIONS} times"))));
        }
        let mut arguments = vec![Array::scalar(iteration).into(), Array::scalar(go_on).into()];
        arguments.append(&mut state);
        let mut outputs = body.run_inside(&arguments, scope)?.into_iter();
        go_on = outputs.next().as_ref().map_or(Ok(false), truth)?;
        state = outputs.by_ref().take(carried).collect();
        for (stack, output) in stacks.iter_mut().zip(outputs) {
            let bytes = room::bytes_of(&output) + size_of::<Datum>() as u64;
            budget::fits(bytes, budget::room()).map_err(at)?;
            grown.take(bytes);
            stack.push(output);
        }
        iteration += 1;
    }
    for stack in stacks {
        state.push(stacked(stack, 0).map_err(at)?);
    }
    Ok(state)
}

/// The operator computes and calls the graphs inside the node.
fn run_inside_out(
    op: &dyn Op,
    bodies: &[(String, Program)],
    inputs: &[Option<Datum>],
    scope: Scope,
) -> Result<Vec<Datum>, Error> {
    let at = |f: Fault| f.at("the operator");
    let tensor = |input: &Option<Datum>| input.as_ref().map(|v| v.as_tensor().cloned()).transpose();
    let tensors = inputs.iter().map(tensor).collect::<Result<Vec<_>, _>>().map_err(at)?;
    let call = |name: &str, arrays: &[Array]| {
        let Some((_, program)) = bodies.iter().find(|(n, _)| n == name) else { return Ok(None) };
        let inputs: Vec<Datum> = arrays.iter().cloned().map(Datum::Tensor).collect();
        let outputs = program.run_inside(&inputs, scope).map_err(|e| match e.fault().is_unimplemented() {
            true => e.fault().clone(),
            false => Fault::new(e.to_string()),
        })?;
        outputs.into_iter().map(Datum::tensor).collect::<Result<Vec<_>, _>>().map(Some)
    };
    let outputs = op.calling(&tensors, &call).map_err(at)?;
    Ok(outputs.into_iter().map(Datum::Tensor).collect())
}

/// The first form of Scan: axis 0 of everything is the batch, axis 1 is scanned, and input 0 would tell the lengths.
fn run_scan_batch(
    body: &Program,
    scanned: usize,
    input_reverse: &[bool],
    inputs: &[Option<Datum>],
    scope: Scope,
) -> Result<Vec<Datum>, Error> {
    let at = |f: Fault| f.at("Scan");
    if inputs.first().is_some_and(Option::is_some) {
        return Err(at(Fault::unimplemented("Scan of opset 8 with sequence_lens")));
    }
    let samples = (1..inputs.len())
        .map(|slot| slices(required(inputs, slot)?.as_tensor().map_err(at)?, 0, false).map_err(at));
    let samples = samples.collect::<Result<Vec<_>, Error>>()?;
    let batch = samples.first().map_or(0, Vec::len);
    if samples.iter().any(|s| s.len() != batch) {
        return Err(at("inputs differ in batch".into()));
    }
    let plan = ScanPlan { scanned, input_axes: &[], input_reverse, output_axes: &[], output_reverse: &[] };
    let mut outputs = vec![Vec::new(); body.outputs.len()];
    for i in 0..batch {
        let inputs: Vec<_> = samples.iter().map(|s| Some(Datum::Tensor(s[i].clone()))).collect();
        for (all, value) in outputs.iter_mut().zip(plan.run(body, &inputs, scope)?) {
            all.push(value);
        }
    }
    outputs.into_iter().map(|all| stacked(all, 0).map_err(at)).collect()
}

/// One run of the body for each tensor of the first input, which is a sequence; further sequences keep step with it.
fn run_map(body: &Program, inputs: &[Option<Datum>], scope: Scope) -> Result<Vec<Datum>, Error> {
    let at = |f: Fault| f.at("SequenceMap");
    let length = required(inputs, 0)?.as_sequence().map_err(at)?.len();
    let mut outputs = vec![Vec::with_capacity(length); body.outputs.len()];
    for i in 0..length {
        let argument = |slot| match required(inputs, slot)? {
            Datum::Sequence(all) => match all.get(i) {
                Some(array) => Ok(Datum::Tensor(array.clone())),
                None => Err(at(Fault::new(format!("input {slot} is shorter than the first")))),
            },
            other => Ok(other.clone()),
        };
        let arguments = (0..inputs.len()).map(argument).collect::<Result<Vec<_>, Error>>()?;
        for (all, value) in outputs.iter_mut().zip(body.run_inside(&arguments, scope)?) {
            all.push(value.tensor().map_err(at)?);
        }
    }
    Ok(outputs.into_iter().map(Datum::Sequence).collect())
}

struct ScanPlan<'a> {
    scanned: usize,
    input_axes: &'a [i64],
    input_reverse: &'a [bool],
    output_axes: &'a [i64],
    output_reverse: &'a [bool],
}

impl ScanPlan<'_> {
    fn run(&self, body: &Program, inputs: &[Option<Datum>], scope: Scope) -> Result<Vec<Datum>, Error> {
        let at = |f: Fault| f.at("Scan");
        let carried = inputs
            .len()
            .checked_sub(self.scanned)
            .ok_or_else(|| at(Fault::new("it scans more inputs than it has")))?;
        let mut state: Vec<Datum> =
            (0..carried).map(|i| required(inputs, i).cloned()).collect::<Result<_, _>>()?;
        let mut sequences = Vec::new();
        for i in 0..self.scanned {
            let array = required(inputs, carried + i)?.as_tensor().map_err(at)?;
            let axis = self.input_axes.get(i).copied().unwrap_or(0);
            sequences.push(slices(array, axis, flag(self.input_reverse, i)).map_err(at)?);
        }
        let length = sequences.first().map_or(0, Vec::len);
        if sequences.iter().any(|s| s.len() != length) {
            return Err(at("scanned inputs differ in length".into()));
        }
        let scans = body.outputs.len().saturating_sub(carried);
        let mut stacks: Vec<Vec<Datum>> = vec![Vec::new(); scans];
        for step in 0..length {
            let mut arguments = std::mem::take(&mut state);
            arguments.extend(sequences.iter().map(|s| Datum::Tensor(s[step].clone())));
            let mut outputs = body.run_inside(&arguments, scope)?.into_iter();
            state = outputs.by_ref().take(carried).collect();
            stacks.iter_mut().zip(outputs).for_each(|(stack, output)| stack.push(output));
        }
        for (i, mut stack) in stacks.into_iter().enumerate() {
            if flag(self.output_reverse, i) {
                stack.reverse();
            }
            state.push(stacked(stack, self.output_axes.get(i).copied().unwrap_or(0)).map_err(at)?);
        }
        Ok(state)
    }
}

fn flag(flags: &[bool], index: usize) -> bool {
    flags.get(index).copied().unwrap_or(false)
}

/// The sub-arrays along an axis, from first to last or reversed.
fn slices(array: &Array, axis: i64, reverse: bool) -> Result<Vec<Array>, Fault> {
    let rank = array.rank() as i64;
    let axis = if axis < 0 { axis + rank } else { axis };
    if !(0..rank).contains(&axis) {
        crate::fail!("axis {axis} of an array of rank {rank}");
    }
    let axis = axis as usize;
    let mut shape = array.shape().to_vec();
    let extent = shape.remove(axis);
    let part = |i| take_array(array, axis, &[i])?.reshaped(&shape);
    let mut parts = (0..extent).map(part).collect::<Result<Vec<Array>, Fault>>()?;
    if reverse {
        parts.reverse();
    }
    Ok(parts)
}

/// The arrays side by side along a new axis. Nothing to stack gives an empty float vector.
fn stacked(parts: Vec<Datum>, axis: i64) -> Result<Datum, Fault> {
    let parts = parts.into_iter().map(Datum::tensor).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = parts.first() else { return Array::new(&[0], Vec::<f32>::new()).map(Datum::Tensor) };
    let rank = first.rank() as i64 + 1;
    let axis = if axis < 0 { axis + rank } else { axis };
    if !(0..rank).contains(&axis) {
        crate::fail!("axis {axis} of an array of rank {rank}");
    }
    let mut shape = first.shape().to_vec();
    shape.insert(axis as usize, 1);
    let parts = parts.iter().map(|p| p.reshaped(&shape).map(Some)).collect::<Result<Vec<_>, _>>()?;
    let joined = Concat { axis }.float(&parts)?.pop().ok_or("nothing was joined")?;
    Ok(Datum::Tensor(joined))
}
