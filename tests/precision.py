"""Checks every other precision against ONNX Runtime and onnx.checker: what `crosscheck.py` does for static int8.

    python tests/precision.py QONNX [--only NAME] [--keep DIR]

Each case is a small model on which a converter can stumble: operators that only know float32, branches that name their
weights alike, models that are quantized already, values beyond the range of float16. It must compile, pass
onnx.checker, load in ONNX Runtime and stay close to the original; and the report must name what was kept.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

import crosscheck
import models
from crosscheck import kernels, run, seeded, session, write_feeds


def text(source, opset=17):
    ir = 8 if opset < 19 else 10
    return onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]> {source}')


def weights(model, **arrays):
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


def noise(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def chain(rng):
    model = text("g (float[N,16] x) => (float[N,16] y) { a = MatMul(x, w) b = Add(a, c) d = Relu(b) y = MatMul(d, w) }")
    return weights(model, w=noise(rng, 16, 16) / 4, c=noise(rng, 16))


def layers(rng):
    model = text("g (float[N,16] x) => (float[N,16] y) { a = MatMul(x, w) b = Add(a, c) d = Relu(b) y = MatMul(d, v) }")
    return weights(model, w=noise(rng, 16, 96) / 4, c=noise(rng, 96), v=noise(rng, 96, 16) / 10)


def branches(rng):
    """Both branches name their weights alike, and both hold an operator that is kept."""
    branch = lambda name, low: f"""{name}_branch = {name} () => (float[N,8] {name}_out)
        <float[8,8] w = {{{", ".join(f"{v:.3f}" for v in rng.uniform(low, 0.5, 64))}}}>
        {{ h = MatMul(z, w) e = Exp(h) {name}_out = MatMul(e, w) }}"""
    return text(f"""g (float[N,8] x, bool c) => (float[N,8] y) {{ z = Tanh(x)
        y = If (c) <{branch("then", -0.5)}, {branch("else", 0)}> }}""")


def quantized(rng):
    model = text("""g (float[N,16] x) => (float[N,64] y) {
        xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z) wd = DequantizeLinear<axis = 1>(w, ws, wz)
        a = MatMul(xd, wd) aq = QuantizeLinear(a, t, z) ad = DequantizeLinear(aq, t, z) t1 = Tanh(ad) y = MatMul(t1, v) }""", 13)
    return weights(
        model, s=np.float32(0.03), t=np.float32(0.1), z=np.uint8(128), w=rng.integers(-99, 99, (16, 16), np.int8),
        ws=np.full(16, 0.004, np.float32), wz=np.zeros(16, np.int8), v=noise(rng, 16, 64) / 4)  # fmt: skip


def float_inputs(rng):
    """Resize, Range, TopK and NonMaxSuppression have inputs that are float32 whatever the model is."""
    model = text("""g (float[1,3,8,8] x, float limit) => (float[1,3,16,16] y, float[1,3,8,2] best, float[k] r, int64[m,3] n) {
        c = Conv<pads = [1, 1, 1, 1]>(x, w) y = Resize<mode = "linear">(c, , scales) best, at = TopK(c, two)
        zero = Constant<value_float = 0.0>() one = Constant<value_float = 1.0>() ramp = Range(zero, limit, one)
        r = Sqrt(ramp) boxes4 = Slice(c, start, end, axis) boxes = Reshape(boxes4, shape3) score = Sigmoid(boxes)
        flat = Transpose<perm = [0, 2, 1]>(score) n = NonMaxSuppression(boxes, flat, max, iou) }""")
    return weights(
        model, w=noise(rng, 3, 3, 3, 3) / 5, scales=np.float32([1, 1, 2, 2]), two=np.int64([2]),
        start=np.int64([0]), end=np.int64([4]), axis=np.int64([3]), shape3=np.int64([1, 24, 4]),
        max=np.int64([3]), iou=np.float32([0.5]))  # fmt: skip


def extremes(rng):
    """Constants that float16 cannot hold."""
    model = text("""g (float[N,8] x, float[N,8] m) => (float[N,8] y, float[N,8] z) {
        a = Mul(m, huge) b = Add(x, a) y = Softmax<axis = -1>(b)
        q = Mul(x, x) r = Add(q, eps) s = Sqrt(r) z = Div(x, s) }""")
    return weights(model, huge=np.float32(-3.4028235e38), eps=np.float32(1e-12))


def overflowing(rng):
    model = text("""g (float[N,64] x) => (float[N,1] total, float[N,64] norm, float[N,64] soft) {
        p = Pow(x, two) total0 = ReduceSum<keepdims = 1>(p, axes) total = Log(total0)
        norm = LayerNormalization(x, gain, shift) h = MatMul(x, w) scores = Mul(h, h) scaled = Div(scores, large)
        soft = Softmax(scaled) }""")
    return weights(
        model, two=np.float32(2), axes=np.int64([1]), gain=np.ones(64, np.float32), shift=np.zeros(64, np.float32),
        w=noise(rng, 64, 64), large=np.float32(1e5))  # fmt: skip


def functions(rng):
    local = """<domain: "local", opset_import: ["" : 17]> dense <slope> (a, b) => (c)
        { h = MatMul(a, b) c = LeakyRelu<alpha : float = @slope>(h) }"""
    model = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,16] x) => (float[N,16] y) {{ h = local.dense<slope = 0.1>(x, w) y = local.dense<slope = 0.3>(h, w) }} {local}""")
    return weights(model, w=noise(rng, 16, 16) / 4)


def scan(rng):
    """State that a Scan carries, and a Loop inside."""
    return weights(text("""g (float[4] s0, float[5,4] xs) => (float[4] s, float[5,4] ys) {
        s, ys = Scan<num_scan_inputs = 1, body = b (float[4] si, float[4] xi) => (float[4] so, float[4] yo)
        { a = Add(si, xi) m = Mul(a, w) so = Tanh(m) yo = Exp(so) }>(s0, xs) }"""), w=noise(rng, 4))


def language(rng):
    """An embedding and two products with a bias: what weight-only and dynamic quantization are for."""
    model = text("""g (int64[N,T] ids) => (float[N,T,96] y) {
        e = Gather(table, ids) h = MatMul(e, w1) a = Add(h, b1) g1 = Gelu(a) m = MatMul(g1, w2) y = LayerNormalization(m, gain, b2) }""", 20)
    return weights(
        model, table=noise(rng, 500, 128), w1=noise(rng, 128, 256) / 11, b1=noise(rng, 256), w2=noise(rng, 256, 96) / 16,
        gain=np.ones(96, np.float32), b2=noise(rng, 96))  # fmt: skip


def recurrent(rng, layout=0, direction="bidirectional"):
    """An LSTM with everything: both directions, peepholes, initial states, either layout."""
    ways = 2 if direction == "bidirectional" else 1
    shape = lambda *d: "float[" + ",".join(map(str, d)) + "]"
    x, state = (shape(7, 3, 24), shape(ways, 3, 32)) if layout == 0 else (shape(3, 7, 24), shape(3, ways, 32))
    y = shape(7, ways, 3, 32) if layout == 0 else shape(3, 7, ways, 32)
    model = text(f"""g ({x} x, {state} h, {state} c) => ({y} y, {state} yh, {state} yc) {{
        y, yh, yc = LSTM<hidden_size = 32, direction = "{direction}", layout = {layout}>(x, w, r, b, , h, c, p) }}""")
    return weights(
        model, w=noise(rng, ways, 128, 24) / 5, r=noise(rng, ways, 128, 32) / 6, b=noise(rng, ways, 256) / 4,
        p=noise(rng, ways, 96) / 4)  # fmt: skip


PLAIN = lambda rng, shape=(3, 16), scale=1: {"x": scale * noise(rng, *shape)}
CASES = {
    # name: model, feed, arguments, what must be kept (as part of its name), least SQNR
    "chain": (chain, PLAIN, [], [], 55),
    "branches": (branches, lambda r: PLAIN(r, (3, 8)) | {"c": np.array(r.random() < 0.5)}, ["--keep-float", "Exp"], ["Exp"] * 2, 50),
    "quantized": (quantized, PLAIN, [], [], 45),
    "float_inputs": (float_inputs, lambda r: PLAIN(r, (1, 3, 8, 8)) | {"limit": np.array(5, np.float32)}, [], ["Range", "NonMax"], 50),
    "extremes": (extremes, lambda r: PLAIN(r, (3, 8)) | {"m": np.float32(r.integers(0, 2, (3, 8)))}, [], ["Add", "Sqrt", "Div"], 50),
    "extremes_calibrated": (extremes, lambda r: PLAIN(r, (3, 8)) | {"m": np.float32(r.integers(0, 2, (3, 8)))}, ["--calib"],
                            ["Mul", "Add", "Softmax", "Sqrt", "Div"], 50),
    "overflowing": (overflowing, lambda r: PLAIN(r, (3, 64), 400), ["--calib"],
                    ["Pow", "ReduceSum", "LayerNorm", "Mul", "Mul"], 45),
    "functions": (functions, PLAIN, [], [], 50),
    "scan": (scan, lambda r: {"s0": noise(r, 4), "xs": noise(r, 5, 4)}, [], [], 45),
}  # fmt: skip


def time_first(rng, feeds):
    """What a recurrent model with layout 1 returns, by one with layout 0: ONNX Runtime does not run the other."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        Path(file.name).write_bytes(recurrent(rng).SerializeToString())
        turned = [{name: np.ascontiguousarray(array.swapaxes(0, 1)) for name, array in feed.items()} for feed in feeds]
        results = run(file.name, turned, crosscheck.LEVEL.ORT_DISABLE_ALL)
    return [[y.transpose(2, 0, 1, 3), h.swapaxes(0, 1), c.swapaxes(0, 1)] for y, h, c in results]


# What ONNX Runtime does not run as it is: another way to the same outputs.
ELSEWHERE = {"lstm_batch_first": time_first}

IDS = lambda rng: {"ids": rng.integers(0, 500, (2, 9))}


def sequence(layout, ways):
    def feed(rng):
        x, h = ((7, 3, 24), (ways, 3, 32)) if layout == 0 else ((3, 7, 24), (3, ways, 32))
        return {"x": noise(rng, *x), "h": np.tanh(noise(rng, *h)), "c": noise(rng, *h)}

    return feed


INTEGER = {
    # name: model, feed, arguments, operators of the optimized graph (least number each), most bytes to fp32's, least SQNR
    # Biases, peepholes and a scale for each gate and unit are a tenth of these small LSTMs.
    "weights": (language, IDS, ["--mode", "weight-only"], {"MatMulNBits": 2}, 0.27, 35),
    "blocks": (language, IDS, ["--mode", "weight-only", "--bits", "4", "--block", "32"], {"MatMulNBits": 2}, 0.17, 17),
    "rtn": (language, IDS, ["--mode", "weight-only", "--bits", "4", "--algorithm", "rtn"], {"MatMulNBits": 2}, 0.16, 16),
    "gptq": (language, IDS, ["--mode", "weight-only", "--bits", "4", "--algorithm", "gptq", "--calib"], {"MatMulNBits": 2}, 0.16, 17),
    "dynamic": (language, IDS, ["--mode", "dynamic"], {"DynamicQuantizeMatMul": 2}, 0.27, 28),
    "dynamic_calibrated": (language, IDS, ["--mode", "dynamic", "--calib"], {"DynamicQuantizeMatMul": 2}, 0.27, 28),
    "lstm_both": (recurrent, sequence(0, 2), ["--mode", "dynamic"], {"DynamicQuantizeLSTM": 1}, 0.35, 25),
    "lstm_batch_first": (lambda r: recurrent(r, 1), sequence(1, 2), ["--mode", "dynamic"], {"DynamicQuantizeLSTM": 1}, 0.36, 25),
    "lstm_reverse": (lambda r: recurrent(r, 0, "reverse"), sequence(0, 1), ["--mode", "dynamic"], {"DynamicQuantizeLSTM": 1}, 0.36, 25),
    "lstm_weights": (recurrent, sequence(0, 2), ["--mode", "weight-only"], {"LSTM": 1}, 0.35, 35),
    "u16": (layers, PLAIN, ["--mode", "static", "--activation", "u16", "--calib"], {}, 0.55, 35),
    "s16": (layers, PLAIN, ["--mode", "static", "--activation", "s16", "--weight", "u8", "--calib"], {}, 0.55, 35),
    "two_widths": (layers, PLAIN, ["--mode", "static", "--target", "integer-only", "--min-sqnr", "42", "--calib"], {"QGemm": 1}, 0.55, 25),
    "unsigned_weights": (layers, PLAIN, ["--mode", "static", "--weight", "u8", "--calib"], {}, 0.55, 25),
    "static_and_half": (quantized, PLAIN, ["--mode", "static", "--float", "fp16", "--calib"], {}, 1.2, 25),
}  # fmt: skip

TARGETS = [["openvino"], ["tensorrt"], ["qnn-htp"], ["integer-only"], ["fbgemm"], ["qnnpack"], ["ort-arm", "--activation", "s8"]]

REFUSED = [
    # arguments, and what the message must name
    (["--bits", "4", "--mode", "static"], "weight-only"),
    (["--mode", "weight-only", "--block", "32"], "--bits 4"),
    (["--mode", "weight-only", "--bits", "4", "--algorithm", "gptq"], "--calib"),
    (["--mode", "static", "--weight", "s4", "--calib"], "int8, uint8"),
    (["--mode", "static", "--target", "tensorrt", "--activation", "u8", "--calib"], "int8"),
    (["--mode", "fp16", "--activation", "u16"], "static"),
    (["--mode", "weight-only", "--bits", "3"], "4, 8"),
    (["--mode", "weight-only", "--bits", "4", "--block", "48"], "32, 64, 128"),
]


class Precision(crosscheck.Suite):
    def integers(self, name):
        """A model in another integer precision; then its own output once more, in which nothing is left to do."""
        build, feed, arguments, expected, share, bound = INTEGER[name]
        directory, source, calib, feeds, reference = self.prepared(name, build, feed, 16)
        arguments = sum(([a, calib] if a == "--calib" else [a] for a in arguments), [])
        output, facts = directory / "out.onnx", directory / "facts.json"
        if not self.compile(name, source, output, "--json", facts, *arguments):
            return
        self.valid(name, source, output)
        self.close(name, output, feeds, reference, bound)
        size = output.stat().st_size / source.stat().st_size
        self.check(f"{name}: size at most {share:.0%}", size <= share, f"{size:.1%}")
        path = directory / "optimized.onnx"
        session(output, crosscheck.LEVEL.ORT_ENABLE_EXTENDED, path)
        counts = kernels(onnx.load(path).graph)
        self.check(f"{name}: fuses to {expected}", all(counts[k] >= n for k, n in expected.items()), f"{dict(counts)}")
        self.check(f"{name}: never ConvInteger", counts["ConvInteger"] == 0)
        told = json.loads(facts.read_text())["outputs"]
        if calib in arguments:
            same = [feed(seeded(name, "calib", i)) for i in range(16)]
            measured = crosscheck.worst_sqnr(run(source, same, crosscheck.LEVEL.ORT_DISABLE_ALL), run(output, same))
            near = min(o["sqnr_db"] or 120 for o in told)
            self.check(f"{name}: the report's SQNR is near ONNX Runtime's", abs(near - measured) < 6, f"{near:.1f} {measured:.1f}")
        again = directory / "again.onnx"
        if self.compile(f"{name} again", output, again, *arguments):
            self.check(f"{name} again: nothing changes", again.read_bytes() == output.read_bytes())

    def refusals(self):
        directory = self.work / "refused"
        directory.mkdir()
        source, output = directory / "model.onnx", directory / "out.onnx"
        source.write_bytes(chain(seeded("refused")).SerializeToString())
        write_feeds([PLAIN(seeded("refused", i)) for i in range(2)], "npz", directory)
        for arguments, named in REFUSED:
            arguments = sum(([a, directory] if a == "--calib" else [a] for a in arguments), [])
            done = self.qonnx("compile", source, output, *arguments)
            ok = done.returncode in (1, 2) and named in done.stderr and not output.exists()
            self.check(f"{' '.join(map(str, arguments))}: refused, naming {named}", ok, done.stderr.strip()[:160])

    def already(self):
        """A model whose products are dynamic already, weights behind Cast and Mul: nothing is left."""
        directory = self.work / "already"
        directory.mkdir()
        rng = seeded("already")
        cast = weights(text("""g (float[N,32] x) => (float[N,32] y) {
            f = Cast<to = 1>(w) s = Mul(f, scale) y = MatMul(x, s) }"""), w=rng.integers(-99, 99, (32, 32), np.int8), scale=np.float32(0.01))
        dynamic = weights(text("""g (float[N,32] x) => (float[N,32] y) {
            q, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(q, w, z) f = Cast<to = 1>(i) y = Mul(f, s) }"""), w=rng.integers(-99, 99, (32, 32), np.int8))
        for name, model in [("cast", cast), ("dynamic", dynamic)]:
            source, output = directory / f"{name}.onnx", directory / f"{name}-out.onnx"
            source.write_bytes(model.SerializeToString())
            done = self.qonnx("compile", source, output, "--mode", "weight-only")
            same = done.returncode == 0 and output.read_bytes() == source.read_bytes()
            self.check(f"already {name}: as it was, and said so", same and "nothing is left" in done.stderr, done.stderr[:200])

    def prepared(self, name, build, feed, samples=8):
        """The folder, the model, calibration feeds, evaluation feeds and what the model makes of them."""
        directory = self.work / name
        calib = directory / "calib"
        calib.mkdir(parents=True)
        source = directory / "model.onnx"
        model = build(seeded(name))
        onnx.checker.check_model(model, full_check=True)
        source.write_bytes(model.SerializeToString())
        write_feeds([feed(seeded(name, "calib", i)) for i in range(samples)], "npz", calib)
        feeds = [feed(seeded(name, "eval", i)) for i in range(8)]
        if name in ELSEWHERE:
            return directory, source, calib, feeds, ELSEWHERE[name](seeded(name), feeds)
        return directory, source, calib, feeds, run(source, feeds, crosscheck.LEVEL.ORT_DISABLE_ALL)

    def half(self, name):
        build, feed, arguments, kept, bound = CASES[name]
        directory, source, calib, feeds, reference = self.prepared(name, build, feed)
        arguments = sum(([a, calib] if a == "--calib" else [a] for a in arguments), [])
        for mode in ["fp16", "bf16"]:
            title, output, facts = f"{name} {mode}", directory / f"{mode}.onnx", directory / f"{mode}.json"
            if not self.compile(title, source, output, "--mode", mode, "--json", facts, *arguments):
                continue
            self.valid(title, source, output)
            found = [node for node, _ in json.loads(facts.read_text())["quantized"]["float"]]
            if mode == "fp16":
                missing = [k for k in set(kept) if sum(k in f for f in found) < kept.count(k)]
                self.check(f"{title}: keeps and names {kept}", not missing, f"{found}")
                self.close(title, output, feeds, reference, bound)
                if not kept:
                    self.check(f"{title}: computes in half precision", self.halves(onnx.load(output)))
                output = directory / f"{mode}-io.onnx"
                if self.compile(f"{title} --keep-io=false", source, output, "--mode", mode, "--keep-io=false", *arguments):
                    self.check(f"{title} --keep-io=false: onnx.checker", lambda: onnx.checker.check_model(str(output), full_check=True) is None)
                    self.check(f"{title} --keep-io=false: float16 inputs", lambda: self.runs(output, feeds))

    def halves(self, model):
        """Are there float16 weights, here or in a body?"""
        graphs = [model.graph]
        for graph in graphs:
            graphs += [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
        return any(w.data_type == onnx.TensorProto.FLOAT16 for graph in graphs for w in graph.initializer)

    def runs(self, path, feeds):
        opened = session(path)
        types = {i.name: np.float16 if i.type == "tensor(float16)" else None for i in opened.get_inputs()}
        if not any(types.values()):
            return False, "no input is float16"
        for feed in feeds:
            opened.run(None, {k: v.astype(types[k]) if types[k] else v for k, v in feed.items()})
        return True

    def shared_models(self):
        """The models of the int8 checks, in float16 and bfloat16."""
        for case in models.CASES:
            directory = self.work / "shared" / case.name
            directory.mkdir(parents=True)
            source = directory / "model.onnx"
            source.write_bytes(case.build(seeded(case.name)).SerializeToString())
            feeds = [case.feed(seeded(case.name, "eval", i), i) for i in range(2)]
            reference = run(source, feeds, crosscheck.LEVEL.ORT_DISABLE_ALL)
            for mode, bound in [("fp16", 40), ("bf16", None)]:
                title, output = f"{case.name} {mode}", directory / f"{mode}.onnx"
                if self.compile(title, source, output, "--mode", mode):
                    self.valid(title, source, output)
                    if bound:
                        self.close(title, output, feeds, reference, bound)


    def targets(self):
        """The models of the int8 checks for every other target: they load, and compute nearly the same."""
        for case in models.CASES:
            directory = self.work / "targets" / case.name
            (directory / "calib").mkdir(parents=True)
            source = directory / "model.onnx"
            source.write_bytes(case.build(seeded(case.name)).SerializeToString())
            write_feeds([case.feed(seeded(case.name, "calib", i), i) for i in range(8)], "npz", directory / "calib")
            feeds = [case.feed(seeded(case.name, "eval", i), i) for i in range(4)]
            reference = run(source, feeds, crosscheck.LEVEL.ORT_DISABLE_ALL)
            for words in TARGETS:
                title, output = f"{case.name} {' '.join(words)}", directory / f"{'-'.join(words)}.onnx"
                how = ["--calib", directory / "calib", "--effort", "fast", "--target", *words]
                if self.compile(title, source, output, *how):
                    self.valid(title, source, output)
                    self.close(title, output, feeds, reference, 12)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qonnx", help="the built binary")
    parser.add_argument("--only", help="one case, or `shared`")
    parser.add_argument("--keep", type=Path, help="work in this new directory and leave the files there")
    options = parser.parse_args()
    ort.set_default_logger_severity(3)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        suite = Precision(options.qonnx, work)
        jobs = {name: lambda name=name: suite.half(name) for name in CASES}
        jobs |= {name: lambda name=name: suite.integers(name) for name in INTEGER}
        jobs |= {"shared": suite.shared_models, "targets": suite.targets, "refused": suite.refusals, "already": suite.already}
        for name, job in jobs.items():
            if options.only in (None, name):
                job()
    print(f"{suite.checks.passed} passed, {suite.checks.failed} failed")
    sys.exit(1 if suite.checks.failed or not suite.checks.passed else 0)


if __name__ == "__main__":
    main()
