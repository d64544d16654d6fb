use std::path::Path;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::proto::{AttributeProto, ModelProto, TensorProto};

/// Every rule of the grammar at least once.
const EVERYTHING: &str = r#"
<
  ir_version: 10, opset_import: ["" : 17, "com.example" : 1, "local" : 1],
  producer_name: "by hand", producer_version: "1", domain: "a.b", model_version: 3, doc_string: "said \"so\" \\ here",
  metadata_props: ["key": "value", "empty": ""]
>
everything (
  float[N,"H*W",?,3] x, float scalar, float[] any_rank, float16[2] given = {15360, 1.5}, untyped,
  seq(float[2]) s, optional(seq(int64[])) o, map(string, float[1]) m, sparse_tensor(float[4,4]) sp, opaque() o1,
  opaque(name) o2, opaque(ai.domain, name) o3
) => (float[N] y, bool z) <
  float[2,2] w = {1, -2.5, 3e-7, nan},
  double[3] d = {1e300, -inf, 0.1},
  int8[2] i8 = {-128, 127}, uint8[1] u8 = {255}, int16[1] i16 = {-32768}, uint16[1] u16 = {65535},
  int32[1] i32 = {-2147483648}, int64[2] i64 = {-9223372036854775808, 9223372036854775807},
  uint32[1] u32 = {4294967295}, uint64[1] u64 = {18446744073709551615}, bool[2] flags = {1, 0},
  string[2] words = {"a", "b \" c"}, bfloat16[2] bf = {16256, -0.5}, complex64[1] c64 = {1.0, 2.0},
  complex128[1] c128 = {1.0, 2.0}, float8e4m3fn[1] f8 = {126}, int4[4] i4 = {33, 255},
  float[0] nothing = {}, float[3] far = ["location": "weights.bin", "offset": "0", "length": "12"],
  float[N] shape_information
> {
  # a comment
  [first] a = com.example.Op <i = 1, f = 1.0, n: float = 3, s = "x", is = [1, 2], fs = [1.0, 2], ss = ["p", "q"],
    none: ints = [], t = float[2] {1, 2}, named = int8 label = {7}, tp = seq(float[2]),
    ts = [float {1}, float {2}], tps = [float[1], int8], big = -inf> (x, , "")
  // another one
  b, , c = Op:overloaded ("", x)
  [] = Sink (a)
  "odd name" = "odd domain"."odd op" (b)
  y = If (z) <
    zero = 0,
    then_branch = g1 () => (float e) { e = Neg (x) },
    else_branch = "g 2" () => (float e) <float k = {1.0}, float e> { e = Abs (k) },
    more = [g3 () => () {}, g4 () => () {}]
  >
}
< domain: "local", opset_import: ["" : 17], doc_string: "doubles" >
twice <times, alpha: float = 2.0> (u, float[N] v) => (w) <float[N] t> {
  t = Op <times: int = @times, any = @other> (u, v)
  w = Identity (t)
}
"#;

fn golden_texts() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let texts = entries.filter(|path| path.extension().is_some_and(|extension| extension == "onnxtxt"));
    let mut texts: Vec<_> =
        texts.map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap())).collect();
    texts.sort();
    assert!(!texts.is_empty());
    texts
}

/// `graph` is what stands between the braces of a model with the initializers `facts`.
fn model(facts: &str, graph: &str) -> ModelProto {
    parse(&format!("g (float[1] x) => (y) <{facts}> {{ {graph} }}")).unwrap()
}

fn initializer(fact: &str) -> TensorProto {
    model(fact, "").graph.unwrap().initializer.remove(0)
}

fn attribute(text: &str) -> AttributeProto {
    model("", &format!("y = Op <{text}> (x)")).graph.unwrap().node.remove(0).attribute.remove(0)
}

/// Equality that takes NaN as equal to itself.
#[track_caller]
fn assert_same(left: &ModelProto, right: &ModelProto) {
    assert_eq!(format!("{left:#?}"), format!("{right:#?}"));
}

#[test]
fn full_text_reads_back_as_the_same_model() {
    let everything = ("everything".to_string(), EVERYTHING.to_string());
    for (name, text) in golden_texts().into_iter().chain([everything]) {
        let model = parse(&text).unwrap_or_else(|error| panic!("{name}:{error}"));
        let printed = print(&model, Detail::Full);
        let again = parse(&printed).unwrap_or_else(|error| panic!("{name}, printed:{error}\n{printed}"));
        assert_same(&model, &again);
        assert_eq!(printed, print(&again, Detail::Full), "{name}");
    }
}

#[test]
fn the_header_fills_the_model() {
    let model = parse(EVERYTHING).unwrap();
    assert_eq!((model.ir_version, model.model_version), (Some(10), Some(3)));
    let opsets: Vec<_> = model.opset_import.iter().map(|opset| (opset.domain(), opset.version())).collect();
    assert_eq!(opsets, [("", 17), ("com.example", 1), ("local", 1)]);
    assert_eq!(model.doc_string(), r#"said "so" \ here"#);
    assert_eq!(model.metadata_props.len(), 2);
    let function = model.functions.first().unwrap();
    assert_eq!((function.input.join(","), function.output.join(",")), ("u,v".into(), "w".into()));
    assert_eq!((function.attribute.join(","), function.attribute_proto.len()), ("times".into(), 1));
    assert_eq!(function.value_info.iter().map(|info| info.name()).collect::<Vec<_>>(), ["v", "t"]);
}

#[test]
fn attributes_take_their_type_from_the_value_or_the_declaration() {
    use AttributeType as A;
    for (text, kind) in [
        ("a = 1", A::Int),
        ("a = 1.0", A::Float),
        ("a = 1e3", A::Float),
        ("a = -inf", A::Float),
        ("a: float = 1", A::Float),
        ("a = \"x\"", A::String),
        ("a = [1]", A::Ints),
        ("a = [1.0, 2]", A::Floats),
        ("a: floats = [1, 2]", A::Floats),
        ("a: strings = []", A::Strings),
        ("a = [\"x\"]", A::Strings),
        ("a = float {1}", A::Tensor),
        ("a = float t = {1}", A::Tensor),
        ("a = float[2] fill(0.5)", A::Tensor),
        ("a = [float {1}]", A::Tensors),
        ("a = float", A::TypeProto),
        ("a = [float, int8[2]]", A::TypeProtos),
        ("a = g () => () {}", A::Graph),
        ("a = \"g h\" () => () {}", A::Graph),
        ("a = [g () => () {}]", A::Graphs),
        ("a: int = @b", A::Int),
        ("a = @b", A::Undefined),
    ] {
        assert_eq!(attribute(text).r#type(), kind, "{text}");
    }
    assert_eq!(attribute("a: float = 16777217").f, Some(16_777_216.0));
    assert_eq!(attribute("a: float = -0").f().to_bits(), (-0.0f32).to_bits());
    assert_eq!(attribute("a = [1, -2]").ints, [1, -2]);
    assert_eq!(attribute("a = \"\\\"\\\\\"").s(), b"\"\\");
}

#[test]
fn operands_may_be_absent() {
    for (text, inputs) in [
        ("", vec![]),
        ("x", vec!["x"]),
        ("x,", vec!["x"]),
        (",", vec![""]),
        ("\"\"", vec![""]),
        (", x", vec!["", "x"]),
        ("x, , y", vec!["x", "", "y"]),
        ("x, \"\"", vec!["x", ""]),
    ] {
        let model = model("", &format!("y = Op({text})"));
        assert_eq!(model.graph.unwrap().node[0].input, inputs, "{text}");
    }
}

#[test]
fn elements_land_in_the_field_of_their_type() {
    assert_eq!(initializer("float[2] w = {1, 0.1}").float_data, [1.0, 0.1]);
    assert_eq!(initializer("uint32[1] w = {4294967295}").uint64_data, [4_294_967_295]);
    assert_eq!(initializer("float16[3] w = {15360, 1.0, 65504.0}").int32_data, [0x3c00, 0x3c00, 0x7bff]);
    assert_eq!(initializer("bfloat16[2] w = {16256, 1.0}").int32_data, [0x3f80, 0x3f80]);
    let external = initializer("float[3] w = [\"location\": \"w.bin\"]");
    assert_eq!((external.data_location, external.external_data.len()), (Some(1), 1));
}

#[test]
fn fills_are_fixed() {
    // The first outputs of splitmix64 from 1234567, as published with test vectors of the generator.
    let outputs: [u64; 4] = [
        6_457_827_717_110_365_317,
        3_203_168_211_198_807_973,
        9_817_491_932_198_370_423,
        4_593_380_528_125_082_431,
    ];
    let unit = outputs.map(|z| (z >> 11) as f64 * 2f64.powi(-53));
    assert_eq!(initializer("double[4] w = random(1234567, 0, 1)").double_data, unit);
    assert_eq!(
        initializer("float[4] w = random(1234567, -2, 2)").float_data,
        unit.map(|u| (4.0 * u - 2.0) as f32)
    );
    let bytes = initializer("int8[256] w = random(3, -128, 127)").int32_data;
    assert!(bytes.iter().min() < Some(&-100) && bytes.iter().max() > Some(&100));
    assert_eq!(initializer("int64[2,2] w = fill(9007199254740993)").int64_data, [9_007_199_254_740_993; 4]);
    assert_eq!(initializer("string[2] w = fill(\"a\")").string_data, ["a", "a"]);
}

#[test]
fn the_digest_is_stable_and_readable() {
    let text = r#"
        <ir_version: 8, opset_import: ["" : 17], producer_name: "someone">
        g (float[N,3] "in/put") => (float y) <
          float[16,3,3,3] w = random(1, -0.3, 0.3), float16[2] h = {15360, 0.1}, int8[9] q = fill(-3),
          float[9] n = fill(nan), string[9] s = fill("a"), double scale = {0.1}, float[N,?] mid
        > {
          [node] a, b = com.example.Op <z = 1, alpha = 1, beta: floats = [], t = float[9] {1,2,3,4,5,6,7,8,1e20}> (w, "")
          y = If (b) <then_branch = t () => (e) <float[1] k = {1}> { e = Neg (k) }, axis = 2, else_branch = f () => (e) {}>
        }"#;
    let digest = print(&parse(text).unwrap(), Detail::Digest);
    insta::assert_snapshot!(digest, @r#"
    <
      ir_version: 8,
      opset_import: ["" : 17]
    >
    g (float[N,3] "in/put") => (float y) <
      float[16,3,3,3] w = <432 elements, min -0.299931, max 0.298649, fnv f2201ac658c42770>,
      float16[2] h = {1.0, 0.099975586},
      int8[9] q = <9 elements, min -3, max -3, fnv d3b93627ce823c3f>,
      float[9] n = <9 elements, fnv c89dbbc5c1f2ab98>,
      string[9] s = <9 elements, fnv 0462f93fe3b8d7e8>,
      double scale = {0.1},
      float[N,?] mid
    > {
      [node] a, b = com.example.Op <alpha = 1, beta: floats = [], t = float[9] <9 elements, min 1, max 1e20, fnv cf2f42052bc1ef2a>, z = 1> (w, "")
      y = If (b) <
        axis = 2,
        else_branch = f () => (e) {
        },
        then_branch = t () => (e) <
          float[1] k = {1.0}
        > {
          e = Neg (k)
        }
      >
    }
    "#);
}

#[test]
fn the_digest_ignores_how_a_tensor_is_encoded() {
    let mut model =
        model("float[12] w = random(1, -1, 1), int8[12] q = random(2, -9, 9), uint32[3] u = {1, 2, 3}", "");
    let typed = print(&model, Detail::Digest);
    for tensor in &mut model.graph.as_mut().unwrap().initializer {
        let floats = tensor.float_data.iter().flat_map(|x| x.to_le_bytes());
        let ints = tensor.int32_data.iter().map(|&x| x as u8);
        let uints = tensor.uint64_data.iter().flat_map(|&x| (x as u32).to_le_bytes());
        tensor.raw_data = Some(floats.chain(ints).chain(uints).collect::<Vec<u8>>().into());
        (tensor.float_data, tensor.int32_data, tensor.uint64_data) = (vec![], vec![], vec![]);
    }
    assert_eq!(print(&model, Detail::Digest), typed);
}

#[test]
fn a_payload_that_is_cut_short_prints() {
    let mut model = model("float[2] w = {1, 2}", "");
    model.graph.as_mut().unwrap().initializer[0].raw_data = Some(Bytes::from_static(&[0, 0, 128, 63, 9]));
    assert!(print(&model, Detail::Full).contains("float[2] w = {1.0}"));
}

#[test]
fn errors_say_what_and_where() {
    for (text, error) in [
        ("", "1:1: expected the name of a graph, found the end of the text"),
        ("g (x) = > (y) {}", "1:7: expected `=>`, found `=`"),
        ("g (x) => (y) {\n  y = Relu (x)\n  é\n}", "3:3: expected `=`, found `é`"),
        ("g (x) => (y) {\n # }\n", "3:1: expected `=`, found the end of the text"),
        ("<ir_version: 1.5> g () => () {}", "1:14: expected an integer"),
        ("<ir_version: 99999999999999999999> g () => () {}", "1:14: 99999999999999999999 does not fit i64"),
        ("<version: 1> g () => () {}", "1:2: a model has no property `version`"),
        ("<domain: \"x> g () => () {}", "1:10: this string has no end"),
        ("g () => () <float[N] w = {1}> {}", "1:13: a tensor with elements needs a shape of numbers"),
        ("g () => () <float[] w = {1}> {}", "1:13: a tensor with elements needs a tensor type of known rank"),
        ("g () => () <w = {1}> {}", "1:13: an initializer needs a type before its name"),
        ("g () => () <int8[1] w = {128}> {}", "1:26: 128 does not fit i8"),
        ("g () => () <int8[1] w = {1.0}> {}", "1:26: expected an integer"),
        ("g () => () <bool w = {2}> {}", "1:23: a bool is 0 or 1"),
        ("g () => () <float w = {1e39}> {}", "1:24: this number is too large for single precision"),
        ("g () => () <float w = {1e999}> {}", "1:24: this number is out of range"),
        ("g () => () <float w = {\"1\"}> {}", "1:24: a string is no element of a tensor of numbers"),
        ("g () => () <string w = {1}> {}", "1:25: a number is no element of a tensor of strings"),
        ("g () => () <float w = {1 2}> {}", "1:26: expected `,` or `}`, found `2`"),
        ("g () => () <float w = > {}", "1:23: expected `{`, `[`, `fill` or `random`"),
        (
            "g () => () <float w = <9 elements>> {}",
            "1:23: a digest stands for elements that were not printed",
        ),
        ("g () => () <float[99999,99999] w = fill(1)> {}", "1:36: a fill is limited to 16777216 elements"),
        (
            "g () => () <float w = random(1, 2, 1)> {}",
            "1:23: `random` needs finite bounds, the lower one first",
        ),
        ("g () => () <float[-1] w = {1}> {}", "1:13: a tensor with elements needs a shape of numbers"),
        ("g () => () { y = Op <a = []> () }", "1:26: an empty list needs a list type: `name: ints = []`"),
        ("g () => () { y = Op <a: int = 1.0> () }", "1:31: expected int, found float"),
        ("g () => () { y = Op <a = [1, 2.0]> () }", "1:30: expected ints, found floats"),
        ("g () => () { y = Op <a: integer = 1> () }", "1:25: there is no attribute type `integer`"),
        ("g (seq(real[1]) x) => () {}", "1:8: there is no type `real`"),
        ("g () => () { y = Op <a = ?> () }", "1:26: expected a number, found `?`"),
    ] {
        assert_eq!(parse(text).expect_err(text).to_string(), error, "{text}");
    }
}

#[test]
fn nesting_is_bounded() {
    let types = |depth: usize| format!("g ({}float{} x) => () {{}}", "seq(".repeat(depth), ")".repeat(depth));
    assert!(parse(&types(31)).is_ok());
    let message = parse(&types(100_000)).unwrap_err().message;
    assert_eq!(message, "nested deeper than 32 levels");
    let graphs = |depth: usize| {
        let open = "g () => () { y = If () <b = ".repeat(depth);
        format!("{open}g () => () {{}}{}", "> }".repeat(depth))
    };
    assert!(parse(&graphs(31)).is_ok());
    assert_eq!(parse(&graphs(100_000)).unwrap_err().message, "nested deeper than 32 levels");
}

/// Parses, and prints whatever was read.
fn exercise(text: &str) {
    if let Ok(model) = parse(text) {
        print(&model, Detail::Digest);
        let full = print(&model, Detail::Full);
        assert_same(&parse(&full).unwrap_or_else(|error| panic!("{error}\n{full}")), &model);
    }
}

fn tokens() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "<",
        ">",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "=",
        "=>",
        ",",
        ":",
        ".",
        "@",
        "?",
        "\"",
        "\"\"",
        "-",
        "0",
        "1",
        "-1",
        "1e9",
        "1.5",
        "1e999",
        "nan",
        "inf",
        "x",
        "float",
        "float[2]",
        "int4",
        "string",
        "seq",
        "map",
        "random",
        "fill",
        "ints",
        "é",
        "\\",
        "#",
        "//",
        "\n",
        "9999999999999999999999999999999999999999999",
    ]);
    prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.join(" "))
}

proptest! {
    #[test]
    fn any_string_is_read_or_refused(text in any::<String>()) {
        exercise(&text);
    }

    #[test]
    fn any_tokens_are_read_or_refused(text in tokens()) {
        exercise(&format!("g () => () {{ y = Op <a = {text}> () }}"));
        exercise(&format!("g () => () < {text} > {{}}"));
        exercise(&format!("g () => () {{ {text} }}"));
    }

    #[test]
    fn a_damaged_text_is_read_or_refused(
        from in any::<prop::sample::Index>(), length in 0usize..20, other in tokens(), keep_other in any::<bool>(),
    ) {
        let characters: Vec<char> = EVERYTHING.chars().collect();
        let from = from.index(characters.len());
        let to = (from + length).min(characters.len());
        let patch = if keep_other { other } else { String::new() };
        let damaged = characters[..from].iter().copied().chain(patch.chars()).chain(characters[to..].iter().copied());
        exercise(&damaged.collect::<String>());
    }
}
