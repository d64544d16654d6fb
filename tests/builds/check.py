"""Runs the examples for build systems: Make, CMake, a cluster of Dask, a hook for git.

    python tests/builds/check.py target/release/qonnx
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent.resolve()
DATA = HERE.parent / "data"


def run(*words, **more):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, **more)
    return done.returncode, done.stdout + done.stderr


def good(*words, **more):
    code, said = run(*words, **more)
    assert code == 0, f"{words}: {code}\n{said}"
    return said


def make(qonnx, scratch):
    out = scratch / "make"
    out.mkdir()
    calib = scratch / "calib"
    shutil.copytree(DATA / "digits/calib", calib)
    words = ["make", "-C", HERE, f"QONNX={qonnx}", f"OUT={out}", f"CALIB={calib}"]
    good(*words)
    first = (out / "digits.int8.onnx").stat().st_mtime_ns
    good(*words)
    assert (out / "digits.int8.onnx").stat().st_mtime_ns == first, "nothing had changed"
    os.utime(calib / "00.npz")
    good(*words)
    assert (out / "digits.int8.onnx").stat().st_mtime_ns > first, "a sample had changed"


def cmake(qonnx, scratch):
    command = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    build = scratch / "cmake"
    good(command, "-S", HERE / "cmake", "-B", build, "-G", "Unix Makefiles", f"-DQONNX={qonnx}")
    good(command, "--build", build)
    first = (build / "digits.int8.onnx").stat().st_mtime_ns
    good(command, "--build", build)
    assert (build / "digits.int8.onnx").stat().st_mtime_ns == first, "nothing had changed"


def dask(qonnx, scratch):
    shared, whole = scratch / "shared.json", scratch / "whole.json"
    environment = {**os.environ, "QONNX": str(qonnx)}
    model, calib = DATA / "digits.onnx", DATA / "digits/calib"
    good(sys.executable, HERE / "dask_calibrate.py", model, calib, shared, "--shares", 3, env=environment)
    good(qonnx, "calibrate", model, "--calib", calib, "-o", whole, "-q")
    assert shared.read_bytes() == whole.read_bytes(), "the cluster's table is another"


def hook(qonnx, scratch):
    model = scratch / "digits.onnx"
    shutil.copy(DATA / "digits.onnx", model)
    environment = {**os.environ, "QONNX": str(qonnx)}
    model.with_suffix(".txt").write_text(good(qonnx, "inspect", "--text", model))
    good(HERE / "pre-commit", model, env=environment)
    good(qonnx, "compile", model, model, "-q")
    code, said = run(HERE / "pre-commit", model, env=environment)
    assert code == 1 and "its text has changed" in said, said


def main():
    qonnx = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        for example in (make, cmake, dask, hook):
            example(qonnx, Path(scratch))
            print(f"{example.__name__}: ok", flush=True)


if __name__ == "__main__":
    main()
