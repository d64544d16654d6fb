//! What calibration remembers of each value: observers, which can be added up, and tables of them.

use std::collections::BTreeMap;

use super::histogram::Histogram;
use crate::ir::Extent;
use crate::kernels::finish;

/// All that was seen of one value over the calibration data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observer {
    /// The distribution of its elements.
    pub histogram: Histogram,
    /// How many tensors were seen.
    pub batches: u64,
    /// The highest value and the first sample that holds it.
    pub highest: Option<(f32, usize)>,
}

impl Observer {
    /// Takes in one more tensor, whatever its shape, of this sample. Its extent is found if it is not given. Of a
    /// larger tensor about `most` elements are counted.
    pub fn observe(&mut self, values: &[f32], extent: Option<Extent>, sample: usize, most: usize) {
        let extent = extent.unwrap_or_else(|| finish::extent(values));
        let greatest = self.histogram.sample(values, extent, sample, most);
        self.batches += 1;
        self.highest = higher(self.highest, greatest.map(|max| (max, sample)));
    }

    /// Takes in all that `other` saw.
    pub fn merge(&mut self, other: &Observer) {
        self.histogram.merge(&other.histogram);
        self.batches += other.batches;
        self.highest = higher(self.highest, other.highest);
    }
}

/// The higher value; of equal ones that of the earlier sample.
fn higher(a: Option<(f32, usize)>, b: Option<(f32, usize)>) -> Option<(f32, usize)> {
    [a, b].into_iter().flatten().reduce(|a, b| if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a })
}

/// Observers of the watched values, by the id of the value.
#[derive(Clone, Debug, PartialEq)]
pub struct Observers<K: Ord>(BTreeMap<K, Observer>);

impl<K: Ord + Copy> Observers<K> {
    /// A table that watches `keys` and nothing else.
    pub fn watching(keys: impl IntoIterator<Item = K>) -> Self {
        Self(keys.into_iter().map(|key| (key, Observer::default())).collect())
    }

    /// Shows a tensor of a sample to the observer of `key`; ignored if nobody watches.
    pub fn observe(&mut self, key: K, values: &[f32], sample: usize) {
        if let Some(observer) = self.0.get_mut(&key) {
            observer.observe(values, None, sample, usize::MAX);
        }
    }

    /// Sets what was seen of `key`, and watches it from then on.
    pub fn put(&mut self, key: K, observer: Observer) {
        self.0.insert(key, observer);
    }

    /// What was seen of `key`; `None` if it is not watched.
    pub fn get(&self, key: K) -> Option<&Observer> {
        self.0.get(&key)
    }

    /// Observers in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (K, &Observer)> {
        self.0.iter().map(|(&key, observer)| (key, observer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_value_is_that_of_its_sample_in_any_order() {
        let samples = [3.0f32, 9.0, 1.0, 5.0];
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
            let mut observer = Observer::default();
            order.into_iter().for_each(|i| observer.observe(&[samples[i], f32::NAN, 2e30], None, i, 9));
            assert_eq!(observer.highest, Some((9.0, 1)));
        }
    }

    #[test]
    fn unwatched_values_leave_no_trace() {
        let mut table = Observers::watching([1u32, 2]);
        table.observe(3, &[1.0], 0);
        assert!(table.get(3).is_none());
        assert_eq!(table, Observers::watching([2, 1]));
    }

    #[test]
    fn threads_give_what_one_thread_gives() {
        let numbers = |i: u32| (0..50).map(|j| (i % 20 * j) as f32 - 70.0).collect();
        let tensors: Vec<Vec<f32>> = (0..40).map(numbers).collect();
        let run = |samples: std::ops::Range<usize>| {
            let mut observer = Observer::default();
            samples.for_each(|i| observer.observe(&tensors[i], None, i, 9));
            observer
        };
        let mut merged = run(13..40);
        merged.merge(&run(0..13));
        assert_eq!(merged, run(0..40));
        assert_eq!((merged.highest, merged.batches), (Some((19.0 * 49.0 - 70.0, 19)), 40));
    }
}
