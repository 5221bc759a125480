# SPDX-License-Identifier: Apache-2.0
"""Gradients of convolution and pooling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from lnbp_onnx.graphs.writer import Writer
from lnbp_onnx.training_ops.indexing import added_elements
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp, compute_type


@dataclass(frozen=True, slots=True)
class Window:
    """How a window moves over the spatial axes: a number for each of them, `pads` for begin and end."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]

    def attributes(self) -> dict[str, Any]:
        """Return it as attributes of Conv and ConvTranspose."""
        return {"strides": self.strides, "dilations": self.dilations, "pads": self.pads}

    def remainders(self, lengths: Sequence[int | None]) -> list[int | None]:
        """Return how many elements at the end of each axis the last step leaves out, None where that is not known."""
        axes = len(self.kernel)
        spans = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(self.kernel, self.dilations, strict=True)]
        remainders: list[int | None] = []
        for axis, length in enumerate(lengths):
            if self.strides[axis] == 1:
                remainders.append(0)
            elif length is None:
                remainders.append(None)
            else:
                padded = length + self.pads[axis] + self.pads[axis + axes]
                remainders.append((padded - spans[axis]) % self.strides[axis])
        return remainders


def _window(w: TrainingOp, kernel: Sequence[int]) -> Window:
    if w.attribute("auto_pad", "NOTSET") not in ("NOTSET", ""):
        w.refuse(f"its attribute auto_pad is {w.attribute('auto_pad', '')!r}; it must be NOTSET, with explicit pads")
    if w.attribute("ceil_mode", 0):
        w.refuse("its attribute ceil_mode is 1; only 0 can be written")
    axes = len(kernel)
    strides, dilations, pads = (
        list(w.attribute(name, None) or [default] * count)
        for name, default, count in (("strides", 1, axes), ("dilations", 1, axes), ("pads", 0, 2 * axes))
    )
    if (len(strides), len(dilations), len(pads)) != (axes, axes, 2 * axes) or min([1, *strides, *dilations]) < 1:
        w.refuse(
            f"its strides {strides}, dilations {dilations} and pads {pads} do not suit a kernel of shape "
            f"{list(kernel)}; there must be one of each for each axis, and two pads"
        )
    return Window(list(kernel), strides, dilations, pads)


def _lengths(w: TrainingOp, window: Window, value: ir.Value, name: str) -> list[int | None]:
    """Return the lengths of a value's spatial axes, None for those that are not known."""
    shape = w.info(value).shape
    if shape is None:
        return [None] * len(window.kernel)
    _check_axes(w, window, shape[2:], name)
    return [dim if isinstance(dim, int) else None for dim in shape[2:]]


def _check_axes(w: TrainingOp, window: Window, lengths: Sequence[Any], name: str) -> None:
    if len(lengths) != len(window.kernel):
        w.refuse(
            f"{name} has {len(lengths)} spatial axes, and the kernel {len(window.kernel)}; they must have as many "
            "(correct the shapes, or kernel_shape)"
        )


def conv_grad(w: TrainingOp) -> Outputs:
    """(dY, X, W; the attributes of Conv): the gradients of X, W and the bias.

    dX is the transposed convolution of dY. dW is a convolution of X by dY that has batch and channels in each other's
    place, and strides and dilations.
    """
    given = w.inputs("dY", "X", "W")
    element_type = w.element_type(*given)
    dy, x, weights = w.computed(*given)
    weight_shape = w.static_shape(given[2], "W")
    window, group = _window(w, weight_shape[2:]), w.attribute("group", 1)
    lengths = _lengths(w, window, given[1], "X")
    gradients: list[ir.Value | None] = [None, None, None]
    if w.is_wanted(0):
        gradients[0] = conv_input_gradient(w, dy, x, weights, window, group, lengths)
    if w.is_wanted(1):
        gradients[1] = conv_weight_gradient(w, dy, x, window, group, weight_shape, lengths)
    if w.is_wanted(2):
        gradients[2] = conv_bias_gradient(w, dy, window)
    return [None if value is None else w.cast(value, element_type) for value in gradients]


def conv_transpose_grad(w: TrainingOp) -> Outputs:
    """(dY, X, W; the attributes of ConvTranspose): the gradients of X, W and the bias.

    ConvTranspose is what Conv's gradient does to dY: here X and dY are in each other's place.
    """
    given = w.inputs("dY", "X", "W")
    element_type = w.element_type(*given)
    dy, x, weights = w.computed(*given)
    weight_shape = w.static_shape(given[2], "W")
    window, group = _window(w, weight_shape[2:]), w.attribute("group", 1)
    if w.attribute("output_shape", None):
        w.refuse("it has the attribute output_shape; only explicit pads can be written (give pads instead)")
    lengths = _lengths(w, window, given[0], "dY")
    gradients: list[ir.Value | None] = [None, None, None]
    if w.is_wanted(0):
        dx = w.op("Conv", dy, weights, group=group, **window.attributes())
        padding = w.attribute("output_padding", None) or [0] * len(window.kernel)
        if any(pad >= stride for pad, stride in zip(padding, window.strides, strict=True)):
            dx = _first_elements(w, dx, w.part(w.shape(x), 2), len(window.kernel))
        gradients[0] = dx
    if w.is_wanted(1):
        gradients[1] = conv_weight_gradient(w, x, dy, window, group, weight_shape, lengths)
    if w.is_wanted(2):
        gradients[2] = conv_bias_gradient(w, dy, window)
    return [None if value is None else w.cast(value, element_type) for value in gradients]


def conv_input_gradient(
    w: Writer, dy: ir.Value, x: ir.Value, weights: ir.Value, window: Window, group: int, lengths: Sequence[int | None]
) -> ir.Value:
    """Return the gradient of Conv's input X, whose spatial axes have `lengths`, None for what the run decides."""
    remainders = window.remainders(lengths)
    # As long as X can be; what is too much is cut off.
    longest = [
        stride - 1 if remainder is None else remainder
        for remainder, stride in zip(remainders, window.strides, strict=True)
    ]
    result = w.op("ConvTranspose", dy, weights, group=group, output_padding=longest, **window.attributes())
    if None in remainders:
        result = _first_elements(w, result, w.part(w.shape(x), 2), len(lengths))
    return result


def conv_weight_gradient(
    w: Writer,
    dy: ir.Value,
    x: ir.Value,
    window: Window,
    group: int,
    weight_shape: Sequence[int],
    lengths: Sequence[int | None],
) -> ir.Value:
    """Return the gradient of Conv's weights; `lengths` as for `conv_input_gradient`."""
    axes, per_group = len(lengths), weight_shape[1]
    swapped = [1, 0, *range(2, 2 + axes)]
    if group == 1:
        x = w.op("Transpose", x, perm=swapped)
    else:  # as [channels of a group, groups * batch, ...]
        known = [length for length in lengths if length is not None]
        spatial = w.part(w.shape(x), 2) if len(known) < axes else None

        def shape(*first: int) -> ir.Value:
            return w.ints(*first, *known) if spatial is None else w.joined(w.ints(*first), spatial)

        x = w.op("Reshape", x, shape(0, group, per_group))
        x = w.op("Transpose", x, perm=[2, 1, 0, *range(3, 3 + axes)])
        x = w.op("Reshape", x, shape(per_group, -1))
    dy = w.op("Transpose", dy, perm=swapped)
    result = w.op("Conv", x, dy, group=group, strides=window.dilations, dilations=window.strides, pads=window.pads)
    result = w.op("Transpose", result, perm=swapped)
    # What the last step of the window leaves out of X is there for more steps of dY over X.
    if any(
        (stride - 1 if remainder is None else remainder) >= dilation
        for remainder, stride, dilation in zip(
            window.remainders(lengths), window.strides, window.dilations, strict=True
        )
    ):
        result = _first_elements(w, result, w.ints(*weight_shape[2:]), axes)
    return result


def conv_bias_gradient(w: Writer, dy: ir.Value, window: Window) -> ir.Value:
    """Return the gradient of Conv's and ConvTranspose's bias."""
    return w.reduce("ReduceSum", dy, [0, *range(2, 2 + len(window.kernel))], keepdims=False)


def _first_elements(w: Writer, value: ir.Value, lengths: ir.Value, axes: int) -> ir.Value:
    """Return the first elements of the spatial axes."""
    return w.op("Slice", value, w.ints(*[0] * axes), lengths, w.ints(*range(2, 2 + axes)))


def resize_grad(w: TrainingOp) -> Outputs:
    """(dY, X, roi, scales; the attributes of Resize): the gradient of X, which has 4 axes, the last two resized.

    Resize is linear, an axis at a time: what it makes of the identity is its matrix for an axis.
    """
    given = w.inputs("dY", "X")
    element_type = w.element_type(*given)
    rank = next((len(shape) for shape in (w.info(value).shape for value in given[::-1]) if shape is not None), None)
    if rank != 4:
        w.refuse(f"X has {'an unknown number of' if rank is None else rank} axes; there must be 4 (add its value_info)")
    if w.attribute("coordinate_transformation_mode", "") == "tf_crop_and_resize" or w.attribute("axes", None):
        w.refuse("it crops or has the attribute axes; only a resize of the last two axes as a whole can be written")
    if w.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        w.refuse("its attribute keep_aspect_ratio_policy must be 'stretch'")
    attributes = {name: w.attribute(name, None) for name in w.node.attributes}
    dy, x = w.computed(*given)
    scales = w.optional_input(3)
    if scales is not None and w.info(scales).shape == (0,):
        scales = None

    def matrix(axis: int) -> ir.Value:
        length, one = w.part(w.shape(x), axis, axis + 1), w.constant([1.0], ir.DataType.FLOAT)
        zeros = w.filled(w.joined(length, length), 0.0, ir.DataType.FLOAT)
        identity = w.op("EyeLike", zeros)
        none = w.constant(np.zeros(0), ir.DataType.FLOAT)
        if scales is None:
            sizes = w.joined(w.part(w.shape(dy), axis, axis + 1), length)
            operands = [none, none, sizes] if w.opset < 13 else [None, None, sizes]
        else:
            scale = w.part(w.cast(scales, ir.DataType.FLOAT), axis, axis + 1)
            operands = [none if w.opset < 13 else None, w.joined(scale, one)]
        return w.cast(w.op("Resize", identity, *operands, **attributes), w.element_type(dy))

    rows = w.op("MatMul", w.op("Transpose", matrix(2), perm=[1, 0]), w.op("MatMul", dy, matrix(3)))
    return [w.cast(rows, element_type)]


def max_pool_grad(w: TrainingOp) -> Outputs:
    """(dY, Indices): zeros, with dY added at the indices, which count the elements of the whole input."""
    dy, indices = w.inputs("dY", "Indices")
    element_type = w.element_type(dy, w.node.outputs[0])
    shape = _pooled_shape(w, dy, indices)
    dy = w.cast(dy, compute_type(element_type))
    result = added_elements(w, w.product(shape), w.flat(indices), dy)
    return [w.cast(w.reshape(result, shape), element_type)]


def _pooled_shape(w: TrainingOp, dy: ir.Value, indices: ir.Value) -> ir.Value:
    """Return the shape of what was pooled: of MaxPool's input where that is at hand, else the output's own."""
    pool = indices.producer()
    if pool is not None and pool.op_type == "MaxPool" and pool.inputs[0] is not None:
        return w.shape(pool.inputs[0])
    lengths = w.static_shape(w.node.outputs[0], "its output", 1)
    return w.joined(w.part(w.shape(dy), 0, 1), w.ints(*lengths))


def average_pool_grad(w: TrainingOp) -> Outputs:
    """(dY; the attributes of AveragePool): dY over the number of elements in its window, added up over the windows."""
    (dy,) = w.inputs("dY")
    element_type = w.element_type(dy, w.node.outputs[0])
    dy = w.cast(dy, compute_type(element_type))
    lengths = w.static_shape(w.node.outputs[0], "its output", 1)
    window = _window(w, w.attribute("kernel_shape", []))
    _check_axes(w, window, lengths[1:], "its output")
    channels, lengths = lengths[0], lengths[1:]
    one_channel = [1, 1, *window.kernel]
    if w.attribute("count_include_pad", 0):
        counts = w.scalar_like(float(math.prod(window.kernel)), dy)
    else:
        ones = w.filled(w.ints(1, 1, *lengths), 1.0, w.element_type(dy))
        counts = w.op("Conv", ones, w.filled(w.ints(*one_channel), 1.0, w.element_type(dy)), **window.attributes())
    shares = w.op("Div", dy, counts)
    result = w.op(
        "ConvTranspose",
        shares,
        w.filled(w.ints(channels, 1, *window.kernel), 1.0, w.element_type(dy)),
        group=channels,
        output_padding=window.remainders(lengths),
        **window.attributes(),
    )
    return [w.cast(result, element_type)]
