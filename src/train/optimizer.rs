//! How parameters follow their gradients: SGD with momentum or Adam, a cosine schedule, a limit on the norm.
//!
//! Adam moves a weight by a share of the root mean square of its tensor (as Shazeer and Stern 2018, section 8,
//! <https://arxiv.org/abs/1804.04235>): weights that BatchNormalization was folded into differ in size by orders, and one
//! rate suits them all only so. Scales move in the logarithmic domain, so they stay positive and a step is a share of the scale; zero points move in
//! steps of their grid. Both always use Adam and have a learning rate of their own; nothing decays.

use std::str::FromStr;

use super::student::{Parameter, Role};
use crate::error::Fault;
use crate::ir::Array;

/// How weights follow their gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Stochastic gradient descent with momentum 0.9.
    Sgd,
    /// Adam (Kingma and Ba 2015, <https://arxiv.org/abs/1412.6980>).
    Adam,
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "sgd" => Ok(Self::Sgd),
            "adam" => Ok(Self::Adam),
            other => Err(format!("`{other}` is no optimizer; there are sgd and adam")),
        }
    }
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Half a cosine, down to zero, after a linear rise over the first tenth: before Adam has seen how large gradients are,
    /// its steps are full ones in every direction.
    Cosine,
    /// Not at all.
    Constant,
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cosine" => Ok(Self::Cosine),
            "constant" => Ok(Self::Constant),
            other => Err(format!("`{other}` is no schedule; there are cosine and constant")),
        }
    }
}

/// The numbers that the user chooses.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Method for weights.
    pub method: Method,
    /// How the rates fall.
    pub schedule: Schedule,
    /// Learning rate of weights and biases; with Adam as a share of the root mean square of each tensor.
    pub weights: f64,
    /// Learning rate of scales, as a share of each, and of zero points, as a share of their range.
    pub scales: f64,
}

const MOMENTUM: f32 = 0.9;
const SECOND: f32 = 0.999;
const EPSILON: f32 = 1e-8;
/// The share of the steps over which the rate rises.
const RISE: f64 = 0.1;
/// A constant counts as at least this large.
const LEAST: f64 = 1e-3;
/// The greatest norm that the gradient by all weights may have.
const NORM: f64 = 1.0;

/// Parameters and what the method remembers of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    /// The current values, in the order of the student's parameters.
    pub values: Vec<Array>,
    /// First and second moments.
    pub moments: Vec<[Vec<f32>; 2]>,
    /// Steps done.
    pub step: u64,
}

impl Optimizer {
    /// Nothing done yet.
    pub fn new(parameters: &[Parameter]) -> Self {
        let zeros = |p: &Parameter| if p.trained { vec![0.0; p.start.len()] } else { Vec::new() };
        Self {
            values: parameters.iter().map(|p| p.start.clone()).collect(),
            moments: parameters.iter().map(|p| [zeros(p), zeros(p)]).collect(),
            step: 0,
        }
    }

    /// Takes one step of `total`. Scales stay as they are if `frozen`.
    pub fn follow(
        &mut self,
        parameters: &[Parameter],
        gradients: &[Option<Array>],
        rates: Rates,
        total: u64,
        frozen: bool,
    ) -> Result<(), Fault> {
        self.step += 1;
        let done = (self.step - 1) as f64 / total.max(1) as f64;
        let fall = match rates.schedule {
            Schedule::Cosine => {
                let rise = (self.step as f64 / (total as f64 * RISE).max(1.0)).min(1.0);
                rise * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done.min(1.0)))
            }
            Schedule::Constant => 1.0,
        };
        let shrink = NORM / norm(parameters, gradients)?.max(NORM);
        let t = self.step as f64;
        let correction =
            [1.0 - libm::pow(MOMENTUM.into(), t), 1.0 - libm::pow(SECOND.into(), t)].map(|c| c as f32);
        for (index, (parameter, gradient)) in parameters.iter().zip(gradients).enumerate() {
            let Some(gradient) = gradient.as_ref().filter(|_| parameter.trained) else { continue };
            if frozen && parameter.role != Role::Real {
                continue;
            }
            let mut values = self.values[index].slice::<f32>()?.to_vec();
            let size = size(&parameter.start)?;
            let [first, second] = &mut self.moments[index];
            for (i, (v, &g)) in values.iter_mut().zip(gradient.slice::<f32>()?).enumerate() {
                let (m, s) = (&mut first[i], &mut second[i]);
                let mut adam = |g: f32| {
                    *m = MOMENTUM * *m + (1.0 - MOMENTUM) * g;
                    *s = SECOND * *s + (1.0 - SECOND) * g * g;
                    *m / correction[0] / ((*s / correction[1]).sqrt() + EPSILON)
                };
                match parameter.role {
                    Role::Real if rates.method == Method::Sgd => {
                        *m = MOMENTUM * *m + g * shrink as f32;
                        *v -= (rates.weights * fall) as f32 * *m;
                    }
                    Role::Real => *v -= (rates.weights * fall) as f32 * size * adam(g * shrink as f32),
                    Role::Scale => {
                        let step = (rates.scales * fall) as f32 * adam(g * *v);
                        *v = (*v * libm::expf(-step)).max(f32::MIN_POSITIVE);
                    }
                    Role::Zero(low, high) => {
                        let range = (high - low) as f32;
                        let step = (rates.scales * fall) as f32 * range * adam(g);
                        *v = (*v - step).clamp(low as f32, high as f32);
                    }
                }
            }
            self.values[index] = Array::new(gradient.shape(), values)?;
        }
        Ok(())
    }
}

/// The root of the mean square of a constant, at least [`LEAST`].
fn size(start: &Array) -> Result<f32, Fault> {
    let values = start.slice::<f32>()?;
    let square: f64 = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    Ok((square / values.len().max(1) as f64).sqrt().max(LEAST) as f32)
}

/// The norm of the gradient by all weights.
fn norm(parameters: &[Parameter], gradients: &[Option<Array>]) -> Result<f64, Fault> {
    let mut sum = 0f64;
    for (parameter, gradient) in parameters.iter().zip(gradients) {
        if let Some(gradient) =
            gradient.as_ref().filter(|_| parameter.role == Role::Real && parameter.trained)
        {
            sum += gradient.slice::<f32>()?.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        }
    }
    Ok(sum.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Graph, Value};

    /// Where a constant of these elements is after its first step of `total`, of gradient 1 everywhere.
    fn moved(start: [f32; 2], schedule: Schedule, total: u64) -> f32 {
        let mut graph = Graph::default();
        let value = graph.add_fresh("w", Value::default());
        let start = Array::vector(start.to_vec());
        let parameter = Parameter { value, name: "w".into(), role: Role::Real, start, trained: true };
        let mut optimizer = Optimizer::new(std::slice::from_ref(&parameter));
        let rates = Rates { method: Method::Adam, schedule, weights: 0.01, scales: 0.0 };
        let gradients = [Some(Array::vector(vec![1f32; 2]))];
        optimizer.follow(std::slice::from_ref(&parameter), &gradients, rates, total, false).unwrap();
        parameter.start.slice::<f32>().unwrap()[0] - optimizer.values[0].slice::<f32>().unwrap()[0]
    }

    #[test]
    fn a_step_is_a_share_of_the_tensor() {
        let (small, large) =
            (moved([3.0, 4.0], Schedule::Constant, 100), moved([30.0, -40.0], Schedule::Constant, 100));
        assert!((small - 0.01 * 12.5f32.sqrt()).abs() < 1e-4, "{small}");
        assert!((large / small - 10.0).abs() < 1e-2, "{large}");
        assert!(moved([0.0, 0.0], Schedule::Constant, 100) > 0.0, "zeros may move too");
    }

    #[test]
    fn the_rate_rises_over_the_first_tenth() {
        let whole = moved([3.0, 4.0], Schedule::Constant, 1000);
        let first = moved([3.0, 4.0], Schedule::Cosine, 1000);
        assert!((first / whole - 0.01).abs() < 1e-3, "{first} of {whole}");
    }
}
