"""Gradients by PyTorch, written to torch_gradients.json: the reference of tests/gradients.rs.

    python tests/data/torch_gradients.py        (torch 2.x, CPU)

Every case names an ONNX operator with its attributes and inputs and holds, for one random upstream gradient, the
gradient by each input that has one.
"""

import json
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(1)
torch.set_default_dtype(torch.float64)
cases = []


def rounded(t):
    return {"shape": list(t.shape), "data": [float(f"{v:.9g}") for v in t.detach().flatten().tolist()]}


def case(op, version, attributes, inputs, forward, constants=()):
    """`constants` are inputs without gradient, put after the others."""
    leaves = [None if x is None else torch.tensor(rounded(x)["data"]).reshape(x.shape).requires_grad_() for x in inputs]
    outputs = forward(*[x for x in leaves if x is not None])
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.tensor(rounded(torch.randn_like(y))["data"]).reshape(y.shape) for y in outputs]
    real = [x for x in leaves if x is not None]
    grads = iter(torch.autograd.grad(outputs, real, upstream))
    cases.append({
        "op": op, "version": version, "attributes": attributes,
        "inputs": [None if x is None else rounded(x) for x in leaves]
        + [{"shape": [len(c)], "ints": list(c)} for c in constants],
        "outputs": [rounded(y) for y in outputs],
        "upstream": [rounded(u) for u in upstream],
        "gradients": [None if x is None else rounded(next(grads)) for x in leaves],
    })


def r(*shape, scale=1.0):
    return torch.randn(*shape) * scale


case("Conv", 17, {"pads": [1, 1, 1, 1], "strides": [2, 2]}, [r(1, 3, 5, 5), r(2, 3, 3, 3), r(2)],
     lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1))
case("Conv", 17, {"pads": [1, 1, 1, 1], "group": 3}, [r(1, 3, 4, 4), r(3, 1, 3, 3), r(3)],
     lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=3))
case("Conv", 17, {"pads": [2, 2, 2, 2], "dilations": [2, 2], "group": 2}, [r(1, 4, 5, 4), r(2, 2, 3, 3)],
     lambda x, w: F.conv2d(x, w, padding=2, dilation=2, groups=2))
case("ConvTranspose", 17, {"pads": [1, 1, 1, 1], "strides": [2, 2], "output_padding": [1, 1]},
     [r(1, 2, 3, 3), r(2, 3, 3, 3), r(3)],
     lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, padding=1, output_padding=1))
case("Gemm", 17, {"transB": 1}, [r(3, 4), r(2, 4), r(2)], F.linear)
case("MatMul", 17, {}, [r(2, 1, 3, 4), r(3, 4, 2)], torch.matmul)
case("Einsum", 17, {"equation": "bij,bkj->bik"}, [r(2, 3, 4), r(2, 2, 4)],
     lambda a, b: torch.einsum("bij,bkj->bik", a, b))
case("MaxPool", 17, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [r(1, 2, 5, 5)],
     lambda x: F.max_pool2d(x, 3, 2, 1))
case("AveragePool", 17, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1},
     [r(1, 2, 5, 5)], lambda x: F.avg_pool2d(x, 3, 2, 1))
case("Softmax", 17, {"axis": -1}, [r(2, 3, 4)], lambda x: F.softmax(x, -1))
case("LogSoftmax", 17, {"axis": 1}, [r(2, 3, 4)], lambda x: F.log_softmax(x, 1))
case("LayerNormalization", 17, {"axis": -1}, [r(2, 3, 5), r(5), r(5)],
     lambda x, w, b: F.layer_norm(x, (5,), w, b, eps=1e-5))
case("GroupNormalization", 21, {"num_groups": 2}, [r(2, 4, 3), r(4), r(4)],
     lambda x, w, b: F.group_norm(x, 2, w, b, eps=1e-5))
case("InstanceNormalization", 17, {}, [r(2, 3, 5), r(3), r(3)],
     lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=1e-5))
case("PRelu", 17, {}, [r(2, 3, 4), r(3, 1)], lambda x, w: F.prelu(x, w.flatten()))
for op, version, attributes, f in [
    ("Relu", 14, {}, F.relu),
    ("LeakyRelu", 16, {"alpha": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
    ("Sigmoid", 13, {}, torch.sigmoid),
    ("Tanh", 13, {}, torch.tanh),
    ("HardSwish", 14, {}, F.hardswish),
    ("HardSigmoid", 6, {"alpha": 1 / 6, "beta": 0.5}, F.hardsigmoid),
    ("Gelu", 20, {}, F.gelu),
    ("Gelu", 20, {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("Erf", 13, {}, torch.erf),
    ("Mish", 18, {}, F.mish),
    ("Elu", 6, {"alpha": 1.0}, F.elu),
]:
    case(op, version, attributes, [r(24, scale=3.0)], f)
case("Resize", 18, {"mode": "linear"}, [r(1, 1, 3, 4), None, None],
     lambda x: F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=False), [(1, 1, 5, 7)])
case("Resize", 18, {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, [r(1, 1, 3, 4), None, None],
     lambda x: F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=True), [(1, 1, 5, 7)])
case("Gather", 17, {"axis": 0}, [r(5, 3)], lambda w: F.embedding(torch.tensor([0, 4, 4, 1]), w), [(0, 4, 4, 1)])
case("DepthToSpace", 17, {"blocksize": 2, "mode": "CRD"}, [r(1, 8, 2, 2)], lambda x: F.pixel_shuffle(x, 2))


def reorder(t, order):
    """PyTorch's gates in ONNX's order."""
    return torch.cat([t.chunk(len(order))[i] for i in order])


def recurrent(kind, order, hidden=3, size=4):
    module = kind(size, hidden)
    gates = len(order)

    def forward(x, w, rec, b, *states):
        back = [order.index(i) for i in range(gates)]
        bw, br = b[0].chunk(2)
        own = {"weight_ih_l0": reorder(w[0], back), "weight_hh_l0": reorder(rec[0], back),
               "bias_ih_l0": reorder(bw, back), "bias_hh_l0": reorder(br, back)}
        state = states[0] if len(states) == 1 else tuple(states)
        y, last = torch.func.functional_call(module, own, (x, state))
        last = last if isinstance(last, tuple) else (last,)
        return (y.unsqueeze(1), *last)

    shapes = [(5, 2, size), (1, gates * hidden, size), (1, gates * hidden, hidden), (1, 2 * gates * hidden)]
    return [r(*s, scale=0.5) for s in shapes], forward


inputs, forward = recurrent(torch.nn.LSTM, [0, 3, 1, 2])
case("LSTM", 14, {"hidden_size": 3}, inputs + [None, r(1, 2, 3), r(1, 2, 3)], forward)
inputs, forward = recurrent(torch.nn.GRU, [1, 0, 2])
case("GRU", 14, {"hidden_size": 3, "linear_before_reset": 1}, inputs + [None, r(1, 2, 3)], forward)

# A learned step size (LSQ) with a zero point, in single precision: the pair of QuantizeLinear and DequantizeLinear.
x = torch.tensor([-3.0, -1.3, -0.26, -0.1, 0.0, 0.2, 0.74, 1.0, 2.6, 9.0], dtype=torch.float32).requires_grad_()
scale = torch.tensor([0.021], dtype=torch.float32).requires_grad_()
zero = torch.tensor([100.0], dtype=torch.float32).requires_grad_()
y = torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, 0, 255, 1.0)
up = torch.tensor(rounded(torch.randn(10))["data"], dtype=torch.float32)
cases.append({
    "op": "LearnedStep", "version": 17, "attributes": {}, "inputs": [rounded(t) for t in (x, scale, zero)],
    "outputs": [rounded(y)], "upstream": [rounded(up)],
    "gradients": [rounded(g) for g in torch.autograd.grad(y, (x, scale, zero), up)],
})

path = pathlib.Path(__file__).with_name("torch_gradients.json")
path.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
print(len(cases), "cases,", path.stat().st_size, "bytes")
