//! The way back through a convolution: what its weight and its input contribute.
//!
//! `∂w[m, c, t] = Σ_{n,o} ∂y[n, m, o] · x[n, c, position(o, t)]` is the product of the output's gradient with the
//! gathered taps, and `∂x` is the transposed convolution of it. Groups of one input channel go through [`Phases`] as on
//! the way there.

use super::{Channels, Order, gather, tile_width};
use crate::error::Fault;
use crate::kernels::gemm::{Mat, MatMut, Number, Size, gemm};
use crate::kernels::window::{Axis, Phases, volume};

/// `∂w` of [`conv`](super::conv), from its input and the gradient by its output.
///
/// # Panics
/// If a slice does not have the length that the extents say.
pub fn weight<T: Number>(
    channels: Channels,
    axes: &[Axis],
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) -> Result<(), Fault> {
    let Channels { batch, groups, input, output } = channels;
    let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
    let depth = input * volume(axes, |a| a.kernel);
    assert_eq!(x.len(), batch * groups * input * plane_in, "x");
    assert_eq!(dw.len(), groups * output * depth, "w");
    assert_eq!(dy.len(), batch * groups * output * plane_out, "y");
    dw.fill(T::default());
    if x.is_empty() || dy.is_empty() {
        return Ok(());
    }
    let direct = is_direct(axes);
    let phases = if input == 1 && !direct { Some(Phases::new(axes)?) } else { None };
    for (index, dy) in dy.chunks_exact(output * plane_out).enumerate() {
        let x = &x[index * input * plane_in..][..input * plane_in];
        let dw = &mut dw[index % groups * output * depth..][..output * depth];
        match &phases {
            Some(phases) => depthwise_weight(phases, x, dy, plane_out, dw),
            None if direct => {
                let size = Size { m: output, n: input, k: plane_out };
                let (dy, x) = (Mat::rows(dy, plane_out), Mat::transposed(x, plane_in));
                gemm(size, T::ONE, dy, x, T::ONE, MatMut::rows(dw, depth));
            }
            None => gathered_weight(axes, (input, output), x, dy, dw),
        }
    }
    Ok(())
}

fn is_direct(axes: &[Axis]) -> bool {
    axes.iter().all(|a| a.kernel == 1 && a.stride == 1 && a.begin == 0 && a.output == a.input)
}

fn gathered_weight<T: Number>(
    axes: &[Axis],
    (input, output): (usize, usize),
    x: &[T],
    dy: &[T],
    dw: &mut [T],
) {
    let plane_out = volume(axes, |a| a.output);
    let depth = input * volume(axes, |a| a.kernel);
    let width = tile_width(depth, plane_out);
    T::scratch(depth * width, |columns| {
        for first in (0..plane_out).step_by(width) {
            let width = width.min(plane_out - first);
            let columns = &mut columns[..depth * width];
            gather(axes, (input, Order::Channels), x, first, width, columns);
            let size = Size { m: output, n: depth, k: width };
            let dy = Mat { data: &dy[first..], row: plane_out, col: 1 };
            gemm(size, T::ONE, dy, Mat::transposed(columns, width), T::ONE, MatMut::rows(dw, depth));
        }
    });
}

fn depthwise_weight<T: Number>(phases: &Phases, x: &[T], dy: &[T], plane_out: usize, dw: &mut [T]) {
    T::scratch(phases.size() + phases.span(), |buffer| {
        let (split, spread) = buffer.split_at_mut(phases.size());
        phases.split(x, T::default(), split);
        for (dw, dy) in dw.chunks_exact_mut(phases.taps().len()).zip(dy.chunks_exact(plane_out)) {
            phases.spread(dy, spread);
            for (dw, &offset) in dw.iter_mut().zip(phases.taps()) {
                *dw = dw.plus(dot(spread, &split[offset..][..spread.len()]));
            }
        }
    });
}

/// `Σ a·b`, in sixteen lanes.
fn dot<T: Number>(a: &[T], b: &[T]) -> T {
    let mut lanes = [T::default(); 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = lane.plus(a.times(b));
        }
    }
    let rest = a_rest.iter().zip(b_rest).fold(T::default(), |sum, (&a, &b)| sum.plus(a.times(b)));
    lanes.iter().fold(rest, |sum, &lane| sum.plus(lane))
}

/// `∂x` of [`conv`](super::conv), from its weight and the gradient by its output.
///
/// # Panics
/// If a slice does not have the length that the extents say.
pub fn input<T: Number>(
    channels: Channels,
    axes: &[Axis],
    w: &[T],
    dy: &[T],
    dx: &mut [T],
) -> Result<(), Fault> {
    let Channels { batch, groups, input, output } = channels;
    let (plane_in, plane_out) = (volume(axes, |a| a.input), volume(axes, |a| a.output));
    if is_direct(axes) && !dx.is_empty() {
        for (index, dx) in dx.chunks_exact_mut(input * plane_in).enumerate() {
            let w = &w[index % groups * output * input..][..output * input];
            let dy = &dy[index * output * plane_out..][..output * plane_out];
            let size = Size { m: input, n: plane_in, k: output };
            let (w, dy) = (Mat::transposed(w, input), Mat::rows(dy, plane_out));
            gemm(size, T::ONE, w, dy, T::default(), MatMut::rows(dx, plane_in));
        }
        return Ok(());
    }
    if input != 1 || dx.is_empty() || dy.is_empty() {
        super::conv_transpose(channels.turned(), axes, dy, w, None, dx);
        return Ok(());
    }
    let phases = Phases::new(axes)?;
    let kernel = phases.taps().len();
    assert_eq!(w.len(), groups * output * kernel, "w");
    assert_eq!(dy.len(), batch * groups * output * plane_out, "y");
    T::scratch(phases.size() + phases.span(), |buffer| {
        let (split, spread) = buffer.split_at_mut(phases.size());
        for (index, dx) in dx.chunks_exact_mut(plane_in).enumerate() {
            split.fill(T::default());
            let w = &w[index % groups * output * kernel..][..output * kernel];
            let dy = &dy[index * output * plane_out..][..output * plane_out];
            for (w, dy) in w.chunks_exact(kernel).zip(dy.chunks_exact(plane_out)) {
                phases.spread(dy, spread);
                phases.scatter(spread, w, split);
            }
            phases.merge(split, dx);
        }
    });
    Ok(())
}

/// The sum of each channel's planes: the gradient by a bias.
pub fn bias<T: crate::kernels::real::Real>(channels: usize, plane: usize, dy: &[T]) -> Vec<T> {
    let mut sums = vec![T::ZERO; channels];
    if channels > 0 && plane > 0 {
        for (index, plane) in dy.chunks_exact(plane).enumerate() {
            sums[index % channels] += crate::kernels::reduce::sum(plane);
        }
    }
    sums
}
