# SPDX-License-Identifier: Apache-2.0
"""Modules that ask whether all they have computed is finite, as those do that clamp what is not."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lnbp_onnx.interop.torch_call import NamedTensors


def _of(*names: str) -> set[Callable[..., Any]]:
    """Return the functions and methods of these names."""
    return {function for name in names for of in (torch, torch.Tensor) if (function := getattr(of, name, None))}


_TRUE, _FALSE = _of("isfinite"), _of("isnan", "isinf")
"""The questions, by the answer for each element where all are finite."""

_SAME, _OPPOSITE = (
    _of("all", "any", "detach"),
    _of("logical_not", "logical_not_", "bitwise_not", "bitwise_not_", "__invert__"),
)
_ANSWERS = _of("__bool__", "item")


class TakenForFinite(TorchFunctionMode):  # type: ignore[misc]  # torch has no types where it is not installed
    """Where Python asks whether all values are finite, the answer is that they are.

    What it is asked of has no values while it is traced. Results are NaN where the answer was wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self._expected: dict[int, tuple[Any, bool]] = {}  # with the tensors, whose ids are then no others'
        self._answered: list[Any] = []

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        known = self._expected.get(id(args[0])) if args else None
        if known and function in _ANSWERS:
            tensor, expected = known
            self._answered.append(tensor if expected else tensor.logical_not())
            return expected
        result = function(*args, **(kwargs or {}))
        if function in _TRUE or function in _FALSE:
            self._expected[id(result)] = result, function in _TRUE
        elif known and (function in _SAME or function in _OPPOSITE):
            self._expected[id(result)] = result, known[1] != (function in _OPPOSITE)
        return result

    def marked(self, outputs: NamedTensors) -> NamedTensors:
        """Return outputs with NaN in those of floating type, unless all answers were right."""
        if not self._answered:
            return outputs
        right = torch.stack([each.all() for each in self._answered]).all()
        return {
            name: torch.where(right, each, torch.nan) if each.is_floating_point() else each
            for name, each in outputs.items()
        }
