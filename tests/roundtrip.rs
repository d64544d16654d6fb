//! A model that no pass has touched is written byte for byte as it was read.

use std::path::{Path, PathBuf};

/// Every model under `QONNX_MODELS` (a list of directories like PATH) and in the repository.
fn models() -> Vec<PathBuf> {
    let mut roots = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")];
    roots.extend(std::env::var_os("QONNX_MODELS").iter().flat_map(std::env::split_paths));
    let mut found = Vec::new();
    while let Some(dir) = roots.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.is_dir() {
                true => roots.push(path),
                false if path.extension().is_some_and(|e| e == "onnx") => found.push(path),
                false => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn unchanged_models_keep_their_bytes() {
    for path in models() {
        let source = qonnx::onnx::read(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(source.lost_bytes, 0, "{}", path.display());
        let faults = qonnx::ir::verify(&source.model);
        assert!(faults.is_empty(), "{}: {faults:?}", path.display());
        let written = qonnx::onnx::encode(&source.model).unwrap();
        assert!(written == std::fs::read(&path).unwrap(), "{} changed", path.display());
    }
}
