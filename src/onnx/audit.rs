//! What must hold of a model's message wherever in it a thing stands, before any of it is used: every tensor has one
//! payload of the right length, inside the model's directory if it lies in another file; functions end.

use std::collections::HashMap;

use super::LoadExternal;
use crate::error::Fault;
use crate::fail;
use crate::ir::Tensor;
use crate::proto::tensor_proto::DataLocation;
use crate::proto::{FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};

/// Functions may call each other so deep, as onnx.checker has it.
const DEPTH: usize = 100;

/// Calls may stand for so many nodes in all.
const NODES: u64 = 200_000;

/// The highest version of an operator set that is believed.
const VERSION: i64 = 1000;

/// Looks at everything but the initializers of graphs, which are looked at when they are imported.
pub fn audit(model: &ModelProto, external: LoadExternal) -> Result<(), Fault> {
    for set in model.opset_import.iter().chain(model.functions.iter().flat_map(|f| &f.opset_import)) {
        if !(1..=VERSION).contains(&set.version()) {
            fail!("operator set `{}` has version {}", set.domain(), set.version());
        }
    }
    let auditor = Auditor { external };
    model.graph.iter().try_for_each(|graph| auditor.graph(graph))?;
    for function in &model.functions {
        let within = |f: Fault| Fault::new(format!("function `{}`: {f}", function.name()));
        function.node.iter().try_for_each(|node| auditor.node(node)).map_err(within)?;
        function
            .attribute_proto
            .iter()
            .flat_map(|a| &a.t)
            .try_for_each(|t| auditor.tensor(t))
            .map_err(within)?;
    }
    for graph in model.training_info.iter().flat_map(|t| t.initialization.iter().chain(&t.algorithm)) {
        auditor.graph(graph)?;
        graph.initializer.iter().try_for_each(|t| auditor.tensor(t))?;
    }
    ends(model)
}

struct Auditor<'a> {
    external: LoadExternal<'a>,
}

impl Auditor<'_> {
    fn graph(&self, graph: &GraphProto) -> Result<(), Fault> {
        graph.sparse_initializer.iter().try_for_each(|sparse| self.sparse(sparse))?;
        graph.node.iter().try_for_each(|node| self.node(node))
    }

    fn node(&self, node: &NodeProto) -> Result<(), Fault> {
        let within = |f: Fault| match node.name() {
            "" => Fault::new(format!("a node {}: {f}", node.op_type())),
            name => Fault::new(format!("node `{name}`: {f}")),
        };
        for attribute in &node.attribute {
            let found = attribute.t.iter().chain(&attribute.tensors).try_for_each(|t| self.tensor(t));
            found.map_err(within)?;
            let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
            sparse.into_iter().try_for_each(|s| self.sparse(s)).map_err(within)?;
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                self.graph(graph)?;
            }
        }
        Ok(())
    }

    fn sparse(&self, sparse: &SparseTensorProto) -> Result<(), Fault> {
        sparse.values.iter().chain(&sparse.indices).try_for_each(|t| self.tensor(t))
    }

    fn tensor(&self, tensor: &TensorProto) -> Result<(), Fault> {
        let outside = tensor.data_location == Some(DataLocation::External as i32);
        let payload = outside.then(|| (self.external)(tensor)).transpose()?;
        Tensor::from_proto(tensor.clone(), payload).map(drop)
    }
}

type Key<'a> = (&'a str, &'a str, &'a str);

/// Every call of a function comes to an end, after not too many nodes.
fn ends(model: &ModelProto) -> Result<(), Fault> {
    let key = |f| -> Key { (FunctionProto::domain(f), FunctionProto::name(f), FunctionProto::overload(f)) };
    let mut functions: HashMap<Key, &FunctionProto> = HashMap::new();
    for function in &model.functions {
        if functions.insert(key(function), function).is_some() {
            fail!("function `{}` is defined twice", function.name());
        }
    }
    if functions.is_empty() {
        return Ok(());
    }
    let mut counter = Counter { functions, known: HashMap::new() };
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    let mut total =
        nodes.map(|node| counter.node(node, 0)).try_fold(0u64, |sum, n| Ok::<_, Fault>(sum + n?))?;
    for function in &model.functions {
        total = total.max(counter.function(key(function), 0)?);
    }
    if total > NODES {
        fail!("its functions stand for more than {NODES} nodes");
    }
    Ok(())
}

struct Counter<'a> {
    functions: HashMap<Key<'a>, &'a FunctionProto>,
    /// How many nodes a function stands for; `None` while it is being counted.
    known: HashMap<Key<'a>, Option<u64>>,
}

impl<'a> Counter<'a> {
    fn function(&mut self, key: Key<'a>, depth: usize) -> Result<u64, Fault> {
        let Some(&function) = self.functions.get(&key) else { return Ok(1) };
        match self.known.get(&key) {
            Some(Some(count)) => return Ok(*count),
            Some(None) => fail!("function `{}` calls itself", key.1),
            None if depth > DEPTH => fail!("functions call each other more than {DEPTH} deep"),
            None => self.known.insert(key, None),
        };
        let mut count = 0u64;
        for node in &function.node {
            count = count.saturating_add(self.node(node, depth + 1)?).min(NODES + 1);
        }
        self.known.insert(key, Some(count));
        Ok(count)
    }

    fn node(&mut self, node: &'a NodeProto, depth: usize) -> Result<u64, Fault> {
        let mut count = self.function((node.domain(), node.op_type(), node.overload()), depth)?;
        for graph in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
            for inner in &graph.node {
                count = count.saturating_add(self.node(inner, depth)?).min(NODES + 1);
            }
        }
        Ok(count)
    }
}
