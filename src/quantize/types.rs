//! Storage types of a static plan: what the target takes, what the user asks for, and what that makes of a plan that was
//! solved for asymmetric `uint8` activations and `int8` weights.

use std::collections::BTreeMap;

use super::candidate::activation_slots;
use super::plan::{Activation, FIXED, Plan};
use super::target::{Target, Wider};
use super::weights::{self, Constant, Memo};
use crate::error::Fault;
use crate::ir::affine::limits;
use crate::ir::small::{I4, Nibble};
use crate::ir::{Array, DType, Graph, NodeId, QuantParams, Rule, Tensor, ValueId};

/// What the user asks for instead of the target's own types.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Types {
    /// Of activations.
    pub activation: Option<DType>,
    /// Of weights.
    pub weight: Option<DType>,
    /// One scale for a whole weight, not one for each output channel.
    pub per_tensor: bool,
}

/// The types of a static plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    /// Of activations.
    pub activation: DType,
    /// Of weights.
    pub weight: DType,
    /// Of the activations of single operators that need more bits.
    pub wider: Option<DType>,
}

/// How much wider than what was seen a 16-bit range is: 2 dB of the 90 or so that it has.
const HEADROOM: f32 = 1.25;

impl Default for Storage {
    fn default() -> Self {
        Self { activation: DType::U8, weight: DType::I8, wider: None }
    }
}

impl Types {
    /// Settles the types of a plan for this target. What it does not have is refused, with what it has.
    pub fn settle(self, target: &mut Target) -> Result<(), Fault> {
        let choose = |what: &str, wanted: Option<&str>, known: &[String]| {
            let name = wanted.or(known.first().map(String::as_str)).ok_or("the target has no types")?;
            match DTYPES.iter().find(|d| d.to_string() == name && known.iter().any(|k| k == name)) {
                Some(&dtype) => Ok(dtype),
                None => {
                    let message = format!(
                        "{} has no {what} of type {name}: there are {}",
                        target.name,
                        known.join(", ")
                    );
                    Err(Fault::new(message).hint("4 bits for any target: --mode weight-only --bits 4"))
                }
            }
        };
        let [activation, weight] = [self.activation, self.weight].map(|t| t.map(|dtype| dtype.to_string()));
        let activation = choose("activations", activation.as_deref(), &target.activations)?;
        let weight = choose("static weights", weight.as_deref(), &target.weights)?;
        let has = |wider: &&Wider| is_eight(activation) && target.activations.contains(&wider.activation);
        let wider = target.wider.as_ref().filter(has);
        let wider =
            wider.map(|w| choose("activations", Some(&w.activation), &target.activations)).transpose()?;
        target.storage = Storage { activation, weight, wider };
        target.rescaling &= target.storage == Storage::default() && !target.symmetric;
        target.per_tensor |= self.per_tensor;
        // With wider activations no kernel multiplies bytes: there is nothing to saturate.
        target.saturating_pairs &= is_eight(activation);
        if weight == DType::I4 {
            target.weight_limit = 7;
        }
        Ok(())
    }
}

/// Types that a target may have.
const DTYPES: [DType; 5] = [DType::U8, DType::I8, DType::U16, DType::I16, DType::I4];

fn is_eight(dtype: DType) -> bool {
    matches!(dtype, DType::U8 | DType::I8)
}

impl Storage {
    /// Have all activations 16 bits?
    pub fn is_wide(self) -> bool {
        !is_eight(self.activation)
    }

    /// Do weights have four bits, of which some may get eight?
    pub fn has_four_bits(self) -> bool {
        self.weight == DType::I4
    }

    /// The least opset that has them, those of single operators with more bits as well if there may be any.
    pub fn opset(self, may_widen: bool) -> i64 {
        let wide = may_widen && self.wider.is_some();
        if is_eight(self.activation) && is_eight(self.weight) && !wide { 0 } else { 21 }
    }

    /// Parameters for a range of activations. With 65536 steps nothing is gained by clipping: ranges become those that
    /// were seen, and [`HEADROOM`] more for samples that were not.
    fn params(dtype: DType, (low, high): (f32, f32), target: &Target) -> QuantParams {
        let (qmin, qmax) = limits(dtype).unwrap_or((0, 255));
        // Fewer steps are for products of bytes.
        let all = qmax.abs_diff(qmin);
        let levels = if all > 255 { all } else { target.levels.min(all) };
        if target.symmetric {
            let signed = if dtype == DType::I16 { 32767.0 } else { 127.0 };
            let scale = low.abs().max(high.abs()) / signed;
            let scale = if scale.is_normal() { scale } else { 1.0 };
            let zero_point = if qmin < 0 { 0 } else { i32::midpoint(qmin, qmax + 1) };
            return QuantParams { scale, zero_point, dtype };
        }
        let full = QuantParams::asymmetric(low, high, dtype);
        if levels == all {
            return full;
        }
        let scale = full.scale * all as f32 / levels as f32;
        let zero_point = (qmin as f32 - low.min(0.0) / scale).round_ties_even() as i32;
        QuantParams { scale, zero_point: zero_point.clamp(qmin, qmax), dtype }
    }

    /// Gives a plan these types.
    pub fn apply(
        self,
        graph: &Graph,
        plan: &mut Plan,
        (target, memo): (&Target, &Memo),
    ) -> Result<(), Fault> {
        self.types(graph, plan, target, &|_| true);
        let all_plain = plan.wide_weights.is_empty() && plan.wide_activations.is_empty();
        if all_plain && self.is_plain(target) { Ok(()) } else { self.constants(graph, plan, (target, memo)) }
    }

    /// Gives those activations of a plan these types that have the one that plans are solved for.
    pub fn types(
        self,
        graph: &Graph,
        plan: &mut Plan,
        target: &Target,
        solved: &dyn Fn(&Activation) -> bool,
    ) {
        let clamps = clamps(graph, plan);
        for activation in plan.activations.values_mut().filter(|a| solved(a)) {
            let (least, greatest) =
                clamps.get(&activation.group).copied().unwrap_or((f32::NEG_INFINITY, f32::INFINITY));
            let range = |dtype| match (activation.params, activation.seen) {
                (params, _) if is_eight(dtype) => params.range(),
                (params, _) if activation.why == FIXED => whole(params),
                (params, _) if !activation.is_by_samples() => params.range(),
                (_, (low, high)) => ((low * HEADROOM).max(least), (high * HEADROOM).min(greatest)),
            };
            let params = |dtype| Self::params(dtype, range(dtype), target);
            let wide = self.wider.map(params);
            let usual = if self.is_plain(target) { activation.params } else { params(self.activation) };
            (activation.params, activation.wide) = (usual, wide);
        }
    }

    /// Are activations what plans are solved for?
    fn is_plain(self, target: &Target) -> bool {
        self.activation == DType::U8 && !target.symmetric && target.levels == 255
    }

    /// The constants of a plan whose activations have their types.
    pub fn constants(
        self,
        graph: &Graph,
        plan: &mut Plan,
        (target, memo): (&Target, &Memo),
    ) -> Result<(), Fault> {
        plan.constants = weights::solve(graph, plan, target, memo)?;
        for (&(id, slot), constant) in &mut plan.constants {
            let Some(candidate) = plan.placement.integer.get(&id) else { continue };
            let wide = self.wider.filter(|_| plan.wide_activations.contains(&id));
            let product = matches!(candidate.rule,
                Rule::Contraction { weight, bias, .. } if slot == weight || Some(slot) == bias);
            let solved = product || self.is_plain(target) && wide.is_none();
            if !solved
                && activation_slots(&candidate.rule, graph.node(id).inputs).contains(&slot)
                && let Some(tensor) = graph.constant_input(id, slot)
            {
                *constant = operand(&tensor.array()?, wide.unwrap_or(self.activation), target)?;
            }
        }
        Ok(())
    }

    /// Gives the weights of a plan that was inserted and tuned in `int8` their type, but for those that have eight bits
    /// where it has fewer; the numbers stay the same.
    pub fn store(self, graph: &mut Graph, plan: &Plan) -> Result<(), Fault> {
        let weights = plan.placement.integer.iter().filter_map(|(&id, c)| match c.rule {
            Rule::Contraction { weight, .. } => Some((id, weight)),
            _ => None,
        });
        for (id, slot) in
            weights.filter(|(id, _)| self.weight != DType::I8 && !plan.wide_weights.contains(id))
        {
            let behind = graph.input(id, slot).and_then(|v| graph.producer(v)).map(|(d, _)| d);
            let Some(dequantize) = behind.filter(|&d| graph.node(d).is("DequantizeLinear")) else { continue };
            for slot in [0, 2] {
                let Some(value) = graph.input(dequantize, slot) else { continue };
                let Some(array) = graph.constant(value).filter(|t| t.dtype() == DType::I8) else { continue };
                let stored = self.stored(&array.array()?)?;
                graph.set_constant(value, Tensor::from_array(&stored));
                if let Some(ty) = &mut graph.value_mut(value).ty {
                    ty.dtype = self.weight;
                }
            }
        }
        Ok(())
    }

    /// `int8` in the type of weights: raised by 128 for `uint8`, narrowed for `int4`.
    fn stored(self, array: &Array) -> Result<Array, Fault> {
        let signed = array.slice::<i8>()?.iter();
        match self.weight {
            DType::U8 => Array::new(array.shape(), signed.map(|&q| (q as u8) ^ 0x80).collect::<Vec<u8>>()),
            _ => Array::new(array.shape(), signed.map(|&q| Nibble::truncate(q)).collect::<Vec<I4>>()),
        }
    }
}

/// The interval that 256 steps of these parameters share, one step longer than from the first to the last.
pub fn whole(params: QuantParams) -> (f32, f32) {
    let (low, high) = params.range();
    (low, high + params.scale)
}

/// Where the values of each group end because they took the place of a clamp's: beyond that nothing may be represented.
fn clamps(graph: &Graph, plan: &Plan) -> BTreeMap<ValueId, (f32, f32)> {
    let ends = |clamp: &NodeId| {
        let Rule::Clamp { low, high } = plan.placement.integer.get(clamp)?.rule else { return None };
        Some((plan.activations.get(&graph.output(*clamp, 0)?)?.group, (low, high)))
    };
    plan.absorbed.values().filter_map(ends).collect()
}

/// A constant operand of arithmetic in the type of activations.
fn operand(array: &Array, dtype: DType, target: &Target) -> Result<Constant, Fault> {
    let real = array.slice::<f32>()?;
    let (low, high) = real.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
    let params = Storage::params(dtype, (low, high), target);
    let integers = real.iter().map(|&v| params.quantize(v));
    let elements = match dtype {
        DType::U8 => Array::new(array.shape(), integers.map(|q| q as u8).collect::<Vec<_>>())?,
        DType::I8 => Array::new(array.shape(), integers.map(|q| q as i8).collect::<Vec<_>>())?,
        DType::I16 => Array::new(array.shape(), integers.map(|q| q as i16).collect::<Vec<_>>())?,
        _ => Array::new(array.shape(), integers.map(|q| q as u16).collect::<Vec<_>>())?,
    };
    Ok(Constant { elements, scales: vec![params.scale], zero_point: params.zero_point, axis: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_another_type_are_the_same_numbers() {
        let elements = Array::vector(vec![-128i8, -1, 0, 127]);
        let raised = Storage { weight: DType::U8, ..Storage::default() }.stored(&elements).unwrap();
        assert_eq!(raised, Array::vector(vec![0u8, 127, 128, 255]));
        let elements = Array::vector(vec![-7i8, -1, 0, 7]);
        let narrow = Storage { weight: DType::I4, ..Storage::default() }.stored(&elements).unwrap();
        let four = [-7i8, -1, 0, 7].map(I4::truncate).to_vec();
        assert_eq!(narrow, Array::new(&[4], four).unwrap());
    }

    #[test]
    fn what_a_target_lacks_is_refused_with_what_it_has() {
        let mut target = Target::named("ort-cpu").unwrap();
        let four = Types { weight: Some(DType::I4), ..Types::default() };
        assert!(four.settle(&mut target).unwrap_err().to_string().contains("int8, uint8"));
        let wide = Types { activation: Some(DType::I16), weight: Some(DType::U8), per_tensor: true };
        wide.settle(&mut target).unwrap();
        assert_eq!((target.storage.opset(false), target.storage.wider), (21, None));
        assert!(target.per_tensor && !target.rescaling && !target.saturating_pairs);
    }

    #[test]
    fn ranges_by_the_rules_of_the_target() {
        let mut target = Target::named("ort-cpu").unwrap();
        let params = |target: &Target, dtype, low, high| Storage::params(dtype, (low, high), target);
        let shown = |p: QuantParams| (p.scale, p.zero_point, p.dtype);
        assert_eq!(shown(params(&target, DType::I8, 0.0, 255.0)), (1.0, -128, DType::I8));
        assert_eq!(shown(params(&target, DType::U16, 0.0, 65535.0)), (1.0, 0, DType::U16));
        target.levels = 127;
        assert_eq!(shown(params(&target, DType::I16, -32768.0, 32767.0)), (1.0, 0, DType::I16));
        assert_eq!(shown(params(&target, DType::U8, -27.0, 100.0)), (1.0, 27, DType::U8));
        target.symmetric = true;
        assert_eq!(shown(params(&target, DType::I8, -12.7, 2.0)), (0.1, 0, DType::I8));
    }
}
