//! The overview that `qonnx --help` prints: commands by what they are for.

use clap::Command;

/// What commands are for, and which; those that are not named here come last.
const GROUPS: &[(&str, &[&str])] = &[
    ("Make", &["compile", "train", "calibrate", "merge", "init"]),
    ("Check", &["compare", "run", "explain"]),
    ("Look", &["inspect", "diff", "sensitivity", "ops"]),
    ("Shell", &["completions", "man"]),
];

const EXAMPLES: &str = "\
Examples:
  qonnx compile in.onnx out.onnx --calib samples/
  qonnx compare in.onnx out.onnx --data samples/ --min-sqnr 20
  qonnx explain out.onnx --deny warnings

Exit codes: 0 done, 1 the model, the data or a gate failed, 2 wrong usage, 3 an operator is not implemented.
`qonnx COMMAND --help` tells more about a command.";

/// The command with its subcommands in groups.
pub fn grouped(command: Command) -> Command {
    let mut text = String::new();
    let mut left: Vec<&Command> = command.get_subcommands().collect();
    let mut group = |title: &str, members: Vec<&Command>| {
        if members.is_empty() {
            return;
        }
        text.push_str(&format!("{title}:\n"));
        for member in members {
            let about = member.get_about().map(ToString::to_string).unwrap_or_default();
            text.push_str(&format!("  {:12} {about}\n", member.get_name()));
        }
        text.push('\n');
    };
    for (title, names) in GROUPS {
        let members = names.iter().filter_map(|name| command.find_subcommand(name)).collect();
        left.retain(|c| !names.contains(&c.get_name()));
        group(title, members);
    }
    group("Other", left);
    let template =
        format!("{{about}}\n\n{{usage-heading}} {{usage}}\n\n{text}Options:\n{{options}}{{after-help}}\n");
    command.help_template(template).after_help(EXAMPLES)
}

/// The name that `word` most likely stands for: at most a third of it mistyped, whatever the case.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let distance = |name: &str| distance(&word, &name.to_lowercase());
    names.map(|n| (distance(n), n)).filter(|(d, _)| d * 3 <= word.len().max(3)).min().map(|(_, n)| n)
}

/// Letters to insert, delete, change or swap with their neighbour until `a` is `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (rows[i][j] + usize::from(x != y)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && (*x, *y) == (b[j - 1], a[i - 1]) {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
