//! A constant right matrix, laid out once for all runs.

use std::sync::{Arc, OnceLock};

use crate::ir::Array;
use crate::kernels::gemm::{Mat, Parts, Size};
use crate::kernels::product::Panels;

/// The matrix, and its panels as soon as a product wants them.
#[derive(Debug)]
pub struct Ready {
    source: Array,
    panels: OnceLock<Panels>,
}

impl Ready {
    /// For a constant of two dimensions.
    pub fn of(constant: Option<&Array>) -> Option<Arc<Self>> {
        let source = constant.filter(|array| array.rank() == 2 && array.get::<f32>().is_some())?.clone();
        Some(Arc::new(Self { source, panels: OnceLock::new() }))
    }

    /// The panels of the matrix with these elements; none if it is another than the constant, as someone may try what
    /// other weights do, or if it need not be laid out for such a product.
    pub fn panels(&self, b: Mat<f32>, size: Size, parts: Parts) -> Option<&Panels> {
        let own = self.source.get::<f32>()?.as_slice()?;
        let wanted = std::ptr::eq(own, b.data) && Panels::pay(&b, size);
        let panels = || self.panels.get_or_init(|| Panels::of(b, (size.k, size.n), parts));
        wanted.then(panels)
    }
}
