//! The way back through [`Phases`]: each step of the way there, transposed.

use super::{Phases, each_index};
use crate::kernels::gemm::Number;

impl Phases {
    /// The transpose of [`join`](Self::join): lays a plane of windows out as a phase, with zeros between.
    pub fn spread<T: Number>(&self, source: &[T], target: &mut [T]) {
        target.fill(T::default());
        let Some((last, outer)) = self.axes.split_last() else {
            target.copy_from_slice(source);
            return;
        };
        let extents: Vec<usize> = outer.iter().map(|a| a.output).collect();
        let mut lines = source.chunks_exact(last.output);
        each_index(&extents, |index| {
            let row = index.iter().zip(&self.lengths).fold(0, |at, (&i, &length)| at * length + i);
            if let Some(line) = lines.next() {
                target[row * self.lengths[outer.len()]..][..last.output].copy_from_slice(line);
            }
        });
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
        let Some((last, outer)) = self.axes.split_last() else {
            target.copy_from_slice(source);
            return;
        };
        target.fill(T::default());
        let row = self.lengths[outer.len()];
        let mut lines = source.chunks_exact(row);
        let counts: Vec<usize> = self.used.iter().map(Vec::len).collect();
        each_index(&counts, |choice| {
            let phase = |axis: usize| self.used[axis][choice[axis]];
            each_index(&self.lengths[..outer.len()], |index| {
                let Some(line) = lines.next() else { return };
                let position = outer.iter().enumerate().try_fold(0, |at, (i, a)| {
                    let position = (index[i] * a.stride + phase(i)).checked_sub(a.begin)?;
                    (position < a.input).then_some(at * a.input + position)
                });
                let Some(at) = position else { return };
                let target = &mut target[at * last.input..][..last.input];
                for (i, &v) in line.iter().enumerate() {
                    let position = (i * last.stride + phase(outer.len())).checked_sub(last.begin);
                    if let Some(slot) = position.and_then(|p| target.get_mut(p)) {
                        *slot = v;
                    }
                }
            });
        });
    }
}
