# SPDX-License-Identifier: Apache-2.0
"""Gradients of ONNX models against those that onnxruntime-training computed."""

from pathlib import Path

import numpy as np
import pytest
from finite_differences import run_in_onnxruntime
from ort_training_models import GRAPHS, feeds_of, model_of, parameters_of

import lnbp_onnx

_RECORDED = Path(__file__).parent / "data/ort_training_models.npz"


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_of_onnxruntime_training(name: str) -> None:
    forward = model_of(name)
    model = lnbp_onnx.gradient(forward, of="loss", wrt=parameters_of(name))
    norms = [node.op_type for node in forward.graph.node].count("LayerNormalization")
    assert [node.op_type for node in model.graph.node].count("LayerNormBackprop") == norms
    decomposed = lnbp_onnx.decompose(model)
    assert not any(node.domain for node in decomposed.graph.node)
    with np.load(_RECORDED) as recorded:
        for each in (model, decomposed):
            found = run_in_onnxruntime(each, feeds_of(name))
            for output in ("loss", *(f"{parameter}.grad" for parameter in parameters_of(name))):
                expected = recorded[f"{name}/{output}"]
                np.testing.assert_allclose(found[output], expected, rtol=1e-5, atol=1e-5, err_msg=output)
