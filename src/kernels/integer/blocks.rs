//! The product of real rows with a matrix of bytes, for which the rows are rounded to bytes themselves, block by block.
//!
//! This is what ONNX Runtime makes of a product of real numbers with 8-bit weights on x86-64 with AVX-512 and VNNI
//! (`MatMulNBits` of accuracy level 4, `sqnbitgemm_kernel_avx512_int8_blklen32.h`): 32 elements `x` of a row share
//! the scale `max |x| / 127`. The weights stay unsigned; what their zero point adds is a second product, of the
//! blocks' sums.

use super::Level;
use crate::kernels::simd::{self, Task};

/// Elements that share a scale.
const BLOCK: usize = 32;
/// Neighbouring products that are summed as integers.
const GROUP: usize = 4;
/// Groups of a block.
const GROUPS: usize = BLOCK / GROUP;
/// The block among four, and the two of its groups, that one of sixteen lanes sums.
const LANES: [(usize, usize, usize); 16] = [
    (0, 0, 2),
    (0, 1, 3),
    (2, 0, 2),
    (2, 1, 3),
    (0, 4, 6),
    (0, 5, 7),
    (2, 4, 6),
    (2, 5, 7),
    (1, 0, 2),
    (1, 1, 3),
    (3, 0, 2),
    (3, 1, 3),
    (1, 4, 6),
    (1, 5, 7),
    (3, 4, 6),
    (3, 5, 7),
];

/// A matrix of bytes, laid out by columns.
#[derive(Debug)]
pub struct Blocks {
    depth: usize,
    /// Column after column, each filled up to whole blocks.
    bytes: Vec<u8>,
    /// The scale of each column, and what its zero point stands for with the sign turned.
    scales: Vec<(f32, f32)>,
    /// Added to the sums of each column before its zero point is; may be empty.
    bias: Vec<f32>,
}

impl Blocks {
    /// From `depth` rows of unsigned bytes, the scale and zero point of each column, and a bias for each or none.
    pub fn new(rows: &[u8], depth: usize, columns: impl Iterator<Item = (f32, u8)>, bias: Vec<f32>) -> Self {
        let scales: Vec<(f32, f32)> =
            columns.map(|(scale, zero)| (scale, -(scale * f32::from(zero)))).collect();
        let stride = depth.next_multiple_of(BLOCK);
        let mut bytes = vec![0; stride * scales.len()];
        for (i, row) in rows.chunks_exact(scales.len().max(1)).enumerate() {
            row.iter().enumerate().for_each(|(j, &b)| bytes[j * stride + i] = b);
        }
        Self { depth, bytes, scales, bias }
    }

    /// The number of columns.
    pub fn columns(&self) -> usize {
        self.scales.len()
    }

    /// The length of a row.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// `y ← x · matrix` for rows of `x` and `y`.
    pub fn multiply(&self, x: &[f32], y: &mut [f32]) {
        self.multiply_at(Level::detect(), x, y);
    }

    fn multiply_at(&self, level: Level, x: &[f32], y: &mut [f32]) {
        let columns = self.columns();
        if self.depth == 0 || columns == 0 {
            y.fill(0.0);
            if !self.bias.is_empty() {
                y.chunks_exact_mut(columns).for_each(|y| y.copy_from_slice(&self.bias));
            }
            return;
        }
        let mut rows = Rows::default();
        let mut sums = vec![[0.0; GROUPS]; ROWS * columns];
        for (x, y) in x.chunks(ROWS * self.depth).zip(y.chunks_mut(ROWS * columns)) {
            simd::run(Round { x, depth: self.depth, rows: &mut rows });
            let (sums, stride) = (&mut sums[..y.len()], self.depth.next_multiple_of(BLOCK));
            match level {
                #[cfg(target_arch = "x86_64")]
                Level::Vnni | Level::Amx => {
                    let scales = self.scales.iter().map(|(scale, _)| *scale);
                    for ((column, scale), j) in self.bytes.chunks_exact(stride).zip(scales).zip(0..) {
                        super::vnni::blocks(&rows, column, scale, sums[j..].iter_mut().step_by(columns));
                    }
                }
                _ => simd::run(Plain { matrix: self, rows: &rows, sums }),
            }
            simd::run(Join { matrix: self, rows: &rows, sums, y });
        }
    }
}

/// Rows that are taken together.
const ROWS: usize = 4;

/// Rows of real numbers, rounded.
#[derive(Default)]
pub(super) struct Rows {
    /// Bytes of a row, in whole blocks.
    pub bytes: Vec<Vec<i8>>,
    /// The scale of each block of a row, and the scaled sum of its bytes.
    pub blocks: Vec<Vec<(f32, f32)>>,
    /// For each whole four of blocks of a row, the scale that belongs to each of the [`LANES`].
    pub fours: Vec<Vec<[f32; 16]>>,
}

struct Round<'a> {
    x: &'a [f32],
    depth: usize,
    rows: &'a mut Rows,
}

impl Task for Round<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { x, depth, rows: Rows { bytes, blocks, fours } } = self;
        let count = x.len() / depth;
        bytes.resize_with(count, Vec::new);
        blocks.resize_with(count, Vec::new);
        fours.resize_with(count, Vec::new);
        let rows = x.chunks_exact(depth).zip(bytes).zip(blocks).zip(fours);
        for (((x, bytes), blocks), fours) in rows {
            round(x, bytes, blocks);
            fours.clear();
            fours.extend(blocks.as_chunks::<4>().0.iter().map(|four| LANES.map(|(block, ..)| four[block].0)));
        }
    }
}

/// The sums of every row with every column in eight lanes, by loops that run anywhere.
struct Plain<'a> {
    matrix: &'a Blocks,
    rows: &'a Rows,
    sums: &'a mut [[f32; GROUPS]],
}

impl Task for Plain<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { matrix: Blocks { depth, bytes, scales, .. }, rows, sums } = self;
        let stride = depth.next_multiple_of(BLOCK);
        for ((row, blocks), all) in
            rows.bytes.iter().zip(&rows.blocks).zip(sums.chunks_exact_mut(scales.len()))
        {
            for ((column, (scale, _)), lanes) in bytes.chunks_exact(stride).zip(scales).zip(all) {
                *lanes = self::sums(row, blocks, column, *scale);
            }
        }
    }
}

/// Lanes become results.
struct Join<'a> {
    matrix: &'a Blocks,
    rows: &'a Rows,
    sums: &'a [[f32; GROUPS]],
    y: &'a mut [f32],
}

impl Task for Join<'_> {
    #[inline(always)]
    #[allow(clippy::needless_range_loop)]
    fn run(self) {
        let Self { matrix: Blocks { scales, bias, .. }, rows, sums, y } = self;
        let columns = scales.len();
        let whole = columns - columns % 4;
        let mut zeros = vec![0.0f32; columns];
        let rows = y.chunks_exact_mut(columns).zip(sums.chunks_exact(columns)).zip(&rows.blocks);
        for ((y, sums), blocks) in rows {
            zeros.fill(0.0);
            for (_, block) in blocks {
                for j in 0..columns {
                    zeros[j] = block.mul_add(scales[j].1, zeros[j]);
                }
            }
            for j in 0..columns {
                let l = sums[j];
                y[j] = if j < whole {
                    (((l[0] + l[1]) + l[2]) + l[3]) + (((l[4] + l[5]) + l[6]) + l[7])
                } else {
                    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
                };
            }
            if !bias.is_empty() {
                y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
            }
            y.iter_mut().zip(&zeros).for_each(|(y, zero)| *y += zero);
        }
    }
}

/// Rounds a row: the bytes of whole blocks, and for each its scale and the scaled sum of its bytes.
#[inline(always)]
fn round(x: &[f32], row: &mut Vec<i8>, parameters: &mut Vec<(f32, f32)>) {
    row.clear();
    parameters.clear();
    for block in x.chunks(BLOCK) {
        let most = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let (scale, inverse) = (most / 127.0, if most == 0.0 { 0.0 } else { 127.0 / most });
        let start = row.len();
        // Magnitudes are at most 127: nothing saturates.
        row.extend(block.iter().map(|v| (v * inverse).round_ties_even() as i8));
        row.resize(start + BLOCK, 0);
        let sum: i32 = row[start..].iter().map(|&byte| i32::from(byte)).sum();
        parameters.push((scale, scale * sum as f32));
    }
}

/// The product of a row with a column in eight lanes.
#[inline(always)]
fn sums(row: &[i8], parameters: &[(f32, f32)], column: &[u8], scale: f32) -> [f32; GROUPS] {
    let mut lanes = [0.0f32; 16];
    let (rows, columns) = (row.as_chunks::<BLOCK>().0, column.as_chunks::<BLOCK>().0);
    let groups = |at: usize| -> [i32; GROUPS] {
        let (x, w) = (rows[at].as_chunks::<GROUP>().0, columns[at].as_chunks::<GROUP>().0);
        std::array::from_fn(|g| {
            (0..GROUP).map(|i| i32::from(x[g][i]) * i32::from(w[g][i])).fold(0, i32::wrapping_add)
        })
    };
    let whole = rows.len() - rows.len() % 4;
    for first in (0..whole).step_by(4) {
        let dots = [0, 1, 2, 3].map(|b| groups(first + b));
        let scales = [0, 1, 2, 3].map(|b| scale * parameters[first + b].0);
        for (lane, (block, a, b)) in lanes.iter_mut().zip(LANES) {
            *lane = (dots[block][a].wrapping_add(dots[block][b]) as f32).mul_add(scales[block], *lane);
        }
    }
    let mut halves: [f32; GROUPS] = std::array::from_fn(|i| lanes[i] + lanes[i + GROUPS]);
    for (at, (step, _)) in parameters.iter().enumerate().take(rows.len()).skip(whole) {
        let scale = scale * step;
        for (half, dot) in halves.iter_mut().zip(groups(at)) {
            *half = (dot as f32).mul_add(scale, *half);
        }
    }
    halves
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_near_the_product_of_reals(depth in 1usize..300, n in 1usize..9, rows in 1usize..10, seed in 0usize..9, biased: bool) {
            let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1000.0 - 1.0;
            let x: Vec<f32> = (0..rows * depth).map(number).collect();
            let bytes: Vec<u8> = (0..depth * n).map(|i| ((i * 7919 + seed) % 251) as u8).collect();
            let columns: Vec<(f32, u8)> = (0..n).map(|j| (0.01 + j as f32 / 100.0, 100 + j as u8)).collect();
            let bias: Vec<f32> = (0..if biased { n } else { 0 }).map(|j| j as f32 - 3.0).collect();
            let matrix = Blocks::new(&bytes, depth, columns.iter().copied(), bias.clone());
            let mut y = vec![f32::NAN; rows * n];
            matrix.multiply_at(Level::Plain, &x, &mut y);
            for level in Level::all() {
                let mut other = vec![f32::NAN; rows * n];
                matrix.multiply_at(level, &x, &mut other);
                prop_assert_eq!(&other, &y, "{:?}", level);
            }
            for (at, y) in y.iter().enumerate() {
                let (row, (scale, zero)) = (&x[at / n * depth..][..depth], columns[at % n]);
                let weight = |k: usize| f32::from(bytes[k * n + at % n]) - f32::from(zero);
                let real: f32 = (0..depth).map(|k| row[k] * weight(k) * scale).sum();
                let real = real + bias.get(at % n).unwrap_or(&0.0);
                // Each element is rounded by half a step at most.
                let allowed: f32 = (0..depth).map(|k| weight(k).abs() * scale / 127.0 * 0.51).sum();
                prop_assert!((y - real).abs() <= allowed + 1e-3, "{y} is not {real}");
            }
        }
    }

    #[test]
    fn whole_numbers_are_exact() {
        let x: Vec<f32> = (0..40).map(|i| if i % 32 == 0 { 127.0 } else { (i % 7) as f32 - 3.0 }).collect();
        let bytes: Vec<u8> = (0..40).map(|i| (i * 5) as u8).collect();
        let mut y = [0.0];
        Blocks::new(&bytes, 40, std::iter::once((1.0, 9)), Vec::new()).multiply(&x, &mut y);
        let sum: f32 = x.iter().zip(&bytes).map(|(x, &w)| x * (f32::from(w) - 9.0)).sum();
        assert_eq!(y, [sum]);
    }
}
