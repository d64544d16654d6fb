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

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

THREADS = 2


class Net:
    """A graph under construction, with random weights."""

    def __init__(self):
        self.rng = np.random.default_rng(5)
        self.nodes, self.weights = [], []

    def constant(self, array):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def random(self, *shape, depth=None):
        deviation = (2 / depth) ** 0.5 if depth else 0.02
        return self.constant((self.rng.standard_normal(shape) * deviation).astype(np.float32))

    def op(self, kind, *inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def save(self, path, inputs, output, shape):
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "bench", inputs, [result], self.weights)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def conv(net, x, inputs, outputs, kernel=1, stride=1):
    depth = inputs * kernel * kernel
    weight, bias = net.random(outputs, inputs, kernel, kernel, depth=depth), net.random(outputs)
    return net.op("Conv", x, weight, bias, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)


def resnet(path):
    """Bottleneck blocks as in ResNet-50, batch normalization folded into the convolutions as exporters do."""
    net = Net()
    x = net.op("Relu", conv(net, "image", 3, 64, 7, 2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, blocks in enumerate([3, 4, 6, 3]):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.op("Relu", conv(net, x, channels, width))
            y = net.op("Relu", conv(net, y, width, width, 3, stride))
            y = conv(net, y, width, 4 * width)
            if not block:
                x = conv(net, x, channels, 4 * width, 1, stride)
            x, channels = net.op("Relu", net.op("Add", y, x)), 4 * width
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    y = net.op("Gemm", x, net.random(1000, channels), net.random(1000), transB=1)
    net.save(path, [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])], y, [1, 1000])
    return lambda rng: {"image": rng.standard_normal((1, 3, 224, 224)).astype(np.float32)}


def encoder(path, layers=6, hidden=384, heads=12, length=128, words=30522):
    """An encoder with the operators that exporters write for it."""
    net = Net()
    shape = lambda *extents: net.constant(np.int64(extents))
    scalar = lambda value: net.constant(np.float32(value))

    def dense(x, inputs, outputs):
        return net.op("Add", net.random(outputs), net.op("MatMul", x, net.random(inputs, outputs, depth=2 * inputs)))

    def normalized(x):
        ones = net.constant(np.ones(hidden, np.float32))
        return net.op("LayerNormalization", x, ones, net.random(hidden), axis=-1, epsilon=1e-12)

    def split(x, *perm):
        return net.op("Transpose", net.op("Reshape", x, shape(1, length, heads, hidden // heads)), perm=perm)

    mask = net.op("Unsqueeze", net.op("Cast", "attention_mask", to=TensorProto.FLOAT), shape(1, 2))
    mask = net.op("Mul", net.op("Sub", scalar(1), mask), scalar(np.finfo(np.float32).min))
    x = net.op("Gather", net.random(words, hidden), "input_ids")
    x = normalized(net.op("Add", x, net.random(1, length, hidden)))
    for _ in range(layers):
        q, k, v = (dense(x, hidden, hidden) for _ in range(3))
        scores = net.op("MatMul", split(q, 0, 2, 1, 3), split(k, 0, 2, 3, 1))
        scores = net.op("Div", scores, scalar((hidden / heads) ** 0.5))
        context = net.op("MatMul", net.op("Softmax", net.op("Add", scores, mask), axis=-1), split(v, 0, 2, 1, 3))
        context = net.op("Reshape", net.op("Transpose", context, perm=[0, 2, 1, 3]), shape(1, length, hidden))
        x = normalized(net.op("Add", dense(context, hidden, hidden), x))
        y = dense(x, hidden, 4 * hidden)
        erf = net.op("Add", net.op("Erf", net.op("Div", y, scalar(2**0.5))), scalar(1))
        y = net.op("Mul", net.op("Mul", y, erf), scalar(0.5))
        x = normalized(net.op("Add", dense(y, 4 * hidden, hidden), x))
    names = "input_ids", "attention_mask"
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [1, length]) for name in names]
    net.save(path, inputs, x, [1, length, hidden])
    return lambda rng: {
        "input_ids": rng.integers(0, words, (1, length)),
        "attention_mask": (np.arange(length) < rng.integers(length // 2, length + 1)).astype(np.int64)[None],
    }


def made(work, samples):
    """The two models and their samples, as files."""
    for name, build in [("resnet", resnet), ("encoder", encoder)]:
        path, data = work / f"{name}.onnx", work / name
        draw, rng = build(path), np.random.default_rng(1)
        for index in range(samples):
            directory = data / f"{index:04}"
            directory.mkdir(parents=True)
            for key, array in draw(rng).items():
                np.save(directory / f"{key}.npy", array)
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
    found = [{file.stem: np.load(file) for file in sorted(d.glob("*.npy"))} for d in sorted(data.iterdir()) if d.is_dir()]
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
