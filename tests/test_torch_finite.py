# SPDX-License-Identifier: Apache-2.0
"""Exported modules that ask whether what they have computed is finite; needs torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lnbp_onnx

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from torch_modules import Written, cubes  # noqa: E402
from torch_runs import MARKS, arrays, assert_close, autograd, native  # noqa: E402

from lnbp_onnx.interop.torch import export, export_joint  # noqa: E402

pytestmark = MARKS


def clamped(layer: nn.Module, x: Tensor) -> Tensor:
    y = layer(x)
    if not torch.isfinite(y).all():
        y = torch.clamp(y, -1, 1)
    return cubes(y)


def refusing(layer: nn.Module, x: Tensor) -> Tensor:
    """With what is a loss, too, and questions that are asked the other way round."""
    loss, wrong = cubes(layer(x)), torch.isfinite(x).logical_not_()
    if (
        wrong.any()
        or torch.isnan(x).any()
        or (~x.isfinite()).any()
        or torch.any(torch.isinf(x)).item()
        or torch.isnan(loss[None])
    ):
        raise ValueError
    return loss


def checkpointed(layer: nn.Module, x: Tensor) -> Tensor:
    """Asked again in the backward pass."""
    return checkpoint(clamped, layer, x, use_reentrant=False)


def of_gradients(layer: nn.Module, x: Tensor) -> Tensor:
    """Asked in the backward pass alone."""
    y = layer(x)
    y.register_hook(lambda gradient: gradient if torch.isfinite(gradient).all() else torch.zeros_like(gradient))
    return cubes(y.sqrt())


@pytest.mark.parametrize("forward", [clamped, refusing, checkpointed])
def test_taken_for_finite(forward: Callable[[nn.Module, Any], Any]) -> None:
    """The model computes what the module does where all is finite, and else NaN."""
    module, arguments = Written(forward), {"x": torch.randn(4, 5)}
    model = export_joint(module, (torch.randn(4, 5),))
    assert_close(native(model, arrays(arguments)), autograd(module, arguments))
    for value in (torch.inf, torch.nan):
        arguments["x"][1, 2] = value
        assert all(np.isnan(each).all() for each in native(model, arrays(arguments)).values())


def test_of_gradients_alone() -> None:
    module, finite = Written(of_gradients, nn.Softplus()), {"x": torch.randn(4, 5)}
    model = export_joint(module, (finite["x"],), input_gradients=["x"])
    finite["x"].requires_grad_()
    assert_close(native(model, arrays(finite)), autograd(module, finite))
    found = native(model, {"x": np.full((4, 5), -200, np.float32)})  # whose softplus is 0
    assert np.isnan(found["loss"])
    assert np.isnan(found["x.grad"]).all()


def test_outputs_of_other_types() -> None:
    def forward(_: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x.double() if torch.isfinite(x).all() else x.double().abs()), x.argmax(1)

    model = export(Written(forward), (torch.randn(4, 5),))
    x = np.eye(4, 5, dtype=np.float32)
    first, second = native(model, {"x": x}).values()
    np.testing.assert_array_equal(first, x)
    np.testing.assert_array_equal(second, range(4))
    assert np.isnan(native(model, {"x": np.log(x, where=x > 0, out=np.full_like(x, -np.inf))})["output.0"]).all()


def test_an_example_that_is_not() -> None:
    """A module that goes another way on the arguments of the export is not what the model computes."""
    with pytest.raises(lnbp_onnx.InvalidModelError, match="something else than the module does"):
        export_joint(Written(clamped), (torch.full((4, 5), torch.inf),))


def test_other_questions_are_refused() -> None:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        y = layer(x)
        return cubes(y if torch.isfinite(y).all(1)[0] & (y > 0).any() else 2 * y)

    with pytest.raises(lnbp_onnx.InvalidModelError, match=r"takes a number from a tensor.*test_torch_finite\.py"):
        export_joint(Written(forward), (torch.randn(4, 5),))
