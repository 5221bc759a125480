# SPDX-License-Identifier: Apache-2.0
"""Reductions: dY is spread over the elements that were reduced to one."""

import onnx_ir as ir

from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients
from lnbp_onnx.training_ops.softmax import class_weight_gradient, label_gradient


def _axes(g: GradientOp) -> list[int]:
    """Return the reduced axes, in order."""
    rank, given = g.rank(g.input(0)), g.optional_input(1)
    axes = g.static_ints(given, "axes") if given is not None else list(g.attribute("axes", None) or [])
    if not axes:
        return [] if g.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(axis % rank for axis in axes)


def _kept(g: GradientOp, value: ir.Value) -> ir.Value:
    """Return a value in the shape of the result with the reduced axes as axes of length 1."""
    if g.attribute("keepdims", 1):
        return value
    for axis in _axes(g):
        value = g.unsqueeze(value, axis)
    return value


def reduce_sum(g: GradientOp) -> Gradients:
    """dY for each element."""
    return [g.op("Expand", _kept(g, g.dy), g.shape_of(g.input(0)))]


def reduce_mean(g: GradientOp) -> Gradients:
    """dY over the number of elements."""
    x = g.input(0)
    lengths = g.op("Gather", g.shape_of(x), g.ints(*_axes(g)), axis=0)
    count = g.cast(g.squeeze(g.product(lengths), 0), g.element_type(x))
    return [g.op("Expand", g.op("Div", _kept(g, g.dy), count), g.shape_of(x))]


def reduce_extreme(g: GradientOp) -> Gradients:
    """ReduceMax, ReduceMin: dY for the elements that are the result, in equal shares."""
    x, axes = g.input(0), _axes(g)
    hits = g.cast(g.compare("Equal", x, _kept(g, g.node.outputs[0])), g.element_type(x))
    if not axes:
        return [g.op("Mul", hits, g.dy)]
    return [g.op("Mul", hits, g.op("Div", _kept(g, g.dy), g.reduce("ReduceSum", hits, axes, keepdims=True)))]


def reduce_l1(g: GradientOp) -> Gradients:
    """dY * sign(X)."""
    return [g.op("Mul", g.op("Sign", g.input(0)), _kept(g, g.dy))]


def reduce_l2(g: GradientOp) -> Gradients:
    """dY * X / Y, 0 where Y is 0."""
    y = _kept(g, g.node.outputs[0])
    share = g.op("Div", _kept(g, g.dy), y)
    share = g.where(g.compare("Equal", y, g.number(0.0)), g.number(0.0), share)
    return [g.op("Mul", g.input(0), share)]


def reduce_sum_square(g: GradientOp) -> Gradients:
    """dY * 2 X."""
    return [g.op("Mul", g.op("Mul", g.number(2.0), g.input(0)), _kept(g, g.dy))]


def reduce_log_sum_exp(g: GradientOp) -> Gradients:
    """dY * exp(X - Y)."""
    return [g.op("Mul", g.op("Exp", g.op("Sub", g.input(0), _kept(g, g.node.outputs[0]))), _kept(g, g.dy))]


def reduce_log_sum(g: GradientOp) -> Gradients:
    """dY / exp(Y)."""
    share = g.op("Mul", _kept(g, g.dy), g.op("Exp", g.op("Neg", _kept(g, g.node.outputs[0]))))
    return [g.op("Expand", share, g.shape_of(g.input(0)))]


def reduce_prod(g: GradientOp) -> Gradients:
    """dY times the product of the other elements, also where some are 0."""
    x, axes, zero = g.input(0), _axes(g), g.number(0.0)
    dy = _kept(g, g.dy)
    if not axes:
        return [dy]
    is_zero = g.compare("Equal", x, zero)
    zeros = g.reduce("ReduceSum", g.cast(is_zero, g.element_type(x)), axes, keepdims=True)
    factors = g.where(is_zero, g.number(1.0), x)
    product = g.reduce("ReduceProd", factors, axes, keepdims=True)
    alone = g.where(g.compare("Equal", zeros, g.number(1.0)), product, zero)
    others = g.where(g.compare("Equal", zeros, zero), g.op("Div", product, factors), zero)
    return [g.op("Mul", g.where(is_zero, alone, others), dy)]


def top_k(g: GradientOp) -> Gradients:
    """Zeros of the shape of X, with dY at the indices along the axis."""
    zeros, indices = g.zeros_like(g.input(0)), g.node.outputs[1]
    if g.deltas[0] is None:
        g.refuse("a gradient comes through its indices, which have none")
    return [g.op("ScatterElements", zeros, indices, g.deltas[0], axis=g.attribute("axis", -1))]


def cumulative_sum(g: GradientOp) -> Gradients:
    """The cumulative sum of dY from the other end."""
    return [
        g.op(
            "CumSum",
            g.dy,
            g.input(1),
            exclusive=g.attribute("exclusive", 0),
            reverse=1 - g.attribute("reverse", 0),
        )
    ]


def lp_normalization(g: GradientOp) -> Gradients:
    """For Y = X / n with the norm n along the axis: (dY - s * sum(dY * Y)) / n, s = Y for p = 2, sign(X) for p = 1."""
    x, y, dy, axis, p = g.input(0), g.node.outputs[0], g.dy, g.attribute("axis", -1), g.attribute("p", 2)
    norm = g.reduce("ReduceL1" if p == 1 else "ReduceL2", x, [axis], keepdims=True)
    slope = g.op("Sign", x) if p == 1 else y
    total = g.reduce("ReduceSum", g.op("Mul", dy, y), [axis], keepdims=True)
    return [g.op("Div", g.op("Sub", dy, g.op("Mul", slope, total)), norm)]


def softmax(g: GradientOp) -> Gradients:
    """Y * (dY - sum(dY * Y)), summed over the axis."""
    return g.training_op("SoftmaxGrad_13", g.dy, g.node.outputs[0], like=g.if_wanted(0))


def log_softmax(g: GradientOp) -> Gradients:
    """dY - exp(Y) * sum(dY), summed over the axis."""
    return g.training_op("LogSoftmaxGrad_13", g.dy, g.node.outputs[0], like=g.if_wanted(0))


def softmax_cross_entropy_loss(g: GradientOp) -> Gradients:
    """(softmax(scores) - onehot(labels)) * dY for each label, by its weight; over the total weight for a mean.

    For the weight of a class the sum of -log(softmax(scores)) * dY at its labels; for a mean less Y, over that total.
    """
    has_log_prob = len(g.node.outputs) > 1 and bool(g.node.outputs[1].name)
    log_prob = g.node.outputs[1] if has_log_prob else g.op("LogSoftmax", g.input(0), axis=1)
    gradients: list[ir.Value | None] = [None]
    if g.wants(0):
        inputs = (g.dy, log_prob, g.input(1), g.optional_input(2))
        gradients = list(g.training_op("SoftmaxCrossEntropyLossGrad", *inputs, like=g.if_wanted(0)))
    return [*gradients, None, _of_class_weights(g, log_prob)]


def negative_log_likelihood_loss(g: GradientOp) -> Gradients:
    """-onehot(labels) * dY for each label, by its weight; over the total weight for a mean.

    For the weight of a class the sum of -X * dY at its labels; for a mean less Y, over that total.
    """
    log_prob = g.input(0)
    result = None
    if g.wants(0):
        dy, computed = g.computed(g.dy, log_prob)
        result = label_gradient(g, dy, computed, g.input(1), g.optional_input(2), _ignored(g), by_softmax=False)
        result = g.cast(result, g.element_type(log_prob))
    return [result, None, _of_class_weights(g, log_prob)]


def _of_class_weights(g: GradientOp, log_prob: ir.Value) -> ir.Value | None:
    if not g.wants(2):
        return None
    dy, computed = g.computed(g.dy, log_prob)
    label, weights = g.input(1), g.input(2)
    result = class_weight_gradient(g, dy, g.node.outputs[0], computed, label, weights, _ignored(g))
    return g.cast(result, g.element_type(weights))


def _ignored(g: GradientOp) -> ir.Value | None:
    ignore_index = g.attribute("ignore_index", None)
    return None if ignore_index is None else g.constant(ignore_index, ir.DataType.INT64)
