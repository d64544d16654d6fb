//! Operators that compute every element by itself.

use super::{Function, flip, from_raw, raw, unsigned_zero};
use crate::error::Fault;
use crate::ir::integer::{Kernel, Unit, is_byte};
use crate::ir::{Array, DType, Op, QuantParams};
use crate::kernels::integer::elementwise::{Bytes, binary as compute, look_up};
use crate::ops::slots::required;

fn bytes(params: &QuantParams) -> Bytes {
    Bytes { scale: params.scale, zero: unsigned_zero(params), flip: flip(params.dtype) }
}

#[derive(Debug)]
struct Binary {
    function: Function,
    operands: [Bytes; 3],
    dtype: DType,
}

/// The kernel of a sum or product of two tensors of one type.
pub fn binary(function: Function, unit: &Unit) -> Option<Box<dyn Kernel>> {
    let (a, y) = unit.pair()?;
    let b = unit.whole(1).filter(|b| b.dtype == a.dtype)?;
    Some(Box::new(Binary { function, operands: [bytes(&a), bytes(&b), bytes(&y)], dtype: y.dtype }))
}

impl Kernel for Binary {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
        let [pa, pb, py] = self.operands;
        let (shape, y) = compute(self.function, (raw(a)?, a.shape(), pa), (raw(b)?, b.shape(), pb), py)?;
        Ok(vec![from_raw(self.dtype, &shape, y)?])
    }
}

/// The output for every input byte of an operator on single elements.
struct Table {
    table: [u8; 256],
    dtype: DType,
}

/// The kernel of an operator on single elements: its own real arithmetic, tabulated.
pub fn table(op: &impl Op, unit: &Unit) -> Option<Box<dyn Kernel>> {
    let (x, y) = unit.pair().filter(|_| unit.inputs.len() == 1)?;
    let reals: Vec<f32> = (0..=255u8).map(|b| x.dequantize(value(x.dtype, b))).collect();
    let outputs = op.float(&[Some(Array::vector(reals))]).ok()?;
    let reals = outputs.first()?.slice::<f32>().ok()?;
    Some(Box::new(Table { table: entries(reals, &y)?, dtype: y.dtype }))
}

/// The integer that a byte holds.
fn value(dtype: DType, byte: u8) -> i32 {
    if dtype == DType::I8 { i32::from(byte as i8) } else { i32::from(byte) }
}

fn entries(reals: &[f32], y: &QuantParams) -> Option<[u8; 256]> {
    let bytes: Vec<u8> = reals.iter().map(|&v| y.quantize(v) as u8).collect();
    bytes.try_into().ok()
}

impl Kernel for Table {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        Ok(vec![from_raw(self.dtype, x.shape(), look_up(&self.table, raw(x)?))?])
    }
}

/// Inputs whose parameters differ are brought to those of the output, then the operator moves the bytes.
struct Moved<O> {
    op: O,
    /// For each slot, the output for every byte; none: as it is.
    tables: Vec<Option<[u8; 256]>>,
    dtype: DType,
}

/// The kernel of an operator that moves elements of the inputs in `slots` to its only output.
pub fn moved<O: Op + Clone>(
    op: &O,
    unit: &Unit,
    slots: impl Iterator<Item = usize>,
) -> Option<Box<dyn Kernel>> {
    let &[Some(y)] = unit.outputs.as_slice() else { return None };
    let mut tables = vec![None; unit.inputs.len()];
    for slot in slots {
        let x = unit.whole(slot).filter(|x| x.dtype == y.dtype && is_byte(x.dtype))?;
        if x != y {
            let reals: Vec<f32> = (0..=255u8).map(|b| x.dequantize(value(x.dtype, b))).collect();
            *tables.get_mut(slot)? = Some(entries(&reals, &y)?);
        }
    }
    Some(Box::new(Moved { op: op.clone(), tables, dtype: y.dtype }))
}

impl<O: Op> Kernel for Moved<O> {
    fn run(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let mut inputs = inputs.to_vec();
        for (input, table) in inputs.iter_mut().zip(&self.tables) {
            if let (Some(array), Some(table)) = (input.as_mut(), table) {
                *array = from_raw(self.dtype, array.shape(), look_up(table, raw(array)?))?;
            }
        }
        self.op.float(&inputs)
    }
}

/// The kernel of an operator whose input and outputs share their parameters: the operator itself.
pub fn same<O: Op + Clone>(op: &O, unit: &Unit) -> Option<Box<dyn Kernel>> {
    let x = unit.whole(0).filter(|x| is_byte(x.dtype))?;
    let same = unit.outputs.iter().all(|y| y.as_ref() == Some(&x));
    same.then(|| Box::new(Moved { op: op.clone(), tables: Vec::new(), dtype: x.dtype }) as Box<dyn Kernel>)
}
