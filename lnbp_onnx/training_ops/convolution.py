# SPDX-License-Identifier: Apache-2.0
"""Gradients of convolution and pooling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from lnbp_onnx.graphs.writer import Writer, compute_type
from lnbp_onnx.training_ops.indexing import added_elements
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp


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

    def spans(self) -> list[int]:
        """Return how far the window reaches along each axis."""
        return [(kernel - 1) * dilation + 1 for kernel, dilation in zip(self.kernel, self.dilations, strict=True)]

    def remainders(self, lengths: Sequence[int | None]) -> list[int | None]:
        """Return how many elements at the end of each axis the last step leaves out, None where that is not known."""
        axes, spans = len(self.kernel), self.spans()
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


def _moves(w: TrainingOp, kernel: Sequence[int]) -> Window:
    """Read the window of a convolution or a pooling, with the pads of its attribute."""
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


def _window(w: TrainingOp, kernel: Sequence[int], lengths: Sequence[int | None]) -> Window:
    """Read the window of a convolution or a pooling that goes over spatial axes of these lengths."""
    window = _moves(w, kernel)
    auto_pad = w.attribute("auto_pad", "NOTSET") or "NOTSET"
    if auto_pad == "NOTSET":
        return window
    if auto_pad == "VALID":
        return replace(window, pads=[0] * 2 * len(kernel))
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        w.refuse(f"its attribute auto_pad is {auto_pad!r}; it must be NOTSET, VALID, SAME_UPPER or SAME_LOWER")
    return replace(window, pads=_halves(_same_pads(w, window, lengths), auto_pad))


def _same_pads(w: TrainingOp, window: Window, lengths: Sequence[int | None]) -> list[int]:
    """Return how long an axis is padded for as many steps as its length has strides."""
    pads = []
    for length, span, stride in zip(lengths, window.spans(), window.strides, strict=True):
        if stride == 1:
            pads.append(span - 1)
        elif length is None:
            w.refuse("it has auto_pad and strides, and the lengths of its spatial axes are not known (give pads)")
        else:
            pads.append(max((-(-length // stride) - 1) * stride + span - length, 0))
    return pads


def _halves(pads: Sequence[int], auto_pad: str) -> list[int]:
    """Return pads at the begin and the end of each axis, of which one gets more where they are odd."""
    less, more = [pad // 2 for pad in pads], [pad - pad // 2 for pad in pads]
    return more + less if auto_pad == "SAME_LOWER" else less + more


def _lengths(w: TrainingOp, axes: int, value: ir.Value, name: str) -> list[int | None]:
    """Return the lengths of a value's spatial axes, None for those that are not known."""
    shape = w.info(value).shape
    if shape is None:
        return [None] * axes
    if len(shape) - 2 != axes:
        w.refuse(
            f"{name} has {len(shape) - 2} spatial axes, and the kernel {axes}; they must have as many (correct the "
            "shapes, or kernel_shape)"
        )
    return [dim if isinstance(dim, int) else None for dim in shape[2:]]


def conv_grad(w: TrainingOp) -> Outputs:
    """(dY, X, W; the attributes of Conv): the gradients of X, W and the bias.

    dX is the transposed convolution of dY. dW is a convolution of X by dY that has batch and channels in each other's
    place, and strides and dilations.
    """
    given = w.inputs("dY", "X", "W")
    element_type = w.element_type(*given)
    dy, x, weights = w.computed(*given)
    weight_shape = w.static_shape(given[2], "W")
    lengths = _lengths(w, len(weight_shape) - 2, given[1], "X")
    window, group = _window(w, weight_shape[2:], lengths), w.attribute("group", 1)
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
    lengths, group = _lengths(w, len(weight_shape) - 2, given[0], "dY"), w.attribute("group", 1)
    window = _transposed_window(w, weight_shape[2:], _lengths(w, len(weight_shape) - 2, given[1], "X"))
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


def _transposed_window(w: TrainingOp, kernel: Sequence[int], lengths: Sequence[int | None]) -> Window:
    """Read the window of ConvTranspose, whose input has spatial axes of these lengths."""
    auto_pad, output_shape = w.attribute("auto_pad", "NOTSET") or "NOTSET", w.attribute("output_shape", None)
    if output_shape is None and auto_pad in ("NOTSET", "VALID"):
        return _window(w, kernel, lengths)
    window = _moves(w, kernel)
    added = w.attribute("output_padding", None) or [0] * len(kernel)
    # What SAME makes of an input is as long as its length times the stride.
    least = [span + more - stride for span, more, stride in zip(window.spans(), added, window.strides, strict=True)]
    if output_shape is None:
        return replace(window, pads=_halves([max(each, 0) for each in least], auto_pad))
    if None in lengths:
        w.refuse("it has output_shape, and the lengths of its input's spatial axes are not known (give pads)")
    pads = [
        (length or 0) * stride + each - wanted
        for length, stride, each, wanted in zip(
            lengths, window.strides, least, output_shape[-len(kernel) :], strict=True
        )
    ]
    if min(pads) < 0:
        w.refuse(f"its output_shape {list(output_shape)} is longer than what it computes (give output_padding)")
    return replace(window, pads=_halves(pads, "SAME_UPPER" if auto_pad == "SAME_UPPER" else "SAME_LOWER"))


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
    channels, *lengths = w.static_shape(w.node.outputs[0], "its output", 1)
    kernel = w.attribute("kernel_shape", [])
    _lengths(w, len(kernel), w.node.outputs[0], "its output")
    window = _window(w, kernel, lengths)
    padded = [
        length + begin + end
        for length, begin, end in zip(lengths, window.pads, window.pads[len(kernel) :], strict=False)
    ]
    beyond = _beyond(w, window, lengths, padded)
    window = replace(
        window, pads=[pad + more for pad, more in zip(window.pads, [0] * len(kernel) + beyond, strict=True)]
    )
    if w.attribute("count_include_pad", 0) and not any(beyond):
        counts = w.scalar_like(float(math.prod(kernel)), dy)
    else:
        counted, around = lengths, window
        if w.attribute("count_include_pad", 0):
            counted, around = padded, replace(window, pads=[0] * len(kernel) + beyond)
        ones = w.filled(w.ints(1, 1, *counted), 1.0, w.element_type(dy))
        counts = w.op("Conv", ones, w.filled(w.ints(1, 1, *kernel), 1.0, w.element_type(dy)), **around.attributes())
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


def _beyond(w: TrainingOp, window: Window, lengths: Sequence[int], padded: Sequence[int]) -> list[int]:
    """Return how far the last step of a pooling reaches beyond the pads at the end of each axis."""
    if not w.attribute("ceil_mode", 0) or w.attribute("auto_pad", "NOTSET") not in ("NOTSET", ""):
        return [0] * len(lengths)
    beyond = []
    for axis, (span, stride) in enumerate(zip(window.spans(), window.strides, strict=True)):
        steps = -(-(padded[axis] - span) // stride)
        # None begins in the pads at the end.
        steps -= steps * stride >= lengths[axis] + window.pads[axis]
        beyond.append(max(steps * stride + span - padded[axis], 0))
    return beyond
