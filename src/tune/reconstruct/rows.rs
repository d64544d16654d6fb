//! The rows of a layer's least-squares problem, and the sums and products over them.

use rayon::prelude::*;

use crate::kernels::gemm::{Mat, MatMut, Size, gemm};

/// Rows of inputs and what the outputs of the channels should be for them.
#[derive(Clone)]
pub struct Rows {
    /// Inputs of a row.
    pub width: usize,
    channels: usize,
    x: Vec<f32>,
    y: Vec<f32>,
    /// What each row counts: less where its outputs are large. A token or a place that is a hundred times as loud as the
    /// others, before a normalization often, must not be served at their expense.
    weight: Vec<f32>,
}

impl Rows {
    fn count(&self) -> usize {
        self.x.len() / self.width.max(1)
    }

    /// Rows of `width` inputs and of as many outputs as there are channels.
    pub fn new(width: usize, channels: usize, x: Vec<f32>, y: Vec<f32>) -> Self {
        let power = |row: &[f32]| row.iter().map(|y| f64::from(*y) * f64::from(*y)).sum::<f64>();
        let powers: Vec<f64> = y.chunks(channels.max(1)).map(power).collect();
        let mean = powers.iter().sum::<f64>() / powers.len().max(1) as f64;
        let weight = |p: &f64| if mean > 0.0 { (mean / (p + mean)) as f32 } else { 1.0 };
        Self { width, channels, weight: powers.iter().map(weight).collect(), x, y }
    }

    /// The matrix with each row multiplied by its weight.
    fn weighted(&self, rows: &[f32], width: usize) -> Vec<f32> {
        let rows = rows.chunks(width.max(1)).zip(&self.weight);
        rows.flat_map(|(row, w)| row.iter().map(move |v| v * w)).collect()
    }

    /// `Σ x xᵀ`.
    pub fn gram(&self) -> Vec<f32> {
        let mut gram = vec![0.0; self.width * self.width];
        let weighted = self.weighted(&self.x, self.width);
        product(&weighted, self.width, &self.x, self.width, self.count(), &mut gram);
        gram
    }

    /// `Σ y x` for each channel, with these targets.
    pub fn cross(&self, targets: &[f32]) -> Vec<f32> {
        let mut cross = vec![0.0; self.channels * self.width];
        let weighted = self.weighted(targets, self.channels);
        product(&weighted, self.channels, &self.x, self.width, self.count(), &mut cross);
        cross
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

    /// What the outputs should be, given what they are: the nearest number that saturates as the right one does.
    pub fn targets(&self, found: &[f32], (low, high): (f32, f32)) -> Vec<f32> {
        let target = |(&y, &found): (&f32, &f32)| match y {
            y if y <= low => found.min(low),
            y if y >= high => found.max(high),
            y => y,
        };
        self.y.iter().zip(found).map(target).collect()
    }

    /// Power of the outputs as the quantizer passes them on.
    pub fn signal(&self, (low, high): (f32, f32)) -> f64 {
        let clamped: Vec<f32> = self.y.iter().map(|y| y.clamp(low, high)).collect();
        self.power(&clamped)
    }

    /// Weighted sum of squares.
    pub fn power(&self, rows: &[f32]) -> f64 {
        let square = |row: &[f32]| row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        rows.chunks(self.channels.max(1)).zip(&self.weight).map(|(row, &w)| f64::from(w) * square(row)).sum()
    }
}

/// `aᵀ·b` of two matrices with the same number of rows, in bands so that all threads take part.
fn product(a: &[f32], columns_a: usize, b: &[f32], columns_b: usize, rows: usize, out: &mut [f32]) {
    const BAND: usize = 64;
    out.par_chunks_mut((BAND * columns_b).max(1)).enumerate().for_each(|(band, out)| {
        let first = band * BAND;
        let size = Size { m: out.len() / columns_b, n: columns_b, k: rows };
        if rows > 0 {
            let a = Mat { data: &a[first..], row: 1, col: columns_a };
            gemm(size, 1.0, a, Mat::rows(b, columns_b), 0.0, MatMut::rows(out, columns_b));
        }
    });
}
