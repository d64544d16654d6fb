"""Hostile and odd models and data: whatever they hold, qonnx ends with a valid model or with one clear line.

    python tests/hostile.py QONNX [--only CATEGORY_OR_NAME] [--keep DIR] [--peer]

QONNX is the built binary. Every case is a model (often broken) and what is expected of it: `reject`, `accept` or
`either`. It is run under limits of time and memory. Exit status 0 must leave a model that onnx.checker passes and ONNX
Runtime loads wherever it loads the source; what is accepted must compute what the source computes there. Anything else
must be exit status 1 with one line that begins with `error: ` and an output that was there before left untouched. No case
may leave another file behind. With --peer, ONNX Runtime's quantize_static gets the same models. The last lines are a table
by category; the exit status is 1 if a case of qonnx failed.
"""

import argparse
import collections
import multiprocessing
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

SECONDS, BYTES = 20, 2 << 30
LEVEL = ort.GraphOptimizationLevel
CASES = []
OPSET = helper.make_opsetid("", 17)
F = TensorProto.FLOAT


class Case:
    def __init__(self, category, name, expect, model, files=None, arguments=(), calib=None):
        self.category, self.name, self.expect = category, name, expect
        self.model = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        self.files, self.arguments, self.calib = files or {}, list(arguments), calib


def case(*arguments, **more):
    CASES.append(Case(*arguments, **more))


def info(name, shape, kind=F):
    return helper.make_tensor_value_info(name, kind, shape)


def tensor(name, array):
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def random(*shape, seed=0, scale=1.0):
    return (np.random.RandomState(seed + sum(shape)).randn(*shape) * scale).astype(np.float32)


def model(nodes, inputs, outputs, constants=(), opsets=(OPSET,), functions=(), ir=8, **more):
    graph = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), list(constants), **more)
    made = helper.make_model(graph, opset_imports=list(opsets), ir_version=ir, functions=list(functions))
    open_ended = [o for o in made.graph.output if not o.type.tensor_type.HasField("shape")]
    if open_ended:  # onnx.checker wants shapes
        try:
            inferred = {o.name: o for o in onnx.shape_inference.infer_shapes(made, data_prop=True).graph.output}
        except Exception:  # a broken model, then
            return made
        for output in open_ended:
            output.CopyFrom(inferred[output.name])
    return made


def node(kind, inputs, outputs, **attributes):
    """Names with a space between them; two spaces leave an input out."""
    return helper.make_node(kind, inputs.split(" ") if inputs else [], outputs.split(), **attributes)


def convolution(weight=None, bias=None, extra=(), outputs=("y",), inputs=(), **attributes):
    """A 3x3 convolution of x [1,3,8,8] into y, and more nodes behind it."""
    weight = random(4, 3, 3, 3, scale=0.3) if weight is None else weight
    constants = [tensor("w", weight)] + ([tensor("b", bias)] if bias is not None else [])
    attributes = {"pads": [1] * 4, **attributes}
    first = helper.make_node("Conv", ["x", "w"] + (["b"] if bias is not None else []), ["c" if extra else "y"], name="conv",
                             **attributes)  # fmt: skip
    return [first, *extra], [info("x", [1, 3, 8, 8]), *inputs], [info(o, None) for o in outputs], constants


GOOD = model(*convolution(bias=random(4)))


# ---- bytes ---------------------------------------------------------------------------------------------------------


def varint(value):
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number, payload, wire=2):
    return varint(number << 3 | wire) + (varint(len(payload)) + payload if wire == 2 else payload)


def wire_cases():
    small = model([node("Relu", "x", "y")], [info("x", [2])], [info("y", [2])]).SerializeToString()
    for end in range(len(small)):
        case("wire", f"truncated at {end}", "either", small[:end])
    good = GOOD.SerializeToString()
    for end in range(0, len(good), 13):
        case("wire", f"longer one truncated at {end}", "either", good[:end])
    rng = np.random.RandomState(1)
    for i in range(150):
        spoilt = bytearray(good if i % 2 else small)
        for _ in range(1 + i % 3):
            spoilt[rng.randint(len(spoilt))] ^= 1 << rng.randint(8)
        case("wire", f"bits flipped {i}", "either", bytes(spoilt))
    for i in range(40):
        case("wire", f"random bytes {i}", "either", rng.bytes(rng.randint(1, 400)))
    case("wire", "empty", "reject", b"")
    case("wire", "over-long varint", "reject", field(1, b"\x88" + b"\x80" * 12 + b"\x00", 0) + small)
    case("wire", "non-canonical varint", "either", b"\x08\x88\x80\x80\x00" + small[2:])
    case("wire", "graph as a number", "reject", field(7, b"\x05", 0) + field(8, field(2, b"\x11", 0)))
    case("wire", "length past the end", "reject", small[:4] + b"\x3a\xff\xff\xff\xff\x0f")
    case("wire", "length of 2^63", "reject", b"\x3a" + varint(1 << 63) + small)
    group = b"\x0b" * 5000 + b"\x0c" * 5000
    case("wire", "groups nested 5000 deep", "either", small + group)
    nested = b""
    for _ in range(400):
        nested = field(1, field(5, field(6, field(1, nested) if nested else b"")))
    case("wire", "subgraphs nested 400 deep", "reject", field(1, b"\x08", 0) + field(7, nested) + field(8, field(2, b"\x11", 0)))
    split = small + model([node("Relu", "x", "z")], [], [info("z", [2])]).SerializeToString()
    case("wire", "two graphs merged", "either", split)
    case("wire", "the same model twice", "reject", small + small)
    case("wire", "unknown fields", "either", small + field(2000, b"hello") + field(2001, b"\x07", 0))
    bad_name = small.replace(b"\x01x", b"\x01\xff")
    case("wire", "names that are not UTF-8", "accept", bad_name)
    for title, content in {
        "PyTorch archive": b"PK\x03\x04" + b"archive/data.pkl" * 30,
        "pickle": b"\x80\x02}q\x00(X\x04\x00\x00\x00dataq\x01" * 9,
        "gzip": b"\x1f\x8b\x08\x00" + bytes(200),
        "JSON": b'{"model": [1, 2, 3]}',
        "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n",
        "HTML": b"<!DOCTYPE html><html></html>",
        "zeros": bytes(4096),
        "TFLite": b"\x1c\x00\x00\x00TFL3" + bytes(100),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    }.items():
        case("wire", title, "reject", content)
    head = field(1, b"\x08", 0) + field(8, field(2, b"\x11", 0))
    for title, item, count in [("nodes", field(1, b""), 4_000_000), ("initializers", field(5, b""), 1_000_000),
                               ("values", field(13, b""), 4_000_000), ("inputs", field(11, b""), 4_000_000)]:  # fmt: skip
        case("wire", f"megabytes of empty {title}", "reject", head + field(7, item * count))
    case("wire", "megabytes of empty attributes", "reject", head + field(7, field(1, field(5, b"") * 4_000_000)))
    case("wire", "megabytes of empty metadata", "either", head + field(14, b"") * 3_000_000)
    case("wire", "dims packed and in pieces", "accept", repacked())


def repacked():
    """The good model with every dims field of its initializers packed in two chunks."""
    m = onnx.ModelProto.FromString(GOOD.SerializeToString())
    initializers = [t.SerializeToString() for t in m.graph.initializer]
    del m.graph.initializer[:]
    parts = []
    for raw, original in zip(initializers, GOOD.graph.initializer):
        t = onnx.TensorProto.FromString(raw)
        sizes = list(t.dims)
        del t.dims[:]
        packed = field(1, b"".join(varint(d) for d in sizes[:1])) + field(1, b"".join(varint(d) for d in sizes[1:]))
        parts.append(field(5, packed + t.SerializeToString()))
    graph = m.graph.SerializeToString() + b"".join(parts)
    return field(1, b"\x08", 0) + field(7, graph) + field(8, field(2, b"\x11", 0) + field(1, b""))


# ---- models --------------------------------------------------------------------------------------------------------


def raw_tensor(name, kind, dims, **payload):
    t = TensorProto(name=name, data_type=kind, dims=dims)
    for key, value in payload.items():
        if key == "raw_data":
            t.raw_data = value
        else:
            getattr(t, key).extend(value)
    return t


def model_cases():
    x, y = info("x", [4]), info("y", [4])
    add = lambda weight: model([node("Add", "x w", "y")], [x], [y], [weight])
    reject = {
        "cycle of two": model([node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")], [x], [y]),
        "cycle of itself": model([node("Add", "x y", "y")], [x], [y]),
        "a value made twice": model([node("Relu", "x", "y"), node("Abs", "x", "y")], [x], [y]),
        "an input made by a node": model([node("Relu", "x", "x"), node("Relu", "x", "y")], [x], [y]),
        "two initializers of one name": model([node("Add", "x w", "y")], [x], [y], [tensor("w", random(4))] * 2),
        "two inputs of one name": model([node("Relu", "x", "y")], [x, x], [y]),
        "dangling input": model([node("Add", "x nowhere", "y")], [x], [y]),
        "dangling output": model([node("Relu", "x", "z")], [x], [y]),
        "no opset": model([node("Relu", "x", "y")], [x], [y], opsets=[]),
        "negative dim": add(raw_tensor("w", F, [-4], float_data=[1, 2, 3, 4])),
        "dims that overflow": add(raw_tensor("w", F, [1 << 62, 1 << 62], float_data=[1])),
        "dims of a petabyte": add(raw_tensor("w", F, [1 << 40, 256], raw_data=bytes(16))),
        "payload too short": add(raw_tensor("w", F, [4], raw_data=bytes(12))),
        "payload too long": add(raw_tensor("w", F, [4], raw_data=bytes(20))),
        "float payload too short": add(raw_tensor("w", F, [4], float_data=[1, 2])),
        "payload of another type": add(raw_tensor("w", F, [4], int64_data=[1, 2, 3, 4])),
        "two payloads": add(raw_tensor("w", F, [4], raw_data=bytes(16), float_data=[1, 2, 3, 4])),
        "no payload": add(raw_tensor("w", F, [4])),
        "unknown element type": add(raw_tensor("w", 99, [4], raw_data=bytes(16))),
        "undefined element type": add(raw_tensor("w", 0, [4], raw_data=bytes(16))),
        "opset 0": model([node("Relu", "x", "y")], [x], [y], opsets=[helper.make_opsetid("", 0)]),
        "opset of the far future": model([node("Relu", "x", "y")], [x], [y], opsets=[helper.make_opsetid("", 4000)]),
        "negative opset": model([node("Relu", "x", "y")], [x], [y], opsets=[helper.make_opsetid("", -3)]),
        "shapes that do not fit": model([node("MatMul", "x w", "y")], [info("x", [2, 4])], [info("y", None)], [tensor("w", random(3, 5))]),
        "conv channels that do not fit": model(*convolution(random(4, 2, 3, 3))),
        "conv group 0": model(*convolution(group=0)),
        "conv stride 0": model(*convolution(strides=[0, 0])),
        "conv stride negative": model(*convolution(strides=[-1, 1])),
        "conv pads too few": model(*convolution(pads=[1])),
        "conv pads of exabytes": model(*convolution(pads=[1 << 60] * 4)),
        "transpose of no axis": model([node("Transpose", "x", "y", perm=[7])], [x], [info("y", None)]),
        "permutation twice the same": model([node("Transpose", "x", "y", perm=[0, 0])], [info("x", [2, 2])], [info("y", None)]),
    }  # fmt: skip
    for title, m in reject.items():
        # What is wrong inside an operator may also be left to the runtime.
        soft = any(word in title for word in ("fit", "conv", "transpose", "permutation", "far future", "undefined"))
        case("model", title, "either" if soft else "reject", m)
    loop_body = helper.make_graph([node("Identity", "c", "d")], "b", [info("i", [], 7), info("c", [], 9)], [info("d", [], 9)])
    endless = helper.make_node("Loop", ["", "t"], [], body=loop_body)
    case("model", "a loop without end over constants", "either",
         model([endless, node("Relu", "x", "y")], [x], [y], [tensor("t", np.array(True))]))  # fmt: skip

    # Functions.
    def function(name, calls, inner="p"):
        return helper.make_function("f", name, ["a"], ["z"], calls, [OPSET, helper.make_opsetid("f", 1)])

    domain = [OPSET, helper.make_opsetid("f", 1)]
    call = lambda name, i, o: helper.make_node(name, [i], [o], domain="f")
    case("model", "function that calls itself", "reject",
         model([call("A", "x", "y")], [x], [y], opsets=domain, functions=[function("A", [call("A", "a", "z")])]))  # fmt: skip
    pair = [function("A", [call("B", "a", "z")]), function("B", [call("A", "a", "z")])]
    case("model", "functions that call each other", "reject", model([call("A", "x", "y")], [x], [y], opsets=domain, functions=pair))
    typed = model([node("Add", "x w", "y")], [x, info("w", [4], TensorProto.INT16)], [y], [tensor("w", random(4))])
    case("model", "a default of another type than its input", "reject", typed)
    # Whoever expands the first and counts the last does not end.
    twice = [function("A", [call("B", "a", "m"), call("B", "m", "z")]), function("B", [call("A", "a", "z")]), function("B", [node("Relu", "a", "z")])]
    case("model", "a function that is defined twice", "reject", model([call("A", "x", "y")], [x], [y], opsets=domain, functions=twice))
    chain = [function(f"L{i}", [call(f"L{i + 1}", "a", "z")]) for i in range(3000)] + [function("L3000", [node("Relu", "a", "z")])]
    case("model", "chain of 3000 functions", "either", model([call("L0", "x", "y")], [x], [y], opsets=domain, functions=chain))
    laughs = [function(f"L{i}", [call(f"L{i + 1}", "a", "m"), call(f"L{i + 1}", "m", "z")]) for i in range(40)]
    laughs.append(function("L40", [node("Relu", "a", "z")]))
    case("model", "a billion laughs of functions", "reject", model([call("L0", "x", "y")], [x], [y], opsets=domain, functions=laughs))
    case("model", "a function", "accept",
         model([call("A", "x", "y")], [x], [y], opsets=domain, functions=[function("A", [node("Relu", "a", "z")])]))  # fmt: skip

    # If within If.
    def nested(depth):
        inner = [node("Relu", "x", f"o{depth}")]
        for level in range(depth, 0, -1):
            branch = lambda: helper.make_graph(inner, f"b{level}", [], [info(f"o{level}", None)])
            inner = [helper.make_node("If", ["t"], [f"o{level - 1}"], then_branch=branch(), else_branch=branch())]
        inner.append(node("Identity", "o0", "y"))
        return model(inner, [x], [y], [tensor("t", np.array(True))])

    for depth in (3, 8):
        case("model", f"If nested {depth} deep", "accept", nested(depth))
    case("model", "If nested 14 deep", "either", nested(14))

    one = lambda kind, dtype, *more: model([node(kind, "x", "y")], [info("x", [4], dtype)], [info("y", [4], dtype)], *more)
    accept = {
        "no nodes": model([], [x], [x]),
        "an input passed through": model([node("Identity", "x", "y")], [x], [y]),
        "an initializer as output": model([node("Relu", "x", "y")], [x], [y, info("w", [3])], [tensor("w", random(3))]),
        "an initializer as input": model([node("Add", "x w", "y")], [x, info("w", [4])], [y], [tensor("w", random(4))]),
        "the same input twice": model([node("Mul", "x x", "y")], [x], [y]),
        "empty names of nodes": model([node("Relu", "x", "a"), node("Neg", "a", "y")], [x], [y]),
        "double": one("Neg", 11), "half": one("Neg", 10), "int64": one("Neg", 7), "int32": one("Abs", 6), "uint8": one("Identity", 2),
        "bool": one("Not", 9),
        "zero-size input": model([node("Relu", "x", "y")], [info("x", [0, 3])], [info("y", [0, 3])]),
        "zero-size weight": model([node("Concat", "x w", "y", axis=0)], [x], [y], [tensor("w", random(0))]),
        "scalars": model([node("Add", "x w", "y")], [info("x", [])], [info("y", [])], [tensor("w", np.float32(3))]),
        "unused initializer": model([node("Relu", "x", "y")], [x], [y], [tensor("w", random(9))]),
        "unused nodes": model([node("Relu", "x", "y"), node("Exp", "x", "z")], [x], [y]),
        "names as quantizers make them": model(
            [node("MatMul", "x_QuantizeLinear w_quantized", "y")], [info("x_QuantizeLinear", [3, 4])], [info("y", [3, 5])],
            [tensor("w_quantized", random(4, 5))]),
        "names with spaces and newlines": model(
            [helper.make_node("MatMul", ["x \n\t\x1b[31m", "w/'\""], ["ÿ→y"], name="a\nb")], [info("x \n\t\x1b[31m", [3, 4])],
            [info("ÿ→y", [3, 5])], [tensor("w/'\"", random(4, 5))]),
        "names of 10000 letters": model([node("MatMul", "x " + "w" * 10000, "y")], [info("x", [3, 4])], [info("y", [3, 5])],
                                        [tensor("w" * 10000, random(4, 5))]),
        "rank 12": model([node("Relu", "x", "y")], [info("x", [1] * 11 + [2])], [info("y", [1] * 11 + [2])]),
        "symbolic dims": model([node("MatMul", "x w", "y")], [info("x", ["n", 4])], [info("y", ["n", 5])], [tensor("w", random(4, 5))]),
        "no shapes": model([node("MatMul", "x w", "y")], [info("x", ["a", "b"])], [info("y", None)], [tensor("w", random(4, 5))]),
        "wide fan-out": model(
            [node("MatMul", "x w", "c")] + [node("Relu", "c", f"r{i}") for i in range(4000)]
            + [helper.make_node("Sum", [f"r{i}" for i in range(4000)], ["y"])],
            [info("x", [3, 4])], [info("y", [3, 5])], [tensor("w", random(4, 5))]),
        "deep chain": model(
            [node("Relu", "x", "v0")] + [node("Neg" if i % 2 else "Relu", f"v{i}", f"v{i + 1}") for i in range(5000)]
            + [node("Identity", "v5000", "y")], [x], [y]),
    }  # fmt: skip
    for title, m in accept.items():
        if m is not None:
            case("model", title, "accept", m)
    strange = node("Relu", "x", "y")
    strange.attribute.append(helper.make_attribute("colour", "blue"))
    case("model", "an attribute that Relu does not have", "either", model([strange], [x], [y]))
    case("model", "an operator that nobody knows", "either",
         model([node("Frobnicate", "x", "y")], [x], [y]))  # fmt: skip
    case("model", "a domain that nobody knows", "either",
         model([helper.make_node("Relu", ["x"], ["y"], domain="com.example")], [x], [y], opsets=[OPSET, helper.make_opsetid("com.example", 1)]))  # fmt: skip
    case("model", "nodes out of order", "either", model([node("Relu", "a", "y"), node("Neg", "x", "a")], [x], [y]))

    # Every payload of every type.
    payloads = {
        "float16 in int32_data": (10, {"int32_data": np.float16([1, -2, 0.5, 3]).view(np.uint16).astype(int)}),
        "bfloat16 in int32_data": (16, {"int32_data": [0x3F80, 0xC000, 0x3F00, 0x4040]}),
        "uint8 in int32_data": (2, {"int32_data": [1, 255, 0, 7]}),
        "int8 in int32_data": (3, {"int32_data": [1, -128, 0, 7]}),
        "bool in int32_data": (9, {"int32_data": [1, 0, 1, 1]}),
        "uint32 in uint64_data": (12, {"uint64_data": [1, 2, 3, 4294967295]}),
        "uint64": (13, {"uint64_data": [1, 2, 3, 18446744073709551615]}),
        "int64": (7, {"int64_data": [1, -2, 3, 4]}),
        "double": (11, {"double_data": [1, -2, 3, 4]}),
        "float": (1, {"float_data": [1, -2, 3, 4]}),
        "int4 packed": (22, {"raw_data": b"\x21\x43"}),
        "uint4 in int32_data": (21, {"int32_data": [0x21, 0x43]}),
        "int8 beyond its range": (3, {"int32_data": [1, 1000, 0, 7]}),
        "float8": (17, {"raw_data": b"\x01\x02\x03\x04"}),
    }
    for title, (kind, payload) in payloads.items():
        t = raw_tensor("w", kind, [4], **payload)
        m = model([node("Relu", "x", "y"), node("Identity", "w", "z")], [x], [y, info("z", [4], kind)], [t],
                  opsets=[helper.make_opsetid("", 21)], ir=10)  # fmt: skip
        case("model", f"payload {title}", "either" if "beyond" in title or "8" in title[:6] else "accept", m)
    sparse = helper.make_sparse_tensor(tensor("s", np.float32([3, 5])), tensor("i", np.int64([0, 2])), [4])
    m = model([node("Add", "x s", "y")], [x], [y])
    m.graph.sparse_initializer.append(sparse)
    case("model", "a sparse initializer", "either", m)
    bad = helper.make_sparse_tensor(tensor("s", np.float32([3, 5])), tensor("i", np.int64([0, 99])), [4])
    m = model([node("Add", "x s", "y")], [x], [y])
    m.graph.sparse_initializer.append(bad)
    case("model", "a sparse initializer with an index outside", "either", m)

    # Numbers.
    for title, value in {"NaN": np.nan, "infinity": np.inf, "a denormal": 1e-42, "zero": 0.0, "3e38": 3e38, "-3e38": -3e38}.items():
        weight = random(4, 3, 3, 3)
        weight[1, 0, 0, 0] = value
        case("numbers", f"one weight is {title}", "either" if not np.isfinite(value) else "accept", model(*convolution(weight)))
        case("numbers", f"all weights are {title}", "either" if not abs(value) < 1e30 else "accept",
             model(*convolution(np.full((4, 3, 3, 3), value, np.float32))))  # fmt: skip
        case("numbers", f"the bias is {title}", "either" if not abs(value) < 1e30 else "accept",
             model(*convolution(bias=np.full(4, value, np.float32))))  # fmt: skip
    for title, kind, a, b in [("int64 min / -1", 7, np.iinfo(np.int64).min, -1), ("int32 min / -1", 6, np.iinfo(np.int32).min, -1),
                              ("int64 / 0", 7, 5, 0)]:  # fmt: skip
        dtype = np.int64 if kind == 7 else np.int32
        for op in ("Div", "Mod"):
            nodes = [node(op, "a b", "c"), node("Cast", "c", "d", to=1), node("Add", "x d", "y")]
            m = model(nodes, [info("x", [1])], [info("y", [1])], [tensor("a", np.array([a], dtype)), tensor("b", np.array([b], dtype))])
            case("numbers", f"{op} {title}", "either", m)


def graph_cases():
    """Where a rewrite would change the meaning."""
    relu = node("Relu", "c", "y")
    norm = [tensor(n, v) for n, v in [("g", random(4)), ("be", random(4, seed=1)), ("m", random(4, seed=2)), ("v", np.abs(random(4, seed=3)) + 0.5)]]

    def add(title, built, constants=(), expect="accept", **more):
        nodes, inputs, outputs, own = built
        case("surgery", title, expect, model(nodes, inputs, outputs, [*own, *constants], **more))

    add("conv, relu", convolution(extra=[relu]))
    add("conv is an output before relu", convolution(extra=[relu], outputs=("y", "c")))
    add("conv read twice", convolution(extra=[node("Relu", "c", "r"), node("Sigmoid", "c", "s"), node("Add", "r s", "y")]))
    add("conv, norm", convolution(extra=[node("BatchNormalization", "c g be m v", "y")]), norm)
    add("conv is an output before norm", convolution(extra=[node("BatchNormalization", "c g be m v", "y")], outputs=("y", "c")), norm)
    add("norm in training mode", convolution(extra=[node("BatchNormalization", "c g be m v", "y rm rv", training_mode=1)]), norm)
    add("norm with a negative variance", convolution(extra=[node("BatchNormalization", "c g be m v", "y")]),
        norm[:3] + [tensor("v", np.float32([-1, 1, 1, 1]))], "either")  # fmt: skip
    add("norm of other channels", convolution(extra=[node("BatchNormalization", "c g be m v", "y")]), [tensor(n, random(5)) for n in ("g", "be", "m", "v")], "either")
    two = [node("Conv", "x w", "a", pads=[1] * 4), node("Relu", "a", "r"), node("Conv", "r w", "y", pads=[1] * 4)]
    case("surgery", "a weight shared by two", "accept", model(two, [info("x", [1, 3, 8, 8])], [info("y", None)], [tensor("w", random(3, 3, 3, 3))]))
    shared = [node("Conv", "x w b", "a", pads=[1] * 4), node("Conv", "x u b", "c", pads=[1] * 4), node("Add", "a c", "y")]
    weights = [tensor("w", random(4, 3, 3, 3)), tensor("u", random(4, 3, 3, 3, seed=5, scale=9)), tensor("b", random(4))]
    case("surgery", "a bias shared by two", "accept", model(shared, [info("x", [1, 3, 8, 8])], [info("y", None)], weights))
    tied = [node("Gather", "w i", "e"), node("MatMul", "e t", "m"), node("Transpose", "w", "tt", perm=[1, 0]), node("MatMul", "m tt", "y")]
    case("surgery", "an embedding tied to the last product", "accept",
         model(tied, [info("i", [1, 6], 7)], [info("y", None)], [tensor("w", random(16, 8)), tensor("t", random(8, 8))]))  # fmt: skip
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        nodes, inputs, outputs, constants = convolution(strides=[2, 2])
        del nodes[0].attribute[:]
        nodes[0].attribute.extend([helper.make_attribute("auto_pad", mode), helper.make_attribute("strides", [2, 2])])
        case("surgery", f"auto_pad {mode}", "accept", model(nodes, inputs, outputs, constants))
    add("clip with computed bounds", convolution(extra=[node("Clip", "c lo hi", "y")], inputs=[info("lo", []), info("hi", [])]))
    for title, low, high in [("above 0", 0.5, 6), ("below 0", -6, -0.5), ("turned around", 3, -3), ("NaN", np.nan, 1)]:
        add(f"clip {title}", convolution(extra=[node("Clip", "c lo hi", "y")]),
            [tensor("lo", np.float32(low)), tensor("hi", np.float32(high))], "either" if "NaN" in title or "turned" in title else "accept")  # fmt: skip
    gemm = lambda **a: model([node("Gemm", "x w b", "y", **a)], [info("x", [3, 4])], [info("y", None)], [tensor("w", random(4, 5)), tensor("b", random(5))])
    for title, attributes in {"alpha": {"alpha": 0.5}, "beta": {"beta": 0.25}, "beta 0": {"beta": 0.0}, "alpha and beta": {"alpha": 3.0, "beta": -1.0}}.items():
        case("surgery", f"gemm {title}", "accept", gemm(**attributes))
    m = model([node("Gemm", "x w b", "y", transA=1)], [info("x", [4, 3])], [info("y", None)], [tensor("w", random(4, 5)), tensor("b", random(3, 1))])
    case("surgery", "gemm transA, bias by row", "accept", m)
    masked = [node("MatMul", "x w", "s"), node("Add", "s mask", "a"), node("Softmax", "a", "y")]
    for value in (-np.inf, -3.4e38, -1e4):
        mask = np.where(np.arange(5) > 2, np.float32(value), np.float32(0)).astype(np.float32)
        case("surgery", f"a mask of {value:g}", "accept",
             model(masked, [info("x", [3, 4])], [info("y", None)], [tensor("w", random(4, 5)), tensor("mask", mask)]))  # fmt: skip
    dynamic = [node("MatMul", "x w", "s"), node("Shape", "s", "sh"), node("Slice", "sh z1 o1", "n"), node("Concat", "n minus", "to", axis=0), node("Reshape", "s to", "y")]
    constants = [tensor("w", random(4, 6)), tensor("z1", np.int64([0])), tensor("o1", np.int64([1])), tensor("minus", np.int64([-1]))]
    case("surgery", "reshape to what is computed", "accept", model(dynamic, [info("x", ["n", 2, 4])], [info("y", None)], constants))
    then = helper.make_graph([node("Conv", "x w", "p", pads=[1] * 4)], "t", [], [info("p", None)])
    other = helper.make_graph([node("Neg", "c", "q")], "e", [], [info("q", None)])
    branch = helper.make_node("If", ["k"], ["y"], then_branch=then, else_branch=other)
    built = convolution(extra=[node("ReduceSum", "c", "su", keepdims=0), node("Greater", "su ze", "k"), branch])
    add("names that branches capture", built, [tensor("ze", np.float32(0))])
    computed = [node("Add", "w0 w1", "w"), node("Conv", "x w", "y", pads=[1] * 4)]
    case("surgery", "a weight that is computed from constants", "accept",
         model(computed, [info("x", [1, 3, 8, 8])], [info("y", None)], [tensor("w0", random(4, 3, 3, 3)), tensor("w1", random(4, 3, 3, 3, seed=4))]))  # fmt: skip
    case("surgery", "a weight that is an input", "accept",
         model([node("Conv", "x w", "y", pads=[1] * 4)], [info("x", [1, 3, 8, 8]), info("w", [4, 3, 3, 3])], [info("y", None)]))  # fmt: skip
    case("surgery", "a weight in a Constant node", "accept",
         model([helper.make_node("Constant", [], ["w"], value=tensor("v", random(4, 3, 3, 3))), node("Conv", "x w", "y", pads=[1] * 4)],
               [info("x", [1, 3, 8, 8])], [info("y", None)]))  # fmt: skip
    residual = convolution(random(3, 3, 3, 3), extra=[node("Add", "c x", "y")])
    add("residual sum with the input", residual)
    add("concat with itself", convolution(extra=[node("Concat", "c c", "y", axis=1)]))
    add("pad then pool", convolution(extra=[node("Pad", "c p", "q"), node("MaxPool", "q", "y", kernel_shape=[2, 2])]), [tensor("p", np.int64([0, 0, 1, 1, 0, 0, 1, 1]))])
    add("pool of padding", convolution(extra=[node("AveragePool", "c", "y", kernel_shape=[3, 3], pads=[1] * 4)]))
    add("leaky relu with a negative slope", convolution(extra=[node("LeakyRelu", "c", "y", alpha=-0.5)]))
    add("division by what is computed", convolution(extra=[node("Abs", "c", "a"), node("Add", "a on", "d"), node("Div", "c d", "y")]), [tensor("on", np.float32(1))])
    add("conv without a name twice", convolution(extra=[helper.make_node("Conv", ["c", "w2"], ["y"], name="conv")]), [tensor("w2", random(2, 4, 1, 1))])
    grouped = model([node("Conv", "x w", "y", group=3)], [info("x", [1, 3, 8, 8])], [info("y", None)], [tensor("w", random(6, 1, 3, 3))])
    case("surgery", "depthwise with a multiplier", "accept", grouped)
    one_d = model([node("Conv", "x w", "y", dilations=[2])], [info("x", [1, 3, 20])], [info("y", None)], [tensor("w", random(6, 3, 3))])
    case("surgery", "dilated in one dimension", "accept", one_d)
    three_d = model([node("Conv", "x w", "y")], [info("x", [1, 2, 5, 5, 5])], [info("y", None)], [tensor("w", random(3, 2, 2, 2, 2))])
    case("surgery", "three dimensions", "accept", three_d)
    transposed = model([node("ConvTranspose", "x w", "y", strides=[2, 2], output_padding=[1, 1])], [info("x", [1, 3, 5, 5])], [info("y", None)], [tensor("w", random(3, 4, 3, 3))])
    case("surgery", "transposed", "accept", transposed)
    lstm = model([node("LSTM", "x w r b", "y yh", hidden_size=5)], [info("x", [7, 1, 3])], [info("y", None), info("yh", None)],
                 [tensor("w", random(1, 20, 3)), tensor("r", random(1, 20, 5)), tensor("b", random(1, 40))])  # fmt: skip
    case("surgery", "LSTM", "accept", lstm)
    vector = model([node("MatMul", "x w", "y")], [info("x", [4])], [info("y", None)], [tensor("w", random(4))])
    case("surgery", "product of vectors", "accept", vector)
    for opset in (7, 9, 10, 11, 12, 13, 15, 18, 20, 21, 22, 23):
        case("surgery", f"opset {opset}", "accept", model(*convolution(extra=[relu]), opsets=[helper.make_opsetid("", opset)], ir=min(10, 8 + (opset > 19))))


def random_cases(count=60):
    """Valid graphs of the operators that quantizers rewrite, wired at random."""
    for number in range(count):
        rng = np.random.RandomState(number)
        nodes, constants, serial = [], [], [0]

        def weight(*shape, scale=1.0, positive=False):
            serial[0] += 1
            value = rng.randn(*shape) * scale / np.sqrt(max(1, np.prod(shape[1:])))
            constants.append(tensor(f"w{serial[0]}", (np.abs(value) + 0.3 if positive else value).astype(np.float32)))
            return f"w{serial[0]}"

        def ints(*values):
            serial[0] += 1
            constants.append(tensor(f"i{serial[0]}", np.int64(values)))
            return f"i{serial[0]}"

        def op(kind, *inputs, **attributes):
            serial[0] += 1
            nodes.append(helper.make_node(kind, list(inputs), [f"v{serial[0]}"], name=f"n{serial[0]}", **attributes))
            return f"v{serial[0]}"

        if number % 3 < 2:  # pictures: [1, c, n, n]
            values = [("x", 3, 12)]
            for _ in range(rng.randint(3, 14)):
                x, c, n = values[rng.randint(len(values))] if rng.rand() < 0.4 else values[-1]
                choice, m = rng.randint(16), int(rng.choice([2, 4, 6]))
                same = [v for v in values if v[1:] == (c, n)]
                if choice < 4:
                    k = int(rng.choice([1, 3]))
                    bias = [weight(m)] if rng.rand() < 0.6 else []
                    y = op("Conv", x, weight(m, c, k, k, scale=float(rng.choice([0.5, 2, 10]))), *bias, pads=[k // 2] * 4)
                    y = {0: lambda y: y, 1: lambda y: op("Relu", y), 2: lambda y: op("Mul", y, op("Sigmoid", y))}[rng.randint(3)](y)
                    values.append((y, m, n))
                elif choice == 4:
                    values.append((op("Conv", x, weight(c, 1, 3, 3), group=c, pads=[1] * 4), c, n))
                elif choice == 5:
                    values.append((op("BatchNormalization", x, weight(c), weight(c), weight(c), weight(c, positive=True)), c, n))
                elif choice == 6:
                    values.append((op(str(rng.choice(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Neg", "Abs", "Elu"])), x), c, n))
                elif choice == 7:
                    values.append((op(str(rng.choice(["Add", "Mul", "Sub"])), x, same[rng.randint(len(same))][0]), c, n))
                elif choice == 8:
                    values.append((op(str(rng.choice(["Add", "Mul", "Div"])), x, weight(c, 1, 1, positive=True)), c, n))
                elif choice == 9:
                    others = [v for v in values if v[2] == n]
                    y, d, _ = others[rng.randint(len(others))]
                    if c + d < 20:
                        values.append((op("Concat", x, y, axis=1), c + d, n))
                elif choice == 10 and n % 2 == 0 and n > 3:
                    values.append((op(str(rng.choice(["MaxPool", "AveragePool"])), x, kernel_shape=[2, 2], strides=[2, 2]), c, n // 2))
                elif choice == 11:
                    gate = op("Conv", op("Relu", op("Conv", op("GlobalAveragePool", x), weight(2, c, 1, 1))), weight(c, 2, 1, 1))
                    values.append((op("Mul", x, op("Sigmoid", gate)), c, n))
                elif choice == 12 and n < 13:
                    sizes = tensor(f"s{serial[0]}", np.float32([1, 1, 2, 2]))
                    constants.append(sizes)
                    values.append((op("Resize", x, "", sizes.name, mode=str(rng.choice(["nearest", "linear"]))), c, n * 2))
                elif choice == 13 and c % 2 == 0:
                    y = op("Reshape", x, ints(1, 2, c // 2, n, n))
                    values.append((op("Reshape", op("Transpose", y, perm=[0, 2, 1, 3, 4]), ints(1, c, n, n)), c, n))
                elif choice == 14 and c > 1:
                    values.append((op("Slice", x, ints(0), ints(c - 1), ints(1)), c - 1, n))
                else:
                    values.append((op("Clip", x, *[tensor_name(constants, serial, v) for v in (0.0, 6.0)]), c, n))
            last = values[-1]
            outputs = [last[0]] if last[0] != "x" else [op("Relu", "x")]
            if rng.rand() < 0.5:
                flat = op("Flatten", op("GlobalAveragePool", outputs[0]))
                c = last[1] if last[0] != "x" else 3
                outputs.append(op("Gemm", flat, weight(5, c), weight(5), transB=1))
            inputs = [info("x", [1, 3, 12, 12])]
        else:  # tokens: [1, t, d]
            t, d = 7, 8
            x = "x"
            for _ in range(rng.randint(1, 4)):
                choice = rng.randint(4)
                if choice == 0:
                    q, k, v = (op("Add", op("MatMul", x, weight(d, d)), weight(d)) for _ in range(3))
                    heads = lambda y, perm: op("Transpose", op("Reshape", y, ints(1, t, 2, d // 2)), perm=perm)
                    scores = op("MatMul", heads(q, [0, 2, 1, 3]), heads(k, [0, 2, 3, 1]))
                    context = op("MatMul", op("Softmax", scores, axis=-1), heads(v, [0, 2, 1, 3]))
                    y = op("Reshape", op("Transpose", context, perm=[0, 2, 1, 3]), ints(1, t, d))
                    x = op("LayerNormalization", op("Add", x, op("MatMul", y, weight(d, d))), weight(d, positive=True), weight(d))
                elif choice == 1:
                    h = op("Add", op("MatMul", x, weight(d, 3 * d, scale=3.0)), weight(3 * d))
                    root = tensor_name(constants, serial, float(np.sqrt(2)))
                    one, half = tensor_name(constants, serial, 1.0), tensor_name(constants, serial, 0.5)
                    h = op("Mul", op("Mul", h, op("Add", op("Erf", op("Div", h, root)), one)), half)
                    x = op("Add", x, op("MatMul", h, weight(3 * d, d)))
                elif choice == 2:
                    y = op("Transpose", x, perm=[0, 2, 1])
                    y = op("Conv", y, weight(d, d, 3), weight(d), pads=[1, 1])
                    x = op("Transpose", op("Relu", y), perm=[0, 2, 1])
                else:
                    serial[0] += 1
                    y = f"r{serial[0]}"
                    nodes.append(helper.make_node("LSTM", [op("Transpose", x, perm=[1, 0, 2]), weight(1, 4 * d, d), weight(1, 4 * d, d), weight(1, 8 * d)],
                                                  [y], hidden_size=d))  # fmt: skip
                    x = op("Transpose", op("Squeeze", y, ints(1)), perm=[1, 0, 2])
            outputs, inputs = [x if x != "x" else op("Relu", "x")], [info("x", [1, t, d])]
        made = model(nodes, inputs, [info(o, None) for o in dict.fromkeys(outputs)], constants)
        case("random", f"graph {number}", "accept", made)


def tensor_name(constants, serial, value):
    serial[0] += 1
    constants.append(tensor(f"k{serial[0]}", np.float32(value)))
    return f"k{serial[0]}"


# ---- files beside the model ------------------------------------------------------------------------------------------


def external(location, shape=(4, 3, 3, 3), **more):
    t = TensorProto(name="w", data_type=F, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        t.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
    return t


def file_cases():
    size = 4 * 3 * 3 * 3 * 4
    nodes, inputs, outputs, _ = convolution()
    build = lambda t: model(nodes, inputs, outputs, [t])
    data = random(4, 3, 3, 3).tobytes()
    case("files", "external data", "accept", build(external("w.bin")), files={"w.bin": data})
    case("files", "external data with offset and length", "accept", build(external("w.bin", offset=16, length=size)), files={"w.bin": bytes(16) + data})
    case("files", "external data in a directory below", "accept", build(external("sub/w.bin")), files={"sub/w.bin": data})
    for title, location, more in [
        ("missing", "nowhere.bin", {}), ("parent", "../w.bin", {}), ("parent in the middle", "sub/../../w.bin", {}),
        ("absolute", "/etc/hostname", {}), ("a directory", "sub", {}), ("nothing", "", {}), ("a dot", ".", {}),
        ("memory of another", "*/_ORT_MEM_ADDR_/*", {"offset": 4096, "length": size}), ("a null byte", "w.bin\0.txt", {}),
        ("offset beyond the end", "w.bin", {"offset": 1 << 40}), ("length beyond the end", "w.bin", {"length": 1 << 40}),
        ("offset and length that overflow", "w.bin", {"offset": (1 << 64) - 8, "length": 16}), ("negative offset", "w.bin", {"offset": -4}),
        ("negative length", "w.bin", {"length": -1}), ("offset that is no number", "w.bin", {"offset": "abc"}),
        ("length of another shape", "w.bin", {"length": 8}), ("a symbolic link out", "link.bin", {}), ("a link to a directory out", "out/w.bin", {}),
        ("a pipe", "pipe", {}), ("a device", "zero", {}), ("a hard link", "hard.bin", {}), ("windows path", "C:\\w.bin", {}), ("a URL", "http://example.com/w", {}),
    ]:  # fmt: skip
        files = {"w.bin": data, "sub/other": b"1", "link.bin": Path("../secret.bin"), "out": Path(".."), "pipe": "fifo",
                 "zero": Path("/dev/zero"), "hard.bin": "hard"}  # fmt: skip
        case("files", f"external data: {title}", "reject", build(external(location, **more)), files=files)
    inside = helper.make_node("Constant", [], ["w"], value=external("../secret.bin"))
    case("files", "external data in an attribute, outside", "reject",
         model([inside, *nodes], inputs, outputs), files={})  # fmt: skip
    branch = lambda: helper.make_graph([node("Identity", "w", "o")], "b", [], [info("o", None)], [external("../secret.bin")])
    case("files", "external data in a branch, outside", "reject",
         model([helper.make_node("If", ["k"], ["y"], then_branch=branch(), else_branch=branch())], [info("k", [], 9)], [info("y", None)]))  # fmt: skip
    sparse = onnx.SparseTensorProto(values=external("../secret.bin", (2,)), indices=tensor("i", np.int64([0, 1])), dims=[4])
    m = model([node("Relu", "x", "y")], [info("x", [4])], [info("y", [4])])
    m.graph.sparse_initializer.append(sparse)
    case("files", "external data in a sparse tensor, outside", "reject", m)
    body = helper.make_function("f", "A", ["a"], ["z"], [helper.make_node("Constant", [], ["w"], value=external("../secret.bin")), node("Add", "a w", "z")], [OPSET])
    m = model([helper.make_node("A", ["x"], ["y"], domain="f")], [info("x", [4, 3, 3, 3])], [info("y", None)], opsets=[OPSET, helper.make_opsetid("f", 1)], functions=[body])
    case("files", "external data in a function, outside", "reject", m)


# ---- samples -----------------------------------------------------------------------------------------------------------


def npy(array=None, header=None, data=None, version=1):
    if header is None:
        import io

        out = io.BytesIO()
        np.save(out, array)
        return out.getvalue()
    text = header.encode()
    length = struct.pack("<H", len(text)) if version == 1 else struct.pack("<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + (data or b"")


def npz(members, method=0):
    import io
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if method else zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def png(width, height):
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))  # fmt: skip


def data_cases():
    good = random(1, 3, 8, 8)
    shape = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3, 8, 8), }"
    bad = {
        "empty directory": {},
        "empty file": {"0.npy": b""},
        "header only": {"0.npy": npy(good)[:60]},
        "torn data": {"0.npy": npy(good)[:-5]},
        "shape of a petabyte": {"0.npy": npy(header="{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 256), }\n")},
        "shape that overflows": {"0.npy": npy(header="{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4, 4), }\n")},
        "negative shape": {"0.npy": npy(header="{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3, 8, 8), }\n", data=good.tobytes())},
        "header of 4 GB": {"0.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"},
        "header without a shape": {"0.npy": npy(header="{'descr': '<f4'}\n", data=good.tobytes())},
        "header of nested brackets": {"0.npy": npy(header="(" * 60000 + "\n", data=b"")},
        "object array": {"0.npy": npy(np.array([{"a": 1}], dtype=object))},
        "text array": {"0.npy": npy(np.array(["a", "b"]))},
        "wrong shape": {"0.npy": npy(random(1, 3, 9, 9))},
        "wrong rank": {"0.npy": npy(random(8, 8))},
        "wrong type": {"0.npy": npy(good.astype(np.complex64))},
        "NaN": {"0.npy": npy(np.where(good > 1, np.float32(np.nan), good))},
        "infinity": {"0.npy": npy(np.where(good > 1, np.float32(np.inf), good))},
        "unknown name": {"0.npz": npz({"nobody.npy": npy(good)})},
        "archive bomb": {"0.npz": npz({"x.npy": npy(header=shape + "\n", data=good.tobytes()) + bytes(400 << 20)}, 1)},
        "archive that is none": {"0.npz": b"PK\x03\x04" + bytes(50)},
        "archive without members": {"0.npz": npz({})},
        "archive with a path out": {"0.npz": npz({"../x.npy": npy(good)})},
        "picture of 4 billion pixels": {"0.png": png(65535, 65535)},
        "picture of a negative size": {"0.png": png(0x80000000, 1)},
        "picture that is none": {"0.jpg": b"\xff\xd8\xff\xe0" + bytes(40)},
        "pb that is none": {"input_0.pb": b"\xff" * 30},
        "pb with dims of a petabyte": {"input_0.pb": raw_tensor("x", F, [1 << 40, 256], raw_data=bytes(4)).SerializeToString()},
        "pb in a file outside": {"input_0.pb": external("../secret.bin", (1, 3, 8, 8)).SerializeToString()},
        "notes beside nothing": {"readme.txt": b"hello"},
    }  # fmt: skip
    for title, files in bad.items():
        case("data", title, "reject", GOOD, calib=files)
    case("data", "float64 samples", "either", GOOD, calib={"0.npy": npy(good.astype(np.float64))})
    case("data", "Fortran order", "accept", GOOD, calib={"0.npy": npy(np.asfortranarray(good))})
    case("data", "big-endian samples", "either", GOOD, calib={"0.npy": npy(good.astype(">f4"))})
    case("data", "version 2 of npy", "accept", GOOD, calib={"0.npy": npy(header=shape + "\n", data=good.tobytes(), version=2)})
    case("data", "all zeros", "accept", GOOD, calib={"0.npy": npy(good * 0)})
    case("data", "1e30", "either", GOOD, calib={"0.npy": npy(good * np.float32(1e30))})
    case("data", "3e38", "either", GOOD, calib={"0.npy": npy(np.full_like(good, 3e38))})
    body = helper.make_graph([node("Identity", "c", "d"), node("Add", "v v", "u")], "b", [info("i", [], 7), info("c", [], 9), info("v", [4])],
                             [info("d", [], 9), info("u", [4])])  # fmt: skip
    loop = helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body)
    endless = model([loop], [info("x", [4]), info("n", [], 7)], [info("y", [4])], [tensor("t", np.array(True))])
    member = lambda n: {"0.npz": npz({"x.npy": npy(random(4)), "n.npy": npy(np.array(n, np.int64))})}
    case("data", "a loop of three rounds", "accept", endless, calib=member(3))
    case("data", "a sample that makes a loop endless", "either", endless, calib=member((1 << 63) - 1), arguments=["--time-limit", "5"])
    expand = model([node("Expand", "x s", "e"), node("ReduceSum", "e", "y", keepdims=0)], [info("x", [1]), info("s", [2], 7)], [info("y", [])])
    member = {"0.npz": npz({"x.npy": npy(random(1)), "s.npy": npy(np.int64([1 << 20, 1 << 20]))})}
    case("data", "a sample that asks for terabytes", "either", expand, calib=member)
    ranged = model([node("Range", "a n d", "r"), node("ReduceSum", "r", "y", keepdims=0)], [info("n", [], 7)], [info("y", [], 7)],
                   [tensor("a", np.int64(0)), tensor("d", np.int64(1))])  # fmt: skip
    case("data", "a range of terabytes", "either", ranged, calib={"0.npz": npz({"n.npy": npy(np.array(1 << 40, np.int64))})})
    constant = model([node("ConstantOfShape", "s", "c"), node("ReduceSum", "c", "r", keepdims=0), node("Add", "x r", "y")], [info("x", [1])], [info("y", [1])],
                     [tensor("s", np.int64([1 << 20, 1 << 20]))])  # fmt: skip
    case("data", "a constant of terabytes", "either", constant)
    tile = model([node("Tile", "w n", "c"), node("ReduceSum", "c", "r", keepdims=0), node("Add", "x r", "y")], [info("x", [1])], [info("y", [1])],
                 [tensor("w", random(1000)), tensor("n", np.int64([1 << 40]))])  # fmt: skip
    case("data", "a tile of terabytes", "either", tile)
    huge, one = 1 << 40, np.float32(1)
    asks = {
        "OneHot": ([node("OneHot", "i d v", "c")], {"i": np.zeros(8, np.int64), "d": np.int64(huge), "v": np.float32([0, 1])}),
        "Resize": ([node("Resize", "w  s", "c", mode="nearest")], {"w": random(1, 1, 4, 4), "s": np.float32([1, 1, 1 << 18, 1 << 18])}),
        "Resize to sizes": ([node("Resize", "w   z", "c", mode="linear")], {"w": random(1, 1, 4, 4), "z": np.int64([1, 1, 1 << 20, 1 << 20])}),
        "Pad": ([node("Pad", "w p", "c")], {"w": random(4), "p": np.int64([0, huge])}),
        "HannWindow": ([node("HannWindow", "n", "c")], {"n": np.int64(huge)}),
        "MelWeightMatrix": ([node("MelWeightMatrix", "n m r lo hi", "c")], {"n": np.int64(1 << 20), "m": np.int64(1 << 30), "r": np.int64(8000), "lo": one, "hi": np.float32(4000)}),
        "DFT": ([node("DFT", "w n", "c", axis=1)], {"w": random(1, 4, 1), "n": np.int64(huge)}),
        "CenterCropPad": ([node("CenterCropPad", "w s", "c")], {"w": random(4), "s": np.int64([huge])}),
        "Range": ([node("Range", "a b d", "c")], {"a": np.float32(0), "b": np.float32(1e12), "d": one}),
        "ConvTranspose": ([node("ConvTranspose", "w k", "c", strides=[1 << 20, 1 << 20])], {"w": random(1, 1, 9, 9), "k": random(1, 1, 3, 3)}),
        "Conv with pads": ([node("Conv", "w k", "c", pads=[1 << 20] * 4)], {"w": random(1, 1, 9, 9), "k": random(1, 1, 3, 3)}),
        "MaxPool with pads": ([node("AveragePool", "w", "c", kernel_shape=[1 << 20, 1 << 20], pads=[(1 << 20) - 1] * 4)], {"w": random(1, 1, 9, 9)}),
        "a sum of a row and a column": ([node("Add", "w u", "c")], {"w": random(1 << 18, 1), "u": random(1, 1 << 18)}),
        "Einsum": ([node("Einsum", "w u", "c", equation="i,j->ij")], {"w": random(1 << 18), "u": random(1 << 18)}),
        "Gather": ([node("Gather", "w i", "c")], {"w": random(1, 1 << 20), "i": np.zeros(1 << 20, np.int64)}),
        "AffineGrid": ([node("AffineGrid", "t s", "c")], {"t": random(1, 2, 3), "s": np.int64([1, 1, 1 << 20, 1 << 20])}),
        "MaxUnpool": ([node("MaxUnpool", "w i s", "c", kernel_shape=[2, 2])], {"w": random(1, 1, 2, 2), "i": np.zeros((1, 1, 2, 2), np.int64), "s": np.int64([1, 1, 1 << 20, 1 << 20])}),
        "Concat of repeats": ([helper.make_node("Concat", ["w"] * 4000, ["c"], axis=0)], {"w": random(1 << 20)}),
        "Where": ([node("Where", "k w u", "c")], {"k": np.ones((1, 1), bool), "w": random(1 << 18, 1), "u": random(1, 1 << 18)}),
        "ScatterND": ([node("Expand", "w s", "e"), node("ScatterND", "e i u", "c")], {"w": random(1), "s": np.int64([huge]), "i": np.zeros((1, 1), np.int64), "u": random(1)}),
    }  # fmt: skip
    for title, (nodes, values) in asks.items():
        constants = [tensor(n, np.asarray(v)) for n, v in values.items()]
        nodes = [*nodes, node("ReduceMax", "c", "r", keepdims=0), node("Cast", "r", "q", to=1), node("Add", "x q", "y")]
        opset = [helper.make_opsetid("", 20 if title in ("DFT", "AffineGrid") else 17)]
        case("data", f"terabytes by {title}", "either", model(nodes, [info("x", [1])], [info("y", None)], constants, opsets=opset),
             arguments=["--memory-limit", "1G"])  # fmt: skip
    outer = [node("MatMul", "a b", "c0")] + [node("MatMul", f"c{i} c{i}", f"c{i + 1}") for i in range(3)] + [node("ReduceSum", "c3", "r", keepdims=0), node("Add", "x r", "y")]
    big = model(outer, [info("x", [1])], [info("y", [1])], [tensor("a", random(60000, 1)), tensor("b", random(1, 60000))])
    case("data", "an outer product of gigabytes", "either", big)


# ---- running ---------------------------------------------------------------------------------------------------------


def limits():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def feeds_of(path, seed, session=None):
    """Random inputs of a model; symbolic dims are 4."""
    session = session or ort.InferenceSession(str(path), options(), providers=["CPUExecutionProvider"])
    rng, feeds = np.random.RandomState(seed), {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 4 for d in i.shape]
        kind = i.type[7:-1]
        if kind in ("float", "double", "float16"):
            feeds[i.name] = rng.randn(*shape).astype({"float": np.float32, "double": np.float64, "float16": np.float16}[kind])
        elif kind == "bool":
            feeds[i.name] = np.array(rng.rand(*shape) > 0.5)
        else:
            feeds[i.name] = np.array(rng.randint(0, 4, shape), kind)
    return feeds


def options(level=LEVEL.ORT_DISABLE_ALL):
    o = ort.SessionOptions()
    o.graph_optimization_level, o.log_severity_level = level, 4
    return o


def isolated(work, *arguments):
    """In a process of its own, for ONNX Runtime may crash or hang; the result, or why there is none."""
    receive, send = multiprocessing.Pipe(False)
    target = lambda: send.send(attempt(work, *arguments))
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    send.close()
    try:
        result = receive.recv() if receive.poll(SECONDS) else "timeout"
    except EOFError:
        result = "crash"
    process.kill()
    process.join()
    return result


def attempt(work, *arguments):
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    try:
        return work(*arguments)
    except MemoryError:
        return "out of memory"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:160]}"


def load_and_run(path, feeds=None):
    """The feeds, three random ones if none are given, and what ONNX Runtime says to each."""
    session = ort.InferenceSession(str(path), options(), providers=["CPUExecutionProvider"])
    feeds = feeds if feeds is not None else [feeds_of(path, seed, session) for seed in range(3)]
    return feeds, [session.run(None, f) for f in feeds]


def close(found, expected, share):
    for f, e in zip(found, expected):
        for a, b in zip(f, e):
            a, b = np.asarray(a), np.asarray(b)
            if a.shape != b.shape or a.dtype != b.dtype:
                return f"{a.dtype}{list(a.shape)} instead of {b.dtype}{list(b.shape)}"
            if a.dtype.kind != "f":
                if not np.array_equal(a, b):
                    return "integers differ"
                continue
            if not np.array_equal(np.isnan(a), np.isnan(b)):
                return "NaN elsewhere"
            finite = np.isfinite(b) & np.isfinite(a)
            if not np.array_equal(a[~finite & ~np.isnan(b)], b[~finite & ~np.isnan(b)]):
                return "infinity elsewhere"
            a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
            if b.size and np.abs(a - b).max() > share * np.abs(b).max() + 1e-6:
                return f"off by {np.abs(a - b).max() / np.abs(b).max():.3g} of the largest"
    return None


class Runner:
    def __init__(self, qonnx, work, peer):
        self.qonnx, self.work, self.peer = qonnx, work, peer
        self.counts = collections.defaultdict(lambda: [0, 0, 0])
        self.worst, self.slowest = (0, ""), (0, "")

    def place(self, case, number):
        """The case's files in a directory of its own, with one outside that must not be read."""
        root = self.work / f"{number:04}"
        directory = root / "model"
        directory.mkdir(parents=True)
        (root / "secret.bin").write_bytes(random(4, 3, 3, 3).tobytes())
        (directory / "in.onnx").write_bytes(case.model)
        for name, content in case.files.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            if isinstance(content, Path):
                path.symlink_to(content)
            elif content == "fifo":
                os.mkfifo(path)
            elif content == "hard":
                os.link(root / "secret.bin", path)
            else:
                path.write_bytes(content)
        if case.calib is not None:
            (root / "calib").mkdir()
            for name, content in case.calib.items():
                (root / "calib" / name).write_bytes(content)
        return root, directory

    def command(self, directory, case, arguments):
        """What is wrong with a run; None if nothing is, and whether it was accepted."""
        output = directory.parent / "out" / "out.onnx"
        output.parent.mkdir(exist_ok=True)
        output.write_bytes(b"an older output")
        before = {p: p.lstat().st_mtime_ns for p in directory.rglob("*")}
        started = time.monotonic()
        argv = [self.qonnx, "compile", str(directory / "in.onnx"), str(output), *arguments]
        with open(directory.parent / "stderr", "w+b") as log:
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=log, preexec_fn=limits)
            usage, end = None, started + SECONDS
            while usage is None and time.monotonic() < end:
                pid, status, usage_now = os.wait4(process.pid, os.WNOHANG)
                usage = usage_now if pid else None
                if not pid:
                    time.sleep(0.002)
            if usage is None:
                process.kill()
                os.wait4(process.pid, 0)
                return "timeout", False
            process.returncode = os.waitstatus_to_exitcode(status)
            log.seek(0)
            stderr = log.read().decode("utf-8", "replace")
        seconds, memory = time.monotonic() - started, usage.ru_maxrss * 1024
        self.worst = max(self.worst, (memory, case.name))
        self.slowest = max(self.slowest, (seconds, case.name))
        if memory > BYTES:
            return f"{memory >> 20} MB", False
        if "panicked" in stderr or process.returncode not in (0, 1, 2):
            return f"exit {process.returncode}: {stderr[:200]}", False
        if before != {p: p.lstat().st_mtime_ns for p in directory.rglob("*")}:
            return "files beside the model changed", False
        if [p.name for p in output.parent.iterdir()] != ["out.onnx"]:
            return "files left behind", False
        if process.returncode:
            lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith((" ", "warning: "))]
            if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 1000:
                return f"not one clear line: {stderr[:300]!r}", False
            if any(ord(c) < 32 and c not in "\n" for c in stderr):
                return f"control characters: {stderr[:300]!r}", False
            if output.read_bytes() != b"an older output":
                return "the older output is gone", False
            self.said = lines[0]
            return None, False
        return None, True

    def judge(self, case, number):
        root, directory = self.place(case, number)
        modes = {"none": 0.0, "weight-only": 0.05}
        if case.calib is not None:
            modes = {"static": 0.25}
        elif case.expect == "accept" and case.category in ("surgery", "files"):
            modes |= {"static": 0.15, "dynamic": 0.15, "fp16": 0.02, "weight-only --bits 4": 0.5}
        elif case.expect == "accept" and case.category == "numbers":
            modes |= {"static": 0.15}
        elif case.category == "random":  # errors add up from layer to layer
            modes = {"none": 0.0, "weight-only": 0.1, "static": 0.35, "dynamic": 0.35, "fp16": 0.03}
        source = None
        if case.expect != "reject" and case.calib is None or case.expect == "accept":
            source = isolated(load_and_run, directory / "in.onnx")
        runs = isinstance(source, tuple)
        for mode, share in modes.items():
            arguments = ["--mode", *mode.split(), *case.arguments]
            if mode == "static":
                calib = root / "calib"
                if case.calib is None:
                    if not runs:
                        continue
                    calib.mkdir()
                    for i in range(3):
                        np.savez(calib / f"{i}.npz", **{n: a for n, a in source[0][i].items()})
                arguments += ["--calib", str(calib)]
            problem, accepted = self.command(directory, case, arguments)
            if problem:
                return f"{mode}: {problem}"
            if case.expect == "reject" and accepted:
                return f"{mode}: accepted"
            if case.expect == "accept" and not accepted:
                return f"{mode}: refused: {self.said}"
            if not accepted:
                continue
            output = root / "out" / "out.onnx"
            if mode == "none" and output.read_bytes() != case.model and case.category not in ("wire", "files"):
                if isolated(lambda p: onnx.checker.check_model(str(p)), directory / "in.onnx") is None:
                    return "none: the bytes changed"
            if runs:
                valid = isolated(lambda p: onnx.checker.check_model(str(p)), directory / "in.onnx")
                ours = isolated(lambda p: onnx.checker.check_model(str(p)), output)
                if valid is None and ours is not None:
                    return f"{mode}: onnx.checker: {ours}"
                found = isolated(load_and_run, output, source[0])
                if not isinstance(found, tuple):
                    return f"{mode}: does not run: {found}"
                far = close(found[1], source[1], share)
                if far and not (case.expect == "either" and mode != "none"):
                    return f"{mode}: {far}"
        return None

    def judge_peer(self, case, number):
        """The same for ONNX Runtime's quantize_static with random samples."""
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

        root = self.work / f"{number:04}"
        directory, output = root / "model", root / "peer.onnx"

        class Reader(CalibrationDataReader):
            def __init__(self, feeds):
                self.feeds = iter(feeds)

            def get_next(self):
                return next(self.feeds, None)

        def quantize():
            os.chdir(root)
            feeds = [feeds_of(directory / "in.onnx", seed) for seed in range(3)]
            quantize_static(str(directory / "in.onnx"), str(output), Reader(feeds), quant_format=QuantFormat.QDQ, per_channel=True,
                            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)  # fmt: skip
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before = sorted(p.name for p in root.rglob("*"))
        done = isolated(quantize)
        if done in ("timeout", "crash", "out of memory"):
            return done
        if isinstance(done, int) and done * 1024 > BYTES:
            return f"{done >> 10} MB"
        left = [n for n in sorted(p.name for p in root.rglob("*")) if n not in before and n != "peer.onnx"]
        if left:
            return f"left behind {left[:3]}"
        if not isinstance(done, int):
            return f"refused: {done}" if case.expect == "accept" else None
        if case.expect == "reject":
            return "accepted"
        source = isolated(load_and_run, directory / "in.onnx")
        if isinstance(source, tuple):
            found = isolated(load_and_run, output, source[0])
            if not isinstance(found, tuple):
                return f"does not run: {found}"
            if case.expect == "accept":
                return close(found[1], source[1], 0.25)
        return None

    def run(self, cases):
        failed = 0
        for number, case in enumerate(cases):
            problem = self.judge(case, number)
            count = self.counts[case.category]
            count[0] += 1
            count[1] += problem is None
            if problem:
                failed += 1
                print(f"FAIL  {case.category}: {case.name} ({case.expect}): {problem}", flush=True)
            if self.peer and case.calib is None:
                problem = self.judge_peer(case, number)
                count[2] += problem is None
                if problem:
                    print(f"peer  {case.category}: {case.name}: {problem}", flush=True)
        return failed


def output_cases(runner):
    """Where the output cannot be written, or is the input; how many there are, and how many failed."""
    root = runner.work / "output"
    root.mkdir()
    (root / "in.onnx").write_bytes(GOOD.SerializeToString())
    (root / "file").write_bytes(b"1")
    (root / "directory").mkdir()
    os.mkfifo(root / "pipe")
    (root / "link.onnx").symlink_to(root / "target.onnx")
    (root / "target.onnx").write_bytes(b"older")

    def full():  # writing more than 100 bytes fails, as on a full disk
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    cases = [
        ("a directory", root / "directory", 1, None), ("below a file", root / "file" / "out.onnx", 1, None),
        ("in a directory that is missing", root / "nowhere" / "out.onnx", 1, None), ("a pipe", root / "pipe", 1, None),
        ("a device", Path("/dev/null"), 1, None), ("a name of 300 letters", root / ("n" * 300), 1, None),
        ("on a full disk", root / "full.onnx", 1, full), ("nothing", Path(""), 2, None),
        ("the input", root / "in.onnx", 0, None), ("a link", root / "link.onnx", 0, None),
    ]  # fmt: skip
    failed = 0
    for title, output, code, before in cases:
        names = sorted(p.name for p in root.iterdir())
        arguments = [runner.qonnx, "compile", root / "in.onnx", output if str(output) != "." else "", "--mode", "weight-only"]
        done = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=before, timeout=SECONDS)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        left = sorted(p.name for p in root.iterdir())
        good = done.returncode == code and len(lines) == min(code, 1) and left == names
        good &= isolated(lambda p: onnx.checker.check_model(str(p)), root / "in.onnx") is None
        good &= code != 0 or isolated(lambda p: onnx.checker.check_model(str(p)), output) is None
        failed += not good
        if not good:
            print(f"FAIL  output: {title}: exit {done.returncode}, {done.stderr[:200]!r}, files {sorted(set(left) ^ set(names))}")
    # An interrupt at any time: the older output or a whole new one, and nothing else.
    samples = root / "samples"
    samples.mkdir()
    for i in range(64):
        np.save(samples / f"{i}.npy", random(1, 3, 8, 8, seed=i))
    target = root / "target.onnx"
    for delay in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16):
        target.write_bytes(b"older")
        names = sorted(p.name for p in root.iterdir())
        process = subprocess.Popen([runner.qonnx, "compile", root / "in.onnx", target, "--calib", samples, "-q"], stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.terminate()
        code = process.wait()
        good = code in (0, 130, -signal.SIGTERM) and sorted(p.name for p in root.iterdir()) == names
        if target.read_bytes() != b"older":
            good &= isolated(lambda p: onnx.checker.check_model(str(p)), target) is None
        failed += not good
        if not good:
            print(f"FAIL  output: interrupted after {delay} s: exit {code}")
    cases += [None] * 7
    if not stat.S_ISCHR(os.stat("/dev/null").st_mode):
        failed += 1
        print("FAIL  output: /dev/null is no device any more")
    runner.counts["output"][:2] = [len(cases), len(cases) - failed]
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qonnx", help="the built binary")
    parser.add_argument("--only", help="cases whose category or name contains this")
    parser.add_argument("--keep", type=Path, help="work in this new directory and leave the files there")
    parser.add_argument("--peer", action="store_true", help="also ONNX Runtime's quantize_static")
    arguments = parser.parse_args()
    for build in (wire_cases, model_cases, graph_cases, random_cases, file_cases, data_cases):
        build()
    cases = [c for c in CASES if arguments.only is None or arguments.only in (c.category, c.name) or arguments.only in c.name]
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.keep or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        runner = Runner(os.path.abspath(arguments.qonnx), work.resolve(), arguments.peer)
        failed = runner.run(cases)
        failed += output_cases(runner) if arguments.only in (None, "output") else 0
    for category, (total, passed, peer) in runner.counts.items():
        print(f"{category:10} {passed:4} of {total}" + (f", quantize_static {peer}" if arguments.peer else ""))
    total = sum(count[0] for count in runner.counts.values())
    print(f"{total - failed} of {total} passed; most memory {runner.worst[0] >> 20} MB ({runner.worst[1]}), "
          f"longest {runner.slowest[0]:.1f} s ({runner.slowest[1]})")  # fmt: skip
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
