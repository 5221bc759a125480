# SPDX-License-Identifier: Apache-2.0
"""Exported models run, and what torch computes in their place."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import lnbp_onnx
from lnbp_onnx.running.runners import KernelRunner, PlainRunner

Feeds = Mapping[str, np.ndarray]


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


class Drawn(TorchFunctionMode):
    """Functions of torch with the given numbers in place of those that they would draw."""

    def __init__(self, numbers: list[Tensor]) -> None:
        super().__init__()
        following = iter(numbers)

        def dropout(x: Tensor, p: float, training: bool = True, inplace: bool = False, axes: int = 0) -> Tensor:
            del inplace
            if not training or p == 0:
                return x
            kept = next(following) < 1 - p
            assert kept.shape == (x.shape[: x.dim() - axes] + (1,) * axes)
            return x * kept / (1 - p)

        def attention(
            query: Tensor,
            key: Tensor,
            value: Tensor,
            attn_mask: Tensor | None = None,
            dropout_p: float = 0.0,
            is_causal: bool = False,
            scale: float | None = None,
            enable_gqa: bool = False,
        ) -> Tensor:
            if enable_gqa:
                key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
            logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
            if is_causal:
                attn_mask = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                logits = logits.masked_fill(~attn_mask, -torch.inf)
            elif attn_mask is not None:
                logits = logits + attn_mask
            return dropout(logits.softmax(-1), dropout_p) @ value

        self.functions: dict[Any, Callable[..., Any]] = {
            functional.dropout: dropout,
            functional.dropout2d: lambda *args, **options: dropout(*args, **options, axes=2),
            functional.scaled_dot_product_attention: attention,
            torch.rand: lambda *_, **__: next(following),
            torch.randn_like: lambda _: next(following),
            Tensor.bernoulli_: lambda x, p: x.copy_(next(following) < p),
            Tensor.uniform_: lambda x, low, high: x.copy_(low + (high - low) * next(following)),
        }

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        return self.functions.get(function, function)(*args, **(kwargs or {}))
