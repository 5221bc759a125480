# SPDX-License-Identifier: Apache-2.0
"""Gradients of ONNX models against central differences in double."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import lnbp_onnx

Arrays = Mapping[str, np.ndarray[Any, Any]]
Runtime = Callable[[ModelProto, Arrays], dict[str, np.ndarray[Any, Any]]]
DOUBLE, FLOAT, INT64 = TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.INT64

_STEP = 1e-5


def make_model(
    nodes: Sequence[NodeProto],
    given: Arrays,
    *,
    opset: int = 18,
    dynamic: bool = False,
    dtype: type = np.float64,
    runs: Runtime | None = None,
) -> ModelProto:
    """A model with arrays of a type, double by default, as inputs, all others as initializers; `y` is its output.

    What `runs` it tells the shape of that: by default ONNX's evaluator in double, ONNX Runtime for another type.
    """
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    feeds = {name: array for name, array in given.items() if array.dtype == dtype}
    inputs = [
        helper.make_tensor_value_info(
            name, element_type, [f"{name}{axis}" for axis in range(array.ndim)] if dynamic else array.shape
        )
        for name, array in feeds.items()
    ]
    constants = [onnx.numpy_helper.from_array(array, name) for name, array in given.items() if name not in feeds]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", element_type, None)], constants)
    opsets = [helper.make_opsetid(*each) for each in (("", opset), ("com.microsoft", 1), (lnbp_onnx.DOMAIN, 1))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    y = (runs or (run if dtype == np.float64 else run_in_onnxruntime))(model, feeds)["y"]
    shape = [None] * y.ndim if dynamic else y.shape
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", element_type, shape))
    model.graph.CopyFrom(graph)
    return model


class Erf(OpRun):
    """In double: ONNX's own computes in float."""

    op_domain = ""

    def _run(self, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any]]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def run(model: ModelProto, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    evaluator = ReferenceEvaluator(model, new_ops=[lnbp_onnx.LayerNormBackprop, Erf])
    return dict(zip([output.name for output in model.graph.output], evaluator.run(None, dict(feeds)), strict=True))


def run_in_onnxruntime(model: ModelProto, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = lnbp_onnx.inference_session(model, sess_options=options)
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, dict(feeds)), strict=True))


def check(
    model: ModelProto, given: Arrays, *, is_checked: bool = True, run: Runtime = run, also: Arrays | None = None
) -> ModelProto:
    """Compare the products of gradients and a drawn direction with central differences along it, in double.

    Args:
        model: The model, whose output `y` is differentiated.
        given: Its inputs; it is differentiated by those in double.
        is_checked: Whether onnx's checker must take the result.
        run: What runs it.
        also: Further inputs.

    Returns:
        The model with the gradients.
    """
    return _check(run, model, given, np.float64, _STEP, 1e-6, is_checked, also or {})


def check_linear(model: ModelProto, given: Arrays) -> ModelProto:
    """Do the same for a model that is linear in each input, in float in ONNX Runtime."""
    return _check(run_in_onnxruntime, model, given, np.float32, 1.0, 1e-4, True, {})


def _check(
    run: Runtime,
    model: ModelProto,
    given: Arrays,
    dtype: type,
    step: float,
    tolerance: float,
    is_checked: bool,
    also: Arrays,
) -> ModelProto:
    sources = {name: array for name, array in given.items() if array.dtype == dtype}
    feeds = {**sources, **also}
    rng = np.random.default_rng(3)
    y = run(model, feeds)["y"]
    seed: np.ndarray[Any, Any] = rng.normal(size=np.shape(y)).astype(dtype)
    result = lnbp_onnx.gradient(model, of="y", wrt=list(sources), seed="y.seed")
    if is_checked:
        onnx.checker.check_model(result)
    names = [node.name for node in result.graph.node if node.name]
    assert len(names) == len(set(names))
    gradients = run(result, {**feeds, "y.seed": seed})
    np.testing.assert_allclose(gradients["y"], y, rtol=1e-5)
    for name, value in sources.items():
        assert gradients[f"{name}.grad"].shape == value.shape
        assert gradients[f"{name}.grad"].dtype == dtype
        direction = rng.normal(size=value.shape)
        high, low = (
            np.sum(seed * run(model, {**feeds, name: (value + sign * step * direction).astype(dtype)})["y"])
            for sign in (1, -1)
        )
        expected = (high - low) / (2 * step)
        found = np.sum(gradients[f"{name}.grad"] * direction)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance / 10, err_msg=name)
    return result


def draw(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray[Any, Any]:
    """Numbers in double that are apart from each other and from bends of functions at whole numbers and halves."""
    count = int(np.prod(shape))
    rng = np.random.default_rng(count + 17 * len(shape))
    values = (np.linspace(low, high, count + 2)[1:-1] if count else np.zeros(0)) + 0.003
    return rng.permutation(values).reshape(shape)


def node(op_type: str, inputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(" "), attributes.pop("outputs", ["y"]), **attributes)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)
