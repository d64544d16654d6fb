//! `qonnx` compiles an fp32 ONNX model into an INT8 one that ONNX Runtime runs on integer kernels.
//!
//! ```text
//! in.onnx -> proto -> Graph -> passes -> Graph -> interpret + observers -> ranges
//!                                                                            |
//! out.onnx <- proto <- emit <- Graph with Q/DQ <- insert <- plan <- placement, rules, target
//!                                              -> report
//! ```
//!
//! Nothing flows back: import never decides, passes never read files, `quantize` never looks at protobuf, emit never
//! thinks. [`compile()`] is the picture as one function; each module is a room of the house and may use those above it.
//!
//! # As a library
//!
//! ```
//! use std::path::Path;
//!
//! use qonnx::options::Effort;
//! use qonnx::Options;
//!
//! # fn main() -> Result<(), qonnx::error::Error> {
//! # let dir = std::env::temp_dir();
//! # let out = dir.join(format!("qonnx-doc-{}.onnx", std::process::id()));
//! let options = Options {
//!     calib: Some("tests/data/digits/calib".into()),
//!     samples: Some(8),
//!     steps: Effort::Fast.steps(),
//!     ..Options::default()
//! };
//! let report = qonnx::compile(Path::new("tests/data/digits.onnx"), &out, &options, &|_, _, _| {})?;
//! assert!(report.size_after < report.size_before);
//! # std::fs::remove_file(&out).ok();
//! # Ok(())
//! # }
//! ```
//!
//! [`compile::table::calibrate`] makes a calibration table, [`quantize::Target`] says what a runtime takes, and the
//! [`report::Report`] tells what was done. The library prints nothing: who calls hears of progress through a closure.
//!
//! Versions follow semver with respect to what is re-exported here, [`options`], [`error`], [`report::Report`] and the command
//! line; the other modules are public for tests and tools and may change in a minor version.
#![warn(missing_docs)]

pub mod budget;
pub mod calibrate;
pub mod cli;
pub mod compare;
pub mod compile;
pub mod error;
pub mod interpret;
pub mod ir;
pub mod kernels;
pub mod onnx;
pub mod ops;
pub mod options;
pub mod passes;
#[allow(missing_docs)]
pub mod proto;
pub mod quantize;
pub mod report;
pub mod train;
pub mod tune;

pub use compile::compile;
pub use options::{Mode, Options};
