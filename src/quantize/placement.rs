//! Which nodes become integer: the cheapest choice, found by a minimum cut.
//!
//! Every candidate is either integer or float, at the estimated cost of its kernel. Where an integer node reads a float
//! value, the value must be quantized, once for all its integer readers; where a float node reads an integer value, it
//! must be dequantized, once for all. The total cost of a labelling is the capacity of a cut in a network with one
//! vertex per node and two per value, so the least cut is the least cost (Greig, Porteous and Seheult 1989). Islands of
//! integer operators that would not pay for their boundaries stay float by themselves.
//!
//! Accuracy is a cost too: a value that is quantized adds noise, in proportion to the signal `10^(-SQNR/10)`, and so does
//! a weight. It is charged in the currency of the network, as a multiple of that share of the whole model's float time.
//! An operator whose output is hard to represent in 8 bits must therefore save much time to become integer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::candidate::{Candidate, Candidates, elements};
use super::target::Target;
use crate::calibrate::observer::Observers;
use crate::ir::{DType, Graph, NodeId, Port, Rule, ValueId};
use crate::ops::conv::Conv;

/// The outcome for every node.
#[derive(Debug, Clone, Default)]
pub struct Placement {
    /// Integer nodes.
    pub integer: BTreeMap<NodeId, Candidate>,
    /// Float nodes that hold arithmetic, with the reason.
    pub float: BTreeMap<NodeId, String>,
}

/// What quantization is known to do to the outputs: noise over signal, `10^(-SQNR/10)`.
#[derive(Debug, Clone, Default)]
pub struct Noise {
    /// If this value alone is quantized.
    pub values: BTreeMap<ValueId, f64>,
    /// If the weight of this node alone is quantized.
    pub weights: BTreeMap<NodeId, f64>,
}

/// Labels every node of the main graph.
pub fn place(
    graph: &Graph,
    target: &Target,
    candidates: Candidates,
    seen: &Observers<ValueId>,
    noise: &Noise,
) -> Placement {
    let Candidates { integer: mut candidates, float } = candidates;
    let mut placement = Placement { float, ..Placement::default() };
    loop {
        let integer = cheapest(graph, target, &candidates, seen, noise);
        // Which clamp stands behind which operator depends on the labels; one that lost its operator is float.
        let lost: Vec<NodeId> = candidates
            .values()
            .filter(|c| matches!(c.rule, Rule::Clamp { .. }) && clamped(graph, c, &candidates).is_none())
            .map(|c| c.id)
            .collect();
        if lost.is_empty() {
            for (id, found) in candidates {
                match integer.contains(&id) {
                    true => placement.integer.insert(id, found).is_none(),
                    false => placement.float.insert(id, "integer would not be faster here".into()).is_none(),
                };
            }
            return placement;
        }
        for id in lost {
            candidates.remove(&id);
            placement.float.insert(id, "it does not follow an integer operator alone".into());
        }
    }
}

/// The operator whose output a clamp limits, if nobody else reads that output and its kernel can saturate there.
pub fn clamped(graph: &Graph, clamp: &Candidate, candidates: &BTreeMap<NodeId, Candidate>) -> Option<NodeId> {
    let input = *clamp.activations.first()?;
    let (producer, _) = graph.producer(input)?;
    graph.only_use(input)?;
    let rule = &candidates.get(&producer)?.rule;
    matches!(rule, Rule::Contraction { .. } | Rule::Arithmetic(_)).then_some(producer)
}

/// Does the node stand between integer nodes so that ONNX Runtime quantizes its float weight (`WeightBiasQuantization`)?
pub fn is_sandwiched(graph: &Graph, id: NodeId, integer: &dyn Fn(NodeId) -> bool) -> bool {
    if !["Conv", "ConvTranspose", "Gemm"].iter().any(|op| graph.node(id).is(op)) {
        return false;
    }
    let made = graph.input(id, 0).and_then(|x| graph.producer(x)).is_some_and(|(p, _)| integer(p));
    let weight = graph.constant_input(id, 1).is_some_and(|w| w.dtype() == DType::F32);
    let Some(mut output) = graph.output(id, 0).filter(|_| made && weight) else { return false };
    if let Some(usage) = graph.only_use(output)
        && ["Relu", "Clip"].iter().any(|op| graph.node(usage.node).is(op))
        && !integer(usage.node)
        && let Some(clamped) = graph.output(usage.node, 0)
    {
        output = clamped;
    }
    let uses = graph.uses(output);
    !uses.is_empty() && !graph.is_output(output) && uses.iter().all(|u| integer(u.node))
}

/// The set of integer nodes of least total cost.
fn cheapest(
    graph: &Graph,
    target: &Target,
    candidates: &BTreeMap<NodeId, Candidate>,
    seen: &Observers<ValueId>,
    noise: &Noise,
) -> BTreeSet<NodeId> {
    const INTEGER: usize = 0; // source side
    const FLOAT: usize = 1; // sink side
    let mut network = Network::with_vertices(2);
    let vertex: BTreeMap<NodeId, usize> = candidates.keys().map(|&id| (id, network.vertex())).collect();
    let values: BTreeSet<ValueId> =
        candidates.values().flat_map(|c| c.activations.iter().chain(&c.outputs)).copied().collect();
    let whole: f64 = candidates.values().map(|c| c.float_cost).filter(|c| c.is_finite()).sum();
    for (id, c) in candidates {
        // Ties go to integer: less memory traffic, and one more operator that is counted as quantized.
        network.edge(INTEGER, vertex[id], c.float_cost * 1.0001);
        let lost = whole * target.noise_weight * noise.weights.get(id).copied().unwrap_or(0.0);
        network.edge(vertex[id], FLOAT, c.integer_cost + lost);
        if matches!(c.rule, Rule::Clamp { .. })
            && let Some(producer) = clamped(graph, c, candidates)
        {
            network.edge(vertex[id], vertex[&producer], f64::INFINITY);
            // Without its clamp the operator would have to represent what the clamp cuts off.
            if !candidates[&producer].float_output {
                network.edge(vertex[&producer], vertex[id], f64::INFINITY);
            }
        }
    }
    for &value in &values {
        let producer = graph.producer(value).and_then(|(p, _)| vertex.get(&p)).copied().unwrap_or(FLOAT);
        let size = elements(value, seen);
        let convolves = |id: NodeId| graph.node(id).op_as::<Conv>().is_some();
        let layout = graph.producer(value).is_some_and(|(p, _)| convolves(p))
            || graph.uses(value).iter().any(|u| convolves(u.node));
        let layout = if layout { size * target.boundary.layout } else { 0.0 };
        let quantize = size * target.boundary.quantize + target.boundary.node + layout;
        let free_exit =
            graph.producer(value).and_then(|(p, _)| candidates.get(&p)).is_some_and(|c| c.float_output);
        let dequantize =
            if free_exit { 0.0 } else { size * target.boundary.dequantize + target.boundary.node + layout };
        let (entry, exit) = (network.vertex(), network.vertex());
        // Is the value quantized at all? Values that only move carry the noise of where they come from.
        let made_by = graph.producer(value).and_then(|(p, _)| candidates.get(&p));
        let before_clamp = candidates
            .values()
            .any(|c| matches!(c.rule, Rule::Clamp { .. }) && c.activations.first() == Some(&value));
        if !made_by.is_some_and(|c| matches!(c.rule, Rule::SameScale | Rule::Rescale { .. })) && !before_clamp
        {
            let quantized = network.vertex();
            let penalty = whole * target.noise_weight * noise.values.get(&value).copied().unwrap_or(0.0);
            network.edge(quantized, FLOAT, penalty);
            network.edge(entry, quantized, f64::INFINITY);
            if !free_exit {
                network.edge(producer, quantized, f64::INFINITY);
            }
        }
        network.edge(entry, producer, quantize);
        network.edge(producer, exit, dequantize);
        for usage in graph.uses(value) {
            let reader = vertex.get(&usage.node).copied();
            let wants_integer = candidates
                .get(&usage.node)
                .is_some_and(|c| c.activations.contains(&value) && usage.port != Port::Capture);
            match reader.filter(|_| wants_integer) {
                Some(reader) => {
                    network.edge(reader, entry, f64::INFINITY);
                    network.edge(exit, reader, f64::INFINITY);
                }
                None => network.edge(exit, FLOAT, f64::INFINITY),
            }
        }
        if graph.is_output(value) {
            network.edge(exit, FLOAT, f64::INFINITY);
        }
    }
    let side = network.source_side(INTEGER, FLOAT);
    vertex.into_iter().filter(|(_, v)| side[*v]).map(|(id, _)| id).collect()
}

/// A flow network with real capacities; maximum flow by Dinic's algorithm.
pub(super) struct Network {
    /// Edges leaving each vertex, by index into `edges`.
    leaving: Vec<Vec<usize>>,
    /// Head and residual capacity; edge `i ^ 1` is the reverse of edge `i`.
    edges: Vec<(usize, f64)>,
}

impl Network {
    const EPSILON: f64 = 1e-6;

    pub(super) fn with_vertices(count: usize) -> Self {
        Self { leaving: vec![Vec::new(); count], edges: Vec::new() }
    }

    pub(super) fn vertex(&mut self) -> usize {
        self.leaving.push(Vec::new());
        self.leaving.len() - 1
    }

    pub(super) fn edge(&mut self, from: usize, to: usize, capacity: f64) {
        if from != to {
            self.leaving[from].push(self.edges.len());
            self.edges.push((to, capacity));
            self.leaving[to].push(self.edges.len());
            self.edges.push((from, 0.0));
        }
    }

    /// Distance from `source` in edges with capacity left; `usize::MAX` where there is no way.
    fn levels(&self, source: usize) -> Vec<usize> {
        let mut level = vec![usize::MAX; self.leaving.len()];
        level[source] = 0;
        let mut queue = VecDeque::from([source]);
        while let Some(vertex) = queue.pop_front() {
            for &edge in &self.leaving[vertex] {
                let (to, capacity) = self.edges[edge];
                if capacity > Self::EPSILON && level[to] == usize::MAX {
                    level[to] = level[vertex] + 1;
                    queue.push_back(to);
                }
            }
        }
        level
    }

    /// One augmenting path along the levels, without recursion; the flow pushed, 0 if there is none.
    fn augment(&mut self, source: usize, sink: usize, level: &[usize], next: &mut [usize]) -> f64 {
        let mut path: Vec<usize> = Vec::new();
        let mut vertex = source;
        while vertex != sink {
            let Some(&edge) = self.leaving[vertex].get(next[vertex]) else {
                let Some(back) = path.pop() else { return 0.0 };
                vertex = self.edges[back ^ 1].0;
                next[vertex] += 1;
                continue;
            };
            let (to, capacity) = self.edges[edge];
            match capacity > Self::EPSILON && level[vertex].checked_add(1) == Some(level[to]) {
                true => {
                    path.push(edge);
                    vertex = to;
                }
                false => next[vertex] += 1,
            }
        }
        let flow = path.iter().map(|&e| self.edges[e].1).fold(f64::INFINITY, f64::min);
        for edge in path {
            self.edges[edge].1 -= flow;
            self.edges[edge ^ 1].1 += flow;
        }
        flow
    }

    /// After a maximum flow: which vertices can still be reached from the source.
    pub(super) fn source_side(mut self, source: usize, sink: usize) -> Vec<bool> {
        loop {
            let level = self.levels(source);
            if level[sink] == usize::MAX {
                return level.iter().map(|&l| l != usize::MAX).collect();
            }
            let mut next = vec![0; self.leaving.len()];
            while self.augment(source, sink, &level, &mut next) > 0.0 {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Network;

    #[test]
    fn the_cut_separates_at_the_narrowest_place() {
        // source 0 -5-> 2 -1-> 3 -5-> sink 1: only vertex 2 stays with the source.
        let mut network = Network::with_vertices(4);
        network.edge(0, 2, 5.0);
        network.edge(2, 3, 1.0);
        network.edge(3, 1, 5.0);
        assert_eq!(network.source_side(0, 1), [true, false, true, false]);
    }

    #[test]
    fn infinite_edges_are_never_cut() {
        let mut network = Network::with_vertices(4);
        network.edge(0, 2, 3.0);
        network.edge(2, 3, f64::INFINITY);
        network.edge(3, 1, 4.0);
        network.edge(0, 3, 0.5);
        assert_eq!(network.source_side(0, 1), [true, false, false, false]);
    }
}
