//! `qonnx completions` and `qonnx man`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap_complete::Shell;

/// Print completions for a shell.
#[derive(Args)]
#[command(
    after_help = "Example:\n  qonnx completions bash > ~/.local/share/bash-completion/completions/qonnx"
)]
pub struct Completions {
    /// The shell.
    shell: Shell,
}

impl Completions {
    /// Prints the script.
    pub fn run(self, mut command: clap::Command) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "qonnx", &mut script);
        super::print(&String::from_utf8_lossy(&script));
        Ok(ExitCode::SUCCESS)
    }
}

/// Print a manual page: of qonnx, or of one of its commands.
#[derive(Args)]
#[command(after_help = "Example:\n  qonnx man compile | man -l -")]
pub struct Man {
    /// The command.
    command: Option<String>,
}

impl Man {
    /// Prints the page.
    pub fn run(self, command: clap::Command) -> anyhow::Result<ExitCode> {
        let (page, title) = match &self.command {
            None => (command, "qonnx".to_string()),
            Some(name) => {
                let found = command.find_subcommand(name).cloned();
                let found = found.with_context(|| format!("no command is called `{name}`"))?;
                (found.bin_name(format!("qonnx {name}")), format!("qonnx-{name}"))
            }
        };
        let mut text = Vec::new();
        clap_mangen::Man::new(page).title(title).render(&mut text).context("writing the page")?;
        super::print(&String::from_utf8_lossy(&text));
        Ok(ExitCode::SUCCESS)
    }
}
