//! LSTM, GRU and RNN: layers that walk along a sequence, forward, backward or both.
//!
//! Inputs: x (time × batch × input), weights, recurrent weights, biases, lengths of the sequences, initial states,
//! and for LSTM initial cells and peepholes. Outputs: the states of all steps, the last states, and for LSTM the last
//! cells. Layout 1 puts the batch first.
//! See <https://onnx.ai/onnx/operators/onnx__LSTM.html>.

mod dynamic;
mod gradient;

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::slots::{known, optional, required};
use super::{Attrs, Fact, Gradient, ONNX, Op, OpDef, Runtime};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Dim, TensorType, element_count};
use crate::kernels::gemm::Number;
use crate::kernels::recurrent::{Activation, Cell, Function, Layer, Product, Sizes, run, run_with};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "LSTM", since: 1, parse: Recurrent::lstm },
    OpDef { domain: ONNX, name: "GRU", since: 1, parse: Recurrent::gru },
    OpDef {
        domain: "com.microsoft",
        name: "DynamicQuantizeLSTM",
        since: 1,
        parse: dynamic::DynamicQuantizeLstm::parse,
    },
    OpDef { domain: ONNX, name: "RNN", since: 1, parse: |a| Recurrent::parse(a, Cell::Plain, &["Tanh"]) },
];

/// The products of a direction, with inputs and with states.
type Pair<T> = [Box<dyn Product<T>>; 2];

/// Which way a layer walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the first step to the last.
    Forward,
    /// From the last step to the first.
    Reverse,
    /// Two layers, one each way.
    Both,
}

/// A recurrent layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Recurrent {
    /// The kind of cell.
    pub cell: Cell,
    /// Which way it walks.
    pub direction: Direction,
    /// Number of states, if the attribute says.
    pub hidden_size: Option<usize>,
    /// Activation functions, for each direction as many as the cell wants.
    pub activations: Vec<Activation>,
    /// Limit of what goes into the activations.
    pub clip: Option<f32>,
    /// Layout 1: batch × time × input.
    pub batch_first: bool,
    /// Are the weights, and the recurrent weights, laid out ahead of a run?
    pub ahead: [bool; 2],
}

impl Recurrent {
    fn lstm(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let coupled = attrs.flag("input_forget", false)?;
        Self::parse(attrs, Cell::Lstm { coupled }, &["Sigmoid", "Tanh", "Tanh"])
    }

    fn gru(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let linear_before_reset = attrs.version() >= 3 && attrs.flag("linear_before_reset", false)?;
        Self::parse(attrs, Cell::Gru { linear_before_reset }, &["Sigmoid", "Tanh"])
    }

    fn parse(attrs: &mut Attrs, cell: Cell, defaults: &[&str]) -> Result<Arc<dyn Op>, Fault> {
        if attrs.version() < 7 {
            attrs.opt_int("output_sequence")?; // an output is computed whether it is used or not
        }
        let direction = match attrs.string("direction", "forward")?.as_str() {
            "forward" => Direction::Forward,
            "reverse" => Direction::Reverse,
            "bidirectional" => Direction::Both,
            other => fail!("direction is {other}"),
        };
        let hidden_size = match attrs.opt_int("hidden_size")? {
            None => None,
            Some(n) => Some(usize::try_from(n).map_err(|_| Fault::new(format!("hidden_size is {n}")))?),
        };
        let count = defaults.len() * if direction == Direction::Both { 2 } else { 1 };
        let names = attrs
            .opt_strings("activations")?
            .filter(|names| !names.is_empty())
            .unwrap_or_else(|| defaults.iter().cycle().take(count).map(|s| (*s).into()).collect());
        if names.len() != count {
            fail!("{} activations instead of {count}", names.len());
        }
        let mut alphas = attrs.opt_floats("activation_alpha")?.unwrap_or_default().into_iter();
        let mut betas = attrs.opt_floats("activation_beta")?.unwrap_or_default().into_iter();
        let activations = names.iter().map(|name| activation(name, &mut alphas, &mut betas));
        Ok(Arc::new(Self {
            cell,
            direction,
            hidden_size,
            activations: activations.collect::<Result<_, _>>()?,
            clip: attrs.opt_float("clip")?.filter(|&c| c > 0.0),
            batch_first: attrs.version() >= 14 && attrs.flag("layout", false)?,
            ahead: [true; 2],
        }))
    }

    fn directions(&self) -> usize {
        if self.direction == Direction::Both { 2 } else { 1 }
    }

    /// `products`, for each direction those with inputs and states, take the place of real weights; the recurrent
    /// ones in slot 2 then have the gates along the last axis.
    fn run<T: Real + Number>(
        &self,
        inputs: &[Option<Array>],
        products: Option<&[Pair<T>]>,
    ) -> Result<Vec<Array>, Fault> {
        let swap = |a: &Array| if self.batch_first { a.transposed(&[1, 0, 2]) } else { Ok(a.clone()) };
        let x = swap(required(inputs, 0)?)?;
        let (&[time, batch, input], &[_, rows, columns]) = (x.shape(), required(inputs, 2)?.shape()) else {
            fail!("input and recurrent weights do not have three dimensions");
        };
        let hidden = if products.is_some() { rows } else { columns };
        if self.hidden_size.is_some_and(|n| n != hidden) {
            fail!("hidden_size is {:?}, but the recurrent weights have {hidden} columns", self.hidden_size);
        }
        let (sizes, ways) = (Sizes { time, batch, input, hidden }, self.directions());
        let width = self.cell.gates().checked_mul(hidden).ok_or("too many states")?;
        element_count(&[time, batch, width.max(1)])?;
        let read = |slot: usize, shape: &[usize]| {
            let Some(array) = optional(inputs, slot) else { return Ok(None) };
            let array = if matches!(slot, 5 | 6) { swap(array)? } else { array.clone() };
            if array.shape() != shape {
                fail!("input {slot} has shape {:?} instead of {shape:?}", array.shape());
            }
            Ok(Some(elements(&T::read(&array)?)?.to_vec()))
        };
        let input_data = T::read(&x)?;
        let real = |slot: usize, columns: usize| match products {
            None => read(slot, &[ways, width, columns])?.ok_or_else(|| Fault::new("weights are missing")),
            Some(_) => Ok(Vec::new()),
        };
        let (weights, recurrent) = (real(1, input)?, real(2, hidden)?);
        let biases = read(3, &[ways, 2 * width])?;
        let is_lstm = matches!(self.cell, Cell::Lstm { .. });
        let peepholes = if is_lstm { read(7, &[ways, 3 * hidden])? } else { None };
        let state = |slot| -> Result<Vec<T>, Fault> {
            let count = element_count(&[ways, batch, hidden])?;
            Ok(read(slot, &[ways, batch, hidden])?.unwrap_or_else(|| vec![T::ZERO; count]))
        };
        let (mut h, mut c) = (state(5)?, if is_lstm { state(6)? } else { Vec::new() });
        let lengths = lengths(optional(inputs, 4), batch, time)?;

        let mut y = vec![T::ZERO; element_count(&[time, ways, batch, hidden])?];
        for way in 0..ways {
            let count = self.cell.activations();
            let layer = Layer {
                cell: self.cell,
                reverse: self.direction == Direction::Reverse || way == 1,
                weights: part(&weights, way, ways),
                recurrent: part(&recurrent, way, ways),
                ahead: self.ahead,
                biases: biases.as_ref().map(|b| part(b, way, ways).split_at(width)),
                peepholes: peepholes.as_ref().map(|p| part(p, way, ways)),
                activations: &self.activations[way * count..][..count],
                clip: self.clip.map(|c| T::of(c.into())),
            };
            let size = batch * hidden;
            let states =
                (&mut h[way * size..][..size], if is_lstm { &mut c[way * size..][..size] } else { &mut [] });
            let emit = |t: usize, b: usize, state: &[T]| {
                y[((t * ways + way) * batch + b) * hidden..][..hidden].copy_from_slice(state);
            };
            let x = elements(&input_data)?;
            match products.and_then(|p| p.get(way)) {
                None => run(&layer, sizes, x, &lengths, states, emit),
                Some([w, r]) => run_with(&layer, (&**w, &**r), sizes, x, &lengths, states, emit),
            }
        }
        let last = |state: Vec<T>| swap(&T::array(&[ways, batch, hidden], state)?);
        let y = T::array(&[time, ways, batch, hidden], y)?;
        let y = if self.batch_first { y.transposed(&[2, 0, 1, 3])? } else { y };
        Ok(if is_lstm { vec![y, last(h)?, last(c)?] } else { vec![y, last(h)?] })
    }
}

/// The share of one direction.
fn part<T>(data: &[T], way: usize, ways: usize) -> &[T] {
    let size = data.len() / ways;
    &data[way * size..][..size]
}

/// The length of every sequence: all steps unless told otherwise.
fn lengths(given: Option<&Array>, batch: usize, time: usize) -> Result<Vec<usize>, Fault> {
    let Some(given) = given else { return Ok(vec![time; batch]) };
    let given = given.to_i64()?;
    let lengths: Vec<usize> =
        given.iter().filter_map(|&l| usize::try_from(l).ok().filter(|&l| l <= time)).collect();
    if given.len() != batch || lengths.len() != batch {
        fail!("sequence_lens {given:?} does not fit {batch} sequences of {time} steps");
    }
    Ok(lengths)
}

/// The function of this name; those that have constants take them from the lists in turn.
fn activation(
    name: &str,
    alphas: &mut impl Iterator<Item = f32>,
    betas: &mut impl Iterator<Item = f32>,
) -> Result<Activation, Fault> {
    let (function, alpha, beta) = match name.to_ascii_lowercase().as_str() {
        "relu" => (Function::Relu, None, None),
        "tanh" => (Function::Tanh, None, None),
        "sigmoid" => (Function::Sigmoid, None, None),
        "softsign" => (Function::Softsign, None, None),
        "softplus" => (Function::Softplus, None, None),
        "affine" => (Function::Affine, Some(1.0), Some(0.0)),
        "leakyrelu" => (Function::LeakyRelu, Some(0.01), None),
        "thresholdedrelu" => (Function::ThresholdedRelu, Some(1.0), None),
        "scaledtanh" => (Function::ScaledTanh, Some(1.0), Some(1.0)),
        "hardsigmoid" => (Function::HardSigmoid, Some(0.2), Some(0.5)),
        "elu" => (Function::Elu, Some(1.0), None),
        _ => fail!("unknown activation {name}"),
    };
    let alpha = alpha.map_or(0.0, |default| alphas.next().unwrap_or(default));
    let beta = beta.map_or(0.0, |default| betas.next().unwrap_or(default));
    Ok(Activation { function, alpha, beta })
}

impl Op for Recurrent {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(Vec::new()) };
        let (first, second) = match &x.dims {
            Some(dims) => match dims.as_slice() {
                [first, second, _] => (first.clone(), second.clone()),
                other => fail!("expected three dimensions, found {}", other.len()),
            },
            None => (Dim::Unknown, Dim::Unknown),
        };
        let ways = Dim::Known(self.directions());
        let hidden = match self.hidden_size {
            Some(n) => Dim::Known(n),
            None => known(inputs, 2).and_then(|r| r.dim(2).cloned()).unwrap_or(Dim::Unknown),
        };
        let (y, last) = match self.batch_first {
            true => (vec![first.clone(), second, ways.clone(), hidden.clone()], vec![first, ways, hidden]),
            false => (vec![first, ways.clone(), second.clone(), hidden.clone()], vec![ways, second, hidden]),
        };
        let last = Some(TensorType::new(x.dtype, last));
        let mut types = vec![Some(TensorType::new(x.dtype, y)), last.clone()];
        types.extend(matches!(self.cell, Cell::Lstm { .. }).then_some(last));
        Ok(types)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        in_reals!(required(inputs, 0)?.dtype(), T => self.run::<T>(inputs, None))
    }

    fn in_runtime(&self, runtime: &Runtime) -> Option<Arc<dyn Op>> {
        let mut layer = Self { ahead: [1, 2].map(|slot| runtime.ahead(slot).is_some()), ..self.clone() };
        if matches!(self.cell, Cell::Lstm { .. }) {
            for activation in &mut layer.activations {
                activation.function = match activation.function {
                    Function::Tanh => Function::TanhFraction,
                    Function::Sigmoid => Function::SigmoidFraction,
                    other => other,
                };
            }
        }
        Some(Arc::new(layer))
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        if self.clip.is_none() { Some(self) } else { None }
    }
}

#[cfg(test)]
mod tests;
