"""Writes ONNX's own node test cases as plain files for `tests/backend.rs`.

    python tests/backend.py DIR

Each case becomes

    DIR/<name>/model.onnx
    DIR/<name>/test_data_set_<k>/input_<i>.pb     TensorProto (or SequenceProto, OptionalProto)
    DIR/<name>/test_data_set_<k>/output_<i>.pb

and DIR/cases.json holds `{name: {"rtol", "atol", "opset": {domain: version}, "operators"}}` in order of name.
Expected outputs come from the onnx package's NumPy code: an oracle that shares nothing with the interpreter.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


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


def write(case, directory):
    model = case.model
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    for index, (inputs, outputs) in enumerate(case.data_sets):
        data = directory / f"test_data_set_{index}"
        data.mkdir(exist_ok=True)
        for prefix, values, infos in [("input", inputs, model.graph.input), ("output", outputs, model.graph.output)]:
            for position, (value, info) in enumerate(zip(values, infos)):
                (data / f"{prefix}_{position}.pb").write_bytes(message(value, info.type).SerializeToString())
    return {
        "rtol": case.rtol,
        "atol": case.atol,
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "operators": sorted(operators(model.graph)),
    }


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    table, failed = {}, []
    for case in sorted(cases, key=lambda c: c.name):
        try:
            table[case.name] = write(case, target / case.name)
        except Exception as error:  # one odd case must not hide the others
            failed.append(f"{case.name}: {type(error).__name__}: {error}")
    (target / "cases.json").write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    for line in failed:
        print("not written:", line)
    print(f"{len(table)} cases written to {target}, {len(failed)} not")


if __name__ == "__main__":
    main()
