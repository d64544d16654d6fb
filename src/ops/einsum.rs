//! [Einsum](https://onnx.ai/onnx/operators/onnx__Einsum.html): sums of products over named axes.

mod gradient;

use std::sync::Arc;

use super::operand::{elements, rounded};
use super::reduce::number::dispatch;
use super::slots::{known, required};
use super::{Attrs, Fact, Gradient, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, TensorType, element_count};
use crate::kernels::number::Number;
use crate::kernels::window::each_index;

/// The operators of this family.
pub const OPS: &[OpDef] = &[OpDef { domain: ONNX, name: "Einsum", since: 12, parse: Einsum::parse }];

/// The name of an axis: a letter, or one of those that an ellipsis stands for, counted from the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// A sum of products over named axes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Einsum {
    terms: Vec<String>,
    /// `None`: the letters that occur once, in order.
    output: Option<String>,
}

impl Einsum {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let equation: String = attrs.string("equation", "")?.split_whitespace().collect();
        let (terms, output) = match equation.split_once("->") {
            Some((terms, output)) => (terms, Some(output.to_string())),
            None => (equation.as_str(), None),
        };
        let terms: Vec<String> = terms.split(',').map(String::from).collect();
        for term in terms.iter().chain(&output) {
            if !term.replacen("...", "", 1).chars().all(|c| c.is_ascii_alphabetic()) {
                fail!("\"{term}\" is not a list of axes");
            }
        }
        Ok(Arc::new(Self { terms, output }))
    }

    /// The names of the axes of a term, given how many an ellipsis stands for.
    fn labels(term: &str, ellipsis: usize) -> Vec<Label> {
        let letters = |part: &str| part.chars().map(Label::Letter).collect::<Vec<_>>();
        match term.split_once("...") {
            None => letters(term),
            Some((before, after)) => {
                let middle = (0..ellipsis).rev().map(Label::Ellipsis).collect();
                [letters(before), middle, letters(after)].concat()
            }
        }
    }

    /// The names of the output's axes.
    fn output(&self, terms: &[Vec<Label>]) -> Vec<Label> {
        let all: Vec<Label> = terms.iter().flatten().copied().collect();
        let widest = all.iter().filter_map(|l| if let Label::Ellipsis(i) = l { Some(i + 1) } else { None }).max();
        if let Some(output) = &self.output {
            return Self::labels(output, widest.unwrap_or(0));
        }
        let mut names: Vec<Label> = all.clone();
        names.retain(|l| matches!(l, Label::Ellipsis(_)) || all.iter().filter(|m| *m == l).count() == 1);
        names.sort_by_key(|l| match l {
            Label::Ellipsis(i) => (0, usize::MAX - i),
            Label::Letter(c) => (1, *c as usize),
        });
        names.dedup();
        names
    }

    /// The loops over these inputs, and the inputs themselves.
    fn plan<'a>(&self, inputs: &'a [Option<Array>]) -> Result<(Plan, Vec<&'a Array>), Fault> {
        let arrays = (0..inputs.len()).map(|slot| required(inputs, slot)).collect::<Result<Vec<_>, _>>()?;
        let shapes: Vec<&[usize]> = arrays.iter().map(|a| a.shape()).collect();
        Ok((self.loops(&shapes)?, arrays))
    }

    /// The loops over inputs of these shapes.
    fn loops(&self, shapes: &[&[usize]]) -> Result<Plan, Fault> {
        if shapes.len() != self.terms.len() {
            fail!("{} inputs for {} terms", shapes.len(), self.terms.len());
        }
        let mut terms = Vec::new();
        for (term, shape) in self.terms.iter().zip(shapes) {
            let letters = term.chars().filter(|c| *c != '.').count();
            let ellipsis = shape.len().checked_sub(letters).filter(|&n| n == 0 || term.contains("..."));
            let Some(ellipsis) = ellipsis else { fail!("\"{term}\" does not name the axes of {shape:?}") };
            terms.push(Self::labels(term, ellipsis));
        }
        Plan::new(&terms, &self.output(&terms), shapes)
    }
}

/// Where each operand lies along the axes of the loops.
struct Plan {
    extents: Vec<usize>,
    /// How many of the axes are the output's.
    kept: usize,
    strides: Vec<Vec<usize>>,
}

impl Plan {
    fn new(terms: &[Vec<Label>], output: &[Label], shapes: &[&[usize]]) -> Result<Self, Fault> {
        let mut axes: Vec<(Label, usize)> = Vec::new();
        for (labels, shape) in terms.iter().zip(shapes) {
            for (&label, &extent) in labels.iter().zip(*shape) {
                match axes.iter_mut().find(|a| a.0 == label) {
                    None => axes.push((label, extent)),
                    Some(axis) if axis.1 == 1 => axis.1 = extent,
                    Some(axis) if extent == axis.1 || extent == 1 => {}
                    Some(axis) => fail!("an axis has the extents {} and {extent}", axis.1),
                }
            }
        }
        let mut loops = Vec::new();
        for label in output {
            let Some(axis) = axes.iter().find(|a| a.0 == *label) else { fail!("an output axis has no input") };
            loops.push(*axis);
        }
        loops.extend(axes.iter().filter(|a| !output.contains(&a.0)));
        let strides = terms.iter().zip(shapes).map(|(labels, shape)| {
            let mut strides = vec![0; loops.len()];
            let mut step = 1;
            for (label, &extent) in labels.iter().zip(*shape).rev() {
                if let Some(at) = loops.iter().position(|a| a.0 == *label).filter(|_| extent != 1) {
                    strides[at] += step; // an axis named twice is a diagonal
                }
                step *= extent;
            }
            strides
        });
        let strides = strides.collect();
        let extents: Vec<usize> = loops.into_iter().map(|a| a.1).collect();
        element_count(&extents)?;
        Ok(Self { extents, kept: output.len(), strides })
    }

    fn run<T: Number>(&self, operands: &[&[T]]) -> Vec<T> {
        let (outer, inner) = self.extents.split_at(self.kept);
        let mut y = Vec::with_capacity(outer.iter().product());
        let place = |strides: &[usize], index: &[usize]| strides.iter().zip(index).map(|(s, i)| s * i).sum::<usize>();
        each_index(outer, |index| {
            let starts: Vec<usize> = self.strides.iter().map(|s| place(s, index)).collect();
            let mut sum = T::default();
            each_index(inner, |index| {
                let factors = operands.iter().zip(&self.strides).zip(&starts);
                let product = factors.fold(T::ONE, |product, ((x, strides), start)| {
                    let at = start + place(&strides[self.kept..], index);
                    product.mul(x.get(at).copied().unwrap_or_default())
                });
                sum = sum.add(product);
            });
            y.push(sum);
        });
        y
    }
}

impl Op for Einsum {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(dtype) = known(inputs, 0).map(|x| x.dtype) else { return Ok(vec![None]) };
        let shapes: Option<Vec<Vec<usize>>> = (0..inputs.len()).map(|slot| known(inputs, slot)?.shape()).collect();
        let Some(shapes) = shapes else { return Ok(vec![Some(TensorType::unranked(dtype))]) };
        let plan = self.loops(&shapes.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        Ok(vec![Some(TensorType::known(dtype, &plan.extents[..plan.kept]))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (plan, arrays) = self.plan(inputs)?;
        let dtype = arrays.first().map_or(DType::F32, |a| a.dtype());
        let wide = arrays.iter().map(|a| super::reduce::number::widened(a)).collect::<Result<Vec<_>, _>>()?;
        let y: Result<Array, Fault> = dispatch!(wide.first().map_or(DType::F32, Array::dtype), T => {
            let operands = wide.iter().map(|a| a.typed::<T>().and_then(elements)).collect::<Result<Vec<&[T]>, Fault>>()?;
            Array::new(&plan.extents[..plan.kept], plan.run(&operands))
        });
        Ok(vec![rounded(y?, dtype)])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::string;
    use crate::ops::operand::run;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("einsum");
    }

    fn einsum(equation: &str, inputs: &[Array]) -> Result<Array, Fault> {
        let inputs: Vec<_> = inputs.iter().cloned().map(Some).collect();
        let attributes = [string("equation", equation)];
        let mut attrs = Attrs::new(&attributes, 12, inputs.len(), 1);
        (OPS[0].parse)(&mut attrs)?.float(&inputs).map(|mut y| y.remove(0))
    }

    fn numbers(shape: &[usize]) -> Array {
        Array::new(shape, (0..shape.iter().product::<usize>() as i64).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn products_traces_and_transposes() {
        let (a, b) = (numbers(&[2, 3]), numbers(&[3, 2]));
        let product = Array::new(&[2, 2], vec![10i64, 13, 28, 40]).unwrap();
        assert_eq!(einsum("ij,jk->ik", &[a.clone(), b.clone()]).unwrap(), product);
        assert_eq!(einsum("ij,jk", &[a.clone(), b]).unwrap(), product);
        assert_eq!(einsum("ba", std::slice::from_ref(&a)).unwrap(), a.transposed(&[1, 0]).unwrap());
        assert_eq!(einsum("...i->...", std::slice::from_ref(&a)).unwrap(), Array::vector(vec![3i64, 12]));
        assert_eq!(einsum("ii->", &[numbers(&[3, 3])]).unwrap(), Array::scalar(12i64));
        assert_eq!(einsum("ii->i", &[numbers(&[3, 3])]).unwrap(), Array::vector(vec![0i64, 4, 8]));
        assert!(einsum("ij,ij->k", &[a.clone(), a.clone()]).is_err());
        assert!(einsum("i", std::slice::from_ref(&a)).is_err());
        assert!(einsum("i1", &[a]).is_err());
        let matmul = run("MatMul", 13, &[], &[Some(numbers(&[2, 3])), Some(numbers(&[3, 2]))], 1).unwrap();
        assert_eq!(matmul[0], product);
    }
}
