# SPDX-License-Identifier: Apache-2.0
"""Elementwise operators: dX = dY * f'(X), summed over the axes along which X was broadcast."""

import math
from collections.abc import Callable

import onnx_ir as ir

from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients, Rule
from lnbp_onnx.graphs.writer import FLOATS

_SELU = (1.67326319217681884765625, 1.05070102214813232421875)


def _times(slope: Callable[[GradientOp, ir.Value, ir.Value], ir.Value]) -> Rule:
    """Return the rule of an operator of one input with a slope in terms of X and Y."""

    def rule(g: GradientOp) -> Gradients:
        return [g.op("Mul", g.dy, slope(g, g.input(0), g.node.outputs[0]))]

    rule.__doc__ = slope.__doc__
    return rule


def neg(g: GradientOp) -> Gradients:
    """-dY."""
    return [g.op("Neg", g.dy)]


def sqrt(g: GradientOp) -> Gradients:
    """dY / (2 Y)."""
    return [g.op("Div", g.dy, g.op("Mul", g.number(2.0), g.node.outputs[0]))]


def log(g: GradientOp) -> Gradients:
    """dY / X."""
    return [g.op("Div", g.dy, g.input(0))]


@_times
def absolute(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * sign(X)."""
    return g.op("Sign", x)


@_times
def exp(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * Y."""
    return y


@_times
def reciprocal(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """-dY * Y * Y."""
    return g.op("Neg", g.op("Mul", y, y))


@_times
def erf(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * 2 / sqrt(pi) * exp(-X * X)."""
    return g.op("Mul", g.number(2 / math.sqrt(math.pi)), g.op("Exp", g.op("Neg", g.op("Mul", x, x))))


@_times
def sin(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * cos(X)."""
    return g.op("Cos", x)


@_times
def cos(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """-dY * sin(X)."""
    return g.op("Neg", g.op("Sin", x))


@_times
def tan(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * (1 + Y * Y)."""
    return g.op("Add", g.number(1.0), g.op("Mul", y, y))


@_times
def atan(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY / (1 + X * X)."""
    return g.op("Reciprocal", g.op("Add", g.number(1.0), g.op("Mul", x, x)))


@_times
def asin(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY / sqrt(1 - X * X)."""
    return g.op("Reciprocal", g.op("Sqrt", g.op("Sub", g.number(1.0), g.op("Mul", x, x))))


@_times
def acos(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """-dY / sqrt(1 - X * X)."""
    return g.op("Neg", g.op("Reciprocal", g.op("Sqrt", g.op("Sub", g.number(1.0), g.op("Mul", x, x)))))


@_times
def asinh(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY / sqrt(X * X + 1)."""
    return g.op("Reciprocal", g.op("Sqrt", g.op("Add", g.op("Mul", x, x), g.number(1.0))))


@_times
def acosh(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY / sqrt(X * X - 1)."""
    return g.op("Reciprocal", g.op("Sqrt", g.op("Sub", g.op("Mul", x, x), g.number(1.0))))


@_times
def atanh(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY / (1 - X * X)."""
    return g.op("Reciprocal", g.op("Sub", g.number(1.0), g.op("Mul", x, x)))


@_times
def sinh(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * cosh(X)."""
    return g.op("Cosh", x)


@_times
def cosh(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * sinh(X)."""
    return g.op("Sinh", x)


@_times
def softplus(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * sigmoid(X)."""
    return g.op("Sigmoid", x)


@_times
def softsign(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY / (1 + abs(X))^2."""
    root = g.op("Reciprocal", g.op("Add", g.op("Abs", x), g.number(1.0)))
    return g.op("Mul", root, root)


@_times
def mish(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """With t = tanh(softplus(X)): dY * (t + X * sigmoid(X) * (1 - t * t))."""
    t = g.op("Tanh", g.op("Softplus", x))
    bend = g.op("Sub", g.number(1.0), g.op("Mul", t, t))
    return g.op("Add", t, g.op("Mul", g.op("Mul", x, g.op("Sigmoid", x)), bend))


@_times
def hard_sigmoid(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * alpha where 0 < Y < 1, else 0."""
    inside = g.op(
        "And",
        g.compare("Greater", y, g.number(0.0)),
        g.compare("Less", y, g.number(1.0)),
        element_type=ir.DataType.BOOL,
    )
    return g.where(inside, g.number(g.attribute("alpha", 0.2)), g.number(0.0))


@_times
def hard_swish(g: GradientOp, x: ir.Value, y: ir.Value) -> ir.Value:
    """dY * 0 where X <= -3, dY where X >= 3, dY * (X / 3 + 1 / 2) between them."""
    between = g.op("Add", g.op("Mul", x, g.number(1 / 3)), g.number(0.5))
    low = g.where(g.compare("Greater", x, g.number(-3.0)), between, g.number(0.0))
    return g.where(g.compare("Less", x, g.number(3.0)), low, g.number(1.0))


def tanh(g: GradientOp) -> Gradients:
    """dY * (1 - Y * Y)."""
    return g.training_op("TanhGrad", g.dy, g.node.outputs[0], like=g.if_wanted(0))


def sigmoid(g: GradientOp) -> Gradients:
    """dY * Y * (1 - Y)."""
    return g.training_op("SigmoidGrad", g.dy, g.node.outputs[0], like=g.if_wanted(0))


def relu(g: GradientOp) -> Gradients:
    """dY where Y > 0, else 0."""
    return g.training_op("ReluGrad", g.dy, g.node.outputs[0], like=g.if_wanted(0))


def leaky_relu(g: GradientOp) -> Gradients:
    """dY where X > 0, else alpha * dY."""
    return g.training_op("LeakyReluGrad", g.dy, g.input(0), like=g.if_wanted(0))


def gelu(g: GradientOp) -> Gradients:
    """For X * P(X) with the normal distribution P and its density p: dY * (P(X) + X * p(X)); or approximate = tanh."""
    op_type = "FastGeluGrad" if g.attribute("approximate", "none") == "tanh" else "GeluGrad"
    return g.training_op(op_type, g.dy, g.input(0), like=g.if_wanted(0))


def quick_gelu(g: GradientOp) -> Gradients:
    """For X * s with s = sigmoid(alpha * X): dY * s * (1 + alpha * X * (1 - s))."""
    return g.training_op("QuickGeluGrad", g.dy, g.input(0), like=g.if_wanted(0))


def bias_gelu(g: GradientOp) -> Gradients:
    """Gelu's of the sum of both inputs."""
    return _with_bias(g, "BiasGeluGrad_dX")


def fast_gelu(g: GradientOp) -> Gradients:
    """Gelu's with approximate = tanh, of the sum of both inputs where there are two."""
    if g.optional_input(1) is None:
        return g.training_op("FastGeluGrad", g.dy, g.input(0), like=g.if_wanted(0))
    return _with_bias(g, "BiasFastGeluGrad_dX")


def _with_bias(g: GradientOp, op_type: str) -> Gradients:
    x, bias = g.input(0), g.input(1)
    (dx,) = g.training_op(op_type, g.dy, x, bias, like=[x])
    assert dx is not None
    return [dx, g.unbroadcast(dx, bias) if g.wants(1) else None]


def _exponential(g: GradientOp, alpha: float, gamma: float) -> Gradients:
    slope = g.op("Mul", g.number(alpha * gamma), g.op("Exp", g.input(0)))
    positive = g.compare("Greater", g.input(0), g.number(0.0))
    return [g.op("Mul", g.dy, g.where(positive, g.number(gamma), slope))]


def elu(g: GradientOp) -> Gradients:
    """dY where X > 0, else dY * alpha * exp(X)."""
    return _exponential(g, g.attribute("alpha", 1.0), 1.0)


def celu(g: GradientOp) -> Gradients:
    """dY where X > 0, else dY * exp(X / alpha)."""
    x = g.input(0)
    slope = g.op("Exp", g.op("Div", x, g.number(g.attribute("alpha", 1.0))))
    return [g.op("Mul", g.dy, g.where(g.compare("Greater", x, g.number(0.0)), g.number(1.0), slope))]


def selu(g: GradientOp) -> Gradients:
    """dY * gamma where X > 0, else dY * gamma * alpha * exp(X)."""
    return _exponential(g, g.attribute("alpha", _SELU[0]), g.attribute("gamma", _SELU[1]))


def clip(g: GradientOp) -> Gradients:
    """dY where min <= X <= max, else 0; for the bounds the sum of dY where X is beyond them, all max's if min > max."""
    x, dy, zero = g.input(0), g.dy, g.number(0.0)
    low, high = g.optional_input(1), g.optional_input(2)
    bounds: list[ir.Value | None] = [None, None]
    if high is not None:
        bounded = g.op("Max", x, low) if low is not None and (g.wants(1) or g.wants(2)) else x
        beyond = g.compare("Greater", bounded, high)
        bounds[1] = g.op("ReduceSum", g.where(beyond, dy, zero), keepdims=0) if g.wants(2) else None
        dy = g.where(beyond, zero, dy)
    if low is not None:
        beyond = g.compare("Less", x, low)
        bounds[0] = g.op("ReduceSum", g.where(beyond, dy, zero), keepdims=0) if g.wants(1) else None
        dy = g.where(beyond, zero, dy)
    return [dy, *bounds]


def prelu(g: GradientOp) -> Gradients:
    """dY where X > 0, else dY * slope; for slope, dY * X where X <= 0."""
    x, slope, dy = g.input(0), g.input(1), g.dy
    positive = g.compare("Greater", x, g.number(0.0))
    dx = g.where(positive, dy, g.op("Mul", dy, slope)) if g.wants(0) else None
    if not g.wants(1):
        return [dx]
    return [dx, g.unbroadcast(g.where(positive, g.number(0.0), g.op("Mul", dy, x)), slope)]


def add(g: GradientOp) -> Gradients:
    """dY for each input; Sum's as well."""
    return [None if value is None else g.unbroadcast(g.dy, value) for value in g.if_wanted(*range(len(g.node.inputs)))]


def mean(g: GradientOp) -> Gradients:
    """dY / n for each of n inputs."""
    count = len(g.node.inputs)
    share = g.op("Div", g.dy, g.number(float(count)))
    return [None if value is None else g.unbroadcast(share, value) for value in g.if_wanted(*range(count))]


def sub(g: GradientOp) -> Gradients:
    """dY and -dY."""
    a, b = g.if_wanted(0, 1)
    return [
        None if a is None else g.unbroadcast(g.dy, a),
        None if b is None else g.op("Neg", g.unbroadcast(g.dy, b)),
    ]


def mul(g: GradientOp) -> Gradients:
    """dY * B and dY * A."""
    a, b = g.if_wanted(0, 1)
    return [
        None if a is None else g.unbroadcast(g.op("Mul", g.dy, g.input(1)), a),
        None if b is None else g.unbroadcast(g.op("Mul", g.dy, g.input(0)), b),
    ]


def div(g: GradientOp) -> Gradients:
    """dY / B and -dY * Y / B."""
    a, b = g.if_wanted(0, 1)
    quotient = g.op("Div", g.dy, g.input(1))
    return [
        None if a is None else g.unbroadcast(quotient, a),
        None if b is None else g.unbroadcast(g.op("Neg", g.op("Mul", quotient, g.node.outputs[0])), b),
    ]


def power(g: GradientOp) -> Gradients:
    """dY * B * A^(B - 1), 0 where B = 0; for B, dY * Y * log(A), 0 where A = 0 and B >= 0."""
    a, b = g.if_wanted(0, 1)
    base, dy = g.input(0), g.dy
    exponent = g.cast(g.input(1), g.element_type(base))
    da = db = None
    if a is not None:
        tensor = g.known_tensor(g.input(1))
        if tensor is not None and tensor.size == 1 and float(tensor.numpy().reshape(-1)[0]) == 2.0:
            slope = g.op("Mul", g.number(2.0), base)
        else:
            slope = g.op("Mul", exponent, g.op("Pow", base, g.op("Sub", exponent, g.number(1.0))))
            slope = g.where(g.compare("Equal", exponent, g.number(0.0)), g.number(0.0), slope)
        da = g.unbroadcast(g.op("Mul", dy, slope), a)
    if b is not None:
        vanishes = g.op(
            "And",
            g.compare("Equal", base, g.number(0.0)),
            g.compare("GreaterOrEqual", exponent, g.number(0.0)),
            element_type=ir.DataType.BOOL,
        )
        slope = g.op("Mul", g.node.outputs[0], g.op("Log", base))
        db = g.unbroadcast(g.op("Mul", dy, g.where(vanishes, g.number(0.0), slope)), b)
    return [da, db]


def extreme(g: GradientOp) -> Gradients:
    """dY where an input is the result of Min or Max, in equal shares where several inputs are."""
    dy, y = g.dy, g.node.outputs[0]
    inputs = [g.input(index) for index in range(len(g.node.inputs))]
    hits = [g.cast(g.compare("Equal", value, y), g.element_type(y)) for value in inputs]
    share = g.op("Div", dy, g.op("Sum", *hits))
    return [
        g.unbroadcast(g.op("Mul", share, hit), value) if g.wants(index) else None
        for index, (value, hit) in enumerate(zip(inputs, hits, strict=True))
    ]


def choice(g: GradientOp) -> Gradients:
    """Where: dY where the condition holds for X, where it does not for Y, else 0."""
    condition, zero = g.input(0), g.number(0.0)
    x, y = g.if_wanted(1, 2)
    return [
        None,
        None if x is None else g.unbroadcast(g.where(condition, g.dy, zero), x),
        None if y is None else g.unbroadcast(g.where(condition, zero, g.dy), y),
    ]


def identity(g: GradientOp) -> Gradients:
    """dY."""
    return [g.dy]


def cast(g: GradientOp) -> Gradients:
    """dY in the type of X."""
    for value in (g.input(0), g.node.outputs[0]):
        if g.element_type(value) not in FLOATS:
            g.refuse(f"it casts from or to {g.element_type(value).name}, through which no gradient is written")
    return [g.cast(g.dy, g.element_type(g.input(0)))]


def dropout(g: GradientOp) -> Gradients:
    """dY, in training dY / (1 - ratio) where the mask is set."""
    training = g.optional_input(2)
    if training is None:
        return [g.dy]
    tensor = g.known_tensor(training)
    if tensor is not None and not tensor.numpy().reshape(-1)[0]:
        return [g.dy]
    mask, ratio = g.node.outputs[1], g.optional_input(1)
    if tensor is not None:
        return g.training_op("DropoutGrad", g.dy, mask, ratio, like=g.if_wanted(0))
    # Out of training the mask is set everywhere.
    (dy,) = g.computed(g.dy)
    dropped = g.scalar_like(0.5, dy) if ratio is None else g.cast(ratio, g.element_type(dy))
    one = g.scalar_like(1.0, dy)
    kept = g.where(training, g.op("Sub", one, dropped), one)
    return [g.cast(g.where(mask, g.op("Div", dy, kept), g.scalar_like(0.0, dy)), g.element_type(g.input(0)))]
