# SPDX-License-Identifier: Apache-2.0
"""The gradient of GridSample: what it is written as against ONNX Runtime's own, the gradients against torch's."""

from typing import Any

import numpy as np
import onnx
import pytest
from finite_differences import run_in_onnxruntime
from onnx import ModelProto, helper

import lnbp_onnx

LENGTHS = {2: ((3, 4), (5, 2)), 3: ((3, 2, 4), (2, 3, 2))}


def sampled(dtype: Any, opset: int, axes: int, **attributes: Any) -> tuple[ModelProto, dict[str, Any]]:
    """A model of a GridSample, and places that are in part outside of what is sampled."""
    rng = np.random.default_rng(8)
    lengths, places = LENGTHS[axes]
    feeds = {"x": rng.normal(size=(2, 3, *lengths)), "grid": rng.uniform(-1.5, 1.5, size=(2, *places, axes))}
    feeds = {name: value.astype(dtype) for name, value in feeds.items()}
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("GridSample", ["x", "grid"], ["y"], **attributes)],
        "sampled",
        [helper.make_tensor_value_info(name, element_type, value.shape) for name, value in feeds.items()],
        [helper.make_tensor_value_info("y", element_type, (2, 3, *places))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), feeds


CASES = [
    (opset, axes, mode, padding, align)
    for opset, axes, modes in ((16, 2, ("bilinear", "nearest")), (20, 2, ("linear",)), (20, 3, ("linear",)))
    for mode in modes
    for padding in ("zeros", "border")
    for align in (0, 1)
]


@pytest.mark.parametrize(("opset", "axes", "mode", "padding", "align"), CASES)
def test_samples_and_gradients(opset: int, axes: int, mode: str, padding: str, align: int) -> None:
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": align}
    model, feeds = sampled(np.float32, opset, axes, **attributes)
    wrt = ["x"] if mode == "nearest" else ["x", "grid"]
    result = lnbp_onnx.gradient(model, of="y", wrt=wrt, seed="seed")
    onnx.checker.check_model(result, full_check=True)
    of_runtime = run_in_onnxruntime(model, feeds)["y"]
    seed = np.random.default_rng(9).normal(size=of_runtime.shape)
    written = run_in_onnxruntime(result, {**feeds, "seed": seed.astype(np.float32)})
    np.testing.assert_allclose(written["y"], of_runtime, rtol=1e-4, atol=1e-5)

    torch = pytest.importorskip("torch")
    model, feeds = sampled(np.float64, opset, axes, **attributes)
    result = lnbp_onnx.gradient(model, of="y", wrt=wrt, seed="seed")
    found = run_in_onnxruntime(result, {**feeds, "seed": seed})
    tensors = {name: torch.tensor(value, requires_grad=True) for name, value in feeds.items()}
    in_torch = {"mode": "nearest" if mode == "nearest" else "bilinear", "padding_mode": padding}
    y = torch.nn.functional.grid_sample(tensors["x"], tensors["grid"], align_corners=bool(align), **in_torch)
    np.testing.assert_allclose(found["y"], y.detach().numpy(), rtol=1e-9, atol=1e-9)
    y.backward(torch.tensor(seed))
    for name in wrt:
        np.testing.assert_allclose(found[f"{name}.grad"], tensors[name].grad.numpy(), rtol=1e-9, atol=1e-9)


def test_places_of_another_type() -> None:
    model, feeds = sampled(np.float64, 16, 2)
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    result = lnbp_onnx.gradient(model, of="y", wrt=["x", "grid"], seed="seed")
    onnx.checker.check_model(result, full_check=True)
    whole, _ = sampled(np.float64, 16, 2)
    expected = lnbp_onnx.gradient(whole, of="y", wrt=["x", "grid"], seed="seed")
    feeds["grid"] = feeds["grid"].astype(np.float32)
    seed = np.random.default_rng(9).normal(
        size=[dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    )
    found = run_in_onnxruntime(result, {**feeds, "seed": seed})
    in_double = run_in_onnxruntime(expected, {**feeds, "grid": feeds["grid"].astype(np.float64), "seed": seed})
    assert found["grid.grad"].dtype == np.float32
    for name, value in in_double.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_no_images() -> None:
    model, feeds = sampled(np.float32, 16, 2)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    result = lnbp_onnx.gradient(model, of="y", wrt=["x", "grid"], seed="seed")
    none = {name: value[:0] for name, value in feeds.items()}
    found = run_in_onnxruntime(result, {**none, "seed": run_in_onnxruntime(model, none)["y"]})
    assert {name: found[f"{name}.grad"].shape for name in none} == {name: value.shape for name, value in none.items()}


def test_what_is_not_covered() -> None:
    model, _ = sampled(np.float32, 16, 2, padding_mode="reflection")
    with pytest.raises(lnbp_onnx.InvalidModelError, match="'reflection'; bilinear, linear and nearest are covered"):
        lnbp_onnx.gradient(model, of="y", wrt=["x"], seed="seed")


def test_places_have_no_gradient_where_the_nearest_is_taken() -> None:
    model, _ = sampled(np.float32, 16, 2, mode="nearest")
    with pytest.raises(lnbp_onnx.InvalidModelError, match="does not depend on 'grid'"):
        lnbp_onnx.gradient(model, of="y", wrt=["grid"], seed="seed")
