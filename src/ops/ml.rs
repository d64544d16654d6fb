//! Classic machine learning, from the domain `ai.onnx.ml`: LabelEncoder, ArrayFeatureExtractor, Binarizer and
//! TreeEnsemble.

use std::collections::HashMap;
use std::sync::Arc;

use super::operand::{Real, in_reals};
use super::slots::{indices, known, required};
use super::{Attrs, Fact, Op, OpDef};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, TensorType};
use crate::kernels::strided::take_array;

const DOMAIN: &str = "ai.onnx.ml";

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: DOMAIN, name: "LabelEncoder", since: 2, parse: LabelEncoder::parse },
    OpDef { domain: DOMAIN, name: "ArrayFeatureExtractor", since: 1, parse: |_| Ok(Arc::new(Features)) },
    OpDef {
        domain: DOMAIN,
        name: "Binarizer",
        since: 1,
        parse: |a| Ok(Arc::new(Binarizer { threshold: a.float("threshold", 0.0)? })),
    },
    OpDef { domain: DOMAIN, name: "TreeEnsemble", since: 5, parse: TreeEnsemble::parse },
];

/// An element to look up; real numbers by their bits, with one zero and one not-a-number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Text(String),
    Whole(i64),
    Real(u64),
}

fn real_key(value: f64) -> Key {
    Key::Real(if value.is_nan() { f64::NAN.to_bits() } else { (value + 0.0).to_bits() })
}

fn keys(array: &Array) -> Result<Vec<Key>, Fault> {
    match array {
        Array::Str(_) => Ok(array.slice::<String>()?.iter().cloned().map(Key::Text).collect()),
        Array::F64(_) => Ok(array.slice::<f64>()?.iter().map(|&v| real_key(v)).collect()),
        Array::I64(_) | Array::I32(_) => Ok(array.to_i64()?.into_iter().map(Key::Whole).collect()),
        Array::I16(a) => Ok(a.iter().map(|&v| Key::Whole(v.into())).collect()),
        other => Ok(other.to_f32()?.iter().map(|&v| real_key(v.into())).collect()),
    }
}

/// LabelEncoder: each element looked up in a table.
#[derive(Debug, Clone)]
pub struct LabelEncoder {
    rows: HashMap<Key, usize>,
    /// The values of the rows, then the one for what is in none.
    values: Array,
}

impl LabelEncoder {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let mut list = |kind: &str| -> Result<Option<Array>, Fault> {
            if let Some(tensor) = attrs.opt_tensor(&format!("{kind}_tensor"))? {
                return tensor.array().map(Some);
            }
            if let Some(texts) = attrs.opt_strings(&format!("{kind}_strings"))? {
                return Ok(Some(Array::vector(texts)));
            }
            if let Some(whole) = attrs.opt_ints(&format!("{kind}_int64s"))? {
                return Ok(Some(Array::vector(whole)));
            }
            Ok(attrs.opt_floats(&format!("{kind}_floats"))?.map(Array::vector))
        };
        let (Some(from), Some(to)) = (list("keys")?, list("values")?) else { fail!("keys or values are missing") };
        let text = Array::vector(vec![attrs.string("default_string", "_Unused")?]);
        let whole = Array::vector(vec![attrs.int("default_int64", -1)?]);
        let real = Array::vector(vec![attrs.float("default_float", -0.0)?]);
        let default = match (attrs.opt_tensor("default_tensor")?, &to) {
            (Some(tensor), _) => tensor.array()?.reshaped(&[1])?,
            (None, Array::Str(_)) => text,
            (None, Array::F32(_)) => real,
            (None, to) => super::cast::convert(&whole, to.dtype())?,
        };
        let keys = keys(&from)?;
        let values = to.reshaped(&[to.len()])?;
        if keys.len() != values.len() {
            fail!("{} keys for {} values", keys.len(), values.len());
        }
        // Of equal keys the last counts.
        let rows = keys.into_iter().enumerate().map(|(row, key)| (key, row)).collect();
        let joined = super::join::Concat { axis: 0 }.float(&[Some(values), Some(default)])?;
        let values = joined.into_iter().next().ok_or("nothing was joined")?;
        Ok(Arc::new(Self { rows, values }))
    }
}

impl Op for LabelEncoder {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let dims = known(inputs, 0).and_then(|x| x.dims.clone());
        Ok(vec![Some(TensorType { dtype: self.values.dtype(), dims })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let default = self.values.len() - 1;
        let rows: Vec<usize> =
            keys(x)?.iter().map(|key| self.rows.get(key).copied().unwrap_or(default)).collect();
        Ok(vec![take_array(&self.values, 0, &rows)?.reshaped(x.shape())?])
    }
}

/// ArrayFeatureExtractor: elements of the last axis.
#[derive(Debug)]
pub struct Features;

impl Op for Features {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).map(|x| TensorType::unranked(x.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, y) = (required(inputs, 0)?, required(inputs, 1)?);
        let Some(last) = x.rank().checked_sub(1) else { fail!("a scalar has no features") };
        let taken = take_array(x, last, &indices(y, x.shape()[last])?)?;
        let shape = if x.rank() == 1 { vec![1, taken.len()] } else { taken.shape().to_vec() };
        Ok(vec![taken.reshaped(&shape)?])
    }
}

/// Binarizer: 1 above the threshold, 0 elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Binarizer {
    /// What a number must be greater than.
    pub threshold: f32,
}

impl Op for Binarizer {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).cloned()])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let threshold = f64::from(self.threshold);
        let wide = super::cast::convert(x, crate::ir::DType::F64)?;
        let above = wide.slice::<f64>()?.iter().map(|&v| f64::from(u8::from(v > threshold))).collect();
        Ok(vec![super::cast::convert(&Array::new::<f64>(x.shape(), above)?, x.dtype())?])
    }
}

/// How a node of a tree compares.
#[derive(Debug, Clone, PartialEq)]
enum Test {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
    Above(f64),
    Equal(f64),
    Unequal(f64),
    Member(Vec<f64>),
}

impl Test {
    fn holds(&self, x: f64) -> bool {
        match self {
            Self::AtMost(v) => x <= *v,
            Self::Below(v) => x < *v,
            Self::AtLeast(v) => x >= *v,
            Self::Above(v) => x > *v,
            Self::Equal(v) => x == *v,
            Self::Unequal(v) => x != *v,
            Self::Member(all) => all.contains(&x),
        }
    }
}

/// Where a comparison leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Node(usize),
    Leaf(usize),
}

/// A node of a tree.
#[derive(Debug, Clone, PartialEq)]
struct Branch {
    feature: usize,
    test: Test,
    missing_holds: bool,
    next: [Next; 2],
}

/// How the leaves of all trees become one number for each target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

/// [TreeEnsemble](https://onnx.ai/onnx/operators/onnx_aionnxml_TreeEnsemble.html): each tree leads a sample to a leaf, which
/// adds its weight to its target.
#[derive(Debug, Clone, PartialEq)]
pub struct TreeEnsemble {
    branches: Vec<Branch>,
    roots: Vec<Next>,
    leaves: Vec<(usize, f64)>,
    targets: usize,
    aggregate: Aggregate,
}

impl TreeEnsemble {
    fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        attrs.note("nodes_hitrates")?;
        if attrs.int("post_transform", 0)? != 0 {
            return Err(Fault::unimplemented("TreeEnsemble with post_transform"));
        }
        let aggregate = match attrs.int("aggregate_function", 1)? {
            0 => Aggregate::Average,
            1 => Aggregate::Sum,
            2 => Aggregate::Min,
            3 => Aggregate::Max,
            other => fail!("aggregate_function is {other}"),
        };
        let targets = attrs.int("n_targets", 1)?;
        let Some(targets) = usize::try_from(targets).ok().filter(|&t| t <= 1 << 20) else { fail!("{targets} targets") };
        let mut reals = |name: &str| -> Result<Vec<f64>, Fault> {
            let Some(tensor) = attrs.opt_tensor(name)? else { return Ok(Vec::new()) };
            let wide = super::cast::convert(&tensor.array()?, crate::ir::DType::F64)?;
            Ok(wide.slice::<f64>()?.to_vec())
        };
        let (splits, modes, members, weights) =
            (reals("nodes_splits")?, reals("nodes_modes")?, reals("membership_values")?, reals("leaf_weights")?);
        let mut ints = |name: &str| -> Result<Vec<usize>, Fault> {
            super::slots::extents(&attrs.opt_ints(name)?.unwrap_or_default().into_iter().collect::<Vec<_>>())
        };
        let features = ints("nodes_featureids")?;
        let (yes, no) = (ints("nodes_truenodeids")?, ints("nodes_falsenodeids")?);
        let (yes_leaf, no_leaf) = (ints("nodes_trueleafs")?, ints("nodes_falseleafs")?);
        let (leaf_targets, roots) = (ints("leaf_targetids")?, ints("tree_roots")?);
        let missing = ints("nodes_missing_value_tracks_true")?;
        let mut sets = members.split(|v| v.is_nan()).map(<[f64]>::to_vec);
        let mut branches = Vec::new();
        for (i, &mode) in modes.iter().enumerate() {
            let at = |list: &[usize]| list.get(i).copied().ok_or("a list of nodes is too short");
            let split = splits.get(i).copied().ok_or("nodes_splits is too short")?;
            let test = match mode as i64 {
                0 => Test::AtMost(split),
                1 => Test::Below(split),
                2 => Test::AtLeast(split),
                3 => Test::Above(split),
                4 => Test::Equal(split),
                5 => Test::Unequal(split),
                6 => Test::Member(sets.next().ok_or("membership_values are too few")?),
                other => fail!("node mode {other}"),
            };
            let next = |leaf: usize, id: usize| if leaf != 0 { Next::Leaf(id) } else { Next::Node(id) };
            branches.push(Branch {
                feature: at(&features)?,
                test,
                missing_holds: missing.get(i).is_some_and(|&m| m != 0),
                next: [next(at(&yes_leaf)?, at(&yes)?), next(at(&no_leaf)?, at(&no)?)],
            });
        }
        // A node both of whose branches are the same leaf is that leaf.
        let root = |&root: &usize| match branches.get(root).map(|b: &Branch| b.next) {
            Some([Next::Leaf(a), Next::Leaf(b)]) if a == b => Next::Leaf(a),
            _ => Next::Node(root),
        };
        let roots = roots.iter().map(root).collect();
        if weights.len() != leaf_targets.len() || leaf_targets.iter().any(|&t| t >= targets) {
            fail!("{} weights for the leaves of {} targets", weights.len(), leaf_targets.len());
        }
        Ok(Arc::new(Self { branches, roots, leaves: leaf_targets.into_iter().zip(weights).collect(), targets, aggregate }))
    }

    /// The leaf that a sample comes to.
    fn leaf(&self, mut next: Next, sample: &[f64]) -> Result<(usize, f64), Fault> {
        for _ in 0..=self.branches.len() {
            match next {
                Next::Leaf(leaf) => return self.leaves.get(leaf).copied().ok_or_else(|| "a leaf is missing".into()),
                Next::Node(node) => {
                    let branch = self.branches.get(node).ok_or("a node is missing")?;
                    let x = *sample.get(branch.feature).ok_or("a sample has too few features")?;
                    let holds = branch.test.holds(x) || (branch.missing_holds && x.is_nan());
                    next = branch.next[usize::from(!holds)];
                }
            }
        }
        fail!("a tree has no end")
    }

    fn run<T: Real>(&self, x: &Array) -> Result<Vec<Array>, Fault> {
        let &[rows, features] = x.shape() else { fail!("{:?} is not a batch of samples", x.shape()) };
        let values: Vec<f64> = T::read(x)?.iter().map(|&v| v.into()).collect();
        let mut y = Vec::with_capacity(rows * self.targets);
        for row in 0..rows {
            let start = match self.aggregate {
                Aggregate::Min => f64::INFINITY,
                Aggregate::Max => f64::NEG_INFINITY,
                _ => 0.0,
            };
            let mut totals = vec![start; self.targets];
            for &root in &self.roots {
                let (target, weight) = self.leaf(root, &values[row * features..][..features])?;
                let total = &mut totals[target];
                *total = match self.aggregate {
                    Aggregate::Sum => *total + weight,
                    Aggregate::Average => *total + weight / self.roots.len() as f64,
                    Aggregate::Min => total.min(weight),
                    Aggregate::Max => total.max(weight),
                };
            }
            y.extend(totals.into_iter().map(T::of));
        }
        Ok(vec![T::array(&[rows, self.targets], y)?])
    }
}

impl Op for TreeEnsemble {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        Ok(vec![known(inputs, 0).map(|x| TensorType::unranked(x.dtype))])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        in_reals!(x.dtype(), T => self.run::<T>(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("ml");
    }

    #[test]
    fn a_tree_that_loops_is_noticed() {
        let branch = Branch {
            feature: 0,
            test: Test::AtMost(1.0),
            missing_holds: false,
            next: [Next::Leaf(0), Next::Node(0)],
        };
        let tree = TreeEnsemble {
            branches: vec![branch],
            roots: vec![Next::Node(0)],
            leaves: vec![(0, 7.0)],
            targets: 1,
            aggregate: Aggregate::Sum,
        };
        let run = |x: f32| tree.float(&[Some(Array::new(&[1, 1], vec![x]).unwrap())]);
        assert_eq!(run(0.5).unwrap()[0].slice::<f32>().unwrap(), [7.0]);
        assert!(run(2.0).is_err());
    }
}
