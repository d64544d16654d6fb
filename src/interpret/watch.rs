//! Who sees the values of a run.

use super::integer::Meaning;
use crate::error::Fault;
use crate::ir::{Array, Datum, Extent, Limits, ValueId};

/// Sees values as they are computed, graph inputs included, constants not. What only integers stand for is shown as
/// the real numbers that they mean. A closure sees them all.
pub trait Watch {
    /// Is the value to be shown? What is not need not be computed on its own.
    fn wants(&self, id: ValueId) -> bool {
        let _ = id;
        true
    }

    /// Sees a value, and the extent of its elements if that is known already.
    fn see(&mut self, id: ValueId, value: &Array, extent: Option<Extent>);
}

impl<F: FnMut(ValueId, &Array)> Watch for F {
    fn see(&mut self, id: ValueId, value: &Array, _: Option<Extent>) {
        self(id, value);
    }
}

/// A value of the graph, where it lives, and what it is if integers stand for it.
#[derive(Clone)]
pub(super) struct Shown {
    pub slot: usize,
    pub id: ValueId,
    pub meaning: Option<Meaning>,
}

/// What an operator noticed of its result while it was at hand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noticed {
    /// The value that this one was made at once, by adding to it.
    pub sum: Option<ValueId>,
    /// What the elements were limited to after that.
    pub limits: Limits,
    /// Their extent after that.
    pub extent: Extent,
}

impl Shown {
    /// Shows the value to those who want to see it.
    pub fn to(
        &self,
        values: &[Option<Datum>],
        noticed: Option<Noticed>,
        watch: &mut dyn Watch,
    ) -> Result<(), Fault> {
        if !watch.wants(self.id) {
            return Ok(());
        }
        match (&values[self.slot], &self.meaning) {
            (Some(Datum::Tensor(array)), None) => watch.see(self.id, array, noticed.map(|n| n.extent)),
            (Some(Datum::Tensor(array)), Some(meaning)) => watch.see(self.id, &meaning.reals(array)?, None),
            _ => {}
        }
        Ok(())
    }
}
