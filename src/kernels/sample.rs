//! Values between the points of a grid: at real positions, from the points around them.

use crate::kernels::window::each_index;

/// How a value between points is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// That of the nearest point, halves to the even one.
    Nearest,
    /// Between the two neighbours along each axis.
    Linear,
    /// Through four neighbours along each axis.
    Cubic,
}

/// What lies outside the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// Zeros.
    Zeros,
    /// The outermost point, repeated.
    Border,
    /// The grid, mirrored.
    Reflection,
}

/// How positions are read and values found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// How a value between points is found.
    pub mode: Mode,
    /// What lies outside the grid.
    pub outside: Outside,
    /// Are -1 and 1 the centres of the outermost points, rather than their outer edges?
    pub align_corners: bool,
}

/// A factor of the cubic kernel, as in Keys' interpolation.
const CUBIC: f32 = -0.75;

impl Sampling {
    /// The position among `extent` points of a coordinate between -1 and 1.
    pub fn position(&self, coordinate: f32, extent: usize) -> f32 {
        match self.align_corners {
            true => (coordinate + 1.0) / 2.0 * (extent as f32 - 1.0),
            false => ((coordinate + 1.0) * extent as f32 - 1.0) / 2.0,
        }
    }

    fn edges(&self, extent: usize) -> (f32, f32) {
        if self.align_corners { (0.0, extent as f32 - 1.0) } else { (-0.5, extent as f32 - 0.5) }
    }

    /// A position moved inside by mirroring at the edges.
    fn reflect(&self, x: f32, extent: usize) -> f32 {
        let (low, high) = self.edges(extent);
        let range = high - low;
        let beyond = if x < low { low - x } else { x - high };
        if beyond <= 0.0 || range <= 0.0 {
            return if range <= 0.0 { low } else { x };
        }
        let times = (beyond / range).floor();
        let rest = beyond - times * range;
        let from_low = (x < low) == (times % 2.0 == 0.0);
        if from_low { low + rest } else { high - rest }
    }

    /// The index of a point that may lie outside; `None` is zero.
    fn point(&self, index: f32, extent: usize) -> Option<usize> {
        let last = extent as f32 - 1.0;
        match self.outside {
            Outside::Zeros => (index >= 0.0 && index <= last).then_some(index as usize),
            Outside::Border => Some(index.clamp(0.0, last) as usize),
            Outside::Reflection => Some(self.reflect(index, extent).clamp(0.0, last) as usize),
        }
    }

    /// The points along an axis that a position takes its value from, and their weights. A position that is not a
    /// number has none.
    pub fn taps(&self, position: f32, extent: usize) -> Vec<(usize, f32)> {
        if position.is_nan() || extent == 0 {
            return Vec::new();
        }
        // Beyond this all points are outside, whatever the position.
        let x = position.clamp(-1e9, 1e9);
        let x = if self.mode == Mode::Nearest { x.round_ties_even() } else { x };
        let (low, high) = self.edges(extent);
        let x = match self.outside {
            Outside::Border if x < low || x > high => x.clamp(0.0, extent as f32 - 1.0),
            Outside::Reflection if x < low || x > high => self.reflect(x, extent),
            _ => x,
        };
        let floor = x.floor();
        let t = x - floor;
        let weights: &[f32] = match self.mode {
            Mode::Nearest => return self.point(x, extent).map(|i| (i, 1.0)).into_iter().collect(),
            Mode::Linear => &[1.0 - t, t],
            Mode::Cubic => {
                let near = |d: f32| ((CUBIC + 2.0) * d - (CUBIC + 3.0)) * d * d + 1.0;
                let far = |d: f32| ((CUBIC * d - 5.0 * CUBIC) * d + 8.0 * CUBIC) * d - 4.0 * CUBIC;
                &[far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
            }
        };
        let first = floor - (weights.len() / 2 - 1) as f32;
        let tap = |(k, &w): (usize, &f32)| self.point(first + k as f32, extent).map(|i| (i, w));
        weights.iter().enumerate().filter_map(tap).collect()
    }
}

/// The taps of a place in a grid of these extents: flat index and weight, from those along each axis.
pub fn combine(taps: &[Vec<(usize, f32)>], extents: &[usize]) -> Vec<(usize, f32)> {
    let counts: Vec<usize> = taps.iter().map(Vec::len).collect();
    let mut all = Vec::with_capacity(counts.iter().product());
    each_index(&counts, |choice| {
        let (mut index, mut weight) = (0, 1.0);
        for ((axis, &k), extent) in taps.iter().zip(choice).zip(extents) {
            index = index * extent + axis[k].0;
            weight *= axis[k].1;
        }
        all.push((index, weight));
    });
    all
}

/// The value at a place whose taps these are.
pub fn value(taps: &[(usize, f32)], plane: &[f32]) -> f32 {
    taps.iter().map(|&(index, weight)| plane.get(index).copied().unwrap_or(0.0) * weight).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(mode: Mode, outside: Outside, align_corners: bool, x: f32) -> f32 {
        let plane = [10.0, 20.0, 40.0];
        let sampling = Sampling { mode, outside, align_corners };
        value(&combine(&[sampling.taps(sampling.position(x, 3), 3)], &[3]), &plane)
    }

    #[test]
    fn points_and_what_lies_between() {
        for mode in [Mode::Nearest, Mode::Linear, Mode::Cubic] {
            assert_eq!(at(mode, Outside::Border, true, -1.0), 10.0);
            assert_eq!(at(mode, Outside::Border, true, 0.0), 20.0);
        }
        assert_eq!(at(Mode::Linear, Outside::Zeros, true, 0.5), 30.0);
        assert_eq!(at(Mode::Linear, Outside::Zeros, false, 1.0), 20.0);
        assert_eq!(at(Mode::Nearest, Outside::Zeros, true, 0.5), 40.0); // position 1.5
        assert_eq!(at(Mode::Nearest, Outside::Zeros, true, -0.5), 10.0); // position 0.5
    }

    #[test]
    fn what_lies_outside() {
        assert_eq!(at(Mode::Linear, Outside::Zeros, true, 3.0), 0.0);
        assert_eq!(at(Mode::Linear, Outside::Border, true, 3.0), 40.0);
        assert_eq!(at(Mode::Linear, Outside::Reflection, true, 2.0), 20.0); // position 3 is 1 again
        assert_eq!(at(Mode::Nearest, Outside::Reflection, false, -1.6), 10.0);
        assert_eq!(at(Mode::Linear, Outside::Border, true, f32::NAN), 0.0);
        assert_eq!(at(Mode::Cubic, Outside::Border, true, f32::INFINITY), 40.0);
    }

    /// The value between two neighbours of a line, from the definition: what lies outside is looked up point by point.
    fn naive(line: &[f32], outside: Outside, align_corners: bool, x: f64) -> f64 {
        let n = line.len() as f64;
        let (low, high) = if align_corners { (0.0, n - 1.0) } else { (-0.5, n - 0.5) };
        let mirrored = |mut x: f64| {
            while high > low && (x < low || x > high) {
                x = if x < low { 2.0 * low - x } else { 2.0 * high - x };
            }
            if high > low { x } else { low }
        };
        let x = match outside {
            Outside::Zeros => x,
            Outside::Border => x.clamp(0.0, n - 1.0),
            Outside::Reflection => mirrored(x),
        };
        let point = |i: f64| match outside {
            Outside::Zeros if i < 0.0 || i >= n => 0.0,
            _ => f64::from(line[i.clamp(0.0, n - 1.0) as usize]),
        };
        let t = x - x.floor();
        point(x.floor()) * (1.0 - t) + point(x.floor() + 1.0) * t
    }

    proptest! {
        #[test]
        fn lines_are_read_by_definition(
            line in prop::collection::vec(-9f32..9.0, 2..9), place in -3f32..3.0, align_corners: bool, which in 0usize..3,
        ) {
            let outside = [Outside::Zeros, Outside::Border, Outside::Reflection][which];
            let sampling = Sampling { mode: Mode::Linear, outside, align_corners };
            let x = sampling.position(place, line.len());
            let found = value(&combine(&[sampling.taps(x, line.len())], &[line.len()]), &line);
            let expected = naive(&line, outside, align_corners, x.into());
            prop_assert!((f64::from(found) - expected).abs() < 1e-4, "{} instead of {}", found, expected);
        }
    }
}
