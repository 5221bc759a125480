# SPDX-License-Identifier: Apache-2.0
"""What matching finds: a gradient with its operands and outputs, or why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx.matching.operands import Operands
from lnbp_onnx.node import Dim

_WORTH = {"input_delta": 4, "gamma_delta": 2, "beta_delta": 1}


@dataclass(frozen=True, slots=True)
class Gradient:
    """A layer-norm gradient that the graph computes.

    Attributes:
        operands: What the operator's inputs are.
        axis: begin_norm_axis.
        epsilon: epsilon, a float32 number.
        outputs: By the operator's output names, the values that are equal to it whatever their shape, in
            topological order.
        is_shaped: Whether the outputs are known to have the operator's shapes.
        gamma_shape: The shape that gamma has to be given, None where its own will do.
        region: The numbers of the values that follow from its operands.
        addends: What the values of input_delta have beside it, where the graph adds its terms to another gradient one
            by one: they are the sum.
    """

    operands: Operands
    axis: int
    epsilon: float
    outputs: dict[str, tuple[ir.Value, ...]]
    is_shaped: bool = False
    gamma_shape: tuple[Dim, ...] | None = None
    region: frozenset[int] = frozenset()
    addends: tuple[ir.Value, ...] = ()

    @property
    def worth(self) -> int:
        """How much of the operator's outputs the graph has: input_delta before gamma_delta before beta_delta."""
        return sum(_WORTH[name] for name, values in self.outputs.items() if values)

    @property
    def is_best(self) -> bool:
        """Whether no other choice of operands can give more of the outputs."""
        named_gamma = self.operands.gamma is not None and not self.operands.gamma_is_number
        return bool(self.outputs["input_delta"] and (self.outputs.get("gamma_delta") or named_gamma))


@dataclass(frozen=True, slots=True)
class NearMiss:
    """What looks like a gradient and is not taken.

    Attributes:
        closeness: How near it is, to choose between several.
        reason: Why, to be read by a person.
        region: The numbers of the values that follow from its operands.
    """

    closeness: int
    reason: str
    region: frozenset[int] = frozenset()


def nearest(misses: Sequence[NearMiss]) -> NearMiss | None:
    """Return the nearest of several, with the values of all."""
    if not misses:
        return None
    miss = max(misses, key=lambda miss: miss.closeness)
    return NearMiss(miss.closeness, miss.reason, frozenset().union(*(each.region for each in misses)))
