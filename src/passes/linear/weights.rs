//! The weights of linear operators by output channel, whatever the operator's layout.

use crate::interpret::node_label;
use crate::ir::attribute;
use crate::ir::{Array, Attribute, DType, Edit, Graph, NodeId, Operand, Refusal, Tensor};
use crate::ops::conv::{Conv, ConvTranspose};
use crate::ops::gemm::Gemm;
use crate::passes::node;

/// A linear operator with constant weights.
pub struct Linear {
    id: NodeId,
    shape: Vec<usize>,
    /// Which axes of the weight count output channels, outer first.
    layout: Layout,
    /// What it holds is read only when it changes: weights may be large.
    weight: Tensor,
    /// One element an output channel; `None`: no bias.
    pub bias: Option<Vec<f32>>,
    /// Factors of product and bias (`alpha` and `beta` of Gemm).
    factors: (f64, f64),
    attributes: Vec<Attribute>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Axis 0: Conv, Gemm with transB.
    First,
    /// The last axis: MatMul, Gemm.
    Last,
    /// Axis 1 within each of several groups along axis 0: ConvTranspose.
    Grouped(usize),
}

impl Linear {
    /// The node as a linear operator; `None` if it is another or its weight is no `f32` constant.
    pub fn of(graph: &Graph, id: NodeId) -> Result<Option<Self>, Refusal> {
        let node = graph.node(id);
        let mut factors = (1.0, 1.0);
        let layout = if node.op_as::<Conv>().is_some() {
            Layout::First
        } else if let Some(op) = node.op_as::<ConvTranspose>() {
            Layout::Grouped(op.group.max(1))
        } else if let Some(op) = node.op_as::<Gemm>() {
            factors = (op.alpha.into(), op.beta.into());
            if op.trans_b { Layout::First } else { Layout::Last }
        } else if node.is("MatMul") {
            Layout::Last
        } else {
            return Ok(None);
        };
        let Some(weight) = graph.constant_input(id, 1).filter(|t| t.dtype() == DType::F32) else {
            return Ok(None);
        };
        let shape = weight.shape().to_vec();
        if shape.len() < 2 || shape.contains(&0) || (node.is("MatMul") && shape.len() != 2) {
            return Ok(None);
        }
        if let Layout::Grouped(groups) = layout
            && !shape[0].is_multiple_of(groups)
        {
            return Ok(None);
        }
        let (weight, attributes) = (weight.clone(), node.attributes.clone());
        let mut linear = Self { id, shape, layout, weight, bias: None, factors, attributes };
        if let Some(value) = graph.input(id, 2) {
            let Some(tensor) = graph.constant(value).filter(|t| t.dtype() == DType::F32) else {
                return Err("its bias is computed".into());
            };
            let values = tensor.array().and_then(|a| a.slice::<f32>().map(<[f32]>::to_vec));
            let values = values.map_err(|f| f.to_string())?;
            linear.bias = Some(match values.len() {
                1 => vec![values[0]; linear.channels()],
                n if n == linear.channels() && tensor.shape().last() == Some(&n) => values,
                _ => return Err("its bias differs by row".into()),
            });
        }
        Ok(Some(linear))
    }

    /// Number of output channels.
    pub fn channels(&self) -> usize {
        match self.layout {
            Layout::First => self.shape[0],
            Layout::Last => self.shape[self.shape.len() - 1],
            Layout::Grouped(groups) => self.shape[1] * groups,
        }
    }

    /// Has the operator a slot for a bias?
    pub fn takes_bias(&self) -> bool {
        self.layout != Layout::Last || !self.attributes.is_empty() || self.bias.is_some()
    }

    /// Has it `alpha` or `beta` other than 1?
    pub fn has_factors(&self) -> bool {
        self.factors != (1.0, 1.0)
    }

    /// The channel that element `index` of the weight belongs to.
    fn channel(&self, index: usize) -> usize {
        let inner = |from: usize| self.shape[from..].iter().product::<usize>();
        match self.layout {
            Layout::First => index / inner(1),
            Layout::Last => index % self.shape[self.shape.len() - 1],
            Layout::Grouped(groups) => {
                let group = index / inner(1) / (self.shape[0] / groups);
                group * self.shape[1] + index / inner(2) % self.shape[1]
            }
        }
    }

    /// `scale·(W·x + b) + shift`, with `alpha` and `beta` folded. It must be finite.
    pub fn scaled(&self, scale: &[f64], shift: &[f64]) -> Result<Self, Refusal> {
        let (alpha, beta) = self.factors;
        let array = self.weight.array().map_err(|f| f.to_string())?;
        let weight = array.slice::<f32>().map_err(|f| f.to_string())?;
        let scaled = |(i, &w): (usize, &f32)| (f64::from(w) * alpha * scale[self.channel(i)]) as f32;
        let bias = (0..self.channels()).map(|c| {
            let b = self.bias.as_ref().map_or(0.0, |b| f64::from(b[c]) * beta);
            (b * scale[c] + shift[c]) as f32
        });
        let (weight, bias) =
            (weight.iter().enumerate().map(scaled).collect::<Vec<f32>>(), bias.collect::<Vec<f32>>());
        if weight.iter().chain(&bias).any(|v| !v.is_finite()) {
            return Err("the folded weights are not finite".into());
        }
        let weight = Array::new(&self.shape, weight).map_err(|f| f.to_string())?;
        let gone = |a: &Attribute| matches!(a.name.as_deref(), Some("alpha" | "beta"));
        Ok(Self {
            id: self.id,
            shape: self.shape.clone(),
            layout: self.layout,
            weight: Tensor::from_array(&weight),
            bias: Some(bias),
            factors: (1.0, 1.0),
            attributes: self.attributes.iter().filter(|a| !gone(a)).cloned().collect(),
        })
    }

    /// Adds this operator to an edit.
    pub fn add_node(&self, graph: &Graph, edit: &mut Edit, bias: Option<Vec<f32>>, output: Operand) {
        let old = graph.node(self.id);
        let name_of = |slot: usize, what: &str| match graph.input(self.id, slot) {
            Some(value) => graph.name(value).to_string(),
            None => format!("{}_{what}", node_label(graph, self.id)),
        };
        let mut inputs = vec![
            graph.input(self.id, 0).map(Into::into),
            Some(edit.constant(&name_of(1, "weight"), self.weight.clone())),
        ];
        if let Some(bias) = bias {
            inputs.push(Some(edit.constant(&name_of(2, "bias"), Tensor::from_array(&Array::vector(bias)))));
        }
        let mut attributes = self.attributes.clone();
        if old.is("Gemm") && attributes.is_empty() {
            attributes.push(attribute::int("transB", 0));
        }
        let new = node(&old.op_type, node_label(graph, self.id), attributes, inputs.len());
        edit.node(new, inputs, vec![Some(output)]);
    }
}
