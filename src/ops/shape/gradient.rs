//! The gradients of operators that change the shape: they go back to where the values came from.

use super::{Expand, Flatten, Reshape, Squeeze, Transpose, Unsqueeze};
use crate::ir::{Gradient, Run};
use crate::ops::gradient::{Gradients, moved, reshaped};

impl Gradient for Reshape {
    fn backward(&self, run: &Run) -> Gradients {
        reshaped(run)
    }
}

impl Gradient for Flatten {
    fn backward(&self, run: &Run) -> Gradients {
        reshaped(run)
    }
}

impl Gradient for Squeeze {
    fn backward(&self, run: &Run) -> Gradients {
        reshaped(run)
    }
}

impl Gradient for Unsqueeze {
    fn backward(&self, run: &Run) -> Gradients {
        reshaped(run)
    }
}

impl Gradient for Transpose {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

impl Gradient for Expand {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}
