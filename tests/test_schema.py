# SPDX-License-Identifier: Apache-2.0
"""The registered schema: what the checker and shape inference make of the operator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from cases import CASES, DTYPES, Case
from generate_from_spec import GENERATED
from onnx import TensorProto, helper

import lnbp_onnx
from lnbp_onnx import spec

Shape = Sequence[int | str | None] | None


def test_registered_once_on_import() -> None:
    lnbp_onnx.register_schema()
    schema = onnx.defs.get_schema("LayerNormBackprop", 1, "lnbp")
    assert (schema.since_version, schema.domain) == (1, "lnbp")
    assert [parameter.name for parameter in schema.inputs] == list(spec.INPUT_NAMES)
    assert [parameter.name for parameter in schema.outputs] == list(spec.OUTPUT_NAMES)
    for constraint in schema.type_constraints:
        assert set(constraint.allowed_type_strs) == {f"tensor({t})" for t in DTYPES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_inference_agrees_with_the_arrays(case: Case) -> None:
    model = case.model()
    expected = {output.name: output.type.SerializeToString() for output in model.graph.output}
    for output in model.graph.output:
        output.type.Clear()
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert {output.name: output.type.SerializeToString() for output in inferred.graph.output} == expected


def infer(inputs: dict[str, tuple[int, Shape]], **attributes: Any) -> dict[str, tuple[int, Shape]]:
    """Infer the outputs of a node whose inputs have the given element types and shapes."""
    node = helper.make_node(
        "LayerNormBackprop",
        [name if name in inputs else "" for name in spec.INPUT_NAMES],
        ["input_delta", "gamma_delta", "beta_delta"],
        domain="lnbp",
        **attributes,
    )
    values = [helper.make_tensor_value_info(name, *info) for name, info in inputs.items()]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    opsets = [helper.make_opsetid("lnbp", 1)]
    model = helper.make_model(helper.make_graph([node], "g", values, outputs), opset_imports=opsets)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    result: dict[str, tuple[int, Sequence[int | str | None] | None]] = {}
    for output in inferred.graph.output:
        tensor = output.type.tensor_type
        dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim]
        result[output.name] = tensor.elem_type, dims if tensor.HasField("shape") else None
    return result


def test_symbolic_dimensions() -> None:
    found = infer(
        {
            "input_forward": (TensorProto.FLOAT16, ["batch", None, "width"]),
            "output_delta": (TensorProto.FLOAT16, [None, 7, None]),
            "gamma": (TensorProto.FLOAT, ["width"]),
        },
        use_stats=0,
    )
    assert found["input_delta"] == (TensorProto.FLOAT16, ["batch", 7, "width"])
    assert found["gamma_delta"] == found["beta_delta"] == (TensorProto.FLOAT, ["width"])


def test_unknown_rank() -> None:
    found = infer(
        {
            "input_forward": (TensorProto.FLOAT, None),
            "output_delta": (TensorProto.FLOAT, None),
            "gamma": (TensorProto.FLOAT, [1, 5]),
            "beta": (TensorProto.FLOAT, None),
        },
        use_stats=0,
        begin_norm_axis=3,
    )
    assert found == {
        "input_delta": (TensorProto.FLOAT, None),
        "gamma_delta": (TensorProto.FLOAT, [1, 5]),
        "beta_delta": (TensorProto.FLOAT, None),
    }


def test_rank_of_the_gradient_is_enough() -> None:
    found = infer(
        {
            "input_forward": (TensorProto.DOUBLE, None),
            "output_delta": (TensorProto.DOUBLE, [2, 3]),
            "gamma": (TensorProto.DOUBLE, [3]),
        },
        use_stats=0,
    )
    assert found["input_delta"] == (TensorProto.DOUBLE, [2, 3])


@pytest.mark.parametrize("name", GENERATED)
def test_generated_files_are_current(name: str) -> None:
    path = Path(__file__).parents[1] / name
    assert path.read_text() == GENERATED[name]()
