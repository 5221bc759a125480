# SPDX-License-Identifier: Apache-2.0
"""Gradients along broadcast axes, and the training variants of ReduceSum, Concat and Split."""

import onnx_ir as ir

from lnbp_onnx.training_ops.writer import Outputs, Writer

_LARGE = 2**31


def div_grad(w: Writer) -> Outputs:
    """(dY, A, B): dY / B and -dY * (A / B) / B, each summed over the axes along which A or B is broadcast."""
    given = w.inputs("dY", "A", "B")
    element_type = w.element_type(*given)
    dy, a, b = w.computed(*given)
    quotient = w.op("Div", dy, b)
    da = db = None
    if w.is_wanted(0):
        da = w.cast(_summed_to(w, quotient, a, given[1]), element_type)
    if w.is_wanted(1):
        product = w.op("Neg", w.op("Mul", quotient, w.op("Div", a, b)))
        db = w.cast(_summed_to(w, product, b, given[2]), element_type)
    return [da, db]


def _summed_to(w: Writer, value: ir.Value, operand: ir.Value, declared: ir.Value) -> ir.Value:
    """Return a value summed over the axes along which an operand was broadcast to it."""
    shape, result_shape = w.info(declared).shape, w.info(w.inputs("dY")[0]).shape
    if shape is not None and result_shape is not None and shape == result_shape and None not in shape:
        return value
    if w.opset < 13:
        w.refuse(
            f"its operands may be broadcast along axes that are known at run time only, which can be written from "
            f"opset 13 on; the model's is {w.opset} (convert the model with onnx.version_converter)"
        )
    operand_shape = w.shape(operand)
    axes = _broadcast_axes(w, operand_shape, w.shape(value))[0]
    total = w.sum_over(value, axes, keepdims=True, noop_with_empty_axes=True)
    return w.reshape(total, operand_shape)


def broadcast_gradient_args(w: Writer) -> Outputs:
    """(shape of A, shape of B): the axes along which each is broadcast to the common shape, last to first."""
    a, b = w.inputs("a_shape", "b_shape")
    return [axes if w.is_wanted(index) else None for index, axes in enumerate(_broadcast_axes(w, a, b))]


def _broadcast_axes(w: Writer, a: ir.Value, b: ir.Value) -> tuple[ir.Value, ir.Value]:
    rank_a, rank_b = w.shape(a), w.shape(b)
    more = w.op("Sub", rank_b, rank_a)
    padded = [_padded(w, a, more), _padded(w, b, w.op("Neg", more))]
    boolean = {"element_type": ir.DataType.BOOL}
    axes = []
    for own, other in (padded, padded[::-1]):
        missing = w.compare("Equal", own, w.ints(-1))
        stretches = w.op("Not", w.compare("Equal", w.op("Abs", other), w.ints(1)), **boolean)
        stretched = w.op("And", w.compare("Equal", own, w.ints(1)), stretches, **boolean)
        summed = w.op("Or", missing, stretched, **boolean)
        found = w.flat(w.op("NonZero", summed, element_type=ir.DataType.INT64))
        axes.append(w.op("Slice", found, w.ints(-1), w.ints(-_LARGE), w.ints(0), w.ints(-1)))
    return axes[0], axes[1]


def _padded(w: Writer, shape: ir.Value, missing: ir.Value) -> ir.Value:
    """Return a shape with a -1 in front for each missing axis; `missing` may be negative."""
    count = w.where(w.compare("Less", missing, w.ints(0)), w.ints(0), missing)
    return w.joined(w.filled(count, -1, ir.DataType.INT64), shape)


def reduce_sum_training(w: Writer) -> Outputs:
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


def concat_training(w: Writer) -> Outputs:
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


def split_training(w: Writer) -> Outputs:
    """(input, split; axis = 0): Split of opset 13."""
    value, split = w.inputs("input", "split")
    axis, count = w.attribute("axis", 0), len(w.node.outputs)
    if w.opset >= 13:
        return w.ops("Split", value, split, outputs=count, axis=axis)
    return w.ops("Split", value, outputs=count, axis=axis, split=w.constant_ints(split, "split"))
