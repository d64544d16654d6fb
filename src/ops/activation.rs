//! Activation functions.

mod gradient;

use std::sync::Arc;

use super::elementwise::{RealMap, like_first, numbers, real, through_reals};
use super::slots::{optional, required};
use super::{Attrs, ONNX, Op, OpDef, Operands, Rule, Runtime, integer, Gradient};
use crate::error::Fault;
use crate::fail;
use crate::ir::integer::{Kernel, Unit};
use crate::ir::{Array, Element, Fact, TensorType};
use crate::kernels::broadcast::zip;
use crate::kernels::math::{Real, map, of_slice, through};
use crate::kernels::number::Number;

const fn def(name: &'static str, since: i64, parse: fn(&mut Attrs) -> Result<Arc<dyn Op>, Fault>) -> OpDef {
    OpDef { domain: ONNX, name, since, parse }
}

/// An activation whose attributes have these names and defaults.
macro_rules! activation {
    ($name:ident, $since:expr $(, $field:ident = $default:expr)*) => {
        def(stringify!($name), $since, |a| {
            a.opt_ints("consumed_inputs")?; // opset 1: a hint about memory
            Ok(Arc::new(Activation::$name { $($field: a.float(stringify!($field), $default)?),* }))
        })
    };
}

/// The family.
pub const OPS: &[OpDef] = &[
    activation!(Relu, 1),
    activation!(LeakyRelu, 1, alpha = 0.01),
    activation!(Sigmoid, 1),
    activation!(Tanh, 1),
    activation!(HardSigmoid, 1, alpha = 0.2, beta = 0.5),
    activation!(HardSwish, 14),
    activation!(Elu, 1, alpha = 1.0),
    activation!(Selu, 1, alpha = 1.6732, gamma = 1.0507),
    activation!(Selu, 6, alpha = 1.673_263_2, gamma = 1.050_701),
    activation!(Celu, 12, alpha = 1.0),
    activation!(Softplus, 1),
    activation!(Softsign, 1),
    activation!(ThresholdedRelu, 10, alpha = 1.0),
    activation!(Mish, 18),
    activation!(Swish, 24, alpha = 1.0),
    activation!(Shrink, 9, lambd = 0.5, bias = 0.0),
    def("Gelu", 20, |a| match a.string("approximate", "none")?.as_str() {
        "none" => Ok(Arc::new(Activation::Gelu { tanh: false })),
        "tanh" => Ok(Arc::new(Activation::Gelu { tanh: true })),
        other => fail!("approximate is \"{other}\", not none or tanh"),
    }),
    def("Clip", 1, |a| {
        a.opt_ints("consumed_inputs")?;
        let (low, high) = (a.opt_float("min")?, a.opt_float("max")?);
        Ok(Arc::new(Clip { low: low.unwrap_or(f32::NEG_INFINITY), high: high.unwrap_or(f32::INFINITY) }))
    }),
    def("Clip", 11, |_| Ok(Arc::new(Clip { low: f32::NEG_INFINITY, high: f32::INFINITY }))),
    def("PRelu", 1, |a| {
        a.opt_ints("consumed_inputs")?;
        Ok(Arc::new(PRelu { per_channel: true }))
    }),
    def("PRelu", 7, |_| Ok(Arc::new(PRelu { per_channel: false }))),
];

/// A function of one element with fixed parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Activation {
    /// max(x, 0)
    Relu {},
    /// x, or alpha·x below zero
    LeakyRelu { alpha: f32 },
    /// 1 / (1 + exp(-x))
    Sigmoid {},
    /// (exp(2x) - 1) / (exp(2x) + 1)
    Tanh {},
    /// alpha·x + beta limited to [0, 1]
    HardSigmoid { alpha: f32, beta: f32 },
    /// x times HardSigmoid with alpha 1/6 and beta 1/2
    HardSwish {},
    /// x, or alpha·(exp(x) - 1) below zero
    Elu { alpha: f32 },
    /// gamma times Elu
    Selu { alpha: f32, gamma: f32 },
    /// x, or alpha·(exp(x/alpha) - 1) below zero
    Celu { alpha: f32 },
    /// log(1 + exp(x))
    Softplus {},
    /// x / (1 + |x|)
    Softsign {},
    /// x above alpha, else 0
    ThresholdedRelu { alpha: f32 },
    /// x times the normal distribution function of x, or its approximation by tanh
    Gelu { tanh: bool },
    /// x·tanh(log(1 + exp(x)))
    Mish {},
    /// x·sigmoid(alpha·x)
    Swish { alpha: f32 },
    /// x moved towards zero by bias, and 0 within lambd of zero
    Shrink { lambd: f32, bias: f32 },
}

impl RealMap for Activation {
    fn map<T: Real>(&self, x: &[T]) -> Vec<T> {
        let [zero, half, one, two] = [0.0, 0.5, 1.0, 2.0].map(T::from);
        match *self {
            Self::Relu {} => map(x, |v| v.at_least(zero)),
            Self::LeakyRelu { alpha } => {
                let alpha = T::from(alpha);
                map(x, |v| if v < zero { alpha * v } else { v })
            }
            Self::Sigmoid {} => of_slice(x, T::sigmoid_slice),
            Self::Tanh {} => of_slice(x, T::tanh_slice),
            Self::HardSigmoid { alpha, beta } => {
                let [alpha, beta] = [alpha, beta].map(T::from);
                map(x, |v| (alpha * v + beta).at_least(zero).at_most(one))
            }
            Self::HardSwish {} => {
                let sixth = one / T::from(6.0);
                map(x, |v| v * (sixth * v + half).at_least(zero).at_most(one))
            }
            Self::Elu { alpha } => {
                let alpha = T::from(alpha);
                through(x, |v| v, T::exp_m1_slice, |v, e| if v < zero { alpha * e } else { v })
            }
            Self::Selu { alpha, gamma } => {
                let [alpha, gamma] = [alpha, gamma].map(T::from);
                through(x, |v| v, T::exp_m1_slice, |v, e| gamma * if v < zero { alpha * e } else { v })
            }
            Self::Celu { alpha } => {
                let alpha = T::from(alpha);
                through(x, |v| v / alpha, T::exp_m1_slice, |v, e| v.at_least(zero) + (alpha * e).at_most(zero))
            }
            Self::Softplus {} => map(x, |v| v.at_least(zero) + (-v.magnitude()).exp().log_1p()),
            Self::Softsign {} => map(x, |v| v / (one + v.magnitude())),
            Self::ThresholdedRelu { alpha } => {
                let alpha = T::from(alpha);
                map(x, |v| if v <= alpha { zero } else { v })
            }
            Self::Gelu { tanh: false } => {
                let scale = half.root();
                through(x, |v| scale * v, T::erf_slice, |v, e| half * v * (one + e))
            }
            Self::Gelu { tanh: true } => {
                let (scale, cubic) = ((two / T::from(std::f32::consts::PI)).root(), T::from(0.044715));
                let before = |v| scale * (v + cubic * v * v * v);
                through(x, before, T::tanh_slice, |v, t| half * v * (one + t))
            }
            // With e = exp(x), tanh(log(1 + e)) is n / (n + 2) for n = e·(e + 2); beyond 20 it is 1.
            Self::Mish {} => {
                let before = |v: T| v.at_most(T::from(20.0));
                through(x, before, T::exp_slice, |v, e| {
                    let n = e * (e + two);
                    v * (n / (n + two))
                })
            }
            Self::Swish { alpha } => {
                let alpha = T::from(alpha);
                through(x, |v| alpha * v, T::sigmoid_slice, |v, s| v * s)
            }
            Self::Shrink { lambd, bias } => {
                let [lambd, bias] = [lambd, bias].map(T::from);
                map(x, |v| {
                    if v < -lambd {
                        v + bias
                    } else if v > lambd {
                        v - bias
                    } else {
                        zero
                    }
                })
            }
        }
    }
}

/// An activation whose `tanh` and sigmoid are the fractions of [`fraction`](crate::kernels::fraction).
#[derive(Debug, Clone, Copy, PartialEq)]
struct InFractions(Activation);

impl RealMap for InFractions {
    fn map<T: Real>(&self, x: &[T]) -> Vec<T> {
        match self.0 {
            Activation::Sigmoid {} => of_slice(x, T::sigmoid_fraction_slice),
            Activation::Tanh {} => of_slice(x, T::tanh_fraction_slice),
            Activation::Swish { alpha } => {
                let alpha = T::from(alpha);
                through(x, |v| alpha * v, T::sigmoid_fraction_slice, |v, s| v * s)
            }
            other => other.map(x),
        }
    }
}

impl Op for InFractions {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        self.0.infer(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        if x.dtype().is_float() { Ok(vec![real(self, x)?]) } else { self.0.float(inputs) }
    }
}

impl Op for Activation {
    fn in_runtime(&self, _: &Runtime) -> Option<Arc<dyn Op>> {
        let fraction = matches!(self, Self::Sigmoid {} | Self::Tanh {} | Self::Swish { .. });
        fraction.then(|| Arc::new(InFractions(*self)) as Arc<dyn Op>)
    }

    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        like_first(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        if x.dtype().is_float() {
            return Ok(vec![real(self, x)?]);
        }
        let y = numbers!(x, v => match self {
            Self::Relu {} | Self::Shrink { .. } => Array::new(x.shape(), through_reals(self, v)),
            _ => Err(Fault::new(format!("not defined for {}", x.dtype()))),
        });
        Ok(vec![y?])
    }

    fn integer(&self, unit: &Unit) -> Option<Box<dyn Kernel>> {
        integer::elementwise::table(self, unit)
    }

    fn rule(&self) -> Rule {
        match self {
            Self::Relu {} => Rule::Clamp { low: 0.0, high: f32::INFINITY },
            Self::LeakyRelu { .. } => Rule::Arithmetic(Operands::One),
            Self::Sigmoid {} => Rule::FixedRange { low: 0.0, scale: 1.0 / 256.0 },
            _ => Rule::Float,
        }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// Limits to an interval: the attributes' (before opset 11), or that of the optional inputs 1 and 2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// Least value.
    pub low: f32,
    /// Greatest value; it wins over `low`.
    pub high: f32,
}

impl Clip {
    fn limit<T: Number + Element>(&self, x: &[T], inputs: &[Option<Array>]) -> Result<Vec<T>, Fault> {
        let bound = |slot, attribute: f32| match optional(inputs, slot) {
            Some(bound) => bound.item::<T>().map(Some),
            None => Ok(attribute.is_finite().then(|| T::from_f64(attribute.into()))),
        };
        let raise = |v, low| if v < low { low } else { v };
        let lower = |v, high| if v > high { high } else { v };
        Ok(match (bound(1, self.low)?, bound(2, self.high)?) {
            (Some(low), Some(high)) => map(x, |v| lower(raise(v, low), high)),
            (Some(low), None) => map(x, |v| raise(v, low)),
            (None, Some(high)) => map(x, |v| lower(v, high)),
            (None, None) => x.to_vec(),
        })
    }
}

impl Op for Clip {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        like_first(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let x = required(inputs, 0)?;
        Ok(vec![numbers!(x, v => Array::new(x.shape(), self.limit(v, inputs)?))?])
    }

    fn rule(&self) -> Rule {
        Rule::Clamp { low: self.low, high: self.high }
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

/// x, or slope·x below zero, with a slope that broadcasts to x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PRelu {
    /// Before opset 7: a vector of slopes runs along axis 1 of x.
    pub per_channel: bool,
}

impl PRelu {
    /// The shape in which the slope broadcasts to x.
    fn slope_shape(&self, x: &Array, slope: &Array) -> Vec<usize> {
        let mut shape = slope.shape().to_vec();
        if self.per_channel && slope.len() > 1 {
            shape.resize(shape.len().max(x.rank().saturating_sub(1)), 1);
        }
        shape
    }
}

fn leaky<T: Number>(x: &T, slope: &T) -> T {
    if *x < T::default() { x.mul(*slope) } else { *x }
}

impl Op for PRelu {
    fn infer(&self, inputs: &[Option<Fact>]) -> Result<Vec<Option<TensorType>>, Fault> {
        like_first(inputs)
    }

    fn float(&self, inputs: &[Option<Array>]) -> Result<Vec<Array>, Fault> {
        let (x, slope) = (required(inputs, 0)?, required(inputs, 1)?);
        let slope_shape = self.slope_shape(x, slope);
        let y = numbers!(x, v => {
            let (shape, values) = zip((v, x.shape()), (slope.slice()?, &slope_shape), leaky)?;
            if shape != x.shape() {
                fail!("slope {:?} does not broadcast to {:?}", slope.shape(), x.shape());
            }
            Array::new(&shape, values)
        });
        Ok(vec![y?])
    }

    fn gradient(&self) -> Option<&dyn Gradient> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend() {
        crate::ops::backend_tests::run("activation");
    }

    fn run(op: &dyn Op, inputs: &[Array]) -> Result<Array, Fault> {
        op.float(&inputs.iter().cloned().map(Some).collect::<Vec<_>>()).map(|mut y| y.remove(0))
    }

    /// Every activation in `f32` against its `f64` self, which uses other code for every function.
    #[test]
    fn single_precision_agrees_with_double() {
        let x: Vec<f32> = (-4000..=4000).map(|i| i as f32 * 0.01).collect();
        let wide: Vec<f64> = x.iter().map(|&v| v.into()).collect();
        use Activation::*;
        let all = [
            Relu {},
            LeakyRelu { alpha: 0.1 },
            Sigmoid {},
            Tanh {},
            HardSigmoid { alpha: 0.2, beta: 0.5 },
            HardSwish {},
            Elu { alpha: 1.5 },
            Selu { alpha: 1.67, gamma: 1.05 },
            Celu { alpha: 2.0 },
            Softplus {},
            Softsign {},
            ThresholdedRelu { alpha: 1.0 },
            Gelu { tanh: false },
            Gelu { tanh: true },
            Mish {},
            Swish { alpha: 1.0 },
            Shrink { lambd: 0.5, bias: 0.1 },
        ];
        for op in all {
            let (single, double) = (op.map(&x), op.map(&wide));
            for ((x, s), d) in x.iter().zip(single).zip(double) {
                assert!(
                    (f64::from(s) - d).abs() <= 2e-6 + 5e-7 * d.abs(),
                    "{op:?} at {x}: {s} instead of {d}"
                );
            }
        }
    }

    #[test]
    fn mish_by_its_definition() {
        for x in [-90.0, -5.0, -0.5, 0.0, 1e-3, 3.0, 19.0, 21.0, 800.0f64] {
            let exact = x * libm::tanh(libm::log1p(libm::exp(x)).min(1e3));
            assert!((Activation::Mish {}.map(&[x])[0] - exact).abs() <= 1e-12 * exact.abs());
        }
    }

    #[test]
    fn extremes() {
        let x = [f32::NEG_INFINITY, -200.0, 200.0, f32::NAN];
        for op in [Activation::Relu {}, Activation::Tanh {}, Activation::Softplus {}, Activation::Sigmoid {}]
        {
            let y = op.map(&x);
            assert!(y[..3].iter().all(|v| !v.is_nan()) && y[3].is_nan(), "{op:?}: {y:?}");
        }
    }

    #[test]
    fn bounds_of_clip() {
        let x = Array::vector(vec![-2f32, 0.5, 9.0, f32::NAN]);
        let y = run(&Clip { low: 0.0, high: 6.0 }, std::slice::from_ref(&x)).unwrap();
        assert_eq!(y.slice::<f32>().unwrap()[..3], [0.0, 0.5, 6.0]);
        assert!(y.slice::<f32>().unwrap()[3].is_nan());
        let open = Clip { low: f32::NEG_INFINITY, high: f32::INFINITY };
        let y =
            run(&open, &[Array::vector(vec![1i8, 5, 9]), Array::scalar(4i8), Array::scalar(2i8)]).unwrap();
        assert_eq!(y, Array::vector(vec![2i8, 2, 2]));
        assert!(run(&open, &[Array::vector(vec![1i8]), Array::scalar(4i32)]).is_err());
        assert!(run(&open, &[Array::vector(vec![1i8]), Array::vector(vec![4i8, 5])]).is_err());
    }

    #[test]
    fn slopes_run_along_channels_before_opset_7() {
        let x = Array::new(&[1, 2, 2], vec![-1f32; 4]).unwrap();
        let slope = Array::vector(vec![0.5f32, 0.25]);
        let y = run(&PRelu { per_channel: true }, &[x.clone(), slope.clone()]).unwrap();
        assert_eq!(y.slice::<f32>().unwrap(), [-0.5, -0.5, -0.25, -0.25]);
        let y = run(&PRelu { per_channel: false }, &[x.clone(), slope]).unwrap();
        assert_eq!(y.slice::<f32>().unwrap(), [-0.5, -0.25, -0.5, -0.25]);
        assert!(
            run(&PRelu { per_channel: false }, &[x, Array::new(&[2, 1, 1], vec![1f32; 2]).unwrap()]).is_err()
        );
    }
}
