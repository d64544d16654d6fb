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
