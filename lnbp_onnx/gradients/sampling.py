# SPDX-License-Identifier: Apache-2.0
"""Sampling of images at places that are computed."""

import itertools
from collections.abc import Sequence

import onnx_ir as ir

from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp

_LINEAR = ("bilinear", "linear")


def grid_sample(w: TrainingOp) -> Outputs:
    """(X, grid; mode, padding_mode, align_corners): of the elements around a place the sum, by their distances from it.

    The place x of -1 to 1 is that of (x + 1) / 2 * (length - 1), or ((x + 1) * length - 1) / 2 without align_corners.
    """
    x, grid = w.inputs("X", "grid")
    shape, mode = w.info(x).shape, w.attribute("mode", _LINEAR[0])
    padding = w.attribute("padding_mode", "zeros")
    if shape is None:
        w.refuse(f"the rank of {x.name!r} is not known; it must be (add its value_info to the model)")
    if mode not in (*_LINEAR, "nearest") or padding not in ("zeros", "border"):
        w.refuse(
            f"its attributes mode and padding_mode are {mode!r} and {padding!r}; bilinear, linear and nearest are "
            "covered, with zeros and border"
        )
    axes = len(shape) - 2
    lengths = [w.squeeze(w.part(w.shape(x), axis + 2, axis + 3), 0) for axis in range(axes)]
    # The last axis of the grid is that of the places, the last axis of X first.
    places = [_place(w, grid, axes - 1 - axis, lengths[axis]) for axis in range(axes)]
    size = w.product(w.part(w.shape(x), 2))
    rows = w.reshape(x, w.joined(w.part(w.shape(x), 0, 2), size))
    if mode == "nearest":
        result = _picked(w, rows, [w.op("Round", place) for place in places], lengths, padding)
    else:
        ends = [_ends(w, place) for place in places]
        result = None
        for corner in itertools.product((0, 1), repeat=axes):
            part = _picked(w, rows, [ends[axis][0][side] for axis, side in enumerate(corner)], lengths, padding)
            for axis, side in enumerate(corner):
                part = w.op("Mul", part, w.cast(ends[axis][1][side], w.element_type(x)))
            result = part if result is None else w.op("Add", result, part)
    assert result is not None
    target = w.joined(w.part(w.shape(x), 0, 2), w.part(w.shape(grid), 1, axes + 1))
    return [w.reshape(result, target)]


def _place(w: TrainingOp, grid: ir.Value, index: int, length: ir.Value) -> ir.Value:
    """Return the places along an axis, [batch, 1, number of places], in elements."""
    element_type = w.element_type(grid)
    one, two = (w.constant(number, element_type) for number in (1.0, 2.0))
    given = w.op("Gather", grid, w.constant(index, ir.DataType.INT64), axis=-1)
    given = w.op("Add", w.unsqueeze(w.op("Flatten", given, axis=1), 1), one)
    count = w.cast(length, element_type)
    if w.attribute("align_corners", 0):
        return w.op("Mul", given, w.op("Div", w.op("Sub", count, one), two))
    return w.op("Div", w.op("Sub", w.op("Mul", given, count), one), two)


def _ends(w: TrainingOp, place: ir.Value) -> tuple[Sequence[ir.Value], Sequence[ir.Value]]:
    """Return the whole numbers around places, and the weight of each."""
    one, low = w.scalar_like(1.0, place), w.op("Floor", place)
    beyond = w.op("Sub", place, low)
    return (low, w.op("Add", low, one)), (w.op("Sub", one, beyond), beyond)


def _picked(
    w: TrainingOp, rows: ir.Value, places: Sequence[ir.Value], lengths: Sequence[ir.Value], padding: str
) -> ir.Value:
    """Return the elements at whole places, [batch, channels, number of places]; 0 outside, or the nearest one."""
    zero, one = (w.constant(number, ir.DataType.INT64) for number in (0, 1))
    index = inside = None
    for place, length in zip(places, lengths, strict=True):
        number = w.cast(place, ir.DataType.INT64)
        within = w.op("Min", w.op("Max", number, zero), w.op("Sub", length, one))
        index = within if index is None else w.op("Add", w.op("Mul", index, length), within)
        hit = w.compare("Equal", number, within)
        inside = hit if inside is None else w.op("And", inside, hit, element_type=ir.DataType.BOOL)
    assert index is not None
    assert inside is not None
    everywhere = w.joined(w.part(w.shape(rows), 0, 2), w.part(w.shape(index), 2, 3))
    result = w.op("GatherElements", rows, w.op("Expand", index, everywhere), axis=2)
    return w.where(inside, result, w.scalar_like(0.0, rows)) if padding == "zeros" else result
