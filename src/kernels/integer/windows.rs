//! How windows of more than one tap become columns.
//!
//! First every plane is split into the [`Phases`] of the strides, and four lines of that at a time become one plane of
//! quads, so that a quad of a column is four neighbouring bytes. Lines are the channels; or, where their number is not
//! divisible by four, the channels at each tap of the last axis, so that few channels still fill quads. Every other tap
//! finds its quads in the same planes, at another place, and columns are copied from there.

use super::conv::Input;
use super::pack::{CELL, Cell, LANES, Rows, block_len, interleaved, piece};
use crate::budget;
use crate::error::Fault;
use crate::ir::element_count;
use crate::kernels::simd::{self, Task};
use crate::kernels::window::{Axis, Phases, volume};

/// Lines that become a plane of quads together.
const QUAD: usize = 4;

/// Are the taps of the last axis lines of their own?
fn split(input: usize, row: usize) -> bool {
    !input.is_multiple_of(4) && row > 1
}

/// Packs the kernels of `groups` groups, shaped `[groups·output, input, taps…]`, in the order of the columns.
pub fn kernels(data: &[u8], groups: usize, input: usize, taps: &[usize], flip: u8) -> Rows {
    let (row, taps) = (taps.last().copied().unwrap_or(1), taps.iter().product::<usize>().max(1));
    let steps = if split(input, row) { row } else { 1 };
    let depth = (input * taps).max(1);
    let padded = (input * steps).next_multiple_of(QUAD);
    let mut ordered = vec![flip; data.len() / depth * (taps / steps) * padded]; // packed as 0
    for (kernel, out) in data.chunks_exact(depth).zip(ordered.chunks_exact_mut(taps / steps * padded)) {
        for (channel, kernel) in kernel.chunks_exact(taps).enumerate() {
            for (taps, out) in kernel.chunks_exact(steps).zip(out.chunks_exact_mut(padded)) {
                out[channel * steps..][..steps].copy_from_slice(taps);
            }
        }
    }
    Rows::signed(&ordered, taps / steps * padded, data.len() / depth / groups.max(1), flip)
}

/// The windows of one group of channels.
pub struct Windows {
    phases: Phases,
    /// For each line, its channel and where it starts in the plane.
    lines: Vec<(usize, usize)>,
    /// Where the first window finds the other taps.
    taps: Vec<usize>,
    /// Bytes of a plane of the input.
    source: usize,
}

impl Windows {
    /// Windows over so many channels along these axes, of which each has some; a fault if they are too large for memory.
    pub fn new(input: usize, axes: &[Axis]) -> Result<Self, Fault> {
        let phases = Phases::new(axes)?;
        let row = axes.last().map_or(1, |a| a.kernel);
        let steps = if split(input, row) { row } else { 1 };
        let line = |channel| phases.taps()[..steps].iter().map(move |&start| (channel, start));
        let lines = (0..input).flat_map(line).collect();
        let taps = phases.taps().iter().copied().step_by(steps).collect();
        let own = Self { lines, taps, source: volume(axes, |a| a.input), phases };
        let room = [own.lines.len().saturating_add(QUAD), own.plane(), CELL];
        budget::fits(element_count(&room)? as u64, budget::room())?;
        Ok(own)
    }

    /// Cells of a plane that is split into its phases.
    fn slot(&self) -> usize {
        self.phases.size().div_ceil(CELL)
    }

    /// Cells of a plane of quads, of which the last may be read but means nothing.
    fn plane(&self) -> usize {
        self.phases.size().div_ceil(LANES) + 1
    }

    /// Cells that [`spread`](Self::spread) fills.
    pub fn room(&self) -> usize {
        QUAD * self.slot() + self.lines.len().div_ceil(QUAD) * self.plane()
    }

    /// Makes planes of quads of the group's planes.
    pub fn spread(&self, x: Input, room: &mut [Cell]) {
        let (slots, planes) = room.split_at_mut(QUAD * self.slot());
        let (slot, size) = (self.slot() * CELL, self.phases.size());
        let slots = Cell::bytes_mut(slots);
        // Lines are ordered by channel, so the channels of a quad have a slot each.
        let mut held = [usize::MAX; QUAD];
        for (lines, cells) in self.lines.chunks(QUAD).zip(planes.chunks_exact_mut(self.plane())) {
            for &(channel, _) in lines {
                if held[channel % QUAD] != channel {
                    held[channel % QUAD] = channel;
                    let source = &x.planes[channel * self.source..][..self.source];
                    self.phases.split(source, x.pad, &mut slots[channel % QUAD * slot..][..size]);
                }
            }
            let own: [&[u8]; QUAD] = std::array::from_fn(|line| match lines.get(line) {
                Some(&(channel, start)) => &slots[channel % QUAD * slot + start..][..size - start],
                None => &[],
            });
            for (block, cell) in cells.iter_mut().enumerate() {
                let line = |line: usize| piece(own[line], block * LANES, x.flip);
                *cell = interleaved([line(0), line(1), line(2), line(3)], x.flip);
            }
        }
    }

    /// Packs `width` windows from `first` on; what they are of lies in `room`. The last cell of `out` is room only.
    ///
    /// # Panics
    /// If `out` is too small for the blocks and one more cell.
    pub fn pack(&self, room: &[Cell], (first, width): (usize, usize), out: &mut [Cell]) {
        let planes = Cell::bytes(&room[QUAD * self.slot()..]);
        simd::run(Pack { windows: self, planes, first, width, out: Cell::bytes_mut(out) });
    }
}

struct Pack<'a> {
    windows: &'a Windows,
    planes: &'a [u8],
    first: usize,
    width: usize,
    out: &'a mut [u8],
}

impl Task for Pack<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { windows, planes, first, width, out } = self;
        let (plane, quads) = (windows.plane() * CELL, windows.lines.len().div_ceil(QUAD));
        let len = block_len(windows.taps.len() * quads) * CELL;
        let (rows, row) = windows.phases.starts();
        for block in 0..width.div_ceil(LANES) {
            let first = first + block * LANES;
            let last = first + LANES.min(width - block * LANES);
            // Each row of windows that has some in the block: at which byte of a cell, and where it is copied from.
            let mut runs = [(0, 0); LANES];
            let (mut count, mut window) = (0, first);
            while window < last {
                runs[count] = (QUAD * (window - first), QUAD * (rows[window / row] + window % row));
                window += row - window % row;
                count += 1;
            }
            let mut at = block * len;
            for &tap in &windows.taps {
                for quad in 0..quads {
                    let from = &planes[quad * plane + QUAD * tap..];
                    // Always a whole cell: what is too much is overwritten by the next run, or in the next cell.
                    for &(lane, start) in &runs[..count] {
                        out[at + lane..][..CELL].copy_from_slice(&from[start..][..CELL]);
                    }
                    at += CELL;
                }
            }
        }
    }
}
