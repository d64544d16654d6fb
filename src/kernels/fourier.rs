//! The discrete Fourier transform: `X[k] = Σ x[n]·e^(∓2πi·kn/N)`.
//!
//! Lengths that are powers of two are halved again and again; others are computed from the definition. Angles come from
//! one table of `N` roots, so that every length is exact to a few units in the last place of `f64`.

/// A complex number.
pub type Complex = (f64, f64);

fn times(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

/// The transform of `x`, without a factor; `inverse` turns the other way.
pub fn transform(x: &[Complex], inverse: bool) -> Vec<Complex> {
    let n = x.len();
    let sign = if inverse { 1.0 } else { -1.0 };
    let root = |k: usize| {
        let angle = sign * std::f64::consts::TAU * k as f64 / n as f64;
        (libm::cos(angle), libm::sin(angle))
    };
    let roots: Vec<Complex> = (0..n).map(root).collect();
    let mut y = vec![(0.0, 0.0); n];
    recurse(x, 1, &mut y, &roots);
    y
}

/// The transform of every `step`-th element of `x`, as many as `y` has.
fn recurse(x: &[Complex], step: usize, y: &mut [Complex], roots: &[Complex]) {
    let n = y.len();
    if n > 1 && n.is_multiple_of(2) {
        let half = n / 2;
        let (even, odd) = y.split_at_mut(half);
        recurse(x, 2 * step, even, roots);
        recurse(x.get(step..).unwrap_or_default(), 2 * step, odd, roots);
        for (k, (e, o)) in even.iter_mut().zip(odd).enumerate() {
            let turned = times(*o, roots[k * step]);
            (*e, *o) = ((e.0 + turned.0, e.1 + turned.1), (e.0 - turned.0, e.1 - turned.1));
        }
        return;
    }
    for (k, y) in y.iter_mut().enumerate() {
        let terms = x.iter().step_by(step).take(n).enumerate();
        *y = terms.fold((0.0, 0.0), |sum, (i, &x)| {
            let term = times(x, roots[i * k % n * step]);
            (sum.0 + term.0, sum.1 + term.1)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(x: &[Complex]) -> Vec<Complex> {
        let n = x.len();
        let one = |k: usize| {
            x.iter().enumerate().fold((0.0, 0.0), |s, (i, &v)| {
                let angle = -std::f64::consts::TAU * (i * k % n) as f64 / n as f64;
                let term = times(v, (libm::cos(angle), libm::sin(angle)));
                (s.0 + term.0, s.1 + term.1)
            })
        };
        (0..n).map(one).collect()
    }

    proptest! {
        #[test]
        fn every_length_forth_and_back(x in prop::collection::vec((-9.0..9.0, -9.0..9.0), 1..70)) {
            let (n, y) = (x.len() as f64, transform(&x, false));
            for (a, b) in y.iter().zip(naive(&x)) {
                prop_assert!((a.0 - b.0).abs() + (a.1 - b.1).abs() < 1e-10);
            }
            for (a, b) in transform(&y, true).iter().zip(&x) {
                prop_assert!((a.0 / n - b.0).abs() + (a.1 / n - b.1).abs() < 1e-11);
            }
        }
    }
}
