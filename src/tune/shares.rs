//! Which samples are for what, and how many: those that something is learned from never judge it.

/// One sample in so many judges.
const HELD_OUT: usize = 5;

/// What the steps of tuning may take: mostly samples, for the price of a step is the runs of the model that it needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Over so many gradients are followed.
    pub followed: usize,
    /// So many judge.
    pub judging: usize,
    /// So many are run side by side when weights are rounded anew.
    pub abreast: usize,
    /// Descents of a layer: outputs that saturate choose their targets anew before each.
    pub rounds: usize,
    /// Is it tried for each layer how much its weights should be held to where they were?
    pub ridges: bool,
    /// Weights are fitted for so many of the plans that are tried, and what costs least then is taken.
    pub finalists: usize,
    /// Are ranges chosen once more, from what values hold when everything before them is quantized?
    pub again: bool,
    /// Noise costs so many times what the target says: who gives more time to accuracy gives some speed as well.
    pub dearer: f64,
}

/// The samples by what they are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    /// Those that weights are chosen on; none if there are so few samples that all judge.
    pub learning: Vec<usize>,
    /// Those that judge.
    pub judging: Vec<usize>,
}

/// A sample that is run side by side with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Which it is.
    pub sample: usize,
    /// Are weights chosen on it?
    pub learns: bool,
    /// Does it judge what was chosen?
    pub judges: bool,
}

impl Shares {
    /// Of so many samples, of which at most so many judge.
    pub fn of(samples: usize, judging: usize) -> Self {
        if samples < HELD_OUT {
            return Self { learning: Vec::new(), judging: (0..samples).collect() };
        }
        let (held, learning): (Vec<_>, Vec<_>) = (0..samples).partition(|i| i % HELD_OUT == HELD_OUT - 1);
        Self { learning, judging: spread(&held, judging) }
    }

    /// Samples to run side by side, at most so many, in their order. If all judge, all are learned from as well.
    pub fn abreast(&self, most: usize) -> Vec<Run> {
        let judges = spread(&self.judging, if self.learning.is_empty() { most } else { most / HELD_OUT });
        let learning = spread(&self.learning, most - judges.len());
        let all = self.learning.is_empty();
        let mut runs: Vec<Run> = learning
            .into_iter()
            .map(|sample| Run { sample, learns: true, judges: false })
            .chain(judges.into_iter().map(|sample| Run { sample, learns: all, judges: true }))
            .collect();
        runs.sort_by_key(|run| run.sample);
        runs
    }
}

/// So many of these, evenly spread; all of them if there are fewer.
pub fn spread(all: &[usize], most: usize) -> Vec<usize> {
    let count = all.len().min(most);
    (0..count).map(|i| all[i * all.len() / count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judges_took_no_part_however_many_run_side_by_side() {
        for (samples, most) in [(100, 100), (100, 30), (100, 5), (250, 100), (30, 100), (7, 5), (5, 5)] {
            let shares = Shares::of(samples, 20);
            let Shares { learning, judging } = &shares;
            assert!(judging.len() == (samples / 5).min(20) && judging.is_sorted() && learning.is_sorted());
            assert!(learning.iter().all(|i| !judging.contains(i)), "{samples} {most}");
            let runs = shares.abreast(most);
            assert!(runs.len() <= most && runs.is_sorted_by_key(|run| run.sample));
            assert!(runs.iter().any(|run| run.learns) && runs.iter().any(|run| run.judges));
            for run in runs {
                assert_eq!((run.learns, run.judges), (learning.contains(&run.sample), !run.learns));
                assert!(run.learns || judging.contains(&run.sample), "{samples} {most}");
            }
        }
        assert_eq!(Shares::of(100, 20).abreast(50).len(), 50);
    }

    #[test]
    fn few_samples_all_judge() {
        let shares = Shares::of(4, 20);
        assert_eq!(shares, Shares { learning: vec![], judging: vec![0, 1, 2, 3] });
        assert!(shares.abreast(5).iter().all(|run| run.learns && run.judges));
    }
}
