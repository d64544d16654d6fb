"""The models that `crosscheck.py` compiles: small, seeded, one for each kind of graph that quantizers stumble over.

A case knows how to build its model and its feeds, in which layout its calibration data is stored, and what ONNX
Runtime must make of the compiled model: `fused` gives the least number of nodes for each set of integer kernels
(alternatives are separated by `|`), `floats` the most Conv, MatMul and Gemm nodes that may stay float, `sqnr` and
`weight_sqnr` the least signal to quantization noise ratio in dB of the worst output, static and weight-only.

Weights look trained, not random: channels differ in magnitude, and BatchNormalization holds plausible statistics.
"""

from dataclasses import dataclass, field
from typing import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper

MATMUL = "QGemm|QLinearMatMul|MatMulIntegerToFloat"


@dataclass
class Case:
    name: str
    build: Callable  # rng -> ModelProto
    feed: Callable  # rng, index -> {input: array}
    layout: str = "npz"  # npz, npy-dirs, npy or pb
    fused: dict = field(default_factory=dict)
    floats: int = 0
    sqnr: float = 24
    weight_sqnr: float = 30


class Net:
    """A graph under construction. Each method adds one node and returns the name of its output."""

    def __init__(self, rng, opset, ir=8):
        self.rng, self.opset, self.ir = rng, opset, ir
        self.nodes, self.weights = [], []

    def op(self, kind, *inputs, outputs=1, **attributes):
        names = [f"{kind.lower()}_{len(self.nodes)}" + (f"_{k}" if k else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}/{len(self.nodes)}", **attributes))
        return names[0] if outputs == 1 else names

    def const(self, array, name=None):
        array = np.asarray(array)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, name or f"c{len(self.weights)}"))
        return self.weights[-1].name

    def kernel(self, *shape, axis=0, fan=None):
        """Trained-like weights: He scale, and a log-normal factor for each output channel."""
        fan = fan or int(np.prod(shape)) // shape[axis]
        spread = np.exp(0.5 * self.rng.standard_normal(shape[axis]))
        spread = spread.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        return (self.rng.standard_normal(shape) * spread * np.sqrt(2 / fan)).astype(np.float32)

    def bias(self, channels):
        return self.const(0.3 * self.rng.standard_normal(channels))

    def conv(self, x, inputs, outputs, size=3, bias=True, group=1, rank=2, **attributes):
        weight = self.kernel(outputs, inputs // group, *[size] * rank)
        attributes.setdefault("pads", [size // 2] * rank * 2)
        tail = [self.bias(outputs)] if bias else []
        return self.op("Conv", x, self.const(weight), *tail, group=group, **attributes)

    def norm(self, x, channels):
        r = self.rng
        parts = [r.uniform(0.5, 1.5, channels), 0.3 * r.standard_normal(channels)]
        parts += [0.3 * r.standard_normal(channels), np.exp(0.7 * r.standard_normal(channels))]
        return self.op("BatchNormalization", x, *[self.const(p) for p in parts], epsilon=1e-5)

    def conv_norm(self, x, inputs, outputs, size=3, **attributes):
        return self.norm(self.conv(x, inputs, outputs, size, bias=False, **attributes), outputs)

    def relu6(self, x):
        if self.opset < 11:
            return self.op("Clip", x, min=0.0, max=6.0)
        return self.op("Clip", x, self.const(np.float32(0)), self.const(np.float32(6)))

    def gemm(self, x, inputs, outputs, **attributes):
        trans = attributes.get("transB", 0)
        weight = self.kernel(*((outputs, inputs) if trans else (inputs, outputs)), axis=0 if trans else 1)
        return self.op("Gemm", x, self.const(weight), self.bias(outputs), **attributes)

    def matmul(self, x, inputs, outputs):
        return self.op("MatMul", x, self.const(self.kernel(inputs, outputs, axis=1)))

    def squeeze(self, x, axes):
        if self.opset < 13:
            return self.op("Squeeze", x, axes=axes)
        return self.op("Squeeze", x, self.const(np.int64(axes)))

    def classifier(self, x, channels, classes):
        return self.gemm(self.op("Flatten", self.op("GlobalAveragePool", x)), channels, classes, transB=1)

    def model(self, inputs, outputs, domains=()):
        """`inputs` and `outputs`: {name: shape}, float. Intermediate shapes are left for tools to infer."""
        info = lambda pairs: [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in pairs.items()]
        graph = helper.make_graph(self.nodes, "g", info(inputs), info(outputs), self.weights)
        if self.ir < 4:  # initializers had to be listed as inputs
            for w in self.weights:
                graph.input.append(helper.make_tensor_value_info(w.name, w.data_type, w.dims))
        opsets = [helper.make_opsetid("", self.opset), *[helper.make_opsetid(d, 1) for d in domains]]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="crosscheck")
        model.ir_version = self.ir
        return model


def smooth(rng, *shape):
    """Feeds that look like pictures: a few waves plus noise, each sample with its own contrast."""
    ys, xs = np.meshgrid(np.linspace(0, 1, shape[-2]), np.linspace(0, 1, shape[-1]), indexing="ij")
    waves = np.zeros(shape)
    for _ in range(3):
        fy, fx, phase = rng.uniform(0, 9), rng.uniform(0, 9), rng.uniform(0, 6.3, (*shape[:-2], 1, 1))
        waves += np.sin(fy * ys + fx * xs + phase)
    return (rng.uniform(0.5, 1.0) * waves + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def pictures(channels, side, batch=1):
    return lambda rng, index: {"x": smooth(rng, batch, channels, side, side)}


def residual_cnn(rng):
    net = Net(rng, 13)
    x = net.op("Relu", net.conv_norm("x", 3, 16, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    y = net.conv_norm(net.op("Relu", net.conv_norm(x, 16, 16)), 16, 16)
    x = net.op("Relu", net.op("Add", y, x))
    y = net.conv_norm(net.op("Relu", net.conv_norm(x, 16, 32, strides=[2, 2])), 32, 32)
    x = net.op("Relu", net.op("Add", y, net.conv_norm(x, 16, 32, 1, strides=[2, 2])))
    return finish(net, net.classifier(x, 32, 10), {"x": ["N", 3, 48, 48]}, ["N", 10])


def finish(net, value, inputs, shape):
    """Names the last value `y` and closes the graph."""
    net.nodes[-1].output[0] = "y"
    assert value != "y"
    return net.model(inputs, {"y": shape})


def depthwise_cnn(rng):
    net = Net(rng, 13)
    x = net.relu6(net.conv_norm("x", 3, 16, strides=[2, 2]))
    for wide in [48, 64]:
        y = net.relu6(net.conv_norm(x, 16, wide, 1))
        y = net.relu6(net.conv_norm(y, wide, wide, group=wide))
        x = net.op("Add", x, net.conv_norm(y, wide, 16, 1))
    x = net.relu6(net.conv_norm(x, 16, 64, 1))
    x = net.op("ReduceMean", x, axes=[2, 3], keepdims=0)
    return finish(net, net.gemm(x, 64, 10), {"x": ["N", 3, 32, 32]}, ["N", 10])


def conv_1d(rng):
    net = Net(rng, 13)
    x = net.op("LeakyRelu", net.conv("x", 8, 16, 5, rank=1), alpha=0.1)
    x = net.op("Relu", net.conv(x, 16, 24, 3, rank=1, dilations=[2], pads=[2, 2]))
    x = net.op("AveragePool", x, kernel_shape=[2], strides=[2])
    x = net.op("Relu", net.conv_norm(x, 24, 24, 3, rank=1, group=4))
    x = net.op("GlobalAveragePool", x)
    return finish(net, net.gemm(net.squeeze(x, [2]), 24, 6), {"x": ["N", 8, "T"]}, ["N", 6])


def conv_3d(rng):
    net = Net(rng, 13)
    x = net.op("Relu", net.conv_norm("x", 2, 8, rank=3))
    x = net.op("Relu", net.conv_norm(x, 8, 12, rank=3, strides=[2, 2, 2]))
    return finish(net, net.classifier(x, 12, 5), {"x": ["N", 2, 8, 8, 8]}, ["N", 5])


def mlp(rng):
    net = Net(rng, 13)
    x = net.op("Relu", net.gemm("x", 32, 64, transB=1, alpha=0.5, beta=2.0))
    x = net.op("Relu", net.op("Add", net.matmul(x, 64, 48), net.bias(48)))
    x = net.op("Relu", net.norm(net.gemm(x, 48, 48, beta=0.25), 48))
    return finish(net, net.gemm(x, 48, 10, transB=1, alpha=1.5), {"x": ["N", 32]}, ["N", 10])


def transformer(rng):
    """One encoder block. Lengths vary, and masked positions hold -3.4e38 as exporters write it."""
    net, width, heads = Net(rng, 17), 48, 4
    linear = lambda x, a, b: net.op("Add", net.matmul(x, a, b), net.bias(b))
    layer_norm = lambda x: net.op(
        "LayerNormalization", x, net.const(rng.uniform(0.5, 1.5, width)), net.bias(width), axis=-1
    )
    split = net.const(np.int64([0, 0, heads, width // heads]))
    head = lambda x, perm: net.op("Transpose", net.op("Reshape", x, split), perm=perm)
    n = layer_norm("x")
    q, v = head(linear(n, width, width), [0, 2, 1, 3]), head(linear(n, width, width), [0, 2, 1, 3])
    k = head(linear(n, width, width), [0, 2, 3, 1])
    scores = net.op("Div", net.op("MatMul", q, k), net.const(np.float32(np.sqrt(width / heads))))
    weights = net.op("Softmax", net.op("Add", scores, "mask"), axis=-1)
    context = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    context = net.op("Reshape", context, net.const(np.int64([0, 0, width])))
    x = net.op("Add", linear(context, width, width), "x")
    h = linear(layer_norm(x), width, 96)
    erf = net.op("Erf", net.op("Div", h, net.const(np.float32(np.sqrt(2)))))
    gelu = net.op("Mul", net.op("Mul", h, net.op("Add", erf, net.const(np.float32(1)))), net.const(np.float32(0.5)))
    y = net.op("Add", linear(gelu, 96, width), x)
    return finish(net, y, {"x": ["N", "S", width], "mask": ["N", 1, 1, "S"]}, ["N", "S", width])


def transformer_feed(rng, index):
    length = 6 + index % 7
    mask = np.zeros((1, 1, 1, length), np.float32)
    mask[..., length - index % 3 :] = np.finfo(np.float32).min
    x = rng.standard_normal((1, length, 48)) * np.exp(0.4 * np.sin(np.arange(48)))
    return {"x": x.astype(np.float32), "mask": mask}


def opset_7(rng):
    net = Net(rng, 7, ir=3)
    x = net.op("Relu", net.conv_norm("x", 3, 8))
    x = net.op("Upsample", x, mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
    x = net.op("Pad", x, mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.0)
    x = net.op("Dropout", net.relu6(net.conv_norm(x, 8, 16, pads=[0] * 4, strides=[2, 2])), ratio=0.4)
    x = net.op("Reshape", net.op("GlobalAveragePool", x), net.const(np.int64([-1, 16])))
    return finish(net, net.gemm(x, 16, 5), {"x": [1, 3, 16, 16]}, [1, 5])


def opset_9(rng):
    net = Net(rng, 9, ir=4)
    x = net.relu6(net.conv_norm("x", 3, 8))
    x = net.op("Upsample", x, net.const(np.float32([1, 1, 2, 2])), mode="nearest")
    x = net.op("Pad", x, mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1])
    x = net.relu6(net.conv_norm(x, 8, 16, pads=[0] * 4, strides=[2, 2]))
    x = net.op("Slice", x, axes=[2, 3], starts=[1, 1], ends=[1000, 15])
    x, _ = net.op("Dropout", net.op("Relu", net.conv_norm(x, 16, 16)), outputs=2, ratio=0.5)
    x = net.squeeze(net.op("GlobalAveragePool", x), [2, 3])
    x = net.op("Softmax", net.gemm(x, 16, 6), axis=1)
    return finish(net, x, {"x": ["N", 3, 16, 16]}, ["N", 6])


def opset_11(rng):
    net = Net(rng, 11, ir=6)
    x = net.relu6(net.conv_norm("x", 3, 8))
    x = net.op("Resize", x, net.const(np.zeros(0, np.float32)), net.const(np.float32([1, 1, 2, 2])), mode="nearest",
               coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    x = net.op("Pad", x, net.const(np.int64([0, 0, 1, 1, 0, 0, 1, 1])), mode="constant")
    x = net.relu6(net.conv_norm(x, 8, 16, pads=[0] * 4, strides=[2, 2]))
    x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = net.op("Unsqueeze", net.squeeze(net.op("GlobalAveragePool", x), [2, 3]), axes=[1])
    return finish(net, net.gemm(net.squeeze(x, [1]), 16, 6), {"x": ["N", 3, 16, 16]}, ["N", 6])


def opset_12(rng):
    net = Net(rng, 12, ir=7)
    x = net.relu6(net.conv_norm("x", 3, 16))
    a, b = net.op("Split", x, outputs=2, axis=1, split=[8, 8])
    x = net.op("Concat", net.op("Relu", net.conv(a, 8, 8)), b, axis=1)
    x = net.op("Relu", net.conv_norm(x, 16, 16))
    x = net.op("Dropout", net.op("ReduceMean", x, axes=[2, 3], keepdims=1))
    x = net.op("Flatten", x)
    x = net.op("Softmax", net.op("Unsqueeze", net.gemm(x, 16, 6), axes=[1]), axis=1)
    return finish(net, x, {"x": ["N", 3, 16, 16]}, ["N", 1, 6])


def if_capture(rng):
    """Both branches convolve a value of the outer graph, one with a weight of the outer graph too."""
    net = Net(rng, 13)
    x = net.op("Relu", net.conv_norm("x", 3, 8))
    outer = net.const(net.kernel(8, 8, 3, 3))
    mean = net.op("ReduceMean", "x", keepdims=0)
    condition = net.op("Greater", mean, net.const(np.float32(0)))

    def branch(name, nodes, weights=()):
        info = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, name, [], [info], list(weights))

    own = numpy_helper.from_array(net.kernel(8, 8, 1, 1), "own")
    conv = helper.make_node("Conv", [x, outer], ["a"], pads=[1] * 4)
    yes = branch("yes", [conv, helper.make_node("Relu", ["a"], ["yes_y"])])
    no = branch("no", [helper.make_node("Conv", [x, "own"], ["no_y"])], [own])
    y = net.op("If", condition, then_branch=yes, else_branch=no)
    y = net.op("Relu", net.conv(net.op("Add", y, x), 8, 8))
    return finish(net, net.classifier(y, 8, 4), {"x": ["N", 3, 16, 16]}, ["N", 4])


def loop(rng):
    """A Loop that applies one dense layer three times, between two convolutions."""
    net = Net(rng, 13)
    x = net.op("Flatten", net.op("GlobalAveragePool", net.op("Relu", net.conv_norm("x", 16, 16))))
    weight = net.const(net.kernel(16, 16, axis=1))
    info = lambda name, kind, shape=None: helper.make_tensor_value_info(name, kind, shape)
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", weight], ["product"]),
            helper.make_node("Tanh", ["product"], ["next"]),
            helper.make_node("Identity", ["going"], ["go_on"]),
        ],
        "body",
        [info("step", TensorProto.INT64, []), info("going", TensorProto.BOOL, []), info("state", TensorProto.FLOAT)],
        [info("go_on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT)],
    )
    x = net.op("Loop", net.const(np.int64(3)), net.const(np.bool_(True)), x, body=body)
    return finish(net, net.gemm(x, 16, 4), {"x": ["N", 16, 16, 16]}, ["N", 4])


def constant_weights(rng):
    """Weights in Constant nodes, behind Identity, Transpose, Reshape and Cast, as exporters leave them."""
    net = Net(rng, 13)

    def const(array):
        return net.op("Constant", value=numpy_helper.from_array(np.ascontiguousarray(array)))

    first = net.op("Identity", const(net.kernel(8, 3, 3, 3)))
    x = net.op("Relu", net.op("Conv", "x", first, const(np.zeros(8, np.float32)), pads=[1] * 4))
    second = net.op("Transpose", const(net.kernel(12, 8, 3, 3).transpose(2, 3, 1, 0)), perm=[3, 2, 0, 1])
    x = net.op("Relu", net.op("Conv", x, second, pads=[1] * 4))
    third = net.op("Reshape", const(net.kernel(12, 12, 1, 1).reshape(12, 12)), const(np.int64([12, 12, 1, 1])))
    x = net.op("Relu", net.op("Conv", x, third))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    fourth = net.op("Cast", const(net.kernel(12, 6, axis=1).astype(np.float16)), to=TensorProto.FLOAT)
    return finish(net, net.op("MatMul", x, fourth), {"x": ["N", 3, 16, 16]}, ["N", 6])


def squeeze_excite(rng):
    net = Net(rng, 13)
    swish = lambda x: net.op("Mul", x, net.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))
    x = swish(net.conv_norm("x", 3, 16, strides=[2, 2]))
    x = net.op("Relu", net.conv_norm(x, 16, 16, group=16))
    s = net.op("Relu", net.conv(net.op("GlobalAveragePool", x), 16, 4, 1))
    x = net.op("Mul", x, net.op("HardSigmoid", net.conv(s, 4, 16, 1), alpha=0.2, beta=0.5))
    x = net.conv_norm(x, 16, 24, 1)
    gate = net.relu6(net.op("Add", x, net.const(np.float32(3))))
    x = net.op("Div", net.op("Mul", x, gate), net.const(np.float32(6)))
    return finish(net, net.classifier(x, 24, 8), {"x": ["N", 3, 96, 96]}, ["N", 8])


def detector_neck(rng):
    """SiLU, Split, Concat of unlike ranges, nearest Resize, MaxPool, two outputs, one of them used inside."""
    net = Net(rng, 17)
    silu = lambda x: net.op("Mul", x, net.op("Sigmoid", x))
    x = silu(net.conv("x", 3, 16, strides=[2, 2]))
    a, b = net.op("Split", x, net.const(np.int64([8, 8])), outputs=2, axis=1)
    x = silu(net.conv(net.op("Concat", a, b, silu(net.conv(b, 8, 8)), axis=1), 24, 16, 1))
    deep = silu(net.conv(net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), 16, 16))
    up = net.op("Resize", deep, "", net.const(np.float32([1, 1, 2, 2])), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    y = net.conv(net.op("Concat", up, x, axis=1), 32, 6, 1)
    net.nodes[-1].output[0] = "boxes"
    net.op("Sigmoid", "boxes")
    net.nodes[-1].output[0] = "scores"
    shape = ["N", 6, 16, 16]
    return net.model({"x": ["N", 3, 32, 32]}, {"boxes": shape, "scores": shape})


def foreign_operator(rng):
    """An operator of another domain in the middle: it rides along."""
    net = Net(rng, 13)
    x = net.op("Relu", net.conv_norm("x", 3, 8))
    x = net.op("QuickGelu", net.conv(x, 8, 8), domain="com.microsoft", alpha=1.702)
    net.classifier(net.op("Relu", net.conv(x, 8, 8)), 8, 4)
    net.nodes[-1].output[0] = "y"
    return net.model({"x": ["N", 3, 16, 16]}, {"y": ["N", 4]}, domains=["com.microsoft"])


def lstm(rng):
    net = Net(rng, 14)
    weight = lambda *shape: net.const(net.rng.uniform(-0.3, 0.3, shape))
    y = net.op("LSTM", "x", weight(1, 64, 12), weight(1, 64, 16), weight(1, 128), outputs=2, hidden_size=16)[1]
    y = net.op("Squeeze", y, net.const(np.int64([0])))
    return finish(net, net.gemm(y, 16, 5), {"x": ["T", "N", 12]}, ["N", 5])


def plain(*shape):
    return lambda rng, index: {"x": rng.standard_normal(shape).astype(np.float32)}


CASES = [
    # The pool of a few pixels takes as long in float, where it adds no noise; in integers it is seen in the digits.
    Case("residual_cnn", residual_cnn, pictures(3, 48),
         fused={"QLinearConv": 6, "QLinearAdd": 2, "QGemm": 1}, sqnr=32),
    Case("depthwise_cnn", depthwise_cnn, pictures(3, 32, batch=2),
         fused={"QLinearConv": 8, "QLinearAdd": 2, "QGemm": 1}, sqnr=20),
    Case("conv_1d", conv_1d, lambda rng, index: {"x": smooth(rng, 1, 8, 24 + 4 * (index % 4))}, layout="npy",
         fused={"QLinearConv": 3, "QGemm": 1}, sqnr=18),
    Case("conv_3d", conv_3d, lambda rng, index: {"x": smooth(rng, 1, 2, 8, 8, 8)}, layout="pb",
         fused={"QLinearConv": 2, "QGemm": 1}, sqnr=30),
    Case("mlp", mlp, plain(4, 32), layout="npy", fused={MATMUL: 4}, sqnr=26),
    Case("transformer", transformer, transformer_feed, layout="npy-dirs", fused={MATMUL: 6}, floats=2, sqnr=24),
    Case("opset_7", opset_7, pictures(3, 16), layout="npy-dirs", fused={"QLinearConv": 2, MATMUL: 1}, sqnr=22),
    Case("opset_9", opset_9, pictures(3, 16), layout="pb", fused={"QLinearConv": 3, MATMUL: 1}, sqnr=22),
    Case("opset_11", opset_11, pictures(3, 16), layout="npy", fused={"QLinearConv": 2, MATMUL: 1}, sqnr=22),
    Case("opset_12", opset_12, pictures(3, 16), fused={"QLinearConv": 3, MATMUL: 1}, sqnr=22),
    Case("if_capture", if_capture, pictures(3, 16), fused={"QLinearConv": 2, MATMUL: 1}, floats=2, sqnr=20),
    Case("loop", loop, pictures(16, 16), fused={"QLinearConv": 1, MATMUL: 1}, floats=1, sqnr=22),
    Case("constant_weights", constant_weights, pictures(3, 16), fused={"QLinearConv": 3, MATMUL: 1}, sqnr=18),
    # A stem of three channels behind a float gate, and the depthwise convolution after it, are faster in float.
    Case("squeeze_excite", squeeze_excite, pictures(3, 96), fused={"QLinearConv": 3, MATMUL: 1}, floats=2, sqnr=16),
    Case("detector_neck", detector_neck, pictures(3, 32), fused={"QLinearConv": 4}, floats=1, sqnr=20),
    Case("foreign_operator", foreign_operator, pictures(3, 16), floats=4, sqnr=24),
    Case("lstm", lstm, plain(7, 1, 12), layout="npy", floats=1, sqnr=22),
]  # fmt: skip
