# SPDX-License-Identifier: Apache-2.0
"""What matching finds: a gradient with its operands and outputs, or why there is none."""

from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx.node import Dim


@dataclass(frozen=True, slots=True)
class Statistic:
    """Where the variance comes from: `value` is it, or 1 / sqrt of it ("rstd"), or the root ("std")."""

    value: ir.Value
    kind: str


@dataclass(frozen=True, slots=True)
class Gradient:
    """A layer-norm gradient that the graph computes.

    Attributes:
        x: The operator's input_forward.
        dy: Its output_delta.
        gamma: Its gamma, None where it scales by nothing.
        mean: The given mean, None where the statistics are computed.
        statistic: The given variance or what it is had from, None where the statistics are computed.
        axis: begin_norm_axis.
        epsilon: epsilon, a float32 number.
        outputs: By the operator's output names, the values that are equal to it whatever their shape, in
            topological order.
        beta: What gives beta_delta its shape, None where that is gamma's.
        is_shaped: Whether the outputs are known to have the operator's shapes.
        dy_order: The order in which dy's axes are x's, None where they are.
        gamma_shape: The shape that gamma has to be given, None where its own will do.
        region: The numbers of the values that follow from its operands.
    """

    x: ir.Value
    dy: ir.Value
    gamma: ir.Value | None
    mean: ir.Value | None
    statistic: Statistic | None
    axis: int
    epsilon: float
    outputs: dict[str, tuple[ir.Value, ...]]
    beta: ir.Value | None = None
    is_shaped: bool = False
    dy_order: tuple[int, ...] | None = None
    gamma_shape: tuple[Dim, ...] | None = None
    region: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class NearMiss:
    """What looks like a gradient and is not taken.

    Attributes:
        reason: Why.
        region: The numbers of the values that follow from its operands.
    """

    reason: str
    region: frozenset[int]
