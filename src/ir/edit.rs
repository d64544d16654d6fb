//! An edit: what a rewrite wants changed. It is checked against the whole graph and applied whole or not at all.
//!
//! A rewrite looks at an immutable graph and describes new nodes, the values they define and the nodes they replace.
//! Safety is proved here, once for all rewrites: a node is dropped only if each of its outputs is defined anew, or
//! forwarded, or read by nobody else: not outside the match, not as a graph output, not by a body.

use super::{Graph, Node, NodeId, Tensor, TensorType, Value, ValueId};

/// Why a rewrite that matched was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl<T: Into<String>> From<T> for Refusal {
    fn from(reason: T) -> Self {
        Self(reason.into())
    }
}

/// A value in an edit: one that exists, or one that the edit makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operand {
    /// A value of the graph.
    Existing(ValueId),
    /// The n-th value that the edit makes.
    New(usize),
}

impl From<ValueId> for Operand {
    fn from(id: ValueId) -> Self {
        Self::Existing(id)
    }
}

#[derive(Debug)]
struct NewNode {
    node: Node,
    inputs: Vec<Option<Operand>>,
    outputs: Vec<Option<Operand>>,
}

/// Nodes to add, uses to move, nodes to drop.
#[derive(Debug, Default)]
pub struct Edit {
    values: Vec<(String, Value)>,
    nodes: Vec<NewNode>,
    forwards: Vec<(ValueId, Operand)>,
    definitions: Vec<(ValueId, Tensor)>,
    drops: Vec<NodeId>,
}

impl Edit {
    /// An edit that drops these nodes.
    pub fn dropping(nodes: &[NodeId]) -> Self {
        Self { drops: nodes.to_vec(), ..Self::default() }
    }

    /// Makes a constant; its name starts with `hint`.
    pub fn constant(&mut self, hint: &str, tensor: Tensor) -> Operand {
        let ty = Some(tensor.tensor_type());
        self.values.push((hint.into(), Value { ty, constant: Some(tensor), ..Value::default() }));
        Operand::New(self.values.len() - 1)
    }

    /// Makes a value for a new node to define; its name starts with `hint`.
    pub fn value(&mut self, hint: &str, ty: Option<TensorType>) -> Operand {
        self.values.push((hint.into(), Value { ty, ..Value::default() }));
        Operand::New(self.values.len() - 1)
    }

    /// Adds a node. An existing value among the outputs must lose its present producer in the same edit.
    pub fn node(&mut self, node: Node, inputs: Vec<Option<Operand>>, outputs: Vec<Option<Operand>>) {
        self.nodes.push(NewNode { node, inputs, outputs });
    }

    /// Adds a node whose inputs are all present, with one output.
    pub fn apply(&mut self, node: Node, inputs: &[Operand], output: impl Into<Operand>) {
        self.node(node, inputs.iter().copied().map(Some).collect(), vec![Some(output.into())]);
    }

    /// Moves every use of `from` to `to`.
    pub fn forward(&mut self, from: ValueId, to: impl Into<Operand>) {
        self.forwards.push((from, to.into()));
    }

    /// Makes an existing value a constant; its producer must be dropped in the same edit.
    pub fn define(&mut self, value: ValueId, tensor: Tensor) {
        self.definitions.push((value, tensor));
    }

    fn check(&self, graph: &Graph) -> Result<(), Refusal> {
        let defined = |v: ValueId| {
            self.nodes.iter().any(|n| n.outputs.contains(&Some(Operand::Existing(v))))
                || self.definitions.iter().any(|d| d.0 == v)
        };
        for &(from, _) in &self.forwards {
            if graph.is_pinned(from) {
                return Err(format!("`{}` must keep its name", graph.name(from)).into());
            }
        }
        for &node in &self.drops {
            for value in graph.outputs_of(node).into_iter().flatten() {
                let forwarded = self.forwards.iter().any(|f| f.0 == value);
                if defined(value) || forwarded {
                    continue;
                }
                if graph.is_pinned(value) {
                    return Err(
                        format!("`{}` is a graph output or read by a subgraph", graph.name(value)).into()
                    );
                }
                if graph.uses(value).iter().any(|u| !self.drops.contains(&u.node)) {
                    return Err(format!("`{}` is used elsewhere", graph.name(value)).into());
                }
            }
        }
        for output in self.nodes.iter().flat_map(|n| &n.outputs).flatten() {
            if let Operand::Existing(v) = *output {
                let free = graph.producer(v).is_none_or(|(p, _)| self.drops.contains(&p));
                if !free || graph.inputs.contains(&v) {
                    return Err(format!("`{}` would be defined twice", graph.name(v)).into());
                }
            }
        }
        Ok(())
    }

    /// Applies the edit to the graph, or says why it would change the meaning of something outside the match.
    pub fn commit(self, graph: &mut Graph) -> Result<(), Refusal> {
        self.check(graph)?;
        let rank = self.drops.iter().map(|&n| graph.node(n).rank).max();
        let orphans: Vec<ValueId> = self
            .drops
            .iter()
            .flat_map(|&n| {
                graph
                    .outputs_of(n)
                    .into_iter()
                    .chain(graph.inputs_of(n))
                    .flatten()
                    .chain(graph.captures_of(n))
            })
            .collect();
        let made: Vec<ValueId> =
            self.values.into_iter().map(|(hint, value)| graph.add_fresh(&hint, value)).collect();
        let resolve = |operand: Operand| match operand {
            Operand::Existing(id) => id,
            Operand::New(index) => made[index],
        };
        for &node in &self.drops {
            graph.remove_node(node);
        }
        for (value, tensor) in self.definitions {
            graph.set_constant(value, tensor);
        }
        for mut new in self.nodes {
            if let Some(rank) = rank {
                new.node.rank = rank;
            }
            let slots = |operands: &[Option<Operand>]| -> Vec<_> {
                operands.iter().map(|o| o.map(resolve)).collect()
            };
            graph.add_node(new.node, &slots(&new.inputs), &slots(&new.outputs));
        }
        for (from, to) in self.forwards {
            for usage in graph.uses(from) {
                if let super::Port::Input(slot) = usage.port {
                    graph.rewire(usage.node, slot, Some(resolve(to)));
                }
            }
        }
        orphans.into_iter().for_each(|v| graph.remove_value_if_dead(v));
        Ok(())
    }
}
