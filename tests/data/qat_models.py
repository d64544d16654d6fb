"""Small models as trainers with quantization export them, written to tests/data/qat: the input of tests/qat.rs.

    pip install torch brevitas qonnx onnx onnxruntime onnxscript
    python tests/data/qat_models.py by_hand torch_fake_quantize brevitas
    pip install tensorflow-cpu tf2onnx onnxruntime   # in an environment of its own
    python tests/data/qat_models.py tensorflow

Beside each model NAME.onnx lies NAME.npz with an input x and the output y that ONNX Runtime without optimizations
gives for the model as exported; for the QONNX dialect, which ONNX Runtime does not know, y comes from Brevitas.
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FOLDER = pathlib.Path(__file__).with_name("qat")
X = np.random.RandomState(0).randn(2, 3, 8, 8).astype(np.float32)


def save(name, model, output=None, x=X):
    import onnxruntime as ort

    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.onnx"
    if model is not None:
        onnx.save(model, path)
    if output is None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        output = session.run(None, {session.get_inputs()[0].name: x})[0]
    np.savez(FOLDER / f"{name}.npz", x=x, y=output)
    print(name, path.stat().st_size, "bytes,", sorted({n.op_type for n in onnx.load(path).graph.node}))


def torch_fake_quantize():
    """torch.ao in eager mode: fused Conv-BN-ReLU, an Add by FloatFunctional, per-channel weights."""
    import torch
    from torch import nn
    from torch.ao import quantization as q

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.quant, self.dequant = q.QuantStub(), q.DeQuantStub()
            self.c1, self.b1, self.r1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
            self.c2, self.b2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.add = torch.ao.nn.quantized.FloatFunctional()
            self.fc = nn.Linear(8, 5)

        def forward(self, x):
            x = self.r1(self.b1(self.c1(self.quant(x))))
            x = self.add.add(self.b2(self.c2(x)), x)
            return self.dequant(self.fc(x.mean((2, 3))))

    torch.manual_seed(0)
    net = Net().train()
    net.qconfig = q.QConfig(
        activation=q.FakeQuantize.with_args(observer=q.MovingAverageMinMaxObserver, quant_min=0, quant_max=255),
        weight=q.FakeQuantize.with_args(observer=q.MovingAveragePerChannelMinMaxObserver, quant_min=-128,
                                        quant_max=127, dtype=torch.qint8, qscheme=torch.per_channel_symmetric))
    net.eval()
    q.fuse_modules(net, [["c1", "b1", "r1"], ["c2", "b2"]], inplace=True)
    net.train()
    q.prepare_qat(net, inplace=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for _ in range(20):
        loss = net(torch.randn(16, 3, 8, 8)).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    net.apply(q.disable_observer)
    torch.onnx.export(net, (torch.tensor(X),), FOLDER / "torch_fake_quantize.onnx", input_names=["x"],
                      output_names=["y"], opset_version=17, dynamo=False)
    save("torch_fake_quantize", None)


def brevitas():
    """Brevitas: 8-bit activations, 4-bit narrow weights; as QCDQ and in the QONNX dialect."""
    import brevitas.nn as qnn
    import torch
    from brevitas.export import export_onnx_qcdq, export_qonnx
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
    from torch import nn

    class Weight4(Int8WeightPerChannelFloat):
        bit_width = 4

    class Act6(Uint8ActPerTensorFloat):
        bit_width = 6

    torch.manual_seed(0)
    net = nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantConv2d(3, 8, 3, padding=1, bias=True, weight_quant=Int8WeightPerChannelFloat),
        qnn.QuantReLU(act_quant=Act6, return_quant_tensor=True),
        qnn.QuantConv2d(8, 8, 3, padding=1, bias=True, weight_quant=Weight4),
        qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat),
        nn.Flatten(),
        qnn.QuantLinear(512, 5, bias=True, weight_quant=Weight4),
    )
    for _ in range(5):
        net(torch.randn(16, 3, 8, 8))
    net.eval()
    with torch.no_grad():
        y = net(torch.tensor(X))
    y = (y.value if hasattr(y, "value") else y).numpy()
    export_onnx_qcdq(net, args=torch.tensor(X), export_path=str(FOLDER / "brevitas_qcdq.onnx"), opset_version=17,
                     dynamo=False)
    save("brevitas_qcdq", None)
    export_qonnx(net, args=torch.tensor(X), export_path=str(FOLDER / "brevitas_qonnx.onnx"), opset_version=17,
                 dynamo=False)
    save("brevitas_qonnx", None, y)


def by_hand():
    """Symmetric pairs with one real residual branch (NVIDIA's style), and BatchNormalization left behind a quantized
    convolution, with a negative factor."""
    rng = np.random.RandomState(1)

    def constant(name, value):
        return numpy_helper.from_array(np.asarray(value), name)

    def pair(name, source, scale, zero, axis=None):
        extra = {} if axis is None else {"axis": axis}
        inits = [constant(f"{name}_s", np.float32(scale)), constant(f"{name}_z", zero)]
        nodes = [helper.make_node("QuantizeLinear", [source, f"{name}_s", f"{name}_z"], [f"{name}_q"], **extra),
                 helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [f"{name}_d"], **extra)]
        return nodes, inits

    w1, w2 = rng.randn(3, 3, 3, 3).astype(np.float32), rng.randn(3, 3, 3, 3).astype(np.float32)
    s1, s2 = np.abs(w1).max((1, 2, 3)) / 127, np.abs(w2).max((1, 2, 3)) / 127
    nodes, inits = [], [constant("w1", w1), constant("w2", w2), constant("b", rng.randn(3).astype(np.float32))]
    for name, source, scale, zero, axis in [
        ("x", "x", 3.5 / 127, np.int8(0), None), ("w1q", "w1", s1, np.zeros(3, np.int8), 0),
        ("w2q", "w2", s2, np.zeros(3, np.int8), 0),
    ]:
        n, i = pair(name, source, scale, zero, axis)
        nodes, inits = nodes + n, inits + i
    nodes += [helper.make_node("Conv", ["x_d", "w1q_d", "b"], ["c1"], pads=[1] * 4),
              helper.make_node("Relu", ["c1"], ["r1"])]
    n, i = pair("r", "r1", 20 / 127, np.int8(0))
    nodes, inits = nodes + n, inits + i
    nodes += [helper.make_node("Conv", ["r_d", "w2q_d"], ["c2"], pads=[1] * 4)]
    n, i = pair("c", "c2", 120 / 127, np.int8(0))
    nodes, inits = nodes + n, inits + i
    nodes += [helper.make_node("Add", ["c_d", "x"], ["y"])]
    shape = [helper.make_tensor_value_info(v, TensorProto.FLOAT, [2, 3, 8, 8]) for v in "xy"]
    graph = helper.make_graph(nodes, "residual", shape[:1], shape[1:], inits)
    save("symmetric_residual", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))

    nodes, inits = pair("x", "x", 7 / 255, np.uint8(128))
    w = rng.randint(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    inits += [constant("w", w), constant("ws", (rng.rand(4) * 0.01 + 0.002).astype(np.float32)),
              constant("wz", np.zeros(4, np.int8)), constant("gamma", np.float32([1, -0.7, 0.4, -1.5])),
              constant("beta", rng.randn(4).astype(np.float32)), constant("mean", rng.randn(4).astype(np.float32)),
              constant("var", (rng.rand(4) + 0.5).astype(np.float32))]
    nodes += [helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
              helper.make_node("Conv", ["x_d", "wd"], ["c"], pads=[1] * 4),
              helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"])]
    n, i = pair("n", "n", 0.1, np.uint8(120))
    nodes, inits = nodes + n, inits + i
    nodes += [helper.make_node("Identity", ["n_d"], ["y"])]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, 8, 8])
    graph = helper.make_graph(nodes, "norm", shape[:1], [output], inits)
    save("norm_after_quantized", helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def tensorflow():
    """FakeQuantWithMinMaxVars through tf2onnx: uint8 with odd zero points, in TensorFlow's layout. The exporter computes
    what it can: weights arrive as real numbers on a grid whose step is lost."""
    import tensorflow as tf
    import tf2onnx

    rng = np.random.RandomState(2)
    weight = lambda *shape: tf.Variable(rng.randn(*shape).astype(np.float32) * 0.3)
    w1, w2, w3 = weight(3, 3, 3, 8), weight(3, 3, 8, 1), weight(8, 5)
    bias = rng.randn(8).astype(np.float32)
    quantize = tf.quantization.fake_quant_with_min_max_vars

    def net(x):
        x = quantize(x, -3.0, 3.2)
        x = quantize(tf.nn.relu6(tf.nn.conv2d(x, quantize(w1, -1.1, 1.2), 1, "SAME") + bias), 0.0, 6.0)
        branch = quantize(w2, -0.9, 0.9, narrow_range=True)
        x = quantize(x + quantize(tf.nn.depthwise_conv2d(x, branch, [1] * 4, "SAME"), -9.0, 9.5), -8.0, 12.0)
        x = quantize(tf.reduce_mean(x, [1, 2]), -2.0, 4.0)
        return tf.identity(quantize(tf.matmul(x, quantize(w3, -1.0, 1.1)), -1.5, 1.5), name="y")

    signature = [tf.TensorSpec([2, 8, 8, 3], tf.float32, name="x")]
    model, _ = tf2onnx.convert.from_function(tf.function(net, signature), signature, opset=17)
    save("tensorflow_fake_quant", model, x=np.ascontiguousarray(X.transpose(0, 2, 3, 1)))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for exporter in sys.argv[1:] or ["by_hand", "torch_fake_quantize", "brevitas"]:
        globals()[exporter]()
