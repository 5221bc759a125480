# SPDX-License-Identifier: Apache-2.0
"""Gradients of elementwise operators: dX = dY * f'(X), or in terms of Y = f(X)."""

import math

import onnx_ir as ir

from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp


def relu_grad(w: TrainingOp) -> Outputs:
    """(dY, X or Y): dY where it is positive, else 0."""
    return [_where_positive(w, 0.0)]


def leaky_relu_grad(w: TrainingOp) -> Outputs:
    """(dY, Y; alpha): dY where Y is positive, else alpha * dY."""
    return [_where_positive(w, w.attribute("alpha", 0.01))]


def _where_positive(w: TrainingOp, slope: float) -> ir.Value:
    given = w.inputs("dY", "X")
    dy, x = w.computed(*given)
    positive = w.compare("Greater", x, w.scalar_like(0.0, x))
    other = w.op("Mul", dy, w.scalar_like(slope, dy)) if slope else w.scalar_like(0.0, dy)
    return w.cast(w.where(positive, dy, other), w.element_type(*given))


def sigmoid_grad(w: TrainingOp) -> Outputs:
    """(dY, Y): dY * Y * (1 - Y)."""
    given = w.inputs("dY", "Y")
    dy, y = w.computed(*given)
    slope = w.op("Mul", y, w.op("Sub", w.scalar_like(1.0, y), y))
    return [w.cast(w.op("Mul", dy, slope), w.element_type(*given))]


def tanh_grad(w: TrainingOp) -> Outputs:
    """(dY, Y): dY * (1 - Y * Y)."""
    given = w.inputs("dY", "Y")
    dy, y = w.computed(*given)
    slope = w.op("Sub", w.scalar_like(1.0, y), w.op("Mul", y, y))
    return [w.cast(w.op("Mul", dy, slope), w.element_type(*given))]


def quick_gelu_grad(w: TrainingOp) -> Outputs:
    """(dY, X; alpha): for Y = X * s with s = sigmoid(alpha * X), dY * s * (1 + alpha * X * (1 - s))."""
    given = w.inputs("dY", "X")
    dy, x = w.computed(*given)
    one = w.scalar_like(1.0, x)
    ax = w.op("Mul", x, w.scalar_like(w.attribute("alpha", 1.702), x))
    s = w.op("Sigmoid", ax)
    slope = w.op("Mul", s, w.op("Add", one, w.op("Mul", ax, w.op("Sub", one, s))))
    return [w.cast(w.op("Mul", dy, slope), w.element_type(*given))]


def gelu_grad(w: TrainingOp) -> Outputs:
    """(dY, X): for Y = X * P(X) with the normal distribution P and its density p, dY * (P(X) + X * p(X))."""
    given = w.inputs("dY", "X")
    dy, x = w.computed(*given)
    return [w.cast(w.op("Mul", dy, _gelu_slope(w, x)), w.element_type(*given))]


def fast_gelu_grad(w: TrainingOp) -> Outputs:
    """(dY, X): the gradient of 0.5 * X * (1 + tanh(sqrt(2 / pi) * (X + 0.044715 * X^3)))."""
    given = w.inputs("dY", "X")
    dy, x = w.computed(*given)
    return [w.cast(w.op("Mul", dy, _fast_gelu_slope(w, x)), w.element_type(*given))]


def bias_gelu_grad(w: TrainingOp) -> Outputs:
    """(dY, X, B): GeluGrad at X + B."""
    given = w.inputs("dY", "X", "B")
    dy, x, b = w.computed(*given)
    return [w.cast(w.op("Mul", dy, _gelu_slope(w, w.op("Add", x, b))), w.element_type(*given))]


def bias_fast_gelu_grad(w: TrainingOp) -> Outputs:
    """(dY, X, B): FastGeluGrad at X + B."""
    given = w.inputs("dY", "X", "B")
    dy, x, b = w.computed(*given)
    return [w.cast(w.op("Mul", dy, _fast_gelu_slope(w, w.op("Add", x, b))), w.element_type(*given))]


def _gelu_slope(w: TrainingOp, x: ir.Value) -> ir.Value:
    half, one = w.scalar_like(0.5, x), w.scalar_like(1.0, x)
    erf = w.op("Erf", w.op("Mul", x, w.scalar_like(math.sqrt(0.5), x)))
    distribution = w.op("Mul", half, w.op("Add", erf, one))
    exponent = w.op("Mul", w.scalar_like(-0.5, x), w.op("Mul", x, x))
    density = w.op("Mul", w.op("Exp", exponent), w.scalar_like(1 / math.sqrt(2 * math.pi), x))
    return w.op("Add", distribution, w.op("Mul", x, density))


def _fast_gelu_slope(w: TrainingOp, x: ir.Value) -> ir.Value:
    half, one = w.scalar_like(0.5, x), w.scalar_like(1.0, x)
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = w.op("Mul", x, x)
    inner = w.op("Add", w.scalar_like(scale, x), w.op("Mul", w.scalar_like(scale * cubic, x), square))
    inner_slope = w.op("Add", w.scalar_like(scale, x), w.op("Mul", w.scalar_like(3 * scale * cubic, x), square))
    t = w.op("Tanh", w.op("Mul", x, inner))
    sech = w.op("Sub", one, w.op("Mul", t, t))
    bend = w.op("Mul", w.op("Mul", sech, x), inner_slope)
    return w.op("Mul", half, w.op("Add", w.op("Add", one, t), bend))


def dropout_grad(w: TrainingOp) -> Outputs:
    """(dY, mask, ratio = 0.5, training_mode): dY / (1 - ratio) where the mask is set, else 0.

    `training_mode` is not looked at, as in ONNX Runtime: where it is false the mask is all ones, and a training graph
    has no such node.
    """
    dy, mask = w.inputs("dY", "mask")
    (computed,) = w.computed(dy)
    ratio = w.optional_input(2)
    if ratio is None:
        kept = w.scalar_like(0.5, computed)
    else:
        scalar = w.reshape(w.cast(ratio, w.element_type(computed)), w.ints())
        kept = w.op("Sub", w.scalar_like(1.0, computed), scalar)
    result = w.where(mask, w.op("Div", computed, kept), w.scalar_like(0.0, computed))
    return [w.cast(result, w.element_type(dy))]


def scale(w: TrainingOp) -> Outputs:
    """(X, S; scale_down): X * S, or X / S; S has one element of any type."""
    x, factor = w.inputs("input", "scale")
    (computed,) = w.computed(x)
    factor = w.reshape(w.cast(factor, w.element_type(computed)), w.ints())
    result = w.op("Div" if w.attribute("scale_down", 0) else "Mul", computed, factor)
    return [w.cast(result, w.element_type(x))]
