//! Pooling: [MaxPool](https://onnx.ai/onnx/operators/onnx__MaxPool.html),
//! [AveragePool](https://onnx.ai/onnx/operators/onnx__AveragePool.html),
//! [LpPool](https://onnx.ai/onnx/operators/onnx__LpPool.html) and their global forms, whose window is the whole plane.

mod gradient;

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::slots::{known, required};
use super::window::Window;
use super::{Attrs, Fact, ONNX, Op, OpDef, Operands, Rule, integer, Gradient};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{Array, DType, Dim, Element, TensorType, element_count};
use crate::kernels::gemm::Number;
use crate::kernels::pool::{counts, max_with_index, pool};
use crate::kernels::window::{Axis, volume};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "MaxPool", since: 1, parse: |attrs| Ok(Arc::new(MaxPool::read(attrs)?)) },
    OpDef {
        domain: ONNX,
        name: "AveragePool",
        since: 1,
        parse: |attrs| Ok(Arc::new(AveragePool::read(attrs)?)),
    },
    OpDef {
        domain: ONNX,
        name: "LpPool",
        since: 1,
        parse: |attrs| Ok(Arc::new(LpPool { p: exponent(attrs)?, window: Window::read(attrs)? })),
    },
    OpDef { domain: ONNX, name: "GlobalAveragePool", since: 1, parse: |_| Ok(Arc::new(Global::Average)) },
    OpDef { domain: ONNX, name: "GlobalMaxPool", since: 1, parse: |_| Ok(Arc::new(Global::Max)) },
    OpDef {
        domain: ONNX,
        name: "GlobalLpPool",
        since: 1,
        parse: |attrs| Ok(Arc::new(Global::Lp(exponent(attrs)?))),
    },
];

/// `p` of the p-norm: a real number in opset 1, an integer since.
fn exponent(attrs: &mut Attrs) -> Result<f64, Fault> {
    let p = if attrs.version() < 2 { attrs.float("p", 2.0)?.into() } else { attrs.int("p", 2)? as f64 };
    if p > 0.0 { Ok(p) } else { Err(format!("a norm with p = {p}").into()) }
}

/// Places the windows over an input of this shape; returns the axes and the output's shape.
fn place(window: &Window, x: &[usize]) -> Result<(Vec<Axis>, Vec<usize>), Fault> {
    let [n, c, spatial @ ..] = x else { fail!("an input of shape {x:?} has no spatial axes") };
    let kernel = window.kernel_shape.as_deref().ok_or("attribute kernel_shape is missing")?;
    let axes = window.place(spatial, kernel)?;
    let shape: Vec<usize> = [*n, *c].into_iter().chain(axes.iter().map(|a| a.output)).collect();
    element_count(&shape)?;
    element_count(kernel)?;
    Ok((axes, shape))
}

fn infer(window: &Window, inputs: &[Option<Fact>]) -> Result<Option<TensorType>, Fault> {
    let Some(x) = known(inputs, 0) else { return Ok(None) };
    let Some(dims) = &x.dims else { return Ok(Some(x.clone())) };
    let [n, c, spatial @ ..] = dims.as_slice() else { fail!("{x} has no spatial axes") };
    let kernel = window.kernel_shape.as_deref().ok_or("attribute kernel_shape is missing")?;
    let kernel: Vec<Dim> = kernel.iter().map(|&k| Dim::Known(k)).collect();
    let spatial = window.infer(spatial, &kernel)?;
    Ok(Some(TensorType::new(x.dtype, [n.clone(), c.clone()].into_iter().chain(spatial).collect())))
}

/// The greatest element of each window, and where it was.
#[derive(Debug, Clone)]
pub struct MaxPool {
    /// Where the windows lie.
    pub window: Window,
    /// Indices count with the first spatial axis fastest.
    pub column_major: bool,
    /// The second output is asked for.
    pub indices: bool,
}

impl MaxPool {
    fn read(attrs: &mut Attrs) -> Result<Self, Fault> {
        let column_major = attrs.flag("storage_order", false)?;
        Ok(Self { window: Window::read(attrs)?, column_major, indices: attrs.outputs() > 1 })
    }

    fn compute<T: Number + PartialOrd>(
        &self,
        x: &[T],
        shape: &[usize],
        lowest: T,
    ) -> Result<Pooled<T>, Fault> {
        let (axes, shape) = place(&self.window, shape)?;
        if self.indices {
            let (y, indices) = max_with_index(&axes, x, lowest, self.column_major);
            let indices = Array::new(&shape, indices)?;
            return Ok((y, shape, Some(indices)));
        }
        let mut y = vec![lowest; element_count(&shape)?];
        pool(&axes, x, &mut y, (lowest, lowest), |a, b| if b > a { b } else { a }, None)?;
        Ok((y, shape, None))
    }
}

/// Elements, shape and indices.
type Pooled<T> = (Vec<T>, Vec<usize>, Option<Array>);

fn outputs<T: Element>((y, shape, indices): Pooled<T>) -> Result<Vec<Array>, Fault>
where
    Array: From<ndarray::ArrayD<T>>,
{
    Ok([Array::new(&shape, y)?].into_iter().chain(indices).collect())
}

impl Op for MaxPool {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let y = infer(&self.window, inputs)?;
        let indices = y.clone().map(|y| TensorType { dtype: DType::I64, dims: y.dims });
        Ok([y].into_iter().chain(self.indices.then_some(indices)).collect())
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        match x {
            Array::I8(a) => outputs(self.compute(elements(a)?, a.shape(), i8::MIN)?),
            Array::U8(a) => outputs(self.compute(elements(a)?, a.shape(), u8::MIN)?),
            _ => in_reals!(x.dtype(), T => {
                outputs(self.compute(elements(&T::read(x)?)?, x.shape(), T::NEG_INFINITY)?)
            }),
        }
    }

    fn rule(&self) -> Rule {
        if self.indices { Rule::Float } else { Rule::SameScale }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// The mean of each window.
#[derive(Debug, Clone)]
pub struct AveragePool {
    /// Where the windows lie.
    pub window: Window,
    /// Padding counts as zeros instead of being left out.
    pub count_include_pad: bool,
}

impl AveragePool {
    fn read(attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Self { count_include_pad: attrs.flag("count_include_pad", false)?, window: Window::read(attrs)? })
    }
}

impl Op for AveragePool {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![infer(&self.window, inputs)?])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let (axes, shape) = place(&self.window, x.shape())?;
        let counts = counts(&axes, self.count_include_pad);
        self.means(x, &axes, &shape, &counts)
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        integer::pool::average(self, unit)
    }

    fn rule(&self) -> Rule {
        Rule::Arithmetic(Operands::One)
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl AveragePool {
    /// The means of real numbers as ONNX Runtime's kernel on bytes forms them: with `count_include_pad`, every window
    /// counts as whole.
    pub fn whole_means(&self, x: &Array) -> Result<Vec<Array>, Fault> {
        let (axes, shape) = place(&self.window, x.shape())?;
        let counts = match self.count_include_pad {
            true => vec![volume(&axes, |a| a.kernel); volume(&axes, |a| a.output)],
            false => counts(&axes, false),
        };
        self.means(x, &axes, &shape, &counts)
    }

    fn means(&self, x: &Array, axes: &[Axis], shape: &[usize], counts: &[usize]) -> Result<Vec<Array>, Fault> {
        in_reals!(x.dtype(), T => {
            let mut y = vec![T::default(); element_count(shape)?];
            let divisors: Vec<T> = counts.iter().map(|&n| n.max(1) as T).collect();
            let mean = |i: usize, sum: T| sum / divisors.get(i).copied().unwrap_or(1.0);
            pool(axes, elements(&T::read(x)?)?, &mut y, (0.0, 0.0), |a, b| a + b, Some(&mean))?;
            Ok(vec![T::array(shape, y)?])
        })
    }
}

/// The p-norm of each window.
#[derive(Debug, Clone)]
pub struct LpPool {
    /// Where the windows lie.
    pub window: Window,
    /// The exponent.
    pub p: f64,
}

impl Op for LpPool {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![infer(&self.window, inputs)?])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let (axes, shape) = place(&self.window, x.shape())?;
        in_reals!(x.dtype(), T => {
            let powers: Vec<T> = T::read(x)?.iter().map(|&v| power(v, self.p)).collect();
            let mut y = vec![T::default(); element_count(&shape)?];
            let norm = |_, sum: T| root(sum, self.p);
            pool(&axes, &powers, &mut y, (0.0, 0.0), |a, b| a + b, Some(&norm))?;
            Ok(vec![T::array(&shape, y)?])
        })
    }
}

/// |v|ᵖ.
fn power<T: Real>(v: T, p: f64) -> T {
    if p == 2.0 { v * v } else { v.abs().pow(T::of(p)) }
}

/// The p-th root.
fn root<T: Real>(sum: T, p: f64) -> T {
    if p == 2.0 { sum.sqrt() } else { sum.pow(T::of(1.0 / p)) }
}

/// One value for each plane.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Global {
    /// The mean.
    Average,
    /// The greatest element.
    Max,
    /// The p-norm.
    Lp(f64),
}

impl Global {
    fn reduce<T: Real>(self, plane: &[T]) -> T {
        match self {
            Self::Average => sum(plane) / T::of(plane.len() as f64),
            Self::Max => plane.iter().fold(-T::INFINITY, |a, &b| if b > a { b } else { a }),
            Self::Lp(p) => root(plane.iter().fold(T::default(), |s, &v| s + power(v, p)), p),
        }
    }
}

/// The greatest byte of each plane.
fn greatest(x: &Array, plane: usize, shape: &[usize]) -> Result<Vec<Array>, Fault> {
    fn max<T: Ord + Copy + Default>(x: &[T], plane: usize) -> Vec<T> {
        x.chunks_exact(plane).map(|plane| plane.iter().copied().max().unwrap_or_default()).collect()
    }
    Ok(vec![match x {
        Array::U8(_) => Array::new(shape, max(x.slice::<u8>()?, plane))?,
        _ => Array::new(shape, max(x.slice::<i8>()?, plane))?,
    }])
}

/// A sum in four interleaved parts, which is faster and more exact than one running sum. `f32` has the bits of ONNX
/// Runtime's (`pooling.cpp`), unless channels lie in blocks there.
fn sum<T: Real>(values: &[T]) -> T {
    let (fours, rest) = values.as_chunks::<4>();
    let mut parts = [T::default(); 4];
    for four in fours {
        parts.iter_mut().zip(four).for_each(|(p, &v)| *p += v);
    }
    let whole = (parts[0] + parts[2]) + (parts[1] + parts[3]);
    rest.iter().fold(whole, |sum, &v| sum + v)
}

impl Op for Global {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = match &x.dims {
            Some(dims) if dims.len() < 2 => fail!("{x} has no channels"),
            Some(dims) => Some(
                dims.iter().enumerate().map(|(i, d)| if i < 2 { d.clone() } else { Dim::Known(1) }).collect(),
            ),
            None => None,
        };
        Ok(vec![Some(TensorType { dtype: x.dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let [n, c, spatial @ ..] = x.shape() else {
            fail!("an input of shape {:?} has no channels", x.shape())
        };
        let plane: usize = spatial.iter().product();
        let shape: Vec<usize> = [*n, *c].into_iter().chain(spatial.iter().map(|_| 1)).collect();
        if plane == 0 {
            fail!("there is nothing to pool in {:?}", x.shape());
        }
        if let (Self::Max, Array::U8(_) | Array::I8(_)) = (self, x) {
            return greatest(x, plane, &shape);
        }
        in_reals!(x.dtype(), T => {
            let y = elements(&T::read(x)?)?.chunks_exact(plane).map(|plane| self.reduce::<T>(plane)).collect();
            Ok(vec![T::array(&shape, y)?])
        })
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        match self {
            Self::Average => integer::pool::global_average(unit),
            _ => None,
        }
    }

    fn rule(&self) -> Rule {
        match self {
            Self::Average => Rule::Arithmetic(Operands::One),
            Self::Max => Rule::SameScale,
            Self::Lp(_) => Rule::Float,
        }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn backend_cases() {
        crate::ops::backend_tests::run("pool");
    }
}
