# SPDX-License-Identifier: Apache-2.0
"""Gradients of convolution and pooling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from lnbp_onnx.training_ops.writer import Outputs, Writer, compute_type


@dataclass(frozen=True, slots=True)
class _Window:
    """How a window moves over the spatial axes: a length for each of them, `pads` for begin and end."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int]

    def remainders(self, lengths: Sequence[int]) -> list[int]:
        """Return how many elements at the end of each axis the last step leaves out."""
        axes = len(self.kernel)
        spans = [(kernel - 1) * dilation + 1 for kernel, dilation in zip(self.kernel, self.dilations, strict=True)]
        return [
            (length + self.pads[axis] + self.pads[axis + axes] - spans[axis]) % self.strides[axis]
            for axis, length in enumerate(lengths)
        ]


def _window(w: Writer, kernel: Sequence[int]) -> _Window:
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
    return _Window(list(kernel), strides, dilations, pads)


def _check_axes(w: Writer, window: _Window, lengths: Sequence[int], name: str) -> None:
    if len(lengths) != len(window.kernel):
        w.refuse(
            f"{name} has {len(lengths)} spatial axes, and the kernel {len(window.kernel)}; they must have as many "
            "(correct the shapes, or kernel_shape)"
        )


def conv_grad(w: Writer) -> Outputs:
    """(dY, X, W; the attributes of Conv): the gradients of X, W and the bias.

    dX is the transposed convolution of dY. dW is a convolution of X by dY that has batch and channels in each other's
    place, and strides and dilations.
    """
    given = w.inputs("dY", "X", "W")
    element_type = w.element_type(*given)
    dy, x, weights = (w.cast(value, compute_type(element_type)) for value in given)
    weight_shape = w.static_shape(given[2], "W")
    window = _window(w, weight_shape[2:])
    gradients: list[ir.Value | None] = [None, None, None]
    if w.is_wanted(0) or w.is_wanted(1):
        lengths = w.static_shape(given[1], "X", 2)
        _check_axes(w, window, lengths, "X")
    if w.is_wanted(0):
        gradients[0] = _input_gradient(w, dy, weights, window, lengths)
    if w.is_wanted(1):
        gradients[1] = _weight_gradient(w, dy, x, window, weight_shape, lengths)
    if w.is_wanted(2):
        axes = [axis for axis in range(len(weight_shape)) if axis != 1]
        gradients[2] = w.reduce("ReduceSum", dy, axes, keepdims=False)
    return [None if value is None else w.cast(value, element_type) for value in gradients]


def _input_gradient(w: Writer, dy: ir.Value, weights: ir.Value, window: _Window, lengths: Sequence[int]) -> ir.Value:
    return w.op(
        "ConvTranspose",
        dy,
        weights,
        group=w.attribute("group", 1),
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        output_padding=window.remainders(lengths),
    )


def _weight_gradient(
    w: Writer,
    dy: ir.Value,
    x: ir.Value,
    window: _Window,
    weight_shape: Sequence[int],
    lengths: Sequence[int],
) -> ir.Value:
    group, axes = w.attribute("group", 1), len(lengths)
    per_group = weight_shape[1]
    spatial = list(range(3, 3 + axes))
    # X as [channels of a group, groups * batch, ...], dY as [channels, batch, ...].
    x = w.op("Reshape", x, w.ints(0, group, per_group, *lengths))
    x = w.op("Transpose", x, perm=[2, 1, 0, *spatial])
    x = w.op("Reshape", x, w.ints(per_group, -1, *lengths))
    dy = w.op("Transpose", dy, perm=[1, 0, *range(2, 2 + axes)])
    result = w.op("Conv", x, dy, group=group, strides=window.dilations, dilations=window.strides, pads=window.pads)
    result = w.op("Transpose", result, perm=[1, 0, *range(2, 2 + axes)])
    if any(window.remainders(lengths)):
        starts, ends = w.ints(*[0] * axes), w.ints(*weight_shape[2:])
        result = w.op("Slice", result, starts, ends, w.ints(*range(2, 2 + axes)))
    return result


def max_pool_grad(w: Writer) -> Outputs:
    """(dY, Indices): zeros, with dY added at the indices, which count the elements of the whole input."""
    dy, indices = w.inputs("dY", "Indices")
    element_type = w.element_type(dy, w.node.outputs[0])
    shape = _pooled_shape(w, dy, indices)
    dy = w.flat(w.cast(dy, compute_type(element_type)))
    if w.opset < 16:
        w.refuse(
            f"the default-domain opset is {w.opset}; standard operators for it can be written from 16 on (convert "
            "the model with onnx.version_converter)"
        )
    zeros = w.filled(w.product(shape), 0.0, w.element_type(dy))
    result = w.op("ScatterElements", zeros, w.flat(indices), dy, axis=0, reduction="add")
    return [w.cast(w.reshape(result, shape), element_type)]


def _pooled_shape(w: Writer, dy: ir.Value, indices: ir.Value) -> ir.Value:
    """Return the shape of what was pooled: of MaxPool's input where that is at hand, else the output's own."""
    pool = indices.producer()
    if pool is not None and pool.op_type == "MaxPool" and pool.inputs[0] is not None:
        return w.shape(pool.inputs[0])
    lengths = w.static_shape(w.node.outputs[0], "its output", 1)
    return w.joined(w.part(w.shape(dy), 0, 1), w.ints(*lengths))


def average_pool_grad(w: Writer) -> Outputs:
    """(dY; the attributes of AveragePool): dY over the number of elements in its window, added up over the windows."""
    (dy,) = w.inputs("dY")
    element_type = w.element_type(dy, w.node.outputs[0])
    dy = w.cast(dy, compute_type(element_type))
    lengths = w.static_shape(w.node.outputs[0], "its output", 1)
    window = _window(w, w.attribute("kernel_shape", []))
    _check_axes(w, window, lengths[1:], "its output")
    channels, lengths = lengths[0], lengths[1:]
    one_channel = [1, 1, *window.kernel]
    moves: dict[str, Any] = {"strides": window.strides, "dilations": window.dilations, "pads": window.pads}
    if w.attribute("count_include_pad", 0):
        counts = w.scalar_like(float(math.prod(window.kernel)), dy)
    else:
        ones = w.filled(w.ints(1, 1, *lengths), 1.0, w.element_type(dy))
        counts = w.op("Conv", ones, w.filled(w.ints(*one_channel), 1.0, w.element_type(dy)), **moves)
    shares = w.op("Div", dy, counts)
    result = w.op(
        "ConvTranspose",
        shares,
        w.filled(w.ints(channels, 1, *window.kernel), 1.0, w.element_type(dy)),
        group=channels,
        output_padding=window.remainders(lengths),
        **moves,
    )
    return [w.cast(result, element_type)]
