"""The models of the benchmarks: the size and form of well-known nets, with random weights."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


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


def conv(net, x, inputs, outputs, kernel=1, stride=1, group=1):
    depth = inputs // group * kernel * kernel
    weight, bias = net.random(outputs, inputs // group, kernel, kernel, depth=depth), net.random(outputs)
    window = dict(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[kernel // 2] * 4)
    return net.op("Conv", x, weight, bias, group=group, **window)


def image_input():
    return [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])]


def random_image(rng):
    return {"image": rng.standard_normal((1, 3, 224, 224)).astype(np.float32)}


def mobilenet(path):
    """Inverted residuals as in MobileNetV2, batch normalization folded into the convolutions as exporters do."""
    net = Net()
    low, high = net.constant(np.float32(0)), net.constant(np.float32(6))
    relu6 = lambda x: net.op("Clip", x, low, high)
    x, channels = relu6(conv(net, "image", 3, 32, 3, 2)), 32
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for factor, outputs, count, first in blocks:
        for block in range(count):
            stride, hidden = first if not block else 1, factor * channels
            y = relu6(conv(net, x, channels, hidden)) if factor > 1 else x
            y = relu6(conv(net, y, hidden, hidden, 3, stride, hidden))
            y = conv(net, y, hidden, outputs)
            x = net.op("Add", y, x) if stride == 1 and channels == outputs else y
            channels = outputs
    x = relu6(conv(net, x, channels, 1280))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    y = net.op("Gemm", x, net.random(1000, 1280), net.random(1000), transB=1)
    net.save(path, image_input(), y, [1, 1000])
    return random_image


def chain(path, nodes, width=8):
    """So many nodes: convolutions of few channels, each with its activation."""
    net, x = Net(), "image"
    for _ in range(nodes // 2):
        x = net.op("Relu", conv(net, x, width, width))
    shape = [1, width, 8, 8]
    net.save(path, [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)], x, shape)
    return lambda rng: {"image": rng.standard_normal(shape).astype(np.float32)}


def stack(path, matrices, width=4096):
    """So many products with matrices of 64 MB, which lie in a file beside the model."""
    net = Net()
    block = (net.rng.standard_normal((width, width)) * 0.02).astype(np.float32)
    x, beside = "x", path.with_suffix(".bin")
    with open(beside, "wb") as file:
        for index in range(matrices):
            weight = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=block.shape)
            weight.data_location = TensorProto.EXTERNAL
            for key, value in {"location": beside.name, "offset": file.tell(), "length": block.nbytes}.items():
                weight.external_data.add(key=key, value=str(value))
            file.write(block)
            net.weights.append(weight)
            x = net.op("MatMul", x, weight.name)
    shape = [1, width]
    net.save(path, [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], x, shape)
    return beside


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
    net.save(path, image_input(), y, [1, 1000])
    return random_image


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


def samples(draw, directory, count):
    """So many samples, as files."""
    rng = np.random.default_rng(1)
    for index in range(count):
        (directory / f"{index:04}").mkdir(parents=True)
        for key, array in draw(rng).items():
            np.save(directory / f"{index:04}" / f"{key}.npy", array)


def feeds(directory):
    """The samples in a directory, in order."""
    found = sorted(d for d in directory.iterdir() if d.is_dir())
    return [{file.stem: np.load(file) for file in sorted(d.glob("*.npy"))} for d in found]
