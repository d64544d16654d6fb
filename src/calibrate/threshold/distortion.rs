//! Expected squared error of a uniform quantizer, in closed form.
//!
//! Samples count as spread evenly over their histogram cell. Let the quantizer represent the multiples of `s` from
//! `lo` to `hi`. Then a cell adds to the error
//!
//! ```text
//! beyond hi     ∫ (x - hi)² dx            = M₂ - 2 hi M₁ + hi² M₀     (Mₙ: n-th moment of the mass beyond)
//! inside        ∫ (x - s·round(x/s))² dx  = s³ (n/12 + r³/3)          (from 0 to x; n = round(x/s), r = x/s - n)
//! ```
//!
//! The moments of a tail come from running sums, so clipping costs one look-up whatever the number of cells. Zeros
//! are a cell of no width that rounds to itself: they cost nothing and only dilute the mean.

use super::super::histogram::{Cell, Histogram};

/// Mass, first and second moment of a part of the distribution.
type Moments = [f64; 3];

/// A histogram, prepared for questions about parts of it.
pub(super) struct Mass {
    /// Ascending and disjoint.
    pub(super) cells: Vec<Cell>,
    /// Moments of what lies before each cell, and of all at the end.
    before: Vec<Moments>,
}

impl Mass {
    pub(super) fn of(histogram: &Histogram) -> Self {
        let cells: Vec<Cell> = histogram.cells().collect();
        let mut sum = [0.0; 3];
        let mut before = vec![sum];
        for cell in &cells {
            sum = plus(sum, 1.0, moments(cell.lo, cell.hi, cell.count as f64));
            before.push(sum);
        }
        Self { cells, before }
    }

    /// Least and greatest value; zero if there is none.
    pub(super) fn extremes(&self) -> (f64, f64) {
        let lo = self.cells.first().map_or(0.0, |cell| cell.lo);
        (lo, self.cells.last().map_or(0.0, |cell| cell.hi))
    }

    /// E x².
    pub(super) fn mean_square(&self) -> f64 {
        let [mass, _, square] = self.total();
        if mass > 0.0 { square / mass } else { 0.0 }
    }

    /// The value below which a share `p` of the samples lies, linear inside a cell.
    pub(super) fn quantile(&self, p: f64) -> f64 {
        let target = p.clamp(0.0, 1.0) * self.total()[0];
        let i = self.before.partition_point(|sum| sum[0] <= target).saturating_sub(1);
        match (self.cells.get(i), self.before.get(i)) {
            (Some(cell), Some(sum)) => cell.lo + (cell.hi - cell.lo) * (target - sum[0]) / cell.count as f64,
            _ => self.extremes().1,
        }
    }

    /// Mean squared error of `levels` values over `[lo, hi]`, moved by less than a step so that zero is one of them.
    pub(super) fn error(&self, lo: f64, hi: f64, levels: u32) -> f64 {
        let steps = f64::from(levels - 1);
        let step = (hi - lo) / steps;
        let zero = if step > 0.0 { round(-lo / step).clamp(0.0, steps) } else { 0.0 };
        let (lo, hi) = (-zero * step, (steps - zero) * step);
        let clipped = self.clipped(lo, hi);
        let inside = if step > 0.0 { self.rounded(lo, hi, step) } else { 0.0 };
        self.mean(clipped + inside)
    }

    /// About [`Mass::error`], without a walk over the cells: beyond the level at zero, errors are taken to be uniform.
    pub(super) fn estimate(&self, lo: f64, hi: f64, levels: u32) -> f64 {
        let step = (hi - lo) / f64::from(levels - 1);
        let near = self.between(lo.max(-step / 2.0), hi.min(step / 2.0));
        let inside = self.between(lo, hi);
        let far = (inside[0] - near[0]).max(0.0);
        self.mean(self.clipped(lo, hi) + near[2] + far * step * step / 12.0)
    }

    /// Squared error of all beyond `[lo, hi]`, set to its ends.
    fn clipped(&self, lo: f64, hi: f64) -> f64 {
        let apart = |[mass, first, second]: Moments, end: f64| {
            (second - 2.0 * end * first + end * end * mass).max(0.0)
        };
        apart(self.below(lo), lo) + apart(plus(self.total(), -1.0, self.below(hi)), hi)
    }

    /// Squared error of all inside `[lo, hi]`, rounded to multiples of `step`.
    fn rounded(&self, lo: f64, hi: f64, step: f64) -> f64 {
        let first = self.cells.partition_point(|cell| cell.hi < lo);
        let inside = self.cells.iter().skip(first).take_while(|cell| cell.lo <= hi);
        let scale = step.recip();
        let error = inside.map(|cell| {
            if lo <= cell.lo && cell.hi <= hi {
                return cell.count as f64 * mean_rounding(cell.lo * scale, cell.hi * scale);
            }
            let (a, b) = (cell.lo.max(lo), cell.hi.min(hi));
            cell.count as f64 * (b - a) / (cell.hi - cell.lo) * mean_rounding(a * scale, b * scale)
        });
        error.sum::<f64>() * step * step
    }

    fn total(&self) -> Moments {
        self.before.last().copied().unwrap_or_default()
    }

    pub(super) fn between(&self, lo: f64, hi: f64) -> Moments {
        plus(self.below(hi), -1.0, self.below(lo))
    }

    /// Moments of the mass below `x`.
    pub(super) fn below(&self, x: f64) -> Moments {
        let i = self.cells.partition_point(|cell| cell.hi <= x);
        let whole = self.before.get(i).copied().unwrap_or_default();
        match self.cells.get(i) {
            Some(cell) if cell.lo < x => {
                let count = cell.count as f64 * (x - cell.lo) / (cell.hi - cell.lo);
                plus(whole, 1.0, moments(cell.lo, x, count))
            }
            _ => whole,
        }
    }

    fn mean(&self, sum: f64) -> f64 {
        let count = self.total()[0];
        if count > 0.0 { sum / count } else { 0.0 }
    }
}

/// Moments of `count` samples spread evenly over `[a, b]`.
fn moments(a: f64, b: f64, count: f64) -> Moments {
    [count, count * (a + b) / 2.0, count * (a * a + a * b + b * b) / 3.0]
}

fn plus(a: Moments, sign: f64, b: Moments) -> Moments {
    [a[0] + sign * b[0], a[1] + sign * b[1], a[2] + sign * b[2]]
}

/// Mean of `(x - round(x))²` over `[a, b]`, in a form that holds as the two meet.
fn mean_rounding(a: f64, b: f64) -> f64 {
    let (n, m) = (round(a), round(b));
    let (r, t) = (a - n, b - m);
    if n == m {
        (r * r + r * t + t * t) / 3.0
    } else {
        ((m - n) / 12.0 + (t * t * t - r * r * r) / 3.0) / (b - a)
    }
}

/// Nearest integer, for magnitudes below 2⁵¹: adding 1.5 · 2⁵² leaves no bits for a fraction.
fn round(x: f64) -> f64 {
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    (x + SHIFT) - SHIFT
}
