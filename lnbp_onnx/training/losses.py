# SPDX-License-Identifier: Apache-2.0
"""The losses: what each takes, and its mean in standard operators."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import onnx_ir as ir

from lnbp_onnx.graphs.writer import Writer
from lnbp_onnx.training.names import LossName

IGNORED_LABEL = -100
"""The label of what does not count in a cross-entropy, as in torch."""


ElementLoss: TypeAlias = Callable[[Writer, ir.Value, ir.Value], ir.Value]
"""Writes the losses of the elements of an output and of a label of the same shape."""


def mse(w: Writer, output: ir.Value, label: ir.Value) -> ir.Value:
    """(output - label)^2."""
    difference = w.op("Sub", output, label)
    return w.op("Mul", difference, difference)


def l1(w: Writer, output: ir.Value, label: ir.Value) -> ir.Value:
    """|output - label|."""
    return w.op("Abs", w.op("Sub", output, label))


def bce(w: Writer, output: ir.Value, label: ir.Value) -> ir.Value:
    """-label log(sigmoid(output)) - (1 - label) log(1 - sigmoid(output)), which is softplus(output) - label output."""
    return w.op("Sub", w.op("Softplus", output), w.op("Mul", label, output))


ELEMENT_LOSSES: Mapping[LossName, ElementLoss] = MappingProxyType(
    {LossName.MSE: mse, LossName.L1: l1, LossName.BCE: bce}
)
"""The losses that are means over all elements."""


def mean_of_elements(w: Writer, loss: LossName, output: ir.Value, label: ir.Value) -> ir.Value:
    """Write the mean of a loss over all elements."""
    return w.op("ReduceMean", ELEMENT_LOSSES[loss](w, output, label), keepdims=0)


def cross_entropy(w: Writer, scores: ir.Value, label: ir.Value, class_axis: int, rank: int) -> ir.Value:
    """Write the mean of -log(softmax(scores)) at the labels.

    Args:
        w: Writes the nodes.
        scores: The scores of the classes.
        label: The classes, of the shape of the scores without the axis of the classes.
        class_axis: That axis, 1 or the last one.
        rank: The number of axes of the scores.
    """
    if class_axis != 1:
        scores, label = w.op("Flatten", scores, axis=rank - 1), w.flat(label)
    return w.op("SoftmaxCrossEntropyLoss", scores, label, reduction="mean", ignore_index=IGNORED_LABEL)
