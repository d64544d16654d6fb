//! Sliding windows: the one place that knows how convolution and pooling walk over their input.
//!
//! Along one axis, tap `t` of window `o` reads position `o·stride + t·dilation − begin` of the input, and padding
//! where that lies outside. [`Axis`] holds these numbers and derives the number of windows from them.
//!
//! [`Phases`] makes the walk contiguous. Write `t·dilation = shift·stride + phase`; then the tap reads element
//! `o + shift` of the `phase`-th of the `stride` interleaved sequences into which the padded input splits. Once a
//! plane is copied into its phases, every tap of every window is the same plane at another offset, whatever the
//! stride, dilation and number of axes, and one loop over whole planes does the work.

mod adjoint;

use super::simd::{self, Task};
use crate::error::Fault;
use crate::fail;
use crate::ir::element_count;

/// What lies around the input along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// As many positions before and after the input.
    Explicit(usize, usize),
    /// As many windows as `input / stride`, rounded up; an odd position of padding goes after the input.
    SameUpper,
    /// Like `SameUpper`, but an odd position of padding goes before the input.
    SameLower,
}

/// A sliding window along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    /// Extent of the input.
    pub input: usize,
    /// Number of windows.
    pub output: usize,
    /// Taps of a window.
    pub kernel: usize,
    /// Distance between windows.
    pub stride: usize,
    /// Distance between the taps of a window.
    pub dilation: usize,
    /// Padding before the input.
    pub begin: usize,
    /// Padding after the input.
    pub end: usize,
}

/// Numbers beyond this are refused, so that sums and products of two of them cannot overflow.
const LIMIT: usize = 1 << 31;

/// Positions from the first to the last tap of a window, or a fault if the numbers make no window.
pub fn reach(kernel: usize, stride: usize, dilation: usize) -> Result<usize, Fault> {
    if kernel == 0 || stride == 0 || dilation == 0 {
        fail!("a window of {kernel} taps with stride {stride} and dilation {dilation} is empty");
    }
    if kernel > LIMIT || stride > LIMIT || dilation > LIMIT || (kernel - 1) * dilation >= LIMIT {
        fail!("a window of {kernel} taps with stride {stride} and dilation {dilation} is too large");
    }
    Ok((kernel - 1) * dilation + 1)
}

impl Axis {
    /// Places windows over an input. With `ceil`, a last window may reach beyond the padding as long as it starts
    /// inside the input or the padding before it.
    pub fn new(
        input: usize,
        kernel: usize,
        stride: usize,
        dilation: usize,
        padding: Padding,
        ceil: bool,
    ) -> Result<Self, Fault> {
        let reach = reach(kernel, stride, dilation)?;
        if input > LIMIT {
            fail!("an extent of {input} is too large for a window");
        }
        let (begin, end) = match padding {
            Padding::Explicit(begin, end) => (begin, end),
            same => {
                let output = input.div_ceil(stride);
                let total = (output.saturating_sub(1) * stride + reach).saturating_sub(input);
                let half = total / 2;
                let (begin, end) =
                    if same == Padding::SameUpper { (half, total - half) } else { (total - half, half) };
                return Ok(Self { input, output, kernel, stride, dilation, begin, end });
            }
        };
        if begin > LIMIT || end > LIMIT {
            fail!("padding of {begin} and {end} is too large");
        }
        let padded = input + begin + end;
        if padded < reach {
            fail!("a window that spans {reach} does not fit into {padded} positions");
        }
        let mut output = (padded - reach) / stride + 1;
        if ceil {
            output = (padded - reach).div_ceil(stride) + 1;
            output -= usize::from((output - 1) * stride >= input + begin);
        }
        Ok(Self { input, output, kernel, stride, dilation, begin, end })
    }

    /// The input position that a tap of a window reads, or none in the padding.
    pub fn source(&self, window: usize, tap: usize) -> Option<usize> {
        (window * self.stride + tap * self.dilation).checked_sub(self.begin).filter(|&p| p < self.input)
    }

    /// The windows `first..last` for which this tap reads the input and not padding.
    pub fn inside(&self, tap: usize) -> (usize, usize) {
        let offset = tap * self.dilation;
        let last = (self.input + self.begin).saturating_sub(offset).div_ceil(self.stride).min(self.output);
        (self.begin.saturating_sub(offset).div_ceil(self.stride).min(last), last)
    }
}

/// Product of one extent over all axes.
pub fn volume(axes: &[Axis], extent: impl Fn(&Axis) -> usize) -> usize {
    axes.iter().map(extent).product()
}

/// Calls `f` with every index below `extents`, the last axis fastest.
pub fn each_index(extents: &[usize], mut f: impl FnMut(&[usize])) {
    if extents.contains(&0) {
        return;
    }
    let mut index = vec![0; extents.len()];
    loop {
        f(&index);
        let Some(axis) = (0..extents.len()).rev().find(|&a| index[a] + 1 < extents[a]) else { return };
        index[axis] += 1;
        index[axis + 1..].fill(0);
    }
}

/// How a plane is laid out by the phases of a window's stride.
#[derive(Debug)]
pub struct Phases {
    /// What each row of the layout holds.
    rows: Vec<Row>,
    /// Elements of a row of the layout, and the distance between two of them in the source.
    row: (usize, usize),
    /// Where each row of windows starts in the layout of a phase, and the windows of a row.
    windows: (Vec<usize>, usize),
    /// For each tap in row-major order, where its first window reads.
    taps: Vec<usize>,
    size: usize,
    span: usize,
}

/// A row of a phase: padding but for the elements `first..last`, the first of which lies at `source`.
#[derive(Debug, Clone, Copy, Default)]
struct Row {
    source: usize,
    first: usize,
    last: usize,
}

impl Phases {
    /// The layout for windows along these axes, none of which may be without windows.
    pub fn new(axes: &[Axis]) -> Result<Self, Fault> {
        let kernels: Vec<usize> = axes.iter().map(|a| a.kernel).collect();
        element_count(&kernels)?;
        let mut used = Vec::new();
        for a in axes {
            let mut phases: Vec<usize> = (0..a.kernel).map(|t| t * a.dilation % a.stride).collect();
            phases.sort_unstable();
            phases.dedup();
            used.push(phases);
        }
        let shift = |a: &Axis, tap: usize| tap * a.dilation / a.stride;
        let lengths: Vec<usize> = axes.iter().map(|a| a.output + shift(a, a.kernel - 1)).collect();
        let extents: Vec<usize> = used.iter().map(Vec::len).chain(lengths.iter().copied()).collect();
        let size = element_count(&extents)?;
        let plane: usize = lengths.iter().product();
        let mut taps = Vec::new();
        each_index(&kernels, |tap| {
            let (mut phase, mut offset) = (0, 0);
            for (i, a) in axes.iter().enumerate() {
                let own = used[i].partition_point(|&p| p < tap[i] * a.dilation % a.stride);
                phase = phase * used[i].len() + own;
                offset = offset * lengths[i] + shift(a, tap[i]);
            }
            taps.push(phase * plane + offset);
        });
        let last = axes.iter().zip(&lengths).fold(0, |at, (a, &length)| at * length + a.output - 1);
        Ok(Self {
            rows: rows(axes, &used, &lengths),
            row: (lengths.last().copied().unwrap_or(1), axes.last().map_or(1, |a| a.stride)),
            windows: windows(axes, &lengths),
            taps,
            size,
            span: last + 1,
        })
    }

    /// Elements of a plane split into its phases.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Elements from the first to the last window in the layout of a phase; some between them belong to no window.
    pub fn span(&self) -> usize {
        self.span
    }

    /// For each tap in row-major order, the offset at which its first window reads.
    pub fn taps(&self) -> &[usize] {
        &self.taps
    }

    /// Where each row of windows starts in the layout of a phase, and the windows of a row, which follow one another.
    pub fn starts(&self) -> (&[usize], usize) {
        (&self.windows.0, self.windows.1)
    }

    /// Splits a plane: `target`, of [`size`](Self::size) elements, receives `source`, and `pad` outside of it.
    pub fn split<T: Copy>(&self, source: &[T], pad: T, target: &mut [T]) {
        let (length, stride) = self.row;
        for (line, row) in target.chunks_exact_mut(length).zip(&self.rows) {
            copy_padded(
                source.get(row.source..).unwrap_or_default(),
                stride,
                (row.first, row.last),
                pad,
                line,
            );
        }
    }

    /// Copies the windows' values out of the layout of a phase into a dense plane.
    pub fn join<T: Copy>(&self, source: &[T], target: &mut [T]) {
        let (starts, length) = &self.windows;
        for (line, &start) in target.chunks_exact_mut(*length).zip(starts) {
            line.copy_from_slice(&source[start..][..*length]);
        }
    }
}

/// The rows of all phases: those of one phase together, the phases in the order of [`Phases::taps`].
fn rows(axes: &[Axis], used: &[Vec<usize>], lengths: &[usize]) -> Vec<Row> {
    let Some((last, outer)) = axes.split_last() else { return vec![Row { source: 0, first: 0, last: 1 }] };
    let mut rows = Vec::new();
    let counts: Vec<usize> = used.iter().map(Vec::len).collect();
    each_index(&counts, |choice| {
        let phase = used[outer.len()][choice[outer.len()]];
        let end = (last.input + last.begin).saturating_sub(phase).div_ceil(last.stride);
        let end = end.min(lengths[outer.len()]);
        let first = last.begin.saturating_sub(phase).div_ceil(last.stride).min(end);
        each_index(&lengths[..outer.len()], |index| {
            let line = outer.iter().enumerate().try_fold(0, |at, (i, a)| {
                let position = (index[i] * a.stride + used[i][choice[i]]).checked_sub(a.begin)?;
                (position < a.input).then_some(at * a.input + position)
            });
            rows.push(match line {
                Some(line) if first < end => Row {
                    source: line * last.input + first * last.stride + phase - last.begin,
                    first,
                    last: end,
                },
                _ => Row::default(),
            });
        });
    });
    rows
}

/// Where each row of windows starts in the layout of a phase, and the windows of a row.
fn windows(axes: &[Axis], lengths: &[usize]) -> (Vec<usize>, usize) {
    let Some((last, outer)) = axes.split_last() else { return (vec![0], 1) };
    let mut starts = Vec::new();
    let extents: Vec<usize> = outer.iter().map(|a| a.output).collect();
    each_index(&extents, |index| {
        let row = index.iter().zip(lengths).fold(0, |at, (&i, &length)| at * length + i);
        starts.push(row * lengths[outer.len()]);
    });
    (starts, last.output)
}

/// Copies every `stride`-th element of the source until the target is full.
#[inline(always)]
pub fn copy_strided<T: Copy>(source: &[T], stride: usize, target: &mut [T]) {
    match stride {
        1 => copy_run(&source[..target.len()], target),
        2 => {
            let (pairs, single) = source.as_chunks::<2>();
            let count = pairs.len().min(target.len());
            let (paired, rest) = target.split_at_mut(count);
            paired.iter_mut().zip(pairs).for_each(|(t, s)| *t = s[0]);
            rest.iter_mut().zip(single).for_each(|(t, s)| *t = *s);
        }
        _ => target.iter_mut().zip(source.iter().step_by(stride)).for_each(|(t, &s)| *t = s),
    }
}

/// Copies as many elements as there are: a few at either end, which may overlap, if a call would take longer.
#[inline(always)]
fn copy_run<T: Copy>(source: &[T], target: &mut [T]) {
    match target.len() {
        0 => {}
        1 => target[0] = source[0],
        2..4 => copy_ends::<T, 2>(source, target),
        4..8 => copy_ends::<T, 4>(source, target),
        8..16 => copy_ends::<T, 8>(source, target),
        16..=32 => copy_ends::<T, 16>(source, target),
        33..=64 => copy_ends::<T, 32>(source, target),
        _ => target.copy_from_slice(source),
    }
}

/// Copies the first and the last `N` elements.
#[inline(always)]
fn copy_ends<T: Copy, const N: usize>(source: &[T], target: &mut [T]) {
    if let (Some(from), Some(to)) = (source.first_chunk::<N>(), target.first_chunk_mut::<N>()) {
        *to = *from;
    }
    if let (Some(from), Some(to)) = (source.last_chunk::<N>(), target.last_chunk_mut::<N>()) {
        *to = *from;
    }
}

/// Sets all elements, of which there are often none or one.
#[inline(always)]
fn set<T: Copy>(target: &mut [T], value: T) {
    match target {
        [] => {}
        [one] => *one = value,
        more => more.fill(value),
    }
}

/// `target` is a run of windows that one tap reads: the elements `first..last` come from the source, others are padding.
#[inline(always)]
pub fn copy_padded<T: Copy>(
    source: &[T],
    stride: usize,
    (first, last): (usize, usize),
    pad: T,
    target: &mut [T],
) {
    set(&mut target[..first], pad);
    set(&mut target[last..], pad);
    copy_strided(source, stride, &mut target[first..last]);
}

/// `out[i] ← f(out[i], plane[offset + i], weight)` for each tap `(offset, weight)` in turn.
///
/// Several taps are taken at once, in order, while a block of `out` stays in the nearest cache.
pub fn fold<T: Copy>(taps: &[(usize, T)], plane: &[T], out: &mut [T], f: impl Fn(T, T, T) -> T + Copy) {
    simd::run(Fold { taps, plane, out, f });
}

struct Fold<'a, T, F> {
    taps: &'a [(usize, T)],
    plane: &'a [T],
    out: &'a mut [T],
    f: F,
}

impl<T: Copy, F: Fn(T, T, T) -> T + Copy> Task for Fold<'_, T, F> {
    #[inline(always)]
    fn run(self) {
        const BLOCK: usize = 1024;
        for (number, block) in self.out.chunks_mut(BLOCK).enumerate() {
            let plane = &self.plane[number * BLOCK..];
            let mut taps = self.taps;
            while let Some((some, rest)) = taps.split_first_chunk::<9>() {
                fold_some(some, plane, block, self.f);
                taps = rest;
            }
            while let Some((some, rest)) = taps.split_first_chunk::<3>() {
                fold_some(some, plane, block, self.f);
                taps = rest;
            }
            while let Some((some, rest)) = taps.split_first_chunk::<1>() {
                fold_some(some, plane, block, self.f);
                taps = rest;
            }
        }
    }
}

#[inline(always)]
fn fold_some<const N: usize, T: Copy>(
    taps: &[(usize, T); N],
    plane: &[T],
    block: &mut [T],
    f: impl Fn(T, T, T) -> T,
) {
    let rows = taps.map(|(offset, _)| &plane[offset..][..block.len()]);
    for (i, out) in block.iter_mut().enumerate() {
        let mut value = *out;
        for (row, &(_, weight)) in rows.iter().zip(taps) {
            value = f(value, row[i], weight);
        }
        *out = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_any_length_are_copied_and_padded() {
        let source: Vec<u32> = (1..400).collect();
        for (stride, length, begin, end) in
            (1..4).flat_map(|s| (0..100).flat_map(move |n| [(s, n, 0, 0), (s, n, 1, 0), (s, n, 2, 3)]))
        {
            let mut target = vec![7; begin + length + end];
            copy_padded(&source, stride, (begin, begin + length), 0, &mut target);
            let run = source.iter().step_by(stride).take(length).copied();
            let wanted: Vec<u32> =
                std::iter::repeat_n(0, begin).chain(run).chain(std::iter::repeat_n(0, end)).collect();
            assert_eq!(target, wanted, "{length} with stride {stride}");
        }
    }
}
