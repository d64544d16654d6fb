//! The gradients of LSTM, GRU and RNN, direction by direction.

use super::{Direction, Recurrent, lengths, part};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Gradient, Run};
use crate::kernels::gemm::Number;
use crate::kernels::recurrent::gradient::{Read, Upstream, backward};
use crate::kernels::recurrent::{Cell, Layer, Sizes};
use crate::ops::gradient::{Gradients, in_floats};
use crate::ops::operand::Real;
use crate::ops::slots::optional;

impl Recurrent {
    /// The batch's axis second, whatever the layout.
    fn time_first(&self, array: &Array) -> Result<Array, Fault> {
        match (self.batch_first, array.rank()) {
            (true, 3) => array.transposed(&[1, 0, 2]),
            (true, 4) => array.transposed(&[1, 2, 0, 3]),
            _ => Ok(array.clone()),
        }
    }

    fn back<T: Real + Number>(&self, run: &Run) -> Gradients {
        let x = self.time_first(run.input(0)?)?;
        let (&[time, batch, input], &[_, _, hidden]) = (x.shape(), run.input(2)?.shape()) else {
            fail!("input and recurrent weights do not have three dimensions");
        };
        let sizes = Sizes { time, batch, input, hidden };
        let (ways, width, state) = (self.directions(), self.cell.gates() * hidden, batch * hidden);
        let read = |slot: usize| -> Result<Option<Vec<T>>, Fault> {
            let Some(array) = optional(run.inputs, slot) else { return Ok(None) };
            let array = if matches!(slot, 5 | 6) { self.time_first(array)? } else { array.clone() };
            Ok(Some(array.slice::<T>()?.to_vec()))
        };
        let lost = |slot: usize, len: usize| -> Result<Vec<T>, Fault> {
            let Some(array) = optional(run.upstream, slot) else { return Ok(vec![T::ZERO; len]) };
            Ok(self.time_first(array)?.slice::<T>()?.to_vec())
        };
        let (weights, recurrent) = (read(1)?.unwrap_or_default(), read(2)?.unwrap_or_default());
        let (biases, peepholes) = (read(3)?, read(7)?);
        let zeros = || vec![T::ZERO; ways * state];
        let (h, c) = (read(5)?.unwrap_or_else(zeros), read(6)?.unwrap_or_else(zeros));
        let lengths = lengths(optional(run.inputs, 4), batch, time)?;
        let dy = lost(0, time * ways * state)?;
        let (dh, dc) = (lost(1, ways * state)?, lost(2, ways * state)?);
        let mut found: [Vec<T>; 8] = Default::default();
        found[0] = vec![T::ZERO; x.len()];
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
                clip: None,
            };
            let own: Vec<T> =
                dy.chunks_exact(state.max(1)).skip(way).step_by(ways).flatten().copied().collect();
            let up = Upstream { y: &own, h: part(&dh, way, ways), c: part(&dc, way, ways) };
            let what = Read { x: x.slice()?, lengths: &lengths, h: part(&h, way, ways), c: part(&c, way, ways) };
            let back = backward(&layer, sizes, what, up);
            found[0].iter_mut().zip(back.x).for_each(|(sum, v)| *sum += v);
            found[1].extend(back.weights);
            found[2].extend(back.recurrent);
            found[3].extend(back.biases.0.into_iter().chain(back.biases.1));
            found[5].extend(back.h);
            found[6].extend(back.c);
            found[7].extend(back.peepholes);
        }
        let is_lstm = matches!(self.cell, Cell::Lstm { .. });
        let mut gradients = Vec::new();
        for (slot, values) in found.into_iter().enumerate() {
            let input = optional(run.inputs, slot).filter(|_| run.wants(slot) && slot != 4);
            let input = input.filter(|_| is_lstm || slot < 6);
            gradients.push(match input {
                None => None,
                Some(input) if matches!(slot, 0 | 5 | 6) && self.batch_first => {
                    let shape = self.time_first(input)?.shape().to_vec();
                    Some(T::array(&shape, values)?.transposed(&[1, 0, 2])?)
                }
                Some(input) => Some(T::array(input.shape(), values)?),
            });
        }
        Ok(gradients)
    }
}

impl Gradient for Recurrent {
    fn backward(&self, run: &Run) -> Gradients {
        let like = run.upstream.iter().flatten().next().ok_or("no gradient flows back")?;
        in_floats!(like, T => self.back::<T>(run))
    }
}
