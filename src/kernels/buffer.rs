//! Results that are no longer needed, kept by each thread as room for the next.
//!
//! A result is written as a whole, so what its buffer held before does not matter, and filling it with zeros first
//! would be a pass over memory for nothing.

use std::cell::RefCell;

/// Elements of all buffers that a thread keeps.
const MOST: usize = 1 << 22;
/// Smaller ones are not kept: the allocator is quick with them.
const LEAST: usize = 1 << 12;

thread_local!(static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) });

/// A buffer of this length and any content.
pub fn take(len: usize) -> Vec<f32> {
    let found = KEPT.with_borrow_mut(|kept| {
        // The smallest that is large enough, unless most of it would lie idle; of several the last, which is in the
        // cache.
        let fits = |buffer: &Vec<f32>| len >= LEAST && (len..=2 * len).contains(&buffer.capacity());
        let fitting = kept.iter().enumerate().rev().filter(|(_, buffer)| fits(buffer));
        let best = fitting.min_by_key(|(_, buffer)| buffer.capacity())?.0;
        Some(kept.remove(best))
    });
    match found {
        Some(mut buffer) => {
            buffer.resize(len, 0.0);
            buffer
        }
        None => vec![0.0; len],
    }
}

/// Keeps a buffer for later. The oldest ones have to go if there are too many.
pub fn give(buffer: Vec<f32>) {
    if buffer.len() < LEAST || buffer.capacity() > MOST {
        return;
    }
    KEPT.with_borrow_mut(|kept| {
        kept.push(buffer);
        let mut all = kept.iter().map(Vec::capacity).sum::<usize>();
        while all > MOST {
            all -= kept.remove(0).capacity();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_taken_again_if_it_fits() {
        give(vec![7.0; 3 * LEAST]);
        give(vec![8.0; 2 * LEAST]);
        give(vec![9.0; LEAST - 1]);
        let taken = |len: usize| {
            let buffer = take(len);
            (buffer.len() == len && buffer.iter().all(|&x| x == buffer[0])).then(|| buffer[0])
        };
        assert_eq!([LEAST, LEAST, 2 * LEAST, 2 * LEAST].map(taken), [8.0, 0.0, 7.0, 0.0].map(Some));
    }

    #[test]
    fn few_are_kept() {
        give(vec![1.0; MOST + 1]);
        assert_eq!(take(MOST + 1)[0], 0.0);
        give(vec![1.0; MOST / 2]);
        give(vec![2.0; MOST / 4]);
        give(vec![3.0; MOST / 2]);
        assert_eq!((take(MOST / 2)[0], take(MOST / 4)[0], take(MOST / 2)[0]), (3.0, 2.0, 0.0));
    }
}
