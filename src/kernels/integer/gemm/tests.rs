//! Packed products against the definition.

use proptest::prelude::*;

use super::*;
use crate::kernels::integer::finish::{Affine, ByteRange};
use crate::kernels::integer::pack::{Columns, FLIP, Rows, pack_rows};

/// Unsigned rows in blocks.
fn unsigned(rows: &[u8], k: usize) -> Vec<Cell> {
    let blocks = (rows.len() / k).div_ceil(LANES);
    let mut packed = vec![Cell([99; 64]); blocks * block_len(k.div_ceil(4))];
    pack_rows(rows, k, 0, &mut packed);
    packed
}

proptest! {
    #[test]
    fn rows_times_columns_is_the_product(
        (m, n, k) in (1usize..70, 1usize..90, 1usize..200), extreme: bool, seed in any::<u32>(),
    ) {
        let mut state = seed | 1;
        let mut byte = || {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            // extremes would show saturation of pairs of products
            if extreme { if state & 0x8000_0000 == 0 { 0x80 } else { 0x7f } } else { (state >> 24) as u8 }
        };
        let a: Vec<u8> = (0..m * k).map(|_| byte()).collect();
        let b: Vec<u8> = (0..k * n).map(|_| byte()).collect();
        let signed = Rows::signed(&a, k, m, FLIP);
        let unsigned = unsigned(&a, k);
        let Columns { data: columns, quads, .. } = &Columns::signed(&b, (k, n), 0);
        let (quads, count) = (*quads, m);
        for level in Level::all() {
            let (mut first, mut second) = (vec![0i32; m * n], vec![0i32; m * n]);
            let write = |tile: &Tile, out: &mut [i32]| {
                for r in 0..tile.rows.1 {
                    for c in 0..tile.columns.1.min(n - tile.columns.0) {
                        out[(tile.rows.0 + r) * n + tile.columns.0 + c] = tile.sums.0[r][c];
                    }
                }
            };
            let operands = Operands::<true> { quads, count, rows: signed.matrix(0), columns };
            product(level, operands, |tile| write(&tile, &mut first));
            let operands = Operands::<false> { quads, count, rows: &unsigned, columns };
            product(level, operands, |tile| write(&tile, &mut second));
            for i in 0..m {
                for j in 0..n {
                    let sum = |f: fn(u8) -> i32, g: fn(u8) -> i32| -> i32 {
                        (0..k).map(|p| f(a[i * k + p]) * g(b[p * n + j])).sum()
                    };
                    prop_assert_eq!(first[i * n + j], sum(|a| i32::from((a ^ FLIP) as i8), i32::from));
                    prop_assert_eq!(second[i * n + j], sum(i32::from, |b| i32::from(b as i8)));
                }
            }
        }
    }

    #[test]
    fn zero_points_are_subtracted(
        (m, n, k) in (1usize..40, 1usize..40, 1usize..30), seed in any::<u32>(), zeros in any::<i8>(),
    ) {
        let byte = |i: usize| (i as u32).wrapping_mul(2654435761).wrapping_add(seed).to_le_bytes()[3];
        let a: Vec<u8> = (0..m * k).map(byte).collect();
        let b: Vec<u8> = (0..k * n).map(|i| byte(i + 7000)).collect();
        let rows = unsigned(&a, k);
        let sums: Vec<i32> = a.chunks(k).map(|row| row.iter().map(|&b| i32::from(b)).sum()).collect();
        let columns = Columns::signed(&b, (k, n), 0);
        let zeros: Vec<i32> = (0..n).map(|j| i32::from(zeros) ^ (j as i32 & 3)).collect();
        let (offsets, scales) = (vec![3; n], vec![0.25f32; n]);
        let affine = Affine::<false> { offsets: &offsets, scales: &scales };
        let mut y = vec![f32::NAN; m * n];
        let operands =
            Operands::<false> { quads: columns.quads, count: m, rows: &rows, columns: &columns.data };
        product(Level::detect(), operands, |mut tile| {
            subtract_row_sums(&mut tile, &sums, &zeros);
            affine.reals(&tile, n, &mut y, n);
        });
        for (i, &y) in y.iter().enumerate() {
            let (row, column) = (i / n, i % n);
            let sum: i32 = (0..k)
                .map(|p| i32::from(a[row * k + p]) * (i32::from(b[p * n + column] as i8) - zeros[column]))
                .sum();
            prop_assert_eq!(y, (sum + 3) as f32 * 0.25);
        }
    }

    #[test]
    fn sums_round_to_bytes_alike_at_every_level(
        sums in prop::collection::vec(any::<i32>(), TILE), width in 1usize..=TILE,
        shift in 0u32..32, scale in 1e-9f32..2.0, zero in 0i32..256, by_row: bool,
    ) {
        let mut tile_sums = Sums::ZERO;
        tile_sums.0[0] = std::array::from_fn(|i| sums[i] >> shift);
        let expected: Vec<u8> = tile_sums.0[0][..width].iter().map(|&s| {
            let v = f64::from(s.wrapping_add(7) as f32 * scale).round_ties_even();
            (v + f64::from(zero)).clamp(0.0, 255.0) as u8
        }).collect();
        let tile = Tile { rows: (0, 1), columns: (0, TILE), sums: &mut tile_sums };
        let (offsets, scales) = (vec![7; TILE], vec![scale; TILE]);
        let range = ByteRange::new(0, 255, zero);
        for level in Level::all() {
            let mut out = vec![0; width];
            if by_row {
                Affine::<true> { offsets: &offsets, scales: &scales }.bytes(level, &tile, width, range, &mut out, width);
            } else {
                Affine::<false> { offsets: &offsets, scales: &scales }.bytes(level, &tile, width, range, &mut out, width);
            }
            prop_assert_eq!(&out, &expected);
        }
    }
}
