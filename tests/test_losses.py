# SPDX-License-Identifier: Apache-2.0
"""Losses that are put on a model: their values and gradients against formulas in double, their labels, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import command
from onnx import ModelProto, TensorProto
from onnx.reference import ReferenceEvaluator

import lnbp_onnx

Array = np.ndarray[Any, Any]

_STEP = 1e-5


def model_of(shape: str, element_type: str = "double", last: str = "Identity") -> ModelProto:
    """An output y of this shape, which `last` makes of the input x."""
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 18]>
        m ({element_type}{shape} x) => ({element_type}{shape} y) {{ h = Identity (x) y = {last} (h) }}"""
    )


def mse(y: Array, label: Array) -> Any:
    return np.mean((y - label) ** 2)


def l1(y: Array, label: Array) -> Any:
    return np.mean(np.abs(y - label))


def bce(y: Array, label: Array) -> Any:
    p = 1 / (1 + np.exp(-y))
    return np.mean(-label * np.log(p) - (1 - label) * np.log(1 - p))


def cross_entropy(class_axis: int) -> Callable[[Array, Array], Any]:
    def loss(y: Array, label: Array) -> Any:
        p = np.exp(y) / np.exp(y).sum(class_axis, keepdims=True)
        p = np.moveaxis(p, class_axis, -1).reshape(-1, y.shape[class_axis])
        return np.mean([-np.log(row[each]) for row, each in zip(p, label.reshape(-1), strict=True) if each != -100])

    return loss


def draw(*shape: int) -> Array:
    return np.random.default_rng(4).normal(size=shape)


Y = draw(3, 4)
SHARES = np.abs(draw(3, 4)) % 1
CLASSES = np.array([3, 0, 2])
WITH_ZERO = np.where(np.arange(12).reshape(3, 4) % 5 == 0, 0.0, Y)

CASES: dict[str, tuple[str, str, dict[str, Any], Array, Array, Callable[[Array, Array], Any]]] = {
    "mse": ("[n, 4]", "Identity", {"loss": "mse"}, Y, draw(3, 4)[::-1], mse),
    "l1": ("[n, 4]", "Identity", {"loss": "l1"}, Y, draw(3, 4)[::-1], l1),
    "bce": ("[n, 4]", "Identity", {"loss": "bce"}, WITH_ZERO, SHARES, bce),
    "bce of probabilities": ("[n, 4]", "Sigmoid", {"loss": "bce"}, Y, SHARES, bce),
    "cross-entropy": ("[n, 4]", "Identity", {"loss": "cross-entropy"}, Y, CLASSES, cross_entropy(1)),
    "cross-entropy of probabilities": ("[n, 4]", "Softmax", {"loss": "cross-entropy"}, Y, CLASSES, cross_entropy(1)),
    "cross-entropy of pixels": (
        *("[n, 4, 2, 3]", "Identity", {"loss": "cross-entropy"}),
        *(draw(1, 4, 2, 3), np.array([[[0, 1, -100], [3, 3, 2]]]), cross_entropy(1)),
    ),
    "cross-entropy of a text": (
        *("[n, length, 4]", "Softmax", {"loss": "cross-entropy", "class_axis": -1}),
        *(draw(2, 3, 4), np.array([[0, 1, -100], [3, 3, 2]]), cross_entropy(2)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str) -> None:
    shape, last, settings, x, label, oracle = CASES[name]
    model = model_of(shape, last=last)
    result = lnbp_onnx.gradient(model, of="y", wrt=["x"], label="target", **settings)
    onnx.checker.check_model(result, full_check=True)
    assert [output.name for output in result.graph.output] == ["y", "loss", "x.grad"]
    _, *results = ReferenceEvaluator(result).run(None, {"x": x, "target": label})
    loss, gradient = map(np.asarray, results)
    np.testing.assert_allclose(loss, oracle(x, label), rtol=1e-6)
    differences = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        moved = np.zeros_like(x)
        moved[index] = _STEP
        differences[index] = (oracle(x + moved, label) - oracle(x - moved, label)) / (2 * _STEP)
    np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_in_onnxruntime(name: str) -> None:
    shape, last, settings, x, label, oracle = CASES[name]
    model = lnbp_onnx.gradient(model_of(shape, "float", last), of="y", wrt=["x"], label="target", **settings)
    feeds = {"x": x.astype(np.float32), "target": label if label.dtype == np.int64 else label.astype(np.float32)}
    (loss,) = lnbp_onnx.inference_session(model).run(["loss"], feeds)
    np.testing.assert_allclose(loss, oracle(x, label), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "settings", "element_type", "dims"),
    [
        ("[n, 4]", {"loss": "mse"}, TensorProto.FLOAT16, ["n", 4]),
        ("[n, 4]", {"loss": "cross-entropy"}, TensorProto.INT64, ["n"]),
        ("[n, 4, h, 5]", {"loss": "cross-entropy"}, TensorProto.INT64, ["n", "h", 5]),
        ("[n, t, 4]", {"loss": "cross-entropy", "class_axis": -1}, TensorProto.INT64, ["n", "t"]),
    ],
)
def test_labels(shape: str, settings: dict[str, Any], element_type: int, dims: list[Any]) -> None:
    """Of a half type, whose loss is a float."""
    result = lnbp_onnx.gradient(model_of(shape, "float16"), of="y", wrt=["x"], label="target", **settings)
    onnx.checker.check_model(result, full_check=True)
    label = result.graph.input[-1]
    found = [dim.dim_param or dim.dim_value for dim in label.type.tensor_type.shape.dim]
    assert (label.name, label.type.tensor_type.elem_type, found) == ("target", element_type, dims)
    types = {output.name: output.type.tensor_type.elem_type for output in result.graph.output}
    assert types == {"y": TensorProto.FLOAT16, "loss": TensorProto.FLOAT, "x.grad": TensorProto.FLOAT16}


def parsed_with_loss() -> ModelProto:
    model = model_of("[3]")
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "loss"
    return model


def test_a_softmax_over_another_axis_is_left_alone() -> None:
    model = model_of("[2, 3, 3]", last="Softmax")
    result = lnbp_onnx.gradient(model, of="y", wrt=["x"], loss="cross-entropy", label="target")
    (loss,) = (node for node in result.graph.node if node.op_type == "SoftmaxCrossEntropyLoss")
    assert loss.input[0] == "y"


@pytest.mark.parametrize(
    ("model", "settings", "part"),
    [
        (model_of("[3]"), {"loss": "cross-entropy"}, "has shape [3]"),
        (model_of("[2, 3, 4, 5]"), {"loss": "cross-entropy", "class_axis": 2}, "it must be 1 or 3"),
        (model_of("[2, 3]"), {"loss": "cross-entropy", "class_axis": 2}, "it must be 1 (transpose"),
        (model_of("[3]", "int64"), {"loss": "mse"}, "of 'y' is int64"),
        (model_of("[3]"), {"loss": "mse", "label": "x"}, "label: the model has the name 'x'"),
        (model_of("[3]"), {"loss": "mse", "label": "loss"}, "label: the model has the name 'loss'"),
        (parsed_with_loss(), {"loss": "mse"}, "has the name 'loss' already, which the loss needs"),
        (model_of("[3]"), {"loss": "mse", "of": "z"}, "no node of the graph computes 'z'"),
    ],
)
def test_refusals(model: ModelProto, settings: dict[str, Any], part: str) -> None:
    with pytest.raises(lnbp_onnx.InvalidModelError) as error:
        lnbp_onnx.gradient(model, **{"of": "y", "wrt": ["x"], "label": "target", **settings})
    assert part in str(error.value)


def test_an_unknown_rank_is_refused() -> None:
    model = model_of("[3]")
    for each in (model.graph.input[0], model.graph.output[0]):
        each.type.tensor_type.ClearField("shape")
    with pytest.raises(lnbp_onnx.InvalidModelError, match="the rank of 'y' is not known"):
        lnbp_onnx.gradient(model, of="y", wrt=["x"], loss="l1", label="target")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"loss": "hinge", "label": "t"}, "loss is 'hinge'; it must be one of 'mse', 'cross-entropy', 'bce', 'l1'"),
        ({"loss": "mse"}, "label is missing"),
        ({"label": "t"}, "label is given without loss"),
    ],
)
def test_arguments_that_do_not_go_together(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        lnbp_onnx.gradient(model_of("[3]"), of="y", **settings)


def test_commands(tmp_path: Path) -> None:
    onnx.save(model_of("[n, t, 4]"), tmp_path / "m.onnx")
    options = ["--of", "y", "--wrt", "x", "--loss", "cross-entropy", "--label", "target", "--class-axis", "-1"]
    result = command("gradient", "m.onnx", *options, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["label"], data["gradients"]) == ("target", ["x.grad"])
    expected = lnbp_onnx.gradient(
        model_of("[n, t, 4]"), of="y", wrt=["x"], loss="cross-entropy", label="target", class_axis=-1
    )
    assert onnx.load(tmp_path / "m.gradient.onnx") == expected
    for arguments, part in (
        (["--of", "y", "--loss", "hinge", "--label", "t"], "Invalid value for '--loss': 'hinge' is not one of"),
        (["--of", "y", "--loss", "mse"], "--label is missing"),
    ):
        refused = command("gradient", "m.onnx", *arguments, cwd=tmp_path)
        assert refused.returncode == 2
        assert part in refused.stderr.replace("\n", " ")
