//! A constant matrix or filter, laid out once for all runs.

use std::sync::{Arc, OnceLock};

use crate::ir::Array;
use crate::kernels::product::Panels;

/// The constant, and its panels as soon as a product wants them.
#[derive(Debug)]
pub struct Ready {
    source: Array,
    panels: OnceLock<Panels>,
}

impl Ready {
    /// For a constant of this many dimensions at least.
    pub fn of(constant: Option<&Array>, rank: usize) -> Option<Arc<Self>> {
        let source = constant.filter(|array| array.rank() >= rank && array.get::<f32>().is_some())?.clone();
        Some(Arc::new(Self { source, panels: OnceLock::new() }))
    }

    /// The panels that `lay_out` makes of these elements; none if they are not those of the constant, as someone may
    /// try what other weights do.
    pub fn panels(&self, elements: &[f32], lay_out: impl FnOnce() -> Panels) -> Option<&Panels> {
        let own = self.source.get::<f32>()?.as_slice()?;
        std::ptr::eq(own, elements).then(|| self.panels.get_or_init(lay_out))
    }
}
