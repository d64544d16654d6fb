//! Operators that copy or convert elements.

use std::sync::Arc;

use super::{ONNX, Op, OpDef};
use crate::error::Fault;
use crate::ir::{Array, Fact, Rule, TensorType};

/// The family.
pub const OPS: &[OpDef] =
    &[OpDef { domain: ONNX, name: "Identity", since: 1, parse: |_| Ok(Arc::new(Identity)) }];

/// The input as it is.
#[derive(Debug)]
pub struct Identity;

impl Op for Identity {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![inputs.first().copied().flatten().map(|f| f.ty.clone())])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        match inputs {
            [Some(x), ..] => Ok(vec![x.clone()]),
            _ => Err("input 0 is missing".into()),
        }
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn backend() {
        crate::ops::backend_tests::run("cast");
    }
}
