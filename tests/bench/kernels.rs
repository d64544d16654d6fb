//! How fast the kernels are on one thread, and what part of the processor's peak that is.
//!
//!     cargo bench --bench kernels
//!
//! A figure is the median of rounds by turns, in which each kernel runs for some milliseconds. The peak is measured in
//! the same rounds: multiplications and additions in registers, with the widest vectors that the kernels use. Nothing
//! fails because of a time.

use std::hint::black_box;
use std::time::Instant;

use qonnx::calibrate::histogram::Histogram;
use qonnx::interpret::{Numerics, Program};
use qonnx::ir::{Array, Limits};
use qonnx::kernels::conv::{Channels, Order, conv_finished, gains, lay_out};
use qonnx::kernels::finish::{self, Finish};
use qonnx::kernels::gemm::{Mat, MatMut, Size, gemm};
use qonnx::kernels::product::Ending;
use qonnx::kernels::simd::Isa;
use qonnx::kernels::window::{Axis, Padding};
use qonnx::onnx::{import, text};

const ROUNDS: usize = 9;
const SECONDS: f64 = 0.02;

/// A kernel: what it is called, how many operations or elements a run has, and the run.
struct Kernel {
    name: String,
    unit: Unit,
    work: f64,
    run: Box<dyn FnMut()>,
}

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    /// Floating-point operations; a multiplication and an addition are two.
    Flop,
    /// Operations on bytes.
    Op,
    /// Elements.
    Element,
}

fn main() {
    let mut kernels = vec![
        Kernel { name: "peak, f32".into(), unit: Unit::Flop, work: peak::WORK, run: Box::new(peak::f32) },
        Kernel {
            name: "peak, u8 x s8".into(),
            unit: Unit::Op,
            work: peak::WORK * 4.0,
            run: Box::new(peak::bytes),
        },
    ];
    for (m, k, n) in [(64, 576, 784), (96, 16, 12544), (24, 96, 3136), (256, 2304, 196), (512, 512, 49)] {
        kernels.push(product(m, k, n));
    }
    for (m, k, n) in [(128, 384, 1536), (128, 768, 768), (1, 1280, 1000)] {
        kernels.push(product(m, k, n));
    }
    kernels.push(convolution("conv 3x3", 64, 64, 1, 56, 3, 1));
    kernels.push(convolution("conv 7x7 / 2", 3, 64, 1, 224, 7, 2));
    kernels.push(convolution("depthwise 3x3", 1, 1, 96, 112, 3, 1));
    kernels.push(convolution("depthwise 3x3 / 2", 1, 1, 96, 112, 3, 2));
    kernels.push(integer_convolution("QLinearConv 3x3", 64, 64, 1, 56, 3));
    kernels.push(integer_convolution("QLinearConv 1x1", 64, 256, 1, 56, 1));
    kernels.push(integer_convolution("QLinearConv depthwise 3x3", 96, 96, 96, 112, 3));
    kernels.push(integer_product(128, 768, 768));
    let values: Vec<f32> = numbers(1 << 18);
    let data = values.clone();
    kernels.push(elements("extremes", move || {
        black_box(finish::extent(black_box(&data)));
    }));
    let (data, mut seen) = (values.clone(), Histogram::new());
    kernels.push(elements("histogram, every element", move || {
        black_box(seen.record(black_box(&data)));
    }));
    let (mut seen, extent, mut turn) = (Histogram::new(), finish::extent(&values), 0);
    kernels.push(elements("histogram, as calibration counts", move || {
        turn += 1;
        seen.sample(black_box(&values), extent, turn, 1 << 14);
    }));
    report(&mut kernels);
}

/// Runs all by turns and prints the medians.
fn report(kernels: &mut [Kernel]) {
    let mut speeds = vec![Vec::new(); kernels.len()];
    for _ in 0..ROUNDS {
        for (kernel, speeds) in kernels.iter_mut().zip(&mut speeds) {
            (kernel.run)();
            let (start, mut runs) = (Instant::now(), 0);
            while start.elapsed().as_secs_f64() < SECONDS {
                (kernel.run)();
                runs += 1;
            }
            speeds.push(kernel.work * f64::from(runs) / start.elapsed().as_secs_f64());
        }
    }
    let medians: Vec<f64> = speeds
        .iter_mut()
        .map(|all| {
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        })
        .collect();
    println!("{:?}\n\n| kernel | speed | of the peak |\n|---|---|---|", Isa::detect());
    for (kernel, &speed) in kernels.iter().zip(&medians) {
        let (figure, peak) = match kernel.unit {
            Unit::Flop => (format!("{:.0} GFLOP/s", speed / 1e9), Some(medians[0])),
            Unit::Op => (format!("{:.0} Gop/s", speed / 1e9), Some(medians[1])),
            Unit::Element => (format!("{:.2} ns an element", 1e9 / speed), None),
        };
        let share = peak.map_or("-".into(), |peak| format!("{:.0} %", 100.0 * speed / peak));
        println!("| {} | {figure} | {share} |", kernel.name);
    }
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 2003) as f32 / 1000.0 - 1.0).collect()
}

fn elements(name: &str, run: impl FnMut() + 'static) -> Kernel {
    Kernel { name: name.into(), unit: Unit::Element, work: (1 << 18).into(), run: Box::new(run) }
}

fn product(m: usize, k: usize, n: usize) -> Kernel {
    let (a, b, mut c) = (numbers(m * k), numbers(k * n), vec![0.0; m * n]);
    let run = move || {
        let (a, b) = (Mat::rows(black_box(&a), k), Mat::rows(&b, n));
        gemm(Size { m, n, k }, 1.0, a, b, 0.0, MatMut::rows(black_box(&mut c), n));
    };
    let name = format!("product {m} x {k} x {n}");
    Kernel { name, unit: Unit::Flop, work: 2.0 * (m * n * k) as f64, run: Box::new(run) }
}

/// Square windows over a square image, padded so that as many remain, with a clamp.
fn convolution(
    name: &str,
    input: usize,
    output: usize,
    groups: usize,
    side: usize,
    kernel: usize,
    stride: usize,
) -> Kernel {
    let padding = Padding::Explicit(kernel / 2, kernel / 2);
    let axis = Axis::new(side, kernel, stride, 1, padding, false).expect("a window");
    let channels = Channels { batch: 1, groups, input, output };
    let (x, w) = (numbers(groups * input * side * side), numbers(groups * output * input * kernel * kernel));
    let bias = numbers(groups * output);
    let work = 2 * groups * output * input * kernel * kernel * axis.output * axis.output;
    let (axes, order) = ([axis, axis], Order::Channels);
    // As in a program, whose weights are constants.
    let panels = gains(channels, &axes, order).then(|| lay_out(channels, &axes, order, &w));
    let run = move || {
        let mut finish = Finish::new(Limits { low: 0.0, high: 6.0 });
        let end = Ending { bias: Some(&bias), added: None, finish: &mut finish };
        let y = conv_finished(channels, &axes, order, black_box(&x), (&w, panels.as_ref()), end);
        drop(black_box(y));
    };
    Kernel {
        name: format!("{name}, {groups} x {input} to {output}, {side} x {side}"),
        unit: Unit::Flop,
        work: work as f64,
        run: Box::new(run),
    }
}

/// A model on bytes whose weight is zeros of this shape: the kernels do not look at what they multiply.
fn integers(source: &str, weight: &str) -> Program {
    let text = format!(
        r#"<ir_version: 8, opset_import: ["" : 17]> g {source}
           <int64[{rank}] shape = {{{weight}}}, float s = {{0.01}}, float t = {{0.5}}, uint8 z = {{128}}, int8 o = {{0}}> {{
             w = ConstantOfShape <value = int8[1] {{0}}> (shape)
             y = {op}
           }}"#,
        rank = weight.split(',').count(),
        source = source.split('|').next().unwrap_or_default(),
        op = source.split('|').nth(1).unwrap_or_default(),
    );
    let model =
        import(text::parse(&text).expect("a text"), &|_| Err("no other file".into())).expect("a model");
    Program::with_numerics(&model.graph, Numerics::Ort).expect("a program")
}

fn integer_convolution(
    name: &str,
    input: usize,
    output: usize,
    groups: usize,
    side: usize,
    kernel: usize,
) -> Kernel {
    let pad = kernel / 2;
    let source = format!(
        "(uint8[1, {input}, {side}, {side}] x) => (uint8[1, {output}, {side}, {side}] y)|\
         QLinearConv <pads = [{pad}, {pad}, {pad}, {pad}], group = {groups}> (x, s, z, w, s, o, t, z)"
    );
    let depth = input / groups;
    let program = integers(&source, &format!("{output}, {depth}, {kernel}, {kernel}"));
    let x = Array::new(&[1, input, side, side], vec![100u8; input * side * side]).expect("an image");
    let work = 2 * output * depth * kernel * kernel * side * side;
    Kernel {
        name: format!("{name}, {input} to {output}, {side} x {side}"),
        unit: Unit::Op,
        work: work as f64,
        run: Box::new(move || {
            drop(black_box(program.run(black_box(std::slice::from_ref(&x))).expect("a run")))
        }),
    }
}

fn integer_product(m: usize, k: usize, n: usize) -> Kernel {
    let source = format!("(uint8[{m}, {k}] x) => (uint8[{m}, {n}] y)|QLinearMatMul (x, s, z, w, s, o, t, z)");
    let program = integers(&source, &format!("{k}, {n}"));
    let x = Array::new(&[m, k], vec![100u8; m * k]).expect("a matrix");
    Kernel {
        name: format!("QLinearMatMul {m} x {k} x {n}"),
        unit: Unit::Op,
        work: 2.0 * (m * n * k) as f64,
        run: Box::new(move || {
            drop(black_box(program.run(black_box(std::slice::from_ref(&x))).expect("a run")))
        }),
    }
}

/// Products in registers, as many at once as hide the time that each takes.
#[cfg(target_arch = "x86_64")]
mod peak {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use qonnx::kernels::integer::Level;
    use qonnx::kernels::simd::Isa;

    const STEPS: usize = 10_000;
    /// Vectors of sums.
    const SUMS: usize = 12;
    /// Operations of a run on 16 lanes of 32 bits.
    pub const WORK: f64 = (2 * 16 * SUMS * STEPS) as f64;

    pub fn f32() {
        #[target_feature(enable = "avx512f")]
        fn wide() {
            let (x, mut sums) = (_mm512_set1_ps(black_box(0.5)), [_mm512_setzero_ps(); SUMS]);
            for _ in 0..STEPS {
                sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(x, x, *sum));
            }
            black_box(sums);
        }
        #[target_feature(enable = "avx2,fma")]
        fn narrow() {
            let (x, mut sums) = (_mm256_set1_ps(black_box(0.5)), [_mm256_setzero_ps(); SUMS]);
            for _ in 0..2 * STEPS {
                sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(x, x, *sum));
            }
            black_box(sums);
        }
        match Isa::detect() {
            // SAFETY: the processor has AVX-512.
            Isa::Avx512 => unsafe { wide() },
            // SAFETY: the processor has AVX2 and FMA.
            Isa::Avx2 => unsafe { narrow() },
            Isa::Scalar => {}
        }
    }

    pub fn bytes() {
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn dots() {
            let (x, mut sums) = (_mm512_set1_epi8(black_box(3)), [_mm512_setzero_si512(); SUMS]);
            for _ in 0..STEPS {
                sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, x, x));
            }
            black_box(sums);
        }
        if Level::detect() != Level::Plain {
            // SAFETY: the processor has VNNI.
            unsafe { dots() };
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod peak {
    pub const WORK: f64 = f64::NAN;

    pub fn f32() {}

    pub fn bytes() {}
}
