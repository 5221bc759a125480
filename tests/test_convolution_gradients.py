# SPDX-License-Identifier: Apache-2.0
"""The gradients of convolutions in standard operators against torch.autograd, over drawn sizes; needs torch."""

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

import lnbp_onnx

torch = pytest.importorskip("torch")


@st.composite
def convolutions(draw: Any) -> dict[str, Any]:
    axes = draw(st.integers(1, 3))

    def each(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(axes)]

    kernel, stride, dilation = each(1, 3), each(1, 4), each(1, 3)
    span = [(length - 1) * step + 1 for length, step in zip(kernel, dilation, strict=True)]
    padding = each(0, 2)
    transposed = draw(st.booleans())
    least = [1] * axes if transposed else [max(1, s - 2 * p) for s, p in zip(span, padding, strict=True)]
    if transposed:  # so that something is left
        least = [1 + 2 * p for p in padding]
    lengths = [low + more for low, more in zip(least, each(0, 5), strict=True)]
    output_padding = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    return {
        "lengths": lengths,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "transposed": transposed,
        "output_padding": output_padding if transposed else [0] * axes,
        "groups": draw(st.integers(1, 3)),
        "channels": (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
        "batch": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 1000)),
        "dynamic": draw(st.booleans()),
        "wanted": draw(st.lists(st.booleans(), min_size=3, max_size=3).filter(any)),
    }


@settings(max_examples=60)
@given(convolutions())
def test_convolutions(drawn: dict[str, Any]) -> None:
    torch.manual_seed(drawn["seed"])
    groups, (per_group, out_per_group) = drawn["groups"], drawn["channels"]
    transposed = drawn["transposed"]
    x = torch.randn(drawn["batch"], groups * per_group, *drawn["lengths"])
    weight_channels = (groups * per_group, out_per_group) if transposed else (groups * out_per_group, per_group)
    weight = torch.randn(*weight_channels, *drawn["kernel"])
    moves = [drawn[name] for name in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")]
    exact = [each.double().requires_grad_() for each in (x, weight, torch.zeros(groups * out_per_group))]
    y = torch.convolution(*exact, *moves)
    dy = torch.randn(y.shape)
    expected = torch.autograd.grad(y, exact, dy.double())
    attributes = {
        "group": groups,
        "strides": drawn["stride"],
        "dilations": drawn["dilation"],
        "pads": 2 * drawn["padding"],
        **({"output_padding": drawn["output_padding"]} if transposed else {}),
    }
    given_tensors = {"dy": dy.numpy(), "x": x.numpy(), "w": weight.numpy()}
    model = gradient_model("ConvTransposeGrad" if transposed else "ConvGrad", given_tensors, drawn, attributes)
    session = onnxruntime.InferenceSession(lnbp_onnx.decompose(model, training_ops=True).SerializeToString())
    for output, value in zip(session.get_outputs(), session.run(None, given_tensors), strict=True):
        wanted = expected[int(output.name[1:])].numpy()
        assert value.shape == wanted.shape
        np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


def gradient_model(
    op_type: str, tensors: dict[str, np.ndarray], drawn: dict[str, Any], attributes: dict[str, Any]
) -> onnx.ModelProto:
    def info(name: str, shape: Any) -> onnx.ValueInfoProto:
        shape = [f"{name}{axis}" if axis != 1 else length for axis, length in enumerate(shape)]
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

    dynamic = {name: drawn["dynamic"] and name != "w" for name in tensors}
    inputs = [
        info(name, each.shape)
        if dynamic[name]
        else helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, each.shape)
        for name, each in tensors.items()
    ]
    names = [f"y{index}" if wanted else "" for index, wanted in enumerate(drawn["wanted"])]
    node = helper.make_node(op_type, [*tensors], names, name="node", domain="com.microsoft", **attributes)
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name]
    graph = helper.make_graph([node], op_type, inputs, outputs)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
