"""Pictures a second of a training step: `qonnx train` beside PyTorch on the same processor, on the same net.

    pip install torch onnx
    python tests/bench/train_speed.py QONNX MODEL.onnx [--samples 48] [--batch 16] [--threads 2]

MODEL is a classifier of convolutions (Conv, BatchNormalization, Clip, Relu, Add, GlobalAveragePool, Flatten, Gemm). Its
PyTorch twin is built from the file: the same weights, normalization folded, the same softened divergence from the float
model's scores, Adam on every weight and bias. It is timed in float, and with the learned step sizes that qonnx trains
(`torch._fake_quantize_learnable_*`, weights by channel, activations behind every operator). qonnx's figure is the
`speed` of its report: steps alone, without judging. Neither computes the float model's scores within a step.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional


class Twin(torch.nn.Module):
    def __init__(self, model, quantized):
        super().__init__()
        self.quantized = quantized
        known = {w.name: numpy_helper.to_array(w).copy() for w in model.graph.initializer}
        self.input = next(i.name for i in model.graph.input if i.name not in known)
        self.output = model.graph.output[0].name
        self.steps, self.values, self.scales = [], torch.nn.ParameterDict(), torch.nn.ParameterDict()
        for node in model.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == "BatchNormalization":
                self.fold(node, attributes, known)
                continue
            self.steps.append((node.op_type, list(node.input), node.output[0], attributes, len(self.steps)))
            if node.op_type in ("Conv", "Gemm"):
                for name in node.input[1:]:
                    self.values[self.key(name)] = torch.nn.Parameter(torch.tensor(known[name]))
            elif node.op_type == "Clip":
                attributes["bounds"] = [float(known[name]) for name in node.input[1:3]]
        if quantized:
            self.add("input", 1)
            for kind, inputs, _, _, number in self.steps:
                self.add(f"a{number}", 1)
                if kind in ("Conv", "Gemm"):
                    self.add(f"w{number}", len(self.values[self.key(inputs[1])]))

    def key(self, name):
        return name.replace(".", "_")

    def add(self, name, count):
        self.scales[f"{name}_s"] = torch.nn.Parameter(torch.full((count,), 0.03))
        self.scales[f"{name}_z"] = torch.nn.Parameter(torch.full((count,), 0.0 if name[0] == "w" else 10.0))

    def fold(self, node, attributes, known):
        gamma, beta, mean, variance = (known[name] for name in node.input[1:5])
        kind, inputs, _, options, number = self.steps[-1]
        assert kind == "Conv" and self.steps[-1][2] == node.input[0]
        factor = gamma / np.sqrt(variance + attributes.get("epsilon", 1e-5))
        before = known[inputs[2]] if len(inputs) > 2 else np.zeros_like(mean)
        weight = self.values[self.key(inputs[1])]
        weight.data *= torch.tensor(factor).reshape(-1, *[1] * (weight.ndim - 1))
        bias = f"folded{number}"
        self.values[bias] = torch.nn.Parameter(torch.tensor(beta + (before - mean) * factor))
        self.steps[-1] = (kind, [*inputs[:2], bias], node.output[0], options, number)

    def activation(self, name, x):
        if not self.quantized:
            return x
        scale, zero = self.scales[f"{name}_s"], self.scales[f"{name}_z"]
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, 0, 255, 1.0)

    def weight(self, number, w):
        if not self.quantized:
            return w
        scale, zero = self.scales[f"w{number}_s"], self.scales[f"w{number}_z"]
        return torch._fake_quantize_learnable_per_channel_affine(w, scale, zero, 0, -127, 127, 1.0)

    def forward(self, x):
        found = {self.input: self.activation("input", x)}
        consumers = [name for step in self.steps for name in step[1]]
        for index, (kind, inputs, output, options, number) in enumerate(self.steps):
            x = found[inputs[0]]
            if kind in ("Conv", "Gemm"):
                weight = self.weight(number, self.values[self.key(inputs[1])])
                bias = self.values[self.key(inputs[2])] if len(inputs) > 2 else None
            if kind == "Conv":
                top, left, bottom, right = options.get("pads", [0] * 4)
                padding = (top, left)
                if (top, left) != (bottom, right):
                    x, padding = functional.pad(x, (left, right, top, bottom)), 0
                y = functional.conv2d(x, weight, bias, options.get("strides", 1), padding, 1, options.get("group", 1))
            elif kind == "Gemm":
                y = functional.linear(x, weight if options.get("transB") else weight.T, bias)
            elif kind == "Clip":
                y = torch.clamp(x, *options["bounds"])
            elif kind == "Relu":
                y = torch.relu(x)
            elif kind == "Add":
                y = x + found[inputs[1]]
            elif kind == "GlobalAveragePool":
                y = x.mean((2, 3), keepdim=True)
            elif kind == "Flatten":
                y = x.flatten(1)
            else:
                sys.exit(f"the twin has no {kind}")
            # Clip and Relu behind a convolution are part of it: one rounding for both.
            fused = kind in ("Conv", "Gemm") and index + 1 < len(self.steps) and consumers.count(output) == 1
            fused = fused and self.steps[index + 1][0] in ("Clip", "Relu")
            found[output] = y if fused or kind == "Flatten" else self.activation(f"a{number}", y)
        return found[self.output]


def pytorch(model, quantized, batch, shape, steps):
    twin = Twin(model, quantized)
    teacher = torch.softmax(torch.randn(batch, 1000)[:, : twin(torch.zeros(1, *shape)).shape[1]] / 2, 1)
    optimizer = torch.optim.Adam(twin.parameters(), 1e-6)
    times = []
    for _ in range(steps + 1):
        x = torch.randn(batch, *shape)
        started = time.perf_counter()
        loss = 4 * functional.kl_div(torch.log_softmax(twin(x) / 2, 1), teacher, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    return batch / float(np.median(times[1:]))


def qonnx(arguments, shape):
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder) / "data", Path(folder) / "report.json"
        data.mkdir()
        rng = np.random.default_rng(0)
        for i in range(arguments.samples * 5 // 4):  # every fifth judges
            np.save(data / f"{i:04}.npy", rng.standard_normal((1, *shape), np.float32))
        command = [arguments.qonnx, "train", arguments.model, Path(folder) / "out.onnx", "--data", data, "--epochs", 1,
                   "--batch", arguments.batch, "--effort", "fast", "--threads", arguments.threads, "--json", report, "-q"]
        subprocess.run([str(word) for word in command], check=True)
        return json.loads(report.read_text())["training"]["speed"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qonnx", help="the built binary")
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = onnx.load(arguments.model)
    weights = {w.name for w in model.graph.initializer}
    (given,) = [i for i in model.graph.input if i.name not in weights]
    shape = [d.dim_value for d in given.type.tensor_type.shape.dim][1:]
    own = qonnx(arguments, shape)
    print(f"qonnx train               {own:6.2f} pictures/s")
    for title, quantized in [("PyTorch, fake-quantized", True), ("PyTorch, float", False)]:
        other = pytorch(model, quantized, arguments.batch, shape, max(1, arguments.samples // arguments.batch))
        print(f"{title:25} {other:6.2f} pictures/s  qonnx is {own / other:.2f} x", flush=True)


if __name__ == "__main__":
    main()
