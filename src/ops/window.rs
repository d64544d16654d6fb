//! The attributes that convolution and pooling share: `kernel_shape`, `strides`, `dilations`, `pads`, `auto_pad` and
//! `ceil_mode`, and how they place windows over an input.

use super::Attrs;
use crate::error::Fault;
use crate::fail;
use crate::ir::Dim;
use crate::kernels::window::{Axis, Padding, reach};

/// `auto_pad`: who decides on the padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoPad {
    /// The attribute `pads`.
    NotSet,
    /// Padding for `input / stride` windows, rounded up, the odd position at the end.
    SameUpper,
    /// The same with the odd position at the beginning.
    SameLower,
    /// No padding.
    Valid,
}

/// The attributes of a sliding window as they stand in the model; lists that are absent have their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Taps along each spatial axis.
    pub kernel_shape: Option<Vec<usize>>,
    /// Distance between windows along each axis; 1 by default.
    pub strides: Option<Vec<usize>>,
    /// Distance between taps along each axis; 1 by default.
    pub dilations: Option<Vec<usize>>,
    /// Padding before each axis, then after each axis; 0 by default.
    pub pads: Option<Vec<usize>>,
    /// Whether padding follows from the shapes.
    pub auto_pad: AutoPad,
    /// Rounds the number of windows up instead of down (pooling only).
    pub ceil_mode: bool,
}

/// A list of extents that may be missing.
pub(super) fn extents(attrs: &mut Attrs, name: &str) -> Result<Option<Vec<usize>>, Fault> {
    let extent = |v: i64| {
        usize::try_from(v).map_err(|_| Fault::new(format!("attribute {name} has the negative element {v}")))
    };
    attrs.opt_ints(name)?.map(|list| list.into_iter().map(extent).collect()).transpose()
}

impl Window {
    /// Reads the attributes; those that the operator does not have are absent.
    pub fn read(attrs: &mut Attrs) -> Result<Self, Fault> {
        let auto_pad = match attrs.string("auto_pad", "NOTSET")?.as_str() {
            "NOTSET" | "" => AutoPad::NotSet,
            "SAME_UPPER" => AutoPad::SameUpper,
            "SAME_LOWER" => AutoPad::SameLower,
            "VALID" => AutoPad::Valid,
            other => fail!("unknown auto_pad {other}"),
        };
        Ok(Self {
            kernel_shape: extents(attrs, "kernel_shape")?,
            strides: extents(attrs, "strides")?,
            dilations: extents(attrs, "dilations")?,
            pads: extents(attrs, "pads")?,
            auto_pad,
            ceil_mode: attrs.flag("ceil_mode", false)?,
        })
    }

    /// Do all lists fit an input with this many spatial axes?
    pub fn check_rank(&self, axes: usize) -> Result<(), Fault> {
        let lists = [
            ("kernel_shape", &self.kernel_shape, axes),
            ("strides", &self.strides, axes),
            ("dilations", &self.dilations, axes),
            ("pads", &self.pads, 2 * axes),
        ];
        for (name, list, expected) in lists {
            if let Some(list) = list.as_ref().filter(|l| l.len() != expected) {
                fail!("{name} has {} elements for {axes} spatial axes", list.len());
            }
        }
        Ok(())
    }

    /// The stride along an axis.
    pub fn stride(&self, axis: usize) -> usize {
        element(&self.strides, axis, 1)
    }

    /// The dilation along an axis.
    pub fn dilation(&self, axis: usize) -> usize {
        element(&self.dilations, axis, 1)
    }

    /// Explicit padding before and after an axis, of `axes` in all.
    pub fn pad(&self, axis: usize, axes: usize) -> (usize, usize) {
        (element(&self.pads, axis, 0), element(&self.pads, axes + axis, 0))
    }

    fn padding(&self, axis: usize, axes: usize) -> Padding {
        match self.auto_pad {
            AutoPad::NotSet => {
                let (begin, end) = self.pad(axis, axes);
                Padding::Explicit(begin, end)
            }
            AutoPad::Valid => Padding::Explicit(0, 0),
            AutoPad::SameUpper => Padding::SameUpper,
            AutoPad::SameLower => Padding::SameLower,
        }
    }

    fn axis(&self, axis: usize, axes: usize, input: usize, kernel: usize) -> Result<Axis, Fault> {
        let (stride, dilation) = (self.stride(axis), self.dilation(axis));
        Axis::new(input, kernel, stride, dilation, self.padding(axis, axes), self.ceil_mode)
    }

    /// The windows of these extents over an input with these spatial extents.
    pub fn place(&self, input: &[usize], kernel: &[usize]) -> Result<Vec<Axis>, Fault> {
        self.check_rank(input.len())?;
        if kernel.len() != input.len() {
            fail!("a window of shape {kernel:?} over {} spatial axes", input.len());
        }
        let axes = input.len();
        input.iter().zip(kernel).enumerate().map(|(i, (&x, &k))| self.axis(i, axes, x, k)).collect()
    }

    /// The number of windows along each axis, as far as it is known. A symbol survives where padding makes up for
    /// what the window takes away.
    pub fn infer(&self, input: &[Dim], kernel: &[Dim]) -> Result<Vec<Dim>, Fault> {
        let axes = input.len();
        self.check_rank(axes)?;
        if kernel.len() != axes {
            fail!("a window of {} axes over {axes} spatial axes", kernel.len());
        }
        let one = |(i, (x, kernel)): (usize, (&Dim, &Dim))| {
            let Dim::Known(kernel) = *kernel else { return Ok(Dim::Unknown) };
            let reach = reach(kernel, self.stride(i), self.dilation(i))?;
            if let &Dim::Known(x) = x {
                return Ok(Dim::Known(self.axis(i, axes, x, kernel)?.output));
            }
            let kept = match self.padding(i, axes) {
                Padding::Explicit(begin, end) => begin.checked_add(end) == Some(reach - 1),
                Padding::SameUpper | Padding::SameLower => true,
            };
            Ok(if kept && self.stride(i) == 1 { x.clone() } else { Dim::Unknown })
        };
        input.iter().zip(kernel).enumerate().map(one).collect()
    }
}

fn element(list: &Option<Vec<usize>>, index: usize, default: usize) -> usize {
    list.as_ref().and_then(|l| l.get(index)).copied().unwrap_or(default)
}
