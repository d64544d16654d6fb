//! Recurrent cells: LSTM, GRU and the plain one.
//!
//! The product of the inputs with their weights does not depend on the state, so it is computed for all steps at
//! once; a step then costs one product of the states with the recurrent weights, and the gates. An LSTM adds them in
//! the order of ONNX Runtime: the products with an input, those with a state, peepholes, and the sum of both biases.

pub mod gradient;
mod weights;

use super::gemm::Number;
use super::real::Real;
use weights::Weights;

/// An activation function with its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// Which function.
    pub function: Function,
    /// First constant, where there is one.
    pub alpha: f32,
    /// Second constant, where there is one.
    pub beta: f32,
}

/// The shape of an activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `max(x, 0)`
    Relu,
    /// `tanh x`
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `tanh x` as a fraction, see [`fraction`](super::fraction)
    TanhFraction,
    /// `1 / (1 + e^-x)` as a fraction
    SigmoidFraction,
    /// `alpha · x + beta`
    Affine,
    /// `x`, or `alpha · x` below 0
    LeakyRelu,
    /// `x`, or 0 below `alpha`
    ThresholdedRelu,
    /// `alpha · tanh(beta · x)`
    ScaledTanh,
    /// `alpha · x + beta` within [0, 1]
    HardSigmoid,
    /// `x`, or `alpha · (e^x - 1)` below 0
    Elu,
    /// `x / (1 + |x|)`
    Softsign,
    /// `ln(1 + e^x)`
    Softplus,
}

impl Activation {
    fn apply<T: Real>(&self, x: &mut [T]) {
        let (alpha, beta, zero, one) =
            (T::of(self.alpha.into()), T::of(self.beta.into()), T::ZERO, T::of(1.0));
        let mut each = |f: &dyn Fn(T) -> T| x.iter_mut().for_each(|v| *v = f(*v));
        match self.function {
            Function::Tanh => T::tanh_slice(x),
            Function::Sigmoid => T::sigmoid_slice(x),
            Function::TanhFraction => T::tanh_fraction_slice(x),
            Function::SigmoidFraction => T::sigmoid_fraction_slice(x),
            Function::Relu => each(&|v| if v < zero { zero } else { v }),
            Function::Affine => each(&|v| alpha * v + beta),
            Function::LeakyRelu => each(&|v| if v < zero { alpha * v } else { v }),
            Function::ThresholdedRelu => each(&|v| if v > alpha { v } else { zero }),
            Function::ScaledTanh => each(&|v| alpha * (beta * v).tanh()),
            Function::HardSigmoid => each(&|v| clamp(alpha * v + beta, zero, one)),
            Function::Elu => each(&|v| if v < zero { alpha * (v.exp() - one) } else { v }),
            Function::Softsign => each(&|v| v / (one + v.abs())),
            // e^-|x| never overflows.
            Function::Softplus => each(&|v| (-v.abs()).exp().ln_1p() + if v > zero { v } else { zero }),
        }
    }
}

fn clamp<T: Real>(v: T, low: T, high: T) -> T {
    if v < low {
        low
    } else if v > high {
        high
    } else {
        v
    }
}

/// The kind of cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// Long short-term memory; gates in the order input, output, forget, cell.
    Lstm {
        /// The forget gate is one minus the input gate.
        coupled: bool,
    },
    /// Gated recurrent unit; gates in the order update, reset, hidden.
    Gru {
        /// The reset gate multiplies the product with the recurrent weights instead of the state.
        linear_before_reset: bool,
    },
    /// One layer with an activation.
    Plain,
}

impl Cell {
    /// Number of gates.
    pub fn gates(self) -> usize {
        match self {
            Self::Lstm { .. } => 4,
            Self::Gru { .. } => 3,
            Self::Plain => 1,
        }
    }

    /// Number of activation functions.
    pub fn activations(self) -> usize {
        match self {
            Self::Lstm { .. } => 3,
            Self::Gru { .. } => 2,
            Self::Plain => 1,
        }
    }
}

/// Sizes of a recurrent layer.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Steps.
    pub time: usize,
    /// Sequences.
    pub batch: usize,
    /// Inputs of a step.
    pub input: usize,
    /// States of a cell.
    pub hidden: usize,
}

/// One direction of a recurrent layer. With G gates and H states:
#[derive(Debug)]
pub struct Layer<'a, T> {
    /// The kind of cell.
    pub cell: Cell,
    /// From the last step to the first.
    pub reverse: bool,
    /// Input weights, G · H × input.
    pub weights: &'a [T],
    /// Recurrent weights, G · H × H.
    pub recurrent: &'a [T],
    /// Are the weights, and the recurrent weights, laid out ahead? Their sums are then made of other parts.
    pub ahead: [bool; 2],
    /// Biases of the input product and of the recurrent product, each G · H, or none.
    pub biases: Option<(&'a [T], &'a [T])>,
    /// Weights from the cell to the input, output and forget gates, each H, or none.
    pub peepholes: Option<&'a [T]>,
    /// As many as the cell wants.
    pub activations: &'a [Activation],
    /// Limits what goes into the gates' activations.
    pub clip: Option<T>,
}

/// What rows of inputs or states are multiplied with.
pub trait Product<T> {
    /// Adds the product of `count` rows to as many rows of `y`.
    fn add(&self, x: &[T], count: usize, y: &mut [T]);
}

/// The product of `count` rows of which each has `width` elements, plus a bias.
fn with_bias<T: Real>(
    product: &dyn Product<T>,
    x: &[T],
    count: usize,
    width: usize,
    bias: Option<&[T]>,
) -> Vec<T> {
    let mut y = bias.map_or_else(|| vec![T::ZERO; count * width], |bias| bias.repeat(count));
    product.add(x, count, &mut y);
    y
}

/// Runs a layer over `x` (time × batch × input). Sequence `b` ends after `lengths[b]` steps. `h` and `c` (batch × H)
/// hold the initial states and then the last ones; `emit` gets step, sequence and state.
pub fn run<T: Real + Number>(
    layer: &Layer<T>,
    sizes: Sizes,
    x: &[T],
    lengths: &[usize],
    states: (&mut [T], &mut [T]),
    emit: impl FnMut(usize, usize, &[T]),
) {
    let width = layer.cell.gates() * sizes.hidden;
    let weights = Weights::new(layer.weights, sizes.input, width, layer.ahead[0]);
    let recurrent = Weights::new(layer.recurrent, sizes.hidden, width, layer.ahead[1]);
    run_with(layer, (&weights, &recurrent), sizes, x, lengths, states, emit);
}

/// The same with these products in place of those with the layer's weights, of which a GRU alone still reads its own.
pub fn run_with<T: Real + Number>(
    layer: &Layer<T>,
    (weights, recurrent): (&dyn Product<T>, &dyn Product<T>),
    sizes: Sizes,
    x: &[T],
    lengths: &[usize],
    (h, c): (&mut [T], &mut [T]),
    mut emit: impl FnMut(usize, usize, &[T]),
) {
    let (hidden, width) = (sizes.hidden, layer.cell.gates() * sizes.hidden);
    let lstm = matches!(layer.cell, Cell::Lstm { .. });
    let (input_bias, state_bias) = if lstm { (None, None) } else { layer.biases.unzip() };
    let both: Option<Vec<T>> = layer.biases.map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| a + b).collect());
    let from_inputs = with_bias(weights, x, sizes.time * sizes.batch, width, input_bias);
    let hidden_gate = match layer.cell {
        Cell::Gru { linear_before_reset: false } => {
            Some(Weights::new(&layer.recurrent[2 * hidden * hidden..], hidden, hidden, layer.ahead[1]))
        }
        _ => None,
    };
    let mut gates = vec![T::ZERO; width];
    let mut from_states = vec![T::ZERO; sizes.batch * width];
    for step in 0..sizes.time {
        let time = |length: usize| if layer.reverse { length - 1 - step } else { step };
        let input =
            |b: usize, length: usize| &from_inputs[(time(length) * sizes.batch + b) * width..][..width];
        let running = || lengths.iter().copied().enumerate().filter(|&(_, length)| step < length);
        match state_bias {
            Some(bias) => {
                from_states.chunks_exact_mut(width.max(1)).for_each(|row| row.copy_from_slice(bias))
            }
            None => from_states.fill(T::ZERO),
        }
        if lstm {
            running()
                .for_each(|(b, length)| from_states[b * width..][..width].copy_from_slice(input(b, length)));
        }
        recurrent.add(h, sizes.batch, &mut from_states);
        for (b, length) in running() {
            let states = &mut from_states[b * width..][..width];
            let h = &mut h[b * hidden..][..hidden];
            if let Cell::Lstm { coupled } = layer.cell {
                layer.lstm(states, both.as_deref(), h, &mut c[b * hidden..][..hidden], coupled);
                emit(time(length), b, h);
                continue;
            }
            gates.copy_from_slice(input(b, length));
            if let Cell::Gru { .. } = layer.cell {
                layer.gru(&mut gates, states, h, hidden_gate.as_ref());
            } else {
                add(&mut gates, states);
                layer.activate(0, &mut gates);
                h.copy_from_slice(&gates);
            }
            emit(time(length), b, h);
        }
    }
}

impl<T: Real + Number> Layer<'_, T> {
    fn activate(&self, which: usize, x: &mut [T]) {
        if let Some(limit) = self.clip {
            x.iter_mut().for_each(|v| *v = clamp(*v, -limit, limit));
        }
        if let Some(activation) = self.activations.get(which) {
            activation.apply(x);
        }
    }

    /// `bias` is the sum of both biases.
    fn lstm(&self, gates: &mut [T], bias: Option<&[T]>, h: &mut [T], c: &mut [T], coupled: bool) {
        let n = h.len();
        let (input, rest) = gates.split_at_mut(n);
        let (output, rest) = rest.split_at_mut(n);
        let (forget, cell) = rest.split_at_mut(n);
        let activate = |which: usize, gate: usize, x: &mut [T]| {
            if let Some(bias) = bias {
                add(x, &bias[gate * n..][..n]);
            }
            self.activate(which, x);
        };
        if let Some(p) = self.peepholes {
            add_product(input, &p[..n], c);
            add_product(forget, &p[2 * n..], c);
        }
        activate(0, 0, input);
        activate(0, 2, forget);
        activate(1, 3, cell);
        for i in 0..n {
            let keep = if coupled { T::of(1.0) - input[i] } else { forget[i] };
            c[i] = keep * c[i] + input[i] * cell[i];
        }
        if let Some(p) = self.peepholes {
            add_product(output, &p[n..2 * n], c);
        }
        activate(0, 1, output);
        h.copy_from_slice(c);
        if let Some(activation) = self.activations.get(2) {
            activation.apply(h);
        }
        h.iter_mut().zip(output).for_each(|(h, &mut o)| *h = *h * o);
    }

    /// With the weights of the hidden gate the state is reset before the product, without them after.
    fn gru(&self, gates: &mut [T], states: &[T], h: &mut [T], hidden_gate: Option<&Weights<T>>) {
        let n = h.len();
        let (update_reset, hidden) = gates.split_at_mut(2 * n);
        add(update_reset, &states[..2 * n]);
        self.activate(0, update_reset);
        let (update, reset) = update_reset.split_at(n);
        match hidden_gate {
            None => add_product(hidden, reset, &states[2 * n..]),
            Some(weights) => {
                let kept: Vec<T> = reset.iter().zip(&*h).map(|(&r, &h)| r * h).collect();
                add(hidden, &with_bias(weights, &kept, 1, n, self.biases.map(|b| &b.1[2 * n..])));
            }
        }
        self.activate(1, hidden);
        for i in 0..n {
            h[i] = (T::of(1.0) - update[i]) * hidden[i] + update[i] * h[i];
        }
    }
}

fn add<T: Real>(sum: &mut [T], other: &[T]) {
    sum.iter_mut().zip(other).for_each(|(s, &o)| *s += o);
}

fn add_product<T: Real>(sum: &mut [T], a: &[T], b: &[T]) {
    sum.iter_mut().zip(a.iter().zip(b)).for_each(|(s, (&a, &b))| *s += a * b);
}

#[cfg(test)]
mod tests;
