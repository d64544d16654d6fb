//! Normalizations: shift and scale by a mean and a deviation.
//!
//! All are `y = (x - mean) / sqrt(variance + epsilon) * scale + bias`. They differ in what the mean goes over: given
//! statistics of each channel (BatchNormalization), a channel of a sample (InstanceNormalization), a group of
//! channels of a sample (GroupNormalization), all dimensions from an axis on (LayerNormalization, and without
//! centering RMSNormalization), or any axes (MeanVarianceNormalization). The norms over an axis or over neighbouring
//! channels are in [`norm`](super::norm).

mod gradient;

use std::sync::Arc;

use super::operand::{Real, elements, in_reals, rounded};
use super::slots::{self, known, optional, required};
use super::{Attrs, Fact, Gradient, ONNX, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, DType, Dim, TensorType};
use crate::kernels::gemm::Number;
use crate::kernels::normalize::{affine, affine_channels, layer, moments};
use crate::kernels::reduce::sum_squares;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "BatchNormalization", since: 1, parse: BatchNormalization::parse },
    OpDef {
        domain: ONNX,
        name: "InstanceNormalization",
        since: 1,
        parse: |a| GroupNormalization::instance(a),
    },
    OpDef { domain: ONNX, name: "GroupNormalization", since: 18, parse: |a| GroupNormalization::group(a) },
    OpDef {
        domain: ONNX,
        name: "LayerNormalization",
        since: 17,
        parse: |a| LayerNormalization::parse(a, true),
    },
    OpDef {
        domain: ONNX,
        name: "RMSNormalization",
        since: 23,
        parse: |a| LayerNormalization::parse(a, false),
    },
    OpDef { domain: ONNX, name: "MeanVarianceNormalization", since: 9, parse: MeanVariance::parse },
];

/// BatchNormalization with given statistics. Inputs: x, scale, bias, mean, variance.
/// See <https://onnx.ai/onnx/operators/onnx__BatchNormalization.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchNormalization {
    /// Added to the variance.
    pub epsilon: f32,
}

impl BatchNormalization {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let version = attrs.version();
        let epsilon = attrs.float("epsilon", 1e-5)?;
        let momentum = attrs.float("momentum", 0.9)?;
        if version < 7 {
            attrs.opt_ints("consumed_inputs")?;
            attrs.opt_int("is_test")?; // the number of outputs says the same
        }
        if version < 9 {
            attrs.opt_int("spatial")?; // the size of the statistics says the same
        }
        let training = if version < 14 { attrs.outputs() > 1 } else { attrs.flag("training_mode", false)? };
        if training {
            return match version {
                14.. => Ok(Arc::new(BatchStatistics { epsilon, momentum })),
                _ => Err(Fault::unimplemented("BatchNormalization in training mode before opset 14")),
            };
        }
        Ok(Arc::new(Self { epsilon }))
    }

    fn run<T: Real>(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let sample: usize = x.shape().get(1..).unwrap_or(&[]).iter().product();
        let statistics = |slot| {
            let array = required(inputs, slot)?;
            // One per channel, or before opset 9 one per element of a sample.
            let whole = array.len() == sample && array.rank() > 1;
            if array.len() != x.shape().get(1).copied().unwrap_or(1) && !whole {
                fail!("input {slot} {:?} does not fit the channels of {:?}", array.shape(), x.shape());
            }
            Ok(elements(&T::read(array)?)?.to_vec())
        };
        let (scale, bias, mean, variance) = (statistics(1)?, statistics(2)?, statistics(3)?, statistics(4)?);
        if [&bias, &mean, &variance].iter().any(|v| v.len() != scale.len()) {
            fail!("scale, bias, mean and variance differ in size");
        }
        let epsilon = T::of(self.epsilon.into());
        let factor: Vec<T> = scale.iter().zip(&variance).map(|(&s, &v)| s / (v + epsilon).sqrt()).collect();
        let input = T::read(x)?;
        let mut y = elements(&input)?.to_vec();
        if !y.is_empty() {
            affine_channels(&mut y, sample / scale.len(), &mean, &factor, &bias);
        }
        Ok(vec![T::array(x.shape(), y)?])
    }
}

impl Op for BatchNormalization {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        in_reals!(required(inputs, 0)?.dtype(), T => self.run::<T>(inputs))
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// BatchNormalization in training mode: the statistics are those of the batch, and running means of them are further
/// outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchStatistics {
    /// Added to the variance.
    pub epsilon: f32,
    /// How much of a running mean stays.
    pub momentum: f32,
}

impl BatchStatistics {
    fn run<T: Real>(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let &[batch, channels, ref spatial @ ..] = x.shape() else { fail!("{:?} has no channels", x.shape()) };
        let (inner, count) = (spatial.iter().product::<usize>(), batch * spatial.iter().product::<usize>());
        let values = T::read(x)?;
        let values = elements(&values)?;
        let of = |channel: usize| {
            (0..batch).flat_map(move |b| &values[(b * channels + channel) * inner..][..inner])
        };
        let (mut means, mut variances) = (Vec::new(), Vec::new());
        for channel in 0..channels {
            let mean = of(channel).fold(T::ZERO, |a, &v| a + v) / T::of(count as f64);
            let squares = of(channel).fold(T::ZERO, |a, &v| a + (v - mean) * (v - mean));
            means.push(mean);
            variances.push(squares / T::of(count as f64));
        }
        let (keep, take) = (T::of(self.momentum.into()), T::of(1.0 - f64::from(self.momentum)));
        let running = |slot: usize, new: &[T]| -> Result<Array, Fault> {
            let old = T::read(required(inputs, slot)?)?;
            if old.len() != new.len() {
                fail!("{} statistics for {} channels", old.len(), new.len());
            }
            T::array(&[new.len()], old.iter().zip(new).map(|(&o, &n)| o * keep + n * take).collect())
        };
        let (mean, variance) = (running(3, &means)?, running(4, &variances)?);
        let statistics = [T::array(&[channels], means)?, T::array(&[channels], variances)?].map(Some);
        let given: Vec<_> = inputs.iter().take(3).cloned().chain(statistics).collect();
        let y = BatchNormalization { epsilon: self.epsilon }.run::<T>(&given)?;
        Ok(y.into_iter().take(1).chain([mean, variance]).collect())
    }
}

impl Op for BatchStatistics {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned(), known(inputs, 3).cloned(), known(inputs, 4).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        in_reals!(required(inputs, 0)?.dtype(), T => self.run::<T>(inputs))
    }
}

/// GroupNormalization, and InstanceNormalization, which has a group for each channel. Inputs: x, scale, bias.
/// See <https://onnx.ai/onnx/operators/onnx__GroupNormalization.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupNormalization {
    /// Added to the variance.
    pub epsilon: f32,
    /// Groups of channels; `None`: one for each channel.
    pub groups: Option<usize>,
    /// Scale and bias belong to groups (opset 18), not to channels.
    pub scale_per_group: bool,
}

impl GroupNormalization {
    fn instance(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        if attrs.version() < 6 {
            attrs.opt_ints("consumed_inputs")?;
        }
        Ok(Arc::new(Self { epsilon: attrs.float("epsilon", 1e-5)?, groups: None, scale_per_group: false }))
    }

    fn group(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let groups = attrs.int("num_groups", 0)?;
        let Some(groups) = usize::try_from(groups).ok().filter(|&n| n > 0) else {
            fail!("num_groups is {groups}");
        };
        let scale_per_group = attrs.version() < 21;
        if !scale_per_group {
            attrs.opt_int("stash_type")?; // never computed in less than single precision
        }
        Ok(Arc::new(Self { epsilon: attrs.float("epsilon", 1e-5)?, groups: Some(groups), scale_per_group }))
    }

    fn run<T: Real>(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let Some((&channels, spatial)) = x.shape().get(1..).and_then(<[usize]>::split_first) else {
            fail!("{:?} has no channels", x.shape());
        };
        let inner: usize = spatial.iter().product();
        let groups = self.groups.unwrap_or(channels);
        if x.is_empty() {
            return Ok(vec![x.clone()]);
        }
        if groups == 0 || !channels.is_multiple_of(groups) {
            fail!("{groups} groups do not divide {channels} channels");
        }
        let wanted = if self.scale_per_group { groups } else { channels };
        let (scale, bias) = (required(inputs, 1)?, required(inputs, 2)?);
        if scale.len() != wanted || bias.len() != wanted {
            fail!("scale {:?} or bias {:?} is not of size {wanted}", scale.shape(), bias.shape());
        }
        let (input, scale, bias) = (T::read(x)?, T::read(scale)?, T::read(bias)?);
        let (scale, bias) = (elements(&scale)?, elements(&bias)?);
        let members = channels / groups;
        let mut y = elements(&input)?.to_vec();
        for (index, group) in y.chunks_exact_mut(members * inner).enumerate() {
            let (mean, variance) = moments(group);
            let factor = T::ONE / (variance + T::of(self.epsilon.into())).sqrt();
            for (member, run) in group.chunks_exact_mut(inner).enumerate() {
                let g = index % groups;
                let at = if self.scale_per_group { g } else { g * members + member };
                affine(run, mean, factor * scale[at], bias[at]);
            }
        }
        Ok(vec![T::array(x.shape(), y)?])
    }
}

impl Op for GroupNormalization {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        in_reals!(required(inputs, 0)?.dtype(), T => self.run::<T>(inputs))
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// LayerNormalization, and RMSNormalization, which takes the mean to be zero and has neither bias nor further outputs.
/// Inputs: x, scale, bias. Outputs: y, mean, 1 / deviation.
/// See <https://onnx.ai/onnx/operators/onnx__LayerNormalization.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNormalization {
    /// The first of the axes that are normalized together.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: f32,
    /// Type of the statistics that are output.
    pub stash: DType,
    /// Is the mean subtracted?
    pub centered: bool,
}

impl LayerNormalization {
    fn parse(attrs: &mut Attrs, centered: bool) -> Result<Arc<dyn Op>, Fault> {
        let code = attrs.int("stash_type", 1)?;
        let stash = i32::try_from(code).ok().and_then(DType::from_onnx).filter(|t| t.is_float());
        Ok(Arc::new(Self {
            axis: attrs.int("axis", -1)?,
            epsilon: attrs.float("epsilon", 1e-5)?,
            stash: stash.ok_or_else(|| Fault::new(format!("stash_type {code} is no floating-point type")))?,
            centered,
        }))
    }

    /// y, mean and 1 / deviation.
    fn run<T: Real + Number>(&self, inputs: &[Option<Array>]) -> Result<[Array; 3], Fault> {
        let x = required(inputs, 0)?;
        let axis = slots::axis(self.axis, x.rank())?;
        let n: usize = x.shape()[axis..].iter().product();
        let scale = spread::<T>(required(inputs, 1)?, x.shape(), axis)?;
        let bias = optional(inputs, 2).map(|bias| spread::<T>(bias, x.shape(), axis)).transpose()?;
        let (input, epsilon) = (T::read(x)?, T::of(self.epsilon.into()));
        let mut y = elements(&input)?.to_vec();
        let (mut means, mut inverses) = (Vec::new(), Vec::new());
        let mut scales = scale.chunks_exact(n.max(1)).cycle();
        let mut biases = bias.iter().flat_map(|b| b.chunks_exact(n.max(1)).cycle());
        for run in y.chunks_exact_mut(n.max(1)) {
            let (scale, bias) = (scales.next().unwrap_or(&[]), biases.next());
            let (mean, inverse) = if self.centered {
                layer(run, scale, bias, epsilon)
            } else {
                let inverse = T::of(1.0) / (sum_squares(run, T::ZERO) / T::of(n as f64) + epsilon).sqrt();
                run.iter_mut().zip(scale).for_each(|(v, &s)| *v = *v * inverse * s);
                (T::ZERO, inverse)
            };
            means.push(mean);
            inverses.push(inverse);
        }
        let mut shape = x.shape().to_vec();
        shape[axis..].fill(1);
        Ok([T::array(x.shape(), y)?, T::array(&shape, means)?, T::array(&shape, inverses)?])
    }
}

/// A scale or bias as long as the axes from `axis` on, or as long as the whole array if it varies along others too.
fn spread<T: Real>(array: &Array, shape: &[usize], axis: usize) -> Result<Vec<T>, Fault> {
    let values = T::read(array)?;
    let spread = values.broadcast(&shape[axis..]).or_else(|| values.broadcast(shape));
    match spread {
        Some(view) => Ok(view.iter().copied().collect()),
        None => fail!("{:?} does not fit {shape:?} from axis {axis} on", array.shape()),
    }
}

impl Op for LayerNormalization {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(x) = known(inputs, 0) else { return Ok(vec![]) };
        let mut dims = x.dims.clone();
        if let Some(dims) = &mut dims {
            let axis = slots::axis(self.axis, dims.len())?;
            dims[axis..].fill(Dim::Known(1));
        }
        let statistics = Some(TensorType { dtype: self.stash, dims });
        Ok(match self.centered {
            true => vec![Some(x.clone()), statistics.clone(), statistics],
            false => vec![Some(x.clone())],
        })
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, stash) = (required(inputs, 0)?.dtype(), self.stash);
        let [y, mean, inverse] = match x {
            DType::F64 => self.run::<f64>(inputs)?,
            float if float.is_float() => self.run::<f32>(inputs)?,
            other => fail!("expected floating-point elements, found {other}"),
        };
        Ok(match self.centered {
            true => vec![rounded(y, x), rounded(mean, stash), rounded(inverse, stash)],
            false => vec![rounded(y, x)],
        })
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// MeanVarianceNormalization: `(x - mean) / (deviation + 1e-9)` with statistics over the axes.
/// See <https://onnx.ai/onnx/operators/onnx__MeanVarianceNormalization.html>.
#[derive(Debug, Clone, PartialEq)]
pub struct MeanVariance {
    /// The axes that share their statistics.
    pub axes: Vec<i64>,
}

impl MeanVariance {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        Ok(Arc::new(Self { axes: attrs.opt_ints("axes")?.unwrap_or(vec![0, 2, 3]) }))
    }

    fn run<T: Real>(&self, x: &Array) -> Result<Vec<Array>, Fault> {
        let shared = self.axes.iter().map(|&a| slots::axis(a, x.rank())).collect::<Result<Vec<_>, _>>()?;
        let (reduced, kept): (Vec<usize>, Vec<usize>) = (0..x.rank()).partition(|a| shared.contains(a));
        let order: Vec<usize> = kept.iter().chain(&reduced).copied().collect();
        let moved = x.transposed(&order)?;
        let input = T::read(&moved)?;
        let n: usize = reduced.iter().map(|&a| x.shape()[a]).product();
        let mut y = elements(&input)?.to_vec();
        for run in y.chunks_exact_mut(n.max(1)) {
            let (mean, variance) = moments(run);
            affine(run, mean, T::ONE / (variance.sqrt() + T::of(1e-9)), T::ZERO);
        }
        let mut back = vec![0; order.len()];
        order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
        Ok(vec![T::array(moved.shape(), y)?.transposed(&back)?])
    }
}

impl Op for MeanVariance {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        in_reals!(x.dtype(), T => self.run::<T>(x))
    }
}

#[cfg(test)]
mod tests;
