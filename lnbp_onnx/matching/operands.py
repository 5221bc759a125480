# SPDX-License-Identifier: Apache-2.0
"""The values of a graph that the operator's inputs are, or come from."""

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Statistic:
    """Where the variance comes from: `value` is it, or 1 / sqrt of it ("rstd"), or the root ("std")."""

    value: ir.Value
    kind: str


@dataclass(frozen=True, slots=True)
class Operands:
    """The operands of a gradient, or those of a candidate that are chosen so far.

    Attributes:
        x: input_forward.
        dy: output_delta; None where it is not chosen yet.
        gamma: gamma, None where it scales by nothing.
        beta: What gives beta_delta its shape, None where that is gamma's.
        mean: The given mean, None where the statistics are computed.
        statistic: What the given variance is computed from, None where the statistics are computed.
        dy_axes: Which of x's axes those of `dy` are, None where they are the same.
        dy_has_seeds: Whether `dy` has one more axis than x, at its end and of length 1, as where a graph computes the
            gradients for several seeds at once.
        dy_is_number: Whether dy enters as the one number that all its elements are, as `gamma_is_number`.
        gamma_is_number: Whether gamma enters as the one number that all its elements are, not by name: a simplifier
            has computed with it.
    """

    x: ir.Value
    dy: ir.Value | None = None
    gamma: ir.Value | None = None
    beta: ir.Value | None = None
    mean: ir.Value | None = None
    statistic: Statistic | None = None
    dy_axes: tuple[int, ...] | None = None
    dy_has_seeds: bool = False
    dy_is_number: bool = False
    gamma_is_number: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether only gamma may be missing."""
        return self.dy is not None and (self.mean is None or self.statistic is not None)

    @property
    def inputs(self) -> tuple[ir.Value | None, ...]:
        """The values in the operator's order of inputs, the statistic in the place of the variance."""
        statistic = None if self.statistic is None else self.statistic.value
        return (self.x, self.dy, self.gamma, self.beta, self.mean, statistic)

    @property
    def dy_order(self) -> tuple[int, ...] | None:
        """The order that brings dy's axes into x's, None where they are in it."""
        axes = self.dy_axes
        return None if axes is None else tuple(axes.index(index) for index in range(len(axes)))
