//! Any bytes as a file of samples: npy, npz, pb or a picture.

use std::sync::OnceLock;

use qonnx::calibrate::read::{InputSpec, open};
use qonnx::ir::{DType, Dim, TensorType};

fn directory() -> &'static tempfile::TempDir {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIRECTORY.get_or_init(|| tempfile::tempdir().expect("a directory"))
}

/// One input.
pub fn check(input: (u8, &[u8])) {
    let (kind, bytes) = input;
    let name = ["0.npy", "0.npz", "input_0.pb", "0.png", "0.jpg"][usize::from(kind) % 5];
    let root = directory().path().join("samples");
    let _ = std::fs::remove_dir_all(&root);
    let inside = if name.ends_with("pb") { root.join("test_data_set_0") } else { root.clone() };
    std::fs::create_dir_all(&inside).expect("a directory");
    std::fs::write(inside.join(name), bytes).expect("a file");
    let dims = vec![Dim::Known(1), Dim::Unknown, Dim::Known(2)];
    let specs = [InputSpec { name: "x".into(), ty: TensorType::new(DType::F32, dims) }];
    let Ok(samples) = open(&root, &specs, None) else { return };
    for index in 0..samples.len().min(4) {
        let _ = samples.load(index);
    }
    let _ = samples.digest();
}
