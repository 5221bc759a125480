# SPDX-License-Identifier: Apache-2.0
"""Layers of networks: normalisation, convolution and pooling."""

import onnx_ir as ir

from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients

_SCALE_OF_CHANNELS_OPSET = 21
_TRAINING_MODE_OPSET = 14


def layer_normalization(g: GradientOp) -> Gradients:
    """One LayerNormBackprop node, with the statistics of the forward node.

    With the gradients dM and dR of these: (dM - dR * R^3 * (X - M)) / n besides, n the number of a row's elements.
    """
    _, mean, inv_std = g.node.outputs
    x, scale = g.input(0), g.input(1)
    dy, *of_statistics = g.deltas
    gradients: list[ir.Value | None] = [None] * len(g.node.inputs)
    if dy is not None:
        like = [x, *(value if g.wants(index) else None for index, value in enumerate(g.node.inputs[1:], 1))]
        gradients = list(g.training_op("LayerNormalizationGrad", dy, x, scale, mean, inv_std, like=like))
    if g.wants(0) and any(delta is not None for delta in of_statistics):
        parts = [gradients[0], _of_statistics(g, x, mean, inv_std, *of_statistics)]
        gradients[0] = g.op("Sum", *(part for part in parts if part is not None))
    return gradients


def _of_statistics(
    g: GradientOp,
    x: ir.Value,
    mean: ir.Value,
    inv_std: ir.Value,
    dmean: ir.Value | None,
    dinv_std: ir.Value | None,
) -> ir.Value:
    element_type = g.element_type(mean, inv_std)
    count = g.cast(g.squeeze(g.product(g.part(g.shape_of(x), g.attribute("axis", -1))), 0), element_type)
    total = None if dmean is None else g.op("Expand", dmean, g.shape_of(x))
    if dinv_std is not None:
        slope = g.op("Mul", dinv_std, g.op("Mul", inv_std, g.op("Mul", inv_std, inv_std)))
        turned = g.op("Mul", g.op("Sub", mean, g.cast(x, element_type)), slope)
        total = turned if total is None else g.op("Add", total, turned)
    assert total is not None
    return g.cast(g.op("Div", total, count), g.element_type(x))


def rms_normalization(g: GradientOp) -> Gradients:
    """With g = dY * scale and xhat = X * r: r * (g - xhat * mean(g * xhat)); for scale the sum of dY * xhat."""
    x, scale, axis = g.input(0), g.input(1), g.attribute("axis", -1)
    axes = list(range(axis % g.rank(x), g.rank(x)))
    if g.info(scale).shape is None or g.rank(scale) != len(axes):
        g.refuse("its scale is broadcast along the normalised axes, which is not covered (expand it)")
    (computed,) = g.computed(x)
    square = g.reduce("ReduceMean", g.op("Mul", computed, computed), axes, keepdims=True)
    square = g.op("Add", square, g.scalar_like(g.attribute("epsilon", 1e-5), computed))
    inv_std = g.op("Reciprocal", g.op("Sqrt", square))
    like = g.if_wanted(0, 1)
    return g.training_op("SimplifiedLayerNormalizationGrad", g.dy, x, scale, inv_std, like=like, axis=axis)


def simplified_layer_normalization(g: GradientOp) -> Gradients:
    """RMSNormalization's, as ONNX Runtime's optimiser writes it for older opsets."""
    like, inv_std = g.if_wanted(0, 1), g.node.outputs[1]
    return g.training_op("SimplifiedLayerNormalizationGrad", g.dy, g.input(0), g.input(1), inv_std, like=like)


def batch_normalization(g: GradientOp) -> Gradients:
    """BatchNormalizationGrad's in training; of given statistics dX = dY * scale / std and dmean = -sum(dX).

    Then dB = sum(dY), dscale = sum(dY * xhat), dvar = -dscale * scale / (2 std * std), with std * std = var + epsilon.
    The sums are over all axes but the channels.
    """
    given = [g.input(index) for index in range(5)]
    x, dy = g.computed(given[0], g.dy)
    rank, element_type = g.rank(given[0]), g.element_type(x)
    axes = [axis for axis in range(rank) if axis != 1]
    epsilon = g.scalar_like(g.attribute("epsilon", 1e-5), x)

    def column(value: ir.Value) -> ir.Value:
        return g.op("Reshape", value, g.ints(*(-1 if axis == 1 else 1 for axis in range(1, rank))))

    def inverse(variance: ir.Value) -> ir.Value:
        return g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, epsilon)))

    if g.opset < _TRAINING_MODE_OPSET and any(output.name for output in g.node.outputs[1:]):
        g.refuse_opset(_TRAINING_MODE_OPSET, "it is in training mode, as its outputs tell, which has a gradient")
    if g.attribute("training_mode", 0):
        mean = g.reduce("ReduceMean", x, axes, keepdims=False)
        centred = g.op("Sub", x, column(mean))
        inv_std = inverse(g.reduce("ReduceMean", g.op("Mul", centred, centred), axes, keepdims=False))
        like = g.if_wanted(0, 1, 2)
        return g.training_op("BatchNormalizationGrad", g.dy, given[0], given[1], mean, inv_std, like=like)
    scale, mean, variance = (g.cast(given[index], element_type) for index in (1, 3, 4))
    inv_std = inverse(variance)
    slope = g.op("Mul", scale, inv_std)
    xhat = g.op("Mul", g.op("Sub", x, column(mean)), column(inv_std))
    dbias = g.reduce("ReduceSum", dy, axes, keepdims=False)
    dscale = g.reduce("ReduceSum", g.op("Mul", dy, xhat), axes, keepdims=False)
    half = g.op("Mul", g.scalar_like(-0.5, x), g.op("Mul", slope, inv_std))
    gradients = [
        g.op("Mul", dy, column(slope)),
        dscale,
        dbias,
        g.op("Neg", g.op("Mul", dbias, slope)),
        g.op("Mul", dscale, half),
    ]
    return [
        g.cast(gradient, g.element_type(value)) if g.wants(index) else None
        for index, (gradient, value) in enumerate(zip(gradients, given, strict=True))
    ]


def instance_normalization(g: GradientOp) -> Gradients:
    """GroupNormalization's, with a group for each channel."""
    return _grouped(g, 0)


def group_normalization(g: GradientOp) -> Gradients:
    """With g = dY * scale: (g - mean(g) - xhat * mean(g * xhat)) / std in each group; sum(dY * xhat), sum(dY).

    Scale and bias are the channels', the groups' before opset 21.
    """
    return _grouped(g, g.attribute("num_groups", 1))


def _grouped(g: GradientOp, groups: int) -> Gradients:
    """Return the gradients of a normalisation in groups of channels; 0 is as many as there are channels."""
    given = g.input(0), g.input(1), g.dy
    x, scale, dy = g.computed(*given)
    rank = g.rank(given[0])
    of_groups = groups > 0 and g.opset < _SCALE_OF_CHANNELS_OPSET
    rows_shape = g.ints(0, groups, -1)
    rows = g.op("Reshape", x, rows_shape)
    centred = g.op("Sub", rows, g.reduce("ReduceMean", rows, [2], keepdims=True))
    variance = g.reduce("ReduceMean", g.op("Mul", centred, centred), [2], keepdims=True)
    epsilon = g.scalar_like(g.attribute("epsilon", 1e-5), rows)
    inv_std = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, epsilon)))
    xhat = g.op("Mul", centred, inv_std)
    # Both of what a scale belongs to: a group, or a channel.
    axes = [0, 2] if of_groups else [axis for axis in range(rank) if axis != 1]
    if of_groups:
        dy, shaped_xhat = g.op("Reshape", dy, rows_shape), xhat
    else:
        shaped_xhat = g.shaped_like(xhat, given[0])
    dx = dscale = dbias = None
    if g.wants(0):
        column = g.op("Reshape", scale, g.ints(*[-1] + [1] * (1 if of_groups else rank - 2)))
        scaled = g.op("Reshape", g.op("Mul", dy, column), rows_shape)
        rest = g.op("Sub", scaled, g.reduce("ReduceMean", scaled, [2], keepdims=True))
        mean = g.reduce("ReduceMean", g.op("Mul", scaled, xhat), [2], keepdims=True)
        rest = g.op("Sub", rest, g.op("Mul", xhat, mean))
        dx = g.shaped_like(g.op("Mul", inv_std, rest), given[0])
    if g.wants(1):
        dscale = g.reduce("ReduceSum", g.op("Mul", dy, shaped_xhat), axes, keepdims=False)
    if g.wants(2):
        dbias = g.reduce("ReduceSum", dy, axes, keepdims=False)
    return [None if value is None else g.cast(value, g.element_type(*given)) for value in (dx, dscale, dbias)]


def conv(g: GradientOp) -> Gradients:
    """dX is the transposed convolution of dY, dW a convolution of X by dY, dB the sum of dY over the places."""
    like = g.if_wanted(*range(len(g.node.inputs)))
    return g.training_op("ConvGrad", g.dy, g.input(0), g.input(1), like=like)


def conv_transpose(g: GradientOp) -> Gradients:
    """As Conv's with X and dY in each other's place."""
    like = g.if_wanted(*range(len(g.node.inputs)))
    return g.training_op("ConvTransposeGrad", g.dy, g.input(0), g.input(1), like=like)


def max_pool(g: GradientOp) -> Gradients:
    """Zeros, with dY added where the largest elements are."""
    if g.attribute("storage_order", 0):
        g.refuse("its attribute storage_order is 1; 0 is covered")
    return g.training_op("MaxPoolGrad", g.deltas[0], g.node.outputs[1], like=g.if_wanted(0))


def average_pool(g: GradientOp) -> Gradients:
    """dY over the number of elements in its window, added up over the windows."""
    return g.training_op("AveragePoolGrad", g.dy, like=g.if_wanted(0))


def global_average_pool(g: GradientOp) -> Gradients:
    """dY over the number of elements of a channel."""
    x = g.input(0)
    count = g.cast(g.squeeze(g.product(g.part(g.shape_of(x), 2)), 0), g.element_type(x))
    return [g.op("Expand", g.op("Div", g.dy, count), g.shape_of(x))]


def global_max_pool(g: GradientOp) -> Gradients:
    """dY for the elements that are the largest of their channel, in equal shares."""
    x = g.input(0)
    axes = list(range(2, g.rank(x)))
    hits = g.cast(g.compare("Equal", x, g.node.outputs[0]), g.element_type(x))
    return [g.op("Mul", hits, g.op("Div", g.dy, g.reduce("ReduceSum", hits, axes, keepdims=True)))]


def resize(g: GradientOp) -> Gradients:
    """dY times the matrix of each axis, by which Resize is linear in X."""
    g.refuse_gradient(1, 2)
    x, dy = g.input(0), g.dy
    return g.training_op("ResizeGrad", dy, x, g.optional_input(1), g.optional_input(2), like=g.if_wanted(0))


def rotary_embedding(g: GradientOp) -> Gradients:
    """dY turned back: RotaryEmbedding with the negative sines."""
    attributes = {name: g.attribute(name, None) for name in g.node.attributes}
    sines = g.op("Neg", g.input(2))
    return [g.op("RotaryEmbedding", g.dy, g.input(1), sines, g.optional_input(3), **attributes)]
