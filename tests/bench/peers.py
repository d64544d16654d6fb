"""qonnx beside ONNX Runtime's quantizer: time and memory of whole processes, by turns, on the same models and samples.

    python tests/bench/peers.py target/release/qonnx                       # all rows, about half an hour
    python tests/bench/peers.py target/release/qonnx --rows calibrate,size --rounds 3
    python tests/bench/peers.py target/release/qonnx --model m.onnx --data samples/   # a model of yours as well
    python tests/bench/peers.py target/release/qonnx --smoke               # does everything run?

Each round runs both, one after the other, and a row shows the medians with least and most, and the median of the rounds'
ratios (peer / qonnx: above 1, qonnx is faster or smaller). Models have random weights and the size and form of well-known
nets (`nets.py`). A process of the peer's is this script with `--peer`, so its time is from start to exit as ours, imports
included. Both may use as many threads as `--threads` says. Nothing here fails because of a time.

| row | what is timed |
|---|---|
| calibrate | `compile --effort fast --calibrator minmax` beside `quantize_static` with MinMax |
| default | `compile --effort fast`, which keeps distributions, beside `quantize_static` with Percentile |
| balanced | `compile` beside the same: what tuning costs |
| observe | one thread, milliseconds a sample: `calibrate` beside an optimized session that observes nothing |
| integer | one thread, milliseconds a sample: the interpreter on integers beside a session, on a compiled model |
| samples | peak memory with a quarter of the samples and with all |
| threads | `compile --effort fast` and `compile` with one thread and more |
| files | `compile` without samples of larger and larger models whose weights lie beside them, beside `cp` |
| weights | `compile` without samples, on an encoder of the size of BERT-base, beside `cp` and `quantize_dynamic` |
| small | `--version`, and a model of ten nodes end to end |
| size | models of more and more nodes, without and with samples; the peer up to where it takes minutes |
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nets

ROWS = ("small", "calibrate", "default", "balanced", "observe", "integer", "samples", "threads", "weights", "files", "size")
# Samples that are run before those whose time counts, so that loading drops out.
FIRST = 2


def peer(kind, model, output, data):
    """What the peer's process does."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_dynamic, quantize_static

    if kind == "dynamic":
        quantize_dynamic(model, output, per_channel=True)
        return

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter(nets.feeds(Path(data)))

        def get_next(self):
            return next(self.feeds, None)

    quantize_static(model, output, Reader(), per_channel=True, calibrate_method=getattr(CalibrationMethod, kind))


# Starts a process from a small one: what the starting process holds would count as the peak of the other.
LAUNCH = """
import os, sys, time
start = time.perf_counter()
silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent), 0)
print(time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


class Run:
    """A process: its seconds and its peak memory in MB."""

    def __init__(self, command):
        command = [str(part) for part in command]
        done = subprocess.run([sys.executable, "-S", "-c", LAUNCH, *command], capture_output=True, text=True)
        seconds, kilobytes, status = done.stdout.split()
        self.seconds, self.mb = float(seconds), int(kilobytes) / 1024
        if int(status):
            text = done.stderr.strip().splitlines()
            raise RuntimeError(f"{command[0]} failed: {text[-1] if text else status}")


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


class Bench:
    def __init__(self, arguments, work):
        self.a, self.work = arguments, work
        self.limit = ["--threads", str(arguments.threads)]
        small, samples = arguments.smoke, arguments.samples
        self.models = {}
        builders = {"mobilenet": nets.mobilenet, "resnet": nets.resnet, "encoder": nets.encoder}
        if small:
            builders = {"encoder": lambda path: nets.encoder(path, 1, 32, 2, 16, 100)}
        for name, build in builders.items():
            self.add(name, build, samples)
        for model, data in zip(arguments.model, arguments.data):
            self.models[model.stem] = (model, data)

    def add(self, name, build, samples):
        path, data = self.work / f"{name}.onnx", self.work / name
        nets.samples(build(path), data, samples)
        self.models[name] = (path, data)
        return path, data

    def qonnx(self, *words):
        return Run([self.a.qonnx, *words])

    def compile(self, model, *words):
        return self.qonnx("compile", model, self.work / "own.onnx", "-q", *self.limit, *words)

    def peer(self, kind, model, data="-"):
        # As many threads as ours: the peer's session takes what the process may use.
        command = ["taskset", "-c", ",".join(map(str, range(self.a.threads)))] if shutil.which("taskset") else []
        command += [sys.executable, __file__, "-", "--peer", kind, model, self.work / "peer.onnx", data]
        return Run(command)

    def rounds(self, label, *pairs, unit="s", digits=2):
        """Runs by turns; the first is ours. Each gives a number, or a `Run`."""
        found = [[pair() for pair in pairs] for _ in range(self.a.rounds)]
        seconds = lambda run: run.seconds if isinstance(run, Run) else run
        columns = [[seconds(row[i]) for row in found] for i in range(len(pairs))]
        ratios = [[row / own for row, own in zip(column, columns[0])] for column in columns[1:]]
        cells = [f"{spread(column, digits)} {unit}" for column in columns]
        memory = [statistics.median(row[i].mb for row in found) for i in range(len(pairs)) if isinstance(found[0][i], Run)]
        cells.append(", ".join(f"{statistics.median(r):.2f}" for r in ratios) or "-")
        cells.append(" / ".join(f"{mb:.0f}" for mb in memory) or "-")
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)

    def table(self, title, *columns):
        columns = [*columns, "ratio", "peak MB"]
        print(f"\n**{title}**\n\n| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns), flush=True)

    def static(self, title, kind, *words):
        self.table(title, "qonnx", "quantize_static")
        for name, (model, data) in self.models.items():
            pairs = [lambda: self.compile(model, "--calib", data, *words), lambda: self.peer(kind, model, data)]
            try:
                self.rounds(name, *pairs)
            except RuntimeError as error:
                print(f"| {name} | {error} |", flush=True)
                self.rounds(name, pairs[0])

    def calibrate(self):
        self.static("min-max", "MinMax", "--effort", "fast", "--calibrator", "minmax")

    def default(self):
        self.static("distributions", "Percentile", "--effort", "fast")

    def balanced(self):
        self.static("default effort", "Percentile")

    def each(self, run, count):
        """Milliseconds a sample, of a process that can be given any number of samples."""
        count = max(count, FIRST + 1)
        return 1e3 * (run(count).seconds - run(FIRST).seconds) / (count - FIRST)

    def session(self, model, data, optimized=True):
        """Milliseconds a sample in a session of one thread."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        if not optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        feeds = nets.feeds(data)
        session.run(None, feeds[0])
        start = time.perf_counter()
        for feed in feeds:
            session.run(None, feed)
        return 1e3 * (time.perf_counter() - start) / len(feeds)

    def observe(self):
        self.table("interpreting while observing, one thread, ms a sample", "qonnx", "optimized session", "as its calibrator runs")
        table = self.work / "table.json"
        for name, (model, data) in self.models.items():
            command = ["calibrate", model, "-o", table, "--calib", data, "--threads", 1, "-q"]
            own = lambda: self.each(lambda n: self.qonnx(*command, "--samples", n), self.a.samples)
            runs = [lambda: self.session(model, data), lambda: self.session(model, data, optimized=False)]
            self.rounds(name, own, *runs, unit="ms", digits=1)

    def integer(self):
        self.table("a compiled model on integers, one thread, ms a sample", "qonnx", "session")
        for name, (model, data) in self.models.items():
            self.compile(model, "--calib", data, "--effort", "fast")
            own = shutil.copy(self.work / "own.onnx", self.work / "integer.onnx")
            command = ["compare", own, own, "--data", data, "--numerics", "ort", "--threads", 1]
            # Both models of the comparison are run.
            twice = lambda: self.each(lambda n: self.qonnx(*command, "--samples", n), self.a.samples) / 2
            self.rounds(name, twice, lambda: self.session(own, data), unit="ms", digits=1)

    def samples(self):
        few = max(self.a.samples // 4, 2)
        print(f"\n**memory with {few} and {self.a.samples} samples, MB**\n\n| | qonnx | quantize_static, Percentile |\n|---|---|---|")
        for name, (model, data) in self.models.items():
            part = self.work / f"{name}-few"
            part.mkdir()
            for sample in sorted(data.iterdir())[:few]:
                (part / sample.name).symlink_to(sample)
            cells = []
            for run in (lambda d: self.compile(model, "--calib", d, "--effort", "fast"), lambda d: self.peer("Percentile", model, d)):
                try:
                    cells.append(" -> ".join(f"{run(d).mb:.0f}" for d in (part, data)))
                except RuntimeError as error:
                    cells.append(str(error))
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)

    def threads(self):
        counts = sorted({1, self.a.threads})
        self.table("growth with threads; ratios are to the first column", *[f"{effort}, {n} threads" for effort in ("fast", "balanced") for n in counts])
        for name, (model, data) in self.models.items():
            run = lambda effort, n: self.qonnx(
                "compile", model, self.work / "own.onnx", "-q", "--calib", data, "--effort", effort, "--threads", n
            )
            self.rounds(name, *[lambda e=e, n=n: run(e, n) for e in ("fast", "balanced") for n in counts])

    def files(self):
        self.table("growth with the file, weight-only; MB are those of qonnx beyond the file's", "qonnx", "cp")
        for matrices in [1] if self.a.smoke else [1, 4, 16, 36]:
            model, copy = self.work / "stack.onnx", self.work / "copy"
            beside = nets.stack(model, matrices)
            copy.mkdir(exist_ok=True)
            size = model.stat().st_size + beside.stat().st_size

            def own():
                run = self.qonnx("compile", model, self.work / "own.onnx", "--mode", "weight-only", "-q")
                run.mb = max(run.mb - size / 2**20, 0)
                return run

            self.rounds(f"{size / 1e6:.0f} MB", own, lambda: Run(["cp", model, beside, copy]))

    def weights(self):
        self.table("weight-only", "qonnx", "cp", "quantize_dynamic")
        shape = (1, 32, 2, 16, 100) if self.a.smoke else (12, 768, 12, 128, 30522)
        model = self.work / "bert.onnx"
        nets.encoder(model, *shape)
        own = lambda: self.qonnx("compile", model, self.work / "own.onnx", "--mode", "weight-only", "-q")
        copy = lambda: Run(["cp", model, self.work / "copy.onnx"])
        self.rounds(f"{model.stat().st_size / 1e6:.0f} MB", own, copy, lambda: self.peer("dynamic", model))

    def small(self):
        self.table("start and a small model", "qonnx", "quantize_static")
        self.rounds("--version", lambda: 1e3 * self.qonnx("--version").seconds, unit="ms", digits=1)
        model, data = self.add("ten", lambda path: nets.chain(path, 10), 4)
        self.models.pop("ten")
        own, other = (lambda: self.compile(model, "--calib", data)), (lambda: self.peer("MinMax", model, data))
        self.rounds("10 nodes, 4 samples", own, other, digits=3)

    def size(self):
        self.table("growth with nodes", "weight-only", "with 2 samples", "quantize_static")
        for nodes in [100] if self.a.smoke else [400, 1_000, 1_600, 10_000, 100_000]:
            model, data = self.add(f"chain{nodes}", lambda path: nets.chain(path, nodes), 2)
            self.models.pop(f"chain{nodes}")
            runs = [lambda: self.compile(model)]
            if nodes <= 10_000:
                runs.append(lambda: self.compile(model, "--calib", data, "--effort", "fast"))
            if nodes <= 1_600:
                runs.append(lambda: self.peer("MinMax", model, data))
            self.rounds(f"{nodes} nodes", *runs)


def machine():
    names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0] if names else 'unknown'}, load {os.getloadavg()[0]:.1f}"


def main():
    if sys.argv[2:3] == ["--peer"]:
        return peer(*sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qonnx")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, action="append", default=[])
    parser.add_argument("--data", type=Path, action="append", default=[], help="samples of --model: a directory for each")
    parser.add_argument("--smoke", action="store_true", help="tiny models and one round, to see that everything runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.rounds, arguments.samples = 1, 4
    rows = arguments.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if len(arguments.model) != len(arguments.data):
        parser.error("each --model needs a --data")
    import onnxruntime

    print(f"onnxruntime {onnxruntime.__version__}, {machine()}, {arguments.samples} samples, {arguments.rounds} rounds: "
          "median (least-most); ratio: the peer's to qonnx's")  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(arguments, Path(work))
        for row in rows:
            getattr(bench, row)()


if __name__ == "__main__":
    main()
