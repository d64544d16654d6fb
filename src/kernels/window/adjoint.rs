//! The way back through [`Phases`]: each step of the way there, transposed.

use super::Phases;
use crate::kernels::gemm::Number;

impl Phases {
    /// The transpose of [`join`](Self::join): lays a plane of windows out as a phase, with zeros between.
    pub fn spread<T: Number>(&self, source: &[T], target: &mut [T]) {
        target.fill(T::default());
        let (starts, length) = &self.windows;
        for (line, &start) in source.chunks_exact(*length).zip(starts) {
            target[start..][..*length].copy_from_slice(line);
        }
    }

    /// Adds the windows' values, each tap with its weight, where the taps read.
    pub fn scatter<T: Number>(&self, windows: &[T], weights: &[T], split: &mut [T]) {
        for (&offset, &w) in self.taps.iter().zip(weights) {
            let target = split[offset..][..windows.len()].iter_mut();
            target.zip(windows).for_each(|(sum, &v)| *sum = sum.plus(v.times(w)));
        }
    }

    /// The transpose of [`split`](Self::split): puts the phases together again and leaves out the padding. What no tap
    /// reads becomes zero.
    pub fn merge<T: Number>(&self, source: &[T], target: &mut [T]) {
        target.fill(T::default());
        let (length, stride) = self.row;
        for (line, row) in source.chunks_exact(length).zip(&self.rows) {
            let places = target[row.source..].iter_mut().step_by(stride);
            places.zip(&line[row.first..row.last]).for_each(|(slot, &v)| *slot = v);
        }
    }
}
