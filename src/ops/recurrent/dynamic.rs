//! ONNX Runtime's `com.microsoft.DynamicQuantizeLSTM`: an LSTM with 8-bit weights that quantizes its input as it runs.
//!
//! The input, and at each step the states of all sequences, become `uint8` over their range, and are multiplied with
//! the weights on integers. See <https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md>.

use std::sync::Arc;

use super::{Pair, Recurrent};
use crate::error::Fault;
use crate::fail;
use crate::ir::{Array, Fact, Op, TensorType};
use crate::kernels::recurrent::Product;
use crate::kernels::requantize::quantize_slice;
use crate::kernels::sums::Columns;
use crate::ops::Attrs;
use crate::ops::integer::{bytes_of, sign_flip, signed_zero, values_of};
use crate::ops::slots::{optional, required};

/// The operator; its weights have the gates along the last axis.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicQuantizeLstm(Recurrent);

impl DynamicQuantizeLstm {
    /// Reads the attributes, which are those of LSTM before it had a layout.
    pub fn parse(attrs: &mut Attrs) -> Result<Arc<dyn Op>, Fault> {
        let mut plain = Attrs::new(attrs.attributes, 13, attrs.inputs, attrs.outputs);
        let op = Recurrent::lstm(&mut plain)?;
        attrs.read.extend(plain.read);
        let Some(layer) = op.as_a::<Recurrent>() else { fail!("LSTM is no recurrent layer") };
        Ok(Arc::new(Self(layer.clone())))
    }
}

impl Op for DynamicQuantizeLstm {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        self.0.infer(inputs.get(..1).unwrap_or(inputs))
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (&[_, _, input], &[_, hidden, _]) = (required(inputs, 0)?.shape(), required(inputs, 2)?.shape()) else {
            fail!("input and recurrent weights do not have three dimensions");
        };
        let ways = self.0.directions();
        let width = self.0.cell.gates().checked_mul(hidden).ok_or("too many states")?;
        let [weights, recurrent] = [(1, 8, input), (2, 10, hidden)].map(|(slot, scale, depth)| {
            let zeros = optional(inputs, scale + 1);
            rounding(required(inputs, slot)?, required(inputs, scale)?, zeros, [ways, depth, width])
        });
        let products: Vec<Pair<f32>> =
            weights?.into_iter().zip(recurrent?).map(|(w, r)| [Box::new(w) as _, Box::new(r) as _]).collect();
        let mut plain: Vec<Option<Array>> = inputs.iter().take(8).cloned().collect();
        plain.resize(8, None);
        self.0.run(&plain, Some(&products))
    }
}

/// A product with 8-bit weights that quantizes its rows.
struct Rounding {
    columns: Columns,
    /// The scale of each column.
    scales: Vec<f32>,
}

impl Product<f32> for Rounding {
    fn add(&self, x: &[f32], _: usize, y: &mut [f32]) {
        let width = self.scales.len();
        let (low, high) = x.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
        let scale = if high == low { 1.0 } else { (high - low) / 255.0 };
        let zero = (-low / scale).clamp(0.0, 255.0).round_ties_even() as u8;
        let mut rows = vec![0; x.len()];
        quantize_slice(x, scale, zero, &mut rows);
        self.columns.multiply(&rows, 0, &[zero.into()], |row, first, sums| {
            let own = self.scales[first..].iter().zip(sums);
            y[row * width + first..].iter_mut().zip(own).for_each(|(y, (w, &sum))| *y += sum as f32 * (scale * w));
        });
    }
}

/// The products of each direction. Scales and zero points are one for each direction, or one for each of its columns.
fn rounding(
    weight: &Array,
    scale: &Array,
    zero: Option<&Array>,
    [ways, depth, width]: [usize; 3],
) -> Result<Vec<Rounding>, Fault> {
    if weight.shape() != [ways, depth, width] {
        fail!("weights have the shape {:?} instead of {:?}", weight.shape(), [ways, depth, width]);
    }
    let (data, flip) = (bytes_of(weight)?, sign_flip(weight.dtype()));
    let spread = |count: usize, of: &str| match count {
        n if n == ways => Ok(1),
        n if n == ways * width => Ok(width),
        n => Err(Fault::new(format!("{n} {of} for {ways} directions of {width} columns"))),
    };
    let scales = scale.slice::<f32>()?;
    let zeros: Vec<i32> = match zero {
        None => vec![0; ways],
        Some(zero) if zero.dtype() != weight.dtype() => {
            fail!("zero points of {} for weights of {}", zero.dtype(), weight.dtype())
        }
        Some(zero) => values_of(zero)?,
    };
    let (each, each_zero) = (spread(scales.len(), "scales")?, spread(zeros.len(), "zero points")?);
    let zeros: Vec<i32> = zeros.iter().map(|&z| signed_zero(weight.dtype(), z)).collect();
    let way = |way: usize| {
        let own = &scales[way * each..][..each];
        Rounding {
            columns: Columns::new(
                &data[way * depth * width..][..depth * width],
                (depth, width),
                (width, 1),
                flip,
                &zeros[way * each_zero..][..each_zero],
            ),
            scales: own.iter().copied().cycle().take(width).collect(),
        }
    };
    Ok((0..ways).map(way).collect())
}
