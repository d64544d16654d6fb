//! Products of batches of matrices.

use crate::error::Fault;
use crate::fail;
use crate::ir::element_count;
use crate::kernels::gemm::Size;
use crate::kernels::window::each_index;

/// Which matrices a product of batches multiplies.
pub struct Batches<'a> {
    /// Extents of each product.
    pub size: Size,
    /// The broadcast batch.
    pub batch: Vec<usize>,
    a_batch: &'a [usize],
    b_batch: &'a [usize],
    /// Shape of the result.
    pub shape: Vec<usize>,
}

impl<'a> Batches<'a> {
    /// Reads the shapes of the operands.
    pub fn new(a_shape: &'a [usize], b_shape: &'a [usize]) -> Result<Self, Fault> {
        let (a_row, b_column) = (a_shape.len() == 1, b_shape.len() == 1);
        let (a_batch, m, k) = match a_shape {
            [k] => (&[][..], 1, *k),
            [batch @ .., m, k] => (batch, *m, *k),
            [] => fail!("a scalar has no matrix product"),
        };
        let (b_batch, other, n) = match b_shape {
            [k] => (&[][..], *k, 1),
            [batch @ .., k, n] => (batch, *k, *n),
            [] => fail!("a scalar has no matrix product"),
        };
        if k != other {
            fail!("A {a_shape:?} has rows of {k} elements, B {b_shape:?} columns of {other}");
        }
        let batch = broadcast(a_batch, b_batch)?;
        let mut shape = batch.clone();
        shape.extend((!a_row).then_some(m));
        shape.extend((!b_column).then_some(n));
        let count = element_count(&shape)?;
        // One matrix B for all: a single tall product.
        if b_batch.iter().all(|&d| d == 1) && a_batch == batch && count > 0 {
            return Ok(Self { size: Size { m: count / n, n, k }, batch: vec![], a_batch: &[], b_batch: &[], shape });
        }
        Ok(Self { size: Size { m, n, k }, batch, a_batch, b_batch, shape })
    }

    /// Calls `f` with the number of `A` and `B` for each product, in order.
    pub fn each(&self, mut f: impl FnMut(usize, usize)) {
        each_index(&self.batch, |index| f(place(index, self.a_batch), place(index, self.b_batch)));
    }
}

/// The shape to which two shapes are broadcast.
fn broadcast(a: &[usize], b: &[usize]) -> Result<Vec<usize>, Fault> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (1, d) | (d, 1) => Ok(d),
            (d, e) if d == e => Ok(d),
            _ => Err(Fault::new(format!("cannot broadcast {a:?} and {b:?}"))),
        })
        .collect()
}

/// Which matrix of a batch of this shape stands at an index of the broadcast batch.
fn place(index: &[usize], batch: &[usize]) -> usize {
    let index = &index[index.len() - batch.len()..];
    index.iter().zip(batch).fold(0, |at, (&i, &extent)| at * extent + if extent == 1 { 0 } else { i })
}
