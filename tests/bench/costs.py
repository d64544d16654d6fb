"""What operators cost in ONNX Runtime's CPU provider: in float, and in the integer kernel that its QDQ fusion makes.

    python tests/bench/costs.py [--filter WORD]

For each operator and size a float model and its QDQ twin are profiled on one thread; the table gives the least time of
the fused kernel in nanoseconds for an output element (a multiply-accumulate for Conv and MatMul). The cost tables of
the targets (`src/quantize/targets/*.toml`) are rounded from it.
"""

import argparse
import collections
import json
import os
import tempfile

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

RUNS = 40
rng = np.random.default_rng(1)


def profile(model, feed):
    """Least kernel time in nanoseconds by operator."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as work:
        options.profile_file_prefix = os.path.join(work, "profile")
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, feed)
        with open(session.end_profiling()) as file:
            events = json.load(file)
    times = collections.defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["args"]["op_name"]].append(event["dur"] * 1000)
    return {name: min(values) for name, values in times.items()}


def build(op, shapes, constants, quantized, same=False, fixed=None, **attributes):
    """One operator between a producer and a consumer that keep it from standing at the edge of the graph."""
    nodes, initializers, inputs, names = [], [], [], []

    def constant(name, array):
        initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pair(value, scale, zero):
        if not quantized:
            return value
        s, z = constant(f"{value}_s", np.float32(scale)), constant(f"{value}_z", np.uint8(zero))
        nodes.append(helper.make_node("QuantizeLinear", [value, s, z], [f"{value}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{value}_q", s, z], [f"{value}_d"]))
        return f"{value}_d"

    for i, shape in enumerate(shapes):
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape))
        names.append(pair(f"x{i}", 0.02, 128))
    for i, array in enumerate(constants):
        if quantized and array.dtype == np.float32:
            axis = 0 if op == "Conv" else array.ndim - 1
            weight = op in ("Conv", "MatMul")
            kind = np.int8 if weight else np.uint8
            q = rng.integers(-60, 60, array.shape).astype(kind) if weight else rng.integers(0, 255, array.shape).astype(kind)
            count = array.shape[axis] if weight else None
            s = constant(f"c{i}_s", np.full(count, 0.01, np.float32) if weight else np.float32(0.01))
            z = constant(f"c{i}_z", np.zeros(count, kind) if weight else kind(100))
            nodes.append(helper.make_node("DequantizeLinear", [constant(f"c{i}", q), s, z], [f"c{i}_d"], axis=axis if weight else 1))
            names.append(f"c{i}_d")
        else:
            names.append(constant(f"c{i}", array))
    nodes.append(helper.make_node(op, names, ["y"], **attributes))
    scale, zero = fixed or ((0.02, 128) if same else (0.05, 120))
    out = pair("y", scale, zero)
    nodes.append(helper.make_node("Erf", [out], ["z"]))
    graph = helper.make_graph(
        nodes, "cost", inputs, [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)], initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def cases():
    for c, s in ((32, 112), (64, 56), (192, 14), (512, 4), (32, 8), (200, 3)):
        x = [1, c, s, s]
        n = c * s * s
        yield "Add", f"{x}", [x, x], [], {}, n
        yield "Mul", f"{x}", [x, x], [], {}, n
        yield "Mul by [1,C,1,1]", f"{x}", [x, [1, c, 1, 1]], [], {}, n
        yield "Mul by scalar", f"{x}", [x], [f32(1)], {}, n
        yield "Add scalar", f"{x}", [x], [f32(1)], {}, n
        yield "Sigmoid", f"{x}", [x], [], {"fixed": (1 / 256, 0)}, n
        yield "LeakyRelu", f"{x}", [x], [], {"alpha": 0.1}, n
        yield "Concat", f"2 x {x}", [x, x], [], {"axis": 1}, 2 * n
        yield "MaxPool", f"{x} 3x3 s2", [x], [], {"same": True, "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, n / 4
        yield "AveragePool", f"{x} 3x3 s1", [x], [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, n
        yield "GlobalAveragePool", f"{x}", [x], [], {}, n
        yield "Transpose", f"{x} NHWC", [x], [], {"same": True, "perm": [0, 2, 3, 1]}, n
        yield "Conv 1x1", f"{x}", [x], [f32(c, c, 1, 1)], {}, n * c
        yield "Conv 3x3", f"{x}", [x], [f32(c, c, 3, 3)], {"pads": [1, 1, 1, 1]}, n * c * 9
        yield "Conv depthwise 3x3", f"{x}", [x], [f32(c, 1, 3, 3)], {"pads": [1, 1, 1, 1], "group": c}, n * 9
        yield "Resize", f"{x} x2", [x], [np.zeros(0, np.float32), np.array([1, 1, 2, 2], np.float32)], {"same": True, "mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}, 4 * n
        yield "Conv depthwise 5x5", f"{x}", [x], [f32(c, 1, 5, 5)], {"pads": [2, 2, 2, 2], "group": c}, n * 25
    for c, s in ((88, 17), (200, 14), (208, 14)):
        x, k = [1, c, s, s], {"pads": [2, 2, 2, 2], "group": c}
        yield "Conv depthwise 5x5 ragged", f"{x}", [x], [f32(c, 1, 5, 5)], k, c * s * s * 25
    for c, o, s in ((3, 32, 224), (3, 16, 96), (8, 16, 32)):
        k = {"pads": [1, 1, 1, 1], "strides": [2, 2]}
        yield "Conv shallow 3x3 s2", f"[1,{c},{s},{s}] -> {o}", [[1, c, s, s]], [f32(o, c, 3, 3)], k, c * o * s * s * 9 / 4
    for h, s, w in ((12, 128, 128), (4, 16, 16), (1, 64, 1000)):
        yield "Softmax", f"[1,{h},{s},{w}]", [[1, h, s, w]], [], {"axis": -1, "fixed": (1 / 256, 0)}, h * s * w
    for m, k, n in ((1, 256, 256), (16, 384, 384), (128, 384, 1536), (128, 1536, 384)):
        yield "MatMul constant", f"[1,{m},{k}]x[{k},{n}]", [["N", m, k]], [f32(k, n)], {}, m * k * n
    for h, s, d in ((12, 128, 32), (4, 32, 64)):
        yield "MatMul", f"[1,{h},{s},{d}]x[1,{h},{d},{s}]", [[1, h, s, d], [1, h, d, s]], [], {}, h * s * s * d


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--filter", default="")
    wanted = parser.parse_args().filter
    print(f"{'operator':20} {'size':28} {'float':>9} {'integer':>9}  ns a unit   ratio   kernel")
    for label, size, shapes, constants, attributes, work in cases():
        if wanted not in label:
            continue
        op = label.split()[0]
        feed = {f"x{i}": f32(*[1 if d == "N" else d for d in shape]) for i, shape in enumerate(shapes)}
        skip = {"same", "fixed"}
        plain = {k: v for k, v in attributes.items() if k not in skip}
        consts = list(constants)
        row = []
        for quantized in (False, True):
            if op == "Resize":
                kept = [consts[0], consts[1]]
                model = build_resize(shapes, kept, quantized, plain)
            else:
                model = build(op, shapes, consts, quantized, attributes.get("same", False), attributes.get("fixed"), **plain)
            times = profile(model, feed)
            ignored = ("Erf", "QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput")
            kernels = {k: v for k, v in times.items() if k not in ignored}
            extra = sum(v for k, v in kernels.items() if k == "Transpose") if op != "Transpose" else 0
            name = max((k for k in kernels if k != "Transpose" or op == "Transpose"), key=kernels.get, default="-")
            row.append((kernels.get(name, 0) / work, name, extra / work))
        (a, _, _), (b, name, extra) = row
        tail = f" (+ Transpose {extra:.3f})" if extra else ""
        print(f"{label:20} {size:28} {a:9.4f} {b:9.4f}  {'':9} {b / a if a else 0:6.2f}   {name}{tail}", flush=True)


def build_resize(shapes, kept, quantized, plain):
    model = build("Resize", shapes, kept[:0], quantized, True, None, **plain)
    node = next(n for n in model.graph.node if n.op_type == "Resize")
    model.graph.initializer.append(numpy_helper.from_array(kept[1], "scales"))
    node.input.extend(["", "scales"])
    return model


if __name__ == "__main__":
    main()
