//! A memory that takes in one key and value after another: the recurrence of linear attention.

/// The memory of a head: a matrix with a row for each number of a key and a column for each of a value.
#[derive(Debug)]
pub struct State<'a> {
    /// The rows one after another.
    pub memory: &'a mut [f32],
    /// Numbers in a row.
    pub value_size: usize,
}

/// What comes in at one position.
#[derive(Debug)]
pub struct Step<'a> {
    /// Where in the memory.
    pub key: &'a [f32],
    /// What.
    pub value: &'a [f32],
    /// The logarithm of what is left of each row.
    pub decay: Option<&'a [f32]>,
    /// How much of what the memory does not know yet is written; without it the value itself is.
    pub beta: Option<f32>,
}

impl State<'_> {
    /// `scale · queryᵀ · memory`.
    pub fn read(&self, query: &[f32], scale: f32, target: &mut [f32]) {
        target.fill(0.0);
        for (row, q) in self.memory.chunks_exact(self.value_size.max(1)).zip(query) {
            target.iter_mut().zip(row).for_each(|(y, m)| *y += q * m);
        }
        target.iter_mut().for_each(|y| *y *= scale);
    }
}

/// Lets the memory decay and writes one key and value to it.
pub fn advance(state: &mut State, step: &Step) {
    let width = state.value_size.max(1);
    if let Some(decay) = step.decay {
        for (row, d) in state.memory.chunks_exact_mut(width).zip(decay) {
            let left = super::math::exp(*d);
            row.iter_mut().for_each(|m| *m *= left);
        }
    }
    let mut value = step.value.to_vec();
    if let Some(beta) = step.beta {
        let mut recalled = vec![0.0; value.len()];
        state.read(step.key, 1.0, &mut recalled);
        value.iter_mut().zip(recalled).for_each(|(v, r)| *v = beta * (*v - r));
    }
    for (row, k) in state.memory.chunks_exact_mut(width).zip(step.key) {
        row.iter_mut().zip(&value).for_each(|(m, v)| *m += k * v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn steps_are_their_definition(keys in 1usize..6, values in 1usize..6, seed: u32, decays: bool, corrects: bool) {
            let numbers = |len: usize, salt: u32| -> Vec<f32> {
                let bits = |i: u32| (i + 1).wrapping_mul(2_654_435_761).wrapping_add(seed ^ salt) >> 20;
                (0..len as u32).map(|i| bits(i) as f32 / 2048.0 - 1.0).collect()
            };
            let (key, value, decay) = (numbers(keys, 1), numbers(values, 2), numbers(keys, 3));
            let mut memory = numbers(keys * values, 4);
            let before: Vec<f64> = memory.iter().map(|&m| m.into()).collect();
            let beta = corrects.then_some(0.75f32);
            let step = Step { key: &key, value: &value, decay: decays.then_some(&decay), beta };
            advance(&mut State { memory: &mut memory, value_size: values }, &step);
            let left = |r: usize| if decays { libm::exp(decay[r].into()) } else { 1.0 };
            for (at, found) in memory.iter().enumerate() {
                let (row, column) = (at / values, at % values);
                let kept = |r: usize| before[r * values + column] * left(r);
                let recalled: f64 = (0..keys).map(|r| f64::from(key[r]) * kept(r)).sum();
                let new = f64::from(value[column]);
                let written = beta.map_or(new, |beta| f64::from(beta) * (new - recalled));
                let expected = kept(row) + f64::from(key[row]) * written;
                prop_assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} instead of {expected}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut memory = [0.0; 6];
        let mut state = State { memory: &mut memory, value_size: 3 };
        let mut read = [0.0; 3];
        advance(&mut state, &Step { key: &[0.0, 1.0], value: &[1.0, 2.0, 3.0], decay: None, beta: None });
        state.read(&[5.0, 2.0], 0.5, &mut read);
        assert_eq!(read, [1.0, 2.0, 3.0]);
        // A full correction replaces what the key recalls.
        advance(
            &mut state,
            &Step { key: &[0.0, 1.0], value: &[7.0, 7.0, 7.0], decay: None, beta: Some(1.0) },
        );
        state.read(&[0.0, 1.0], 1.0, &mut read);
        assert_eq!(read, [7.0; 3]);
        let decay = [0.0, f32::NEG_INFINITY];
        advance(&mut state, &Step { key: &[1.0, 0.0], value: &[1.0; 3], decay: Some(&decay), beta: None });
        state.read(&[0.0, 1.0], 1.0, &mut read);
        assert_eq!(read, [0.0; 3]);
    }
}
