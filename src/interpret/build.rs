//! From a graph to the steps of a program.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::integer::Exact;
use super::watch::Shown;
use super::{Action, Numerics, Program, Step, node_label, room};
use crate::error::Error;
use crate::ir::{
    Array, Datum, Fact, Given, Graph, NodeId, Op, Runtime, Tensor, TensorType, ValueId, schedule,
};

/// A program that is being compiled.
pub(super) struct Builder<'a> {
    pub graph: &'a Graph,
    pub numerics: Numerics,
    pub program: Program,
    /// Values for which integers stand, exactly.
    pub exact: HashMap<ValueId, Exact>,
    /// Those of them that were made real numbers.
    pub real: HashSet<ValueId>,
    /// Types that follow from those of the inputs, whatever the graph declares.
    types: HashMap<usize, TensorType>,
    /// The step that fills a slot.
    pub filled_by: HashMap<usize, usize>,
    /// Values that ONNX Runtime computes from stored numbers before it runs.
    known_ahead: HashSet<ValueId>,
    /// What it knows of the values around the graph before it runs.
    around: Around<'a>,
}

/// The numbers of this name that are known ahead of a run.
type Around<'a> = &'a dyn Fn(&str) -> Option<Array>;

impl Program {
    /// Compiles a graph that is to compute by the ONNX definition. Operators that are not known are noticed when a run
    /// reaches them.
    pub fn new(graph: &Graph) -> Result<Self, Error> {
        Self::with_numerics(graph, Numerics::Definition)
    }

    /// Compiles a graph whose quantized operators are to compute in this way.
    pub fn with_numerics(graph: &Graph, numerics: Numerics) -> Result<Self, Error> {
        Self::within(graph, numerics, &|_| None)
    }

    fn within(graph: &Graph, numerics: Numerics, around: Around) -> Result<Self, Error> {
        let mut builder = Builder::new(graph, numerics, around);
        for id in schedule(graph).map_err(|f| f.at("scheduling"))? {
            if numerics != Numerics::Ort || !builder.on_integers(id) {
                builder.plain(id)?;
            }
        }
        Ok(builder.finish())
    }
}

impl<'a> Builder<'a> {
    fn new(graph: &'a Graph, numerics: Numerics, around: Around<'a>) -> Self {
        let slots: HashMap<ValueId, usize> =
            graph.values().enumerate().map(|(slot, id)| (id, slot)).collect();
        let mut initial = vec![None; slots.len()];
        let (mut captures, mut known_ahead) = (Vec::new(), HashSet::new());
        for (&id, &slot) in &slots {
            let value = graph.value(id);
            if let Some(tensor) = value.constant.as_ref().or(value.default.as_ref()) {
                // A constant of a type that has no array (complex numbers) is missed by whoever reads it.
                initial[slot] = tensor.array().ok().map(Datum::Tensor);
            }
            if !value.captured {
                continue;
            }
            // With optimizations, what is stored around a graph is like its own.
            if let Some(array) = around(&value.name).filter(|_| numerics == Numerics::Ort) {
                initial[slot] = Some(Datum::Tensor(array));
                known_ahead.insert(id);
            } else {
                captures.push((value.name.clone(), slot));
            }
        }
        captures.sort();
        let inputs = graph.inputs.iter().map(|v| slots[v]).collect();
        let steps = Vec::new();
        let program =
            Program { steps, slots, initial, inputs, outputs: Vec::new(), captures, shown: Vec::new() };
        Self {
            graph,
            numerics,
            program,
            exact: HashMap::new(),
            real: HashSet::new(),
            types: HashMap::new(),
            filled_by: HashMap::new(),
            known_ahead,
            around,
        }
    }

    /// A step that computes the node by its definition.
    fn plain(&mut self, id: NodeId) -> Result<(), Error> {
        for value in self.graph.inputs_of(id).into_iter().flatten().chain(self.graph.captures_of(id)) {
            self.make_real(value);
        }
        let step = self.step(id)?;
        if !self.fold(&step) {
            self.push(step);
            self.fuse(id);
        }
        Ok(())
    }

    /// Appends a step.
    pub fn push(&mut self, step: Step) {
        let index = self.program.steps.len();
        self.filled_by.extend(step.outputs.iter().flatten().map(|&(slot, _)| (slot, index)));
        self.program.steps.push(step);
    }

    /// Where a value lives.
    pub fn slot(&self, id: ValueId) -> usize {
        self.program.slots[&id]
    }

    /// The constant in a slot.
    pub fn constant(&self, slot: usize) -> Option<&Array> {
        let value = self.program.initial[slot].as_ref().filter(|_| !self.program.inputs.contains(&slot))?;
        value.as_tensor().ok()
    }

    fn step(&mut self, id: NodeId) -> Result<Step, Error> {
        let size = self.size(id);
        let (graph, slots) = (self.graph, &self.program.slots);
        let node = graph.node(id);
        let action = match (&node.op, &node.unknown) {
            (Some(op), None) => match op.control() {
                None => Action::Compute(self.ready(id, self.as_runtime_has_it(id, op))),
                Some(control) => {
                    let captured = graph.captures_of(id);
                    let around = |name: &str| match captured.iter().find(|&&v| graph.name(v) == name) {
                        Some(&value) => match self.given(value) {
                            Given::Ahead(array) => Some(array.clone()),
                            _ => (self.around)(name),
                        },
                        None => (self.around)(name),
                    };
                    let body = |graph| Program::within(graph, self.numerics, &around);
                    let function = op.body().map(|graph| ("function".to_string(), graph));
                    let own = node.bodies.iter().map(|b| (b.name.clone(), &b.graph));
                    let bodies = own.chain(function).map(|(name, graph)| Ok((name, body(graph)?)));
                    let outer = graph
                        .captures_of(id)
                        .into_iter()
                        .map(|v| (graph.name(v).to_string(), slots[&v]))
                        .collect();
                    let bodies = bodies.collect::<Result<_, Error>>()?;
                    Action::Control { op: op.clone(), control, bodies, outer }
                }
            },
            (_, Some(why)) => Action::Missing(why.clone()),
            (None, None) => Action::Missing(node.op_type.clone()),
        };
        let outputs: Vec<_> = graph.outputs_of(id).iter().map(|v| v.map(|v| (slots[&v], v))).collect();
        let shown = outputs.iter().flatten().map(|&(slot, id)| Shown { slot, id, meaning: None }).collect();
        Ok(Step {
            node: id,
            place: self.place(id),
            inputs: graph.inputs_of(id).iter().map(|v| v.map(|v| slots[&v])).collect(),
            outputs,
            shown,
            last_reads: Vec::new(),
            action,
            size,
            sum: None,
            limits: None,
        })
    }

    /// The operator with the sums and functions of ONNX Runtime.
    fn as_runtime_has_it(&self, id: NodeId, op: &Arc<dyn Op>) -> Arc<dyn Op> {
        if self.numerics == Numerics::Definition {
            return op.clone();
        }
        let values = self.graph.inputs_of(id);
        let around: Vec<Option<Array>> =
            values.iter().map(|v| v.and_then(|v| (self.around)(self.graph.name(v)))).collect();
        let inputs: Vec<Given> = values
            .into_iter()
            .zip(&around)
            .map(|(value, around)| match (value.map(|v| self.given(v)), around) {
                (None, _) => Given::Absent,
                (Some(Given::Later), Some(array)) => Given::Ahead(array),
                (Some(given), _) => given,
            })
            .collect();
        let runtime = Runtime { optimized: self.numerics == Numerics::Ort, inputs: &inputs };
        op.in_runtime(&runtime).unwrap_or_else(|| op.clone())
    }

    /// The operator with its constants laid out.
    fn ready(&self, id: NodeId, op: Arc<dyn Op>) -> Arc<dyn Op> {
        let inputs = self.graph.inputs_of(id);
        let constants: Vec<Option<&Array>> =
            inputs.into_iter().map(|v| self.constant(self.slot(v?))).collect();
        op.with_constants(&constants).unwrap_or(op)
    }

    /// What ONNX Runtime knows of a value before it runs.
    fn given(&self, value: ValueId) -> Given<'_> {
        let ahead = self.graph.constant(value).is_some() || self.known_ahead.contains(&value);
        self.constant(self.slot(value)).filter(|_| ahead).map_or(Given::Later, Given::Ahead)
    }

    /// The bytes of what the node returns, if they are known now.
    fn size(&mut self, id: NodeId) -> Option<u64> {
        let graph = self.graph;
        let op = graph.node(id).op.as_ref()?;
        let known = |v: ValueId| {
            let constant = graph.constant(v);
            let own = graph.inputs.contains(&v).then(|| graph.ty(v)).flatten();
            let ty = own.or_else(|| self.types.get(&self.program.slots[&v])).cloned();
            Some((ty.or_else(|| constant.map(Tensor::tensor_type))?, constant))
        };
        let inputs: Vec<_> = graph.inputs_of(id).into_iter().map(|v| v.and_then(known)).collect();
        let facts: Vec<Option<Fact>> = inputs
            .iter()
            .map(|i| i.as_ref().map(|(ty, constant)| Fact { ty, constant: *constant }))
            .collect();
        let found = op.infer(&facts).unwrap_or_default();
        let outputs = graph.outputs_of(id);
        let mut size = (found.len() >= outputs.len()).then_some(0u64);
        for (value, ty) in outputs.into_iter().zip(found) {
            if value.is_some() {
                let bytes = ty.as_ref().and_then(room::bytes_of_type);
                size = size.zip(bytes).map(|(sum, bytes)| sum.saturating_add(bytes));
            }
            if let (Some(value), Some(ty)) = (value, ty) {
                self.types.insert(self.program.slots[&value], ty);
            }
        }
        size
    }

    /// What a node is called in messages.
    pub fn place(&self, id: NodeId) -> String {
        format!("node `{}` ({})", node_label(self.graph, id), self.graph.node(id).op_type)
    }

    /// Runs a step now if it depends on constants only.
    pub fn fold(&mut self, step: &Step) -> bool {
        let Action::Compute(op) = &step.action else { return false };
        if !op.is_pure() || !step.inputs.iter().flatten().all(|&s| self.constant(s).is_some()) {
            return false;
        }
        let program = &mut self.program;
        let inputs: Vec<_> = step.inputs.iter().map(|s| s.and_then(|s| program.initial[s].clone())).collect();
        let computed = room::compute(&**op, inputs, None);
        let Ok(outputs) = computed else { return false }; // the run will say why
        // It lays out what follows from stored numbers, but nothing that integers stand for.
        let ahead =
            self.numerics == Numerics::Ort && self.graph.node(step.node).op_type != "DequantizeLinear";
        for (output, value) in step.outputs.iter().zip(outputs) {
            if let Some((slot, id)) = output {
                program.initial[*slot] = Some(value);
                self.known_ahead.extend(ahead.then_some(*id));
            }
        }
        let values = self.graph.inputs_of(step.node);
        for (&slot, &id) in step.inputs.iter().flatten().zip(values.iter().flatten()) {
            if self.graph.only_use(id).is_some() && self.numerics != Numerics::Ort {
                program.initial[slot] = None; // an expanded weight takes the place of the stored one
            }
        }
        true
    }

    fn finish(mut self) -> Program {
        for &output in &self.graph.outputs {
            self.make_real(output);
        }
        let mut program = self.program;
        program.outputs = self.graph.outputs.iter().map(|v| program.slots[v]).collect();
        program.note_last_reads();
        program
    }
}

impl Program {
    /// Notes after which step a slot is not needed any more, and forgets constants that no step reads.
    fn note_last_reads(&mut self) {
        let mut last = HashMap::new();
        for (index, step) in self.steps.iter().enumerate() {
            let captured = match &step.action {
                Action::Control { outer, .. } => outer.values().copied().collect(),
                _ => Vec::new(),
            };
            let defined = step.outputs.iter().flatten().map(|o| o.0);
            for slot in step.inputs.iter().flatten().copied().chain(captured).chain(defined) {
                last.insert(slot, index);
            }
        }
        for (slot, constant) in self.initial.iter_mut().enumerate() {
            if !last.contains_key(&slot) && !self.outputs.contains(&slot) && !self.inputs.contains(&slot) {
                *constant = None;
            }
        }
        for (slot, index) in last {
            if self.initial[slot].is_none() && !self.outputs.contains(&slot) {
                self.steps[index].last_reads.push(slot);
            }
        }
        self.steps.iter_mut().for_each(|s| s.last_reads.sort_unstable());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::{import, text};

    /// The names that the bodies of the only control-flow node look for around them.
    fn captured(program: &Program) -> Vec<&str> {
        let bodies = program.steps.iter().filter_map(|step| match &step.action {
            Action::Control { bodies, .. } => Some(bodies),
            _ => None,
        });
        let names =
            bodies.flatten().flat_map(|(_, body)| body.captures.iter().map(|(name, _)| name.as_str()));
        names.collect()
    }

    #[test]
    fn bodies_know_what_is_stored_around_them_if_it_is_laid_out_ahead() {
        let source = r#"<ir_version: 8, opset_import: ["" : 13]>
            g (bool c, float[2,3] x) => (float[2,2] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}> {
              y = If (c) <
                then_branch = t () => (float[2,2] p) { v = Transpose <perm = [1, 0]> (w) p = MatMul (x, v) },
                else_branch = e () => (float[2,2] q) { u = Transpose <perm = [1, 0]> (w) q = MatMul (x, u) }
              >
            }"#;
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let [spec, ort] = [Numerics::Spec, Numerics::Ort].map(|n| Program::with_numerics(&graph, n).unwrap());
        assert_eq!(captured(&spec), ["w", "x", "w", "x"]);
        assert_eq!(captured(&ort), ["x", "x"]);
        let x = Array::new(&[2, 3], vec![1.0f32, 0.0, 2.0, -1.0, 1.0, 0.5]).unwrap();
        for truth in [true, false] {
            let inputs = [Array::new(&[], vec![truth]).unwrap(), x.clone()];
            let y = Array::new(&[2, 2], vec![7.0f32, 16.0, 2.5, 4.0]).unwrap();
            assert_eq!(spec.run(&inputs).unwrap(), std::slice::from_ref(&y));
            assert_eq!(ort.run(&inputs).unwrap(), [y]);
        }
    }
}
