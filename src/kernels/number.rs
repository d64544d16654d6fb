//! One arithmetic for every numeric element type: integers wrap, half floats compute in `f32` and round once.

use half::{bf16, f16};

/// An element type that can be added, multiplied, compared and rounded.
pub trait Number: Copy + PartialOrd + Default + Send + Sync + 'static {
    /// Is it an integer?
    const INTEGER: bool;
    /// The value 1.
    const ONE: Self;

    /// Sum.
    fn add(self, other: Self) -> Self;
    /// Difference.
    fn sub(self, other: Self) -> Self;
    /// Product.
    fn mul(self, other: Self) -> Self;
    /// Quotient; integers round towards zero, and dividing them by zero gives zero.
    fn div(self, other: Self) -> Self;
    /// Remainder with the sign of the dividend; zero for an integer divided by zero.
    fn rem(self, other: Self) -> Self;
    /// Remainder with the sign of the divisor; zero for an integer divided by zero.
    fn modulo(self, other: Self) -> Self;
    /// Absolute value; the least integer stays as it is.
    fn abs(self) -> Self;
    /// Negation; unsigned integers wrap.
    fn neg(self) -> Self;
    /// The nearest `f64`.
    fn to_f64(self) -> f64;
    /// The nearest value; integers round towards zero and saturate.
    fn from_f64(value: f64) -> Self;
    /// The value as a wide integer; real numbers round towards zero and saturate.
    fn to_i128(self) -> i128;
    /// The nearest value; integers keep their low bits.
    fn from_i128(value: i128) -> Self;

    /// The lesser, or whichever is not a number.
    fn min(self, other: Self) -> Self {
        if self < other || self.is_nan() { self } else { other }
    }
    /// The greater, or whichever is not a number.
    fn max(self, other: Self) -> Self {
        if self > other || self.is_nan() { self } else { other }
    }
    /// Is it not a number?
    #[allow(clippy::eq_op)]
    fn is_nan(self) -> bool {
        self != self
    }
    /// -1, 0 or 1; NaN stays.
    fn sign(self) -> Self {
        let zero = Self::default();
        if self > zero {
            Self::ONE
        } else if self < zero {
            Self::ONE.neg()
        } else {
            self
        }
    }
}

/// An integer with its bits.
pub trait Integer: Number {
    /// `self` to a power that is not negative, wrapping.
    fn power(self, exponent: u64) -> Self {
        let (mut result, mut base, mut left) = (Self::ONE, self, exponent);
        while left > 0 {
            if left & 1 == 1 {
                result = result.mul(base);
            }
            base = base.mul(base);
            left >>= 1;
        }
        result
    }
    /// Bits shifted up by `by`; zero if `by` is negative or at least the width.
    fn shift_left(self, by: Self) -> Self;
    /// Bits shifted down by `by`, keeping the sign; only the sign is left if `by` is negative or at least the width.
    fn shift_right(self, by: Self) -> Self;
    /// Bitwise and.
    fn and(self, other: Self) -> Self;
    /// Bitwise or.
    fn or(self, other: Self) -> Self;
    /// Bitwise exclusive or.
    fn xor(self, other: Self) -> Self;
    /// Every bit inverted.
    fn not(self) -> Self;
}

macro_rules! integers {
    ($($t:ty),*) => { $(
        impl Number for $t {
            const INTEGER: bool = true;
            const ONE: Self = 1;
            fn add(self, other: Self) -> Self { self.wrapping_add(other) }
            fn sub(self, other: Self) -> Self { self.wrapping_sub(other) }
            fn mul(self, other: Self) -> Self { self.wrapping_mul(other) }
            fn div(self, other: Self) -> Self { if other == 0 { 0 } else { self.wrapping_div(other) } }
            fn rem(self, other: Self) -> Self { if other == 0 { 0 } else { self.wrapping_rem(other) } }
            #[allow(unused_comparisons)]
            fn modulo(self, other: Self) -> Self {
                let rest = self.rem(other);
                if rest != 0 && (rest < 0) != (other < 0) { rest.wrapping_add(other) } else { rest }
            }
            #[allow(unused_comparisons)]
            fn abs(self) -> Self { if self < 0 { self.neg() } else { self } }
            fn neg(self) -> Self { self.wrapping_neg() }
            fn to_f64(self) -> f64 { self as f64 }
            fn from_f64(value: f64) -> Self { value as Self }
            fn to_i128(self) -> i128 { self as i128 }
            fn from_i128(value: i128) -> Self { value as Self }
        }
        impl Integer for $t {
            fn shift_left(self, by: Self) -> Self {
                u32::try_from(by).ok().and_then(|by| self.checked_shl(by)).unwrap_or(0)
            }
            #[allow(unused_comparisons)]
            fn shift_right(self, by: Self) -> Self {
                let sign = if self < 0 { (0 as $t).wrapping_sub(1) } else { 0 };
                u32::try_from(by).ok().and_then(|by| self.checked_shr(by)).unwrap_or(sign)
            }
            fn and(self, other: Self) -> Self { self & other }
            fn or(self, other: Self) -> Self { self | other }
            fn xor(self, other: Self) -> Self { self ^ other }
            fn not(self) -> Self { !self }
        }
    )* };
}

integers!(i8, i16, i32, i64, u8, u16, u32, u64);

macro_rules! reals {
    ($($t:ident via $wide:ident: $one:expr, $narrow:expr, $widen:expr, $real:expr, $integer:expr;)*) => { $(
        impl Number for $t {
            const INTEGER: bool = false;
            const ONE: Self = $one;
            #[inline]
            fn add(self, other: Self) -> Self { $narrow($widen(self) + $widen(other)) }
            #[inline]
            fn sub(self, other: Self) -> Self { $narrow($widen(self) - $widen(other)) }
            #[inline]
            fn mul(self, other: Self) -> Self { $narrow($widen(self) * $widen(other)) }
            #[inline]
            fn div(self, other: Self) -> Self { $narrow($widen(self) / $widen(other)) }
            fn rem(self, other: Self) -> Self { $narrow($widen(self) % $widen(other)) }
            fn modulo(self, other: Self) -> Self {
                let (x, y) = ($widen(self), $widen(other));
                let rest = x % y;
                $narrow(if rest == 0.0 {
                    (0.0 as $wide).copysign(y)
                } else if (rest < 0.0) != (y < 0.0) {
                    rest + y
                } else {
                    rest
                })
            }
            fn abs(self) -> Self { $narrow($widen(self).abs()) }
            fn neg(self) -> Self { $narrow(-$widen(self)) }
            fn to_f64(self) -> f64 { $widen(self).into() }
            fn from_f64(value: f64) -> Self { ($real)(value) }
            fn to_i128(self) -> i128 { $widen(self) as i128 }
            fn from_i128(value: i128) -> Self { ($integer)(value) }
        }
    )* };
}

reals! {
    f32 via f32: 1.0, f32::from, f32::from, |v| v as f32, |v| v as f32;
    f64 via f64: 1.0, f64::from, f64::from, f64::from, |v| v as f64;
    f16 via f32: f16::ONE, f16::from_f32, f16::to_f32, f16::from_f64, |v| f16::from_f64(v as f64);
    bf16 via f32: bf16::ONE, bf16::from_f32, bf16::to_f32, bf16::from_f64, |v| bf16::from_f64(v as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_wrap_and_never_fault() {
        assert_eq!(Number::add(i8::MAX, 1), i8::MIN);
        assert_eq!(Number::div(i32::MIN, -1), i32::MIN);
        assert_eq!((Number::div(7i32, 0), Number::rem(7u8, 0), Number::modulo(-7i64, 0)), (0, 0, 0));
        assert_eq!((Number::abs(i16::MIN), Number::neg(1u8)), (i16::MIN, 255));
        assert_eq!(Integer::power(3u8, 6), 217);
        assert_eq!(Integer::power(2i64, u64::MAX), 0);
    }

    #[test]
    fn remainders_take_the_right_sign() {
        let pairs = [(-7, 3), (7, -3), (-7, -3), (7, 3), (6, 3), (-6, 3)];
        for (a, b) in pairs {
            let floor = f64::from(a) - (f64::from(a) / f64::from(b)).floor() * f64::from(b);
            assert_eq!(f64::from(Number::modulo(a, b)), floor);
            assert_eq!(Number::modulo(f64::from(a), f64::from(b)), floor);
            assert_eq!(Number::rem(f64::from(a), f64::from(b)), f64::from(a % b));
        }
        assert_eq!(Number::modulo(1.0f32, f32::NEG_INFINITY), f32::NEG_INFINITY);
        assert!(Number::modulo(1.0f32, 0.0).is_nan() && Number::modulo(0.0f32, f32::NAN).is_nan());
    }

    #[test]
    fn nan_wins_comparisons() {
        for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN)] {
            assert!(Number::min(a, b).is_nan() && Number::max(a, b).is_nan());
        }
        assert!(Number::sign(f32::NAN).is_nan());
    }

    #[test]
    fn shifts_beyond_the_width() {
        assert_eq!((Integer::shift_left(1u8, 8), Integer::shift_left(1i8, 7)), (0, i8::MIN));
        assert_eq!((Integer::shift_right(-1i8, 9), Integer::shift_right(-4i8, 1)), (-1, -2));
        assert_eq!((Integer::shift_right(4i32, -1), Integer::shift_left(4i32, -1)), (0, 0));
    }
}
