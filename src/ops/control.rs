//! If, Loop and Scan, whose meaning is a graph inside the node, and calls of model-local functions. The interpreter
//! runs them.

use std::sync::Arc;

use super::{Attrs, Control, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Graph};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "If", since: 1, parse: parse_if },
    OpDef { domain: ONNX, name: "Loop", since: 1, parse: parse_loop },
    OpDef { domain: ONNX, name: "Scan", since: 8, parse: parse_scan_batch },
    OpDef { domain: ONNX, name: "Scan", since: 9, parse: parse_scan },
];

/// An operator that runs graphs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow(pub Control);

impl Op for Flow {
    fn float(&self, _: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        fail!("control flow runs in the interpreter, not as an operator")
    }

    fn control(&self) -> Option<Control> {
        Some(self.0.clone())
    }
}

/// A call of a model-local function.
#[derive(Debug)]
pub struct Call {
    /// The function's graph, its attributes filled in for this call.
    pub function: Graph,
}

impl Op for Call {
    fn float(&self, _: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        fail!("a function runs in the interpreter, not as an operator")
    }

    fn control(&self) -> Option<Control> {
        Some(Control::Call)
    }

    fn body(&self) -> Option<&Graph> {
        Some(&self.function)
    }
}

fn parse_if(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
    attrs.body("then_branch")?;
    attrs.body("else_branch")?;
    Ok(Arc::new(Flow(Control::If)))
}

fn parse_loop(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
    attrs.body("body")?;
    Ok(Arc::new(Flow(Control::Loop)))
}

/// Inputs are the lengths, the states, then what is scanned.
fn parse_scan_batch(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
    attrs.body("body")?;
    let count = attrs.int("num_scan_inputs", 0)?;
    let scanned = usize::try_from(count).ok().filter(|n| (1..attrs.inputs()).contains(n));
    let Some(scanned) = scanned else {
        fail!("num_scan_inputs is {count} for {} inputs", attrs.inputs());
    };
    let directions = attrs.opt_ints("directions")?.unwrap_or_default();
    let input_reverse = directions.iter().map(|&d| d != 0).collect();
    Ok(Arc::new(Flow(Control::ScanBatch { scanned, input_reverse })))
}

/// Inputs are the states, then what is scanned; outputs are the states, then what is stacked.
fn parse_scan(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
    attrs.body("body")?;
    let count = attrs.int("num_scan_inputs", 0)?;
    let scanned = usize::try_from(count).ok().filter(|n| (1..=attrs.inputs()).contains(n));
    let Some(scanned) = scanned else {
        fail!("num_scan_inputs is {count} for {} inputs", attrs.inputs());
    };
    let states = attrs.inputs() - scanned;
    let Some(stacked) = attrs.outputs().checked_sub(states) else {
        fail!("{} outputs for {states} states", attrs.outputs());
    };
    let mut list = |name: &str, len: usize| match attrs.opt_ints(name)? {
        None => Ok(vec![0; len]),
        Some(list) if list.is_empty() => Ok(vec![0; len]),
        Some(list) if list.len() == len => Ok(list),
        Some(list) => Err(Fault::new(format!("{name} has {} elements instead of {len}", list.len()))),
    };
    Ok(Arc::new(Flow(Control::Scan {
        scanned,
        input_axes: list("scan_input_axes", scanned)?,
        input_reverse: list("scan_input_directions", scanned)?.iter().map(|&d| d != 0).collect(),
        output_axes: list("scan_output_axes", stacked)?,
        output_reverse: list("scan_output_directions", stacked)?.iter().map(|&d| d != 0).collect(),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::{int, ints};
    use crate::ops::find;

    fn control(name: &str, version: i64, attributes: &[crate::ir::Attribute]) -> Result<Control, Fault> {
        let mut attrs = Attrs::new(attributes, version, 3, 4);
        let op = (find(ONNX, name, version).unwrap().parse)(&mut attrs)?;
        assert!(attrs.unread().is_empty());
        assert!(op.float(&[]).is_err());
        Ok(op.control().unwrap())
    }

    #[test]
    fn scan_lists_have_defaults() {
        let mut attributes = vec![int("body", 0), int("num_scan_inputs", 2)];
        let expected = Control::Scan {
            scanned: 2,
            input_axes: vec![0, 0],
            input_reverse: vec![false, true],
            output_axes: vec![0, 0, 0],
            output_reverse: vec![false; 3],
        };
        attributes.push(ints("scan_input_directions", [0, 1]));
        assert_eq!(control("Scan", 16, &attributes).unwrap(), expected);
        attributes[2] = ints("scan_output_axes", [1]);
        assert!(control("Scan", 16, &attributes).is_err());
        attributes[1] = int("num_scan_inputs", 4);
        assert!(control("Scan", 16, &attributes).is_err());
        assert!(control("Scan", 8, &[int("body", 0), int("num_scan_inputs", 3)]).is_err());
    }

    #[test]
    fn bodies_must_be_there() {
        assert_eq!(control("Loop", 13, &[int("body", 0)]).unwrap(), Control::Loop);
        assert!(control("If", 13, &[int("then_branch", 0)]).is_err());
    }
}
