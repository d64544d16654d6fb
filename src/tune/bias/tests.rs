use super::*;
use crate::interpret::Program;
use crate::onnx::{import, text};
use crate::passes::infer;
use crate::quantize::candidate::Filter;
use crate::quantize::weight_only::{Storage, quantize};
use crate::tune::moments::{expected, measured};

const MODEL: &str = "< ir_version: 8, opset_import: [\"\" : 17] >
g (float[64,16,3,3] x) => (float[64,24,3,3] y) <
  float[16] gamma = random(1, 0.5, 2.5), float[16] beta = random(2, -1.5, 2.5), float[16] zero = random(3, 0.0, 0.0),
  float[16] one = random(4, 1.0, 1.0), float[24,16,1,1] w = random(5, -1.0, 1.0)
> {
  n = BatchNormalization <epsilon = 0.0> (x, gamma, beta, zero, one)
  r = Relu (n)
  y = Conv (r, w)
}";

/// Numbers that look random, about Gaussian with mean 0 and deviation 1.
fn noise(count: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum()).collect()
}

fn read(source: &str) -> Graph {
    let mut model = import(text::parse(source).unwrap(), &|_| Err("no external data".into())).unwrap();
    infer(&mut model.graph);
    model.graph
}

/// The largest distance between the means of output channels.
fn off(a: &Graph, b: &Graph) -> f64 {
    let x = Array::new(&[64, 16, 3, 3], noise(64 * 16 * 9)).unwrap();
    let run = |graph: &Graph| Program::new(graph).unwrap().run(std::slice::from_ref(&x)).unwrap().remove(0);
    let (a, b) = (run(a), run(b));
    let mut sums = [0f64; 24];
    for (i, (a, b)) in a.slice::<f32>().unwrap().iter().zip(b.slice::<f32>().unwrap()).enumerate() {
        sums[i / 9 % 24] += f64::from(b - a);
    }
    sums.iter().map(|s| s.abs() / (64.0 * 9.0)).fold(0.0, f64::max)
}

#[test]
fn means_of_channels_come_back() {
    let float = read(MODEL);
    let mut plain = float.clone();
    quantize(&mut plain, &Filter::default(), Storage::default()).unwrap();
    let mut corrected = plain.clone();
    assert_eq!(correct(&float, &mut corrected, &expected(&float)).unwrap(), ["y"]);
    let (before, after) = (off(&float, &plain), off(&float, &corrected));
    assert!(after < before / 3.0, "{after} of {before}");
}

#[test]
fn samples_tell_the_same_as_statistics() {
    let float = read(MODEL);
    let dir = tempfile::tempdir().unwrap();
    let shape: Vec<String> = [64, 16, 3, 3].iter().map(ToString::to_string).collect();
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.join(", "));
    let padded = format!("{header:<117}\n");
    let mut npy = b"\x93NUMPY\x01\x00".to_vec();
    npy.extend((padded.len() as u16).to_le_bytes());
    npy.extend(padded.bytes());
    noise(64 * 16 * 9).iter().for_each(|v| npy.extend(v.to_le_bytes()));
    std::fs::create_dir(dir.path().join("0")).unwrap();
    std::fs::write(dir.path().join("0/x.npy"), npy).unwrap();
    let inputs = crate::calibrate::read::open_inputs(&float).unwrap();
    let samples = crate::calibrate::read::open(dir.path(), &inputs, None).unwrap();
    let (seen, known) = (measured(&float, &samples, &|_| {}).unwrap(), expected(&float));
    let r = ("r".to_string(), 1);
    for (a, b) in seen[&r].iter().zip(&known[&r]) {
        assert!((a - b).abs() < 0.15, "{a} and {b}");
    }
}

#[test]
fn a_bias_that_others_read_is_left_to_them() {
    let text = MODEL.replace("y = Conv (r, w)", "t = Conv (r, w, b) u = Mul (b, b) y = Conv (r, w)");
    let text = text.replace("float[24,16,1,1] w", "float[24] b = random(6, 1.0, 1.0), float[24,16,1,1] w");
    let mut graph = read(&text);
    let b = graph.find("b").unwrap();
    let conv = graph.producer(graph.find("t").unwrap()).unwrap().0;
    assert!(add(&mut graph, conv, &[0.5; 24]).unwrap());
    assert_eq!(graph.constant(b).unwrap().array().unwrap().slice::<f32>().unwrap(), [1.0; 24]);
    let own = graph.constant_input(conv, 2).unwrap().array().unwrap();
    assert_eq!(own.slice::<f32>().unwrap(), [1.5; 24]);
}

#[test]
fn channels_are_not_what_a_product_sums_over() {
    let graph = read(
        "< ir_version: 8, opset_import: [\"\" : 17] >
         g (float[1,16,16] x) => (float[1,16,24] y) <
           float[16] gamma = random(1, 0.5, 2.5), float[16] beta = random(2, -1.5, 2.5), float[16] mean = random(3, 0.0, 0.0),
           float[16] var = random(4, 1.0, 1.0), float[16,24] w = random(5, -1.0, 1.0), float[24] b = random(6, 0.0, 1.0)
         > { n = BatchNormalization (x, gamma, beta, mean, var) p = MatMul (n, w) y = Add (p, b) }",
    );
    let mut quantized = graph.clone();
    quantize(&mut quantized, &Filter::default(), Storage::default()).unwrap();
    assert_eq!(correct(&graph, &mut quantized, &expected(&graph)).unwrap(), [""; 0]);
    let along_last = Means::from([(("n".to_string(), 2), vec![0.5; 16])]);
    assert_eq!(correct(&graph, &mut quantized, &along_last).unwrap(), ["p"]);
}
