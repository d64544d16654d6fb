//! The graph: operators *and* values are vertices, because in ONNX names belong to values.
//!
//! An edge carries the slot it fills. `Mul(x, x)` is two parallel edges; an absent optional input is a missing slot under
//! a kept arity; a value that a body of If, Loop or Scan captures is an edge into the node that owns the body, so that
//! every question about the uses of a value has one answer. Only this file touches petgraph's indices.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

use super::{Attribute, Op, Tensor, TensorType};
use crate::proto::{GraphProto, NodeProto};

/// An operator in a graph. Stays valid while other nodes come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(NodeIndex);

/// A value in a graph. Stays valid while other values come and go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(NodeIndex);

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0.index())
    }
}

/// An application of an operator.
#[derive(Debug, Clone)]
pub struct Node {
    /// The name, possibly empty.
    pub name: String,
    /// Operator type.
    pub op_type: String,
    /// Operator domain as written; ONNX's own is `""` or `ai.onnx`.
    pub domain: String,
    /// Attributes as read. Graph-valued ones are without their graphs, which are in `bodies`.
    pub attributes: Vec<Attribute>,
    /// The meaning; `None` for an operator that qonnx does not know, which passes treat as a wall.
    pub op: Option<Arc<dyn Op>>,
    /// Why `op` is `None`.
    pub unknown: Option<String>,
    /// The graphs inside.
    pub bodies: Vec<Body>,
    /// Number of input slots, absent ones included.
    pub inputs: usize,
    /// Number of output slots, absent ones included.
    pub outputs: usize,
    /// Where the node stands among nodes that do not depend on each other.
    pub rank: u64,
    /// What is not modelled (doc string, metadata, overload).
    pub rest: NodeProto,
}

impl Node {
    /// The operator as type `T`, if it is one.
    pub fn op_as<T: Op>(&self) -> Option<&T> {
        if self.unknown.is_some() {
            return None;
        }
        self.op.as_deref()?.as_a()
    }

    /// Is it this operator of the ONNX domain?
    pub fn is(&self, op_type: &str) -> bool {
        self.op_type == op_type && matches!(self.domain.as_str(), "" | "ai.onnx")
    }
}

/// A graph held by an attribute of a node.
#[derive(Debug, Clone)]
pub struct Body {
    /// Position of the attribute in `Node::attributes`.
    pub attribute: usize,
    /// The attribute's name.
    pub name: String,
    /// The graph.
    pub graph: Graph,
}

/// A tensor-valued variable: graph input, constant, or output of a node.
#[derive(Debug, Clone, Default)]
pub struct Value {
    /// The name by which files refer to it.
    pub name: String,
    /// Declared or inferred type.
    pub ty: Option<TensorType>,
    /// The value itself if it is a constant.
    pub constant: Option<Tensor>,
    /// The default of a graph input that callers may override.
    pub default: Option<Tensor>,
    /// Defined in a graph around this one.
    pub captured: bool,
}

#[derive(Debug, Clone)]
enum Vertex {
    Node(Box<Node>),
    Value(Box<Value>),
}

/// What an edge between a value and a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Port {
    /// The value fills this input slot.
    Input(usize),
    /// The node defines the value in this output slot.
    Output(usize),
    /// A body of the node refers to the value.
    Capture,
}

/// One use of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Use {
    /// The node that reads the value.
    pub node: NodeId,
    /// How it reads it.
    pub port: Port,
}

/// A graph of operators and values.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    edges: StableDiGraph<Vertex, Port>,
    by_name: HashMap<String, ValueId>,
    /// Names taken in bodies, which new values must not shadow.
    reserved: HashSet<String>,
    /// Graph inputs in order.
    pub inputs: Vec<ValueId>,
    /// Graph outputs in order.
    pub outputs: Vec<ValueId>,
    /// Constants in the order of the file, then new ones.
    pub constants: Vec<ValueId>,
    /// What is not modelled, and the declarations of inputs, outputs and values as read.
    pub rest: GraphProto,
}

impl Graph {
    /// Every node, by id.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let is_node = |&i: &NodeIndex| matches!(self.edges.node_weight(i), Some(Vertex::Node(_)));
        self.edges.node_indices().filter(is_node).map(NodeId)
    }

    /// Every value, by id.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        let is_value = |&i: &NodeIndex| matches!(self.edges.node_weight(i), Some(Vertex::Value(_)));
        self.edges.node_indices().filter(is_value).map(ValueId)
    }

    /// Is the node still there?
    pub fn has_node(&self, id: NodeId) -> bool {
        matches!(self.edges.node_weight(id.0), Some(Vertex::Node(_)))
    }

    /// Is the value still there?
    pub fn has_value(&self, id: ValueId) -> bool {
        matches!(self.edges.node_weight(id.0), Some(Vertex::Value(_)))
    }

    /// Is this value of another graph, of which this one was made, here still? Ids of removed values are used again.
    pub fn has_still(&self, value: ValueId, other: &Graph) -> bool {
        self.has_value(value) && self.name(value) == other.name(value)
    }

    /// A node. The id must come from this graph and the node must still be there.
    pub fn node(&self, id: NodeId) -> &Node {
        match &self.edges[id.0] {
            Vertex::Node(node) => node,
            Vertex::Value(_) => unreachable!("a NodeId names a node"),
        }
    }

    /// A node, to change all but its edges.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        match &mut self.edges[id.0] {
            Vertex::Node(node) => node,
            Vertex::Value(_) => unreachable!("a NodeId names a node"),
        }
    }

    /// A value. The id must come from this graph and the value must still be there.
    pub fn value(&self, id: ValueId) -> &Value {
        match &self.edges[id.0] {
            Vertex::Value(value) => value,
            Vertex::Node(_) => unreachable!("a ValueId names a value"),
        }
    }

    /// A value, to change all but its name and edges.
    pub fn value_mut(&mut self, id: ValueId) -> &mut Value {
        match &mut self.edges[id.0] {
            Vertex::Value(value) => value,
            Vertex::Node(_) => unreachable!("a ValueId names a value"),
        }
    }

    /// The value's name.
    pub fn name(&self, id: ValueId) -> &str {
        &self.value(id).name
    }

    /// The constant that the value is, if it is one.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        self.value(id).constant.as_ref()
    }

    /// The type as far as it is known.
    pub fn ty(&self, id: ValueId) -> Option<&TensorType> {
        self.value(id).ty.as_ref()
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.by_name.get(name).copied()
    }

    /// The value in each input slot.
    pub fn inputs_of(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).inputs];
        for edge in self.edges.edges_directed(id.0, Direction::Incoming) {
            if let Port::Input(slot) = *edge.weight() {
                slots[slot] = Some(ValueId(edge.source()));
            }
        }
        slots
    }

    /// The value in one input slot.
    pub fn input(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        let mut edges = self.edges.edges_directed(id.0, Direction::Incoming);
        edges.find(|e| *e.weight() == Port::Input(slot)).map(|e| ValueId(e.source()))
    }

    /// The constant in one input slot.
    pub fn constant_input(&self, id: NodeId, slot: usize) -> Option<&Tensor> {
        self.constant(self.input(id, slot)?)
    }

    /// The value in each output slot.
    pub fn outputs_of(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).outputs];
        for edge in self.edges.edges_directed(id.0, Direction::Outgoing) {
            if let Port::Output(slot) = *edge.weight() {
                slots[slot] = Some(ValueId(edge.target()));
            }
        }
        slots
    }

    /// The value in one output slot.
    pub fn output(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        let mut edges = self.edges.edges_directed(id.0, Direction::Outgoing);
        edges.find(|e| *e.weight() == Port::Output(slot)).map(|e| ValueId(e.target()))
    }

    /// The values that bodies of the node refer to.
    pub fn captures_of(&self, id: NodeId) -> Vec<ValueId> {
        let edges = self.edges.edges_directed(id.0, Direction::Incoming);
        let mut values: Vec<_> =
            edges.filter(|e| *e.weight() == Port::Capture).map(|e| ValueId(e.source())).collect();
        values.sort();
        values
    }

    /// The node and output slot that define the value.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, usize)> {
        self.edges.edges_directed(id.0, Direction::Incoming).find_map(|edge| match *edge.weight() {
            Port::Output(slot) => Some((NodeId(edge.source()), slot)),
            _ => None,
        })
    }

    /// The uses of the value, by node and slot.
    pub fn uses(&self, id: ValueId) -> Vec<Use> {
        let edges = self.edges.edges_directed(id.0, Direction::Outgoing);
        let mut uses: Vec<Use> = edges.map(|e| Use { node: NodeId(e.target()), port: *e.weight() }).collect();
        uses.sort();
        uses
    }

    /// The only use of a value that is no graph output.
    pub fn only_use(&self, id: ValueId) -> Option<Use> {
        match self.uses(id)[..] {
            [only] if !self.is_output(id) => Some(only),
            _ => None,
        }
    }

    /// Is it an output of the graph?
    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.contains(&id)
    }

    /// Must it keep its identity: a graph output, or read by name inside a body?
    pub fn is_pinned(&self, id: ValueId) -> bool {
        self.is_output(id) || self.uses(id).iter().any(|u| u.port == Port::Capture)
    }

    /// Adds a value under a name that no other value has; `None` if the name is taken.
    pub fn add_value(&mut self, value: Value) -> Option<ValueId> {
        if self.by_name.contains_key(&value.name) {
            return None;
        }
        let name = value.name.clone();
        let is_constant = value.constant.is_some();
        let id = ValueId(self.edges.add_node(Vertex::Value(Box::new(value))));
        self.by_name.insert(name, id);
        if is_constant {
            self.constants.push(id);
        }
        Some(id)
    }

    /// Adds a constant under a name made from `hint`.
    pub fn add_constant(&mut self, hint: &str, tensor: Tensor) -> ValueId {
        let ty = Some(tensor.tensor_type());
        self.add_fresh(hint, Value { ty, constant: Some(tensor), ..Value::default() })
    }

    /// Makes a value that nothing defines a constant.
    pub fn set_constant(&mut self, id: ValueId, tensor: Tensor) {
        if !self.constants.contains(&id) {
            self.constants.push(id);
        }
        let value = self.value_mut(id);
        value.ty = Some(tensor.tensor_type());
        value.constant = Some(tensor);
    }

    /// Adds a value under a name made from `hint`.
    pub fn add_fresh(&mut self, hint: &str, mut value: Value) -> ValueId {
        value.name = self.fresh_name(hint);
        let is_constant = value.constant.is_some();
        let name = value.name.clone();
        let id = ValueId(self.edges.add_node(Vertex::Value(Box::new(value))));
        self.by_name.insert(name, id);
        if is_constant {
            self.constants.push(id);
        }
        id
    }

    /// A name that no value has, here or in a body: `hint`, or `hint_1`, `hint_2`, …
    pub fn fresh_name(&self, hint: &str) -> String {
        let taken = |name: &str| self.by_name.contains_key(name) || self.reserved.contains(name);
        let numbered = (1u64..).map(|i| format!("{hint}_{i}"));
        let mut names = std::iter::once(hint.to_string()).filter(|h| !h.is_empty()).chain(numbered);
        names.find(|name| !taken(name)).unwrap_or_default()
    }

    /// Keeps new values from taking these names.
    pub fn reserve(&mut self, names: impl IntoIterator<Item = String>) {
        self.reserved.extend(names);
    }

    /// Names of this graph's values and of those in its bodies.
    pub fn all_names(&self) -> HashSet<String> {
        self.by_name.keys().chain(&self.reserved).cloned().collect()
    }

    /// Adds a node and its edges; the slots decide its arity.
    pub fn add_node(
        &mut self,
        mut node: Node,
        inputs: &[Option<ValueId>],
        outputs: &[Option<ValueId>],
    ) -> NodeId {
        (node.inputs, node.outputs) = (inputs.len(), outputs.len());
        let id = self.edges.add_node(Vertex::Node(Box::new(node)));
        for (slot, value) in inputs.iter().enumerate() {
            if let Some(value) = value {
                self.edges.add_edge(value.0, id, Port::Input(slot));
            }
        }
        for (slot, value) in outputs.iter().enumerate() {
            if let Some(value) = value {
                self.edges.add_edge(id, value.0, Port::Output(slot));
            }
        }
        NodeId(id)
    }

    /// Notes that a body of the node refers to the value.
    pub fn add_capture(&mut self, node: NodeId, value: ValueId) {
        if !self.captures_of(node).contains(&value) {
            self.edges.add_edge(value.0, node.0, Port::Capture);
        }
    }

    /// Lets one use read another value (or nothing, if the slot is optional).
    pub fn rewire(&mut self, node: NodeId, slot: usize, to: Option<ValueId>) {
        let edges = self.edges.edges_directed(node.0, Direction::Incoming);
        let old = edges.filter(|e| *e.weight() == Port::Input(slot)).map(|e| e.id()).next();
        if let Some(edge) = old {
            self.edges.remove_edge(edge);
        }
        if let Some(value) = to {
            let arity = &mut self.node_mut(node).inputs;
            *arity = (*arity).max(slot + 1);
            self.edges.add_edge(value.0, node.0, Port::Input(slot));
        }
    }

    /// Lets another value stand in an output slot. The old one, if any, is left without a producer.
    pub fn set_output(&mut self, node: NodeId, slot: usize, to: ValueId) {
        let edges = self.edges.edges_directed(node.0, Direction::Outgoing);
        let old = edges.filter(|e| *e.weight() == Port::Output(slot)).map(|e| e.id()).next();
        if let Some(edge) = old {
            self.edges.remove_edge(edge);
        }
        let arity = &mut self.node_mut(node).outputs;
        *arity = (*arity).max(slot + 1);
        self.edges.add_edge(node.0, to.0, Port::Output(slot));
    }

    /// Removes a node; its values stay.
    pub fn remove_node(&mut self, id: NodeId) {
        if self.has_node(id) {
            self.edges.remove_node(id.0);
        }
    }

    /// Removes a value that nothing defines, reads or returns; others are left as they are.
    pub fn remove_value_if_dead(&mut self, id: ValueId) {
        let connected = self.edges.neighbors_undirected(id.0).next().is_some();
        if !self.has_value(id) || connected || self.is_output(id) || self.inputs.contains(&id) {
            return;
        }
        self.by_name.remove(&self.value(id).name.clone());
        self.edges.remove_node(id.0);
        if let Some(at) = self.constants.iter().position(|&c| c == id) {
            self.constants.remove(at);
        }
    }
}
