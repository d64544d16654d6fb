//! Copies between strided views of flat buffers: what Transpose, Slice, Expand, Tile, Concat, Split and Pad have in
//! common.
//!
//! A [`View`] maps an index `(i₀, i₁, …)` to the position `offset + Σ iₖ·strideₖ`. A copy first fuses axes that lie
//! behind one another in both views, so that most copies become a few long runs.

use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, element_count, with_array};

/// Positions of the elements of an array in a flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    offset: isize,
    shape: Vec<usize>,
    strides: Vec<isize>,
}

impl View {
    /// A whole buffer in row-major order.
    pub fn new(shape: &[usize]) -> Result<Self, Fault> {
        element_count(shape)?;
        let empty = shape.contains(&0);
        let mut strides = vec![isize::from(!empty); shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis] as isize;
        }
        Ok(Self { offset: 0, shape: shape.to_vec(), strides })
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The axes in another order.
    pub fn permuted(&self, order: &[usize]) -> Result<Self, Fault> {
        let rank = self.shape.len();
        if order.len() != rank || (0..rank).any(|axis| !order.contains(&axis)) {
            fail!("{order:?} is not an order of {rank} axes");
        }
        Ok(Self {
            offset: self.offset,
            shape: order.iter().map(|&axis| self.shape[axis]).collect(),
            strides: order.iter().map(|&axis| self.strides[axis]).collect(),
        })
    }

    /// `count` indices of an axis: `start`, `start + step`, and so on, all below its extent.
    pub fn stepped(mut self, axis: usize, start: usize, step: isize, count: usize) -> Result<Self, Fault> {
        let Some(&extent) = self.shape.get(axis) else { fail!("there is no axis {axis}") };
        let step = if count <= 1 { 1 } else { step };
        if count > 0 {
            let last = (count - 1) as i128 * step as i128 + start as i128;
            if start >= extent || !(0..extent as i128).contains(&last) {
                fail!("{count} steps of {step} from {start} leave an axis of {extent}");
            }
            self.offset += self.strides[axis] * start as isize;
            // within the axis: at most its extent times its stride
            self.strides[axis] *= step;
        }
        self.shape[axis] = count;
        Ok(self)
    }

    /// The view stretched to `shape`: axes align at the end, and those of extent 1 repeat.
    pub fn broadcast(&self, shape: &[usize]) -> Result<Self, Fault> {
        element_count(shape)?;
        let Some(lead) = shape.len().checked_sub(self.shape.len()) else {
            fail!("{:?} does not broadcast to {shape:?}", self.shape);
        };
        let mut strides = vec![0; shape.len()];
        for (axis, (&extent, &stride)) in self.shape.iter().zip(&self.strides).enumerate() {
            match shape[lead + axis] {
                to if to == extent => strides[lead + axis] = stride,
                _ if extent == 1 => {}
                to => fail!("an axis of {extent} does not broadcast to {to}"),
            }
        }
        Ok(Self { offset: self.offset, shape: shape.to_vec(), strides })
    }

    /// The position of every index, in row-major order.
    pub fn positions(&self) -> Result<Vec<usize>, Fault> {
        let count = element_count(&self.shape)?;
        if !self.fits(isize::MAX as usize) {
            fail!("a view leaves its buffer");
        }
        let mut positions = Vec::with_capacity(count);
        if count > 0 {
            let axes: Vec<Axis> = (self.shape.iter().zip(&self.strides))
                .map(|(&extent, &from)| Axis { extent, to: 0, from })
                .collect();
            for_each_offset(&axes, 0, self.offset, |_, from| positions.push(from as usize));
        }
        Ok(positions)
    }

    /// Is every position inside a buffer of `len` elements?
    fn fits(&self, len: usize) -> bool {
        let (mut low, mut high) = (self.offset as i128, self.offset as i128);
        for (&extent, &stride) in self.shape.iter().zip(&self.strides) {
            let Some(last) = extent.checked_sub(1) else { return true };
            let span = last as i128 * stride as i128;
            if span < 0 { low += span } else { high += span }
        }
        low >= 0 && high < len as i128
    }
}

/// One axis of a copy: extent, step in the target, step in the source.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    to: isize,
    from: isize,
}

/// The axes of a copy, without those of extent 1 and with neighbours fused.
fn fuse(to: &View, from: &View) -> Vec<Axis> {
    let mut axes: Vec<Axis> = Vec::with_capacity(to.shape.len());
    for ((&extent, &to), &from) in to.shape.iter().zip(&to.strides).zip(&from.strides) {
        let inner = Axis { extent, to, from };
        match axes.last_mut() {
            _ if extent == 1 => {}
            Some(outer) if outer.to == to * extent as isize && outer.from == from * extent as isize => {
                *outer = Axis { extent: outer.extent * extent, ..inner };
            }
            _ => axes.push(inner),
        }
    }
    axes
}

/// Copies the elements that `from` selects in `source` to the positions of `to` in `target`.
///
/// Faults if the shapes differ or a view leaves its buffer.
pub fn copy<T: Clone>(target: &mut [T], to: &View, source: &[T], from: &View) -> Result<(), Fault> {
    if to.shape != from.shape {
        fail!("cannot copy {:?} to {:?}", from.shape, to.shape);
    }
    if !to.fits(target.len()) || !from.fits(source.len()) {
        fail!("a view leaves its buffer");
    }
    if to.shape.contains(&0) {
        return Ok(());
    }
    let mut axes = fuse(to, from);
    let inner = axes.pop().unwrap_or(Axis { extent: 1, to: 1, from: 1 });
    // In a transposition the source runs along another axis: walk both in tiles, so that cache lines are used whole.
    let across = match axes.iter().rposition(|a| a.from.abs() == 1) {
        Some(k) if inner.from.abs() > 1 => axes.remove(k),
        _ => Axis { extent: 1, to: 0, from: 0 },
    };
    for_each_offset(&axes, to.offset, from.offset, |to, from| {
        if across.extent == 1 {
            run(target, to, source, from, inner);
        } else {
            tiles(target, to, source, from, [across, inner]);
        }
    });
    Ok(())
}

/// Calls `body` with the target and source position of every index of `axes`.
fn for_each_offset(axes: &[Axis], mut to: isize, mut from: isize, mut body: impl FnMut(isize, isize)) {
    let mut index = vec![0; axes.len()];
    loop {
        body(to, from);
        let mut axis = axes.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            let a = axes[axis];
            index[axis] += 1;
            if index[axis] < a.extent {
                to += a.to;
                from += a.from;
                break;
            }
            index[axis] = 0;
            to -= a.to * (a.extent as isize - 1);
            from -= a.from * (a.extent as isize - 1);
        }
    }
}

fn run<T: Clone>(target: &mut [T], to: isize, source: &[T], from: isize, axis: Axis) {
    let (t, s, n) = (to as usize, from as usize, axis.extent);
    match (axis.to, axis.from) {
        (1, 1) => target[t..t + n].clone_from_slice(&source[s..s + n]),
        (1, 0) => target[t..t + n].fill(source[s].clone()),
        (1, step) if step > 0 => {
            let picked = source[s..].iter().step_by(step as usize);
            target[t..t + n].iter_mut().zip(picked).for_each(|(x, y)| x.clone_from(y));
        }
        (to_step, from_step) => {
            for i in 0..n as isize {
                target[(to + i * to_step) as usize].clone_from(&source[(from + i * from_step) as usize]);
            }
        }
    }
}

fn tiles<T: Clone>(target: &mut [T], to: isize, source: &[T], from: isize, [across, inner]: [Axis; 2]) {
    const TILE: usize = 16;
    for i0 in (0..across.extent).step_by(TILE) {
        for j0 in (0..inner.extent).step_by(TILE) {
            let extent = TILE.min(inner.extent - j0);
            for i in i0..across.extent.min(i0 + TILE) {
                let (i, j) = (i as isize, j0 as isize);
                let t = to + i * across.to + j * inner.to;
                let s = from + i * across.from + j * inner.from;
                run(target, t, source, s, Axis { extent, ..inner });
            }
        }
    }
}

/// The elements that `view` selects in `source`, in row-major order.
pub fn read<T: Clone + Default>(source: &[T], view: &View) -> Result<Vec<T>, Fault> {
    let to = View::new(&view.shape)?;
    let mut target = vec![T::default(); element_count(&view.shape)?];
    copy(&mut target, &to, source, view)?;
    Ok(target)
}

/// [`read`] for an array of any element type; the result has the view's shape.
pub fn read_array(source: &Array, view: &View) -> Result<Array, Fault> {
    with_array!(source, a => Array::new(view.shape(), read(a.as_slice().unwrap_or_default(), view)?))
}

/// For each of `outer` blocks of `extent` rows of `inner` elements: the rows named by `rows`, which are all below
/// `extent`.
pub fn take<T: Clone>(
    source: &[T],
    [outer, extent, inner]: [usize; 3],
    rows: &[usize],
) -> Result<Vec<T>, Fault> {
    if element_count(&[outer, extent, inner])? != source.len() {
        fail!("{} elements are not {outer} × {extent} × {inner}", source.len());
    }
    if let Some(row) = rows.iter().find(|&&row| row >= extent) {
        fail!("row {row} of {extent}");
    }
    let mut target = Vec::with_capacity(element_count(&[outer, rows.len(), inner])?);
    if extent == 0 || inner == 0 {
        return Ok(target);
    }
    for block in source.chunks_exact(extent * inner) {
        if inner == 1 {
            target.extend(rows.iter().map(|&row| block[row].clone()));
        } else {
            rows.iter().for_each(|&row| target.extend_from_slice(&block[row * inner..][..inner]));
        }
    }
    Ok(target)
}

/// [`take`] along an axis of an array of any element type.
pub fn take_array(source: &Array, axis: usize, rows: &[usize]) -> Result<Array, Fault> {
    let mut shape = source.shape().to_vec();
    let Some(extent) = shape.get_mut(axis) else { fail!("there is no axis {axis}") };
    let extent = std::mem::replace(extent, rows.len());
    let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
    with_array!(source, a => {
        Array::new(&shape, take(a.as_slice().unwrap_or_default(), [outer, extent, inner], rows)?)
    })
}

#[cfg(test)]
mod tests;
