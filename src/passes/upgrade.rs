//! Raising the opset: per-channel DequantizeLinear needs version 13, half-precision scales 19, blocks and 4 bits 21,
//! and bfloat16 in most operators 22.
//!
//! Between versions a number of operators moved attributes to inputs, and a few changed their meaning. Each is
//! rewritten in place to its form of the version asked for, in the main graph and in every body: those that changed up
//! to version 13 here, the others in [`later`]. A model that is recent enough is left as it is. The version history is
//! in <https://onnx.ai/onnx/repo-docs/Changelog.html>.

mod later;

use crate::error::{Error, Fault};
use crate::interpret::node_label;
use crate::ir::{Array, Attribute, DType, Graph, Model, NodeId, Tensor, Value, ValueId, attribute};
use crate::onnx::parse;
use crate::ops::ONNX;

use super::{infer, node};

/// The oldest opset that the rewrites below start from.
const OLDEST: i64 = 7;

/// File formats by the first opset that belongs to each.
const IR_VERSIONS: [(i64, i64); 4] = [(13, 7), (15, 8), (19, 9), (21, 10)];

/// What [`later`] knows the way to.
const NEWEST: i64 = 22;

/// Raises the model to at least this opset of the ONNX domain.
pub fn upgrade(model: &mut Model, opset: i64) -> Result<(), Error> {
    let Some(from) = model.opset(ONNX) else {
        return Err(Fault::new("no version of the ONNX operator set is imported").at("opset"));
    };
    if from < OLDEST {
        let fault =
            Fault::new(format!("opset {from} is too old")).hint(format!("opset {OLDEST} and later are read"));
        return Err(fault.at("opset"));
    }
    if from < opset {
        debug_assert!(opset <= NEWEST);
        infer(&mut model.graph); // Softmax needs to know ranks
        convert_graph(&mut model.graph, from, opset)
            .map_err(|f| f.at(format_args!("raising opset {from} to {opset}")))?;
        let key = if model.opsets.contains_key(ONNX) { ONNX } else { "ai.onnx" };
        model.opsets.insert(key.into(), opset);
        let header =
            Model { graph: Graph::default(), opsets: model.opsets.clone(), rest: Default::default() };
        reparse(&mut model.graph, &header);
    }
    let format = IR_VERSIONS.iter().rev().find(|(first, _)| *first <= opset).map_or(0, |(_, format)| *format);
    if model.ir_version() < format {
        if model.ir_version() < 4 {
            close_inputs(&mut model.graph);
        }
        model.rest.ir_version = Some(format);
    }
    Ok(())
}

/// Before format 4 every initializer had to be an input too; afterwards that would mean a default to override.
fn close_inputs(graph: &mut Graph) {
    let constant: Vec<ValueId> =
        graph.inputs.iter().copied().filter(|&v| graph.constant(v).is_some()).collect();
    graph.inputs.retain(|v| !constant.contains(v));
    let names: Vec<String> = constant.iter().map(|&v| graph.name(v).to_string()).collect();
    graph.rest.input.retain(|i| !names.iter().any(|n| Some(n) == i.name.as_ref()));
}

fn reparse(graph: &mut Graph, header: &Model) {
    let ids: Vec<NodeId> = graph.nodes().collect();
    for id in ids {
        let n = graph.node(id);
        let (op, unknown) = parse(header, &n.domain, &n.op_type, &n.attributes, n.inputs, n.outputs);
        let n = graph.node_mut(id);
        (n.op, n.unknown) = (op, unknown);
        n.bodies.iter_mut().for_each(|b| reparse(&mut b.graph, header));
    }
}

fn convert_graph(graph: &mut Graph, from: i64, to: i64) -> Result<(), Fault> {
    let ids: Vec<NodeId> = graph.nodes().collect();
    for id in ids {
        let mut bodies = std::mem::take(&mut graph.node_mut(id).bodies);
        for body in &mut bodies {
            convert_graph(&mut body.graph, from, to)?;
            graph.reserve(body.graph.all_names());
        }
        graph.node_mut(id).bodies = bodies;
        if matches!(graph.node(id).domain.as_str(), "" | "ai.onnx") {
            let place = format!("node `{}` ({})", node_label(graph, id), graph.node(id).op_type);
            let mut change = Change { graph, id };
            let done = change.up_to_13(from).and_then(|()| change.beyond_13(from, to));
            done.map_err(|f| Fault::new(format!("{place}: {f}")))?;
        }
    }
    Ok(())
}

/// A node that is being rewritten.
struct Change<'a> {
    graph: &'a mut Graph,
    id: NodeId,
}

impl Change<'_> {
    /// The name of the node, for the constants made for it.
    fn label(&self) -> String {
        node_label(self.graph, self.id)
    }

    /// Forms that changed up to version 13.
    fn up_to_13(&mut self, from: i64) -> Result<(), Fault> {
        if from >= 13 {
            return Ok(());
        }
        let (id, change) = (self.id, self);
        let op_type = change.graph.node(id).op_type.clone();
        match op_type.as_str() {
            "Squeeze" | "Unsqueeze" | "ReduceSum" => change.ints_to_input("axes", 1),
            "Split" => change.ints_to_input("split", 1),
            "Softmax" | "LogSoftmax" | "Hardmax" => change.softmax()?,
            "Dropout" if from < 12 => {
                change.take("ratio");
            }
            "Clip" if from < 11 => {
                let bounds = [change.take("min"), change.take("max")];
                for (slot, bound) in bounds.into_iter().enumerate() {
                    if let Some(value) = bound.and_then(|a| a.f) {
                        change.input("bound", slot + 1, Array::scalar(value));
                    }
                }
            }
            "Pad" if from < 11 => {
                let value = change.take("value").and_then(|a| a.f).unwrap_or(0.0);
                change.ints_to_input("pads", 1);
                if value != 0.0 {
                    change.input("value", 2, Array::scalar(value));
                }
            }
            "Slice" if from < 10 => {
                let axes = change.take("axes");
                change.ints_to_input("starts", 1);
                change.ints_to_input("ends", 2);
                if let Some(axes) = axes {
                    change.input("axes", 3, Array::vector(axes.ints));
                }
            }
            "TopK" if from < 10 => {
                if let Some(k) = change.take("k").and_then(|a| a.i) {
                    change.input("k", 1, Array::vector(vec![k]));
                }
            }
            "Upsample" => change.upsample(),
            "Resize" if from < 11 => change.resize(1),
            "BatchNormalization" if change.take("spatial").and_then(|a| a.i) == Some(0) => {
                return Err("spatial=0 has no later form".into());
            }
            "Scatter" if from < 11 => change.graph.node_mut(id).op_type = "ScatterElements".into(),
            _ => {}
        }
        Ok(())
    }

    /// Removes an attribute.
    fn take(&mut self, name: &str) -> Option<Attribute> {
        let attributes = &mut self.graph.node_mut(self.id).attributes;
        let at = attributes.iter().position(|a| a.name.as_deref() == Some(name))?;
        Some(attributes.remove(at))
    }

    /// Fills an input slot with a constant.
    fn input(&mut self, what: &str, slot: usize, array: Array) {
        let name = format!("{}_{what}", node_label(self.graph, self.id));
        let value = self.graph.add_constant(&name, Tensor::from_array(&array));
        self.graph.rewire(self.id, slot, Some(value));
    }

    /// Moves a list of integers from an attribute to an input.
    fn ints_to_input(&mut self, name: &str, slot: usize) {
        if let Some(attribute) = self.take(name) {
            self.input(name, slot, Array::vector(attribute.ints));
        }
    }

    /// Upsample becomes Resize; its scales may be an attribute (7) or an input (9).
    fn upsample(&mut self) {
        if let Some(scales) = self.take("scales") {
            self.input("scales", 1, Array::vector(scales.floats));
        }
        let node = self.graph.node_mut(self.id);
        node.op_type = "Resize".into();
        for a in node.attributes.iter_mut().filter(|a| a.name.as_deref() == Some("mode")) {
            if matches!(a.s.as_deref(), Some(b"bilinear" | b"linear")) {
                *a = attribute::string("mode", "linear");
            }
        }
        self.resize(1);
    }

    /// Scales move from slot `from` behind the region of interest; coordinates were asymmetric then.
    fn resize(&mut self, from: usize) {
        let scales = self.graph.input(self.id, from);
        self.graph.rewire(self.id, from, None);
        self.graph.rewire(self.id, 2, scales);
        // Versions 11 and 12 want a region of interest even where it is not used, later ones allow none.
        let node = self.graph.node_mut(self.id);
        node.attributes.push(attribute::string("coordinate_transformation_mode", "asymmetric"));
        let nearest = node
            .attributes
            .iter()
            .find(|a| a.name.as_deref() == Some("mode"))
            .is_none_or(|a| a.s.as_deref() == Some(b"nearest"));
        if nearest {
            node.attributes.push(attribute::string("nearest_mode", "floor"));
        }
    }

    /// Before version 13 Softmax normalized over all axes from `axis` on, as if they were one. Over the last axis that
    /// is the same; otherwise the axes are really made one.
    fn softmax(&mut self) -> Result<(), Fault> {
        let axis = self.take("axis").and_then(|a| a.i).unwrap_or(1);
        let (id, graph) = (self.id, &mut *self.graph);
        let (Some(x), Some(y)) = (graph.input(id, 0), graph.output(id, 0)) else { return Ok(()) };
        let dims = graph.ty(x).and_then(|t| t.dims.clone());
        let trailing = |d: &Vec<crate::ir::Dim>| {
            let at = if axis < 0 { axis + d.len() as i64 } else { axis };
            let inner = usize::try_from(at).ok().and_then(|a| d.get(a + 1..));
            inner.is_some_and(|rest| rest.iter().all(|d| d.known() == Some(1)))
        };
        if dims.as_ref().is_some_and(trailing) || axis == -1 {
            graph.node_mut(id).attributes.push(attribute::int("axis", axis));
            return Ok(());
        }
        graph.node_mut(id).attributes.push(attribute::int("axis", -1));
        let label = node_label(graph, id);
        let mut fresh = |what: &str, dtype: Option<DType>| {
            let ty = dtype.map(crate::ir::TensorType::unranked);
            graph.add_fresh(&format!("{label}_{what}"), Value { ty, ..Value::default() })
        };
        let (flat, soft, shape) =
            (fresh("flat", None), fresh("soft", None), fresh("shape", Some(DType::I64)));
        let rank = graph.node(id).rank;
        let mut add = |op: &str, attributes, inputs: &[ValueId], output: ValueId| {
            let inputs: Vec<_> = inputs.iter().map(|&v| Some(v)).collect();
            let mut new = node(op, format!("{label}_{op}"), attributes, inputs.len());
            new.rank = rank;
            graph.add_node(new, &inputs, &[Some(output)]);
        };
        add("Flatten", vec![attribute::int("axis", axis)], &[x], flat);
        add("Shape", vec![], &[x], shape);
        graph.rewire(id, 0, Some(flat));
        graph.set_output(id, 0, soft);
        let mut back = node("Reshape", format!("{label}_Reshape"), vec![], 2);
        back.rank = rank;
        graph.add_node(back, &[Some(soft), Some(shape)], &[Some(y)]);
        Ok(())
    }
}
