# SPDX-License-Identifier: Apache-2.0
"""Times what `decompose --scatter-reductions` makes of a ScatterND that adds against ONNX Runtime's own on one thread.

A contender runs `rows` additions of 768 columns onto zeros: the gradient of an embedding.
"""

import argparse
import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from timing import interleave, ratio

import lnbp_onnx

_WIDTH = 768
_TABLES = {
    "2, random": lambda rng, rows: (2, rng.integers(0, 2, rows)),
    "1000, random": lambda rng, rows: (1000, rng.integers(0, 1000, rows)),
    "50000, random": lambda rng, rows: (50000, rng.integers(0, 50000, rows)),
    "50000, as words": lambda rng, rows: (50000, np.minimum(rng.zipf(1.2, rows), 49999)),
    "50000, distinct": lambda rng, rows: (50000, rng.permutation(50000)[:rows]),
    "50000, one": lambda _, rows: (50000, np.full(rows, 7)),
}


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 8192], help="how many indices")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print("Times as long as ScatterND on one thread: ratio of the minima, median of the ratios by round.")
    print("| rows | table | one thread | two threads | ScatterElements |\n|---|---|---|---|---|")
    for rows in arguments.rows:
        for name, make in _TABLES.items():
            rng = np.random.default_rng(0)
            length, indices = make(rng, rows)
            feeds = {
                "indices": indices.astype(np.int64)[:, None],
                "updates": rng.standard_normal((rows, _WIDTH)).astype(np.float32),
            }
            model = _model(length)
            replaced = lnbp_onnx.decompose(model, scatter_reductions=True)
            runs = {"ScatterND": _run(model, feeds, 1)}
            runs |= {f"{threads} threads": _run(replaced, feeds, threads) for threads in (1, 2)}
            runs["ScatterElements"] = _run(_model(length, "ScatterElements"), feeds, 1)
            times = interleave(runs, arguments.rounds, threads=2)
            ratios = [ratio(times[each], times["ScatterND"]) for each in list(runs)[1:]]
            cells = [f"{each.of_minima:.2f}, {each.of_medians:.2f}" for each in ratios]
            print("|", " | ".join([str(rows), name, *cells]), "|", flush=True)


def _model(length: int, op_type: str = "ScatterND") -> onnx.ModelProto:
    indices = helper.make_tensor_value_info("indices", TensorProto.INT64, ["rows", 1])
    updates = helper.make_tensor_value_info("updates", TensorProto.FLOAT, ["rows", _WIDTH])
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["zeros"])]
    if op_type == "ScatterElements":
        nodes.append(helper.make_node("Shape", ["updates"], ["updates_shape"]))
        nodes.append(helper.make_node("Expand", ["indices", "updates_shape"], ["columns"]))
    scattered = ["zeros", "columns" if op_type == "ScatterElements" else "indices", "updates"]
    nodes.append(helper.make_node(op_type, scattered, ["y"], reduction="add"))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [length, _WIDTH])
    shape = numpy_helper.from_array(np.array([length, _WIDTH]), "shape")
    graph = helper.make_graph(nodes, "scatter", [indices, updates], [y], [shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], threads: int) -> Callable[[int], None]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # A thread that waits would take the core from the contender that runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(value))
    binding.bind_output("y")
    return functools.partial(_repeat, session, binding)


def _repeat(session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding, count: int) -> None:
    for _ in range(count):
        session.run_with_iobinding(binding)


if __name__ == "__main__":
    main()
