//! Means of bytes.

use super::finish::ByteRange;

/// The rounded mean of each plane of `n` bytes: `round(clamp(Σ (q - zero) · scale)) + zero'`, where `scale` includes
/// the division by `n`. Bytes are made unsigned with `flip`.
pub fn plane_means(x: &[u8], n: usize, flip: u8, zero: i32, scale: f32, range: ByteRange) -> Vec<u8> {
    let mean = |plane: &[u8]| {
        let sum: i32 = plane.iter().map(|&b| i32::from(b ^ flip)).fold(0, i32::wrapping_add);
        range.byte(sum.wrapping_sub(zero.wrapping_mul(n as i32)) as f32 * scale)
    };
    x.chunks_exact(n.max(1)).map(mean).collect()
}

/// Bytes nearest to real numbers with the zero point added before rounding: `round(v / scale + zero)`.
pub fn quantize_shifted(values: &[f32], scale: f32, zero: i32) -> Vec<u8> {
    const ALL: ByteRange = ByteRange { low: 0.0, high: 255.0, zero: 0 };
    values.iter().map(|v| ALL.byte(v / scale + zero as f32)).collect()
}
