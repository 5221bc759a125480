# SPDX-License-Identifier: Apache-2.0
"""A small model to train, the optimizers to train it with, and the loop."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, helper, numpy_helper

import lnbp_onnx
from lnbp_onnx import SGD, AdamW

Arrays = dict[str, np.ndarray[Any, Any]]

OPTIMIZERS: dict[str, Any] = {
    "AdamW": AdamW(),
    "AdamW all": AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3, no_weight_decay=["b*"]),
    "AdamW no decay": AdamW(lr=0.1, weight_decay=0.0),
    "SGD": SGD(lr=0.1),
    "SGD decay": SGD(lr=0.1, weight_decay=0.2, no_weight_decay=["bias"]),
    "SGD momentum": SGD(lr=0.05, momentum=0.9, weight_decay=0.1),
    "SGD dampening": SGD(lr=0.05, momentum=0.9, dampening=0.4),
    "SGD nesterov": SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
}
STEPS = 5


REGRESSION = """
<ir_version: 10, opset_import: ["": 18]>
regression (float[rows, 3] x, float[rows, 2] y) => (float loss)
{
    p = MatMul (x, w)
    q = Add (p, bias)
    e = Sub (q, y)
    s = Mul (e, e)
    loss = ReduceMean <keepdims = 0> (s)
}
"""


def regression(dtype: Any = np.float32) -> ModelProto:
    """The mean square of x w + bias - y, with the parameters w and bias."""
    model = onnx.parser.parse_model(REGRESSION.replace("float", "double" if dtype == np.float64 else "float"))
    rng = np.random.default_rng(7)
    for name, shape in {"w": (3, 2), "bias": (2,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(dtype), name))
    return model


def parameters_of(model: ModelProto) -> Arrays:
    return {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def batches(dtype: Any = np.float32) -> Iterator[Arrays]:
    rng = np.random.default_rng(8)
    while True:
        yield {"x": rng.normal(size=(4, 3)).astype(dtype), "y": 3 * rng.normal(size=(4, 2)).astype(dtype)}


def trained(model: ModelProto, steps: int = STEPS, feeds: Arrays | None = None) -> list[Arrays]:
    """What each run gives when the outputs of one are fed to the next."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of each input that has a default
    session = lnbp_onnx.inference_session(model, sess_options=options)
    names = [output.name for output in session.get_outputs()]
    state, found = dict(feeds or {}), []
    for _, batch in zip(range(steps), batches(_dtype(model)), strict=False):
        results = dict(zip(names, session.run(names, batch | state), strict=True))
        state |= {name.removesuffix(".updated"): each for name, each in results.items() if name.endswith(".updated")}
        found.append(results)
    return found


def _dtype(model: ModelProto) -> Any:
    return helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)


def assert_updated(results: Arrays, expected: Arrays, rtol: float = 1e-12) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(results[f"{name}.updated"], value, rtol=rtol, err_msg=name)
