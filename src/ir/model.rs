//! A graph with the operator sets that give it meaning.

use indexmap::IndexMap;

use super::{DType, Graph};
use crate::proto::{ModelProto, OperatorSetIdProto};

/// A model: its main graph and everything that surrounds it in the file.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// The main graph.
    pub graph: Graph,
    /// Operator sets by domain, in the order of the file.
    pub opsets: IndexMap<String, i64>,
    /// What is not modelled: producer, metadata, functions, training info.
    pub rest: ModelProto,
}

impl Model {
    /// The opset version of a domain; ONNX's own answers to both of its names.
    pub fn opset(&self, domain: &str) -> Option<i64> {
        match domain {
            "" | "ai.onnx" => self.opsets.get("").or_else(|| self.opsets.get("ai.onnx")).copied(),
            other => self.opsets.get(other).copied(),
        }
    }

    /// Imports an operator set unless the domain has one.
    pub fn import(&mut self, domain: &str, version: i64) {
        if !self.opsets.contains_key(domain) {
            self.opsets.insert(domain.into(), version);
            let set = OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
            self.rest.opset_import.push(set);
        }
    }

    /// The version of the file format.
    pub fn ir_version(&self) -> i64 {
        self.rest.ir_version.unwrap_or(0)
    }

    /// Bytes that constants take in the main graph and its bodies.
    pub fn constant_bytes(&self) -> usize {
        fn of(graph: &Graph) -> usize {
            let own: usize =
                graph.constants.iter().filter_map(|&c| graph.constant(c)).map(|t| t.byte_len()).sum();
            let inner = |n| graph.node(n).bodies.iter().map(|b| of(&b.graph)).sum::<usize>();
            own + graph.nodes().map(inner).sum::<usize>()
        }
        of(&self.graph)
    }

    /// Has the main graph a value of this element type?
    pub fn uses_dtype(&self, dtype: DType) -> bool {
        self.graph.values().any(|v| self.graph.ty(v).is_some_and(|t| t.dtype == dtype))
    }
}
