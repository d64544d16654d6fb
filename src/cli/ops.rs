//! `qonnx ops`: the table of operators.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use crate::ops::FAMILIES;

/// Prints one line for each operator: its domain, its name, the opset versions at which its form changed.
pub fn run() -> anyhow::Result<ExitCode> {
    let mut table: BTreeMap<(&str, &str), (Vec<i64>, &str)> = BTreeMap::new();
    for (family, defs) in FAMILIES {
        for def in *defs {
            let domain = if def.domain.is_empty() { "ai.onnx" } else { def.domain };
            table.entry((domain, def.name)).or_insert_with(|| (Vec::new(), family)).0.push(def.since);
        }
    }
    let mut out = std::io::stdout().lock();
    for ((domain, name), (mut versions, family)) in table {
        versions.sort_unstable();
        let versions: Vec<String> = versions.iter().map(i64::to_string).collect();
        if writeln!(out, "{domain:8} {name:28} {family:14} {}", versions.join(" ")).is_err() {
            break; // the reader closed the pipe
        }
    }
    Ok(ExitCode::SUCCESS)
}
