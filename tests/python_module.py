"""The Python module on what users hand to it: arrays, dictionaries, DataLoader-like pairs, tables, errors.

    QONNX_BIN=target/release/qonnx PYTHONPATH=src/python python tests/python_module.py
"""

import tempfile
from pathlib import Path

import numpy as np
import qonnx

MODEL = Path(__file__).parent / "data/digits.onnx"
CALIB = MODEL.parent / "digits/calib"


def main():
    data = np.load(CALIB / "00.npz")["x"]
    samples = [data[i : i + 8] for i in range(0, 64, 8)]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.onnx"
        bytes_of = {}
        for name, calib in {
            "arrays": samples,
            "dictionaries": [{"x": s} for s in samples],
            "pairs": ((s, np.zeros(8)) for s in samples),
            "lists": [[s] for s in samples],
        }.items():
            report = qonnx.compile(MODEL, out, calib=calib, effort="fast")
            assert report["samples"] == 8, report["samples"]
            bytes_of[name] = out.read_bytes()
        assert len(set(bytes_of.values())) == 1, {k: len(v) for k, v in bytes_of.items()}
        report = qonnx.compile(MODEL, out, calib=CALIB, exclude=["*"], verbose=True, quiet=False)
        assert report["quantized"]["nodes"] == []
        table = Path(scratch) / "table.json"
        qonnx.calibrate(MODEL, table, samples)
        qonnx.compile(MODEL, out, table=table)
        compared = qonnx.compare(MODEL, out, samples)
        assert compared["outputs"][0]["sqnr_db"] > 20, compared
        assert qonnx.inspect(out)["inputs"][0]["name"] == "x"
        try:
            qonnx.compile(MODEL, out, calib=[np.zeros((1, 2))])
        except qonnx.Error as error:
            assert error.code == 1 and "error: " in str(error), error
        else:
            raise AssertionError("a sample of the wrong shape passed")
    print("python module: ok")


if __name__ == "__main__":
    main()
