//! A layer as a least-squares problem: outputs are weights times rows of inputs, whatever the operator's shape.

use crate::error::Fault;
use crate::ir::{Array, DType, Graph, Node, NodeId, QuantParams, Tensor, ValueId};
use crate::kernels::window::{Axis, each_index};
use crate::ops::conv::Conv;
use crate::ops::gemm::Gemm;

/// An operator of a quantized graph whose weight is behind a DequantizeLinear of its own.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The operator.
    pub node: NodeId,
    /// Its data input.
    pub input: ValueId,
    /// Its weight in real numbers, and the integers behind it.
    pub weight: Stored,
    /// What is added to each output channel, if it can be changed.
    pub bias: Bias,
    /// Weights of one output channel.
    pub depth: usize,
    /// Output channels, in all groups.
    pub channels: usize,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Outputs beyond these are all the same: the quantizer behind the operator saturates there.
    pub saturation: (f32, f32),
    kind: Kind,
}

/// A constant that is added to the products.
#[derive(Debug, Clone, Copy)]
pub enum Bias {
    /// There is none, or others read it too.
    Fixed,
    /// An integer bias of the operator.
    Stored(Stored),
    /// A float vector that an Add behind the operator adds.
    Added(ValueId),
}

/// A dequantized constant.
#[derive(Debug, Clone, Copy)]
pub struct Stored {
    /// The output of its DequantizeLinear.
    pub real: ValueId,
    /// The integer constant.
    pub integers: ValueId,
    /// The constant with the scales.
    pub scales: ValueId,
}

#[derive(Debug, Clone)]
enum Kind {
    Conv(Conv, Vec<usize>),
    /// Weights of one output channel lie in a row (transB), or in a column.
    Matrix {
        in_rows: bool,
    },
}

/// The constant behind an input that nobody else reads.
fn stored(graph: &Graph, node: NodeId, slot: usize) -> Option<Stored> {
    let real = graph.input(node, slot)?;
    graph.only_use(real)?;
    let (dequantize, _) = graph.producer(real)?;
    let known = |slot| graph.input(dequantize, slot).filter(|&v| graph.constant(v).is_some());
    let stored = Stored { real, integers: known(0)?, scales: known(1)? };
    (graph.node(dequantize).is("DequantizeLinear") && graph.only_use(stored.integers).is_some())
        .then_some(stored)
}

/// The float vector that an Add alone adds to the node's output.
fn added(graph: &Graph, node: NodeId, channels: usize) -> Option<ValueId> {
    let output = graph.output(node, 0)?;
    let reader = graph.only_use(output)?.node;
    if !graph.node(reader).is("Add") {
        return None;
    }
    let vector = graph.inputs_of(reader).into_iter().flatten().find(|&v| v != output)?;
    let tensor = graph.constant(vector)?;
    let fits =
        tensor.dtype() == DType::F32 && tensor.shape().last() == Some(&channels) && tensor.len() == channels;
    (fits && graph.only_use(vector).is_some()).then_some(vector)
}

/// Where the QuantizeLinear that alone reads the node's output saturates.
fn saturation(graph: &Graph, node: NodeId) -> Option<(f32, f32)> {
    let reader = graph.only_use(graph.output(node, 0)?)?.node;
    if !graph.node(reader).is("QuantizeLinear") {
        return None;
    }
    let constant = |slot| graph.constant_input(reader, slot)?.array().ok();
    let (scale, zero_point) = (constant(1)?.item::<f32>().ok()?, constant(2)?);
    let dtype = zero_point.dtype();
    let zero_point = zero_point.to_f32().ok()?.iter().next().copied()? as i32;
    Some(QuantParams { scale, zero_point, dtype }.range())
}

impl Layer {
    /// The node as a layer; `None` if it is no linear operator with a quantized weight of its own.
    pub fn of(graph: &Graph, id: NodeId) -> Option<Self> {
        let node: &Node = graph.node(id);
        let weight = stored(graph, id, 1)?;
        let shape = graph.constant(weight.integers)?.shape().to_vec();
        if shape.len() < 2 || shape.contains(&0) {
            return None;
        }
        let rest: usize = shape[1..].iter().product();
        let (kind, depth, channels, groups) = if let Some(conv) = node.op_as::<Conv>() {
            (Kind::Conv(conv.clone(), shape.clone()), rest, shape[0], conv.group)
        } else if let Some(gemm) = node.op_as::<Gemm>().filter(|g| !g.trans_a) {
            let (depth, channels) = if gemm.trans_b { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
            (Kind::Matrix { in_rows: gemm.trans_b }, depth, channels, 1)
        } else if node.is("MatMul") && shape.len() == 2 {
            (Kind::Matrix { in_rows: false }, shape[0], shape[1], 1)
        } else {
            return None;
        };
        let bias = match node.is("MatMul") {
            true => added(graph, id, channels).map_or(Bias::Fixed, Bias::Added),
            false => stored(graph, id, 2).map_or(Bias::Fixed, Bias::Stored),
        };
        let input = graph.input(id, 0)?;
        let saturation = saturation(graph, id).unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
        (groups > 0 && channels.is_multiple_of(groups)).then_some(Self {
            node: id,
            input,
            weight,
            bias,
            depth,
            channels,
            groups,
            saturation,
            kind,
        })
    }

    /// The axis of the weight that counts output channels.
    pub fn channel_axis(&self) -> usize {
        usize::from(matches!(self.kind, Kind::Matrix { in_rows: false }))
    }

    /// Matrix elements from the weight's own order to rows by output channel.
    pub fn by_channel<T: Copy>(&self, stored: &[T]) -> Vec<T> {
        match self.kind {
            Kind::Matrix { in_rows: false } => {
                let column = |c: usize| (0..self.depth).map(move |k| stored[k * self.channels + c]);
                (0..self.channels).flat_map(column).collect()
            }
            _ => stored.to_vec(),
        }
    }

    /// Back to the weight's own order.
    pub fn as_stored<T: Copy>(&self, rows: &[T]) -> Vec<T> {
        match self.kind {
            Kind::Matrix { in_rows: false } => {
                let row = |k: usize| (0..self.channels).map(move |c| rows[c * self.depth + k]);
                (0..self.depth).flat_map(row).collect()
            }
            _ => rows.to_vec(),
        }
    }

    /// The scale of each output channel.
    pub fn scales(&self, graph: &Graph) -> Result<Vec<f32>, Fault> {
        let tensor: &Tensor = graph.constant(self.weight.scales).ok_or("the scales are missing")?;
        let scales = tensor.array()?.slice::<f32>()?.to_vec();
        match scales.len() {
            1 => Ok(vec![scales[0]; self.channels]),
            n if n == self.channels => Ok(scales),
            n => Err(format!("{n} scales for {} channels", self.channels).into()),
        }
    }

    /// Places in the output: for each of them there is a row of inputs and a row of outputs.
    pub fn places(&self, output: &[usize]) -> usize {
        match self.kind {
            Kind::Conv(..) => output.first().unwrap_or(&0) * output.iter().skip(2).product::<usize>(),
            Kind::Matrix { .. } => output.iter().rev().skip(1).product(),
        }
    }

    /// What the outputs are at these places: a row of all channels each.
    pub fn outputs(&self, output: &Array, places: &[usize]) -> Result<Vec<f32>, Fault> {
        let values = output.slice::<f32>()?;
        let mut rows = Vec::with_capacity(places.len() * self.channels);
        match self.kind {
            Kind::Matrix { .. } => {
                places.iter().for_each(|p| rows.extend(&values[p * self.channels..][..self.channels]));
            }
            Kind::Conv(..) => {
                let plane: usize = output.shape()[2..].iter().product();
                for place in places {
                    let (batch, at) = (place / plane, place % plane);
                    rows.extend((0..self.channels).map(|c| values[(batch * self.channels + c) * plane + at]));
                }
            }
        }
        Ok(rows)
    }

    /// Where the inputs of these places lie in an input of this shape.
    pub fn sources(&self, input: &[usize], places: &[usize]) -> Result<Sources, Fault> {
        let Kind::Conv(conv, weight) = &self.kind else {
            let starts = places.iter().map(|place| place * self.depth).collect();
            return Ok(Sources { starts, taps: Vec::new(), all_taps: self.depth, plane: 0 });
        };
        let (_, axes, output) = conv.place(input, weight)?;
        let taps = Taps::of(&axes);
        let plane: usize = axes.iter().map(|a| a.input).product();
        let windows: usize = output[2..].iter().product();
        let mut at = vec![0; axes.len()];
        let mut sources = Sources { starts: Vec::new(), taps: Vec::new(), all_taps: taps.0.len(), plane };
        for place in places {
            let (batch, mut window) = (place / windows, place % windows);
            for (index, axis) in at.iter_mut().zip(&axes).rev() {
                (*index, window) = (window % axis.output, window / axis.output);
            }
            sources.starts.push(batch * input[1] * plane);
            sources.taps.extend(taps.sources(&axes, &at));
        }
        Ok(sources)
    }

    /// What the channels of one group are computed from: rows of `depth` inputs, each followed by 1 if they are to be one
    /// longer than that.
    pub fn inputs(&self, values: &[f32], sources: &Sources, group: usize, rows: &mut [f32]) {
        let (taps, plane) = (sources.all_taps, sources.plane);
        let (planes, width) = (self.depth / taps.max(1), rows.len() / sources.starts.len().max(1));
        for (at, (start, row)) in sources.starts.iter().zip(rows.chunks_mut(width.max(1))).enumerate() {
            let (row, one) = row.split_at_mut(self.depth);
            if matches!(self.kind, Kind::Matrix { .. }) {
                row.copy_from_slice(&values[*start..][..self.depth]);
            } else {
                let from = &sources.taps[at * taps..][..taps];
                for (c, row) in row.chunks_mut(taps.max(1)).enumerate().take(planes) {
                    let values = &values[start + (group * planes + c) * plane..][..plane];
                    row.iter_mut().zip(from).for_each(|(x, tap)| *x = tap.map_or(0.0, |tap| values[tap]));
                }
            }
            one.fill(1.0);
        }
    }
}

/// Where rows of inputs are read, which is the same for all groups of channels.
#[derive(Debug)]
pub struct Sources {
    /// For each row, where its sample starts; of a matrix, where it starts itself.
    starts: Vec<usize>,
    /// For each row, where in a plane each tap reads; `None` in the padding. Of a matrix there are none.
    taps: Vec<Option<usize>>,
    /// Taps of a window.
    all_taps: usize,
    /// Elements of a plane.
    plane: usize,
}

/// The taps of a window, as indices along each axis.
struct Taps(Vec<Vec<usize>>);

impl Taps {
    fn of(axes: &[Axis]) -> Self {
        let kernels: Vec<usize> = axes.iter().map(|a| a.kernel).collect();
        let mut taps = Vec::new();
        each_index(&kernels, |tap| taps.push(tap.to_vec()));
        Self(taps)
    }

    /// Where in a plane of the input each tap of the window at this place reads; `None` in the padding.
    fn sources(&self, axes: &[Axis], at: &[usize]) -> impl Iterator<Item = Option<usize>> {
        self.0.iter().map(move |tap| {
            let axes = axes.iter().zip(tap).zip(at);
            axes.into_iter().try_fold(0, |sum, ((axis, &t), &w)| Some(sum * axis.input + axis.source(w, t)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::Program;
    use crate::onnx::{import, text};

    /// Outputs of a layer are the products of its rows with the weights of each channel, at every place.
    fn is_its_rows(source: &str, shape: &[usize]) {
        let graph = import(text::parse(source).unwrap(), &|_| Err("none".into())).unwrap().graph;
        let value = |name: &str| graph.find(name).unwrap();
        let layer = Layer::of(&graph, graph.producer(value("y")).unwrap().0).unwrap();
        let count: usize = shape.iter().product();
        let x = (0..count).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect::<Vec<_>>();
        let x = Array::new(shape, x).unwrap();
        let program = Program::new(&graph).unwrap();
        let found = program.values(std::slice::from_ref(&x), &[value("y")]).unwrap().remove(0).unwrap();
        let integers = graph.constant(layer.weight.integers).unwrap().array().unwrap();
        let weights = layer.by_channel(integers.slice::<i8>().unwrap());
        let scales = layer.scales(&graph).unwrap();
        let places: Vec<usize> = (0..layer.places(found.shape())).rev().collect();
        let wanted = layer.outputs(&found, &places).unwrap();
        let sources = layer.sources(x.shape(), &places).unwrap();
        let (depth, per_group) = (layer.depth, layer.channels / layer.groups);
        for group in 0..layer.groups {
            let mut rows = vec![7.0; places.len() * (depth + 1)];
            layer.inputs(x.slice().unwrap(), &sources, group, &mut rows);
            for (row, wanted) in rows.chunks(depth + 1).zip(wanted.chunks(layer.channels)) {
                assert_eq!(row[depth], 1.0);
                for c in group * per_group..(group + 1) * per_group {
                    let weights = &weights[c * depth..][..depth];
                    let sum: f32 = row.iter().zip(weights).map(|(x, &w)| x * f32::from(w) * scales[c]).sum();
                    assert!((sum - wanted[c]).abs() < 1e-4, "{sum} is not {}", wanted[c]);
                }
            }
        }
    }

    #[test]
    fn windows_of_groups_with_strides_and_padding_are_rows() {
        is_its_rows(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2, 4, 5, 6] x) => (float[2, 2, 3, 3] y)
            <int8[2, 2, 3, 2] q = {1, -2, 3, 4, -5, 6, 7, 8, -9, 10, 11, 12, 13, 14, -15, 16, 17, 18, 19, -20, 21, 22,
             23, 24}, float[2] s = {0.1, 0.02}, int8[2] z = {0, 0}> {
              w = DequantizeLinear <axis = 0> (q, s, z)
              y = Conv <group = 2, strides = [2, 2], pads = [1, 0, 1, 1]> (x, w)
            }"#,
            &[2, 4, 5, 6],
        );
    }

    #[test]
    fn rows_of_a_matrix_are_rows() {
        is_its_rows(
            r#"<ir_version: 8, opset_import: ["" : 17]>
            g (float[2, 3, 4] x) => (float[2, 3, 2] y)
            <int8[4, 2] q = {1, -2, 3, 4, -5, 6, 7, 8}, float[2] s = {0.1, 0.02}, int8[2] z = {0, 0}> {
              w = DequantizeLinear <axis = 1> (q, s, z)
              y = MatMul (x, w)
            }"#,
            &[2, 3, 4],
        );
    }
}
