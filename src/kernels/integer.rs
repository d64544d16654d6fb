//! Arithmetic on 8-bit integers with exact 32-bit sums.
//!
//! All products multiply an unsigned with a signed byte, as the vector instructions do. Signed activations become
//! unsigned and unsigned weights signed by flipping their top bit, which moves value and zero point by 128 alike.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub mod blocks;
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
pub mod windows;

use super::simd::Isa;

/// The instructions that a product is computed with. All give the same integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Loops that run anywhere.
    Plain,
    /// AVX-512 with dot products of bytes (VNNI) and byte permutation (VBMI).
    Vnni,
    /// The same, and products of tiles (AMX).
    Amx,
}

impl Level {
    /// The best of this processor.
    pub fn detect() -> Self {
        Self::all().last().unwrap_or(Self::Plain)
    }

    /// All that this processor can do, the best last.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Plain, Self::Vnni, Self::Amx].into_iter().take_while(|level| level.available())
    }

    fn available(self) -> bool {
        match self {
            Self::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Self::Vnni => {
                Isa::detect() == Isa::Avx512
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512vbmi")
                    && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => amx::available(),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

/// The same bytes, taken as unsigned.
pub fn bytes(signed: &[i8]) -> &[u8] {
    // SAFETY: `i8` and `u8` have the same size and alignment, and every bit pattern is a value of both.
    unsafe { std::slice::from_raw_parts(signed.as_ptr().cast(), signed.len()) }
}
