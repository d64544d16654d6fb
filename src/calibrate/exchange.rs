//! Ranges in the formats of other tools: TensorRT's calibration cache and AIMET's encodings.
//!
//! A calibration cache has a line for each value, `name: 3c010a14`: the bits of a `float` scale in hexadecimal, for
//! symmetric `int8` (TensorRT documentation, `IInt8Calibrator`). Encodings are JSON with a scale and an offset for each
//! value (AIMET documentation, "Encoding specifications" 0.6.1 and 1.0.0).

use std::collections::BTreeMap;

use serde_json::Value;

use super::observer::{Observer, Observers};
use super::threshold::Range;
use crate::error::Fault;
use crate::fail;
use crate::ir::{Graph, QuantParams, ValueId};

/// The least and the greatest number that values hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranges(pub BTreeMap<String, Range>);

/// A format that ranges are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Exchange {
    /// A calibration cache of TensorRT: scales for symmetric int8.
    Tensorrt,
    /// Encodings of AIMET, version 0.6.1: scales and offsets for uint8.
    Aimet,
}

impl Ranges {
    /// Parses a calibration cache or encodings.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let found = match text.trim_start().starts_with('{') {
            true => encodings(text)?,
            false => cache(text)?,
        };
        for (name, range) in &found {
            if !(range.lo.is_finite() && range.hi.is_finite() && range.lo <= 0.0 && range.hi >= 0.0) {
                fail!("`{name}`: {} to {} is no range around 0", range.lo, range.hi);
            }
        }
        Ok(Self(found))
    }

    /// As text that [`Ranges::parse`] understands.
    pub fn text(&self, format: Exchange) -> String {
        match format {
            Exchange::Tensorrt => {
                let scale = |r: &Range| r.lo.abs().max(r.hi.abs()) / 127.0;
                let line =
                    |(name, range): (&String, &Range)| format!("{name}: {:08x}\n", scale(range).to_bits());
                let lines: String = self.0.iter().map(line).collect();
                format!("TRT-8601-EntropyCalibration2\n{lines}")
            }
            Exchange::Aimet => {
                let encoding = |(name, range): (&String, &Range)| {
                    let p = QuantParams::asymmetric(range.lo, range.hi, crate::ir::DType::U8);
                    let (min, max) = p.range();
                    let value = serde_json::json!([{
                        "bitwidth": 8, "dtype": "int", "is_symmetric": "False", "max": max, "min": min,
                        "offset": -p.zero_point, "scale": p.scale,
                    }]);
                    (name.clone(), value)
                };
                let activations: serde_json::Map<String, Value> = self.0.iter().map(encoding).collect();
                let whole = serde_json::json!({
                    "activation_encodings": activations, "param_encodings": {}, "version": "0.6.1",
                });
                serde_json::to_string_pretty(&whole).unwrap_or_default() + "\n"
            }
        }
    }

    /// Observers that saw the ends of these ranges and nothing else.
    pub fn observers(&self, graph: &Graph, values: &[ValueId]) -> Observers<ValueId> {
        let mut seen = Observers::watching(values.iter().copied());
        for &value in values {
            if let Some(range) = self.0.get(graph.name(value)) {
                let mut observer = Observer::default();
                observer.observe(&[range.lo, range.hi], None, 0, usize::MAX);
                seen.put(value, observer);
            }
        }
        seen
    }
}

fn cache(text: &str) -> Result<BTreeMap<String, Range>, Fault> {
    let mut lines = text.lines();
    if !lines.next().is_some_and(|l| l.starts_with("TRT-")) {
        fail!("neither a calibration cache of TensorRT nor encodings of AIMET");
    }
    let mut found = BTreeMap::new();
    for line in lines.filter(|l| !l.trim().is_empty()) {
        let entry = line.rsplit_once(':').and_then(|(name, hex)| {
            let bits = u32::from_str_radix(hex.trim(), 16).ok()?;
            Some((name.trim().to_string(), f32::from_bits(bits)))
        });
        let Some((name, scale)) = entry else { fail!("`{line}` is no name with a scale") };
        if !(scale.is_finite() && scale > 0.0) {
            fail!("`{name}`: a scale of {scale}");
        }
        found.insert(name, Range { lo: -127.0 * scale, hi: 127.0 * scale });
    }
    Ok(found)
}

fn encodings(text: &str) -> Result<BTreeMap<String, Range>, Fault> {
    let whole: Value = serde_json::from_str(text).map_err(|e| Fault::new(format!("no encodings: {e}")))?;
    let mut found = BTreeMap::new();
    let mut add = |name: &str, encoding: &Value| -> Result<(), Fault> {
        // Numbers by themselves in 0.6.1, in lists in 1.0.0.
        let number = |key: &str| {
            let value = encoding.get(key)?;
            value.as_f64().or_else(|| value.get(0)?.as_f64())
        };
        let bits = number("bitwidth").or_else(|| number("bw")).unwrap_or(8.0);
        let (Some(scale), Some(offset)) = (number("scale"), number("offset")) else {
            fail!("`{name}` has no scale and offset");
        };
        let steps = libm::exp2(bits) - 1.0;
        let (lo, hi) = ((offset * scale).min(0.0), ((offset + steps) * scale).max(0.0));
        found.insert(name.to_string(), Range { lo: lo as f32, hi: hi as f32 });
        Ok(())
    };
    match whole.get("activation_encodings") {
        Some(Value::Object(all)) => {
            for (name, encoding) in all {
                add(name, encoding.get(0).unwrap_or(encoding))?;
            }
        }
        Some(Value::Array(all)) => {
            for encoding in all {
                let Some(name) = encoding.get("name").and_then(Value::as_str) else {
                    fail!("an encoding has no name");
                };
                add(name, encoding)?;
            }
        }
        _ => fail!("there are no activation_encodings"),
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(&str, f32, f32)]) -> Ranges {
        Ranges(pairs.iter().map(|&(n, lo, hi)| (n.to_string(), Range { lo, hi })).collect())
    }

    #[test]
    fn what_is_written_is_read() {
        let symmetric = ranges(&[("a", -1.27, 1.27), ("b:0", -12.7, 12.7)]);
        let text = symmetric.text(Exchange::Tensorrt);
        assert!(text.contains("a: 3c23d70a\n"), "{text}");
        let found = Ranges::parse(&text).unwrap();
        for (name, range) in &symmetric.0 {
            assert!((found.0[name].hi - range.hi).abs() < 1e-5 && found.0[name].lo == -found.0[name].hi);
        }
        let own = ranges(&[("a", 0.0, 2.55), ("b", -1.0, 1.55)]);
        let found = Ranges::parse(&own.text(Exchange::Aimet)).unwrap();
        for (name, range) in &own.0 {
            assert!((found.0[name].hi - range.hi).abs() < 1e-5 && (found.0[name].lo - range.lo).abs() < 1e-5);
        }
    }

    #[test]
    fn encodings_as_a_list() {
        let text = r#"{"version":"1.0.0","activation_encodings":[{"name":"x","dtype":"INT","bw":8,"is_sym":false,
            "scale":[0.01],"offset":[-128],"enc_type":"PER_TENSOR"}],"param_encodings":[]}"#;
        let found = Ranges::parse(text).unwrap();
        assert!((found.0["x"].lo + 1.28).abs() < 1e-6 && (found.0["x"].hi - 1.27).abs() < 1e-6);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("hello", "neither a calibration cache"),
            ("TRT-1\nx 1", "no name with a scale"),
            ("TRT-1\nx: ff800000", "a scale of"),
            ("{", "no encodings"),
            ("{}", "no activation_encodings"),
            (r#"{"activation_encodings":{"x":[{}]}}"#, "`x` has no scale"),
        ] {
            let message = Ranges::parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
