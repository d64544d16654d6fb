//! The checks of `tests/fuzz`, on seeds and a few thousand mutations of them that are the same every time.
//!
//! To look for more: `cargo +nightly fuzz run --fuzz-dir tests/fuzz model` (or text, arrays, external, graph), with
//! [cargo-fuzz](https://rust-fuzz.github.io/book/).

use std::path::{Path, PathBuf};

#[path = "fuzz/checks/arrays.rs"]
mod arrays;
#[path = "fuzz/checks/external.rs"]
mod external;
#[path = "fuzz/checks/graph.rs"]
mod graph;
#[path = "fuzz/checks/model.rs"]
mod model;
#[path = "fuzz/checks/text.rs"]
mod text;

/// splitmix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// The seed with a few bytes flipped, cut out or put in twice.
    fn mutated(&mut self, seed: &[u8]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            let length = self.below(16).min(bytes.len() - at.min(bytes.len()));
            match self.below(5) {
                _ if bytes.is_empty() => bytes.push(self.next() as u8),
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.next() as u8,
                2 => drop(bytes.drain(at..at + length)),
                3 => bytes.truncate(at),
                _ => {
                    let piece = bytes[at..at + length].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        bytes
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(directory);
    let mut found: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == extension));
    found.sort();
    assert!(!found.is_empty());
    found
}

#[test]
fn models() {
    let mut noise = Noise(1);
    for seed in files("data/qat", "onnx") {
        let seed = std::fs::read(seed).unwrap();
        model::check(&seed);
        (0..150).for_each(|_| model::check(&noise.mutated(&seed)));
    }
}

#[test]
fn texts() {
    let mut noise = Noise(2);
    for seed in files("golden", "onnxtxt") {
        let seed = std::fs::read(seed).unwrap();
        text::check(&String::from_utf8_lossy(&seed));
        (0..100).for_each(|_| text::check(&String::from_utf8_lossy(&noise.mutated(&seed))));
    }
}

#[test]
fn sample_files() {
    let mut noise = Noise(3);
    let mut seeds: Vec<(u8, Vec<u8>)> = Vec::new();
    let npz = std::fs::read(&files("data", "npz")[0]).unwrap();
    seeds.push((1, npz));
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 2), }\n";
    let npy = [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), &[0; 16]]
        .concat();
    seeds.push((0, npy));
    for (kind, seed) in &seeds {
        arrays::check((*kind, seed));
        (0..200).for_each(|_| arrays::check((*kind, &noise.mutated(seed))));
    }
    (0..100).for_each(|i| arrays::check((i, &noise.bytes(40))));
}

#[test]
fn tables_of_external_data() {
    let mut noise = Noise(4);
    let locations = [
        "w.bin",
        "../secret",
        "sub/w.bin",
        "/etc/passwd",
        "sub/../w.bin",
        "",
        ".",
        "sub",
        "*/_ORT_MEM_ADDR_/*",
    ];
    for _ in 0..3000 {
        let mut entries = vec![(String::new(), locations[noise.below(locations.len())].to_string())];
        for key in ["a", "bb"] {
            if noise.below(2) == 0 {
                let number = [0, 1, 4, 8, 16, 17, u64::MAX][noise.below(7)];
                entries.push((key.into(), number.to_string()));
            }
        }
        let dims = (0..noise.below(3)).map(|_| [-1, 0, 1, 2, 4, i64::MAX][noise.below(6)]).collect();
        external::check((entries, dims, noise.below(24) as i32));
    }
}

#[test]
fn graphs() {
    let mut noise = Noise(5);
    (0..150).for_each(|_| graph::check(&noise.bytes(120)));
}
