//! Pooling: a window over each plane, folded into one value.

use super::gemm::Number;
use super::window::{Axis, Phases, each_index, fold, volume};
use crate::error::Fault;

/// Folds the taps of every window of every plane with `f`, beginning with `start`; padding reads as `pad`.
///
/// `finish` turns each result into the output, given the index of the window in its plane.
pub fn pool<T: Number>(
    axes: &[Axis],
    x: &[T],
    y: &mut [T],
    (start, pad): (T, T),
    f: impl Fn(T, T) -> T + Copy,
    finish: Option<&dyn Fn(usize, T) -> T>,
) -> Result<(), Fault> {
    let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
    if y.is_empty() {
        return Ok(());
    }
    let phases = Phases::new(axes)?;
    let taps: Vec<(usize, T)> = phases.taps().iter().map(|&offset| (offset, T::default())).collect();
    T::scratch(phases.size() + phases.span(), |buffer| {
        let (split, folded) = buffer.split_at_mut(phases.size());
        for (channel, y) in y.chunks_exact_mut(plane_out).enumerate() {
            phases.split(&x[channel * plane_in..][..plane_in], pad, split);
            folded.fill(start);
            fold(&taps, split, folded, |value, x, _| f(value, x));
            phases.join(folded, y);
            if let Some(finish) = finish {
                y.iter_mut().enumerate().for_each(|(i, v)| *v = finish(i, *v));
            }
        }
    });
    Ok(())
}

/// The way back through a sum: every element gets the sum of what the windows that read it have.
pub fn pool_gradient<T: Number>(axes: &[Axis], dy: &[T], dx: &mut [T]) -> Result<(), Fault> {
    let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
    if dy.is_empty() || dx.is_empty() {
        return Ok(());
    }
    let phases = Phases::new(axes)?;
    let weights = vec![T::ONE; phases.taps().len()];
    T::scratch(phases.size() + phases.span(), |buffer| {
        let (split, spread) = buffer.split_at_mut(phases.size());
        for (dx, dy) in dx.chunks_exact_mut(plane_in).zip(dy.chunks_exact(plane_out)) {
            split.fill(T::default());
            phases.spread(dy, spread);
            phases.scatter(spread, &weights, split);
            phases.merge(split, dx);
        }
    });
    Ok(())
}

/// For each window of a plane, how many of its taps read the input, or with `padding` the input and its padding.
pub fn counts(axes: &[Axis], padding: bool) -> Vec<usize> {
    let along = |a: &Axis| -> Vec<usize> {
        let end = a.begin + a.input + if padding { a.end } else { 0 };
        let begin = if padding { 0 } else { a.begin };
        let within = |o: usize, t: usize| (begin..end).contains(&(o * a.stride + t * a.dilation));
        (0..a.output).map(|o| (0..a.kernel).filter(|&t| within(o, t)).count()).collect()
    };
    axes.iter().map(along).fold(vec![1], |counts, along| {
        counts.iter().flat_map(|count| along.iter().map(move |n| count * n)).collect()
    })
}

/// The greatest element of each window and its index in all of `x`; the first of equals, 0 for a window in padding.
///
/// With `column_major`, the index counts the positions within a plane with the first axis fastest.
pub fn max_with_index<T: Number + PartialOrd>(
    axes: &[Axis],
    x: &[T],
    lowest: T,
    column_major: bool,
) -> (Vec<T>, Vec<i64>) {
    let plane = volume(axes, |a| a.input);
    let outputs: Vec<usize> = axes.iter().map(|a| a.output).collect();
    let kernels: Vec<usize> = axes.iter().map(|a| a.kernel).collect();
    let mut units = vec![1; axes.len()];
    if column_major {
        (1..axes.len()).for_each(|i| units[i] = units[i - 1] * axes[i - 1].input);
    } else {
        (1..axes.len()).rev().for_each(|i| units[i - 1] = units[i] * axes[i].input);
    }
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    for (channel, x) in x.chunks_exact(plane.max(1)).enumerate() {
        each_index(&outputs, |window| {
            let (mut value, mut index) = (lowest, 0);
            let mut found = false;
            each_index(&kernels, |tap| {
                let positions = axes.iter().zip(window.iter().zip(tap)).zip(&units);
                let at = positions.clone().try_fold(0, |at, ((a, (&o, &t)), _)| {
                    a.source(o, t).map(|position| at * a.input + position)
                });
                let Some(at) = at else { return };
                if !found || x[at] > value {
                    let inside: usize =
                        positions.map(|((a, (&o, &t)), unit)| a.source(o, t).map_or(0, |p| p * unit)).sum();
                    (value, index, found) = (x[at], (channel * plane + inside) as i64, true);
                }
            });
            values.push(value);
            indices.push(index);
        });
    }
    (values, indices)
}

#[cfg(test)]
mod tests;
