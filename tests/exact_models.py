"""Counts how many elements of whole models differ between the interpreter and ONNX Runtime.

    python tests/exact_models.py EVALUATE DIR [--samples N] [--only NAME] [--segments]

EVALUATE is the built example `evaluate`. DIR holds models `NAME.onnx`, as `qonnx compile` writes them, and for each a
directory `NAME` with a sub-directory a sample and a file `INPUT.npy` an input. Two comparisons, for the first N
samples (8): numerics `spec` with ONNX Runtime with all optimizations off, and `ort` with its default optimizations.
The table has the differing elements, how many there are, and the largest difference relative to the largest magnitude
of its output.

A float sum in another order may fall on the other side of a tie where it is quantized, and what a single step does
further on says nothing of the operators there. `--segments` therefore cuts the models, after each QuantizeLinear, into
pieces with one output, runs each piece by itself in both, on the same integers (those of the first sample), and counts
by what a piece computes. A piece that ONNX Runtime runs on an integer kernel alone must have no difference in `ort`.
"""

import argparse
import collections
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from exactness import LEVEL, session
from onnx import helper, numpy_helper

CONTROL = ("If", "Loop", "Scan")
LEVELS = {"spec": LEVEL.ORT_DISABLE_ALL, "ort": LEVEL.ORT_ENABLE_ALL}


def feeds(run, directory):
    """Inputs of a sample in the order of the model."""
    return {info.name: np.load(directory / f"{info.name}.npy") for info in run.get_inputs()}


def evaluate(program, model, samples, work):
    """What the interpreter computes: a list of outputs for each numerics and sample."""
    for number, feed in enumerate(samples):
        case = work / f"{number:03}"
        case.mkdir(parents=True)
        (case / "model.onnx").symlink_to(model.resolve())
        for slot, array in enumerate(feed.values()):
            (case / f"input_{slot}.pb").write_bytes(numpy_helper.from_array(array).SerializeToString())
    done = subprocess.run([program, str(work)], capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if " failed: " in line]
    if done.returncode or failed:
        sys.exit("\n".join([str(model), *failed, done.stderr]))

    def read(case, key, slot):
        return numpy_helper.to_array(onnx.TensorProto.FromString((case / f"{key}_{slot}.pb").read_bytes()))

    return {
        key: [
            [read(case, key, slot) for slot in range(len(list(case.glob(f"{key}_*.pb"))))] for case in sorted(work.iterdir())
        ]
        for key in LEVELS
    }


def difference(found, expected):
    """Differing elements, all elements, and the largest relative difference."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return expected.size, expected.size, np.inf
    wrong = found.view(np.uint8).reshape(*found.shape, -1) != expected.view(np.uint8).reshape(*found.shape, -1) \
        if found.shape else np.array([found.tobytes() != expected.tobytes()])  # fmt: skip
    wrong = int(wrong.any(axis=-1).sum())
    if not wrong or expected.dtype == bool:
        return wrong, expected.size, float(wrong > 0)
    a, b = found.astype(np.float64), expected.astype(np.float64)
    return wrong, expected.size, float(np.nanmax(np.abs(a - b)) / max(np.nanmax(np.abs(b)), 1e-30))


def pieces(model):
    """For each quantized value and each output: the nodes that make it of others, and what they read."""
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output if name}
    constants = {tensor.name for tensor in graph.initializer}
    ends = dict.fromkeys(name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.output)
    for end in [*ends, *(info.name for info in graph.output if info.name not in ends)]:
        nodes, reads, todo = {}, {}, [end]
        while todo:
            name = todo.pop()
            if not name or name in constants:
                continue
            if name not in maker or (name in ends and name != end):
                reads[name] = None
            elif id(maker[name]) not in nodes:
                nodes[id(maker[name])] = maker[name]
                todo += maker[name].input
        yield end, [node for node in graph.node if id(node) in nodes], list(reads)


def fused(path, work):
    """Does ONNX Runtime run the model on integers alone?"""
    target = work / "optimized.onnx"
    session(path, LEVEL.ORT_ENABLE_EXTENDED, target)
    nodes = onnx.load(target).graph.node
    moving = ("MaxPool", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Gather", "Slice", "Split", "Resize", "Flatten")
    edge = len(nodes) > 1 and nodes[-1].op_type == "DequantizeLinear"
    inner = list(nodes)[: len(nodes) - edge]
    return all(node.op_type.startswith(("QLinear", "QGemm", "MatMulIntegerToFloat")) or node.op_type in moving for node in inner)


def segments(program, path, directory, work, totals):
    """Adds the differences of each piece of a model to the totals."""
    model = onnx.load(path)
    parts = [(end, nodes, reads) for end, nodes, reads in pieces(model) if not any(n.op_type in CONTROL for n in nodes)]
    inputs = {info.name for info in model.graph.input}
    outputs = {info.name for info in model.graph.output}
    known = dict.fromkeys(name for _, _, reads in parts for name in reads if name not in inputs)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in known if name not in outputs)
    whole = work / "whole.onnx"
    onnx.save(model, whole)
    run = session(whole, LEVELS["ort"])
    values = feeds(run, directory)
    values |= dict(zip([info.name for info in run.get_outputs()], run.run(None, values)))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for number, (end, nodes, reads) in enumerate(parts):
        case = work / f"{number:04}"
        case.mkdir()
        used = dict.fromkeys(name for node in nodes for name in node.input if name in tensors)
        types = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values[name].dtype), values[name].shape)
            for name in reads
        ]
        graph = helper.make_graph(nodes, "piece", types, [helper.make_empty_tensor_value_info(end)], [tensors[n] for n in used])
        piece = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
        onnx.save(piece, case / "piece.onnx")
        feed = {name: values[name] for name in reads}
        found = evaluate(program, case / "piece.onnx", [feed], case / "run")
        kinds = [node.op_type for node in nodes if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
        integer = "integers" if fused(case / "piece.onnx", work) else "float"
        row = totals[(integer, " ".join(dict.fromkeys(kinds)) or "-")]
        row["pieces"] += 1
        for key, level in LEVELS.items():
            wrong, size, worst = difference(found[key][0][0], session(case / "piece.onnx", level).run(None, feed)[0])
            row[key] += wrong
            row[f"{key} at most"] = max(row[f"{key} at most"], worst)
        row["elements"] += size
        shutil.rmtree(case)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("evaluate")
    parser.add_argument("models", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--only")
    parser.add_argument("--segments", action="store_true")
    arguments = parser.parse_args()
    print(f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, {arguments.samples} samples a model\n")
    print("| model | elements | spec, optimizations off: differ | at most | ort, default optimizations: differ | at most |")
    print("|---|---|---|---|---|---|", flush=True)
    totals = collections.defaultdict(collections.Counter)
    for path in sorted(arguments.models.glob("*.onnx")):
        if arguments.only and arguments.only != path.stem:
            continue
        directories = sorted(d for d in (arguments.models / path.stem).iterdir() if d.is_dir())[: arguments.samples]
        work = Path(tempfile.mkdtemp())
        runs = {key: session(path, level) for key, level in LEVELS.items()}
        samples = [feeds(runs["spec"], directory) for directory in directories]
        outputs = evaluate(arguments.evaluate, path, samples, work / "cases")
        cells, size = [], 0
        for key, run in runs.items():
            wrong, size, worst = 0, 0, 0.0
            for feed, found in zip(samples, outputs[key]):
                for array, expected in zip(found, run.run(None, feed), strict=True):
                    some, all_of, apart = difference(array, expected)
                    wrong, size, worst = wrong + some, size + all_of, max(worst, apart)
            cells += [str(wrong), f"{worst:.2g}"]
        print(f"| {path.stem} | {size} | " + " | ".join(cells) + " |", flush=True)
        if arguments.segments:
            segments(arguments.evaluate, path, directories[0], work, totals)
        shutil.rmtree(work)
    if not arguments.segments:
        return
    print("\n| pieces on | operators | pieces | elements | spec: differ | at most | ort: differ | at most |")
    print("|---|---|---|---|---|---|---|---|")
    for (integer, kinds), row in sorted(totals.items()):
        shares = [f"{row[key]} | {row[f'{key} at most']:.2g}" for key in LEVELS]
        print(f"| {integer} | {kinds} | {row['pieces']} | {row['elements']} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
