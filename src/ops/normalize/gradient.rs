//! The gradients of normalizations. BatchNormalization has its statistics given: it is a scale and a shift.

use super::{BatchNormalization, GroupNormalization, LayerNormalization, spread};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Gradient, Run};
use crate::kernels::normalize::gradient::Normalized;
use crate::kernels::normalize::moments;
use crate::kernels::reduce::{sum, sum_squares};
use crate::ops::gradient::{Gradients, in_floats, unbroadcast};
use crate::ops::operand::Real;
use crate::ops::slots;

impl BatchNormalization {
    fn back<T: Real>(&self, run: &Run) -> Gradients {
        let (x, dy) = (run.input(0)?, run.upstream(0)?);
        let (scale, mean, variance) = (run.input(1)?, run.input(3)?, run.input(4)?);
        let epsilon = T::of(self.epsilon.into());
        let inverse: Vec<T> = variance.slice::<T>()?.iter().map(|&v| T::ONE / (v + epsilon).sqrt()).collect();
        let (scales, means) = (scale.slice::<T>()?, mean.slice::<T>()?);
        let channels = scales.len().max(1);
        let inner = x.shape().iter().skip(1).product::<usize>() / channels;
        let mut dx = dy.slice::<T>()?.to_vec();
        let (mut ds, mut db) = (vec![T::ZERO; scales.len()], vec![T::ZERO; scales.len()]);
        let runs = dx.chunks_exact_mut(inner.max(1)).zip(x.slice::<T>()?.chunks_exact(inner.max(1)));
        for (index, (dy, x)) in runs.enumerate() {
            let c = index % channels;
            let products: Vec<T> = dy.iter().zip(x).map(|(&d, &x)| d * (x - means[c]) * inverse[c]).collect();
            ds[c] += sum(&products);
            db[c] += sum(dy);
            dy.iter_mut().for_each(|d| *d = *d * scales[c] * inverse[c]);
        }
        let array = |v: Vec<T>| T::array(scale.shape(), v).map(Some);
        Ok(vec![Some(T::array(x.shape(), dx)?), array(ds)?, array(db)?])
    }
}

impl Gradient for BatchNormalization {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}

impl GroupNormalization {
    fn back<T: Real>(&self, run: &Run) -> Gradients {
        let (x, scale, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let [_, channels, spatial @ ..] = x.shape() else { fail!("{:?} has no channels", x.shape()) };
        let inner: usize = spatial.iter().product();
        let groups = self.groups.unwrap_or(*channels);
        let members = channels / groups.max(1);
        let scales = scale.slice::<T>()?;
        let (mut ds, mut db) = (vec![T::ZERO; scales.len()], vec![T::ZERO; scales.len()]);
        let mut dx = vec![T::ZERO; x.len()];
        let size = (members * inner).max(1);
        let runs = x.slice::<T>()?.chunks_exact(size).zip(dy.slice::<T>()?.chunks_exact(size));
        for (index, ((x, dy), dx)) in runs.zip(dx.chunks_exact_mut(size)).enumerate() {
            let group = index % groups;
            let at = |i: usize| if self.scale_per_group { group } else { group * members + i / inner };
            let (mean, variance) = moments(x);
            let inverse = T::ONE / (variance + T::of(self.epsilon.into())).sqrt();
            let run = Normalized { x, mean, inverse, centered: true };
            let g: Vec<T> = dy.iter().enumerate().map(|(i, &d)| d * scales[at(i)]).collect();
            for (i, (&d, v)) in dy.iter().zip(run.values()).enumerate() {
                ds[at(i)] += d * v;
                db[at(i)] += d;
            }
            run.input(&g, dx);
        }
        let array = |v: Vec<T>| T::array(scale.shape(), v).map(Some);
        Ok(vec![Some(T::array(x.shape(), dx)?), array(ds)?, array(db)?])
    }
}

impl Gradient for GroupNormalization {
    fn backward(&self, run: &Run) -> Gradients {
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}

impl LayerNormalization {
    fn back<T: Real>(&self, run: &Run) -> Gradients {
        let (x, scale, dy) = (run.input(0)?, run.input(1)?, run.upstream(0)?);
        let axis = slots::axis(self.axis, x.rank())?;
        let n: usize = x.shape()[axis..].iter().product();
        let scales = spread::<T>(scale, x.shape(), axis)?;
        let mut scales = scales.chunks_exact(n.max(1)).cycle();
        let (mut dx, mut by_scale) = (vec![T::ZERO; x.len()], Vec::with_capacity(x.len()));
        let runs = x.slice::<T>()?.chunks_exact(n.max(1)).zip(dy.slice::<T>()?.chunks_exact(n.max(1)));
        for ((x, dy), dx) in runs.zip(dx.chunks_exact_mut(n.max(1))) {
            let (mean, variance) = match self.centered {
                true => moments(x),
                false => (T::ZERO, sum_squares(x, T::ZERO) / T::of(n as f64)),
            };
            let inverse = T::ONE / (variance + T::of(self.epsilon.into())).sqrt();
            let run = Normalized { x, mean, inverse, centered: self.centered };
            let g: Vec<T> = dy.iter().zip(scales.next().unwrap_or(&[])).map(|(&d, &s)| d * s).collect();
            by_scale.extend(dy.iter().zip(run.values()).map(|(&d, v)| d * v));
            run.input(&g, dx);
        }
        let ds = match run.wants(1) {
            true => Some(unbroadcast((x.shape(), by_scale), scale.shape())?),
            false => None,
        };
        let db = match run.inputs.get(2) {
            Some(Some(bias)) if run.wants(2) => {
                Some(unbroadcast((x.shape(), dy.slice::<T>()?.to_vec()), bias.shape())?)
            }
            _ => None,
        };
        Ok(vec![Some(T::array(x.shape(), dx)?), ds, db])
    }
}

impl Gradient for LayerNormalization {
    fn backward(&self, run: &Run) -> Gradients {
        if run.upstream.iter().skip(1).any(Option::is_some) {
            return Err(Fault::unimplemented("gradients through the statistics of LayerNormalization"));
        }
        in_floats!(run.upstream(0)?, T => self.back::<T>(run))
    }
}
