//! Targets: what a runtime computes in integers, as data.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::error::Fault;

/// A runtime and processor to compile for. The tables are `targets/*.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name on the command line.
    pub name: String,
    /// Storage type of activations: `uint8`.
    pub activation: String,
    /// Storage type of weights: `int8`.
    pub weight: String,
    /// The least ONNX opset that the output needs.
    pub opset: i64,
    /// Does the runtime add pairs of u8·s8 products in 16 bits, so that large weights saturate?
    pub saturating_pairs: bool,
    /// May a DequantizeLinear have another scale than its QuantizeLinear? Then products with a number cost nothing.
    pub rescaling: bool,
    /// What noise costs: this times `10^(-SQNR/10)` of a quantized value, as a share of the model's float time.
    pub noise_weight: f64,
    /// What float weights cost: this times their share of all weights, as a share of the model's float time.
    pub size_weight: f64,
    /// Nanoseconds that an operator with a constant weight may lose: a smaller file is wanted for itself.
    pub weight_credit: f64,
    /// What a change between float and integer costs.
    pub boundary: Boundary,
    /// Operators with an integer form.
    pub integer: BTreeMap<String, Cost>,
}

/// What a change between float and integer costs.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boundary {
    /// Nanoseconds an element, float to integer.
    pub quantize: f64,
    /// Nanoseconds an element, integer to float.
    pub dequantize: f64,
    /// Nanoseconds an element of what a Conv reads or writes, either way: the layouts differ.
    pub layout: f64,
    /// Nanoseconds for any node, whatever it does.
    pub node: f64,
}

/// Nanoseconds a unit of work: a multiply-accumulate, or an output element.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// In the integer kernel.
    pub integer: f64,
    /// In the float kernel.
    pub float: f64,
    /// How many more the integer kernel takes than the float one before it does any work.
    #[serde(default)]
    pub fixed: f64,
}

const TARGETS: &[(&str, &str)] = &[
    ("ort-cpu", include_str!("targets/ort-cpu.toml")),
    ("ort-cpu-vnni", include_str!("targets/ort-cpu-vnni.toml")),
];

impl Target {
    /// The built-in target of this name.
    pub fn named(name: &str) -> Result<Self, Fault> {
        let Some((_, text)) = TARGETS.iter().find(|(n, _)| *n == name) else {
            let known: Vec<&str> = TARGETS.iter().map(|t| t.0).collect();
            return Err(Fault::new(format!("no target is named `{name}`"))
                .hint(format!("known: {}", known.join(", "))));
        };
        toml::from_str(text).map_err(|e| Fault::new(format!("target `{name}`: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_targets_parse() {
        for (name, _) in TARGETS {
            assert_eq!(Target::named(name).unwrap().name, *name);
        }
        assert!(Target::named("toaster").is_err());
    }
}
