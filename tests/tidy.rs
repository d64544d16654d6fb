//! The plan of the house, checked: layers import upward only, files stay small, and nothing slips in that must not.

use std::path::{Path, PathBuf};

/// From the top: a room may use itself and those before it.
const ROOMS: &[&str] = &[
    "error",
    "budget",
    "proto",
    "ir",
    "kernels",
    "ops",
    "onnx",
    "interpret",
    "passes",
    "calibrate",
    "compare",
    "quantize",
    "tune",
    "train",
    "options",
    "report",
    "compile",
    "cli",
];

/// Lines of code that a file may have; tests at its end do not count.
const BUDGET: usize = 450;

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut open = vec![root.clone()];
    let mut files = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false if path.extension().is_some_and(|e| e == "rs") => {
                    let text = std::fs::read_to_string(&path).unwrap();
                    files.push((path.strip_prefix(&root).unwrap().to_owned(), text));
                }
                false => {}
            }
        }
    }
    files.sort();
    files
}

/// A file's text before its tests.
fn code(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

fn is_test(path: &Path) -> bool {
    path.to_string_lossy().contains("tests")
}

fn room(path: &Path) -> Option<usize> {
    let first = path.components().next()?.as_os_str().to_string_lossy().into_owned();
    ROOMS.iter().position(|r| *r == first.trim_end_matches(".rs"))
}

#[test]
fn imports_go_upward() {
    for (path, text) in sources().iter().filter(|(p, _)| !is_test(p)) {
        let Some(own) = room(path) else { continue };
        for line in code(text).lines().map(str::trim_start).filter(|l| !l.starts_with("//")) {
            for (at, _) in line.match_indices("crate::") {
                let name: String =
                    line[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if let Some(used) = ROOMS.iter().position(|r| *r == name) {
                    assert!(used <= own, "{} uses {name}, which lies below it", path.display());
                }
            }
        }
    }
}

#[test]
fn files_stay_small() {
    for (path, text) in sources().iter().filter(|(p, _)| !is_test(p)) {
        let lines = code(text).lines().count();
        assert!(lines <= BUDGET, "{} has {lines} lines of code", path.display());
    }
}

#[test]
fn no_vague_modules() {
    for (path, _) in sources() {
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            !["mod", "utils", "common", "helpers", "misc"].contains(&stem.as_str()),
            "{}",
            path.display()
        );
    }
}

#[test]
fn files_explain_themselves() {
    for (path, text) in sources().iter().filter(|(p, _)| !is_test(p)) {
        assert!(text.starts_with("//!"), "{} has no module documentation", path.display());
    }
}
