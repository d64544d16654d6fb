//! Operators that put tensors together, cut them apart or lay their blocks out anew: Concat, Split, Tile,
//! DepthToSpace and SpaceToDepth.

use std::sync::Arc;

use super::slots::{self, constant_ints, dims, known, required};
use super::gradient::{Gradients, moved};
use super::{Attrs, ONNX, OpDef, integer, Gradient, Run};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{Array, Dim, Fact, Op, Operands, Rule, TensorType, element_count, with_array};
use crate::kernels::strided::{View, read_array};

type Parsed = Result<Arc<dyn Op>, Fault>;

/// The operators of this family.
pub const OPS: &[OpDef] = &[
    OpDef { domain: ONNX, name: "Concat", since: 1, parse: Concat::parse },
    OpDef { domain: ONNX, name: "Split", since: 1, parse: |a| Split::parse(a, true) },
    OpDef { domain: ONNX, name: "Split", since: 13, parse: |a| Split::parse(a, false) },
    OpDef { domain: ONNX, name: "Tile", since: 6, parse: |_| Ok(Arc::new(Tile)) },
    OpDef { domain: ONNX, name: "DepthToSpace", since: 1, parse: DepthToSpace::parse },
    OpDef { domain: ONNX, name: "SpaceToDepth", since: 1, parse: SpaceToDepth::parse },
];

/// `Concat`: the inputs one after another along an axis.
#[derive(Debug, Clone)]
pub struct Concat {
    /// The axis; negative from the end.
    pub axis: i64,
}

impl Concat {
    fn parse(attrs: &mut Attrs) -> Parsed {
        let axis = match (attrs.opt_int("axis")?, attrs.version()) {
            (Some(axis), _) => axis,
            (None, ..4) => 1,
            (None, _) => fail!("attribute axis is missing"),
        };
        Ok(Arc::new(Self { axis }))
    }

    /// The joined dimensions, given all parts whose rank is known; `complete` if these are all parts there are.
    fn joined(&self, parts: &[&[Dim]], complete: bool) -> Result<Vec<Dim>, Fault> {
        let [first, others @ ..] = parts else { fail!("there is nothing to join") };
        let axis = slots::axis(self.axis, first.len())?;
        let mut out = first.to_vec();
        for part in others {
            if part.len() != first.len() {
                fail!("cannot join tensors of {} and {} axes", first.len(), part.len());
            }
            for (i, (out, dim)) in out.iter_mut().zip(*part).enumerate().filter(|(i, _)| *i != axis) {
                match (&*out, dim) {
                    (Dim::Known(a), Dim::Known(b)) if a != b => {
                        fail!("axis {i} has extents {a} and {b}, so they cannot be joined along axis {axis}")
                    }
                    (_, Dim::Known(_)) | (Dim::Unknown, _) => *out = dim.clone(),
                    _ => {}
                }
            }
        }
        let extents: Option<Vec<usize>> = parts.iter().map(|part| part[axis].known()).collect();
        out[axis] = match extents.filter(|_| complete) {
            Some(extents) => {
                let total = extents.into_iter().try_fold(0usize, usize::checked_add);
                Dim::Known(total.ok_or("the joined axis is too long")?)
            }
            None if complete && others.is_empty() => out[axis].clone(),
            None => Dim::Unknown,
        };
        Ok(out)
    }
}

impl Op for Concat {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = inputs.iter().flatten().next().map(|fact| fact.ty) else { return Ok(vec![None]) };
        let parts: Vec<&[Dim]> = (0..inputs.len()).filter_map(|slot| dims(inputs, slot)).collect();
        let joined = (!parts.is_empty()).then(|| self.joined(&parts, parts.len() == inputs.len()));
        Ok(vec![Some(TensorType { dtype: ty.dtype, dims: joined.transpose()? })])
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let parts = (0..inputs.len()).map(|slot| required(inputs, slot)).collect::<Result<Vec<_>, _>>()?;
        let types: Vec<TensorType> = parts.iter().map(|part| part.tensor_type()).collect();
        let dims: Vec<&[Dim]> = types.iter().filter_map(|ty| ty.dims.as_deref()).collect();
        let shape: Vec<usize> = self.joined(&dims, true)?.iter().filter_map(Dim::known).collect();
        let axis = slots::axis(self.axis, shape.len())?;
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product::<usize>());
        Ok(vec![with_array!(required(inputs, 0)?, first => {
            let mut elements = first.iter().take(0).cloned().collect::<Vec<_>>();
            let parts = parts.iter().map(|part| Ok((slots::like(first, part)?, part.shape()[axis] * inner)));
            let parts = parts.collect::<Result<Vec<_>, Fault>>()?;
            elements.reserve_exact(element_count(&shape)?);
            for block in 0..outer {
                parts.iter().for_each(|&(part, run)| elements.extend_from_slice(&part[block * run..][..run]));
            }
            Array::new(&shape, elements)?
        })])
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        integer::elementwise::moved(self, unit, 0..unit.inputs.len())
    }

    fn rule(&self) -> Rule {
        Rule::Arithmetic(Operands::All)
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Concat {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &(0..run.inputs.len()).collect::<Vec<_>>())
    }
}

/// `Split`: one output for each part of an axis.
#[derive(Debug, Clone)]
pub struct Split {
    /// The axis; negative from the end.
    pub axis: i64,
    /// The extents of the attribute form.
    pub split: Option<Vec<i64>>,
    /// Does the second input hold the extents? If neither does, the parts are equal but for the last.
    pub split_input: bool,
    /// How many parts there are.
    pub outputs: usize,
}

impl Split {
    fn parse(attrs: &mut Attrs, attribute: bool) -> Parsed {
        let axis = attrs.int("axis", 0)?;
        let split = if attribute { attrs.opt_ints("split")? } else { None };
        let asked = if attrs.version() >= 18 { attrs.opt_int("num_outputs")? } else { None };
        let outputs = attrs.outputs();
        if let Some(asked) = asked.filter(|&n| n != outputs as i64) {
            fail!("num_outputs is {asked}, but the node has {outputs} outputs");
        }
        Ok(Arc::new(Self { axis, split, split_input: attrs.inputs() > 1, outputs }))
    }

    /// The extents of the parts of an axis.
    fn parts(&self, split: Option<&[i64]>, extent: usize) -> Result<Vec<usize>, Fault> {
        let parts = match split {
            Some(split) => slots::extents(split)?,
            None => {
                let part = extent.div_ceil(self.outputs.max(1));
                (0..self.outputs).map(|i| extent.saturating_sub(i.saturating_mul(part)).min(part)).collect()
            }
        };
        let total = parts.iter().try_fold(0usize, |sum, &part| sum.checked_add(part));
        if total != Some(extent) || parts.len() != self.outputs {
            fail!("{parts:?} does not split an axis of {extent} into {} parts", self.outputs);
        }
        Ok(parts)
    }
}

impl Op for Split {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None; self.outputs]) };
        let Some(dims) = &ty.dims else {
            return Ok(vec![Some(TensorType::unranked(ty.dtype)); self.outputs]);
        };
        let axis = slots::axis(self.axis, dims.len())?;
        let split = if self.split_input { constant_ints(inputs, 1)? } else { self.split.clone() };
        let parts = match (dims[axis].known(), split) {
            (None, Some(split)) => slots::extents(&split)?.into_iter().map(Dim::Known).collect(),
            (Some(extent), split) if split.is_some() || !self.split_input => {
                self.parts(split.as_deref(), extent)?.into_iter().map(Dim::Known).collect()
            }
            _ => vec![Dim::Unknown; self.outputs],
        };
        let part = |extent| {
            let mut dims = dims.clone();
            dims[axis] = extent;
            Some(TensorType::new(ty.dtype, dims))
        };
        Ok(parts.into_iter().map(part).collect())
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let axis = slots::axis(self.axis, x.rank())?;
        let split = match slots::optional(inputs, 1) {
            Some(split) => Some(split.to_i64()?),
            None => self.split.clone(),
        };
        let mut start = 0;
        let mut outputs = Vec::with_capacity(self.outputs);
        for part in self.parts(split.as_deref(), x.shape()[axis])? {
            outputs.push(read_array(x, &View::new(x.shape())?.stepped(axis, start, 1, part)?)?);
            start += part;
        }
        Ok(outputs)
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Split {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

/// `Tile`: the tensor repeated along each axis as often as the second input says.
#[derive(Debug, Clone)]
pub struct Tile;

impl Tile {
    fn repeats(repeats: &[i64], rank: usize) -> Result<Vec<usize>, Fault> {
        if repeats.len() != rank {
            fail!("{} repeats for {rank} axes", repeats.len());
        }
        slots::extents(repeats)
    }
}

impl Op for Tile {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
        let dims = match (&ty.dims, constant_ints(inputs, 1)?) {
            (Some(dims), Some(repeats)) => {
                let tiled = |(dim, n): (&Dim, usize)| match (dim, n) {
                    (dim, 1) => Ok(dim.clone()),
                    (Dim::Known(d), n) => d.checked_mul(n).map(Dim::Known).ok_or("a tiled axis is too long"),
                    _ => Ok(Dim::Unknown),
                };
                let repeats = Self::repeats(&repeats, dims.len())?;
                Some(dims.iter().zip(repeats).map(tiled).collect::<Result<_, _>>()?)
            }
            (Some(dims), None) => Some(vec![Dim::Unknown; dims.len()]),
            (None, _) => slots::unknown_dims(inputs, 1),
        };
        Ok(vec![Some(TensorType { dtype: ty.dtype, dims })])
    }

    /// Reads `[d₀, d₁, …]` as `[1, d₀, 1, d₁, …]` broadcast to `[r₀, d₀, r₁, d₁, …]`.
    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let repeats = Self::repeats(&required(inputs, 1)?.to_i64()?, x.rank())?;
        let pairs = |first: &dyn Fn(usize) -> usize| -> Vec<usize> {
            x.shape().iter().enumerate().flat_map(|(axis, &d)| [first(axis), d]).collect()
        };
        let tiled = read_array(x, &View::new(&pairs(&|_| 1))?.broadcast(&pairs(&|axis| repeats[axis]))?)?;
        let shape: Vec<usize> = x.shape().iter().zip(&repeats).map(|(d, r)| d * r).collect();
        Ok(vec![tiled.reshaped(&shape)?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for Tile {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

/// Does the mode attribute say that depth counts columns, rows, then channels (`CRD`)? The other order is `DCR`.
fn columns_first(attrs: &mut Attrs, since: i64) -> Result<bool, Fault> {
    match attrs.opt_string("mode")?.filter(|_| attrs.version() >= since).as_deref() {
        None | Some("DCR") => Ok(false),
        Some("CRD") => Ok(true),
        Some(other) => Err(format!("mode {other} is neither DCR nor CRD").into()),
    }
}

fn block_size(attrs: &mut Attrs) -> Result<usize, Fault> {
    match attrs.opt_int("blocksize")?.map(usize::try_from) {
        Some(Ok(block)) if block > 0 && block <= u16::MAX.into() => Ok(block),
        _ => Err("blocksize is missing or out of range".into()),
    }
}

/// The type after `[N, C, H, W]` became `[N, depth(C), side(H), side(W)]`.
fn relaid(
    inputs: &[Option<Fact>],
    depth: impl Fn(usize) -> Option<usize>,
    side: impl Fn(usize) -> Option<usize>,
) -> Result<Vec<Option<TensorType>>, Fault> {
    let Some(ty) = known(inputs, 0) else { return Ok(vec![None]) };
    let new = |dim: &Dim, f: &dyn Fn(usize) -> Option<usize>| match dim.known() {
        Some(extent) => f(extent).map(Dim::Known).ok_or("an axis does not divide by the block size"),
        None => Ok(Dim::Unknown),
    };
    let dims = match ty.dims.as_deref() {
        None => vec![Dim::Unknown; 4],
        Some([n, c, h, w]) => vec![n.clone(), new(c, &depth)?, new(h, &side)?, new(w, &side)?],
        Some(dims) => fail!("expected 4 axes, found {}", dims.len()),
    };
    Ok(vec![Some(TensorType::new(ty.dtype, dims))])
}

fn divided(extent: usize, by: usize) -> Option<usize> {
    extent.is_multiple_of(by).then(|| extent / by)
}

/// `DepthToSpace`: `[N, C·b², H, W]` to `[N, C, H·b, W·b]`.
#[derive(Debug, Clone)]
pub struct DepthToSpace {
    /// The block size `b`.
    pub block: usize,
    /// Are the channels the outermost part of the depth (`CRD`)?
    pub columns_first: bool,
}

impl DepthToSpace {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { block: block_size(attrs)?, columns_first: columns_first(attrs, 11)? }))
    }
}

impl Op for DepthToSpace {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        relaid(inputs, |c| divided(c, self.block * self.block), |side| side.checked_mul(self.block))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let b = self.block;
        let &[n, c, h, w] = x.shape() else { fail!("expected 4 axes, found {}", x.rank()) };
        let Some(c) = divided(c, b * b) else { fail!("{c} channels do not divide by {b}²") };
        let (apart, order) = match self.columns_first {
            true => ([n, c, b, b, h, w], [0, 1, 4, 2, 5, 3]),
            false => ([n, b, b, c, h, w], [0, 3, 4, 1, 5, 2]),
        };
        Ok(vec![read_array(x, &View::new(&apart)?.permuted(&order)?)?.reshaped(&[n, c, h * b, w * b])?])
    }

    fn rule(&self) -> Rule {
        Rule::SameScale
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for DepthToSpace {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

/// `SpaceToDepth`: `[N, C, H·b, W·b]` to `[N, C·b², H, W]`, the inverse of [`DepthToSpace`].
#[derive(Debug, Clone)]
pub struct SpaceToDepth {
    /// The block size `b`.
    pub block: usize,
    /// Are the channels the outermost part of the depth (`CRD`)?
    pub columns_first: bool,
}

impl SpaceToDepth {
    fn parse(attrs: &mut Attrs) -> Parsed {
        Ok(Arc::new(Self { block: block_size(attrs)?, columns_first: columns_first(attrs, 28)? }))
    }
}

impl Op for SpaceToDepth {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        relaid(inputs, |c| c.checked_mul(self.block * self.block), |side| divided(side, self.block))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        let b = self.block;
        let &[n, c, h, w] = x.shape() else { fail!("expected 4 axes, found {}", x.rank()) };
        let (Some(h), Some(w)) = (divided(h, b), divided(w, b)) else {
            fail!("{h} × {w} does not divide into blocks of {b} × {b}");
        };
        let order = if self.columns_first { [0, 1, 3, 5, 2, 4] } else { [0, 3, 5, 1, 2, 4] };
        let view = View::new(&[n, c, h, b, w, b])?.permuted(&order)?;
        let depth = c.checked_mul(b * b).ok_or("too many channels")?;
        Ok(vec![read_array(x, &view)?.reshaped(&[n, depth, h, w])?])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

impl Gradient for SpaceToDepth {
    fn backward(&self, run: &Run) -> Gradients {
        moved(self, run, &[0])
    }
}

#[cfg(test)]
mod tests;
