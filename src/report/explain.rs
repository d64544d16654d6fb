//! Why is a model not faster, smaller or more exact? Findings about where its quantization does not take, for models
//! from any tool.
//!
//! What runtimes do with Q/DQ is known for ONNX Runtime's CPU provider: an operator becomes an integer kernel if all its
//! data inputs come from DequantizeLinear and its output goes to one QuantizeLinear and nowhere else (MatMul and Gemm may
//! leave their output in float). Everything else runs as it is written, at the price of the conversions.

mod islands;
mod kernels;
mod pairs;
mod weights;

use indexmap::IndexMap;
use serde::Serialize;

use crate::error::{Error, one_line};
use crate::ir::{DType, Graph, Model, NodeId, schedule};
use crate::passes::infer;
use crate::quantize::Target;
use crate::quantize::insert::label;
use crate::report::qdq;

pub use kernels::Kernel;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Costs speed, size or accuracy, and can be helped.
    Warning,
    /// How it is.
    Note,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// A fixed name for this kind of finding.
    pub kind: &'static str,
    /// The nodes, as operator and name.
    pub places: Vec<String>,
    /// What is the matter.
    pub message: String,
}

/// Everything found, and how many operators there are of each kind.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Explanation {
    /// Operators with an integer kernel.
    pub integer: usize,
    /// Operators that compute on integers by themselves (QLinearConv, MatMulInteger, ...).
    pub integer_operators: usize,
    /// Operators with quantized weights and float arithmetic.
    pub weight_only: usize,
    /// Operators with arithmetic in float.
    pub float: usize,
    /// Warnings first.
    pub findings: Vec<Finding>,
}

/// Of more nodes than this the others are counted.
const NAMED: usize = 4;

/// What the checks are made of.
struct Context<'a> {
    graph: &'a Graph,
    target: &'a Target,
    /// Patterns of nodes that the user left out when the model was made.
    excluded: Vec<String>,
    /// Before each place: the nodes around the graph.
    prefix: String,
}

impl Context<'_> {
    fn finding(&self, level: Level, kind: &'static str, id: NodeId, message: impl Into<String>) -> Finding {
        let place = format!("{}{}", self.prefix, label(self.graph, id));
        Finding { level, kind, places: vec![place], message: message.into() }
    }
}

/// Looks through a model as this target would run it.
pub fn explain(model: &Model, target: &Target) -> Result<Explanation, Error> {
    let mut graph = model.graph.clone();
    infer(&mut graph);
    let options = model.rest.metadata_props.iter().find(|e| e.key.as_deref() == Some("qonnx.options"));
    let words = options.and_then(|e| e.value.as_deref()).unwrap_or_default().split(' ');
    let words: Vec<&str> = words.collect();
    let excluded = words.windows(2).filter(|w| w.first() == Some(&"--exclude")).filter_map(|w| w.get(1));
    let excluded = excluded.map(|s| (*s).to_string()).collect();
    let mut explanation = Explanation::default();
    let context = Context { graph: &graph, target, excluded, prefix: String::new() };
    look(&context, &mut explanation)?;
    explanation.findings = merged(std::mem::take(&mut explanation.findings));
    explanation.findings.sort_by_key(|f| f.level);
    if explanation.integer + explanation.integer_operators + explanation.weight_only == 0 {
        let message = "nothing in it is computed on integers or has integer weights".into();
        let places = vec!["the model".into()];
        explanation
            .findings
            .insert(0, Finding { level: Level::Note, kind: "not-quantized", places, message });
    }
    Ok(explanation)
}

/// Findings that say the same of different nodes become one.
fn merged(findings: Vec<Finding>) -> Vec<Finding> {
    let mut merged: IndexMap<(Level, &str, String), Vec<String>> = IndexMap::new();
    for f in findings {
        merged.entry((f.level, f.kind, f.message)).or_default().extend(f.places);
    }
    let finding = |((level, kind, message), places)| Finding { level, kind, places, message };
    merged.into_iter().map(finding).collect()
}

fn look(context: &Context, found: &mut Explanation) -> Result<(), Error> {
    let graph = context.graph;
    let order = schedule(graph).map_err(|f| f.at("scheduling"))?;
    let mut kernels = Vec::new();
    for id in order {
        let node = graph.node(id);
        if qdq::is_quantize(node) || qdq::is_dequantize(node) {
            pairs::check(context, id, &mut found.findings);
            continue;
        }
        let kernel = kernels::kernel(context, id);
        match &kernel {
            Kernel::Integer => found.integer += 1,
            Kernel::IntegerOperator => found.integer_operators += 1,
            Kernel::WeightOnly => found.weight_only += 1,
            Kernel::Float(_) | Kernel::Broken(_) => found.float += 1,
            Kernel::Moves => {}
        }
        if let Kernel::Broken(why) = &kernel {
            found.findings.push(context.finding(Level::Warning, "unfused", id, why));
        }
        weights::check(context, id, &kernel, &mut found.findings);
        kernels.push((id, kernel));
        for body in &node.bodies {
            let prefix = format!("{}{} / ", context.prefix, label(graph, id));
            let excluded = context.excluded.clone();
            look(&Context { graph: &body.graph, target: context.target, excluded, prefix }, found)?;
        }
    }
    islands::group(context, &kernels, &mut found.findings);
    Ok(())
}

impl Explanation {
    /// Number of warnings, by place.
    pub fn warnings(&self) -> usize {
        self.findings.iter().filter(|f| f.level == Level::Warning).map(|f| f.places.len()).sum()
    }

    /// The findings for people, then a line that counts.
    pub fn text(&self) -> String {
        let line = |f: &Finding| {
            let level = if f.level == Level::Warning { "warning" } else { "note" };
            let more = f.places.len().saturating_sub(NAMED);
            let named: Vec<&str> = f.places.iter().take(NAMED).map(String::as_str).collect();
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            format!("{level}[{}]: {}{more}: {}\n", f.kind, one_line(&named.join(", ")), one_line(&f.message))
        };
        let mut text: String = self.findings.iter().map(line).collect();
        let counts = format!(
            "{} operators on integers, {} with integer weights only, {} in float; {} warnings\n",
            self.integer + self.integer_operators,
            self.weight_only,
            self.float,
            self.warnings()
        );
        text.push_str(&counts);
        text
    }
}

/// Is it one of the 8-bit types that integer kernels take?
fn is_byte(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}
