//! Cross-layer equalization (Nagel et al. 2019, section 4.1, <https://arxiv.org/abs/1906.04721>): where a layer feeds
//! another through nothing but a Relu, dividing an output channel of the first by a number and multiplying the second's
//! weights of that channel by it changes nothing in real numbers. Chosen well, all channels have like ranges, and one
//! scale serves the whole weight. A depthwise convolution is both second and first: going over all pairs until nothing
//! moves settles chains as well.
//!
//! A clamp at a number (ReLU6) is no Relu: its bound would have to differ by channel. Such pairs are left alone.

use crate::error::Fault;
use crate::ir::{Array, DType, Graph, NodeId, Tensor, ValueId};
use crate::ops::conv::Conv;
use crate::ops::gemm::Gemm;

/// Rounds over all pairs, at most.
const ROUNDS: usize = 20;
/// A round that moves no channel by more than this share is the last.
const SETTLED: f32 = 0.01;

/// A linear layer with constants of its own.
struct Layer {
    weight: ValueId,
    bias: Option<ValueId>,
    shape: Vec<usize>,
    /// The axis of the weight that counts output channels, and the one that counts input channels.
    output: usize,
    input: usize,
    /// One input channel to each output channel.
    depthwise: bool,
    /// Do channels count along axis 1 of what it reads and returns, and not along the last?
    spatial: bool,
}

impl Layer {
    fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node = graph.node(id);
        let own = |slot: usize| {
            let value = graph.input(id, slot)?;
            let tensor = graph.constant(value).filter(|t| t.dtype() == DType::F32)?;
            (graph.only_use(value).is_some() && !graph.is_output(value))
                .then_some((value, tensor.shape().to_vec()))
        };
        let (weight, shape) = own(1)?;
        let bias = match graph.input(id, 2) {
            None => None,
            Some(_) => Some(own(2)?.0),
        };
        let spatial = node.op_as::<Conv>().is_some();
        let (output, input, depthwise) = if let Some(conv) = node.op_as::<Conv>() {
            let depthwise = conv.group > 1 && conv.group == *shape.first()? && shape.get(1) == Some(&1);
            (conv.group == 1 || depthwise).then_some((0, 1, depthwise))?
        } else if let Some(gemm) = node.op_as::<Gemm>().filter(|g| !g.trans_a && g.beta == 1.0) {
            if gemm.trans_b { (0, 1, false) } else { (1, 0, false) }
        } else if node.is("MatMul") && shape.len() == 2 {
            (1, 0, false)
        } else {
            return None;
        };
        Some(Self { weight, bias, shape, output, input, depthwise, spatial })
    }

    fn channels(&self) -> (usize, usize) {
        let outputs = self.shape[self.output];
        (outputs, if self.depthwise { outputs } else { self.shape[self.input] })
    }

    /// The largest magnitude at each index of an axis.
    fn ranges(&self, graph: &Graph, axis: usize) -> Result<Vec<f32>, Fault> {
        let array = graph.constant(self.weight).ok_or("a weight is missing")?.array()?;
        let inner: usize = self.shape[axis + 1..].iter().product();
        let mut ranges = vec![0f32; self.shape[axis]];
        for (i, w) in array.slice::<f32>()?.iter().enumerate() {
            let range = &mut ranges[i / inner.max(1) % self.shape[axis]];
            *range = range.max(w.abs());
        }
        Ok(ranges)
    }

    fn multiply(&self, graph: &mut Graph, axis: usize, factors: &[f32]) -> Result<(), Fault> {
        let inner: usize = self.shape[axis + 1..].iter().product();
        scale(graph, self.weight, |i| factors[i / inner.max(1) % factors.len()])
    }
}

/// Multiplies the elements of a constant.
fn scale(graph: &mut Graph, value: ValueId, factor: impl Fn(usize) -> f32) -> Result<(), Fault> {
    let array = graph.constant(value).ok_or("a constant is missing")?.array()?;
    let scaled = array.slice::<f32>()?.iter().enumerate().map(|(i, w)| w * factor(i)).collect();
    graph.set_constant(value, Tensor::from_array(&Array::new::<f32>(array.shape(), scaled)?));
    Ok(())
}

/// The layer that alone reads what this one returns, through a Relu or nothing.
fn follower(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let mut value = graph.output(id, 0)?;
    for _ in 0..2 {
        let usage = graph.only_use(value).filter(|_| !graph.is_pinned(value))?;
        let node = graph.node(usage.node);
        if !(node.is("Relu") || node.is("LeakyRelu")) {
            return (graph.input(usage.node, 0) == Some(value)).then_some(usage.node);
        }
        value = graph.output(usage.node, 0)?;
    }
    None
}

/// Equalizes all pairs of layers; how many there are.
pub fn equalize(graph: &mut Graph) -> Result<usize, Fault> {
    let pairs: Vec<(Layer, Layer)> = graph
        .nodes()
        .filter_map(|id| Some((Layer::of(graph, id)?, Layer::of(graph, follower(graph, id)?)?)))
        .filter(|(first, second)| {
            let channels = first.channels().0;
            let bias = first.bias.and_then(|b| graph.constant(b)).is_none_or(|b| b.len() == channels);
            channels == second.channels().1 && first.spatial == second.spatial && bias
        })
        .collect();
    for _ in 0..ROUNDS {
        let mut moved = 0f32;
        for (first, second) in &pairs {
            let own = first.ranges(graph, first.output)?;
            let axis = if second.depthwise { second.output } else { second.input };
            let next = second.ranges(graph, axis)?;
            let factor = |(a, b): (&f32, &f32)| {
                let s = (a / b).sqrt();
                if s.is_normal() { s } else { 1.0 }
            };
            let factors: Vec<f32> = own.iter().zip(&next).map(factor).collect();
            let inverse: Vec<f32> = factors.iter().map(|s| 1.0 / s).collect();
            first.multiply(graph, first.output, &inverse)?;
            if let Some(bias) = first.bias {
                scale(graph, bias, |i| inverse[i])?;
            }
            second.multiply(graph, axis, &factors)?;
            moved = factors.iter().fold(moved, |m, s| m.max((s - 1.0).abs()));
        }
        if moved < SETTLED {
            break;
        }
    }
    Ok(pairs.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::Program;
    use crate::onnx::{import, text};
    use crate::passes::infer;

    #[test]
    fn channels_get_like_ranges_and_nothing_changes() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[1,2,3,3] x) => (float[1,2,3,3] y)
            <float[2,2,1,1] a = {1.0, -2.0, 0.01, 0.02}, float[2] b = {0.5, 0.25},
             float[2,1,1,1] d = {0.1, 4.0}, float[2,2,1,1] c = {1.0, 8.0, -2.0, 0.5}> {
              p = Conv (x, a, b)
              q = Relu (p)
              r = Conv <group = 2> (q, d)
              s = Relu (r)
              y = Conv (s, c)
            }"#;
        let mut graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        infer(&mut graph);
        let x = Array::new(&[1, 2, 3, 3], (0..18).map(|i| i as f32 - 7.0).collect::<Vec<f32>>()).unwrap();
        let run = |g: &Graph| Program::new(g).unwrap().run(std::slice::from_ref(&x)).unwrap().remove(0);
        let before = run(&graph);
        assert_eq!(equalize(&mut graph).unwrap(), 2);
        let after = run(&graph);
        let pairs = before.slice::<f32>().unwrap().iter().zip(after.slice::<f32>().unwrap());
        pairs.for_each(|(a, b)| assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{a} {b}"));
        let layers: Vec<Layer> = graph.nodes().filter_map(|id| Layer::of(&graph, id)).collect();
        for layer in &layers[..2] {
            let ranges = layer.ranges(&graph, layer.output).unwrap();
            assert!((ranges[0] / ranges[1] - 1.0).abs() < 3.0, "{ranges:?}");
        }
    }

    /// The last axis of what a convolution returns may be as long as its channels are many.
    #[test]
    fn channels_of_a_convolution_are_no_columns() {
        let source = r#"<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,2,2] x) => (float[1,2,2,1] y)
            <float[2,1,1,1] a = {2.0, 0.1}, float[2,1] c = {3.0, 1.0}> { p = Conv (x, a) y = MatMul (p, c) }"#;
        let mut graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        infer(&mut graph);
        assert_eq!(equalize(&mut graph).unwrap(), 0);
    }

    #[test]
    fn a_bound_and_a_second_reader_stand_in_the_way() {
        for middle in
            ["six = Clip (p, low, high) y = Conv (six, c)", "z = Relu (p) y = Conv (z, c) w = Neg (z)"]
        {
            let outputs = if middle.contains("Neg") {
                "float[1,1,1,1] y, float[1,1,1,1] w"
            } else {
                "float[1,1,1,1] y"
            };
            let source = format!(
                r#"<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,1,1] x) => ({outputs})
                <float[1,1,1,1] a = {{2.0}}, float[1,1,1,1] c = {{3.0}}, float low = {{0.0}}, float high = {{6.0}}>
                {{ p = Conv (x, a) {middle} }}"#
            );
            let mut graph = import(text::parse(&source).unwrap(), &|_| Err("none".into())).unwrap().graph;
            infer(&mut graph);
            assert_eq!(equalize(&mut graph).unwrap(), 0, "{middle}");
        }
    }
}
