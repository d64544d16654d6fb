//! Sums, products and tables of bytes.

use super::finish::ByteRange;
use crate::error::Fault;
use crate::kernels::broadcast::Walk;
use crate::kernels::simd::{self, Task};

/// Unsigned bytes standing for `(q - zero) * scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bytes {
    /// Step between neighbouring values.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero: i32,
    /// What makes the stored bytes unsigned, by exclusive or.
    pub flip: u8,
}

/// What is computed from two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// The sum.
    Add,
    /// The product.
    Mul,
}

/// `a ∘ b` as bytes of `c`; the operands are broadcast. Returns the shape and the bytes.
///
/// With `ra = sa / sc` and `rb = sb / sc`, a sum is `round(fma(a, ra, fma(b, rb, zc - fma(ra, za, rb·zb))))`, and an operand
/// that is repeated along a row comes second; a product is `round((a - za)·(b - zb)·(sa·sb / sc) + zc)`.
pub fn binary(
    function: Function,
    a: (&[u8], &[usize], Bytes),
    b: (&[u8], &[usize], Bytes),
    c: Bytes,
) -> Result<(Vec<usize>, Vec<u8>), Fault> {
    let walk = Walk::new([a.1, b.1])?;
    if walk.steps() == [false, true] {
        return binary(function, b, a, c);
    }
    let mut out = vec![0u8; walk.shape.iter().product()];
    let n = walk.row();
    let mut rows = out.chunks_exact_mut(n.max(1));
    let ends = walk.steps().map(|steps| if steps { n } else { 1 });
    let single = !walk.steps()[1];
    let flips = (a.2.flip, b.2.flip, c.flip);
    match function {
        Function::Add => {
            let (ra, rb) = (a.2.scale / c.scale, b.2.scale / c.scale);
            let fixed = c.zero as f32 - ra.mul_add(a.2.zero as f32, rb * b.2.zero as f32);
            let f = Sum { ra, rb, fixed };
            walk.rows(|[i, j]| {
                let Some(out) = rows.next() else { return };
                let (a, b) = (&a.0[i..i + ends[0]], &b.0[j..j + ends[1]]);
                simd::run(Row { f, a, b, single, flips, out });
            });
        }
        Function::Mul => {
            let f = Product {
                za: a.2.zero,
                zb: b.2.zero,
                ratio: a.2.scale * b.2.scale / c.scale,
                zc: c.zero as f32,
            };
            walk.rows(|[i, j]| {
                let Some(out) = rows.next() else { return };
                let (a, b) = (&a.0[i..i + ends[0]], &b.0[j..j + ends[1]]);
                simd::run(Row { f, a, b, single, flips, out });
            });
        }
    }
    Ok((walk.shape.clone(), out))
}

trait Pairwise: Copy {
    fn apply(self, a: u8, b: u8) -> f32;
}

#[derive(Clone, Copy)]
struct Sum {
    ra: f32,
    rb: f32,
    fixed: f32,
}

impl Pairwise for Sum {
    #[inline(always)]
    fn apply(self, a: u8, b: u8) -> f32 {
        f32::from(a).mul_add(self.ra, f32::from(b).mul_add(self.rb, self.fixed))
    }
}

#[derive(Clone, Copy)]
struct Product {
    za: i32,
    zb: i32,
    ratio: f32,
    zc: f32,
}

impl Pairwise for Product {
    #[inline(always)]
    fn apply(self, a: u8, b: u8) -> f32 {
        ((i32::from(a) - self.za) * (i32::from(b) - self.zb)) as f32 * self.ratio + self.zc
    }
}

struct Row<'a, F> {
    f: F,
    a: &'a [u8],
    b: &'a [u8],
    single: bool,
    flips: (u8, u8, u8),
    out: &'a mut [u8],
}

impl<F: Pairwise> Task for Row<'_, F> {
    #[inline(always)]
    fn run(self) {
        const ALL: ByteRange = ByteRange { low: 0.0, high: 255.0, zero: 0 };
        let Self { f, a, b, single, flips, out } = self;
        if single {
            let second = b[0] ^ flips.1;
            let first = a[0];
            if a.len() < out.len() {
                out.fill(ALL.byte(f.apply(first ^ flips.0, second)) ^ flips.2);
            }
            for (out, &a) in out.iter_mut().zip(a) {
                *out = ALL.byte(f.apply(a ^ flips.0, second)) ^ flips.2;
            }
        } else {
            for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
                *out = ALL.byte(f.apply(a ^ flips.0, b ^ flips.1)) ^ flips.2;
            }
        }
    }
}

/// The table's entry for every byte.
pub fn look_up(table: &[u8; 256], x: &[u8]) -> Vec<u8> {
    x.iter().map(|&b| table[usize::from(b)]).collect()
}

#[cfg(test)]
mod tests;
