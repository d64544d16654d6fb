//! Columns of a right matrix, copied panel by panel: what a tile reads lies together.

use super::super::gemm::{Mat, Size};
use super::super::simd::Isa;
use super::super::tile::{LINE, Tiles, VECTORS};
use super::{Parts, SHALLOW};

/// From so many rows of `A` on, a copy of `B` pays that need not be made.
const SOME_ROWS: usize = 8;

/// A right matrix whose columns were copied panel by panel, for products of many rows.
#[derive(Debug)]
pub struct Panels {
    copy: Vec<f32>,
    /// Where the first panel begins: at a line of the cache, so that no vector lies in two.
    begin: usize,
    /// Rows and columns of the matrix.
    size: (usize, usize),
    /// Columns of a panel.
    panel: usize,
    /// Products of a part of a sum.
    part: usize,
}

impl Panels {
    /// Do panels that are there already save time in a product of this size?
    pub fn pay(b: &Mat<f32>, Size { m, n, k }: Size) -> bool {
        n > 0 && k > SHALLOW && m >= SOME_ROWS || m > 1 && b.col != 1
    }

    /// Copies a matrix of so many rows and columns, whose products have sums in these parts.
    ///
    /// # Panics
    /// If it does not fit its slice.
    pub fn of(b: Mat<f32>, (k, n): (usize, usize), parts: Parts) -> Self {
        assert!(b.fits(k, n), "B does not fit its slice");
        let (panel, part) = (VECTORS * Tiles::of(Isa::detect()).lanes, parts.products);
        let padded = n.next_multiple_of(panel);
        let mut copied = vec![0.0; k * padded + LINE];
        let begin = copied.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        for first in (0..k).step_by(part) {
            let depth = part.min(k - first);
            copy(
                b,
                panel,
                Place { part: first, depth, first: 0, width: n },
                &mut copied[begin + first * padded..][..depth * padded],
            );
        }
        Self { copy: copied, begin, size: (k, n), panel, part }
    }

    /// Are they those of a matrix of so many rows and columns, for sums in these parts and this processor?
    pub fn fit(&self, size: (usize, usize), parts: Parts) -> bool {
        let panel = VECTORS * Tiles::of(Isa::detect()).lanes;
        (self.size, self.panel, self.part) == (size, panel, parts.products)
    }

    /// The columns of a part from the first one of a panel on.
    pub(super) fn right(&self, place: Place) -> Right<'_> {
        let padded = self.size.1.next_multiple_of(self.panel);
        let panel = place.depth * self.panel;
        let data = &self.copy[self.begin + place.part * padded + place.first / self.panel * panel..];
        Right { data, row: self.panel, panel: Some(panel) }
    }
}

/// Copies columns of a part of `B` panel by panel.
pub(super) fn copy(
    Mat { data, row, col }: Mat<f32>,
    panel: usize,
    Place { part, depth, first, width }: Place,
    copy: &mut [f32],
) {
    let panels = copy.chunks_exact_mut(depth * panel).enumerate();
    let panels = panels.map(|(i, copy)| (first + i * panel, panel.min(width - i * panel), copy));
    if col == 1 {
        let mut panels: Vec<_> = panels.collect();
        for k in 0..depth {
            let line = &data[(part + k) * row..];
            for (j, columns, copy) in &mut panels {
                copy[k * panel..][..*columns].copy_from_slice(&line[*j..][..*columns]);
            }
        }
        return;
    }
    for (j, columns, copy) in panels {
        if row == 1 {
            for c in 0..columns {
                let column = &data[(j + c) * col + part..][..depth];
                copy[c..].iter_mut().step_by(panel).zip(column).for_each(|(to, from)| *to = *from);
            }
            continue;
        }
        for (k, line) in copy.chunks_exact_mut(panel).enumerate() {
            let source = data[(part + k) * row + j * col..].iter().step_by(col.max(1));
            line[..columns].iter_mut().zip(source).for_each(|(to, from)| *to = *from);
        }
    }
}

/// Some columns and a part of their sums.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub part: usize,
    pub depth: usize,
    pub first: usize,
    pub width: usize,
}

/// These columns of `B`: their first element, and the distances between rows and, where they were copied, panels.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub panel: Option<usize>,
}
