//! Targets: what a runtime computes in integers, as data.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::types::{Storage, Types};
use super::weights::Form;
use crate::error::Fault;

/// A runtime and processor to compile for. The tables are `targets/*.toml`; one of your own may stand on one of them.
///
/// ```
/// use qonnx::quantize::Target;
///
/// let path = std::env::temp_dir().join(format!("qonnx-doc-{}.toml", std::process::id()));
/// std::fs::write(&path, "name = \"mine\"\nbase = \"ort-cpu\"\nactivations = [\"int8\"]\n").unwrap();
/// let target = Target::named(path.to_str().unwrap())?;
/// assert_eq!((target.name.as_str(), target.activations.as_slice()), ("mine", &["int8".to_string()][..]));
/// assert_eq!(target.levels, Target::named("ort-cpu")?.levels);
/// assert!(Target::named("ort-cup").unwrap_err().to_string().contains("ort-cup"));
/// # std::fs::remove_file(&path).ok();
/// # Ok::<(), qonnx::error::Fault>(())
/// ```
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name on the command line.
    pub name: String,
    /// Storage types of activations, the usual one first: `uint8`, `int8`, `uint16`, `int16`.
    pub activations: Vec<String>,
    /// Storage types of weights, the usual one first: `int8`, `uint8`, `int4`.
    pub weights: Vec<String>,
    /// Have activations their zero point in the middle of the range?
    #[serde(default)]
    pub symmetric: bool,
    /// Steps that the range of an activation has: 255, or 127 where products would saturate otherwise (PyTorch's
    /// `reduce_range`).
    #[serde(default = "eight_bits")]
    pub levels: u32,
    /// Are biases integers? Else they stay float.
    #[serde(default = "yes")]
    pub integer_bias: bool,
    /// Does a QuantizeLinear take the place of a Relu or Clip before it? Else those stay in front of it.
    #[serde(default = "yes")]
    pub absorbs_clamps: bool,
    /// Are outputs quantized even if nobody reads them as integers? Else only inputs are.
    #[serde(default = "yes")]
    pub quantized_outputs: bool,
    /// Does an Add read the result of a Conv before it in float, for both to be computed as one? Then only its other
    /// operand is quantized.
    #[serde(default)]
    pub fused_add: bool,
    /// Activations of more bits, which single operators may have where a bound needs it.
    #[serde(default)]
    pub wider: Option<Wider>,
    /// The types that were settled on.
    #[serde(skip)]
    pub storage: Storage,
    /// The least ONNX opset that the output needs.
    pub opset: i64,
    /// Does the runtime add pairs of u8·s8 products in 16 bits, so that large weights saturate?
    pub saturating_pairs: bool,
    /// One scale for a whole weight, not one for each output channel.
    #[serde(default)]
    pub per_tensor: bool,
    /// The largest magnitude of a weight's integers.
    #[serde(default = "seven_bits")]
    pub weight_limit: i32,
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
    /// What recurrent layers cost in float; without, nothing is known of weights that are stored in integers there.
    #[serde(default)]
    pub recurrent: Option<Recurrent>,
    /// Operators with an integer form.
    pub integer: BTreeMap<String, Cost>,
}

/// Activations of more bits beside those of the usual type.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wider {
    /// Their type.
    pub activation: String,
    /// How many times as long as with the usual type an operator takes with it.
    pub time: f64,
}

/// Nanoseconds that a recurrent layer takes for a weight.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recurrent {
    /// In each step.
    pub float: f64,
    /// More in each step if the weight is no constant to the runtime.
    pub step: f64,
    /// Once a run, to make it real from an integer.
    pub dequantize: f64,
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

fn yes() -> bool {
    true
}

fn eight_bits() -> u32 {
    255
}

fn seven_bits() -> i32 {
    127
}

/// The built-in tables. Each but the first says what it has of another.
const TARGETS: [(&str, &str); 7] = [
    ("ort-cpu", include_str!("targets/ort-cpu.toml")),
    ("ort-cpu-vnni", include_str!("targets/ort-cpu-vnni.toml")),
    ("ort-arm", include_str!("targets/ort-arm.toml")),
    ("openvino", include_str!("targets/openvino.toml")),
    ("tensorrt", include_str!("targets/tensorrt.toml")),
    ("qnn-htp", include_str!("targets/qnn-htp.toml")),
    ("integer-only", include_str!("targets/integer-only.toml")),
];

/// Other names of targets, as runtimes and PyTorch's backends are called.
const ALIASES: [(&str, &str); 3] =
    [("ort-cpu-avx2", "ort-cpu"), ("tflite", "integer-only"), ("x86", "fbgemm")];

/// PyTorch's backends: a target with other ranges (torch/ao/quantization/qconfig.py).
const BACKENDS: [(&str, &str); 2] = [
    // With half the steps QuantizeLinear saturates beyond the range, so it cannot take the place of a Clip.
    ("fbgemm", "base = \"ort-cpu-vnni\"\nlevels = 127\nrescaling = false\nabsorbs_clamps = false\n"),
    ("qnnpack", "base = \"ort-arm\"\nper_tensor = true\n"),
];

impl Target {
    /// What integers weights become.
    pub fn form(&self) -> Form {
        Form { limit: self.weight_limit, by_channel: !self.per_tensor, pairs: self.saturating_pairs }
    }

    /// The same with all activations of the type that has more bits, if there is one.
    pub fn widened(&self) -> Option<Self> {
        let (activation, time) = (self.storage.wider?, self.wider.as_ref()?.time);
        let mut wide = self.clone();
        wide.storage = Storage { activation, wider: None, ..self.storage };
        wide.saturating_pairs = false;
        wide.integer.values_mut().for_each(|cost| cost.integer *= time);
        Some(wide)
    }

    /// The built-in target of this name, or the one whose table is in this file (`*.toml`).
    pub fn named(name: &str) -> Result<Self, Fault> {
        let table = if name.ends_with(".toml") {
            let text = std::fs::read_to_string(name)
                .map_err(|e| Fault::new(format!("`{name}` cannot be read: {e}")))?;
            complete(name, &text)?
        } else {
            built_in(name)?
        };
        let target: Self = table.try_into().map_err(|e| Fault::new(format!("target `{name}`: {e}")))?;
        let mut settled = target;
        let sound = settled.check().and_then(|()| Types::default().settle(&mut settled));
        sound.map_err(|f| Fault::new(format!("target `{name}`: {f}")))?;
        Ok(settled)
    }

    /// Refuses numbers that nothing can be computed with.
    fn check(&self) -> Result<(), Fault> {
        let Boundary { quantize, dequantize, layout, node } = self.boundary;
        let own =
            [self.noise_weight, self.size_weight, self.weight_credit, quantize, dequantize, layout, node];
        let costs = self.integer.values().flat_map(|c| [c.integer, c.float, c.fixed]);
        let wider = self.wider.iter().map(|wider| wider.time);
        let recurrent = self.recurrent.map(|r| [r.float, r.step, r.dequantize]).into_iter().flatten();
        if let Some(bad) =
            own.into_iter().chain(recurrent).chain(wider).chain(costs).find(|c| !(0.0..1e12).contains(c))
        {
            return Err(Fault::new(format!("{bad} is no cost")));
        }
        let numbers = [
            ("levels", i64::from(self.levels), 3..=255),
            ("weight_limit", self.weight_limit.into(), 1..=127),
            ("opset", self.opset, 13..=30),
        ];
        for (name, number, allowed) in numbers {
            if !allowed.contains(&number) {
                let message =
                    format!("{name} is {number}; {} to {} are possible", allowed.start(), allowed.end());
                return Err(Fault::new(message));
            }
        }
        Ok(())
    }

    /// The names of the built-in targets, the default first.
    pub fn names() -> Vec<&'static str> {
        let backends = BACKENDS.iter().map(|b| b.0);
        TARGETS.iter().map(|t| t.0).chain(backends).chain(ALIASES.iter().map(|a| a.0)).collect()
    }
}

fn built_in(name: &str) -> Result<toml::Table, Fault> {
    let known = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |a| a.1);
    let Some((name, text)) = TARGETS.iter().chain(&BACKENDS).find(|(n, _)| *n == known) else {
        let hint = format!("known: {}; or a table of your own, FILE.toml", Target::names().join(", "));
        return Err(Fault::new(format!("no target is named `{name}`")).hint(hint));
    };
    complete(name, text)
}

/// A table with what its `base` has and it does not say itself; its name is that of the file if it has none.
fn complete(name: &str, text: &str) -> Result<toml::Table, Fault> {
    let mut own: toml::Table =
        text.parse().map_err(|e: toml::de::Error| Fault::new(format!("target `{name}`: {}", e.message())))?;
    own.entry("name").or_insert_with(|| name.into());
    let Some(base) = own.remove("base") else { return Ok(own) };
    let Some(base) = base.as_str().filter(|b| !b.ends_with(".toml")) else {
        return Err(Fault::new(format!("target `{name}`: `base` is not the name of a target")));
    };
    let mut all = built_in(base)?;
    for (key, value) in own {
        match (all.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) if key == "boundary" => old.extend(new),
            // What the base knows does not hold here.
            (Some(toml::Value::Table(_)), toml::Value::Boolean(false)) => drop(all.remove(&key)),
            (_, value) => drop(all.insert(key, value)),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::DType;

    #[test]
    fn built_in_targets_parse() {
        for name in Target::names() {
            Target::named(name).unwrap_or_else(|f| panic!("{name}: {f}"));
        }
        assert!(Target::named("toaster").unwrap_err().to_string().contains("no target"));
        let fbgemm = Target::named("x86").unwrap();
        assert_eq!((fbgemm.name.as_str(), fbgemm.levels, fbgemm.saturating_pairs), ("fbgemm", 127, false));
        assert!(Target::named("qnnpack").unwrap().per_tensor);
        assert_eq!(Target::named("tensorrt").unwrap().storage.activation, DType::I8);
    }

    #[test]
    fn a_table_of_ones_own_stands_on_another() {
        let own = complete("mine", "base = \"ort-cpu\"\nopset = 19\n[boundary]\nnode = 1.0\n").unwrap();
        let target: Target = own.try_into().unwrap();
        assert_eq!((target.name.as_str(), target.opset, target.boundary.node), ("mine", 19, 1.0));
        assert!(target.boundary.quantize > 0.0 && target.integer.contains_key("Conv"));
        assert!(target.recurrent.is_some());
        let other = complete("mine", "base = \"ort-cpu\"\nrecurrent = false\n").unwrap();
        assert!(other.try_into::<Target>().unwrap().recurrent.is_none());
        let wrong = complete("mine", "base = \"ort-cpu\"\nspeed = 1\n").unwrap().try_into::<Target>();
        assert!(wrong.unwrap_err().to_string().contains("speed"));
    }
}
