//! MatMul of real numbers with a constant matrix of bytes, which ONNX Runtime computes on bytes as well.

use super::conv::spread;
use super::{flip, raw};
use crate::error::Fault;
use crate::ir::integer::{Kernel, Operand, Unit, is_byte};
use crate::ir::{Array, element_count};
use crate::kernels::integer::blocks::Blocks;
use crate::ops::gemm::Batches;
use crate::ops::operand::elements;
use crate::ops::slots::required;

/// A product with real rows and a real result.
#[derive(Debug)]
struct Product(Blocks);

/// The kernel for a real `A` and a `B` of two dimensions with one scale, or one for each column.
pub fn matmul(unit: &Unit) -> Option<Box<dyn Kernel>> {
    let (Some(Some(Operand::Plain(None))), [None]) = (unit.inputs.first(), unit.outputs.as_slice()) else {
        return None;
    };
    let (b, constant) = unit.integer(1)?;
    let array =
        constant.filter(|a| is_byte(b.dtype) && a.rank() == 2 && a.dtype() == b.dtype && !a.is_empty())?;
    let &[depth, n] = array.shape() else { return None };
    let (scales, flip) = (spread(b.along(1, 2)?, n)?, flip(b.dtype));
    let rows: Vec<u8> = raw(array).ok()?.iter().map(|byte| byte ^ flip).collect();
    let zero =
        |j: usize| b.zero_points.get(if b.axis.is_some() { j } else { 0 }).map_or(0, |&z| z as u8 ^ flip);
    let bias = match unit.inputs.get(2) {
        None | Some(None) => Vec::new(),
        Some(Some(Operand::Plain(Some(bias)))) if bias.len() == n => bias.slice::<f32>().ok()?.to_vec(),
        Some(_) => return None,
    };
    let columns = scales.into_iter().enumerate().map(|(j, scale)| (scale, zero(j)));
    Some(Box::new(Product(Blocks::new(&rows, depth, columns, bias))))
}

impl Kernel for Product {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let a = required(inputs, 0)?;
        let x = a.to_f32()?;
        let shape = [self.0.depth(), self.0.columns()];
        let batches = Batches::new(a.shape(), &shape)?;
        let mut y = vec![0.0; element_count(&batches.shape)?];
        self.0.multiply(elements(&x)?, &mut y);
        Ok(vec![Array::new(&batches.shape, y)?])
    }

    fn packed(&self) -> &[usize] {
        &[1, 2]
    }
}
