//! The clipping threshold that loses the least information.
//!
//! For each candidate threshold `T` compare two distributions over the histogram bins within `T`:
//!
//! * `P`, what the quantizer is given: the bins, with all the mass beyond `T` added to the outermost;
//! * `Q`, what it keeps: the bins, without that mass, merged into as many groups as there are levels. A group is then
//!   spread evenly over its bins that were not empty.
//!
//! and take the `T` with the least divergence `Σ P ln(P/Q)`, both normalized. A small `T` misplaces the mass
//! beyond, a large one blurs the bins inside.
//!
//! The sum needs no walk over bins: `Σ P ln P` is a running sum, and `Q` is constant within a group, so that a
//! candidate costs one logarithm a level. Details that matter:
//!
//! * a group may span a fractional number of bins, so none is left over at the end of the window;
//! * the mass beyond goes to the outermost bin *that is not empty*. An empty one would have `Q = 0 < P`, an infinite
//!   divergence that forbids all thresholds in a gap, right where outliers want them;
//! * zeros take no part: they are represented exactly, and their spike would outweigh all else;
//! * nor can bins so wide that a few hold nearly everything: then an outlier stretches them, and the search begins
//!   further in;
//! * a window of less than two bins a level cannot show what blurring costs: if one wins, the search starts again
//!   inside it with finer bins.

use super::Grid;
use super::distortion::Mass;

/// Bins from zero to the largest magnitude.
const BINS: usize = 2048;
/// Distance of candidates, in bins.
const STRIDE: usize = 8;
/// If the first few bins hold this share of the mass, bins are too wide to see anything.
const FEW: usize = BINS / 64;
const SHARE: f64 = 0.999;
/// Slivers of a bin that rounding may make look occupied.
const SLIVER: f64 = 1e-6;
/// How often the search may start again.
const ZOOMS: u32 = 12;

/// `T` such that `[-T, T]` is the window; for mass on one side of zero, the far end.
pub(super) fn threshold(mass: &Mass, grid: Grid) -> f64 {
    let (min, max) = mass.extremes();
    let one_sided = !grid.symmetric && (min >= 0.0 || max <= 0.0);
    // On both sides an odd number, so that one group lies across zero.
    let levels = if one_sided { grid.levels } else { (grid.levels - 1) | 1 } as usize;
    let sides = if one_sided { 1 } else { 2 };
    let least = levels.div_ceil(sides);
    let mut end = max.max(-min);
    if least >= BINS || end <= 0.0 {
        return end;
    }
    for _ in 0..ZOOMS {
        let bins = Bins::new(mass, end, one_sided);
        let zero = if one_sided { 0 } else { BINS };
        if bins.share(zero.saturating_sub(FEW), zero + FEW) > SHARE {
            end /= 8.0;
            continue;
        }
        let mut best = (f64::INFINITY, BINS);
        for half in (least..=BINS).rev().step_by(STRIDE).chain([least]) {
            let divergence = bins.divergence(zero.saturating_sub(half), zero + half, levels);
            if divergence < best.0 {
                best = (divergence, half);
            }
        }
        end *= best.1 as f64 / BINS as f64;
        if best.1 >= 2 * least {
            break;
        }
    }
    end
}

/// Uniform bins over `[0, end]` or `[-end, end]`, as running sums over the bins before each index.
struct Bins {
    mass: Vec<f64>,
    /// Σ p ln p.
    information: Vec<f64>,
    occupied: Vec<u32>,
    /// The mass of each bin itself.
    bins: Vec<f64>,
    /// What lies beyond either end.
    beyond: (f64, f64),
}

impl Bins {
    fn new(mass: &Mass, end: f64, one_sided: bool) -> Self {
        let width = end / BINS as f64;
        let mut bins = vec![0.0; if one_sided { BINS } else { 2 * BINS }];
        let last = bins.len() as f64;
        let mut beyond = (0.0, 0.0);
        for cell in mass.cells.iter().filter(|cell| cell.lo < cell.hi || cell.lo != 0.0) {
            let count = cell.count as f64;
            let (a, b) = match one_sided {
                true => (cell.lo.abs().min(cell.hi.abs()) / width, cell.lo.abs().max(cell.hi.abs()) / width),
                false => (cell.lo / width + BINS as f64, cell.hi / width + BINS as f64),
            };
            if b - a <= SLIVER {
                // A single value.
                let i = ((a + b) / 2.0).clamp(0.0, last - 1.0) as usize;
                match (a < -SLIVER, b > last + SLIVER) {
                    (true, _) => beyond.0 += count,
                    (_, true) => beyond.1 += count,
                    _ => bins[i] += count,
                }
                continue;
            }
            let density = count / (b - a);
            beyond.0 += density * (b.min(0.0) - a).max(0.0);
            beyond.1 += density * (b - a.max(last)).max(0.0);
            let (a, b) = (a.max(0.0), b.min(last));
            let first = a as usize;
            for (bin, i) in bins.iter_mut().skip(first).zip(first..b.max(0.0).ceil() as usize) {
                let part = b.min((i + 1) as f64) - a.max(i as f64);
                *bin += if part > SLIVER { density * part } else { 0.0 };
            }
        }
        let mut sums = Self { mass: vec![0.0], information: vec![0.0], occupied: vec![0], bins, beyond };
        let mut sum = (0.0, 0.0, 0);
        for &p in &sums.bins {
            sum = (sum.0 + p, sum.1 + entropy(p), sum.2 + u32::from(p > 0.0));
            sums.mass.push(sum.0);
            sums.information.push(sum.1);
            sums.occupied.push(sum.2);
        }
        sums
    }

    /// Divergence of the window `from..to` quantized to `levels`; infinite if the window is empty.
    fn divergence(&self, from: usize, to: usize, levels: usize) -> f64 {
        let window = &self.bins[from..to];
        let occupied = |p: &f64| *p > 0.0;
        let (Some(first), Some(last)) = (window.iter().position(occupied), window.iter().rposition(occupied))
        else {
            return f64::INFINITY;
        };
        let (first, last) = (from + first, from + last);
        let below = self.beyond.0 + self.mass[from];
        let above = self.beyond.1 + self.mass[self.bins.len()] - self.mass[to];
        let inside = self.mass[to] - self.mass[from];
        let total = below + inside + above;

        // Σ P ln P: that of the bins, corrected where mass from beyond comes in.
        let mut sum = self.information[to] - self.information[from];
        let ends = if first == last {
            [(first, below + above), (last, 0.0)]
        } else {
            [(first, below), (last, above)]
        };
        for (i, more) in ends {
            sum += entropy(self.bins[i] + more) - entropy(self.bins[i]);
        }
        // Σ P ln Q, group by group.
        let (whole, part) = ((to - from) / levels, (to - from) % levels);
        // How far the last group reaches beyond its share, in parts of a bin of which `levels` are one.
        let mut beyond = 0;
        let (mut a, mut b) = (from, from);
        for _ in 0..levels {
            b += whole;
            if beyond < part {
                (b, beyond) = (b + 1, beyond + levels);
            }
            beyond -= part;
            let kept = self.mass[b] - self.mass[a];
            let bins = self.occupied[b] - self.occupied[a];
            if bins > 0 {
                let more = |(i, more)| if (a..b).contains(&i) { more } else { 0.0 };
                sum -= (kept + more(ends[0]) + more(ends[1])) * libm::log(kept / f64::from(bins));
            }
            a = b;
        }
        sum / total - libm::log(total / inside)
    }

    /// Share of all mass within `from..to`.
    fn share(&self, from: usize, to: usize) -> f64 {
        let total = self.mass[self.bins.len()] + self.beyond.0 + self.beyond.1;
        if total > 0.0 { (self.mass[to] - self.mass[from]) / total } else { 0.0 }
    }
}

/// `p ln p`.
fn entropy(p: f64) -> f64 {
    if p > 0.0 { p * libm::log(p) } else { 0.0 }
}
