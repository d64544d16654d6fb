//! Element types of a byte and less that Rust has no type for: 8- and 4-bit floats, 4- and 2-bit integers.
//!
//! One element takes one byte in memory, its bits at the low end; files pack them ([`pack`], [`unpack`]).
//! The formats are those of <https://onnx.ai/onnx/technical/float8.html> and <https://onnx.ai/onnx/technical/int4.html>.

use super::types::{DType, Element};

/// An element type stored in the low bits of a byte.
pub trait Small: Element + Copy {
    /// The element of these bits; higher ones are ignored.
    fn from_bits(bits: u8) -> Self;
    /// The bits, higher ones zero.
    fn to_bits(self) -> u8;
}

/// A floating-point type of 8 bits or fewer.
pub trait Minifloat: Small {
    /// The number that it stands for.
    fn to_f64(self) -> f64;
    /// The nearest value, halves to the even one. What is too large becomes the largest value if `saturate`, else
    /// infinity or, where there is none, not-a-number.
    fn from_f64(x: f64, saturate: bool) -> Self;
}

/// An integer type of fewer than 8 bits.
pub trait Nibble: Small {
    /// The same value.
    fn to_i8(self) -> i8;
    /// Keeps the low bits.
    fn truncate(value: i8) -> Self;
    /// The lowest value.
    const MIN: i8;
    /// The highest value.
    const MAX: i8;
}

/// How a signed floating-point format spends its bits.
struct Format {
    bits: u32,
    mantissa: u32,
    bias: i32,
    /// Bits of the largest finite number.
    max: u8,
    nan: Option<u8>,
    infinity: Option<u8>,
    /// Has zero no sign?
    one_zero: bool,
}

impl Format {
    fn sign(&self) -> u8 {
        1 << (self.bits - 1)
    }

    fn decode(&self, bits: u8) -> f64 {
        let magnitude = bits & (self.sign() - 1);
        let sign = if bits & self.sign() == 0 { 1.0 } else { -1.0 };
        let is_nan = match self.nan {
            Some(nan) if self.one_zero => bits == nan,
            Some(_) => magnitude > self.max && self.infinity != Some(magnitude),
            None => false,
        };
        if is_nan {
            return f64::NAN;
        }
        if self.infinity == Some(magnitude) {
            return sign * f64::INFINITY;
        }
        let exponent = i32::from(magnitude >> self.mantissa);
        let fraction = f64::from(magnitude & ((1 << self.mantissa) - 1)) / f64::from(1u32 << self.mantissa);
        let (exponent, fraction) = if exponent == 0 { (1, fraction) } else { (exponent, 1.0 + fraction) };
        sign * fraction * two_to(exponent - self.bias)
    }

    fn encode(&self, x: f64, saturate: bool) -> u8 {
        let sign = if x.is_sign_negative() { self.sign() } else { 0 };
        if x.is_nan() {
            // Where nothing stands for it, the sign bit alone is left.
            return self.nan.map_or(self.sign(), |nan| if self.one_zero { nan } else { nan | sign });
        }
        let a = x.abs();
        let lowest = 1 - self.bias;
        let exponent = if a == 0.0 { lowest } else { exponent_of(a).max(lowest) };
        // In units of the last place: exact, since only the exponent changes.
        let units = (a / two_to(exponent - self.mantissa as i32)).round_ties_even();
        let code = if a.is_infinite() {
            f64::INFINITY
        } else {
            f64::from((exponent - lowest) << self.mantissa) + units
        };
        if code > f64::from(self.max) {
            return match (saturate, self.infinity, self.nan) {
                (false, Some(infinity), _) => infinity | sign,
                (false, None, Some(nan)) => {
                    if self.one_zero {
                        nan
                    } else {
                        nan | sign
                    }
                }
                _ => self.max | sign,
            };
        }
        let magnitude = code as u8;
        if magnitude == 0 && self.one_zero { 0 } else { magnitude | sign }
    }
}

/// `2^n` for the exponents that these formats and `f32` have.
fn two_to(n: i32) -> f64 {
    f64::from_bits(((n + 1023).clamp(1, 2046) as u64) << 52)
}

/// The exponent of a positive number; that of the least normal one for those below.
fn exponent_of(x: f64) -> i32 {
    (((x.to_bits() >> 52) & 0x7ff) as i32 - 1023).max(-1022)
}

macro_rules! small {
    ($($t:ident: $doc:literal),*) => { $(
        #[doc = $doc]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $t(u8);
        impl Element for $t { const DTYPE: DType = DType::$t; }
        impl Small for $t {
            fn from_bits(bits: u8) -> Self { Self(bits & (u8::MAX >> (8 - DType::$t.bits()))) }
            fn to_bits(self) -> u8 { self.0 }
        }
    )* };
}

small! {
    F8E4M3FN: "4 bits of exponent, 3 of mantissa, no infinity.",
    F8E4M3FNUZ: "4 bits of exponent, 3 of mantissa, no infinity, one zero.",
    F8E5M2: "5 bits of exponent, 2 of mantissa: the upper half of a float16.",
    F8E5M2FNUZ: "5 bits of exponent, 2 of mantissa, no infinity, one zero.",
    F8E8M0: "A power of two: 8 bits of exponent and no sign.",
    F4E2M1: "2 bits of exponent, 1 of mantissa: finite numbers only.",
    U4: "0 to 15.",
    I4: "-8 to 7.",
    U2: "0 to 3.",
    I2: "-2 to 1."
}

macro_rules! minifloats {
    ($($t:ident: $format:expr;)*) => { $(
        impl Minifloat for $t {
            fn to_f64(self) -> f64 {
                const FORMAT: Format = $format;
                FORMAT.decode(self.0)
            }
            fn from_f64(x: f64, saturate: bool) -> Self {
                const FORMAT: Format = $format;
                Self(FORMAT.encode(x, saturate))
            }
        }
    )* };
}

const fn float8(mantissa: u32, bias: i32, max: u8, nan: u8, infinity: Option<u8>) -> Format {
    Format { bits: 8, mantissa, bias, max, nan: Some(nan), infinity, one_zero: nan == 0x80 }
}

minifloats! {
    F8E4M3FN: float8(3, 7, 0x7e, 0x7f, None);
    F8E4M3FNUZ: float8(3, 8, 0x7f, 0x80, None);
    F8E5M2: float8(2, 15, 0x7b, 0x7e, Some(0x7c));
    F8E5M2FNUZ: float8(2, 16, 0x7f, 0x80, None);
    F4E2M1: Format { bits: 4, mantissa: 1, bias: 1, max: 7, nan: None, infinity: None, one_zero: false };
}

/// Which power of two a number between two becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Towards {
    /// The greater one.
    Up,
    /// The lesser one.
    Down,
    /// The nearer one, halves up.
    Nearest,
}

impl F8E8M0 {
    const NAN: u8 = 0xff;

    /// The number that it stands for.
    pub fn to_f64(self) -> f64 {
        if self.0 == Self::NAN { f64::NAN } else { two_to(i32::from(self.0) - 127) }
    }

    /// A power of two near the magnitude of `x`.
    pub fn from_f64(x: f64, saturate: bool, towards: Towards) -> Self {
        let a = x.abs();
        if a.is_nan() {
            return Self(Self::NAN);
        }
        let exponent =
            if a == 0.0 || a.is_infinite() { if a == 0.0 { -127 } else { 128 } } else { exponent_of(a) };
        let fraction = a / two_to(exponent.clamp(-1022, 1023));
        let up = match towards {
            Towards::Up => fraction > 1.0,
            Towards::Down => false,
            Towards::Nearest => fraction >= 1.5,
        };
        match exponent + 127 + i32::from(up && a.is_finite()) {
            code @ 0..=254 => Self(code as u8),
            code if code < 0 => Self(0),
            _ if saturate => Self(254),
            _ => Self(Self::NAN),
        }
    }
}

macro_rules! nibbles {
    ($($t:ident $min:literal $max:literal;)*) => { $(
        impl Nibble for $t {
            const MIN: i8 = $min;
            const MAX: i8 = $max;
            fn to_i8(self) -> i8 {
                // A negative lowest value: the highest bit counts down.
                let value = self.0 as i8;
                if value > Self::MAX { value + 2 * Self::MIN } else { value }
            }
            fn truncate(value: i8) -> Self { Self::from_bits(value as u8) }
        }
    )* };
}

nibbles! { U4 0 15; I4 -8 7; U2 0 3; I2 -2 1; }

/// The bytes of a file for these elements: several to a byte, the first in the low bits.
pub fn pack<T: Small>(elements: impl Iterator<Item = T>, count: usize) -> Vec<u8> {
    let bits = T::DTYPE.bits();
    let mut bytes = vec![0u8; (count * bits).div_ceil(8)];
    for (i, element) in elements.enumerate() {
        if let Some(byte) = bytes.get_mut(i * bits / 8) {
            *byte |= element.to_bits() << (i * bits % 8);
        }
    }
    bytes
}

/// `count` elements from the bytes of a file.
pub fn unpack<T: Small>(bytes: &[u8], count: usize) -> Vec<T> {
    let bits = T::DTYPE.bits();
    let bit = |i: usize| bytes.get(i * bits / 8).copied().unwrap_or(0) >> (i * bits % 8);
    (0..count).map(|i| T::from_bits(bit(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value comes back, and what lies between two goes to the nearer one.
    fn check<T: Minifloat + PartialEq + std::fmt::Debug>() {
        let all: Vec<T> = (0..=u8::MAX >> (8 - T::DTYPE.bits())).map(T::from_bits).collect();
        let mut finite: Vec<(f64, T)> =
            all.iter().map(|&v| (v.to_f64(), v)).filter(|(x, _)| x.is_finite()).collect();
        for &(x, v) in &finite {
            assert_eq!(T::from_f64(x, true).to_f64(), v.to_f64());
        }
        finite.sort_by(|a, b| a.0.total_cmp(&b.0));
        for pair in finite.windows(2).filter(|p| p[0].0 < p[1].0) {
            let (a, b) = (pair[0], pair[1]);
            let near = |share: f64| T::from_f64(a.0 + (b.0 - a.0) * share, true).to_f64();
            assert_eq!((near(0.49), near(0.51)), (a.0, b.0));
            let even = if a.1.to_bits() & 1 == 0 { a.0 } else { b.0 };
            assert_eq!(near(0.5), even);
        }
    }

    #[test]
    fn floats_round_to_nearest_even() {
        check::<F8E4M3FN>();
        check::<F8E4M3FNUZ>();
        check::<F8E5M2>();
        check::<F8E5M2FNUZ>();
        check::<F4E2M1>();
    }

    #[test]
    fn what_is_too_large() {
        assert_eq!(F8E4M3FN::from_f64(1e6, true).to_f64(), 448.0);
        assert!(F8E4M3FN::from_f64(1e6, false).to_f64().is_nan());
        assert_eq!(F8E5M2::from_f64(-1e6, true).to_f64(), -57344.0);
        assert_eq!(F8E5M2::from_f64(-1e6, false).to_f64(), f64::NEG_INFINITY);
        assert!(F8E5M2FNUZ::from_f64(f64::INFINITY, false).to_f64().is_nan());
        assert_eq!(F8E4M3FNUZ::from_f64(-1e-9, true).to_bits(), 0);
        assert_eq!(F4E2M1::from_f64(f64::NEG_INFINITY, false).to_f64(), -6.0);
    }

    #[test]
    fn powers_of_two() {
        let near = |x, towards| F8E8M0::from_f64(x, true, towards).to_f64();
        assert_eq!(
            (near(5.0, Towards::Up), near(5.0, Towards::Down), near(6.0, Towards::Nearest)),
            (8.0, 4.0, 8.0)
        );
        assert_eq!((near(0.0, Towards::Up), near(f64::INFINITY, Towards::Up)), (two_to(-127), two_to(127)));
        assert!(F8E8M0::from_f64(f64::INFINITY, false, Towards::Up).to_f64().is_nan());
    }

    #[test]
    fn integers_pack() {
        let values = [-8i8, 7, -1, 0, 3].map(I4::truncate);
        assert_eq!(values.map(Nibble::to_i8), [-8, 7, -1, 0, 3]);
        let bytes = pack(values.iter().copied(), 5);
        assert_eq!(bytes, [0x78, 0x0f, 0x03]);
        assert_eq!(unpack::<I4>(&bytes, 5), values);
        let values = [-2i8, 1, 0, -1, 1].map(I2::truncate);
        assert_eq!(values.map(Nibble::to_i8), [-2, 1, 0, -1, 1]);
        assert_eq!(unpack::<I2>(&pack(values.iter().copied(), 5), 5), values);
        assert_eq!([U2::truncate(3).to_i8(), U4::truncate(15).to_i8()], [3, 15]);
    }
}
