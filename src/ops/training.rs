//! Steps of optimizers, from the domain `ai.onnx.preview.training`: Adagrad, Adam and Momentum.
//!
//! The inputs are the learning rate, the number of steps so far, then all tensors, all their gradients and all their
//! accumulated states; the outputs are the new tensors and states.

use std::sync::Arc;

use super::operand::{Real, elements, in_reals};
use super::slots::{known, required};
use super::{Attrs, Fact, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, TensorType};

const DOMAIN: &str = "ai.onnx.preview.training";

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: DOMAIN, name: "Adagrad", since: 1, parse: parse_adagrad },
    OpDef { domain: DOMAIN, name: "Adam", since: 1, parse: parse_adam },
    OpDef { domain: DOMAIN, name: "Momentum", since: 1, parse: parse_momentum },
];

/// How a tensor follows its gradient.
#[derive(Debug, Clone, PartialEq)]
enum Rule {
    /// Steps shrink with the squares of all gradients so far.
    Adagrad { decay_factor: f64, epsilon: f64 },
    /// Steps follow the running means of the gradient and its square.
    Adam { alpha: f64, beta: f64, epsilon: f64, norm_coefficient_post: f64 },
    /// Steps follow a running sum of gradients.
    Momentum { alpha: f64, beta: f64, nesterov: bool },
}

/// One step of an optimizer.
#[derive(Debug, Clone, PartialEq)]
pub struct Optimizer {
    rule: Rule,
    /// Weight of the tensor itself in its gradient.
    norm_coefficient: f64,
}

fn real(attrs: &mut Attrs, name: &str, default: f32) -> Result<f64, Fault> {
    attrs.float(name, default).map(f64::from)
}

fn parse_adagrad(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
    let rule =
        Rule::Adagrad { decay_factor: real(attrs, "decay_factor", 0.0)?, epsilon: real(attrs, "epsilon", 1e-6)? };
    Ok(Arc::new(Optimizer { rule, norm_coefficient: real(attrs, "norm_coefficient", 0.0)? }))
}

fn parse_adam(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
    let rule = Rule::Adam {
        alpha: real(attrs, "alpha", 0.9)?,
        beta: real(attrs, "beta", 0.999)?,
        epsilon: real(attrs, "epsilon", 1e-6)?,
        norm_coefficient_post: real(attrs, "norm_coefficient_post", 0.0)?,
    };
    Ok(Arc::new(Optimizer { rule, norm_coefficient: real(attrs, "norm_coefficient", 0.0)? }))
}

fn parse_momentum(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
    let nesterov = match attrs.string("mode", "")?.as_str() {
        "standard" => false,
        "nesterov" => true,
        other => fail!("unknown mode {other}"),
    };
    let rule = Rule::Momentum { alpha: real(attrs, "alpha", 0.0)?, beta: real(attrs, "beta", 0.0)?, nesterov };
    Ok(Arc::new(Optimizer { rule, norm_coefficient: real(attrs, "norm_coefficient", 0.0)? }))
}

impl Optimizer {
    /// States that go with each tensor.
    fn states(&self) -> usize {
        if matches!(self.rule, Rule::Adam { .. }) { 2 } else { 1 }
    }

    /// One number and its states after a step.
    fn step(&self, (rate, steps): (f64, i64), x: f64, gradient: f64, [a, b]: [f64; 2]) -> (f64, [f64; 2]) {
        let g = self.norm_coefficient * x + gradient;
        match self.rule {
            Rule::Adagrad { decay_factor, epsilon } => {
                let squares = a + g * g;
                let rate = rate / (1.0 + steps as f64 * decay_factor);
                (x - rate * g / (squares.sqrt() + epsilon), [squares, 0.0])
            }
            Rule::Adam { alpha, beta, epsilon, norm_coefficient_post } => {
                let (mean, square) = (alpha * a + (1.0 - alpha) * g, beta * b + (1.0 - beta) * g * g);
                let rate = match steps > 0 {
                    true => {
                        let left = |factor| 1.0 - libm::pow(factor, steps as f64);
                        rate * left(beta).sqrt() / left(alpha)
                    }
                    false => rate,
                };
                let x = x - rate * mean / (square.sqrt() + epsilon);
                ((1.0 - norm_coefficient_post) * x, [mean, square])
            }
            Rule::Momentum { alpha, beta, nesterov } => {
                let beta = if steps > 0 { beta } else { 1.0 };
                let sum = alpha * a + beta * g;
                let direction = if nesterov { g + alpha * sum } else { sum };
                (x - rate * direction, [sum, 0.0])
            }
        }
    }

    fn run<T: Real>(&self, progress: (f64, i64), tensors: &[&Array]) -> Result<Vec<Array>, Fault> {
        let count = tensors.len() / (2 + self.states());
        let mut outputs = vec![Vec::new(); 1 + self.states()];
        for i in 0..count {
            let of = |group: usize| T::read(tensors[group * count + i]);
            let (x, g, a) = (of(0)?, of(1)?, of(2)?);
            let b = if self.states() == 2 { of(3)? } else { a.clone() };
            if [&g, &a, &b].iter().any(|t| t.shape() != x.shape()) {
                fail!("tensor {i}, its gradient and its states differ in shape");
            }
            let mut parts = vec![Vec::new(); 3];
            let states = elements(&a)?.iter().zip(elements(&b)?);
            for ((&x, &g), (&a, &b)) in elements(&x)?.iter().zip(elements(&g)?).zip(states) {
                let (x, [a, b]) = self.step(progress, x.into(), g.into(), [a.into(), b.into()]);
                parts.iter_mut().zip([x, a, b]).for_each(|(part, v)| part.push(T::of(v)));
            }
            for (output, part) in outputs.iter_mut().zip(parts) {
                output.push(T::array(x.shape(), part)?);
            }
        }
        Ok(outputs.into_iter().flatten().collect())
    }
}

impl Op for Optimizer {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let groups = 2 + self.states();
        let count = inputs.len().saturating_sub(2) / groups;
        let group = |g: usize| (0..count).map(move |i| known(inputs, 2 + g * count + i).cloned());
        Ok(group(0).chain((2..groups).flat_map(group)).collect())
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let rate = required(inputs, 0)?.to_f32()?.iter().next().copied().ok_or("the rate is missing")?;
        let steps = required(inputs, 1)?.to_i64()?.first().copied().ok_or("the steps are missing")?;
        let tensors = (2..inputs.len()).map(|slot| required(inputs, slot)).collect::<Result<Vec<_>, _>>()?;
        if tensors.is_empty() || tensors.len() % (2 + self.states()) != 0 {
            fail!("{} tensors, gradients and states", tensors.len());
        }
        in_reals!(tensors[0].dtype(), T => self.run::<T>((rate.into(), steps), &tensors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("training");
    }

    /// Each rule finds the bottom of a parabola.
    #[test]
    fn a_parabola_is_descended() {
        let rules = [
            Rule::Adagrad { decay_factor: 0.0, epsilon: 1e-6 },
            Rule::Adam { alpha: 0.9, beta: 0.99, epsilon: 1e-6, norm_coefficient_post: 0.0 },
            Rule::Momentum { alpha: 0.5, beta: 1.0, nesterov: false },
            Rule::Momentum { alpha: 0.5, beta: 1.0, nesterov: true },
        ];
        for rule in rules {
            let optimizer = Optimizer { rule, norm_coefficient: 0.0 };
            let (mut x, mut states) = (5.0, [0.0; 2]);
            for step in 0..2000 {
                (x, states) = optimizer.step((0.1, step), x, 2.0 * (x - 3.0), states);
            }
            assert!((x - 3.0f64).abs() < 1e-2, "{optimizer:?} ends at {x}");
        }
    }
}
