//! Softmax of bytes by a table of powers.

/// `e^((i - 255 + shift) · scale)` for every unsigned byte `i`, where `shift` makes the most of `f32` without letting a
/// sum of `n` powers overflow.
pub fn powers(scale: f32, n: usize) -> [f32; 256] {
    let largest = f64::from(libm::logf(f32::MAX / n as f32));
    let shift = (largest - 5.0).max(0.0) / f64::from(scale);
    std::array::from_fn(|i| libm::exp((i as f64 - 255.0 + shift) * f64::from(scale)) as f32)
}

/// The shares of each power in the sum of its row of `n` bytes, in steps of `1 / levels` from `zero` up.
///
/// The greatest byte of a row is moved to 255, so that powers are as large as they can be.
pub fn rows(x: &[u8], n: usize, flip: u8, powers: &[f32; 256], levels: f32, zero: i32) -> Vec<u8> {
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks_exact(n.max(1)) {
        let greatest = row.iter().map(|b| b ^ flip).max().unwrap_or(255);
        let power = |b: u8| powers[usize::from((b ^ flip) + (255 - greatest))];
        let sum = row.iter().fold(0.0f32, |sum, &b| sum + power(b));
        y.extend(row.iter().map(|&b| {
            let share = (power(b) * levels / sum).round_ties_even() as i32;
            share.saturating_add(zero).min(255) as u8 ^ flip
        }));
    }
    y
}
