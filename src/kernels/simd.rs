//! Vectors of the processor: which there are, and loops compiled once for the baseline of the target and once for wider
//! vectors, chosen when they run.
//!
//! All versions do the same operations in the same order (Rust fuses a multiplication with an addition only where
//! `mul_add` says so), so they give the same bits.

use std::sync::OnceLock;

/// Names the widest vectors that may be used: for tests of the narrower ones.
pub const VARIABLE: &str = "QONNX_ISA";

/// Vector instructions, each kind with all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// The baseline of the target.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512.
    Avx512,
}

impl Isa {
    /// The widest that this processor has, or that [`VARIABLE`] allows.
    pub fn detect() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| match std::env::var(VARIABLE).ok().and_then(|name| Self::named(&name)) {
            Some(allowed) => Self::of_processor().min(allowed),
            None => Self::of_processor(),
        })
    }

    /// The kind of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "scalar" => Some(Self::Scalar),
            "avx2" => Some(Self::Avx2),
            "avx512" => Some(Self::Avx512),
            _ => None,
        }
    }

    fn of_processor() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            let wide = std::arch::is_x86_feature_detected!("avx512f");
            return if wide { Self::Avx512 } else { Self::Avx2 };
        }
        Self::Scalar
    }
}

/// What is wrong with the value of [`VARIABLE`], if anything is. Such a value has no effect.
pub fn refused() -> Option<String> {
    let value = std::env::var_os(VARIABLE)?;
    let known = value.to_str().is_some_and(|name| Isa::named(name).is_some());
    (!known).then(|| format!("{VARIABLE} is {value:?}; it may be scalar, avx2 or avx512"))
}

/// A loop whose [`run`](Task::run) is marked `#[inline(always)]`, so that it is compiled into either caller.
pub trait Task {
    /// Runs the loop.
    fn run(self);
}

/// Runs the task with the widest vectors of this processor.
pub fn run<T: Task>(task: T) {
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() >= Isa::Avx2 {
        #[target_feature(enable = "avx2,fma")]
        fn wide<T: Task>(task: T) {
            task.run();
        }
        // SAFETY: the processor has AVX2 and FMA.
        return unsafe { wide(task) };
    }
    task.run();
}
