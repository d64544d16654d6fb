"""Checks compiled models against ONNX Runtime and onnx.checker.

    python tests/crosscheck.py QONNX [--only NAME] [--keep DIR]

QONNX is the built binary. The shipped digits model and every model of `models.py` are compiled static, weight-only
and with `--mode none`; each output must pass onnx.checker, load in ONNX Runtime, stay close to fp32 on feeds that
calibration did not see, and reach the integer kernels it was made for. Models that were trained with quantization keep
the scales they learned and what they computed. Then: the same bytes on every run and thread count, and one clear line
for bad input. Every check prints a line, the last line counts them, and the exit status is 1
if one failed.
"""

import argparse
import collections
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import models

DIGITS = Path(__file__).parent / "data" / "digits.onnx"
TRAINED = sorted((Path(__file__).parent / "data" / "qat").glob("*.onnx"))
CALIBRATION, EVALUATION = 32, 16  # feeds of each model
FLOAT_KERNELS = ("Conv", "FusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm")
LEVEL = ort.GraphOptimizationLevel


class Checks:
    """Prints and counts. `check` also turns an exception of the condition into a failure."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, what, condition, detail=""):
        try:
            ok = condition() if callable(condition) else condition
            if isinstance(ok, tuple):
                ok, detail = ok
        except Exception as error:
            ok, detail = False, f"{type(error).__name__}: {str(error).strip()[:300]}"
        self.passed += bool(ok)
        self.failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'}  {what}" + (f"  ({detail})" if detail else ""), flush=True)
        return bool(ok)


def seeded(*key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def session(path, level=LEVEL.ORT_ENABLE_ALL, optimized=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    # Without VNNI, ONNX Runtime's u8 x s8 kernels add pairs of products in 16 bits and saturate: 17 dB lost on digits.
    # With this key they do not. It changes nothing on other processors.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, feeds, level=LEVEL.ORT_ENABLE_ALL):
    opened = session(path, level)
    return [opened.run(None, feed) for feed in feeds]


def worst_sqnr(reference, results):
    """Signal to quantization noise ratio in dB over all feeds, of the worst output."""
    worst = math.inf
    for expected, actual in zip(zip(*reference), zip(*results)):
        if not all(np.isfinite(a).all() and a.shape == e.shape for a, e in zip(actual, expected)):
            return -math.inf
        signal = sum(float(np.square(e, dtype=np.float64).sum()) for e in expected)
        noise = sum(float(np.square(e.astype(np.float64) - a).sum()) for e, a in zip(expected, actual))
        worst = min(worst, 10 * math.log10(signal / noise) if noise else 120.0)
    return worst


def kernels(graph):
    """Operator counts of a graph and the bodies inside it."""
    counts = collections.Counter()
    for node in graph.node:
        counts[node.op_type] += 1
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                counts += kernels(body)
    return counts


def interface(model):
    """What a user of the model sees, without order of initializers that old models list as inputs."""
    weights = {w.name for w in model.graph.initializer}
    inputs = [i.SerializeToString() for i in model.graph.input if i.name not in weights]
    return inputs, [o.SerializeToString() for o in model.graph.output]


def write_feeds(feeds, layout, directory):
    """Stores calibration feeds in one of the layouts that the command reads."""
    for index, feed in enumerate(feeds):
        if layout == "npz":
            np.savez(directory / f"{index:03}.npz", **feed)
        elif layout == "npy":
            (array,) = feed.values()
            np.save(directory / f"{index:03}.npy", array)
        elif layout == "npy-dirs":
            (directory / f"{index:03}").mkdir()
            for name, array in feed.items():
                np.save(directory / f"{index:03}" / f"{name}.npy", array)
        elif layout == "pb":
            data = directory / f"test_data_set_{index}"
            data.mkdir()
            for position, (name, array) in enumerate(feed.items()):
                (data / f"input_{position}.pb").write_bytes(numpy_helper.from_array(array, name).SerializeToString())
        else:
            raise ValueError(layout)


class Suite:
    def __init__(self, binary, work):
        self.binary, self.work, self.checks = Path(binary).resolve(), work, Checks()
        self.check = self.checks.check

    def qonnx(self, *arguments):
        command = [str(self.binary), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    def compile(self, title, *arguments):
        """Runs `qonnx compile`; the check fails with what the command said."""
        done = self.qonnx("compile", *arguments)
        said = " | ".join(done.stderr.strip().splitlines()[-3:])
        return self.check(f"{title}: compiles", done.returncode == 0, "" if done.returncode == 0 else said[:300])

    def valid(self, title, source, output):
        model, compiled = onnx.load(source), onnx.load(output)
        self.check(f"{title}: onnx.checker", lambda: onnx.checker.check_model(str(output), full_check=True) is None)
        self.check(f"{title}: same inputs and outputs", interface(model) == interface(compiled))
        self.check(f"{title}: says who made it", any("qonnx" in p.key for p in compiled.metadata_props))

    def close(self, title, output, feeds, reference, bound):
        def condition():
            sqnr = worst_sqnr(reference, run(output, feeds))
            return sqnr >= bound, f"SQNR {sqnr:.1f} dB, bound {bound:g}"

        return self.check(f"{title}: close to fp32 in ONNX Runtime", condition)

    def spec(self, title, output, feeds):
        """Without ONNX Runtime's fusions the graph must compute the same, by the definition of Q and DQ."""

        def condition():
            sqnr = worst_sqnr(run(output, feeds, LEVEL.ORT_DISABLE_ALL), run(output, feeds))
            return sqnr >= 30, f"fused against unfused {sqnr:.1f} dB"

        self.check(f"{title}: fused kernels compute what the graph says", condition)

    def fused(self, title, output, expected, floats):
        path = output.with_suffix(".optimized.onnx")

        def count():
            session(output, LEVEL.ORT_ENABLE_EXTENDED, path)
            return kernels(onnx.load(path).graph)

        try:
            counts = count()
        except Exception as error:
            return self.check(f"{title}: fused kernels", False, str(error)[:300])
        for names, least in expected.items():
            found = sum(counts[name] for name in names.split("|"))
            self.check(f"{title}: {names} at least {least}", found >= least, f"found {found}")
        left = {name: counts[name] for name in FLOAT_KERNELS if counts[name]}
        self.check(f"{title}: float Conv, MatMul, Gemm at most {floats}", sum(left.values()) <= floats, f"{left}")

    def unchanged(self, title, source, directory):
        output = directory / "none.onnx"
        if self.compile(f"{title} none", source, output, "--mode", "none"):
            self.check(f"{title} none: byte for byte the input", output.read_bytes() == source.read_bytes())

    def same_bytes(self, title, source, calib, directory, first):
        """Another run, and one and two threads."""
        for threads in (1, 2):
            output = directory / f"again{threads}.onnx"
            done = self.qonnx("compile", source, output, "--calib", calib, "--threads", threads)
            same = done.returncode == 0 and sha(output) == sha(first)
            self.check(f"{title}: same bytes again with {threads} thread(s)", same)

    def model(self, case):
        """One model of `models.py`, in every mode."""
        directory = self.work / case.name
        calib = directory / "calib"
        calib.mkdir(parents=True)
        source = directory / "model.onnx"
        source.write_bytes(case.build(seeded(case.name)).SerializeToString())
        onnx.checker.check_model(str(source), full_check=True)
        write_feeds([case.feed(seeded(case.name, "calib", i), i) for i in range(CALIBRATION)], case.layout, calib)
        feeds = [case.feed(seeded(case.name, "eval", i), i) for i in range(EVALUATION)]
        reference = run(source, feeds, LEVEL.ORT_DISABLE_ALL)

        self.unchanged(case.name, source, directory)
        title, output = f"{case.name} weight-only", directory / "weight.onnx"
        if self.compile(title, source, output):
            self.valid(title, source, output)
            self.close(title, output, feeds, reference, case.weight_sqnr)
        title, output = f"{case.name} static", directory / "static.onnx"
        if self.compile(title, source, output, "--calib", calib):
            self.valid(title, source, output)
            self.close(title, output, feeds, reference, case.sqnr)
            self.spec(title, output, feeds)
            self.fused(title, output, case.fused, case.floats)
            self.same_bytes(title, source, calib, directory, output)

    def digits(self):
        """The shipped model: as above, and its accuracy."""
        directory = self.work / "digits"
        directory.mkdir()
        calib = DIGITS.with_suffix("") / "calib"
        held_out = np.load(DIGITS.with_suffix("") / "eval.npz")
        feeds = [{"x": (held_out["images"][:, None] / np.float32(255)).astype(np.float32)}]
        right = lambda results: float((results[0][0].argmax(1) == held_out["labels"]).mean())
        reference = run(DIGITS, feeds, LEVEL.ORT_DISABLE_ALL)
        before = right(reference)
        self.check("digits: trained", before >= 0.97, f"accuracy {before:.1%}")

        self.unchanged("digits", DIGITS, directory)
        for title, arguments, ratio, bound in [
            ("digits weight-only", [], 0.40, 30),
            ("digits static", ["--calib", calib, "--json", directory / "facts.json"], 0.40, 25),
        ]:
            output = directory / f"{title[7:]}.onnx"
            if not self.compile(title, DIGITS, output, *arguments):
                continue
            self.valid(title, DIGITS, output)
            self.close(title, output, feeds, reference, bound)
            size = output.stat().st_size / DIGITS.stat().st_size
            self.check(f"{title}: size at most {ratio:.0%}", size <= ratio, f"{size:.1%}")

            def accurate():
                after = right(run(output, feeds))
                return after >= before - 0.005, f"{before:.1%} before, {after:.1%} after"

            self.check(f"{title}: accuracy within half a point", accurate)
        if output.exists():
            expected = {"QLinearConv": 10, "QLinearAdd": 2, "QLinearGlobalAveragePool": 1, "QGemm": 1}
            self.spec(title, output, feeds)
            self.fused(title, output, expected, 0)
            self.same_bytes(title, DIGITS, calib, directory, output)
        self.options(directory, calib)

    def trained(self, source):
        """A model as a trainer with quantization exports it: the result computes what the source computes."""
        directory = self.work / source.stem
        calib = directory / "calib"
        calib.mkdir(parents=True)
        model, stored = onnx.load(source), np.load(source.with_suffix(".npz"))
        weights = {w.name for w in model.graph.initializer}
        (name,) = [i.name for i in model.graph.input if i.name not in weights]
        random = lambda key, i: {name: seeded(source.stem, key, i).standard_normal(stored["x"].shape, np.float32)}
        # Far larger than what was trained on: a range derived from these would be another.
        samples = [{name: 3 * random("calib", i)[name]} for i in range(8)]
        write_feeds(samples, "npz", calib)
        feeds, reference = [{name: stored["x"]}], [[stored["y"]]]
        if all(node.domain in ("", "ai.onnx") for node in model.graph.node):
            feeds += [random("eval", i) for i in range(EVALUATION)]
            reference = run(source, feeds, LEVEL.ORT_DISABLE_ALL)
        title, output = f"trained {source.stem}", directory / "static.onnx"
        if not self.compile(title, source, output, "--calib", calib):
            return
        self.valid(title, source, output)
        self.close(title, output, feeds, reference, 45)
        self.spec(title, output, feeds)
        largest = max(float(np.abs(y).max()) for y, in reference)

        def step():  # of the output, or a hundredth of its largest element where that is not rounded
            far = max(float(np.abs(a - b).max()) for (a,), (b,) in zip(run(output, feeds), reference))
            size = last_step(onnx.load(output)) or 0.01 * largest
            return far <= 1.01 * size, f"off by {far:.2g} at most, {size:.2g} allowed"

        self.check(f"{title}: within one step of the source everywhere", step)
        learned, kept = activation_scales(model), activation_scales(onnx.load(output))
        self.check(f"{title}: learned scales are kept", learned <= kept, f"{sorted(learned)} in {sorted(kept)}")

    def options(self, directory, calib):
        """The flags of the command, each for its effect."""

        def facts():
            reject = lambda constant: (_ for _ in ()).throw(ValueError(f"{constant} is not JSON"))
            return isinstance(json.loads((directory / "facts.json").read_text(), parse_constant=reject), dict)

        self.check("--json: valid JSON object", facts)
        for calibrator in ["minmax", "percentile", "percentile=99.9", "entropy", "mse", "octav", "auto"]:
            output = directory / f"{calibrator}.onnx"
            arguments = ["--calib", calib, "--calibrator", calibrator, "--samples", 16]
            if self.compile(f"--calibrator {calibrator}", DIGITS, output, *arguments):
                self.check(f"--calibrator {calibrator}: loads", lambda: session(output) is not None)
        output = directory / "default.onnx"
        if self.compile("no --calibrator", DIGITS, output, "--calib", calib, "--samples", 16):
            self.check("no --calibrator: means auto", lambda: same_graph(output, directory / "auto.onnx"))

        def floats(output):
            path = output.with_suffix(".optimized.onnx")
            session(output, LEVEL.ORT_ENABLE_EXTENDED, path)
            counts = kernels(onnx.load(path).graph)
            return {name: counts[name] for name in FLOAT_KERNELS if counts[name]}

        first = onnx.load(DIGITS).graph.node[0].name
        inner = [node.name for node in onnx.load(DIGITS).graph.node if node.op_type == "Conv"][4]
        for title, arguments, expected in [
            ("--exclude NAME", ["--exclude", first], {"Conv": 1}),
            # Between integer neighbours ONNX Runtime would quantize it by itself.
            ("--exclude inner NAME", ["--exclude", inner], {"Conv": 1}),
            ("--exclude GLOB", ["--exclude", "gemm*"], {"Gemm": 1}),
            ("--only-ops Gemm", ["--only-ops", "Gemm"], {"Conv": 10}),
        ]:
            output = directory / "flag.onnx"
            if self.compile(title, DIGITS, output, "--calib", calib, "--samples", 8, *arguments):
                self.check(f"{title}: leaves {expected} in float", lambda: merged(floats(output)) == expected)
        done = self.qonnx("compile", DIGITS, directory / "quiet.onnx", "-q")
        self.check("-q: says nothing", done.returncode == 0 and not done.stderr and not done.stdout, done.stderr[:100])

    def bad_input(self):
        """Exit 1, one line `error: …` (details may follow, indented), and the old output still there."""
        directory = self.work / "bad"
        directory.mkdir()
        calib = DIGITS.with_suffix("") / "calib"
        good = DIGITS.read_bytes()

        def file(name, data):
            (directory / name).write_bytes(data)
            return directory / name

        def samples(name, **arrays):
            (directory / name).mkdir()
            np.savez(directory / name / "0.npz", **arrays)
            return directory / name

        image = np.zeros((1, 1, 28, 28), np.float32)
        spoilt = image.copy()
        spoilt[0, 0, 3, 3] = np.nan
        (directory / "empty").mkdir()
        (directory / "torn").mkdir()
        file("torn/0.npz", (calib / "00.npz").read_bytes()[:700])
        loose = models.helper.make_node("Relu", ["nowhere"], ["y"])
        info = lambda name: models.helper.make_tensor_value_info(name, 1, [1])
        graph = models.helper.make_graph([loose], "g", [info("x")], [info("y")])
        broken = models.helper.make_model(graph, opset_imports=[models.helper.make_opsetid("", 13)])
        old = b"an older output"
        for title, source, arguments in [
            ("no such model", directory / "missing.onnx", []),
            ("a directory as model", directory, []),
            ("an empty file", file("zero.onnx", b""), []),
            ("text", file("text.onnx", b"Lorem ipsum dolor sit amet\n" * 40), []),
            ("a picture", file("png.onnx", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8), []),
            ("first half of a model", file("half.onnx", good[: len(good) // 2]), []),
            ("a model without its last byte", file("last.onnx", good[:-1]), []),
            ("a model's first 100 bytes", file("head.onnx", good[:100]), []),
            ("a value that nothing produces", file("loose.onnx", broken.SerializeToString()), []),
            ("no such directory", DIGITS, ["--calib", directory / "nowhere"]),
            ("an empty directory", DIGITS, ["--calib", directory / "empty"]),
            ("an unknown input", DIGITS, ["--calib", samples("other", other=image)]),
            ("the wrong shape", DIGITS, ["--calib", samples("shape", x=np.zeros((1, 3, 28, 28), np.float32))]),
            ("the wrong rank", DIGITS, ["--calib", samples("rank", x=np.zeros((28, 28), np.float32))]),
            ("NaN", DIGITS, ["--calib", samples("nan", x=spoilt)]),
            ("infinity", DIGITS, ["--calib", samples("inf", x=np.where(np.isnan(spoilt), np.float32(np.inf), spoilt))]),
            ("a torn archive", DIGITS, ["--calib", directory / "torn"]),
            ("an unknown target", DIGITS, ["--target", "no-such-target"]),
        ]:
            output = file("out.onnx", old)
            self.refused(title, self.qonnx("compile", source, output, *arguments))
            self.check(f"{title}: old output untouched", output.read_bytes() == old)
        for title, output in [
            ("output in a missing directory", directory / "nowhere" / "out.onnx"),
            ("output below a file", directory / "text.onnx" / "out.onnx"),
            ("output is a directory", directory / "empty"),
        ]:
            self.refused(title, self.qonnx("compile", DIGITS, output, "--mode", "none"))
        known = {"out.onnx", "zero.onnx", "text.onnx", "png.onnx", "half.onnx", "last.onnx", "head.onnx", "loose.onnx"}
        left = {path.name for path in directory.iterdir() if path.is_file()} - known
        self.check("no temporary files left behind", not left, str(sorted(left)) if left else "")
        for title, arguments in [("unknown flag", ["compile", "--no-such-flag"]), ("no arguments", ["compile"])]:
            done = self.qonnx(*arguments)
            self.check(f"{title}: exit 2", done.returncode == 2, f"exit {done.returncode}")

    def refused(self, title, done):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        flush = [line for line in lines if not line[0].isspace()]
        ok = done.returncode == 1 and len(flush) == 1 and flush[0].startswith("error: ")
        detail = lines[0][:110] if ok else f"exit {done.returncode}: {' | '.join(lines)[:200]}"
        self.check(f"{title}: exit 1 and one clear line", ok, detail)


def same_graph(a, b):
    """The same graph; the provenance may name other flags."""
    return onnx.load(a).graph == onnx.load(b).graph


def activation_scales(model):
    """The scales by which a model rounds activations: of its QuantizeLinear and Quant nodes that read no constant."""
    known = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    known |= {n.output[0]: numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"}
    rounding = [n for n in model.graph.node if n.op_type in ("QuantizeLinear", "Quant") and n.input[0] not in known]
    return {float(known[n.input[1]].reshape(-1)[0]) for n in rounding if n.input[1] in known}


def last_step(model):
    """The scale of the last QuantizeLinear before the outputs, if one lies there with nothing but sums behind it."""
    known = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    steps, wanted = [], [output.name for output in model.graph.output]
    while wanted:
        node = makers.get(wanted.pop())
        if node and node.op_type == "DequantizeLinear":
            steps.append(float(known[node.input[1]].max()))
        elif node and node.op_type in ("Add", "Identity"):
            wanted += node.input
    return max(steps, default=None)


def merged(counts):
    """Counts with fused float kernels under the plain name."""
    total = collections.Counter()
    for name, count in counts.items():
        total[name.removeprefix("Fused")] += count
    return dict(total)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qonnx", help="the built binary")
    parser.add_argument("--only", help="one model of models.py or tests/data/qat, or `digits` or `bad`")
    parser.add_argument("--keep", type=Path, help="work in this new directory and leave the files there")
    options = parser.parse_args()
    ort.set_default_logger_severity(3)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        suite = Suite(options.qonnx, work)
        wanted = lambda name: options.only in (None, name)
        jobs = [("digits", suite.digits), ("bad", suite.bad_input)]
        jobs += [(case.name, lambda case=case: suite.model(case)) for case in models.CASES]
        jobs += [(source.stem, lambda source=source: suite.trained(source)) for source in TRAINED]
        for name, job in jobs:
            if wanted(name):
                job()
    print(f"{suite.checks.passed} passed, {suite.checks.failed} failed")
    sys.exit(1 if suite.checks.failed or not suite.checks.passed else 0)


if __name__ == "__main__":
    main()
