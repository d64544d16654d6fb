//! What the user can choose.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use clap::ValueEnum;
use wildmatch::WildMatch;

use crate::calibrate::config::{Least, NodePin, Recipe, ValuePin, Wide};
use crate::calibrate::threshold::Calibrator;
use crate::interpret::node_label;
use crate::ir::{DType, Graph};
use crate::onnx::Payloads;
use crate::quantize::candidate::Filter;
use crate::quantize::weight_only::blocked::Blocked;
use crate::quantize::{Half, Types};
use crate::tune::shares::Budget;

/// What to make of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// `Static` with calibration data, `WeightOnly` without.
    #[default]
    Auto,
    /// Read, verify and write; every byte stays.
    None,
    /// Weights in 8 bits, arithmetic in float.
    WeightOnly,
    /// Weights and activations in 8 bits.
    Static,
    /// Weights in 8 bits, activations in 8 bits from the range that they have as the model runs.
    Dynamic,
    /// Every float tensor in float16.
    Fp16,
    /// Every float tensor in bfloat16.
    Bf16,
}

impl Mode {
    /// Every mode with its name on the command line.
    pub const NAMES: [(&str, Self); 7] = [
        ("auto", Self::Auto),
        ("none", Self::None),
        ("weight-only", Self::WeightOnly),
        ("static", Self::Static),
        ("dynamic", Self::Dynamic),
        ("fp16", Self::Fp16),
        ("bf16", Self::Bf16),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }
}

/// How much time may be spent on accuracy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Effort {
    /// Calibrated ranges only.
    Fast,
    /// What several more runs of the model can tell.
    #[default]
    Balanced,
    /// Everything that helps: training on the samples as well.
    Best,
}

/// What quantization may do to the outputs, as the user says it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Every float output has at least this signal-to-noise ratio, in dB.
    Sqnr(f64),
    /// Top-1 falls by at most so many points; without labels, the best class changes in at most so many of 100 rows.
    Drop(f64),
}

/// Decisions that are not left to the plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pins {
    /// Nodes that stay float, or become integer where that is possible.
    pub nodes: Vec<NodePin>,
    /// Ranges of values.
    pub values: Vec<ValuePin>,
}

impl Pins {
    /// The range that is decided for a value of this name; of several the last.
    pub fn range(&self, name: &str) -> Option<[f32; 2]> {
        let fits = |pin: &&ValuePin| WildMatch::new(&pin.name).matches(name);
        self.values.iter().rev().find(fits).map(|pin| pin.range)
    }

    /// Does the weight of a node that is called so have eight bits, whatever the others have?
    pub fn is_wide(&self, node: &str) -> bool {
        let fits = |pin: &NodePin| pin.weight.is_some() && WildMatch::new(&pin.name).matches(node);
        self.nodes.iter().any(fits)
    }

    /// The type of the activations of a node that is called so, if that is decided; of several the last.
    pub fn activation(&self, node: &str) -> Option<DType> {
        let fits = |pin: &&NodePin| pin.activation.is_some() && WildMatch::new(&pin.name).matches(node);
        let pin = self.nodes.iter().rev().find(fits)?;
        pin.activation.map(|wide| if wide == Wide::U16 { DType::U16 } else { DType::I16 })
    }

    /// What is said of those that fit no node or value of this graph.
    pub fn idle(&self, graph: &Graph) -> Vec<String> {
        let nodes: Vec<String> = graph.nodes().map(|id| node_label(graph, id)).collect();
        let values: Vec<&str> = graph.values().map(|v| graph.name(v)).collect();
        let node = |pin: &&NodePin| !nodes.iter().any(|n| WildMatch::new(&pin.name).matches(n));
        let value = |pin: &&ValuePin| !values.iter().any(|v| WildMatch::new(&pin.name).matches(v));
        let nodes = self.nodes.iter().filter(node).map(|p| format!("no node is called `{}`", p.name));
        let values = self.values.iter().filter(value).map(|p| format!("no value is called `{}`", p.name));
        nodes.chain(values).collect()
    }

    /// As words for the provenance.
    pub fn words(&self) -> Vec<String> {
        let kind = |float| if float { " float" } else { " integer" };
        let node = |p: &NodePin| {
            let weight = p.weight.map_or("", |Least::S8| " weight s8");
            let activation = p.activation.map_or("", |wide| match wide {
                Wide::U16 => " activation u16",
                Wide::S16 => " activation s16",
            });
            format!("[[node]] {}{}{weight}{activation}", p.name, p.float.map_or("", kind))
        };
        let nodes = self.nodes.iter().map(node);
        nodes.chain(self.values.iter().map(|p| format!("[[value]] {} {:?}", p.name, p.range))).collect()
    }

    /// The filter with what is decided for nodes.
    pub fn filter(&self, mut filter: Filter) -> Filter {
        for (pin, float) in self.nodes.iter().filter_map(|pin| Some((pin, pin.float?))) {
            let list = if float { &mut filter.exclude } else { &mut filter.force };
            list.push(pin.name.clone());
        }
        filter
    }
}

/// A mode's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no mode; there are {names}", names = Mode::NAMES.map(|(name, _)| name).join(", "))]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, mode)| *mode).ok_or_else(|| UnknownMode(name.into()))
    }
}

/// Everything that the user can choose.
#[derive(Debug, Clone)]
pub struct Options {
    /// What to make of the model.
    pub mode: Mode,
    /// Directory or file with samples.
    pub calib: Option<PathBuf>,
    /// A calibration table, a calibration cache or encodings: what values hold is known without running the model.
    pub table: Option<PathBuf>,
    /// How pictures become samples.
    pub recipe: Option<Recipe>,
    /// How activation ranges are chosen.
    pub calibrator: Calibrator,
    /// The steps of tuning.
    pub steps: BTreeSet<Tuning>,
    /// What they may take.
    pub budget: Budget,
    /// A bound that the result must keep on samples held out of calibration.
    pub bound: Option<Bound>,
    /// Class numbers of the samples, for [`Bound::Drop`].
    pub labels: Option<PathBuf>,
    /// Use at most this many samples.
    pub samples: Option<usize>,
    /// Name of the target.
    pub target: String,
    /// Nodes and operators to leave out.
    pub filter: Filter,
    /// What is decided for single nodes and values.
    pub pins: Pins,
    /// Storage types of a static plan.
    pub types: Types,
    /// What static quantization leaves is half precision of this type.
    pub float: Option<DType>,
    /// Weights in 4 bits instead of 8.
    pub blocked: Option<Blocked>,
    /// What half precision leaves in float32.
    pub half: Half,
    /// Stop the passes after this many edits.
    pub stop_after: Option<usize>,
    /// Leave an output alone that was made from the same files and options.
    pub if_changed: bool,
    /// Keep large payloads in a file beside the output.
    pub external_data: bool,
    /// The command, for the provenance that is written into the model.
    pub command: String,
}

/// A step of tuning in static quantization. They run in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Tuning {
    /// Channels of neighbouring layers are given like ranges, for weights with one scale.
    Equalization,
    /// Loud channels of products move into the weights that read them.
    Smoothing,
    /// Several plans are tried: what stays float, how much is clipped.
    TradeOff,
    /// Biases make up for what quantization adds to the mean of each channel.
    BiasCorrection,
    /// Weights and biases are fitted anew, layer by layer.
    Rounding,
    /// What is no integer weight is trained, block by block: biases, constants that stayed float, scales of activations.
    BlockTraining,
}

impl Tuning {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or(String::new(), |v| v.get_name().into())
    }
}

impl Effort {
    /// The steps that are worth the time.
    pub fn steps(self) -> BTreeSet<Tuning> {
        let all = [
            Tuning::Equalization,
            Tuning::Smoothing,
            Tuning::TradeOff,
            Tuning::Rounding, // corrects biases as well
            Tuning::BlockTraining,
        ];
        let count = match self {
            Self::Fast => 0,
            Self::Balanced => 4,
            Self::Best => 5,
        };
        all.into_iter().take(count).collect()
    }

    /// What they may take.
    pub fn budget(self) -> Budget {
        match self {
            Self::Fast | Self::Balanced => Budget {
                followed: 16,
                judging: 20,
                abreast: 48,
                rounds: 2,
                ridges: false,
                finalists: 1,
                again: false,
                dearer: 1.0,
            },
            Self::Best => Budget {
                followed: 48,
                judging: 48,
                abreast: 100,
                rounds: 4,
                ridges: true,
                finalists: 4,
                again: true,
                dearer: 3.0,
            },
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            calib: None,
            table: None,
            recipe: None,
            calibrator: Calibrator::Auto,
            steps: Effort::Balanced.steps(),
            budget: Effort::Balanced.budget(),
            bound: None,
            labels: None,
            samples: None,
            target: "ort-cpu".into(),
            filter: Filter::default(),
            pins: Pins::default(),
            types: Types::default(),
            float: None,
            blocked: None,
            half: Half::default(),
            stop_after: None,
            if_changed: false,
            external_data: false,
            command: String::new(),
        }
    }
}

impl Options {
    /// Where the payloads of the output go.
    pub fn payloads(&self) -> Payloads {
        if self.external_data { Payloads::Beside } else { Payloads::Inside }
    }

    /// What half precision to go to in this mode, if to any.
    pub fn half(&self, mode: Mode) -> Option<Half> {
        let dtype = match mode {
            Mode::Fp16 => DType::F16,
            Mode::Bf16 => DType::BF16,
            Mode::Static => self.float?,
            _ => return None,
        };
        Some(Half { dtype, ..self.half.clone() })
    }
}
