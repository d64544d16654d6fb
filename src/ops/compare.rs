//! Comparisons, logic and selection.

use std::sync::Arc;

use super::arithmetic::{align, binary_type, legacy_axis};
use super::elementwise::{broadcast_dims, first_dtype, numbers};
use super::slots::required;
use super::gradient::{Gradients, in_floats, unbroadcast};
use super::{Attrs, ONNX, Op, OpDef, Operands, Rule, integer, Gradient, Run};
use crate::error::Fault;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{Array, DType, Element, Fact, TensorType, with_array};
use crate::kernels::broadcast::{select, zip};

const fn def(name: &'static str, since: i64, parse: fn(&mut Attrs) -> Result<Arc<dyn Op>, Fault>) -> OpDef {
    OpDef { domain: ONNX, name, since, parse }
}

/// The family.
pub const OPS: &[OpDef] = &[
    def("Equal", 1, |a| Compare::parse(a, Relation::Equal)),
    def("Greater", 1, |a| Compare::parse(a, Relation::Greater)),
    def("GreaterOrEqual", 12, |a| Compare::parse(a, Relation::GreaterOrEqual)),
    def("Less", 1, |a| Compare::parse(a, Relation::Less)),
    def("LessOrEqual", 12, |a| Compare::parse(a, Relation::LessOrEqual)),
    def("And", 1, |a| Compare::parse(a, Relation::And)),
    def("Or", 1, |a| Compare::parse(a, Relation::Or)),
    def("Xor", 1, |a| Compare::parse(a, Relation::Xor)),
    def("Where", 9, |_| Ok(Arc::new(Where))),
];

/// A truth value from two elements of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compare {
    /// What is asked.
    pub relation: Relation,
    /// Before opset 7: where the second operand starts.
    pub axis: Option<i64>,
}

/// What a [`Compare`] asks; the last three of truth values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Relation {
    Equal,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    And,
    Or,
    Xor,
}

type Operand<'a, T> = (&'a [T], &'a [usize]);

impl Compare {
    fn parse(attrs: &mut Attrs, relation: Relation) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { relation, axis: legacy_axis(attrs)? }))
    }

    fn numbers<T: PartialOrd + Clone>(&self, a: Operand<T>, b: Operand<T>) -> Result<(Vec<usize>, Vec<bool>), Fault> {
        match self.relation {
            Relation::Greater => zip(a, b, |x, y| x > y),
            Relation::GreaterOrEqual => zip(a, b, |x, y| x >= y),
            Relation::Less => zip(a, b, |x, y| x < y),
            Relation::LessOrEqual => zip(a, b, |x, y| x <= y),
            _ => Err("not defined for numbers".into()),
        }
    }

    fn truths(&self, a: Operand<bool>, b: Operand<bool>) -> Result<(Vec<usize>, Vec<bool>), Fault> {
        match self.relation {
            Relation::And => zip(a, b, |x, y| x & y),
            Relation::Or => zip(a, b, |x, y| x | y),
            Relation::Xor => zip(a, b, |x, y| x ^ y),
            _ => Err("not defined for truth values".into()),
        }
    }
}

fn equal<T: PartialEq + Clone>(a: Operand<T>, b: Operand<T>) -> Result<(Vec<usize>, Vec<bool>), Fault> {
    zip(a, b, |x, y| x == y)
}

impl Op for Compare {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        binary_type(inputs, self.axis, Some(DType::Bool))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let a = required(inputs, 0)?;
        let b = align(required(inputs, 1)?, a.rank(), self.axis)?;
        let (shape, values) = match a {
            _ if self.relation == Relation::Equal => {
                with_array!(a, x => equal((slice(x)?, a.shape()), (b.slice()?, b.shape())))?
            }
            Array::Bool(_) => self.truths((a.slice()?, a.shape()), (b.slice()?, b.shape()))?,
            a => numbers!(a, x => self.numbers((x, a.shape()), (b.slice()?, b.shape())))?,
        };
        Ok(vec![Array::new(&shape, values)?])
    }
}

fn slice<T>(array: &crate::ir::Nd<T>) -> Result<&[T], Fault> {
    array.as_slice().ok_or_else(|| "array is not contiguous".into())
}

/// The second input where the first holds, else the third.
#[derive(Debug, Clone)]
pub struct Where;

fn choose<T: Element>(mask: &Array, a: Operand<T>, b: &Array) -> Result<(Vec<usize>, Vec<T>), Fault> {
    select((mask.slice()?, mask.shape()), a, (b.slice()?, b.shape()))
}

impl Op for Where {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dtype = first_dtype(inputs.get(1..3).unwrap_or_default());
        let dims = broadcast_dims(inputs)?;
        Ok(vec![dtype.map(|dtype| TensorType { dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (mask, a, b) = (required(inputs, 0)?, required(inputs, 1)?, required(inputs, 2)?);
        let y = with_array!(a, x => {
            let (shape, values) = choose(mask, (slice(x)?, a.shape()), b)?;
            Array::new(&shape, values)
        });
        Ok(vec![y?])
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        integer::elementwise::moved(self, unit, 1..3)
    }

    fn rule(&self) -> Rule {
        Rule::Arithmetic(Operands::Branches)
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Where {
    fn backward(&self, run: &Run) -> Gradients {
        let (mask, dy) = (run.input(0)?, run.upstream(0)?);
        in_floats!(dy, T => {
            let (dys, zero) = ((dy.slice::<T>()?, dy.shape()), [0.0]);
            let mut gradients = vec![None, None, None];
            for slot in [1, 2] {
                let (taken, left) = if slot == 1 { (dys, (&zero[..], &[][..])) } else { ((&zero[..], &[][..]), dys) };
                let (shape, values) = select((mask.slice()?, mask.shape()), taken, left)?;
                if run.wants(slot) {
                    gradients[slot] = Some(unbroadcast((&shape, values), run.input(slot)?.shape())?);
                }
            }
            Ok(gradients)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("compare");
    }

    fn ask(relation: Relation, a: Array, b: Array) -> Result<Vec<bool>, Fault> {
        let y = Compare { relation, axis: None }.float(&[Some(a), Some(b)])?;
        Ok(y[0].slice::<bool>()?.to_vec())
    }

    #[test]
    fn nothing_equals_nan() {
        let x = || Array::vector(vec![1f32, f32::NAN]);
        assert_eq!(ask(Relation::Equal, x(), x()).unwrap(), [true, false]);
        assert_eq!(ask(Relation::LessOrEqual, x(), x()).unwrap(), [true, false]);
        assert_eq!(ask(Relation::Less, x(), Array::scalar(f32::INFINITY)).unwrap(), [true, false]);
    }

    #[test]
    fn types_must_fit() {
        let (truth, number) = (Array::scalar(true), Array::scalar(1i32));
        assert!(ask(Relation::And, number.clone(), number.clone()).is_err());
        assert!(ask(Relation::Less, truth.clone(), truth.clone()).is_err());
        assert!(ask(Relation::Equal, truth.clone(), number).is_err());
        assert_eq!(ask(Relation::Equal, truth.clone(), truth).unwrap(), [true]);
    }

    #[test]
    fn where_picks_strings_too() {
        let text = |s: &str| Array::scalar(s.to_string());
        let y =
            Where.float(&[Some(Array::vector(vec![true, false])), Some(text("a")), Some(text("b"))]).unwrap();
        assert_eq!(y, [Array::vector(vec!["a".to_string(), "b".to_string()])]);
    }
}
