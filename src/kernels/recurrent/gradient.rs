//! The way back through a recurrent layer: back-propagation through time.
//!
//! The layer runs once more, now keeping its gates. Then the steps are undone one by one: each gives the gradient by
//! its gates and by the state before it. The products with the weights are put off to the end, when the gates of all
//! steps make one matrix. All derivatives of the activations follow from what they returned.

use super::{Activation, Cell, Function, Layer, Sizes, Weights, add, with_bias};
use crate::kernels::gemm::{Mat, MatMut, Number, Size, gemm};
use crate::kernels::real::Real;

/// The gradients by what the layer read.
#[derive(Debug)]
pub struct Gradients<T> {
    /// By the sequence, time × batch × input.
    pub x: Vec<T>,
    /// By the input weights.
    pub weights: Vec<T>,
    /// By the recurrent weights.
    pub recurrent: Vec<T>,
    /// By the biases of the input product and of the recurrent product.
    pub biases: (Vec<T>, Vec<T>),
    /// By the peepholes.
    pub peepholes: Vec<T>,
    /// By the initial states, batch × H.
    pub h: Vec<T>,
    /// By the initial cells, batch × H.
    pub c: Vec<T>,
}

/// What a layer read.
#[derive(Debug, Clone, Copy)]
pub struct Read<'a, T> {
    /// The sequence, time × batch × input.
    pub x: &'a [T],
    /// The length of every sequence.
    pub lengths: &'a [usize],
    /// The initial states, batch × H.
    pub h: &'a [T],
    /// The initial cells, batch × H, of an LSTM.
    pub c: &'a [T],
}

/// The gradients by what the layer returned.
#[derive(Debug, Clone, Copy)]
pub struct Upstream<'a, T> {
    /// By the state after each step, time × batch × H; empty: none.
    pub y: &'a [T],
    /// By the last states, batch × H.
    pub h: &'a [T],
    /// By the last cells, batch × H; empty: none.
    pub c: &'a [T],
}

impl Activation {
    /// The derivative where the function returned `y`.
    fn slope<T: Real>(&self, y: T) -> T {
        let (alpha, beta) = (T::of(self.alpha.into()), T::of(self.beta.into()));
        let (zero, one) = (T::ZERO, T::of(1.0));
        let when = |holds: bool, slope: T| if holds { slope } else { zero };
        match self.function {
            Function::Relu | Function::ThresholdedRelu => when(y > zero, one),
            Function::Tanh | Function::TanhFraction => one - y * y,
            Function::Sigmoid | Function::SigmoidFraction => y * (one - y),
            Function::Affine => alpha,
            Function::LeakyRelu => {
                if y < zero {
                    alpha
                } else {
                    one
                }
            }
            Function::ScaledTanh => alpha * beta * (one - y / alpha * (y / alpha)),
            Function::HardSigmoid => when(y > zero && y < one, alpha),
            Function::Elu => {
                if y < zero {
                    y + alpha
                } else {
                    one
                }
            }
            Function::Softsign => (one - y.abs()) * (one - y.abs()),
            Function::Softplus => one - (-y).exp(),
        }
    }
}

/// What the way back needs of every step: rows of one step and sequence, zero beyond a sequence's end.
struct Trace<T> {
    /// Activated gates, width each.
    gates: Vec<T>,
    /// States before the step.
    h: Vec<T>,
    /// Cells before and after the step.
    c: (Vec<T>, Vec<T>),
    /// Of a GRU, the product of the states with the weights of the hidden gate.
    hidden: Vec<T>,
}

/// Gradients by the gates as the input product and as the recurrent product enter them, and what the recurrent product
/// read for the last gate.
struct Gates<T> {
    input: Vec<T>,
    state: Vec<T>,
    kept: Vec<T>,
}

/// The gradients by everything that the layer read. The layer must not clip.
pub fn backward<T: Real + Number>(
    layer: &Layer<T>,
    sizes: Sizes,
    read: Read<T>,
    up: Upstream<T>,
) -> Gradients<T> {
    let trace = layer.trace(sizes, read);
    let n = sizes.hidden;
    let width = layer.cell.gates() * n;
    let rows = sizes.time * sizes.batch;
    let mut gates = Gates {
        input: vec![T::ZERO; rows * width],
        state: vec![T::ZERO; rows * width],
        kept: trace.h.clone(),
    };
    let mut peepholes = vec![T::ZERO; layer.peepholes.map_or(0, <[T]>::len)];
    let (mut dh, mut dc) = (up.h.to_vec(), up.c.to_vec());
    dc.resize(sizes.batch * n, T::ZERO);
    for step in (0..sizes.time).rev() {
        for (b, &length) in read.lengths.iter().enumerate().filter(|&(_, &length)| step < length) {
            let t = if layer.reverse { length - 1 - step } else { step };
            let row = t * sizes.batch + b;
            let (dh, dc) = (&mut dh[b * n..][..n], &mut dc[b * n..][..n]);
            if let Some(dy) = up.y.get(row * n..(row + 1) * n) {
                add(dh, dy);
            }
            layer.undo(&trace, row, dh, dc, &mut gates, &mut peepholes);
        }
    }
    let x_rows = |gates: &[T], right: &[T], columns: usize| {
        // gates: rows × width; the product of its transpose with rows × columns
        let mut out = vec![T::ZERO; width * columns];
        let size = Size { m: width, n: columns, k: rows };
        gemm(
            size,
            T::of(1.0),
            Mat::transposed(gates, width),
            Mat::rows(right, columns),
            T::ZERO,
            MatMut::rows(&mut out, columns),
        );
        out
    };
    let mut x = vec![T::ZERO; rows * sizes.input];
    let size = Size { m: rows, n: sizes.input, k: width };
    gemm(
        size,
        T::of(1.0),
        Mat::rows(&gates.input, width),
        Mat::rows(layer.weights, sizes.input),
        T::ZERO,
        MatMut::rows(&mut x, sizes.input),
    );
    let mut recurrent = x_rows(&gates.state, &trace.h, n);
    if matches!(layer.cell, Cell::Gru { linear_before_reset: false }) {
        let last = x_rows(&gates.state, &gates.kept, n);
        recurrent[2 * n * n..].copy_from_slice(&last[2 * n * n..]);
    }
    Gradients {
        x,
        weights: x_rows(&gates.input, read.x, sizes.input),
        recurrent,
        biases: (column_sums(&gates.input, width), column_sums(&gates.state, width)),
        peepholes,
        h: dh,
        c: dc,
    }
}

fn column_sums<T: Real>(rows: &[T], width: usize) -> Vec<T> {
    let mut sums = vec![T::ZERO; width];
    rows.chunks_exact(width.max(1)).for_each(|row| add(&mut sums, row));
    sums
}

impl<T: Real + Number> Layer<'_, T> {
    /// Runs the layer and keeps what it did.
    fn trace(&self, sizes: Sizes, read: Read<T>) -> Trace<T> {
        let (n, width) = (sizes.hidden, self.cell.gates() * sizes.hidden);
        let rows = sizes.time * sizes.batch;
        let (input_bias, state_bias) = self.biases.unzip();
        let weights = Weights::new(self.weights, sizes.input, width, true);
        let from_inputs = with_bias(&weights, read.x, rows, width, input_bias);
        let recurrent = Weights::new(self.recurrent, n, width, true);
        let hidden_gate = match self.cell {
            Cell::Gru { linear_before_reset: false } => {
                Some(Weights::new(&self.recurrent[2 * n * n..], n, n, true))
            }
            _ => None,
        };
        let (mut h, mut c) = (read.h.to_vec(), read.c.to_vec());
        c.resize(h.len(), T::ZERO);
        let zeros = || vec![T::ZERO; rows * n];
        let mut trace =
            Trace { gates: vec![T::ZERO; rows * width], h: zeros(), c: (zeros(), zeros()), hidden: zeros() };
        for step in 0..sizes.time {
            let from_states = with_bias(&recurrent, &h, sizes.batch, width, state_bias);
            for (b, &length) in read.lengths.iter().enumerate().filter(|&(_, &length)| step < length) {
                let row = if self.reverse { length - 1 - step } else { step } * sizes.batch + b;
                let gates = &mut trace.gates[row * width..][..width];
                gates.copy_from_slice(&from_inputs[row * width..][..width]);
                let states = &from_states[b * width..][..width];
                let (h, c) = (&mut h[b * n..][..n], &mut c[b * n..][..n]);
                trace.h[row * n..][..n].copy_from_slice(h);
                trace.c.0[row * n..][..n].copy_from_slice(c);
                match self.cell {
                    Cell::Lstm { coupled } => {
                        add(gates, states);
                        self.lstm(gates, None, h, c, coupled);
                    }
                    Cell::Gru { .. } => {
                        trace.hidden[row * n..][..n].copy_from_slice(&states[2 * n..]);
                        self.gru(gates, states, h, hidden_gate.as_ref());
                    }
                    Cell::Plain => {
                        add(gates, states);
                        self.activate(0, gates);
                        h.copy_from_slice(gates);
                    }
                }
                trace.c.1[row * n..][..n].copy_from_slice(c);
            }
        }
        trace
    }

    /// The derivative of one of the cell's activations where it returned `y`.
    fn slope(&self, which: usize, y: T) -> T {
        self.activations.get(which).map_or(T::of(1.0), |a| a.slope(y))
    }

    /// Undoes one step: `dh` and `dc` come as the gradients after it and leave as those before it.
    fn undo(
        &self,
        trace: &Trace<T>,
        row: usize,
        dh: &mut [T],
        dc: &mut [T],
        gates: &mut Gates<T>,
        peepholes: &mut [T],
    ) {
        let n = dh.len();
        let width = self.cell.gates() * n;
        let acts = &trace.gates[row * width..][..width];
        let before = &trace.h[row * n..][..n];
        let span = row * width..(row + 1) * width;
        let (input, state) = (&mut gates.input[span.clone()], &mut gates.state[span]);
        match self.cell {
            Cell::Lstm { coupled } => {
                let (old, new) = (&trace.c.0[row * n..][..n], &trace.c.1[row * n..][..n]);
                self.undo_lstm(acts, (old, new), coupled, (dh, dc), input, peepholes);
                dh.fill(T::ZERO);
                state.copy_from_slice(input);
                add_rows(dh, state, self.recurrent);
            }
            Cell::Plain => {
                (0..n).for_each(|i| input[i] = dh[i] * self.slope(0, acts[i]));
                state.copy_from_slice(input);
                dh.fill(T::ZERO);
                add_rows(dh, state, self.recurrent);
            }
            Cell::Gru { linear_before_reset } => {
                let product = &trace.hidden[row * n..][..n];
                let kept = &mut gates.kept[row * n..][..n];
                let mut through_reset = vec![T::ZERO; n];
                for i in 0..n {
                    let (z, hidden) = (acts[i], acts[2 * n + i]);
                    input[i] = dh[i] * (before[i] - hidden) * self.slope(0, z);
                    input[2 * n + i] = dh[i] * (T::of(1.0) - z) * self.slope(1, hidden);
                    kept[i] = acts[n + i] * before[i];
                    dh[i] = dh[i] * z;
                }
                if linear_before_reset {
                    through_reset.copy_from_slice(product);
                    (0..n).for_each(|i| through_reset[i] = through_reset[i] * input[2 * n + i]);
                } else {
                    add_rows(&mut through_reset, &input[2 * n..], &self.recurrent[2 * n * n..]);
                    (0..n).for_each(|i| dh[i] += through_reset[i] * acts[n + i]);
                    (0..n).for_each(|i| through_reset[i] = through_reset[i] * before[i]);
                }
                (0..n).for_each(|i| input[n + i] = through_reset[i] * self.slope(0, acts[n + i]));
                state.copy_from_slice(input);
                if linear_before_reset {
                    (0..n).for_each(|i| state[2 * n + i] = input[2 * n + i] * acts[n + i]);
                    add_rows(dh, state, self.recurrent);
                } else {
                    add_rows(dh, &state[..2 * n], self.recurrent);
                }
            }
        }
    }

    fn undo_lstm(
        &self,
        acts: &[T],
        (old, new): (&[T], &[T]),
        coupled: bool,
        (dh, dc): (&[T], &mut [T]),
        gates: &mut [T],
        peepholes: &mut [T],
    ) {
        let n = dh.len();
        let one = T::of(1.0);
        let mut shown = new.to_vec();
        if let Some(activation) = self.activations.get(2) {
            activation.apply(&mut shown);
        }
        for i in 0..n {
            let (input, output, forget, cell) = (acts[i], acts[n + i], acts[2 * n + i], acts[3 * n + i]);
            let d_output = dh[i] * shown[i] * self.slope(0, output);
            let mut d_cell = dc[i] + dh[i] * output * self.slope(2, shown[i]);
            if let Some(p) = self.peepholes {
                d_cell += d_output * p[n + i];
                peepholes[n + i] += d_output * new[i];
            }
            let keep = if coupled { one - input } else { forget };
            let by_input = d_cell * if coupled { cell - old[i] } else { cell };
            let d_input = by_input * self.slope(0, input);
            let d_forget = if coupled { T::ZERO } else { d_cell * old[i] * self.slope(0, forget) };
            dc[i] = d_cell * keep;
            if let Some(p) = self.peepholes {
                dc[i] += d_input * p[i] + d_forget * p[2 * n + i];
                peepholes[i] += d_input * old[i];
                peepholes[2 * n + i] += d_forget * old[i];
            }
            gates[i] = d_input;
            gates[n + i] = d_output;
            gates[2 * n + i] = d_forget;
            gates[3 * n + i] = d_cell * input * self.slope(1, cell);
        }
    }
}

/// Adds rows of a matrix, each with its factor.
fn add_rows<T: Real>(sum: &mut [T], factors: &[T], rows: &[T]) {
    for (&factor, row) in factors.iter().zip(rows.chunks_exact(sum.len().max(1))) {
        sum.iter_mut().zip(row).for_each(|(s, &v)| *s += factor * v);
    }
}
