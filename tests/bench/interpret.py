"""How fast the interpreter runs a model over many samples, next to ONNX Runtime with its graph optimizations off, which
is how its quantizer calibrates.

    python tests/bench/interpret.py --qonnx target/release/qonnx [MODEL --data DIR]... [--samples N] [--rounds R]

DIR has a sub-directory for each sample with a file `NAME.npy` for each input. Without a MODEL two are made, with random
weights: a convolutional net of the size and form of ResNet-50 and an encoder of those of MiniLM-L6, sequence 128.

What is timed, on the same samples, by turns:

* qonnx: `qonnx compare MODEL MODEL --threads 2`, which interprets each sample twice, whole samples in parallel. The
  time of a process with 2 samples is taken from that of one with N + 2, so that loading the model and preparing the
  program, which both do once, drop out and both threads have work throughout. Half of the difference counts, as each
  sample is interpreted twice. Reading the samples and comparing the outputs is part of it.
* ONNX Runtime: one session, all samples one after the other on 2 threads inside the operators. Its start, loading of
  samples and a first run do not count.
* ONNX Runtime, two samples at a time: one session of one thread, called from two threads. This is not how its
  quantizer works, but the most that the same kernels give.

A line for each round and then the medians: milliseconds a sample, and the ratio of ONNX Runtime's time to qonnx's (above
1: qonnx is faster), which is the median of the ratios of the rounds, as both share what the machine does otherwise.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nets
import onnxruntime as ort

THREADS = 2


def made(work, samples):
    """The two models and their samples, as files."""
    for name, build in [("resnet", nets.resnet), ("encoder", nets.encoder)]:
        path, data = work / f"{name}.onnx", work / name
        nets.samples(build(path), data, samples)
        yield path, data


def interpret(qonnx, model, data, samples):
    """Seconds of a process that interprets so many samples, each twice."""
    command = [qonnx, "compare", model, model, "--data", data, "--samples", str(samples), "--threads", str(THREADS)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    return seconds


def session(model, threads):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def runtime(model, feeds, threads):
    """Seconds that ONNX Runtime takes for all samples, with so many threads inside an operator."""
    run = session(model, threads)
    at_once = THREADS // threads
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda feed: run.run(None, feed), feeds[:at_once]))
        start = time.perf_counter()
        list(pool.map(lambda feed: run.run(None, feed), feeds))
        return time.perf_counter() - start


def bench(qonnx, model, data, samples, rounds):
    found = nets.feeds(data)
    samples = min(samples, len(found) - THREADS)
    if samples < THREADS:
        sys.exit(f"{data}: {len(found)} samples are too few")
    rows = []
    for number in range(rounds):
        seconds = interpret(qonnx, model, data, samples + THREADS) - interpret(qonnx, model, data, THREADS)
        times = seconds / 2, *(runtime(model, found[:samples], threads) for threads in (THREADS, 1))
        own, inside, apart = (1e3 * t / samples for t in times)
        rows.append((own, inside, apart, inside / own, apart / own))
        print(f"  round {number + 1}: qonnx {own:.2f} ms a sample, ONNX Runtime {inside:.2f}, "
              f"two samples at a time {apart:.2f}", flush=True)  # fmt: skip
    own, inside, apart, ratio, other = (statistics.median(column) for column in zip(*rows))
    print(f"{model.stem}: qonnx {own:.2f} ms a sample, ONNX Runtime {inside:.2f} (ratio {ratio:.2f}), "
          f"two samples at a time {apart:.2f} (ratio {other:.2f}); {samples} samples", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--qonnx", default="target/release/qonnx")
    parser.add_argument("--data", action="append", type=Path, default=[])
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if len(arguments.models) != len(arguments.data):
        parser.error("each MODEL needs a --data DIR")
    print(f"onnxruntime {ort.__version__}, {THREADS} threads, graph optimizations off")
    with tempfile.TemporaryDirectory() as work:
        given = zip(arguments.models, arguments.data)
        for model, data in given if arguments.models else made(Path(work), arguments.samples + THREADS):
            bench(arguments.qonnx, model, data, arguments.samples, arguments.rounds)


if __name__ == "__main__":
    main()
