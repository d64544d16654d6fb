"""What each step of tuning is worth, alone and together: a model compiled in many ways, each compared with the float model.

    python tests/ablation.py target/release/qonnx m.onnx --calib samples/ --data others/
    python tests/ablation.py target/release/qonnx m.onnx --calib samples/ --data others/ --only per-channel,4-bit
    python tests/ablation.py ... --metric "python score.py {}"     # a command that prints a score of the model {}

`--data` has samples that took no part in the calibration. A row is a way to compile; its columns are the SQNR of the worst
float output (dB, by the ONNX definition), the score, the seconds and the size of the file. Three tables:

| table | weights |
|---|---|
| per-channel | 8 bits, a scale for each output channel |
| per-tensor | 8 bits, one scale: here equalization and bias correction have to help |
| 4-bit | 4 bits, a scale for each output channel, for a target that has them: here rounding has to help |
"""

import argparse
import json
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

STEPS = ("equalization", "smoothing", "trade-off", "bias-correction", "rounding", "block-training")
TABLES = {
    "per-channel": [],
    "per-tensor": ["--per-tensor"],
    "4-bit": ["--target", "qnn-htp", "--weight", "s4"],
}


def ways(table):
    """What is done, and the options that say so."""
    yield "no step", ["--steps", "none"]
    for step in STEPS:
        yield f"{step} alone", ["--steps", step]
    if table == "per-tensor":
        yield "equalization and bias correction", ["--steps", "equalization,bias-correction"]
    yield "balanced", ["--effort", "balanced"]
    yield "best", ["--effort", "best"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qonnx", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--metric", help="a command; {} stands for the model, and its last line is shown")
    parser.add_argument("--only", default=",".join(TABLES), help="tables, separated by commas")
    parser.add_argument("--skip", default="", help="rows to leave out, separated by commas")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        out, found = Path(work, "out.onnx"), Path(work, "found.json")
        for table in a.only.split(","):
            print(f"\n**{a.model.stem}, {table}**\n\n| steps | SQNR, dB | score | s | MB |\n|---|---|---|---|---|", flush=True)
            for name, options in ways(table):
                if name not in a.skip.split(","):
                    row(a, out, found, name, [*TABLES[table], *options])


def row(a, out, found, name, options):
    start = time.perf_counter()
    compiled = run([a.qonnx, "compile", a.model, out, "--calib", a.calib, "-q", *options])
    seconds = time.perf_counter() - start
    if compiled.returncode:
        print(f"| {name} | {last(compiled.stderr)} | | | |", flush=True)
        return
    compared = run([a.qonnx, "compare", a.model, out, "--data", a.data, "--json", found])
    if compared.returncode:
        print(f"| {name} | {last(compared.stderr)} | | | |", flush=True)
        return
    outputs = json.loads(found.read_text())["outputs"]
    decibels = [o["sqnr_db"] for o in outputs if o["float"] and o["sqnr_db"] is not None]
    sqnr = f"{min(decibels):.1f}" if decibels else "equal"
    score = last(run(shlex.split(a.metric.replace("{}", str(out)))).stdout) if a.metric else ""
    print(f"| {name} | {sqnr} | {score} | {seconds:.1f} | {out.stat().st_size / 1e6:.2f} |", flush=True)


def run(command):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


def last(text):
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


if __name__ == "__main__":
    main()
