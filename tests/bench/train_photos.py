"""What training without labels does for a classifier: before and after, on pictures that were not learned from.

    pip install onnx onnxruntime
    python tests/bench/train_photos.py QONNX MODEL.onnx --data DIR --test DIR [--labels FILE.npy] [TRAIN OPTIONS]

QONNX is the built binary. `--data` is what `qonnx train` learns from, `--test` other samples, one .npy of the model's only
input each, `--labels` their classes. Options that are not known here go to `qonnx train`, such as
`--bits 4 --activation-bits 8` or `--per-tensor`. The table: right answers, equal answers with the float model, and signal
over noise of the scores, of the starting point (`--epochs 0`) and of the trained model, all in ONNX Runtime.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


def scores(path, samples):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: np.load(sample)})[0] for sample in samples]).astype(np.float64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("qonnx", help="the built binary")
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True, type=Path)
    parser.add_argument("--labels", help="classes of the test samples in the order of their names")
    arguments, more = parser.parse_known_args()
    samples = sorted(arguments.test.glob("*.npy"))
    labels = np.load(arguments.labels) if arguments.labels else None
    wanted = scores(arguments.model, samples)

    def row(title, found, text=""):
        noise = np.square(found - wanted).sum()
        ratio = f"{10 * math.log10(np.square(wanted).sum() / noise):6.1f} dB" if noise else "    equal"
        right = "" if labels is None else f"right {(found.argmax(1) == labels).mean():6.1%}  "
        same = (found.argmax(1) == wanted.argmax(1)).mean()
        print(f"{title:16}{right}as float {same:6.1%}  {ratio}{text}", flush=True)

    row("float", wanted)
    with tempfile.TemporaryDirectory() as folder:
        for title, extra in [("after training", ["--epochs", "0"]), ("trained", [])]:
            output, report = Path(folder) / "out.onnx", Path(folder) / "report.json"
            command = [arguments.qonnx, "train", arguments.model, output, "--data", arguments.data, "--json", report, "-q"]
            # Options given twice are refused.
            given = more if not extra else [w for i, w in enumerate(more) if "--epochs" not in more[max(0, i - 1):i + 1]]
            started = time.monotonic()
            done = subprocess.run([*map(str, command), *given, *extra], capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            seconds = time.monotonic() - started
            training = json.loads(report.read_text())["training"]
            text = "" if extra else f"  epoch {training['written']} of {len(training['epochs']) - 1}, {seconds:.0f} s"
            row(title, scores(output, samples), text)


if __name__ == "__main__":
    main()
