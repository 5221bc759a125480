# SPDX-License-Identifier: Apache-2.0
"""Every case of the table through every way of running the operator, against the oracle."""

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

import lnbp_onnx
from cases import CASES, INPUTS, OUTPUTS, SMALL_CASES, Case

Way = Callable[[Case], dict[str, np.ndarray]]

NEWEST_OPSET = 28


def run_in_onnxruntime(
    model: onnx.ModelProto, feeds: dict[str, np.ndarray], optimised: bool = True
) -> dict[str, np.ndarray]:
    """Run a model of standard operators; bfloat16, which NumPy does not have, goes in and out as OrtValues."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    element_types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    values = {
        name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), element_types[name])
        for name, array in feeds.items()
    }
    names = [output.name for output in session.get_outputs()]
    results = session.run_with_ort_values(names, values)
    return {name: _to_numpy(result) for name, result in zip(names, results, strict=True)}
