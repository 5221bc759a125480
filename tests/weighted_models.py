# SPDX-License-Identifier: Apache-2.0
"""Models with weights, in the file and beside it."""

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper

import lnbp_onnx

FLOAT = TensorProto.FLOAT


def weights(seed: int, count: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def weighted_model(*weights: TensorProto, rows: int = 4, columns: int = 64) -> ModelProto:
    """A model whose gamma is the last of the weights, which are all used."""
    node = lnbp_onnx.make_node(
        "x", "dy", gamma=weights[-1].name, use_stats=False, outputs=["dx", "", ""], name="norm_grad"
    )
    nodes, outputs = [node], [helper.make_tensor_value_info("dx", FLOAT, [rows, columns])]
    for weight in weights[:-1]:
        nodes.append(helper.make_node("ReduceMax", [weight.name], [f"max_{weight.name}"], keepdims=0))
        outputs.append(helper.make_tensor_value_info(f"max_{weight.name}", FLOAT, []))
    inputs = [helper.make_tensor_value_info(name, FLOAT, [rows, columns]) for name in ("x", "dy")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def external(
    name: str, dims: list[int], location: str, offset: int | str, length: int | str | None = None, kind: int = FLOAT
) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    entries: dict[str, Any] = {"location": location, "offset": offset, "length": length}
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor
