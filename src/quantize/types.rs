//! Other storage types than the target's own for a static plan: 16-bit activations, unsigned weights.

use super::candidate::activation_slots;
use super::plan::Plan;
use super::target::Target;
use super::weights::{self, Constant};
use crate::error::Fault;
use crate::ir::{Array, DType, Graph, QuantParams, Rule};

/// The types of activations and weights in a static plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Types {
    /// `U8`, `U16` or `I16`.
    pub activation: DType,
    /// `I8` or `U8`.
    pub weight: DType,
}

/// How much wider than what was seen a 16-bit range is: 2 dB of the 90 or so that it has.
const HEADROOM: f32 = 1.25;

impl Default for Types {
    fn default() -> Self {
        Self { activation: DType::U8, weight: DType::I8 }
    }
}

impl Types {
    /// The least opset that has them.
    pub fn opset(self) -> i64 {
        if self.activation == DType::U8 { 0 } else { 21 }
    }

    /// What a runtime does not have is refused, with what it has.
    pub fn check(self, target: &Target) -> Result<(), Fault> {
        let refuse = |what: &str, dtype: DType, allowed: &str| {
            let message = format!("{} has no {what} of type {dtype}: there are {allowed}", target.name);
            Err(Fault::new(message))
        };
        match self {
            Self { activation, .. } if ![DType::U8, DType::U16, DType::I16].contains(&activation) => {
                refuse("activations", activation, "u8, u16, s16")
            }
            Self { weight, .. } if ![DType::I8, DType::U8].contains(&weight) => {
                refuse("static weights", weight, "s8, u8; 4 bits: --mode weight-only --bits 4")
            }
            _ => Ok(()),
        }
    }

    /// Gives a plan these types. With 65536 steps nothing is gained by clipping: ranges become those that were seen,
    /// and [`HEADROOM`] more for samples that were not.
    pub fn apply(self, graph: &Graph, plan: &mut Plan, target: &Target) -> Result<(), Fault> {
        if self.activation != DType::U8 {
            for activation in plan.activations.values_mut() {
                let (low, high) = activation.params.range();
                let fixed = activation.why == "fixed by the kernel";
                let (low, high) = match (fixed, activation.seen) {
                    (true, _) => (low, high),
                    (false, (low, high)) => (low * HEADROOM, high * HEADROOM),
                };
                activation.params = QuantParams::asymmetric(low, high, self.activation);
            }
            plan.constants = weights::solve(graph, plan, target)?;
        }
        for (&(id, slot), constant) in &mut plan.constants {
            let Some(candidate) = plan.placement.integer.get(&id) else { continue };
            let (weight, bias) = match candidate.rule {
                Rule::Contraction { weight, bias, .. } => (Some(weight), bias),
                _ => (None, None),
            };
            if Some(slot) == weight {
                if self.weight == DType::U8 {
                    *constant = raised(constant)?;
                }
            } else if Some(slot) != bias
                && self.activation != DType::U8
                && activation_slots(&candidate.rule, graph.node(id).inputs).contains(&slot)
                && let Some(tensor) = graph.constant_input(id, slot)
            {
                *constant = self.operand(&tensor.array()?)?;
            }
        }
        Ok(())
    }

    /// A constant operand of arithmetic in the type of activations.
    fn operand(self, array: &Array) -> Result<Constant, Fault> {
        let real = array.slice::<f32>()?;
        let (low, high) = real.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
        let params = QuantParams::asymmetric(low, high, self.activation);
        let integers = real.iter().map(|&v| params.quantize(v));
        let elements = match self.activation {
            DType::I16 => Array::new(array.shape(), integers.map(|q| q as i16).collect::<Vec<_>>())?,
            _ => Array::new(array.shape(), integers.map(|q| q as u16).collect::<Vec<_>>())?,
        };
        Ok(Constant { elements, scales: vec![params.scale], zero_point: params.zero_point, axis: None })
    }
}

/// The same numbers as `uint8`: everything raised by 128.
fn raised(constant: &Constant) -> Result<Constant, Fault> {
    let signed = constant.elements.slice::<i8>()?;
    let bytes: Vec<u8> = signed.iter().map(|&q| (q as u8) ^ 0x80).collect();
    let elements = Array::new(constant.elements.shape(), bytes)?;
    Ok(Constant { elements, zero_point: constant.zero_point + 128, ..constant.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raised_weights_stand_for_the_same_numbers() {
        let elements = Array::vector(vec![-128i8, -1, 0, 127]);
        let constant = Constant { elements, scales: vec![0.5], zero_point: 0, axis: None };
        let found = raised(&constant).unwrap();
        assert_eq!((found.elements, found.zero_point), (Array::vector(vec![0u8, 127, 128, 255]), 128));
    }

    #[test]
    fn what_a_target_lacks_is_refused_with_what_it_has() {
        let target = Target::named("ort-cpu").unwrap();
        let four = Types { weight: DType::I4, ..Types::default() };
        assert!(four.check(&target).unwrap_err().to_string().contains("s8, u8"));
        assert!(Types { activation: DType::I16, weight: DType::U8 }.check(&target).is_ok());
    }
}
