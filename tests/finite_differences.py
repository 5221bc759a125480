# SPDX-License-Identifier: Apache-2.0
"""Gradients of ONNX models against central differences in double."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import lnbp_onnx

Arrays = Mapping[str, np.ndarray[Any, Any]]
DOUBLE, FLOAT, INT64 = TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.INT64

_STEP = 1e-5


def make_model(nodes: Sequence[NodeProto], given: Arrays, *, opset: int = 18, dynamic: bool = False) -> ModelProto:
    """A model with arrays in double as inputs, all others as initializers; `y` is its output."""
    inputs = [
        helper.make_tensor_value_info(
            name, DOUBLE, [f"{name}{axis}" for axis in range(array.ndim)] if dynamic else array.shape
        )
        for name, array in given.items()
        if array.dtype == np.float64
    ]
    constants = [
        onnx.numpy_helper.from_array(array, name) for name, array in given.items() if array.dtype != np.float64
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", DOUBLE, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    y = run(model, {name: array for name, array in given.items() if array.dtype == np.float64})["y"]
    shape = [None] * y.ndim if dynamic else y.shape
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", DOUBLE, shape))
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


def check(model: ModelProto, given: Arrays) -> None:
    """Compare the products of gradients and a drawn direction with central differences along it."""
    feeds = {name: array for name, array in given.items() if array.dtype == np.float64}
    rng = np.random.default_rng(3)
    y = run(model, feeds)["y"]
    seed = rng.normal(size=np.shape(y))
    result = lnbp_onnx.gradient(model, of="y", wrt=list(feeds), seed="y.seed")
    onnx.checker.check_model(result)
    gradients = run(result, {**feeds, "y.seed": seed})
    for name, value in feeds.items():
        assert gradients[f"{name}.grad"].shape == value.shape
        assert gradients[f"{name}.grad"].dtype == np.float64
        direction = rng.normal(size=value.shape)
        high, low = (
            np.sum(seed * run(model, {**feeds, name: value + sign * _STEP * direction})["y"]) for sign in (1, -1)
        )
        expected = (high - low) / (2 * _STEP)
        found = np.sum(gradients[f"{name}.grad"] * direction)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)


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
