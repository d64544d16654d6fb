//! [Conv](https://onnx.ai/onnx/operators/onnx__Conv.html) and
//! [ConvTranspose](https://onnx.ai/onnx/operators/onnx__ConvTranspose.html).
//!
//! `X` is `[N, C, D₁, …]`. `Conv` has `W` as `[M, C/group, k₁, …]`; `ConvTranspose` has `[C, M/group, k₁, …]`, and is
//! the adjoint of the convolution that maps its output's extents to its input's.

mod gradient;

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::ready::Ready;
use super::slots::{known, optional, required};
use super::window::{AutoPad, Window, extents};
use super::{Attrs, Fact, ONNX, Op, OpDef, Rule, Runtime, integer, Gradient};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{After, Array, Dim, Extent, Limits, TensorType, element_count};
use crate::kernels::conv::{Channels, Order, conv_finished, conv_transpose, gains, lay_out};
use crate::kernels::finish::Finish;
use crate::kernels::gemm::{Mat, Number};
use crate::kernels::product::Ending;
use crate::kernels::window::{Axis, reach, volume};

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Conv", since: 1, parse: |attrs| Ok(Arc::new(Conv::read(attrs)?)) },
    OpDef {
        domain: ONNX,
        name: "ConvTranspose",
        since: 1,
        parse: |attrs| Ok(Arc::new(ConvTranspose::read(attrs)?)),
    },
];

/// A sum of products over a sliding window.
#[derive(Debug, Clone)]
pub struct Conv {
    /// Where the windows lie.
    pub window: Window,
    /// Number of groups of channels.
    pub group: usize,
    /// How its sums are ordered.
    pub order: Order,
    ready: Option<Arc<Ready>>,
}

fn read_group(attrs: &mut Attrs) -> Result<usize, Fault> {
    let group = attrs.int("group", 1)?;
    usize::try_from(group).ok().filter(|&g| g > 0).ok_or_else(|| format!("{group} groups of channels").into())
}

impl Conv {
    /// Reads the attributes.
    pub fn read(attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Self { window: Window::read(attrs)?, group: read_group(attrs)?, order: Order::Channels, ready: None })
    }

    /// Checks the shapes of `X` and `W` against each other; returns the extents, the axes and the output's shape.
    pub fn place(&self, x: &[usize], w: &[usize]) -> Result<(Channels, Vec<Axis>, Vec<usize>), Fault> {
        let ([n, c, spatial @ ..], [m, per_group, kernel @ ..]) = (x, w) else {
            fail!("X has the shape {x:?} and W {w:?}");
        };
        if self.window.kernel_shape.as_ref().is_some_and(|k| k != kernel) {
            fail!("W has the kernel {kernel:?}, the attribute kernel_shape says otherwise");
        }
        if per_group.checked_mul(self.group) != Some(*c) || m % self.group != 0 {
            fail!("W {w:?} does not fit X {x:?} in {} groups", self.group);
        }
        let axes = self.window.place(spatial, kernel)?;
        let channels = Channels { batch: *n, groups: self.group, input: *per_group, output: m / self.group };
        let shape: Vec<usize> = [*n, *m].into_iter().chain(axes.iter().map(|a| a.output)).collect();
        element_count(&shape)?;
        Ok((channels, axes, shape))
    }

    /// The output's dimensions as far as known.
    pub fn infer_dims(&self, x: &TensorType, w: Option<&TensorType>) -> Result<Option<Vec<Dim>>, Fault> {
        let Some((n, c, spatial)) = split_dims(x)? else { return Ok(None) };
        let w = w.map(split_dims).transpose()?.flatten();
        if let Some((Dim::Known(m), Dim::Known(per_group), _)) = w {
            if let Some(c) = c.known().filter(|&c| per_group.checked_mul(self.group) != Some(c)) {
                fail!("W expects {per_group} input channels in each of {} groups, X has {c}", self.group);
            }
            if m % self.group != 0 {
                fail!("{m} output channels cannot be divided into {} groups", self.group);
            }
        }
        let kernel = kernel_dims(&self.window, w.map(|w| w.2), spatial.len())?;
        let m = w.map_or(Dim::Unknown, |w| w.0.clone());
        Ok(Some([n.clone(), m].into_iter().chain(self.window.infer(spatial, &kernel)?).collect()))
    }
}

/// Convolution of elements of any number type: elements and shapes in, elements and shape out.
pub trait Convolution {
    /// Checks the shapes of `X`, `W` and the bias, and computes the output.
    fn compute<T: Number>(
        &self,
        x: (&[T], &[usize]),
        w: (&[T], &[usize]),
        bias: Option<&[T]>,
    ) -> Result<(Vec<T>, Vec<usize>), Fault>;
}

fn apply(op: &impl Convolution, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
    let (x, w) = (required(inputs, 0)?, required(inputs, 1)?);
    in_reals!(x.dtype(), T => {
        let (xs, ws) = (T::read(x)?, T::read(w)?);
        let bias = optional(inputs, 2).map(T::read).transpose()?;
        let bias = bias.as_ref().map(elements).transpose()?;
        let (y, shape) = op.compute((elements(&xs)?, x.shape()), (elements(&ws)?, w.shape()), bias)?;
        Ok(vec![T::array(&shape, y)?])
    })
}

fn check_bias<T>(bias: Option<&[T]>, channels: Option<&usize>) -> Result<(), Fault> {
    match bias {
        Some(b) if channels != Some(&b.len()) => {
            fail!("the bias has {} elements, one is needed for each output channel", b.len())
        }
        _ => Ok(()),
    }
}

/// Batch (or output channels), channels and spatial dimensions.
type Split<'a> = (&'a Dim, &'a Dim, &'a [Dim]);

/// The dimensions of an image-like tensor; `None` if not even the rank is known.
fn split_dims(ty: &TensorType) -> Result<Option<Split<'_>>, Fault> {
    match ty.dims.as_deref() {
        None => Ok(None),
        Some([n, c, spatial @ ..]) if !spatial.is_empty() => Ok(Some((n, c, spatial))),
        Some(_) => Err(format!("{ty} has no spatial axes").into()),
    }
}

/// The kernel's extents: from the attribute, else from the weight.
fn kernel_dims(window: &Window, weight: Option<&[Dim]>, axes: usize) -> Result<Vec<Dim>, Fault> {
    let attribute =
        window.kernel_shape.as_ref().map(|k| k.iter().map(|&k| Dim::Known(k)).collect::<Vec<_>>());
    if let (Some(a), Some(w)) = (&attribute, weight) {
        let differ = |(a, w): (&Dim, &Dim)| w.known().is_some_and(|w| a.known() != Some(w));
        if a.len() != w.len() || a.iter().zip(w).any(differ) {
            fail!("W has another kernel than the attribute kernel_shape");
        }
    }
    Ok(attribute.or_else(|| weight.map(<[Dim]>::to_vec)).unwrap_or_else(|| vec![Dim::Unknown; axes]))
}

impl Convolution for Conv {
    fn compute<T: Number>(
        &self,
        (x, x_shape): (&[T], &[usize]),
        (w, w_shape): (&[T], &[usize]),
        bias: Option<&[T]>,
    ) -> Result<(Vec<T>, Vec<usize>), Fault> {
        let (channels, axes, shape) = self.place(x_shape, w_shape)?;
        check_bias(bias, w_shape.first())?;
        let end = Ending { bias, added: None, finish: &mut Finish::new(Limits::NONE) };
        Ok((conv_finished(channels, &axes, self.order, x, (w, None), end)?, shape))
    }
}

impl Op for Conv {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = self.infer_dims(x, known(inputs, 1))?;
        Ok(vec![Some(TensorType { dtype: x.dtype, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        apply(self, inputs)
    }

    fn in_runtime(&self, runtime: &Runtime) -> Option<Arc<dyn Op>> {
        let w = runtime.ahead(1).filter(|_| runtime.optimized && !runtime.waits_for(2));
        let blocks = w.is_some_and(|w| Order::has_blocks(w.shape(), self.group));
        let order = if blocks { Order::Blocks } else { Order::Fours };
        Some(Arc::new(Self { order, ..self.clone() }))
    }

    fn with_constants(&self, constants: &[Option<&Array>]) -> Option<Arc<dyn Op>> {
        Some(Arc::new(Self { ready: Some(Ready::of(*constants.get(1)?, 3)?), ..self.clone() }))
    }

    fn finishes(&self) -> bool {
        true
    }

    fn finished(&self, inputs: &[Option<Array>], after: After) -> Option<Result<(Array, Extent), Fault>> {
        let real = |slot| optional(inputs, slot).map(|a| Some((a.get::<f32>()?.as_slice()?, a.shape())));
        let (x, w, bias) = (real(0)??, real(1)??, real(2));
        let bias = if bias.is_some() { Some(bias??.0) } else { None };
        let (channels, axes, shape) = match self.place(x.1, w.1) {
            Ok(found) => found,
            Err(fault) => return Some(Err(fault)),
        };
        let added = match after.added {
            Some(array) if array.shape() == shape => {
                Some(Mat::rows(array.get::<f32>()?.as_slice()?, volume(&axes, |a| a.output)))
            }
            Some(_) => return None,
            None => None,
        };
        let compute = || {
            check_bias(bias, w.1.first())?;
            let mut finish = Finish::new(after.limits);
            let end = Ending { bias, added, finish: &mut finish };
            let ready = self.ready.as_ref().filter(|_| gains(channels, &axes, self.order));
            let panels = || lay_out(channels, &axes, self.order, w.0);
            let panels = ready.and_then(|ready| ready.panels(w.0, panels));
            let y = conv_finished(channels, &axes, self.order, x.0, (w.0, panels), end)?;
            Ok((Array::new(&shape, y)?, finish.extent()))
        };
        Some(compute())
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        integer::conv::prepare(self, unit)
    }

    fn rule(&self) -> Rule {
        Rule::Contraction { weight: 1, channel_axis: Some(0), bias: Some(2) }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// The transpose of a convolution.
#[derive(Debug, Clone)]
pub struct ConvTranspose {
    /// Where the windows lie; `pads` crop the output.
    pub window: Window,
    /// Number of groups of channels.
    pub group: usize,
    /// Positions added at the end of each axis of the output.
    pub output_padding: Option<Vec<usize>>,
    /// Extents of the output, from which the padding follows.
    pub output_shape: Option<Vec<usize>>,
}

impl ConvTranspose {
    fn read(attrs: &mut Attrs) -> Result<Self, Fault> {
        Ok(Self {
            window: Window::read(attrs)?,
            group: read_group(attrs)?,
            output_padding: extents(attrs, "output_padding")?,
            output_shape: extents(attrs, "output_shape")?,
        })
    }

    /// The axis of the convolution whose transpose this is: its output has `extent` windows.
    fn axis(&self, i: usize, axes: usize, extent: usize, kernel: usize) -> Result<Axis, Fault> {
        let (stride, dilation) = (self.window.stride(i), self.window.dilation(i));
        let reach = reach(kernel, stride, dilation)?;
        let added = self.output_padding.as_ref().and_then(|p| p.get(i)).copied().unwrap_or(0);
        let span = extent.saturating_sub(1).checked_mul(stride).and_then(|s| s.checked_add(reach));
        let full = span.and_then(|s| s.checked_add(added)).filter(|&f| f <= 1 << 31);
        let full = full.ok_or("the output is too large")?;
        let asked = match (&self.output_shape, self.window.auto_pad) {
            (Some(shape), _) => shape.len().checked_sub(axes).and_then(|skip| shape.get(skip + i)).copied(),
            (None, AutoPad::SameUpper | AutoPad::SameLower) => extent.checked_mul(stride),
            _ => None,
        };
        let (input, begin, end) = match asked {
            Some(asked) => {
                let total = full.saturating_sub(asked);
                let half = total / 2;
                let upper = self.window.auto_pad == AutoPad::SameUpper;
                (asked, if upper { half } else { total - half }, if upper { total - half } else { half })
            }
            None => {
                let (begin, end) =
                    if self.window.auto_pad == AutoPad::Valid { (0, 0) } else { self.window.pad(i, axes) };
                let cropped = begin.checked_add(end).and_then(|pad| full.checked_sub(pad));
                (
                    cropped.ok_or_else(|| format!("pads crop more than the {full} positions there are"))?,
                    begin,
                    end,
                )
            }
        };
        Ok(Axis { input, output: extent, kernel, stride, dilation, begin, end })
    }

    fn check_lists(&self, axes: usize) -> Result<(), Fault> {
        self.window.check_rank(axes)?;
        let fits = |list: &Option<Vec<usize>>, more: usize| {
            list.as_ref().is_none_or(|l| l.len() == axes || l.len() == axes + more)
        };
        if !fits(&self.output_padding, 0) || !fits(&self.output_shape, 2) {
            fail!("output_padding or output_shape does not have {axes} elements");
        }
        Ok(())
    }
}

impl ConvTranspose {
    /// Checks the shapes of `X` and `W` against each other; returns the extents, the axes and the output's shape.
    fn place(
        &self,
        x_shape: &[usize],
        w_shape: &[usize],
    ) -> Result<(Channels, Vec<Axis>, Vec<usize>), Fault> {
        let ([n, c, spatial @ ..], [rows, per_group, kernel @ ..]) = (x_shape, w_shape) else {
            fail!("X has the shape {x_shape:?} and W {w_shape:?}");
        };
        let axes = spatial.len();
        self.check_lists(axes)?;
        if c != rows || c % self.group != 0 || kernel.len() != axes {
            fail!("W {w_shape:?} does not fit X {x_shape:?} in {} groups", self.group);
        }
        if self.window.kernel_shape.as_ref().is_some_and(|k| k != kernel) {
            fail!("W has the kernel {kernel:?}, the attribute kernel_shape says otherwise");
        }
        let m = per_group.checked_mul(self.group).ok_or("too many output channels")?;
        let placed =
            (0..axes).map(|i| self.axis(i, axes, spatial[i], kernel[i])).collect::<Result<Vec<_>, _>>()?;
        let shape: Vec<usize> = [*n, m].into_iter().chain(placed.iter().map(|a| a.input)).collect();
        element_count(&shape)?;
        let channels = Channels { batch: *n, groups: self.group, input: c / self.group, output: *per_group };
        Ok((channels, placed, shape))
    }
}

impl Convolution for ConvTranspose {
    fn compute<T: Number>(
        &self,
        (x, x_shape): (&[T], &[usize]),
        (w, w_shape): (&[T], &[usize]),
        bias: Option<&[T]>,
    ) -> Result<(Vec<T>, Vec<usize>), Fault> {
        let (channels, placed, shape) = self.place(x_shape, w_shape)?;
        check_bias(bias, shape.get(1))?;
        let mut y = vec![T::default(); element_count(&shape)?];
        conv_transpose(channels, &placed, x, w, bias, &mut y);
        Ok((y, shape))
    }
}

impl Op for ConvTranspose {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let unranked = || Ok(vec![Some(TensorType::unranked(x.dtype))]);
        let Some((n, _, spatial)) = split_dims(x)? else { return unranked() };
        let w = known(inputs, 1).map(split_dims).transpose()?.flatten();
        let axes = spatial.len();
        self.check_lists(axes)?;
        let kernel = kernel_dims(&self.window, w.map(|w| w.2), axes)?;
        let m = match w.and_then(|w| w.1.known()) {
            Some(per_group) => {
                Dim::Known(per_group.checked_mul(self.group).ok_or("too many output channels")?)
            }
            None => Dim::Unknown,
        };
        let one = |(i, (x, k)): (usize, (&Dim, &Dim))| match (x, k) {
            (&Dim::Known(x), &Dim::Known(k)) => Ok(Dim::Known(self.axis(i, axes, x, k)?.input)),
            _ => Ok(Dim::Unknown),
        };
        let spatial: Result<Vec<Dim>, Fault> = spatial.iter().zip(&kernel).enumerate().map(one).collect();
        Ok(vec![Some(TensorType::new(x.dtype, [n.clone(), m].into_iter().chain(spatial?).collect()))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        apply(self, inputs)
    }

    fn rule(&self) -> Rule {
        // Output channels lie along axis 1 and within groups, where few runtimes accept a scale for each.
        Rule::Contraction {
            weight: 1,
            channel_axis: if self.group == 1 { Some(1) } else { None },
            bias: Some(2),
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
        crate::ops::backend_tests::run("conv");
    }
}
