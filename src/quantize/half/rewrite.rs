//! Giving every value of a graph its type.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::{Decision, decide, is_float};
use super::slots::{self, Slot};
use super::{Half, Halved, Ranges, label};
use crate::error::Fault;
use crate::ir::{
    Array, Attribute, DType, Graph, NodeId, Port, Tensor, TensorType, Value, ValueId, attribute, schedule,
};
use crate::ops::{self, Attrs};
use crate::passes::node;
use crate::proto::{ValueInfoProto, type_proto};

/// Rewrites the main graph and everything in it.
pub fn main_graph(
    graph: &mut Graph,
    half: &Half,
    version: i64,
    ranges: &Ranges,
    done: &mut Halved,
) -> Result<(), Fault> {
    let edge = if half.keep_io { DType::F32 } else { half.dtype };
    let mut lost = Lost::default();
    Rewriter { half, version, edge, outside: &BTreeMap::new(), whole: false, done, lost: &mut lost }
        .graph(graph, ranges)?;
    lost.report(half.dtype, done);
    Ok(())
}

/// Rewrites one graph.
struct Rewriter<'a> {
    half: &'a Half,
    version: i64,
    /// Type of the graph's own float inputs and outputs.
    edge: DType,
    /// New types of the float values that are captured from around the graph.
    outside: &'a BTreeMap<String, DType>,
    /// Does all of it stay float32?
    whole: bool,
    done: &'a mut Halved,
    lost: &'a mut Lost,
}

impl Rewriter<'_> {
    fn graph(&mut self, graph: &mut Graph, ranges: &Ranges) -> Result<(), Fault> {
        let mut decision = match self.whole {
            true => Decision { followers: graph.nodes().collect(), ..Decision::default() },
            false => decide(graph, self.half, self.version, ranges, self.edge == DType::F32),
        };
        self.tell(graph, &mut decision)?;
        let mut types = Types { stored: self.stored(graph, &decision), made: BTreeMap::new() };
        let nodes: Vec<NodeId> = graph.nodes().collect();
        self.outputs(graph, &mut types);
        for &id in &nodes {
            for slot in 0..graph.node(id).inputs {
                let Some(value) = graph.input(id, slot).filter(|v| types.stored.contains_key(v)) else {
                    continue;
                };
                let wanted = match slots::input(graph.node(id), slot) {
                    Slot::Any => continue,
                    Slot::Follows if !decision.is_float(id) => self.half.dtype,
                    _ => DType::F32,
                };
                let read = self.version_of(graph, value, wanted, &mut types);
                if read != value {
                    graph.rewire(id, slot, Some(read));
                }
            }
        }
        self.constants(graph, &types);
        for &id in &nodes {
            if !decision.is_float(id) {
                self.retype(graph, id)?;
            }
            self.bodies(graph, id, decision.is_float(id), &types)?;
        }
        self.declare(graph, &types);
        Ok(())
    }

    /// Notes for the report what is done to each node.
    fn tell(&mut self, graph: &Graph, decision: &mut Decision) -> Result<(), Fault> {
        let touches = |id| {
            let values = graph.inputs_of(id).into_iter().chain(graph.outputs_of(id)).flatten();
            values.into_iter().any(|v| is_float(graph, v))
        };
        for id in schedule(graph)? {
            if let Some(reason) = decision.kept.get(&id) {
                if touches(id) {
                    self.done.float.push((label(graph, id), reason.clone()));
                }
            } else if touches(id) && !decision.followers.contains(&id) && !graph.node(id).is("Constant") {
                self.done.nodes.push(label(graph, id));
            }
        }
        Ok(())
    }

    /// The type in which each float32 value will exist; that of constants follows their readers.
    fn stored(&self, graph: &Graph, decision: &Decision) -> BTreeMap<ValueId, DType> {
        let half = self.half.dtype;
        let wants_half = |v: ValueId| {
            let reads = |u: &crate::ir::Use| match u.port {
                Port::Input(slot) => {
                    !decision.is_float(u.node) && slots::input(graph.node(u.node), slot) == Slot::Follows
                }
                _ => !decision.is_float(u.node),
            };
            match graph.is_output(v) {
                true => self.edge == half,
                false => graph.uses(v).iter().any(reads),
            }
        };
        let of = |v: ValueId| {
            let value = graph.value(v);
            let outside = value.captured.then(|| self.outside.get(&value.name)).flatten();
            if let Some(&dtype) = outside {
                return Some(dtype);
            }
            if !is_float(graph, v) || value.captured {
                return None;
            }
            Some(match graph.producer(v) {
                Some((p, slot)) if decision.is_float(p) || slots::float_output(graph.node(p), slot) => {
                    DType::F32
                }
                Some(_) => half,
                None if value.constant.is_some() => {
                    if wants_half(v) {
                        half
                    } else {
                        DType::F32
                    }
                }
                None => self.edge,
            })
        };
        graph.values().filter_map(|v| Some((v, of(v)?))).collect()
    }

    /// Outputs of the graph keep their name; where their type is another, they are converted at the end.
    fn outputs(&mut self, graph: &mut Graph, types: &mut Types) {
        let outputs: BTreeSet<ValueId> = graph.outputs.iter().copied().collect();
        for value in outputs {
            let (Some(&stored), Some((producer, slot))) = (types.stored.get(&value), graph.producer(value))
            else {
                continue;
            };
            if stored == self.edge {
                continue;
            }
            let name = graph.name(value).to_string();
            let ty = graph.ty(value).cloned();
            let raw = graph.add_fresh(&format!("{name}_{stored}"), Value { ty, ..Value::default() });
            graph.set_output(producer, slot, raw);
            for usage in graph.uses(value) {
                if let Port::Input(slot) = usage.port {
                    graph.rewire(usage.node, slot, Some(raw));
                }
            }
            types.stored.insert(raw, stored);
            types.stored.insert(value, self.edge);
            self.cast(graph, raw, value, self.edge);
            types.made.insert((raw, self.edge), value);
        }
    }

    /// The value itself, or what holds it in the type wanted: a second constant, or the output of a Cast.
    fn version_of(&mut self, graph: &mut Graph, value: ValueId, wanted: DType, types: &mut Types) -> ValueId {
        if types.stored.get(&value).is_none_or(|&t| t == wanted) {
            return value;
        }
        if let Some(&made) = types.made.get(&(value, wanted)) {
            return made;
        }
        let hint = format!("{}_{wanted}", graph.name(value));
        let other = match graph.constant(value).cloned() {
            Some(tensor) => graph.add_constant(&hint, tensor),
            None => {
                let ty = graph.ty(value).cloned();
                let other = graph.add_fresh(&hint, Value { ty, ..Value::default() });
                self.cast(graph, value, other, wanted);
                other
            }
        };
        types.stored.insert(other, wanted);
        types.made.insert((value, wanted), other);
        other
    }

    fn cast(&mut self, graph: &mut Graph, from: ValueId, to: ValueId, dtype: DType) {
        let name = format!("{}_Cast", graph.name(to));
        let mut cast = node("Cast", name, vec![attribute::int("to", dtype.to_onnx().into())], 1);
        cast.rank = graph.producer(from).map_or(0, |(p, _)| graph.node(p).rank);
        graph.add_node(cast, &[Some(from)], &[Some(to)]);
        self.done.casts += 1;
    }

    /// Converts constants, and defaults of inputs, to the type that they are stored in.
    fn constants(&mut self, graph: &mut Graph, types: &Types) {
        let small = types.stored.iter().filter(|(_, t)| **t == self.half.dtype).map(|(v, _)| *v);
        for id in small.collect::<Vec<_>>() {
            let name = graph.name(id).to_string();
            let value = graph.value_mut(id);
            for tensor in [&mut value.constant, &mut value.default].into_iter().flatten() {
                if let Ok(converted) = self.lost.convert(&name, tensor, self.half.dtype) {
                    *tensor = converted;
                }
            }
        }
    }

    /// Makes a node answer in half precision.
    fn retype(&mut self, graph: &mut Graph, id: NodeId) -> Result<(), Fault> {
        let label = label(graph, id);
        let dtype = self.half.dtype;
        let node = graph.node_mut(id);
        if !matches!(node.domain.as_str(), "" | "ai.onnx") || node.unknown.is_some() {
            return Ok(());
        }
        let before = node.attributes.clone();
        slots::retype(node, dtype);
        if let Some(held) = slots::held(node) {
            self.held(&label, held)?;
        }
        if node.attributes != before {
            let (inputs, outputs) = (node.inputs, node.outputs);
            if let Some(def) = ops::find(&node.domain, &node.op_type, self.version) {
                let mut attrs = Attrs::new(&node.attributes, self.version, inputs, outputs);
                let op = (def.parse)(&mut attrs)?;
                graph.node_mut(id).op = Some(op);
            }
        }
        Ok(())
    }

    fn held(&mut self, name: &str, held: &mut Attribute) -> Result<(), Fault> {
        let array = match (&held.t, held.f) {
            (Some(proto), _) if proto.data_type == Some(DType::F32.to_onnx()) => {
                Tensor::from_proto(proto.clone(), None)?.array()?
            }
            (None, Some(v)) => Array::scalar(v),
            (None, None) if !held.floats.is_empty() => Array::vector(held.floats.clone()),
            _ => return Ok(()),
        };
        let converted = self.lost.convert(name, &Tensor::from_array(&array), self.half.dtype)?;
        *held = attribute::tensor("value", &converted);
        Ok(())
    }

    /// Rewrites the graphs inside a node; their own inputs and outputs have the node's precision.
    fn bodies(&mut self, graph: &mut Graph, id: NodeId, float: bool, types: &Types) -> Result<(), Fault> {
        if graph.node(id).bodies.is_empty() {
            return Ok(());
        }
        let mut outside = self.outside.clone();
        for v in graph.captures_of(id) {
            if let Some(&dtype) = types.stored.get(&v) {
                outside.insert(graph.name(v).into(), dtype);
            }
        }
        let names = graph.all_names();
        let mut bodies = std::mem::take(&mut graph.node_mut(id).bodies);
        for body in &mut bodies {
            body.graph
                .reserve(names.iter().filter(|n| body.graph.find(n).is_none()).cloned().collect::<Vec<_>>());
            Rewriter {
                half: self.half,
                version: self.version,
                edge: if float { DType::F32 } else { self.half.dtype },
                outside: &outside,
                whole: float || self.whole,
                done: &mut *self.done,
                lost: &mut *self.lost,
            }
            .graph(&mut body.graph, &Ranges::new())?;
            graph.reserve(body.graph.all_names());
        }
        graph.node_mut(id).bodies = bodies;
        Ok(())
    }

    /// Writes the new types into the values and into what the file declares.
    fn declare(&self, graph: &mut Graph, types: &Types) {
        let mut changed = BTreeSet::new();
        for (&id, &dtype) in &types.stored {
            if !graph.has_value(id) {
                continue;
            }
            let value = graph.value_mut(id);
            let dims = value.ty.take().and_then(|t| t.dims);
            value.ty = Some(TensorType { dtype, dims });
            if dtype != DType::F32 {
                changed.insert(value.name.clone());
            }
        }
        let constants: Vec<ValueId> = graph.constants.clone();
        constants.into_iter().for_each(|v| graph.remove_value_if_dead(v));
        let rest = &mut graph.rest;
        for info in rest.input.iter_mut().chain(&mut rest.output).chain(&mut rest.value_info) {
            declare(info, &changed, self.half.dtype);
        }
    }
}

/// The types of values after the rewrite, and what was made of each in another type.
struct Types {
    stored: BTreeMap<ValueId, DType>,
    made: BTreeMap<(ValueId, DType), ValueId>,
}

fn declare(info: &mut ValueInfoProto, changed: &BTreeSet<String>, dtype: DType) {
    if !info.name.as_ref().is_some_and(|n| changed.contains(n)) {
        return;
    }
    if let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        tensor.elem_type = Some(dtype.to_onnx());
    }
}

/// What half precision cannot hold of the constants.
#[derive(Default)]
struct Lost {
    saturated: Vec<(String, f32)>,
    vanished: Vec<(String, usize)>,
}

impl Lost {
    /// Rounds to nearest; finite values beyond the largest saturate, so that no infinity appears that was not there.
    fn convert(&mut self, name: &str, tensor: &Tensor, dtype: DType) -> Result<Tensor, Fault> {
        let array = tensor.array()?;
        let Array::F32(values) = &array else { return Ok(tensor.clone()) };
        let limit = if dtype == DType::F16 { half::f16::MAX.to_f32() } else { half::bf16::MAX.to_f32() };
        let fit = |v: &f32| if v.is_finite() { v.clamp(-limit, limit) } else { *v };
        if let Some(&v) = values.iter().find(|v| v.is_finite() && v.abs() > limit) {
            self.saturated.push((name.into(), v));
        }
        let (small, vanished): (Array, usize) = match dtype {
            DType::F16 => {
                let small = values.map(|v| half::f16::from_f32(fit(v)));
                let gone = values.iter().zip(&small).filter(|(v, s)| **v != 0.0 && s.to_f32() == 0.0).count();
                (small.into(), gone)
            }
            _ => (values.map(|v| half::bf16::from_f32(fit(v))).into(), 0),
        };
        if vanished > 0 {
            self.vanished.push((name.into(), vanished));
        }
        Ok(Tensor::from_array(&small))
    }

    fn report(self, dtype: DType, done: &mut Halved) {
        let names = |all: Vec<String>| {
            let more = all.len().saturating_sub(3);
            let shown = all.into_iter().take(3).collect::<Vec<_>>().join(", ");
            if more > 0 { format!("{shown} and {more} more") } else { shown }
        };
        if !self.saturated.is_empty() {
            let all = self.saturated.iter().map(|(n, v)| format!("`{n}` ({v:e})")).collect();
            done.warnings.push(format!("constants beyond the largest {dtype} saturate: {}", names(all)));
        }
        if !self.vanished.is_empty() {
            let count: usize = self.vanished.iter().map(|v| v.1).sum();
            let all = self.vanished.iter().map(|(n, _)| format!("`{n}`")).collect();
            done.warnings
                .push(format!("{count} constants below the smallest {dtype} become 0, in {}", names(all)));
        }
    }
}
