//! Arithmetic on 8-bit integers with exact 32-bit sums.
//!
//! All products multiply an unsigned with a signed byte, as the vector instructions do. Signed activations become
//! unsigned and unsigned weights signed by flipping their top bit, which moves value and zero point by 128 alike.

pub mod conv;
pub mod depthwise;
pub mod elementwise;
pub mod finish;
pub mod gemm;
pub mod pack;
pub mod pool;
pub mod softmax;
#[cfg(target_arch = "x86_64")]
mod vnni;

/// The instructions that a product is computed with. All give the same integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Loops that run anywhere.
    Plain,
    /// AVX-512 with dot products of bytes (VNNI) and byte permutation (VBMI).
    Vnni,
}

impl Level {
    /// The best of this processor.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512vbmi")
            && std::arch::is_x86_feature_detected!("avx512vnni")
        {
            return Self::Vnni;
        }
        Self::Plain
    }
}

/// The same bytes, taken as unsigned.
pub fn bytes(signed: &[i8]) -> &[u8] {
    // SAFETY: `i8` and `u8` have the same size and alignment, and every bit pattern is a value of both.
    unsafe { std::slice::from_raw_parts(signed.as_ptr().cast(), signed.len()) }
}
