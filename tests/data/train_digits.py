"""Trains the small digit classifier that the repository ships, and writes its model and data.

    python tests/data/train_digits.py

NumPy and onnx only, a few minutes on one core, seeded. It writes, next to itself,

    digits.onnx              fp32, opset 13: x f32[N,1,28,28] in 0..1 -> logits f32[N,10]
    digits/calib/*.npz       64 samples, one a file, array `x`
    digits/eval.npz          `images` u8[500,28,28], `labels` u8[500]: pictures that training never saw

The network is a miniature of a mobile CNN: strided stem, depthwise and pointwise convolutions, residual Adds, global
average pool, Gemm. BatchNormalization and Clip(0, 6) are exported as they are trained; folding them is qonnx's job.
While training, activations are laid out N,H,W,C, so that a pointwise convolution is one matrix product.
"""

import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 20
SIDE = 28
BATCH, STEPS, RATE = 64, 1600, 0.1

# Pictures: a glyph is a set of strokes, a picture is its distance field under a random affine map.

FONT = """
.###. ..#.. .###. .###. ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# #...# ..##. #.... .#... ....# #...# #...#
#...# #.#.. ....# ....# .#.#. #.... #.... ...#. #...# #...#
#...# ..#.. ...#. ..##. #..#. ####. ####. ...#. .###. .####
#...# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# ..#.. #...# ...#.
.###. ##### ##### .###. ...#. .###. .###. ..#.. .###. .##..
"""
FINE = 6  # distance field samples per font cell
MARGIN = 4  # cells around the glyph that the field covers


def distance_fields():
    """For each digit the distance, in font cells, from points of a fine grid to the nearest stroke."""
    rows = [line.split() for line in FONT.split("\n") if line]
    ys, xs = np.mgrid[0 : (6 + 2 * MARGIN) * FINE + 1, 0 : (4 + 2 * MARGIN) * FINE + 1] / FINE - MARGIN
    fields = []
    for digit in range(10):
        on = {(r, c) for r in range(7) for c in range(5) if rows[r][digit][c] == "#"}
        strokes = [(p, p) for p in on]
        for r, c in on:
            strokes += [((r, c), q) for q in [(r, c + 1), (r + 1, c)] if q in on]
            # a diagonal joins two cells only where no corner cell joins them already
            for q in [(r + 1, c + 1), (r + 1, c - 1)]:
                if q in on and (r, q[1]) not in on and (q[0], c) not in on:
                    strokes.append(((r, c), q))
        field = np.full(ys.shape, np.inf)
        for (r0, c0), (r1, c1) in sorted(strokes):
            dr, dc = r1 - r0, c1 - c0
            t = np.clip(((ys - r0) * dr + (xs - c0) * dc) / max(dr * dr + dc * dc, 1), 0, 1)
            field = np.minimum(field, np.hypot(ys - r0 - t * dr, xs - c0 - t * dc))
        fields.append(field)
    return np.stack(fields).astype(np.float32)


def bilinear(fields, index, ys, xs):
    """Samples `fields[index]` at fractional positions; outside, the border value counts."""
    height, width = fields.shape[1:]
    ys, xs = np.clip(ys, 0, height - 1.001), np.clip(xs, 0, width - 1.001)
    y0, x0 = ys.astype(np.int64), xs.astype(np.int64)
    fy, fx = ys - y0, xs - x0
    at = lambda dy, dx: fields[index, y0 + dy, x0 + dx]
    top = at(0, 0) * (1 - fx) + at(0, 1) * fx
    bottom = at(1, 0) * (1 - fx) + at(1, 1) * fx
    return top * (1 - fy) + bottom * fy


def render(rng, fields, count):
    """`count` random pictures: u8 [count,28,28] and their labels u8 [count]."""
    labels = rng.integers(0, 10, count)
    u = lambda low, high: rng.uniform(low, high, (count, 1, 1)).astype(np.float32)
    angle, shear, aspect = u(-0.4, 0.4), u(-0.35, 0.35), u(0.75, 1.25)
    cell = u(1.9, 3.1)  # pixels per font cell
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    y, x = y[None] - (SIDE - 1) / 2 - u(-4, 4), x[None] - (SIDE - 1) / 2 - u(-4, 4)
    turned_y = (np.cos(angle) * y - np.sin(angle) * x) / cell
    turned_x = (np.sin(angle) * y + np.cos(angle) * x) / cell / aspect + shear * turned_y
    wobble = u(-0.35, 0.35) * np.sin(turned_y * u(0.5, 1.4) + u(0, 6.3))
    distance = bilinear(
        fields, labels[:, None, None], (turned_y + 3 + MARGIN) * FINE, (turned_x + wobble + 2 + MARGIN) * FINE
    )
    ink = np.clip((u(0.25, 0.75) - distance) / u(0.15, 0.5) + 0.5, 0, 1)
    paper = u(0.0, 0.3) + u(-0.15, 0.15) * x / SIDE + u(-0.15, 0.15) * y / SIDE
    picture = paper + ink * u(0.35, 0.9) + rng.normal(0, 1, ink.shape) * u(0.02, 0.22)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), labels.astype(np.uint8)


def to_input(pictures):
    """u8 [n,28,28] -> the model's input f32 [n,1,28,28] in 0..1."""
    return (pictures[:, None] / np.float32(255)).astype(np.float32)


# Layers: forward keeps what backward needs; backward fills `grads` and returns the gradient of the input.


class Layer:
    params = ()  # names of the trained arrays


class Convolution(Layer):
    """Full 3x3, padding 1: an im2col and a matrix product. Weight [9*in, out]."""

    def __init__(self, rng, inputs, outputs, stride):
        self.params, self.stride = ("w",), stride
        self.w = rng.normal(0, np.sqrt(2 / (9 * inputs)), (9 * inputs, outputs)).astype(np.float32)

    def forward(self, x, train):
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        end, s = x.shape[1] - 1, self.stride  # the last tap starts at most here
        taps = [padded[:, i : i + end + 1 : s, j : j + end + 1 : s] for i in range(3) for j in range(3)]
        self.columns = np.concatenate(taps, axis=3)
        return self.columns @ self.w

    def backward(self, d):
        self.grads = [self.columns.reshape(-1, self.w.shape[0]).T @ d.reshape(-1, d.shape[3])]
        return None  # only ever the first layer

    def export(self, out, x):
        return out.conv(x, self.w.reshape(3, 3, -1, self.w.shape[1]).transpose(3, 2, 0, 1), self.stride)


class Depthwise(Layer):
    """3x3 per channel, padding 1. Weight [3,3,channels]."""

    def __init__(self, rng, channels, stride):
        self.params, self.stride = ("w",), stride
        self.w = rng.normal(0, np.sqrt(2 / 9), (3, 3, channels)).astype(np.float32)

    def windows(self, padded, size):
        s = self.stride
        return [(i, j, padded[:, i : i + size : s, j : j + size : s]) for i in range(3) for j in range(3)]

    def forward(self, x, train):
        self.padded, self.size = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), x.shape[1]
        return sum(view * self.w[i, j] for i, j, view in self.windows(self.padded, self.size))

    def backward(self, d):
        gradient, total = np.zeros_like(self.w), np.zeros_like(self.padded)
        for i, j, view in self.windows(self.padded, self.size):
            gradient[i, j] = np.einsum("nhwc,nhwc->c", view, d)
        for i, j, view in self.windows(total, self.size):
            view += d * self.w[i, j]
        self.grads = [gradient]
        return total[:, 1:-1, 1:-1]

    def export(self, out, x):
        return out.conv(x, self.w.transpose(2, 0, 1)[:, None], self.stride, groups=self.w.shape[2])


class Pointwise(Layer):
    """1x1 convolution. Weight [in, out]."""

    def __init__(self, rng, inputs, outputs):
        self.params = ("w",)
        self.w = rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)

    def forward(self, x, train):
        self.x = x
        return x @ self.w

    def backward(self, d):
        self.grads = [self.x.reshape(-1, self.w.shape[0]).T @ d.reshape(-1, self.w.shape[1])]
        return d @ self.w.T

    def export(self, out, x):
        return out.conv(x, self.w.T[:, :, None, None])


class BatchNorm(Layer):
    """Per-channel normalization: batch statistics while training, running ones afterwards."""

    def __init__(self, channels):
        self.params = ("scale", "shift")
        self.scale, self.shift = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        self.mean, self.var = np.zeros(channels, np.float32), np.ones(channels, np.float32)

    def forward(self, x, train):
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            self.mean += 0.05 * (mean - self.mean)
            self.var += 0.05 * (var - self.var)
        else:
            mean, var = self.mean, self.var
        self.inverse = 1 / np.sqrt(var + np.float32(1e-5))
        self.normal = (x - mean) * self.inverse
        return self.normal * self.scale + self.shift

    def backward(self, d):
        self.grads = [np.einsum("nhwc,nhwc->c", d, self.normal), d.sum((0, 1, 2))]
        count = d.size // d.shape[3]
        return self.scale * self.inverse * (d - self.grads[1] / count - self.normal * self.grads[0] / count)

    def export(self, out, x):
        names = [out.tensor(key, getattr(self, key)) for key in ("scale", "shift", "mean", "var")]
        return out.node("BatchNormalization", [x, *names], epsilon=1e-5)


class Relu6(Layer):
    def forward(self, x, train):
        self.open = (x > 0) & (x < 6)
        return np.clip(x, 0, 6)

    def backward(self, d):
        return d * self.open

    def export(self, out, x):
        return out.node("Clip", [x, out.shared("zero", np.float32(0)), out.shared("six", np.float32(6))])


class Residual(Layer):
    """x + inner(x)"""

    def __init__(self, *inner):
        self.inner = inner

    def forward(self, x, train):
        y = x
        for layer in self.inner:
            y = layer.forward(y, train)
        return x + y

    def backward(self, d):
        inner = d
        for layer in reversed(self.inner):
            inner = layer.backward(inner)
        return d + inner

    def export(self, out, x):
        y = x
        for layer in self.inner:
            y = layer.export(out, y)
        return out.node("Add", [x, y])


class Classifier(Layer):
    """Global average pool, then a dense layer. Weight [classes, channels], bias [classes]."""

    def __init__(self, rng, channels):
        self.params = ("w", "b")
        self.w = rng.normal(0, 0.05, (10, channels)).astype(np.float32)
        self.b = np.zeros(10, np.float32)

    def forward(self, x, train):
        self.shape, self.pooled = x.shape, x.mean((1, 2))
        return self.pooled @ self.w.T + self.b

    def backward(self, d):
        self.grads = [d.T @ self.pooled, d.sum(0)]
        n, h, w, c = self.shape
        return np.broadcast_to((d @ self.w)[:, None, None] / (h * w), self.shape).astype(np.float32)

    def export(self, out, x):
        flat = out.node("Flatten", [out.node("GlobalAveragePool", [x])])
        return out.node("Gemm", [flat, out.tensor("w", self.w), out.tensor("b", self.b)], output="logits", transB=1)


def network(rng):
    inverted = lambda c, wide: Residual(
        Pointwise(rng, c, wide), BatchNorm(wide), Relu6(),
        Depthwise(rng, wide, 1), BatchNorm(wide), Relu6(),
        Pointwise(rng, wide, c), BatchNorm(c),
    )  # fmt: skip
    return [
        Convolution(rng, 1, 16, 2), BatchNorm(16), Relu6(),
        Depthwise(rng, 16, 2), BatchNorm(16), Relu6(),
        Pointwise(rng, 16, 48), BatchNorm(48),
        inverted(48, 192),
        inverted(48, 192),
        Pointwise(rng, 48, 160), BatchNorm(160), Relu6(),
        Classifier(rng, 160),
    ]  # fmt: skip


def forward(layers, pictures, train=False):
    x = to_input(pictures).transpose(0, 2, 3, 1)
    for layer in layers:
        x = layer.forward(x, train)
    return x


def flatten(layers):
    for layer in layers:
        yield from flatten(layer.inner) if isinstance(layer, Residual) else [layer]


def train(rng, fields, layers):
    """SGD with momentum, cosine rate, on pictures that are drawn anew for every step."""
    flat = [layer for layer in flatten(layers) if layer.params]
    speed = [[np.zeros_like(getattr(layer, name)) for name in layer.params] for layer in flat]
    start, loss_mean = time.time(), 2.3
    for step in range(STEPS):
        pictures, labels = render(rng, fields, BATCH)
        logits = forward(layers, pictures, train=True)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        loss_mean += 0.02 * (-np.log(p[np.arange(BATCH), labels] + 1e-9).mean() - loss_mean)
        p[np.arange(BATCH), labels] -= 1
        d = p / BATCH
        for layer in reversed(layers):
            d = layer.backward(d)
        rate = RATE * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * step / STEPS))
        for layer, speeds in zip(flat, speed):
            for name, v, g in zip(layer.params, speeds, layer.grads):
                w = getattr(layer, name)
                v *= 0.9
                v += g + (1e-4 * w if name == "w" else 0)
                w -= rate * v
        if (step + 1) % 200 == 0:
            print(f"step {step + 1:5}  loss {loss_mean:.3f}  {time.time() - start:.0f} s", flush=True)


class Exporter:
    """Collects the nodes and initializers of an ONNX graph."""

    def __init__(self):
        self.nodes, self.initializers, self.names = [], [], set()

    def node(self, op, inputs, output=None, **attributes):
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output or f"{name}.out"], name=name, **attributes))
        return self.nodes[-1].output[0]

    def tensor(self, key, array):
        return self.shared(f"{key}_{len(self.nodes)}", array)

    def shared(self, name, array):
        if name not in self.names:
            self.names.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def conv(self, x, weight, stride=1, groups=1):
        kernel = weight.shape[2]
        return self.node(
            "Conv", [x, self.tensor("w", weight)], kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4, group=groups,
        )  # fmt: skip

    def model(self):
        info = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        graph = helper.make_graph(
            self.nodes, "digits", [info("x", ["N", 1, SIDE, SIDE])], [info("logits", ["N", 10])], self.initializers
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], producer_name="train_digits")
        model.ir_version = 8
        return model


def main():
    rng = np.random.default_rng(SEED)
    fields = distance_fields()
    held_out, labels = render(rng, fields, 500)
    calibration, _ = render(rng, fields, 64)
    layers = network(rng)
    train(rng, fields, layers)

    right = (forward(layers, held_out).argmax(1) == labels).mean()
    print(f"{right:.1%} of {len(labels)} held-out pictures")

    out = Exporter()
    x = "x"
    for layer in layers:
        x = layer.export(out, x)
    model = out.model()
    onnx.checker.check_model(model, full_check=True)
    home = Path(__file__).parent
    (home / "digits" / "calib").mkdir(parents=True, exist_ok=True)
    (home / "digits.onnx").write_bytes(model.SerializeToString())
    np.savez_compressed(home / "digits" / "eval.npz", images=held_out, labels=labels)
    for index, picture in enumerate(calibration):
        np.savez_compressed(home / "digits" / "calib" / f"{index:02}.npz", x=to_input(picture[None]))


if __name__ == "__main__":
    main()
