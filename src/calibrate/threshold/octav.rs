//! The clipping range of least squared error as the solution of an equation (Sakr et al. 2022, "Optimal Clipping and
//! Magnitude-aware Differentiation for Improved Quantization-aware Training", <https://arxiv.org/abs/2206.06501>).
//!
//! With `n` steps over `[-a, b]`, what is inside costs `(a + b)²/12n²` an element and what is beyond the square of how far.
//! That is least, as long as the share inside is taken to stay what it is, where
//!
//! ```text
//! b = (Σ x over x > b  -  κ a) / (κ + count of x > b)        κ = count inside / 12 n²
//! ```
//!
//! and likewise for `a`; zeros, which cost nothing, are not counted. For `a = b` that is the equation of the paper.

use super::Grid;
use super::distortion::Mass;

/// At most so often the equation is applied, and less change than this share is none.
const ROUNDS: usize = 64;
const STILL: f64 = 1e-6;

/// Ends of the range.
pub(super) fn range(mass: &Mass, grid: Grid) -> (f64, f64) {
    let (min, max) = mass.extremes();
    let (most_below, most_above) = ((-min).max(0.0), max.max(0.0));
    let steps = f64::from(grid.levels - 1);
    let zeros: f64 = mass.cells.iter().filter(|c| c.lo == 0.0 && c.hi == 0.0).map(|c| c.count as f64).sum();
    let mean = |[count, sum, _]: [f64; 3]| if count > 0.0 { sum.abs() / count } else { 0.0 };
    let (mut below, mut above) = (mean(mass.between(min, 0.0)), mean(mass.between(0.0, max)));
    for _ in 0..ROUNDS {
        // What lies at the lower end is not counted by `between`.
        let zeros = if below > 0.0 { zeros } else { 0.0 };
        let share = (mass.between(-below, above)[0] - zeros).max(0.0) / (12.0 * steps * steps);
        // The symmetric grid has as many steps on either side.
        let (lower, upper) = (mass.below(-below), mass.between(above, max));
        let end = |sum: f64, count: f64, other: f64, most: f64| {
            let cost = share + count;
            if cost > 0.0 { ((sum - share * other) / cost).clamp(0.0, most) } else { most }
        };
        let next = if grid.symmetric {
            let both = (upper[1] - lower[1], upper[0] + lower[0]);
            let cost = 4.0 * share + both.1;
            let end = if cost > 0.0 { both.0 / cost } else { 0.0 }.min(most_below.max(most_above));
            (end, end)
        } else {
            (end(-lower[1], lower[0], above, most_below), end(upper[1], upper[0], below, most_above))
        };
        let moved = (next.0 - below).abs() + (next.1 - above).abs();
        (below, above) = next;
        if moved <= STILL * (below + above) {
            break;
        }
    }
    (-below, above)
}
