//! Any table of external data: nothing outside the model's directory is read, nothing beyond a file's end.

use std::sync::OnceLock;

use qonnx::onnx::ExternalData;
use qonnx::proto::{StringStringEntryProto, TensorProto};

const INSIDE: &[u8] = b"0123456789abcdef";

fn directory() -> &'static tempfile::TempDir {
    static DIRECTORY: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let root = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(root.path().join("model/sub")).expect("a directory");
        std::fs::write(root.path().join("secret"), [0xAA; 64]).expect("a file");
        for name in ["model/w.bin", "model/sub/w.bin"] {
            std::fs::write(root.path().join(name), INSIDE).expect("a file");
        }
        root
    })
}

/// One input.
pub fn check(input: (Vec<(String, String)>, Vec<i64>, i32)) {
    let (entries, dims, kind) = input;
    let entry = |(key, value): (String, String)| StringStringEntryProto {
        key: Some(match key.len() % 4 {
            0 => "location".into(),
            1 => "offset".into(),
            2 => "length".into(),
            _ => key,
        }),
        value: Some(value),
    };
    let tensor = TensorProto {
        dims,
        data_type: Some(kind),
        data_location: Some(1),
        external_data: entries.into_iter().map(entry).collect(),
        ..Default::default()
    };
    if let Ok(bytes) = ExternalData::new(directory().path().join("model")).load(&tensor) {
        assert!(
            INSIDE.windows(bytes.len().max(1)).any(|w| w == &bytes[..]) || bytes.is_empty(),
            "read elsewhere"
        );
    }
}
