//! `qonnx.toml`: what a command line is too short for: the recipe that turns pictures into samples, options of commands,
//! and what is decided for single nodes and values.
//!
//! ```toml
//! [compile]                          # any option of `qonnx compile`; train, sensitivity and the others likewise
//! target = "ort-cpu-vnni"
//! effort = "best"
//!
//! [[node]]                           # patterns with * and ?, for the names of nodes
//! name = "/head/*"
//! float = true                       # stays float; false: becomes integer whatever that costs
//!
//! [[value]]                          # for the names of values
//! name = "/backbone/*_relu"
//! range = [0.0, 6.0]                 # instead of a calibrated one
//!
//! [preprocess]
//! resize = 256                       # the shorter side; or [width, height]
//! crop = [224, 224]                  # from the centre
//! mean = [0.485, 0.456, 0.406]
//! std = [0.229, 0.224, 0.225]
//! ```

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Fault};
use crate::fail;

/// The longest side of a picture, read or resized.
pub const MAX_SIDE: u32 = 1 << 14;

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How pictures become samples.
    pub preprocess: Option<Recipe>,
    /// What is decided for nodes.
    pub node: Vec<NodePin>,
    /// What is decided for values.
    pub value: Vec<ValuePin>,
    /// Options of `qonnx compile`.
    pub compile: toml::Table,
    /// Options of `qonnx train`.
    pub train: toml::Table,
    /// Options of `qonnx sensitivity`.
    pub sensitivity: toml::Table,
    /// Options of `qonnx calibrate`.
    pub calibrate: toml::Table,
    /// Options of `qonnx compare`.
    pub compare: toml::Table,
}

/// What is decided for the nodes whose names fit a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodePin {
    /// A name, or a pattern with * and ?.
    pub name: String,
    /// Do they stay float? If not, they become integer where that is possible, whatever it costs.
    pub float: Option<bool>,
    /// What their weights are at least, where weights become integers of fewer bits.
    pub weight: Option<Least>,
    /// The type of their activations, where the target has that beside the usual one.
    pub activation: Option<Wide>,
}

/// The type of a weight, where it is not left to the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Least {
    /// 8 bits.
    S8,
}

/// A type of activations with more bits than the usual one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wide {
    /// 16 bits, unsigned.
    U16,
    /// 16 bits, signed.
    S16,
}

/// What is decided for the values whose names fit a pattern.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValuePin {
    /// A name, or a pattern with * and ?.
    pub name: String,
    /// The least and the greatest number that they hold.
    pub range: [f32; 2],
}

/// From pixels (0 to 255) to a tensor: resize, crop, order the channels, then `(pixel · scale − mean) / std`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// The size before cropping; the picture's own if absent.
    pub resize: Option<Resize>,
    /// Interpolation when resizing. Shrinking averages over all source pixels, except for `nearest`.
    pub filter: Filter,
    /// `[width, height]` cut from the centre.
    pub crop: Option<[u32; 2]>,
    /// Which channels, in which order.
    pub channels: Channels,
    /// Factor on each pixel; 1/255 for float inputs and 1 for `uint8` inputs if absent.
    pub scale: Option<f64>,
    /// Subtracted after scaling: one number, or one per channel in the order of `channels`. 0 if empty.
    pub mean: Vec<f64>,
    /// Divisor: one number, or one per channel. 1 if empty.
    pub std: Vec<f64>,
    /// The order of the axes.
    pub layout: Layout,
}

/// A target size in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "expected the shorter side, or [width, height]")]
pub enum Resize {
    /// The shorter side; the aspect ratio stays.
    Shorter(u32),
    /// `[width, height]`.
    Exact([u32; 2]),
}

/// Interpolation when a picture is resized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Triangle.
    #[default]
    Bilinear,
    /// The closest pixel.
    Nearest,
    /// Catmull-Rom.
    Bicubic,
}

/// The channels of a tensor made from a picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// Luma with the weights of ITU-R BT.601.
    Gray,
}

impl Channels {
    /// How many.
    pub fn count(self) -> usize {
        if self == Self::Gray { 1 } else { 3 }
    }
}

/// The order of the axes of a tensor made from a picture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Channels first.
    #[default]
    Nchw,
    /// Channels last.
    Nhwc,
}

impl Config {
    /// Parses and checks the text of a configuration file; a fault names the line.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            Fault::new(format!("line {}: {}", before.matches('\n').count() + 1, error.message()))
        })?;
        if let Some(recipe) = &config.preprocess {
            recipe.check()?;
        }
        let says_nothing =
            |pin: &&NodePin| pin.float.is_none() && pin.weight.is_none() && pin.activation.is_none();
        if let Some(pin) = config.node.iter().find(says_nothing) {
            fail!("[[node]] `{}`: it says neither `float`, `weight` nor `activation`", pin.name);
        }
        for pin in &config.value {
            let [low, high] = pin.range;
            if !(low.is_finite() && high.is_finite() && low <= 0.0 && high >= 0.0 && low < high) {
                fail!("[[value]] `{}`: a range has finite ends, with 0 between them", pin.name);
            }
        }
        Ok(config)
    }

    /// The options of a command.
    pub fn command(&self, name: &str) -> Option<&toml::Table> {
        Some(match name {
            "compile" => &self.compile,
            "train" => &self.train,
            "sensitivity" => &self.sensitivity,
            "calibrate" => &self.calibrate,
            "compare" => &self.compare,
            _ => return None,
        })
    }

    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Fault::new(format!("cannot be read: {error}")).at(path.display()))?;
        Self::parse(&text).map_err(|fault| fault.at(path.display()))
    }
}

impl Recipe {
    /// Sizes between 1 and [`MAX_SIDE`], finite numbers, one or one per channel.
    pub fn check(&self) -> Result<(), Fault> {
        let resize = match self.resize {
            Some(Resize::Shorter(side)) => [side; 2],
            Some(Resize::Exact(size)) => size,
            None => [1; 2],
        };
        for side in resize.into_iter().chain(self.crop.unwrap_or([1; 2])) {
            if !(1..=MAX_SIDE).contains(&side) {
                fail!("[preprocess]: a side of {side} pixels; 1 to {MAX_SIDE} are possible");
            }
        }
        let channels = self.channels.count();
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if !(values.len() <= 1 || values.len() == channels) {
                fail!("[preprocess]: {name} has {} numbers for {channels} channels", values.len());
            }
            if let Some(bad) = values.iter().find(|v| !v.is_finite() || (name == "std" && **v == 0.0)) {
                fail!("[preprocess]: {name} cannot be {bad}");
            }
        }
        match self.scale {
            Some(scale) if !scale.is_finite() => Err("[preprocess]: scale is not a finite number".into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_parsed() {
        let recipe = |text: &str| Config::parse(text).map(|c| c.preprocess.unwrap());
        assert_eq!(recipe("[preprocess]").unwrap(), Recipe::default());
        let text = "[preprocess]\nresize = 256\nfilter = 'bicubic'\ncrop = [224, 200]\nchannels = 'bgr'\nscale = 1\n\
                    mean = [1, 2.5, 3]\nstd = [2.0]\nlayout = 'nhwc'";
        let expected = Recipe {
            resize: Some(Resize::Shorter(256)),
            filter: Filter::Bicubic,
            crop: Some([224, 200]),
            channels: Channels::Bgr,
            scale: Some(1.0),
            mean: vec![1.0, 2.5, 3.0],
            std: vec![2.0],
            layout: Layout::Nhwc,
        };
        assert_eq!(recipe(text).unwrap(), expected);
        assert_eq!(recipe("[preprocess]\nresize = [32, 16]").unwrap().resize, Some(Resize::Exact([32, 16])));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expected) in [
            ("[preproces]", "line 1: unknown field `preproces`"),
            ("[preprocess]\nmeans = [1]", "line 2: unknown field `means`"),
            ("[preprocess]\n\nchannels = 'RGB'", "line 3: unknown variant `RGB`"),
            ("[preprocess]\nresize = 'big'", "expected the shorter side, or [width, height]"),
            ("[preprocess]\nresize = 0", "a side of 0 pixels"),
            ("[preprocess]\ncrop = [224, 4000000000]", "a side of 4000000000 pixels"),
            ("[preprocess]\nmean = [1, 2]", "mean has 2 numbers for 3 channels"),
            ("[preprocess]\nstd = [1, 0, 1]", "std cannot be 0"),
            ("[preprocess]\nmean = [nan]", "mean cannot be NaN"),
            ("[preprocess]\nscale = inf", "scale is not a finite number"),
        ] {
            let message = Config::parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
