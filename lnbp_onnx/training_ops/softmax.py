# SPDX-License-Identifier: Apache-2.0
"""Gradients of Softmax and LogSoftmax from their output, and of the losses built on them."""

from collections.abc import Callable
from typing import TypeAlias

import onnx_ir as ir

from lnbp_onnx.training_ops.indexing import added_elements
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp

_Formula: TypeAlias = Callable[[TrainingOp, ir.Value, ir.Value, int], ir.Value]


def softmax_grad(w: TrainingOp) -> Outputs:
    """(dY, Y; axis = -1): Y * (dY - sum(dY * Y)), summed over the axis."""
    return [_over_one_axis(w, _softmax_grad)]


def log_softmax_grad(w: TrainingOp) -> Outputs:
    """(dY, Y; axis = -1): dY - exp(Y) * sum(dY), summed over the axis."""
    return [_over_one_axis(w, _log_softmax_grad)]


def flat_softmax_grad(w: TrainingOp) -> Outputs:
    """(dY, Y; axis = 1), of opsets before 13: the same, summed over all axes from `axis` on."""
    return [_over_last_axes(w, _softmax_grad)]


def flat_log_softmax_grad(w: TrainingOp) -> Outputs:
    """(dY, Y; axis = 1), of opsets before 13: the same, summed over all axes from `axis` on."""
    return [_over_last_axes(w, _log_softmax_grad)]


def _over_one_axis(w: TrainingOp, formula: _Formula) -> ir.Value:
    given = w.inputs("dY", "Y")
    dy, y = w.computed(*given)
    return w.cast(formula(w, dy, y, w.attribute("axis", -1)), w.element_type(*given))


def _over_last_axes(w: TrainingOp, formula: _Formula) -> ir.Value:
    given = w.inputs("dY", "Y")
    dy, y = w.computed(*given)
    axis = w.attribute("axis", 1)
    rows = formula(w, w.op("Flatten", dy, axis=axis), w.op("Flatten", y, axis=axis), 1)
    return w.cast(w.reshape(rows, w.shape(dy)), w.element_type(*given))


def _softmax_grad(w: TrainingOp, dy: ir.Value, y: ir.Value, axis: int) -> ir.Value:
    total = w.reduce("ReduceSum", w.op("Mul", dy, y), [axis], keepdims=True)
    return w.op("Mul", y, w.op("Sub", dy, total))


def _log_softmax_grad(w: TrainingOp, dy: ir.Value, y: ir.Value, axis: int) -> ir.Value:
    total = w.reduce("ReduceSum", dy, [axis], keepdims=True)
    return w.op("Sub", dy, w.op("Mul", w.op("Exp", y), total))


def softmax_cross_entropy_loss_grad(w: TrainingOp) -> Outputs:
    """(dY, log_prob, label, weight; reduction, ignore_index): (exp(log_prob) - onehot(label)) * s for each label.

    s is dY for reduction none (of the label's shape) and sum, dY over the total weight for mean, each times the
    label's weight; 0 where the label is ignored.
    """
    ignore_index = w.attribute("ignore_index", None)
    ignored = None if ignore_index is None else w.constant(ignore_index, ir.DataType.INT64)
    log_prob = w.inputs("dY", "log_prob")[1]
    return [w.cast(_loss_grad(w, ignored), w.element_type(log_prob))]


def softmax_cross_entropy_loss_internal_grad(w: TrainingOp) -> Outputs:
    """The same with ignore_index as input 4, a term to add to the gradient as input 5, and output_type."""
    log_prob = w.inputs("dY", "log_prob")[1]
    result, bias = _loss_grad(w, _scalar(w, w.optional_input(4))), w.optional_input(5)
    output_type = ir.DataType(w.attribute("output_type", 0) or w.element_type(log_prob))
    if bias is not None:
        bias = w.cast(w.reshape(bias, w.shape(log_prob)), w.element_type(result))
        result = w.op("Add", result, bias)
    return [w.cast(result, output_type)]


def _loss_grad(w: TrainingOp, ignore_index: ir.Value | None) -> ir.Value:
    dy, log_prob, label = w.inputs("dY", "log_prob", "label")
    dy, log_prob = w.computed(dy, log_prob)
    return label_gradient(w, dy, log_prob, label, w.optional_input(3), ignore_index, by_softmax=True)


def label_gradient(
    w: TrainingOp,
    dy: ir.Value,
    log_prob: ir.Value,
    label: ir.Value,
    class_weights: ir.Value | None,
    ignore_index: ir.Value | None,
    *,
    by_softmax: bool,
) -> ir.Value:
    """Return the gradient of a loss that takes -log_prob at each label: by log_prob, or by what log_softmax made it of.

    The attribute reduction is the node's.
    """
    labels = _Labels(w, label, ignore_index, class_weights, w.element_type(log_prob))
    reduction = _reduction(w)
    if reduction != "none":
        dy = w.reshape(dy, w.ints())
    if reduction == "mean":
        dy = w.op("Div", dy, labels.total_weight())
    share = w.unsqueeze(w.op("Mul", labels.weights, dy), 1)
    classes = w.squeeze(w.part(w.shape(log_prob), 1, 2), 0)
    values = w.constant([0.0, 1.0], ir.DataType.FLOAT)
    onehot = w.op("OneHot", labels.safe, classes, values, axis=1, element_type=ir.DataType.FLOAT)
    onehot = w.cast(onehot, w.element_type(log_prob))
    slope = w.op("Sub", w.op("Exp", log_prob), onehot) if by_softmax else w.op("Neg", onehot)
    result = w.op("Mul", slope, share)
    if labels.ignored is None:
        return result
    return w.where(w.unsqueeze(labels.ignored, 1), w.scalar_like(0.0, result), result)


def class_weight_gradient(
    w: TrainingOp,
    dy: ir.Value,
    loss: ir.Value,
    log_prob: ir.Value,
    label: ir.Value,
    class_weights: ir.Value,
    ignore_index: ir.Value | None,
) -> ir.Value:
    """Return the gradient of the same loss by the weights of the classes: of each label's the sum of its -log_prob.

    Of a mean it is less the loss, and over the total weight.
    """
    labels = _Labels(w, label, ignore_index, class_weights, w.element_type(log_prob))
    share = w.op("Neg", w.squeeze(w.op("GatherElements", log_prob, w.unsqueeze(labels.safe, 1), axis=1), 1))
    reduction = _reduction(w)
    if reduction == "mean":
        loss = w.cast(w.reshape(loss, w.ints()), w.element_type(log_prob))
        share = w.op("Div", w.op("Sub", share, loss), labels.total_weight())
    share = w.op("Mul", share, dy if reduction == "none" else w.reshape(dy, w.ints()))
    if labels.ignored is not None:
        share = w.where(labels.ignored, w.scalar_like(0.0, share), share)
    return added_elements(w, w.shape(class_weights), w.flat(labels.safe), share)


def softmax_cross_entropy_loss_internal(w: TrainingOp) -> Outputs:
    """(scores, labels, weights, ignore_index; reduction, output_type): the loss, and log(softmax(scores))."""
    scores, label = w.inputs("scores", "labels")
    output_type = ir.DataType(w.attribute("output_type", 0) or w.element_type(scores))
    (computed,) = w.computed(scores)
    labels = _Labels(w, label, _scalar(w, w.optional_input(3)), w.optional_input(2), w.element_type(computed))
    shifted = w.op("Sub", computed, w.reduce("ReduceMax", computed, [1], keepdims=True))
    total = w.op("Log", w.reduce("ReduceSum", w.op("Exp", shifted), [1], keepdims=True))
    log_prob = w.op("Sub", shifted, total)
    picked = w.squeeze(w.op("GatherElements", log_prob, w.unsqueeze(labels.safe, 1), axis=1), 1)
    loss = w.op("Mul", w.op("Neg", picked), labels.weights)
    if labels.ignored is not None:
        loss = w.where(labels.ignored, w.scalar_like(0.0, loss), loss)
    reduction = _reduction(w)
    if reduction != "none":
        loss = w.op("ReduceSum", loss, keepdims=0)
    if reduction == "mean":
        loss = w.op("Div", loss, labels.total_weight())
    return [w.cast(loss, output_type), w.cast(log_prob, output_type)]


def _reduction(w: TrainingOp) -> str:
    reduction = str(w.attribute("reduction", "mean"))
    if reduction not in ("none", "sum", "mean"):
        w.refuse(f"its attribute reduction is {reduction!r}; it must be none, sum or mean")
    return reduction


def _scalar(w: TrainingOp, value: ir.Value | None) -> ir.Value | None:
    return None if value is None else w.reshape(w.cast(value, ir.DataType.INT64), w.ints())


class _Labels:
    """The labels of a loss: which are ignored, and the weight of each.

    Attributes:
        ignored: True where a label is ignored, None where none is.
        safe: The labels, 0 for those that are ignored: these may lie outside the classes.
        weights: The weight of each label, as if none was ignored.
    """

    def __init__(
        self,
        w: TrainingOp,
        label: ir.Value,
        ignore_index: ir.Value | None,
        class_weights: ir.Value | None,
        element_type: ir.DataType,
    ) -> None:
        self._w = w
        self.safe = w.cast(label, ir.DataType.INT64)
        self.ignored: ir.Value | None = None
        if ignore_index is not None:
            self.ignored = w.compare("Equal", self.safe, ignore_index)
            self.safe = w.where(self.ignored, w.constant(0, ir.DataType.INT64), self.safe)
        if class_weights is None:
            self.weights = w.filled(w.shape(self.safe), 1.0, element_type)
        else:
            self.weights = w.op("Gather", w.cast(class_weights, element_type), self.safe)

    def total_weight(self) -> ir.Value:
        """Return the sum of the weights of the labels that are not ignored, a scalar; 1 where it would be 0."""
        w, weights = self._w, self.weights
        if self.ignored is not None:
            weights = w.where(self.ignored, w.scalar_like(0.0, weights), weights)
        total = w.op("ReduceSum", weights, keepdims=0)
        return w.where(w.compare("Equal", total, w.scalar_like(0.0, total)), w.scalar_like(1.0, total), total)
