//! `qonnx init`.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use clap::{Args, Command};

use super::console;
use crate::calibrate::read::open_inputs;
use crate::interpret::node_label;
use crate::ir::{DType, Dim, Graph, NodeId, Rule, TensorType};
use crate::onnx;

/// Write a qonnx.toml for a model, with what can be said in it as comments.
#[derive(Args)]
#[command(after_help = "Examples:\n  qonnx init in.onnx\n  \
    qonnx compile in.onnx out.onnx --calib samples/ --config qonnx.toml")]
pub struct Init {
    /// The model.
    model: PathBuf,
    /// Where to write. An existing file is left alone.
    #[arg(short, long, value_name = "FILE", default_value = "qonnx.toml")]
    output: PathBuf,
}

impl Init {
    /// Writes the file.
    pub fn run(self, command: &Command) -> anyhow::Result<ExitCode> {
        ensure!(!self.output.exists(), "{} is there already", self.output.display());
        let graph = onnx::read_valid(&self.model)?.model.graph;
        onnx::write_atomically(&self.output, text(&graph, command).as_bytes())?;
        console::note(&format!("wrote {}\n", self.output.display()));
        Ok(ExitCode::SUCCESS)
    }
}

/// The file for this model.
fn text(graph: &Graph, command: &Command) -> String {
    let mut text =
        String::from("# Settings for qonnx: `qonnx compile in.onnx out.onnx --config qonnx.toml`.\n#\n");
    for input in open_inputs(graph).unwrap_or_default() {
        let _ = writeln!(text, "# input {}: {}", input.name, input.ty);
    }
    text += "\n[compile]   # options of `qonnx compile`; what is typed on the command line wins\n";
    for option in command.find_subcommand("compile").into_iter().flat_map(Command::get_arguments) {
        let hidden =
            ["config", "help", "quiet", "verbose", "stop-after", "json", "report", "depfile", "if-changed"];
        let Some(name) = option.get_long().filter(|l| !hidden.contains(l)) else { continue };
        let about = option.get_help().map(ToString::to_string).unwrap_or_default();
        let default = option.get_default_values().first().and_then(|v| v.to_str());
        let value = match (default, option.get_action()) {
            (Some(number), _) if number.parse::<f64>().is_ok() || number == "true" => number.to_string(),
            (Some(word), _) => format!("{word:?}"),
            (None, clap::ArgAction::SetTrue) => "true".into(),
            (None, clap::ArgAction::Append) => "[]".into(),
            (None, _) => "…".into(),
        };
        let _ = writeln!(text, "# {:24} # {about}", format!("{name} = {value}"));
    }
    text += &preprocess(graph);
    let products: Vec<NodeId> = graph.nodes().filter(|&id| is_product(graph, id)).collect();
    if let (Some(&first), Some(&last)) = (products.first(), products.last()) {
        text += "\n# Decisions for single nodes; patterns with * and ?.\n";
        for id in if first == last { vec![first] } else { vec![first, last] } {
            let _ = writeln!(text, "# [[node]]\n# name = {:?}\n# float = true", node_label(graph, id));
        }
        if let Some(value) = graph.output(first, 0) {
            let name = graph.name(value);
            let _ = writeln!(
                text,
                "#\n# Ranges for single values.\n# [[value]]\n# name = {name:?}\n# range = [0.0, 6.0]"
            );
        }
    }
    text
}

fn is_product(graph: &Graph, id: NodeId) -> bool {
    graph.node(id).op.as_ref().is_some_and(|op| matches!(op.rule(), Rule::Contraction { .. }))
}

/// How pictures become samples, if the model may take pictures.
fn preprocess(graph: &Graph) -> String {
    let pictures = |ty: &TensorType| match ty.dims.as_deref() {
        Some([_, channels, height, width]) if matches!(ty.dtype, DType::F32 | DType::U8) => {
            let known = |d: &Dim| d.known().filter(|&n| n > 4);
            match (channels.known(), width.known()) {
                (Some(1 | 3), _) => Some(("nchw", known(width), known(height))),
                (_, Some(1 | 3)) => Some(("nhwc", known(height), known(channels))),
                _ => None,
            }
        }
        _ => None,
    };
    let Some((layout, width, height)) =
        open_inputs(graph).unwrap_or_default().iter().find_map(|input| pictures(&input.ty))
    else {
        return String::new();
    };
    let size = match (width, height) {
        (Some(w), Some(h)) => format!("[{w}, {h}]"),
        _ => "[224, 224]".into(),
    };
    format!(
        "\n# How pictures become samples: resize, crop, then (pixel * scale - mean) / std. What the model was trained with;\n\
         # the numbers here are those of ImageNet.\n# [preprocess]\n# resize = {size}             # or the shorter side\n\
         # channels = \"rgb\"                # rgb, bgr or gray\n# mean = [0.485, 0.456, 0.406]    # scale is 1/255\n\
         # std = [0.229, 0.224, 0.225]\n# layout = \"{layout}\"\n"
    )
}
