//! Gates that are linear between two bounds: HardSigmoid is `clip(α·x + β, 0, 1)`.

use super::Linear;
use crate::interpret::node_label;
use crate::ir::{Array, Edit, Graph, NodeId, Refusal, Tensor};
use crate::ops::activation::Activation;
use crate::passes::{Rewrite, node};

/// HardSigmoid after a linear operator: the line goes into the weights, a Clip is left. Integer kernels have no
/// HardSigmoid, but each of them can saturate.
pub struct HardSigmoidToClip;

impl Rewrite for HardSigmoidToClip {
    fn name(&self) -> &'static str {
        "hard-sigmoid-to-clip"
    }

    fn rewrite(&self, graph: &Graph, id: NodeId) -> Result<Option<Edit>, Refusal> {
        let Some(&Activation::HardSigmoid { alpha, beta }) = graph.node(id).op_as::<Activation>() else {
            return Ok(None);
        };
        let (Some(input), Some(output)) = (graph.input(id, 0), graph.output(id, 0)) else { return Ok(None) };
        let Some((producer, _)) = graph.producer(input) else { return Ok(None) };
        let Some(linear) = Linear::of(graph, producer)?.filter(Linear::takes_bias) else { return Ok(None) };
        if graph.only_use(input).is_none() {
            return Err(format!("`{}` is used elsewhere", graph.name(input)).into());
        }
        let every = |value: f32| vec![f64::from(value); linear.channels()];
        let folded = linear.scaled(&every(alpha), &every(beta))?;
        let mut edit = Edit::dropping(&[producer, id]);
        let name = graph.name(output).to_string();
        let line = edit.value(&format!("{name}_line"), graph.ty(output).cloned());
        folded.add_node(graph, &mut edit, folded.bias.clone(), line);
        let bound = |edit: &mut Edit, end: &str, value: f32| {
            edit.constant(&format!("{name}_{end}"), Tensor::from_array(&Array::scalar(value)))
        };
        let (least, most) = (bound(&mut edit, "least", 0.0), bound(&mut edit, "most", 1.0));
        edit.apply(node("Clip", node_label(graph, id), vec![], 3), &[line, least, most], output);
        Ok(Some(edit))
    }
}
