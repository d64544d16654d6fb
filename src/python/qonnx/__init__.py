"""Quantize ONNX models: a thin module around the `qonnx` command.

    import qonnx

    report = qonnx.compile("in.onnx", "out.onnx", calib=samples, target="ort-cpu")
    print(report["size_before"], report["size_after"])

`samples` is a directory, or anything that yields samples: dictionaries from input names to arrays, lists of arrays in
the order of the inputs, single arrays, or the `(inputs, labels)` pairs of a PyTorch DataLoader, whose labels are left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

__all__ = ["Error", "calibrate", "compare", "compile", "command", "inspect", "run"]

PathLike = Union[str, "os.PathLike[str]"]
Sample = Union[Mapping[str, Any], Sequence[Any], Any]
Samples = Union[PathLike, Iterable[Sample]]


class Error(RuntimeError):
    """What the command said when it failed; `code` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def command() -> str:
    """The binary: `QONNX_BIN`, or the one that was installed with this module, or the one on the path."""
    name = "qonnx.exe" if sys.platform == "win32" else "qonnx"
    places = [os.environ.get("QONNX_BIN"), os.path.join(sysconfig.get_path("scripts"), name), shutil.which(name)]
    for place in places:
        if place and os.path.isfile(place):
            return place
    raise FileNotFoundError("there is no qonnx binary; set QONNX_BIN")


def run(*arguments: PathLike, **options: Any) -> str:
    """Runs a command and returns what it prints. `max_drop=0.5` is `--max-drop=0.5`, `True` a flag, a list a repeated option."""
    words = [command(), *map(os.fspath, arguments)]
    for key, value in options.items():
        name = "--" + key.rstrip("_").replace("_", "-")
        if value is None or value is False:
            continue
        if value is True:
            words.append(name)
        elif isinstance(value, (list, tuple)):
            words.extend(f"{name}={v}" for v in value)
        else:
            words.append(f"{name}={os.fspath(value) if isinstance(value, os.PathLike) else value}")
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        raise Error("\n".join(errors) or done.stderr or done.stdout, done.returncode)
    return done.stdout


def inspect(model: PathLike) -> dict[str, Any]:
    """What is in a model, as `qonnx inspect --json` tells it."""
    return json.loads(run("inspect", model, json=True))


def _arrays(sample: Sample, names: Sequence[str]) -> dict[str, np.ndarray]:
    """One sample by input name."""

    def array(value: Any) -> np.ndarray:
        if hasattr(value, "detach"):  # a tensor of PyTorch
            value = value.detach().cpu().numpy()
        return np.asarray(value)

    if isinstance(sample, Mapping):
        return {name: array(value) for name, value in sample.items()}
    if isinstance(sample, (list, tuple)):
        # (inputs, labels): the inputs of a model with several come as a list or dictionary of their own.
        labelled = len(sample) == 2 and (len(names) == 1 or isinstance(sample[0], (list, tuple, Mapping)))
        inputs = sample[0] if labelled else sample
        if labelled and isinstance(inputs, Mapping):
            return _arrays(inputs, names)
        inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        return {name: array(value) for name, value in zip(names, inputs)}
    return {names[0]: array(sample)}


class _Directory:
    """Samples as a directory: the one that was given, or one that goes away."""

    def __init__(self, samples: Optional[Samples], model: PathLike, limit: Optional[int]) -> None:
        self.temporary: Optional[tempfile.TemporaryDirectory[str]] = None
        self.path: Optional[PathLike] = None
        if samples is None or isinstance(samples, (str, os.PathLike)):
            self.path = samples
            return
        names = [i["name"] for i in inspect(model)["inputs"]]
        self.temporary = tempfile.TemporaryDirectory(prefix="qonnx-")
        self.path = self.temporary.name
        for index, sample in enumerate(samples):
            if limit is not None and index >= limit:
                break
            np.savez(Path(self.temporary.name) / f"{index:06}.npz", **_arrays(sample, names))

    def __enter__(self) -> Optional[PathLike]:
        return self.path

    def __exit__(self, *_: object) -> None:
        if self.temporary is not None:
            self.temporary.cleanup()


def compile(
    model: PathLike,
    output: PathLike,
    calib: Optional[Samples] = None,
    *,
    samples: Optional[int] = None,
    **options: Any,
) -> dict[str, Any]:
    """Quantizes a model and returns the report. Options are those of `qonnx compile`."""
    with _Directory(calib, model, samples) as directory, tempfile.TemporaryDirectory(prefix="qonnx-") as scratch:
        report = Path(scratch) / "report.json"
        run("compile", model, output, calib=directory, samples=samples, json=report, **{"quiet": True, **options})
        return json.loads(report.read_text()) if report.exists() else {}


def calibrate(model: PathLike, output: PathLike, calib: Samples, *, samples: Optional[int] = None, **options: Any) -> None:
    """Writes a calibration table. Options are those of `qonnx calibrate`."""
    with _Directory(calib, model, samples) as directory:
        run("calibrate", model, calib=directory, output=output, samples=samples, **{"quiet": True, **options})


def compare(a: PathLike, b: PathLike, data: Samples, **options: Any) -> dict[str, Any]:
    """Compares two models on the same samples. Options are those of `qonnx compare`."""
    with _Directory(data, a, None) as directory, tempfile.TemporaryDirectory(prefix="qonnx-") as scratch:
        found = Path(scratch) / "compare.json"
        run("compare", a, b, data=directory, json=found, **options)
        return json.loads(found.read_text())
