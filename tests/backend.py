"""Writes ONNX's own test cases as plain files for `tests/backend.rs`.

    python tests/backend.py DIR

These are the node tests, which the onnx package computes, and the small models that it ships as data (`simple`,
`pytorch-converted`, `pytorch-operator`). Each case becomes

    DIR/<name>/model.onnx
    DIR/<name>/test_data_set_<k>/input_<i>.pb     TensorProto, SequenceProto or OptionalProto, as the model says
    DIR/<name>/test_data_set_<k>/output_<i>.pb

and DIR/cases.json holds `{name: {"rtol", "atol", "kind", "random", "core", "opset": {domain: version}, "operators"}}` in
order of name. `random` cases have no expected outputs that could be met; `core` are those that use only ONNX's main domain,
tensors of real numbers, integers and truth values, and that are not the expansion of a function.
Expected outputs come from NumPy, ONNX's authors or PyTorch: oracles that share nothing with the interpreter.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

DATA_KINDS = ["simple", "pytorch-converted", "pytorch-operator"]
CORE_TYPES = {
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16,
    TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
}  # fmt: skip


def message(value, type_proto):
    """The protobuf message of one input or output, as the backend runner of ONNX would store it."""
    if isinstance(value, onnx.TensorProto):
        return value
    kind = type_proto.WhichOneof("value")
    if kind == "optional_type":
        return numpy_helper.from_optional(value)
    if kind == "sequence_type" or isinstance(value, list):
        return numpy_helper.from_list(value)
    if kind == "map_type" or isinstance(value, dict):
        return numpy_helper.from_dict(value)
    return numpy_helper.from_array(np.asarray(value))


def operators(graph):
    """Names of all operators of a graph and of the bodies inside it."""
    found = set()
    for node in graph.node:
        found.add(f"{node.domain}.{node.op_type}" if node.domain else node.op_type)
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                found |= operators(body)
    return found


def is_core(name, model):
    if "_expanded" in name or any(o.domain not in ("", "ai.onnx") for o in model.opset_import):
        return False
    types = [v.type for v in [*model.graph.input, *model.graph.output]]
    return all(t.WhichOneof("value") == "tensor_type" and t.tensor_type.elem_type in CORE_TYPES for t in types)


def describe(name, model, case, kind):
    return {
        "rtol": case.rtol,
        "atol": case.atol,
        "kind": kind,
        "random": name.startswith("test_training_dropout"),
        "core": is_core(name, model),
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "operators": sorted(operators(model.graph)),
    }


def write(case, directory):
    """Writes a case that the package has computed."""
    model = case.model
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    for index, (inputs, outputs) in enumerate(case.data_sets):
        data = directory / f"test_data_set_{index}"
        data.mkdir(exist_ok=True)
        for prefix, values, infos in [("input", inputs, model.graph.input), ("output", outputs, model.graph.output)]:
            for position, (value, info) in enumerate(zip(values, infos)):
                (data / f"{prefix}_{position}.pb").write_bytes(message(value, info.type).SerializeToString())
    return describe(case.name, model, case, "node")


def copy(case, kind, directory):
    """Copies a case that the package ships."""
    shutil.copytree(case.model_dir, directory, dirs_exist_ok=True)
    return describe(case.name, onnx.load(directory / "model.onnx", load_external_data=False), case, kind)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        from onnx.backend.test.case.node import collect_testcases
        from onnx.backend.test.loader import load_model_tests

        cases = [(c, "node") for c in collect_testcases(None)]
        cases += [(c, kind) for kind in DATA_KINDS for c in load_model_tests(kind=kind)]
    table, failed = {}, []
    for case, kind in sorted(cases, key=lambda c: c[0].name):
        try:
            assert case.name not in table, "two cases of this name"
            directory = target / case.name
            table[case.name] = write(case, directory) if kind == "node" else copy(case, kind, directory)
        except Exception as error:  # one odd case must not hide the others
            failed.append(f"{case.name}: {type(error).__name__}: {error}")
    (target / "cases.json").write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    for line in failed:
        print("not written:", line)
    print(f"{len(table)} cases written to {target}, {len(failed)} not")


if __name__ == "__main__":
    main()
