//! Elements put elsewhere: CenterCropPad, Col2Im and MaxUnpool, and BitCast, which reads their bits anew.

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::slots::{self, constant_ints, extents, known, optional, required};
use super::window::{Window, extents as read_extents};
use super::{Attrs, Fact, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Tensor, TensorType, element_count, with_array};
use crate::kernels::strided::{View, copy};
use crate::kernels::window::each_index;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "CenterCropPad", since: 18, parse: CenterCropPad::parse },
    OpDef { domain: ONNX, name: "Col2Im", since: 18, parse: Col2Im::parse },
    OpDef { domain: ONNX, name: "MaxUnpool", since: 9, parse: MaxUnpool::parse },
    OpDef { domain: ONNX, name: "BitCast", since: 26, parse: BitCast::parse },
];

/// [CenterCropPad](https://onnx.ai/onnx/operators/onnx__CenterCropPad.html): the middle of the input, or the input in the
/// middle of zeros; of an odd number more is cut off or added at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CenterCropPad {
    /// The axes that the second input speaks of; all by default.
    pub axes: Option<Vec<i64>>,
}

impl CenterCropPad {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { axes: attrs.opt_ints("axes")? }))
    }
}

impl Op for CenterCropPad {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).map(|x| TensorType::unranked(x.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let target = extents(&required(inputs, 1)?.to_i64()?)?;
        let axes = match &self.axes {
            Some(axes) => slots::axes(axes, x.rank())?,
            None => (0..x.rank()).collect(),
        };
        if target.len() != axes.len() {
            fail!("{} extents for {} axes", target.len(), axes.len());
        }
        let mut shape = x.shape().to_vec();
        axes.iter().zip(&target).for_each(|(&axis, &extent)| shape[axis] = extent);
        let count = element_count(&shape)?;
        let (mut from, mut to) = (View::new(x.shape())?, View::new(&shape)?);
        for (&axis, &extent) in axes.iter().zip(&target) {
            let old = x.shape()[axis];
            let shared = old.min(extent);
            from = from.stepped(axis, (old - shared) / 2, 1, shared)?;
            to = to.stepped(axis, (extent - shared) / 2, 1, shared)?;
        }
        Ok(vec![with_array!(x, a => {
            let mut y = vec![Default::default(); count];
            copy(&mut y, &to, slots::like(a, x)?, &from)?;
            Array::new(&shape, y)?
        })])
    }
}

/// [Col2Im](https://onnx.ai/onnx/operators/onnx__Col2Im.html): an image from its overlapping blocks, whose elements are
/// added up.
#[derive(Debug, Clone, PartialEq)]
pub struct Col2Im {
    window: Window,
}

impl Col2Im {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { window: Window::read(attrs)? }))
    }

    fn run<T: Real>(&self, x: &Array, image: &[usize], block: &[usize]) -> Result<Vec<Array>, Fault> {
        let axes = self.window.place(image, block)?;
        let windows: Vec<usize> = axes.iter().map(|a| a.output).collect();
        let (taps, places) = (element_count(block)?, element_count(&windows)?);
        let &[batch, rows, columns] = x.shape() else { fail!("{:?} is not a batch of blocks", x.shape()) };
        if taps == 0 || rows % taps != 0 || columns != places {
            fail!("{:?} does not hold blocks {block:?} of an image {image:?}", x.shape());
        }
        let channels = rows / taps;
        let shape: Vec<usize> = [batch, channels].iter().chain(image).copied().collect();
        let size: usize = image.iter().product();
        let mut y = vec![T::ZERO; element_count(&shape)?];
        let values = T::read(x)?;
        let values = elements(&values)?;
        // For each tap and window its place in the image, the same for all channels.
        let mut targets = Vec::with_capacity(taps * places);
        each_index(block, |tap| {
            each_index(&windows, |window| {
                let mut along = axes.iter().zip(tap).zip(window).zip(image);
                targets.push(along.try_fold(0, |at, (((axis, &t), &w), &extent)| {
                    Some(at * extent + axis.source(w, t)?)
                }));
            });
        });
        for plane in 0..batch * channels {
            let source = &values[plane * taps * places..][..taps * places];
            for (target, &value) in targets.iter().zip(source) {
                if let Some(at) = target {
                    y[plane * size + at] += value;
                }
            }
        }
        Ok(vec![T::array(&shape, y)?])
    }
}

impl Op for Col2Im {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).map(|x| TensorType::unranked(x.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let image = extents(&required(inputs, 1)?.to_i64()?)?;
        let block = extents(&required(inputs, 2)?.to_i64()?)?;
        in_reals!(x.dtype(), T => self.run::<T>(x, &image, &block))
    }
}

/// [MaxUnpool](https://onnx.ai/onnx/operators/onnx__MaxUnpool.html): each maximum back where it was found, zeros elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaxUnpool {
    kernel: Vec<usize>,
    strides: Option<Vec<usize>>,
    pads: Option<Vec<usize>>,
}

impl MaxUnpool {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let kernel = read_extents(attrs, "kernel_shape")?.ok_or("attribute kernel_shape is missing")?;
        Ok(Arc::new(Self {
            kernel,
            strides: read_extents(attrs, "strides")?,
            pads: read_extents(attrs, "pads")?,
        }))
    }

    /// The shape that was pooled, as far as the pooled one tells.
    fn pooled(&self, shape: &[usize]) -> Result<Vec<usize>, Fault> {
        let axes = self.kernel.len();
        let Some(spatial) = shape.get(2..).filter(|s| s.len() == axes) else {
            fail!("{shape:?} has not the {axes} axes of the kernel");
        };
        let at = |list: &Option<Vec<usize>>, i: usize, default| {
            list.as_ref().map_or(Some(default), |l| l.get(i).copied()).ok_or("strides or pads are too short")
        };
        let mut out = shape[..2].to_vec();
        for (i, (&extent, &kernel)) in spatial.iter().zip(&self.kernel).enumerate() {
            let padding = at(&self.pads, i, 0)? + at(&self.pads, axes + i, 0)?;
            let full = extent.saturating_sub(1).saturating_mul(at(&self.strides, i, 1)?).saturating_add(kernel);
            out.push(full.checked_sub(padding).ok_or("pads cut everything off")?);
        }
        Ok(out)
    }
}

impl Op for MaxUnpool {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![None]) };
        let asked = constant_ints(inputs, 2)?.map(|shape| extents(&shape)).transpose()?;
        let follows = || x.shape().filter(|_| inputs.len() < 3).and_then(|shape| self.pooled(&shape).ok());
        let shape = asked.or_else(follows).map(|shape| TensorType::known(x.dtype, &shape));
        Ok(vec![Some(shape.unwrap_or_else(|| TensorType::unranked(x.dtype)))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, indices) = (required(inputs, 0)?, required(inputs, 1)?.to_i64()?);
        let pooled = self.pooled(x.shape())?;
        let asked = optional(inputs, 2).map(|s| extents(&s.to_i64()?)).transpose()?;
        let shape = asked.clone().unwrap_or_else(|| pooled.clone());
        if indices.len() != x.len() || shape.len() != pooled.len() {
            fail!("{} indices for {:?}, output {shape:?}", indices.len(), x.shape());
        }
        // Indices count in the shape that follows from the kernel, even where the output is larger.
        let (count, total) = (element_count(&pooled)?, element_count(&shape)?);
        let place = |index: i64| -> Result<usize, Fault> {
            let mut rest = usize::try_from(index).ok().filter(|&i| i < count).ok_or("an index leaves the output")?;
            let (mut at, mut step) = (0, 1);
            for (&from, &to) in pooled.iter().zip(&shape).rev() {
                if rest % from >= to {
                    fail!("an index leaves the output {shape:?}");
                }
                at += rest % from * step;
                rest /= from;
                step *= to;
            }
            Ok(at)
        };
        let places = indices.iter().map(|&i| place(i)).collect::<Result<Vec<_>, _>>()?;
        Ok(vec![with_array!(x, a => {
            let mut y = slots::like(a, &Array::zeros(x.dtype(), &[total])?)?.to_vec();
            for (&at, value) in places.iter().zip(slots::like(a, x)?) {
                y[at].clone_from(value);
            }
            Array::new(&shape, y)?
        })])
    }
}

/// BitCast: the same bits, read as another type of the same size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BitCast {
    /// The type of the output.
    pub to: DType,
}

impl BitCast {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let code = attrs.opt_int("to")?.ok_or("attribute to is missing")?;
        match i32::try_from(code).ok().and_then(DType::from_onnx) {
            Some(to) if to != DType::Str => Ok(Arc::new(Self { to })),
            _ => fail!("to is {code}"),
        }
    }
}

impl Op for BitCast {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = known(inputs, 0).and_then(|x| x.dims.clone());
        Ok(vec![Some(TensorType { dtype: self.to, dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        if x.dtype().bits() != self.to.bits() || x.dtype() == DType::Str {
            fail!("{} and {} differ in size", x.dtype(), self.to);
        }
        let mut proto = Tensor::from_array(x).proto().clone();
        proto.data_type = Some(self.to.to_onnx());
        Ok(vec![Tensor::from_proto(proto, None)?.array()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::attribute::ints;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("place");
    }

    #[test]
    fn middles() {
        let x = Array::vector((0..5).collect::<Vec<i64>>());
        let to = |n: i64| {
            let inputs = [Some(x.clone()), Some(Array::vector(vec![n]))];
            CenterCropPad { axes: None }.float(&inputs).unwrap()[0].slice::<i64>().unwrap().to_vec()
        };
        assert_eq!(to(2), [1, 2]);
        assert_eq!(to(3), [1, 2, 3]);
        assert_eq!(to(8), [0, 0, 1, 2, 3, 4, 0, 0]);
    }

    /// Overlapping blocks of ones count how many blocks cover each pixel.
    #[test]
    fn blocks_add_up() {
        let op = (OPS[1].parse)(&mut Attrs::new(&[ints("strides", [1])], 18, 3, 1)).unwrap();
        let x = Array::new(&[1, 3, 4], vec![1f32; 12]).unwrap();
        let inputs = [x, Array::vector(vec![6i64]), Array::vector(vec![3i64])].map(Some);
        let y = op.float(&inputs).unwrap();
        assert_eq!(y[0].slice::<f32>().unwrap(), [1.0, 2.0, 3.0, 3.0, 2.0, 1.0]);
    }

    #[test]
    fn bits_stay() {
        let x = Array::vector(vec![1.0f32, -0.0]);
        let y = BitCast { to: DType::U32 }.float(&[Some(x.clone())]).unwrap().remove(0);
        assert_eq!(y, Array::vector(vec![0x3f80_0000u32, 0x8000_0000]));
        assert!(BitCast { to: DType::F64 }.float(&[Some(x)]).is_err());
    }
}
