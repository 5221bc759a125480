# SPDX-License-Identifier: Apache-2.0
"""Exported models run, and what torch computes in their place."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from torch import nn

import lnbp_onnx
from lnbp_onnx.running.runners import KernelRunner, PlainRunner

Feeds = Mapping[str, np.ndarray]

MARKS = [
    # Of torch's own code, once it has been imported.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.usefixtures("torch_seed"),
]
"""What modules of tests that export have as their pytestmark."""


def native(model: ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    return KernelRunner(model).run(feeds)


def decomposed(model: ModelProto, feeds: Feeds) -> dict[str, np.ndarray]:
    """Run in a plain session, which cannot load a model that holds the operator."""
    return PlainRunner(lnbp_onnx.decompose(model)).run(feeds)


def autograd(module: nn.Module, arguments: Mapping[str, Any], **constants: Any) -> dict[str, np.ndarray]:
    """The loss and all gradients as torch computes them, by the names of the model's outputs."""
    module.zero_grad()
    inputs = {
        name: each.detach().requires_grad_(each.is_floating_point() and each.requires_grad)
        for name, each in arguments.items()
    }
    result = module(**inputs, **constants)
    loss = result["loss"] if isinstance(result, dict) else result[0] if isinstance(result, tuple) else result
    loss.backward()
    sources = {name: each for name, each in (*module.named_parameters(), *inputs.items()) if each.requires_grad}
    gradients = {
        f"{name}.grad": torch.zeros_like(each) if each.grad is None else each.grad for name, each in sources.items()
    }
    return {name: each.detach().double().numpy() for name, each in {"loss": loss, **gradients}.items()}


def arrays(arguments: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: each.detach().numpy() for name, each in arguments.items()}


def relative_errors(found: Feeds, expected: Feeds) -> dict[str, float]:
    return {
        name: np.abs(found[name].astype(np.float64) - each).max() / max(np.abs(each).max(), 1e-30)
        for name, each in expected.items()
    }


def assert_close(found: Feeds, expected: Feeds, tolerance: float = 1e-5) -> None:
    errors = relative_errors(found, expected)
    assert max(errors.values()) <= tolerance, errors


def drawn_by(model: ModelProto) -> list[str]:
    """The names of the random numbers in a model, in the order of the draws."""
    return [node.output[0] for node in model.graph.node if node.op_type.startswith("Random")]


def with_draws(model: ModelProto) -> ModelProto:
    """A model that gives its random numbers, too."""
    shown = ModelProto()
    shown.CopyFrom(model)
    infos = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in drawn_by(model))
    shown.graph.output.extend(infos)
    return shown
