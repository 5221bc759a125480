# SPDX-License-Identifier: Apache-2.0
"""Gradients of normalisations other than LayerNormalization, which has an operator of its own here."""

import onnx_ir as ir

from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp


def simplified_layer_normalization_grad(w: TrainingOp) -> Outputs:
    """(dY, X, scale, inv_std; axis = -1), the gradient of RMS normalisation Y = X * inv_std * scale.

    With xhat = X * inv_std and g = dY * scale: dX = inv_std * (g - xhat * mean(g * xhat)), and the sum of dY * xhat
    over the rows for scale.
    """
    given = w.inputs("Y_grad", "X", "scale", "inv_std_var")
    dy, x, scale = w.computed(*given[:3])
    axis = w.attribute("axis", -1)
    element_type = w.element_type(x)
    inv_std = w.op("Reshape", w.cast(given[3], element_type), w.ints(-1, 1))
    dy_rows, x_rows = (w.op("Flatten", value, axis=axis) for value in (dy, x))
    xhat = w.op("Mul", x_rows, inv_std)
    g = w.op("Mul", dy_rows, w.flat(scale))
    mean = w.reduce("ReduceMean", w.op("Mul", g, xhat), [1], keepdims=True)
    dx = w.op("Mul", inv_std, w.op("Sub", g, w.op("Mul", xhat, mean)))
    dscale = None
    if w.is_wanted(1):
        dscale = w.reduce("ReduceSum", w.op("Mul", dy_rows, xhat), [0], keepdims=False)
        dscale = w.cast(w.reshape(dscale, w.shape(scale)), w.element_type(*given[:3]))
    return [w.cast(w.reshape(dx, w.shape(x)), w.element_type(*given[:3])), dscale]


def batch_norm_internal(w: TrainingOp) -> Outputs:
    """(X, scale, B, mean, var; epsilon, momentum, training_mode): batch normalisation.

    Its outputs are Y, the running mean and variance, and the batch's mean and one over its standard deviation. In
    training the running values become momentum * old + (1 - momentum) * the batch's, in place.
    """
    x, *parameters = w.inputs("X", "scale", "B", "input_mean", "input_var")
    given = w.element_type(x)
    (computed,) = w.computed(x)
    element_type = w.element_type(computed)
    scale, bias, running_mean, running_variance = (w.cast(value, element_type) for value in parameters)
    channels = _Channels(w, x)
    epsilon = w.scalar_like(w.attribute("epsilon", 1e-5), computed)
    momentum = w.attribute("momentum", 0.9)
    mean, variance = running_mean, running_variance
    new_mean, new_variance = running_mean, running_variance
    is_training = bool(w.attribute("training_mode", 1))
    if is_training:
        mean = channels.mean(computed)
        centred = w.op("Sub", computed, channels.column(mean))
        variance = channels.mean(w.op("Mul", centred, centred))
        old, new = w.scalar_like(momentum, computed), w.scalar_like(1 - momentum, computed)
        new_mean = w.op("Add", w.op("Mul", running_mean, old), w.op("Mul", mean, new))
        new_variance = w.op("Add", w.op("Mul", running_variance, old), w.op("Mul", variance, new))
    inv_std = w.op("Reciprocal", w.op("Sqrt", w.op("Add", variance, epsilon)))
    centred = w.op("Sub", computed, channels.column(mean))
    y = w.op("Mul", centred, channels.column(w.op("Mul", scale, inv_std)))
    y = w.op("Add", y, channels.column(bias))
    types = [given, *(w.element_type(value) for value in (parameters[2], parameters[3], parameters[2], parameters[3]))]
    outputs = [y, new_mean, new_variance, mean, inv_std]
    if not is_training:
        outputs = [w.op("Identity", value) for value in outputs]
    outputs = [w.cast(value, wanted) for value, wanted in zip(outputs, types, strict=True)]
    if is_training:
        w.updates += [(parameters[2], outputs[1]), (parameters[3], outputs[2])]
    return outputs


def batch_normalization_grad(w: TrainingOp) -> Outputs:
    """(dY, X, scale, mean, inv_std): the gradients of X, scale and bias of batch normalisation in training.

    With xhat = (X - mean) * inv_std, sums and means over all axes but the channels: dbias = sum(dY),
    dscale = sum(dY * xhat), dX = scale * inv_std * (dY - mean(dY) - xhat * mean(dY * xhat)).
    """
    given = w.inputs("dY", "X", "scale", "mean", "inv_std")
    dy, x = w.computed(*given[:2])
    element_type = w.element_type(x)
    scale, mean, inv_std = (w.cast(value, element_type) for value in given[2:])
    channels = _Channels(w, given[1])
    xhat = w.op("Mul", w.op("Sub", x, channels.column(mean)), channels.column(inv_std))
    product = w.op("Mul", dy, xhat)
    rest = w.op("Sub", dy, channels.column(channels.mean(dy)))
    rest = w.op("Sub", rest, w.op("Mul", xhat, channels.column(channels.mean(product))))
    dx = w.op("Mul", rest, channels.column(w.op("Mul", scale, inv_std)))
    dscale = channels.sum(product) if w.is_wanted(1) else None
    dbias = channels.sum(dy) if w.is_wanted(2) else None
    parameter_type = w.element_type(given[2])
    return [
        w.cast(dx, w.element_type(*given[:2])),
        *(None if value is None else w.cast(value, parameter_type) for value in (dscale, dbias)),
    ]


class _Channels:
    """Sums over all axes but the second one, and values of the channels in a shape that broadcasts."""

    def __init__(self, w: TrainingOp, declared: ir.Value) -> None:
        shape = w.info(declared).shape
        if shape is None:
            w.refuse("the rank of X is not known; it must be (add its value_info to the model)")
        self._w = w
        self._axes = [axis for axis in range(len(shape)) if axis != 1]
        self._column_shape = [-1 if axis == 1 else 1 for axis in range(1, len(shape))]

    def mean(self, value: ir.Value) -> ir.Value:
        return self._w.reduce("ReduceMean", value, self._axes, keepdims=False)

    def sum(self, value: ir.Value) -> ir.Value:
        return self._w.reduce("ReduceSum", value, self._axes, keepdims=False)

    def column(self, value: ir.Value) -> ir.Value:
        return self._w.op("Reshape", value, self._w.ints(*self._column_shape))
