//! Search for the range of least expected squared error.
//!
//! The unknowns are those of the quantizer itself, its step and the level at zero: any pair of them puts zero on the
//! grid, where a pair of ends would first have to be moved there, in jumps that are large if levels are few. The error
//! has several valleys if the distribution has several scales. So the search starts with a net over all scales, on
//! the cheap estimate, and walks downhill from its best knot with ever shorter strides on the exact error.

use super::Grid;
use super::distortion::Mass;

/// Knots of the net along the step: from no clipping down to 2⁻¹⁰ of it, four an octave.
const KNOTS: u32 = 41;
const KNOT: f64 = 0.25;
/// Most knots along the level at zero.
const ZEROS: u32 = 64;

/// First stride of the walk along the step, in octaves, and how often it is halved.
const STRIDE: f64 = 0.125;
const HALVINGS: u32 = 4;
/// Bound on the moves at one stride.
const MOVES: u32 = 8;

/// A quantizer: `levels` multiples of `step`, from `-zero` on.
#[derive(Clone, Copy, PartialEq)]
struct Quantizer {
    step: f64,
    zero: f64,
}

/// Ends of the best range.
pub(super) fn least_error(mass: &Mass, grid: Grid) -> (f64, f64) {
    let (min, max) = mass.extremes();
    let (min, max) = grid.around(min, max);
    if min >= max {
        return (min, max);
    }
    let steps = f64::from(grid.levels - 1);
    let ends = |q: Quantizer| (-q.zero * q.step, (steps - q.zero) * q.step);
    let exact = |q: Quantizer| mass.error(ends(q).0, ends(q).1, grid.levels);

    // Without negatives or positives, or with symmetry, the level at zero is given.
    let fixed = grid.symmetric || min == 0.0 || max == 0.0;

    // Against clipping nothing; then against its neighbours.
    let step = (max - min) / steps;
    let widest = Quantizer { step, zero: (-min / step).round_ties_even() };
    let mut best = widest;
    let mut error = exact(best);
    let mut attempt = |q: Quantizer, best: &mut Quantizer| {
        let found = exact(q);
        if found < error {
            (*best, error) = (q, found);
        }
    };

    attempt(net(mass, grid, widest, fixed), &mut best);
    let sideways: &[f64] = if fixed { &[0.0] } else { &[0.0, -1.0, 1.0] };
    for halving in 0..=HALVINGS {
        let grow = libm::exp2(STRIDE / f64::from(1 << halving));
        let shift = (steps * STRIDE / f64::from(4 << halving)).round_ties_even().max(1.0);
        for _ in 0..MOVES {
            let here = best;
            for &way in sideways {
                let zero = (here.zero + way * shift).clamp(0.0, steps);
                for factor in [1.0, grow, grow.recip()] {
                    let next = Quantizer { step: here.step * factor, zero };
                    if next != here {
                        attempt(next, &mut best);
                    }
                }
            }
            if best == here {
                break;
            }
        }
    }
    ends(best)
}

/// The best knot by estimate.
fn net(mass: &Mass, grid: Grid, widest: Quantizer, fixed: bool) -> Quantizer {
    let steps = f64::from(grid.levels - 1);
    let (min, max) = (-widest.zero * widest.step, (steps - widest.zero) * widest.step);
    let zeros = if fixed {
        vec![widest.zero]
    } else {
        (1..grid.levels - 1).step_by((grid.levels / ZEROS).max(1) as usize).map(f64::from).collect()
    };
    let mut best = (f64::INFINITY, widest);
    for zero in zeros {
        // The step from which on neither end clips.
        let full = f64::max(
            if zero > 0.0 { -min / zero } else { 0.0 },
            if zero < steps { max / (steps - zero) } else { 0.0 },
        );
        for knot in 0..KNOTS {
            let step = full * libm::exp2(-KNOT * f64::from(knot));
            let error = mass.estimate(-zero * step, (steps - zero) * step, grid.levels);
            if error < best.0 {
                best = (error, Quantizer { step, zero });
            }
        }
    }
    best.1
}
