//! MatMul and Gemm on bytes, with results as bytes or as real numbers.

use std::borrow::Cow;

use super::blocks;
use super::conv::spread;
use super::{constant, flip, from_raw, range, raw, sign_flip, signed_zero, unsigned_zero};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Operand, Scales, Unit, is_byte};
use crate::ir::{Array, QuantParams, element_count};
use crate::kernels::gemm::Size;
use crate::kernels::integer::Level;
use crate::kernels::integer::finish::Affine;
use crate::kernels::integer::gemm::{Operands, product, subtract_row_sums};
use crate::kernels::integer::pack::{Cell, Columns, LANES, block_len, pack_rows, sum};
use crate::ops::gemm::{Batches, Gemm};
use crate::ops::slots::required;

/// A product of an activation with another matrix.
#[derive(Debug)]
struct Product {
    a: QuantParams,
    b: Scales,
    /// The columns of a constant `B`, and its shape.
    packed: Option<(Columns, Vec<usize>)>,
    /// Are `A` and `B` transposed? Only for two dimensions.
    transposed: (bool, bool),
    /// Added to the sums of each column; or one for all; or nothing.
    bias: Vec<i32>,
    /// None: real numbers are wanted.
    y: Option<QuantParams>,
    slots: &'static [usize],
}

/// The kernel of MatMul: `B` has one scale, or one for each column if it has two dimensions. `A` may be real if it is a
/// constant.
pub fn matmul(unit: &Unit) -> Option<Box<dyn Kernel>> {
    blocks::matmul(unit).or_else(|| prepare(unit, (false, false), Vec::new(), &[1]))
}

/// The kernel of Gemm without coefficients, with a bias of 32-bit integers in the scale of the sums, or a real one that
/// is rounded to it.
pub fn gemm(op: &Gemm, unit: &Unit) -> Option<Box<dyn Kernel>> {
    if op.alpha != 1.0 || (op.beta != 1.0 && !unit.lacks(2)) {
        return None;
    }
    let bias = match unit.inputs.get(2).and_then(Option::as_ref) {
        None => Vec::new(),
        Some(Operand::Integer(_, array)) => constant::<i32>(array.as_ref())?.to_vec(),
        Some(Operand::Plain(array)) => {
            unit.outputs.first()?.as_ref()?; // otherwise it stays real
            let values = constant::<f32>(array.as_ref())?;
            let (x, scales) = (unit.whole(0)?.scale, spread(&unit.integer(1)?.0.scales, values.len())?);
            values.iter().zip(scales).map(|(b, w)| (b / (x * w)).round_ties_even() as i32).collect()
        }
    };
    prepare(unit, (op.trans_a, op.trans_b), bias, &[1, 2])
}

fn prepare(
    unit: &Unit,
    transposed: (bool, bool),
    bias: Vec<i32>,
    slots: &'static [usize],
) -> Option<Box<dyn Kernel>> {
    let &[y] = unit.outputs.as_slice() else { return None };
    let a = unit.whole(0).filter(|a| is_byte(a.dtype) && y.is_none_or(|y| y.dtype == a.dtype))?;
    let (b, constant) = unit.integer(1)?;
    if !is_byte(b.dtype) {
        return None;
    }
    let packed = match constant.filter(|array| array.rank() == 2 && array.dtype() == b.dtype) {
        Some(array) => {
            let turned = if transposed.1 { array.transposed(&[1, 0]).ok()? } else { array.clone() };
            let &[k, n] = turned.shape() else { return None };
            b.along(usize::from(!transposed.1), 2).and_then(|scales| spread(scales, n))?;
            let columns = Columns::signed(raw(&turned).ok()?, (k, n), sign_flip(b.dtype));
            Some((columns, array.shape().to_vec()))
        }
        // Neither its rank nor its extents are known: one scale.
        None => b.whole().and(None),
    };
    if packed.is_none() && b.whole().is_none() {
        return None;
    }
    let slots = if packed.is_some() { slots } else { &slots[1..] };
    Some(Box::new(Product { a, b: b.clone(), packed, transposed, bias, y, slots }))
}

impl Product {
    /// One matrix of rows times columns.
    fn multiply(&self, size: Size, a: &[u8], columns: &Columns, y: Target) {
        let Size { m, n, k } = size;
        if k == 0 || m == 0 || n == 0 {
            return;
        }
        let za = unsigned_zero(&self.a);
        let zero = |j: usize| {
            let own = self.b.zero_points.get(if self.b.axis.is_some() { j } else { 0 });
            signed_zero(self.b.dtype, own.copied().unwrap_or(0))
        };
        let zeros: Vec<i32> = (0..n).map(zero).collect();
        let bias = |j: usize| self.bias.get(if self.bias.len() == 1 { 0 } else { j }).copied().unwrap_or(0);
        // Σ (a - za)(b - zb) = Σ ab - za·Σb - zb·Σa + k·za·zb
        let offset = |(j, (sum, zb)): (usize, (&i32, &i32))| {
            let constant = (k as i32).wrapping_mul(za.wrapping_mul(*zb));
            bias(j).wrapping_sub(za.wrapping_mul(*sum)).wrapping_add(constant)
        };
        let mut offsets: Vec<i32> = columns.sums.iter().zip(&zeros).enumerate().map(offset).collect();
        let scale = |j: usize| {
            let own = if self.b.scales.len() == 1 { self.b.scales[0] } else { self.b.scales[j] };
            let both = self.a.scale * own;
            self.y.map_or(both, |y| both / y.scale)
        };
        let scales: Vec<f32> = (0..n).map(scale).collect();
        offsets.truncate(n);
        let affine = Affine::<false> { offsets: &offsets, scales: &scales };
        let flip = flip(self.a.dtype);
        let sums: Vec<i32> = match zeros.iter().any(|&z| z != 0) {
            true => a.chunks_exact(k).map(|row| sum(row, |b| i32::from(b ^ flip))).collect(),
            false => Vec::new(),
        };
        let (level, range) = (Level::detect(), self.y.map(|y| range(&y)));
        let mut y = y;
        Cell::scratch(m.div_ceil(LANES) * block_len(columns.quads), |rows| {
            pack_rows(a, k, flip, rows);
            let operands = Operands::<false> { quads: columns.quads, count: m, rows, columns: &columns.data };
            product(level, operands, |mut tile| {
                if !sums.is_empty() {
                    subtract_row_sums(&mut tile, &sums, &zeros);
                }
                match (&mut y, range) {
                    (Target::Bytes(y), Some(range)) => affine.bytes(level, &tile, n, range, y, n),
                    (Target::Reals(y), _) => affine.reals(&tile, n, y, n),
                    _ => {}
                }
            });
        });
    }
}

/// Where results go.
enum Target<'a> {
    Bytes(&'a mut [u8]),
    Reals(&'a mut [f32]),
}

impl Kernel for Product {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let mut a = Cow::Borrowed(required(inputs, 0)?);
        let turned = |array: &Array| array.transposed(&[1, 0]);
        if self.transposed.0 {
            a = Cow::Owned(turned(&a)?);
        }
        let b = match &self.packed {
            Some((_, shape)) if self.transposed.1 => Err(vec![shape[1], shape[0]]),
            Some((_, shape)) => Err(shape.clone()),
            None if self.transposed.1 => Ok(turned(required(inputs, 1)?)?),
            None => Ok(required(inputs, 1)?.clone()),
        };
        let b_shape = match &b {
            Ok(array) => array.shape(),
            Err(shape) => shape,
        };
        let batches = Batches::new(a.shape(), b_shape)?;
        let size @ Size { m, n, k } = batches.size;
        if !matches!(self.bias.len(), 0 | 1) && self.bias.len() != n {
            fail!("a bias of {} for {n} columns", self.bias.len());
        }
        let count = element_count(&batches.shape)?;
        let (mut bytes, mut reals) = match &self.y {
            // What sums of nothing are.
            Some(y) if k == 0 => (vec![y.zero_point as u8; count], Vec::new()),
            Some(_) => (vec![0; count], Vec::new()),
            None => (Vec::new(), vec![0.0; count]),
        };
        let rows = raw(&a)?;
        let b = b.as_ref().ok().map(raw).transpose()?;
        let (mut index, step) = (0, m * n);
        batches.each(|i, j| {
            let target = match &self.y {
                Some(_) => Target::Bytes(&mut bytes[index * step..][..step]),
                None => Target::Reals(&mut reals[index * step..][..step]),
            };
            index += 1;
            let a = &rows[i * m * k..][..m * k];
            match (&self.packed, b) {
                (Some((columns, _)), _) => self.multiply(size, a, columns, target),
                (None, Some(b)) => {
                    let b = &b[j * k * n..][..k * n];
                    let columns = Columns::signed(b, (k, n), sign_flip(self.b.dtype));
                    self.multiply(size, a, &columns, target);
                }
                (None, None) => {}
            }
        });
        Ok(vec![match &self.y {
            Some(y) => from_raw(y.dtype, &batches.shape, bytes)?,
            None => Array::new(&batches.shape, reals)?,
        }])
    }

    fn packed(&self) -> &[usize] {
        self.slots
    }
}
