//! Vectors of `f32` as one type for each kind of processor, for loops that are written once and compiled for all.

use super::simd::Isa;

/// A vector of `f32`. Loading and storing are safe if the elements lie at the pointer; all functions are if the
/// processor has the instructions.
pub trait Vector: Copy {
    /// Elements of a vector, a power of two.
    const LANES: usize;
    /// Some of the lanes.
    type Mask: Copy;

    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// The lanes `first..last`, both at most [`LANES`](Self::LANES).
    unsafe fn mask(first: usize, last: usize) -> Self::Mask;
    /// Zero outside of the mask, where memory is not touched.
    unsafe fn load_part(from: *const f32, mask: Self::Mask) -> Self;
    /// Stores nothing outside of the mask.
    unsafe fn store_part(self, to: *mut f32, mask: Self::Mask);
    /// `self` within the mask, `other` outside.
    unsafe fn select(self, mask: Self::Mask, other: Self) -> Self;
    unsafe fn splat(x: f32) -> Self;
    /// `self + a·b`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// The lesser; `other` if one is not a number.
    unsafe fn min(self, other: Self) -> Self;
    /// The greater; `other` if one is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// Every second element of `self` followed by `other`, from the first on.
    unsafe fn evens(self, other: Self) -> Self;
    /// The same from the second on.
    unsafe fn odds(self, other: Self) -> Self;
    /// Has what lies there brought near the processor, if anything does.
    unsafe fn prefetch(from: *const f32);
}

/// A loop over vectors of any kind.
pub trait Kernel {
    /// Runs it; marked `#[inline(always)]`, so that it is compiled into a function that has the instructions.
    ///
    /// # Safety
    /// The processor must have the instructions of the vectors.
    unsafe fn run<V: Vector>(self);
}

/// Runs the loop with these vectors, or narrower ones if the processor lacks them.
pub fn run<K: Kernel>(isa: Isa, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f")]
        unsafe fn avx512<K: Kernel>(kernel: K) {
            // SAFETY: this function has the instructions.
            unsafe { kernel.run::<std::arch::x86_64::__m512>() }
        }
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2<K: Kernel>(kernel: K) {
            // SAFETY: this function has the instructions.
            unsafe { kernel.run::<std::arch::x86_64::__m256>() }
        }
        match isa.min(Isa::detect()) {
            // SAFETY: the processor has the instructions.
            Isa::Avx512 => return unsafe { avx512(kernel) },
            // SAFETY: the processor has the instructions.
            Isa::Avx2 => return unsafe { avx2(kernel) },
            Isa::Scalar => {}
        }
    }
    let _ = isa;
    // SAFETY: these vectors need no instructions.
    unsafe { kernel.run::<Portable>() }
}

/// Four lanes of whatever the compiler makes of them.
#[derive(Debug, Clone, Copy)]
pub struct Portable([f32; 4]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Vector for Portable {
    const LANES: usize = 4;
    type Mask = [bool; 4];

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for four elements.
        Self(unsafe { from.cast::<[f32; 4]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for four elements.
        unsafe { to.cast::<[f32; 4]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn mask(first: usize, last: usize) -> [bool; 4] {
        std::array::from_fn(|i| first <= i && i < last)
    }

    #[inline(always)]
    unsafe fn load_part(from: *const f32, mask: [bool; 4]) -> Self {
        // SAFETY: the caller vouches for the elements of the mask.
        Self(std::array::from_fn(|i| if mask[i] { unsafe { *from.wrapping_add(i) } } else { 0.0 }))
    }

    #[inline(always)]
    unsafe fn store_part(self, to: *mut f32, mask: [bool; 4]) {
        for (i, x) in self.0.into_iter().enumerate().filter(|&(i, _)| mask[i]) {
            // SAFETY: the caller vouches for the elements of the mask.
            unsafe { *to.wrapping_add(i) = x }
        }
    }

    #[inline(always)]
    unsafe fn select(self, mask: [bool; 4], other: Self) -> Self {
        Self(std::array::from_fn(|i| if mask[i] { self.0[i] } else { other.0[i] }))
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 4])
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| a.0[i].mul_add(b.0[i], self.0[i])))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn evens(self, other: Self) -> Self {
        Self([self.0[0], self.0[2], other.0[0], other.0[2]])
    }

    #[inline(always)]
    unsafe fn odds(self, other: Self) -> Self {
        Self([self.0[1], self.0[3], other.0[1], other.0[3]])
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const f32) {}
}

/// A vector type of x86-64: the functions that are one instruction, and the others.
#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($vector:ident, $lanes:literal, $mask:ident, $load:ident, $store:ident, $splat:ident, $fma:ident, $add:ident,
     $mul:ident, $min:ident, $max:ident, { $($other:tt)* }) => {
        use std::arch::x86_64::*;

        use super::Vector;

        impl Vector for $vector {
            const LANES: usize = $lanes;
            type Mask = $mask;

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: the caller vouches for the instructions and the elements.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: the caller vouches for the instructions and the elements.
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $splat(x) }
            }

            #[inline(always)]
            unsafe fn fma(self, a: Self, b: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $fma(a, b, self) }
            }

            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $mul(self, other) }
            }

            #[inline(always)]
            unsafe fn min(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $min(self, other) }
            }

            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { $max(self, other) }
            }

            #[inline(always)]
            unsafe fn prefetch(from: *const f32) {
                // SAFETY: it never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
            }

            $($other)*
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    x86! {
        __m256, 8, __m256i, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps,
        _mm256_mul_ps, _mm256_min_ps, _mm256_max_ps, {
            #[inline(always)]
            unsafe fn mask(first: usize, last: usize) -> __m256i {
                // SAFETY: the caller vouches for the instructions.
                unsafe {
                    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                    let early = _mm256_cmpgt_epi32(_mm256_set1_epi32(first as i32), lanes);
                    _mm256_andnot_si256(early, _mm256_cmpgt_epi32(_mm256_set1_epi32(last as i32), lanes))
                }
            }

            #[inline(always)]
            unsafe fn load_part(from: *const f32, mask: __m256i) -> Self {
                // SAFETY: the caller vouches for the instructions and the elements.
                unsafe { _mm256_maskload_ps(from, mask) }
            }

            #[inline(always)]
            unsafe fn store_part(self, to: *mut f32, mask: __m256i) {
                // SAFETY: the caller vouches for the instructions and the elements.
                unsafe { _mm256_maskstore_ps(to, mask, self) }
            }

            #[inline(always)]
            unsafe fn select(self, mask: __m256i, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { _mm256_blendv_ps(other, self, _mm256_castsi256_ps(mask)) }
            }

            #[inline(always)]
            unsafe fn evens(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe {
                    let mixed = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(self, other));
                    _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(mixed))
                }
            }

            #[inline(always)]
            unsafe fn odds(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe {
                    let mixed = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(self, other));
                    _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(mixed))
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    x86! {
        __m512, 16, __mmask16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps,
        _mm512_mul_ps, _mm512_min_ps, _mm512_max_ps, {
            #[inline(always)]
            unsafe fn mask(first: usize, last: usize) -> __mmask16 {
                (1u32.wrapping_shl(last as u32).wrapping_sub(1) & !1u32.wrapping_shl(first as u32).wrapping_sub(1)) as __mmask16
            }

            #[inline(always)]
            unsafe fn load_part(from: *const f32, mask: __mmask16) -> Self {
                // SAFETY: the caller vouches for the instructions and the elements.
                unsafe { _mm512_maskz_loadu_ps(mask, from) }
            }

            #[inline(always)]
            unsafe fn store_part(self, to: *mut f32, mask: __mmask16) {
                // SAFETY: the caller vouches for the instructions and the elements.
                unsafe { _mm512_mask_storeu_ps(to, mask, self) }
            }

            #[inline(always)]
            unsafe fn select(self, mask: __mmask16, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe { _mm512_mask_blend_ps(mask, other, self) }
            }

            #[inline(always)]
            unsafe fn evens(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe {
                    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
                    _mm512_permutex2var_ps(self, even, other)
                }
            }

            #[inline(always)]
            unsafe fn odds(self, other: Self) -> Self {
                // SAFETY: the caller vouches for the instructions.
                unsafe {
                    let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
                    _mm512_permutex2var_ps(self, odd, other)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs every function on one vector after another and compares with plain loops.
    struct Check;

    impl Kernel for Check {
        #[inline(always)]
        unsafe fn run<V: Vector>(self) {
            let x: Vec<f32> = (0..2 * V::LANES).map(|i| i as f32 - 3.5).collect();
            let read = |v: V| {
                let mut out = vec![0.0; V::LANES];
                // SAFETY: there is room for a vector.
                unsafe { v.store(out.as_mut_ptr()) };
                out
            };
            let plain = |f: &dyn Fn(usize) -> f32| (0..V::LANES).map(f).collect::<Vec<_>>();
            // SAFETY: two vectors of elements are there.
            unsafe {
                let (a, b) = (V::load(x.as_ptr()), V::load(x[V::LANES..].as_ptr()));
                let (n, c) = (V::LANES, V::splat(2.5));
                assert_eq!(read(a.fma(b, c)), plain(&|i| x[i] + x[n + i] * 2.5));
                assert_eq!(read(a.add(b)), plain(&|i| x[i] + x[n + i]));
                assert_eq!(read(a.mul(b)), plain(&|i| x[i] * x[n + i]));
                assert_eq!(read(a.min(c)), plain(&|i| x[i].min(2.5)));
                assert_eq!(read(a.max(c)), plain(&|i| x[i].max(2.5)));
                assert_eq!(read(V::splat(f32::NAN).max(c)), plain(&|_| 2.5));
                assert_eq!(read(a.evens(b)), plain(&|i| x[2 * i]));
                assert_eq!(read(a.odds(b)), plain(&|i| x[2 * i + 1]));
                for first in 0..=n {
                    for last in 0..=n {
                        let mask = V::mask(first, last);
                        let inside = |i: usize| first <= i && i < last;
                        assert_eq!(read(a.select(mask, b)), plain(&|i| x[if inside(i) { i } else { n + i }]));
                        let mut out = vec![9.0; n];
                        a.store_part(out.as_mut_ptr(), mask);
                        assert_eq!(out, plain(&|i| if inside(i) { x[i] } else { 9.0 }));
                        // Lanes that lie outside of the slice are not touched.
                        if first < last {
                            let some = x[first..last].to_vec();
                            let part = V::load_part(some.as_ptr().wrapping_sub(first), mask);
                            assert_eq!(read(part), plain(&|i| if inside(i) { x[i] } else { 0.0 }));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn vectors_of_every_kind_compute_as_plain_loops() {
        [Isa::Scalar, Isa::Avx2, Isa::Avx512].into_iter().for_each(|isa| run(isa, Check));
    }
}
