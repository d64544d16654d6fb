//! What calibration remembers of each value: a table of observers that threads fill apart and then merge.

use std::collections::BTreeMap;

use super::histogram::Histogram;

/// All that was seen of one value over the calibration data.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observer {
    /// The distribution of its elements.
    pub histogram: Histogram,
    /// How many tensors were seen.
    pub batches: u64,
}

impl Observer {
    /// Takes in one more tensor, whatever its shape.
    pub fn observe(&mut self, values: &[f32]) {
        self.histogram.record(values);
        self.batches += 1;
    }

    /// Takes in all that `other` saw.
    pub fn merge(&mut self, other: &Observer) {
        self.histogram.merge(&other.histogram);
        self.batches += other.batches;
    }
}

/// Observers of the watched values, by the id of the value.
///
/// Each thread clones the empty table, fills it and gives it back; the merged result is the same in any order.
#[derive(Clone, Debug, PartialEq)]
pub struct Observers<K: Ord>(BTreeMap<K, Observer>);

impl<K: Ord + Copy> Observers<K> {
    /// A table that watches `keys` and nothing else.
    pub fn watching(keys: impl IntoIterator<Item = K>) -> Self {
        Self(keys.into_iter().map(|key| (key, Observer::default())).collect())
    }

    /// Whether `key` is watched: its tensor is worth keeping until it was observed.
    pub fn watches(&self, key: K) -> bool {
        self.0.contains_key(&key)
    }

    /// Shows a tensor to the observer of `key`; ignored if nobody watches.
    pub fn observe(&mut self, key: K, values: &[f32]) {
        if let Some(observer) = self.0.get_mut(&key) {
            observer.observe(values);
        }
    }

    /// What was seen of `key`; `None` if it is not watched.
    pub fn get(&self, key: K) -> Option<&Observer> {
        self.0.get(&key)
    }

    /// Observers in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (K, &Observer)> {
        self.0.iter().map(|(&key, observer)| (key, observer))
    }

    /// Takes in all that `other` saw; then watches what either watched.
    pub fn merge(&mut self, other: Observers<K>) {
        for (key, observer) in other.0 {
            self.0.entry(key).or_default().merge(&observer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unwatched_values_leave_no_trace() {
        let mut table = Observers::watching([1u32, 2]);
        table.observe(3, &[1.0]);
        assert!(!table.watches(3) && table.get(3).is_none());
        assert_eq!(table, Observers::watching([2, 1]));
    }

    #[test]
    fn threads_give_what_one_thread_gives() {
        let tensors: Vec<(u32, Vec<f32>)> =
            (0..40u32).map(|i| (i % 3, (0..50).map(|j| (i * j) as f32 - 70.0).collect())).collect();
        let empty = Observers::watching([0, 1]);
        let run = |part: &[(u32, Vec<f32>)]| {
            let mut table = empty.clone();
            part.iter().for_each(|(key, values)| table.observe(*key, values));
            table
        };
        let (first, second) = tensors.split_at(13);
        let mut merged = run(second);
        merged.merge(run(first));
        assert_eq!(merged, run(&tensors));
        assert_eq!(merged.iter().map(|(key, o)| (key, o.batches)).collect::<Vec<_>>(), [(0, 14), (1, 13)]);
    }
}
