//! The least cut of a flow network.

use std::collections::VecDeque;

/// A flow network with real capacities; maximum flow by Dinic's algorithm.
pub(super) struct Network {
    /// Edges leaving each vertex, by index into `edges`.
    leaving: Vec<Vec<usize>>,
    /// Head and residual capacity; edge `i ^ 1` is the reverse of edge `i`.
    edges: Vec<(usize, f64)>,
    /// Tail, head and capacity of the edges that stand for time.
    times: Vec<(usize, usize, f64)>,
}

impl Network {
    const EPSILON: f64 = 1e-6;

    pub(super) fn with_vertices(count: usize) -> Self {
        Self { leaving: vec![Vec::new(); count], edges: Vec::new(), times: Vec::new() }
    }

    pub(super) fn vertex(&mut self) -> usize {
        self.leaving.push(Vec::new());
        self.leaving.len() - 1
    }

    /// An edge whose capacity is time.
    pub(super) fn edge(&mut self, from: usize, to: usize, capacity: f64) {
        self.times.push((from, to, capacity));
        self.penalty(from, to, capacity);
    }

    /// An edge whose capacity is no time, but is to be weighed against it.
    pub(super) fn penalty(&mut self, from: usize, to: usize, capacity: f64) {
        if from != to {
            self.leaving[from].push(self.edges.len());
            self.edges.push((to, capacity));
            self.leaving[to].push(self.edges.len());
            self.edges.push((from, 0.0));
        }
    }

    /// The time on the edges that lead out of this side.
    pub(super) fn time(&self, side: &[bool]) -> f64 {
        self.times.iter().filter(|(from, to, _)| side[*from] && !side[*to]).map(|(_, _, time)| time).sum()
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
    pub(super) fn source_side(&mut self, source: usize, sink: usize) -> Vec<bool> {
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
        network.penalty(2, 3, 0.5);
        network.edge(3, 1, 5.0);
        let side = network.source_side(0, 1);
        assert_eq!(side, [true, false, true, false]);
        assert_eq!(network.time(&side), 1.0);
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
