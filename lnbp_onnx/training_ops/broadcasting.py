# SPDX-License-Identifier: Apache-2.0
"""Gradients along broadcast axes, and the training variants of ReduceSum, Concat and Split."""

from collections.abc import Sequence

import onnx_ir as ir

from lnbp_onnx.graphs.writer import RUN_TIME_AXES_OPSET, Writer
from lnbp_onnx.node import Dim
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp

_LARGE = 2**31


def div_grad(w: TrainingOp) -> Outputs:
    """(dY, A, B): dY / B and -dY * (A / B) / B, each summed over the axes along which A or B is broadcast."""
    given = w.inputs("dY", "A", "B")
    element_type = w.element_type(*given)
    dy, a, b = w.computed(*given)
    quotient = w.op("Div", dy, b)
    da = db = None
    if w.is_wanted(0):
        da = w.cast(summed_to(w, quotient, a, w.info(given[1]).shape, w.info(given[0]).shape), element_type)
    if w.is_wanted(1):
        product = w.op("Neg", w.op("Mul", quotient, w.op("Div", a, b)))
        db = w.cast(summed_to(w, product, b, w.info(given[2]).shape, w.info(given[0]).shape), element_type)
    return [da, db]


def summed_to(
    w: Writer,
    value: ir.Value,
    operand: ir.Value,
    operand_shape: Sequence[Dim] | None,
    value_shape: Sequence[Dim] | None,
) -> ir.Value:
    """Return a value summed over the axes along which an operand was broadcast to it.

    Where the shapes, as far as they are known, do not tell the axes, they are found at run time.
    """
    static = _static_axes(operand_shape, value_shape)
    if static is not None and operand_shape is not None:
        missing, stretched = static
        if stretched:
            value = w.reduce("ReduceSum", value, [*range(missing), *stretched], keepdims=True)
            for _ in range(missing):
                value = w.squeeze(value, 0)
        elif missing:
            value = w.reduce("ReduceSum", value, list(range(missing)), keepdims=False)
        return value
    if w.opset < RUN_TIME_AXES_OPSET:
        w.refuse_opset(
            RUN_TIME_AXES_OPSET,
            "its operands may be broadcast along axes that are known at run time only, which can be written",
        )
    run_time_shape = w.shape(operand)
    axes = _broadcast_axes(w, run_time_shape, w.shape(value))[0]
    total = w.sum_over(value, axes, keepdims=True, noop_with_empty_axes=True)
    return w.reshape(total, run_time_shape)


def _static_axes(operand: Sequence[Dim] | None, value: Sequence[Dim] | None) -> tuple[int, list[int]] | None:
    """Return how many axes the operand lacks, and which others it is broadcast along; None where that is not known."""
    if operand is None or value is None or len(operand) > len(value):
        return None
    missing = len(value) - len(operand)
    stretched = []
    for axis, (own, length) in enumerate(zip(operand, value[missing:], strict=True), missing):
        if own == 1 and length != 1:
            stretched.append(axis)
        elif not isinstance(own, int) and (own is None or own != length):
            return None
    return missing, stretched


def broadcast_gradient_args(w: TrainingOp) -> Outputs:
    """(shape of A, shape of B): the axes along which each is broadcast to the common shape, last to first."""
    a, b = w.inputs("a_shape", "b_shape")
    return [axes if w.is_wanted(index) else None for index, axes in enumerate(_broadcast_axes(w, a, b))]


def _broadcast_axes(w: Writer, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
    rank_a, rank_b = w.shape(a), w.shape(b)
    more = w.op("Sub", rank_b, rank_a)
    padded = [_padded(w, a, more), _padded(w, b, w.op("Neg", more))]
    boolean = ir.DataType.BOOL
    axes = []
    for own, other in (padded, padded[::-1]):
        missing = w.compare("Equal", own, w.ints(-1))
        stretches = w.op("Not", w.compare("Equal", w.op("Abs", other), w.ints(1)), element_type=boolean)
        stretched = w.op("And", w.compare("Equal", own, w.ints(1)), stretches, element_type=boolean)
        summed = w.op("Or", missing, stretched, element_type=boolean)
        found = w.flat(w.op("NonZero", summed, element_type=ir.DataType.INT64))
        axes.append(w.op("Slice", found, w.ints(-1), w.ints(-_LARGE), w.ints(0), w.ints(-1)))
    return axes[0], axes[1]


def _padded(w: Writer, shape: ir.Value, missing: ir.Value) -> ir.Value:
    """Return a shape with a -1 in front for each missing axis; `missing` may be negative."""
    count = w.where(w.compare("Less", missing, w.ints(0)), w.ints(0), missing)
    return w.joined(w.filled(count, -1, ir.DataType.INT64), shape)


def reduce_sum_training(w: TrainingOp) -> Outputs:
    """(data, axes; keepdims = 1, noop_with_empty_axes = 0): ReduceSum of opset 13."""
    data, axes = w.inputs("data", "axes")
    (computed,) = w.computed(data)
    result = w.sum_over(
        computed,
        axes,
        keepdims=bool(w.attribute("keepdims", 1)),
        noop_with_empty_axes=bool(w.attribute("noop_with_empty_axes", 0)),
    )
    return [w.cast(result, w.element_type(data))]


def concat_training(w: TrainingOp) -> Outputs:
    """(inputs...; axis): Concat, and the inputs' lengths along the axis as an int64 vector."""
    values = [value for value in w.node.inputs if value is not None]
    axis = w.attribute("axis", None)
    if axis is None or not values:
        w.refuse("it needs the attribute axis and at least one input")
    result = w.op("Concat", *values, axis=axis)
    lengths = None
    if w.is_wanted(1):
        lengths = w.joined(*(w.op("Gather", w.shape(value), w.ints(axis)) for value in values))
    return [result, lengths]


def split_training(w: TrainingOp) -> Outputs:
    """(input, split; axis = 0): Split of opset 13."""
    value, split = w.inputs("input", "split")
    axis, count = w.attribute("axis", 0), len(w.node.outputs)
    if w.opset >= 13:
        return w.ops("Split", value, split, outputs=count, axis=axis)
    return w.ops("Split", value, outputs=count, axis=axis, split=w.constant_ints(split, "split"))
