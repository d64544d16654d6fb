//! The rows of a layer's least-squares problem, and the sums and products over them.

use rayon::prelude::*;

use crate::kernels::gemm::{Mat, MatMut, Size, gemm};
use crate::kernels::simd::{self, Task};

/// Saturated outputs are few if there is at most one in so many.
const FEW: usize = 8;
/// Products that are summed apart.
const LANES: usize = 16;

/// Outputs that one thread looks at together.
const TOGETHER: usize = 1 << 14;

/// Rows of inputs and what the outputs of the channels should be for them, each row times its factor.
pub struct Rows<'a> {
    /// Inputs of a row.
    pub width: usize,
    channels: usize,
    x: &'a [f32],
    y: &'a [f32],
    /// The root of what each row counts: less where its outputs are large. A token or a place that is a hundred times as
    /// loud as the others, before a normalization often, must not be served at their expense.
    factor: Vec<f32>,
}

impl<'a> Rows<'a> {
    fn count(&self) -> usize {
        self.x.len() / self.width.max(1)
    }

    /// Rows of `width` inputs and of as many outputs as there are channels, which are multiplied by their factors.
    pub fn new(width: usize, channels: usize, x: &'a mut [f32], y: &'a mut [f32]) -> Self {
        let power = |row: &[f32]| row.iter().map(|y| f64::from(*y) * f64::from(*y)).sum::<f64>();
        let powers: Vec<f64> =
            y.par_chunks(channels.max(1)).with_min_len(together(channels)).map(power).collect();
        let mean = powers.iter().sum::<f64>() / powers.len().max(1) as f64;
        let factor = |p: &f64| if mean > 0.0 { libm::sqrt(mean / (p + mean)) as f32 } else { 1.0 };
        let factor: Vec<f32> = powers.iter().map(factor).collect();
        let scale = |(row, factor): (&mut [f32], &f32)| row.iter_mut().for_each(|v| *v *= factor);
        for (rows, columns) in [(&mut *x, width), (&mut *y, channels)] {
            let rows = rows.par_chunks_mut(columns.max(1)).zip(&factor);
            rows.with_min_len(together(columns)).for_each(scale);
        }
        Self { width, channels, x, y, factor }
    }

    /// `Σ x xᵀ`.
    pub fn gram(&self) -> Vec<f32> {
        let (width, mut gram) = (self.width, vec![0.0; self.width * self.width]);
        product(self.x, width, self.x, width, (self.count(), |end| end), &mut gram);
        // What lies right of the diagonal is what lies below it.
        for i in 0..width {
            for j in 0..i {
                gram[j * width + i] = gram[i * width + j];
            }
        }
        gram
    }

    /// `Σ y x` for each channel, with these targets.
    fn cross(&self, targets: &[f32]) -> Vec<f32> {
        let (width, mut cross) = (self.width, vec![0.0; self.channels * self.width]);
        product(targets, self.channels, self.x, width, (self.count(), |_| width), &mut cross);
        cross
    }

    /// Where the outputs of a row saturate.
    fn limits(&self, row: usize, (low, high): (f32, f32)) -> (f32, f32) {
        (low * self.factor[row], high * self.factor[row])
    }

    /// What `of` makes of each row: its number, its outputs, and where they saturate.
    fn by_row<T: Send>(
        &self,
        saturation: (f32, f32),
        of: impl Fn(usize, &[f32], (f32, f32)) -> T + Sync,
    ) -> Vec<T> {
        let rows = self.y.par_chunks(self.channels.max(1)).with_min_len(together(self.channels));
        rows.enumerate().map(|(row, y)| of(row, y, self.limits(row, saturation))).collect()
    }

    /// What outputs that saturate outside of this interval should be, and `Σ y x` with that.
    pub fn aim(&self, saturation: (f32, f32)) -> Aim<'_> {
        let beyond = |y: f32, (low, high): (f32, f32)| y <= low || y >= high;
        let counts = self.by_row(saturation, |_, y, limits| y.iter().filter(|&&y| beyond(y, limits)).count());
        if counts.iter().sum::<usize>() * FEW > self.y.len() {
            return Aim { rows: self, saturation, saturated: None, cross: Vec::new() };
        }
        let mut saturated = vec![Vec::new(); self.channels];
        for (row, _) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let limits = self.limits(row, saturation);
            let outputs = self.y[row * self.channels..].iter().zip(&mut saturated);
            for (&y, saturated) in outputs.filter(|(y, _)| beyond(**y, limits)) {
                saturated.push(Saturated { row, target: y });
            }
        }
        Aim { rows: self, saturation, saturated: Some(saturated), cross: self.cross(self.y) }
    }

    /// The outputs with these weights.
    pub fn outputs(&self, weights: &[f32]) -> Vec<f32> {
        const BAND: usize = 256;
        let mut outputs = vec![0.0; self.count() * self.channels];
        let bands =
            outputs.par_chunks_mut(BAND * self.channels.max(1)).zip(self.x.par_chunks(BAND * self.width));
        bands.for_each(|(out, x)| {
            let size = Size { m: x.len() / self.width, n: self.channels, k: self.width };
            let (x, w) = (Mat::rows(x, self.width), Mat::transposed(weights, self.width));
            gemm(size, 1.0, x, w, 0.0, MatMut::rows(out, self.channels));
        });
        outputs
    }

    /// What the outputs should be, given what they are.
    fn targets(&self, mut found: Vec<f32>, saturation: (f32, f32)) -> Vec<f32> {
        let channels = self.channels.max(1);
        let rows = found.par_chunks_mut(channels).zip(self.y.par_chunks(channels)).enumerate();
        rows.with_min_len(together(channels)).for_each(|(row, (found, y))| {
            let limits = self.limits(row, saturation);
            found.iter_mut().zip(y).for_each(|(found, &y)| *found = target(y, *found, limits));
        });
        found
    }

    /// The squared distance of the outputs with these weights from what they should be.
    pub fn error(&self, weights: &[f32], saturation: (f32, f32)) -> f64 {
        let found = self.outputs(weights);
        let error = |row: usize, y: &[f32], limits: (f32, f32)| {
            let found = found[row * self.channels..].iter();
            found.zip(y).map(|(&f, &y)| f64::from(f - target(y, f, limits)).powi(2)).sum::<f64>()
        };
        self.by_row(saturation, error).iter().sum()
    }

    /// Power of the outputs as the quantizer passes them on.
    pub fn signal(&self, saturation: (f32, f32)) -> f64 {
        let power = |_, y: &[f32], (low, high): (f32, f32)| {
            y.iter().map(|y| f64::from(y.max(low).min(high)).powi(2)).sum::<f64>()
        };
        self.by_row(saturation, power).iter().sum()
    }
}

/// Rows of so many columns that one thread takes together.
fn together(columns: usize) -> usize {
    TOGETHER.div_ceil(columns.max(1))
}

/// The number nearest to what is found that saturates as the right one does: where both saturate at the same end there is
/// nothing to mend.
#[inline(always)]
fn target(y: f32, found: f32, (low, high): (f32, f32)) -> f32 {
    match y {
        y if y <= low => found.min(low),
        y if y >= high => found.max(high),
        y => y,
    }
}

/// Targets that follow what weights give.
pub struct Aim<'a> {
    rows: &'a Rows<'a>,
    saturation: (f32, f32),
    /// For each channel the outputs that saturate, if they are few: only their targets follow.
    saturated: Option<Vec<Vec<Saturated>>>,
    cross: Vec<f32>,
}

#[derive(Clone)]
struct Saturated {
    row: usize,
    /// What it should be now.
    target: f32,
}

impl Aim<'_> {
    /// `Σ y x` for each channel, with the targets for these weights.
    pub fn at(&mut self, weights: &[f32]) -> &[f32] {
        let (rows, width, saturation) = (self.rows, self.rows.width, self.saturation);
        let Some(saturated) = &mut self.saturated else {
            self.cross = rows.cross(&rows.targets(rows.outputs(weights), saturation));
            return &self.cross;
        };
        let channels = self.cross.par_chunks_mut(width.max(1)).zip(weights.par_chunks(width.max(1)));
        channels.zip(saturated).enumerate().for_each(|(channel, ((cross, weights), saturated))| {
            simd::run(Follow { rows, saturation, channel, weights, saturated, cross });
        });
        &self.cross
    }
}

/// The saturated outputs of one channel find their targets anew.
struct Follow<'a> {
    rows: &'a Rows<'a>,
    saturation: (f32, f32),
    channel: usize,
    weights: &'a [f32],
    saturated: &'a mut [Saturated],
    cross: &'a mut [f32],
}

impl Task for Follow<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { rows, saturation, channel, weights, saturated, cross } = self;
        let width = rows.width;
        for output in saturated {
            let x = &rows.x[output.row * width..][..width];
            let mut sums = [0.0; LANES];
            let (lines, rest) = x.as_chunks::<LANES>();
            for (line, weights) in lines.iter().zip(weights.as_chunks::<LANES>().0) {
                for lane in 0..LANES {
                    sums[lane] += line[lane] * weights[lane];
                }
            }
            let last = rest.iter().zip(&weights[width - rest.len()..]).map(|(x, w)| x * w);
            let found = sums.iter().sum::<f32>() + last.sum::<f32>();
            let y = rows.y[output.row * rows.channels + channel];
            let target = target(y, found, rows.limits(output.row, saturation));
            let step = target - output.target;
            if step != 0.0 {
                for k in 0..width {
                    cross[k] += step * x[k];
                }
                output.target = target;
            }
        }
    }
}

/// `aᵀ·b` of two matrices with the same number of rows, in bands so that all threads take part. Of the rows up to some
/// end, so many columns are computed.
fn product(
    a: &[f32],
    columns_a: usize,
    b: &[f32],
    columns_b: usize,
    (rows, columns): (usize, impl Fn(usize) -> usize + Sync),
    out: &mut [f32],
) {
    const BAND: usize = 64;
    out.par_chunks_mut((BAND * columns_b).max(1)).enumerate().for_each(|(band, out)| {
        let first = band * BAND;
        let m = out.len() / columns_b;
        if rows > 0 {
            let a = Mat { data: &a[first..], row: 1, col: columns_a };
            let size = Size { m, n: columns(first + m), k: rows };
            gemm(size, 1.0, a, Mat::rows(b, columns_b), 0.0, MatMut::rows(out, columns_b));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0).collect()
    }

    #[test]
    fn sums_and_targets_are_their_definition_however_many_outputs_saturate() {
        let (count, width, channels) = (37, 75, 5);
        let (mut inputs, mut outputs) = (numbers(count * width, 1), numbers(count * channels, 2));
        let rows = Rows::new(width, channels, &mut inputs, &mut outputs);
        let close =
            |a: &[f32], b: &[f32]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
        let sum = |of: &dyn Fn(usize) -> f32| (0..count).map(of).sum::<f32>();
        let x = |row: usize, k: usize| rows.x[row * width + k];
        let loud = |row: usize| {
            numbers(count * channels, 2)[row * channels..][..channels].iter().map(|y| y * y).sum::<f32>()
        };
        let mean = sum(&loud) / count as f32;
        let weight = |row: usize| mean / (mean + loud(row));
        let raw = numbers(count * width, 1);
        let gram = |i: usize, j: usize| sum(&|row| weight(row) * raw[row * width + i] * raw[row * width + j]);
        let want: Vec<f32> = (0..width * width).map(|at| gram(at / width, at % width)).collect();
        assert!(close(&rows.gram(), &want));
        for (saturation, few) in [((-0.95, 0.97), true), ((-0.2, 0.3), false), ((-9.0, 9.0), true)] {
            let mut aim = rows.aim(saturation);
            assert_eq!(aim.saturated.is_some(), few);
            for seed in 3..6 {
                let weights = numbers(channels * width, seed);
                let found = rows.outputs(&weights);
                let targets = rows.targets(found.clone(), saturation);
                let error: f32 = found.iter().zip(&targets).map(|(f, t)| (f - t).powi(2)).sum();
                assert!((rows.error(&weights, saturation) as f32 - error).abs() < 1e-4 * error);
                let cross = |c: usize, k: usize| sum(&|row| targets[row * channels + c] * x(row, k));
                let want: Vec<f32> = (0..channels * width).map(|at| cross(at / width, at % width)).collect();
                assert!(close(aim.at(&weights), &want), "{saturation:?}");
            }
        }
    }
}
