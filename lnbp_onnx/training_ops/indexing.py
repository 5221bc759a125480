# SPDX-License-Identifier: Apache-2.0
"""Gradients of operators that pick elements: what was picked is added up where it came from."""

import onnx_ir as ir

from lnbp_onnx.graphs.writer import INT64_MAX, compute_type
from lnbp_onnx.training_ops.row_sums import add_rows, positions
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp

_SCATTER_ELEMENTS_ADDS_FROM = 16
# NumPy's, and more than any runtime takes.
_LARGEST_RANK = 64


def gather_grad(w: TrainingOp) -> Outputs:
    """(shape, indices, dY; axis = 0): zeros of that shape, dY added at the indices along the axis.

    dY may be what the picked elements were broadcast to: then it is summed over what was added. ONNX Runtime training
    leaves out that ReduceSum where it does not know of a broadcast.
    """
    shape, indices, dy = w.inputs("shape", "indices", "dY")
    element_type, axis, one = w.element_type(dy, w.node.outputs[0]), w.attribute("axis", 0), w.ints(1)
    dy = w.cast(dy, compute_type(element_type))
    before, length, after = w.part(shape, 0, axis), _at(w, shape, axis), _after(w, shape, axis)
    outer, inner = (w.product(w.joined(one, lengths)) for lengths in (before, after))
    index_shape = w.info(indices).shape
    if axis != 0 and index_shape is not None and set(index_shape) <= {1}:
        index = positions(w, w.reshape(indices, w.ints(1, 1)), length, 1, w.count_to(outer))
        zeros = w.filled(w.joined(w.op("Mul", outer, length), inner), 0.0, w.element_type(dy))
        rows = w.reshape(dy, w.joined(outer, inner))
        result = add_rows(w, zeros, index, rows, is_zero=True, is_distinct=True)
        return [w.cast(w.reshape(result, shape), element_type)]
    dy_shape = w.shape(dy)
    index_axes = w.shape(before), w.op("Sub", w.shape(dy_shape), w.shape(after))
    indices = w.op("Expand", indices, w.op("Slice", dy_shape, *index_axes, w.ints(0)))
    index = w.flat(positions(w, w.unsqueeze(indices, -1), length, 1))
    count = w.shape(index)
    rows = w.reshape(dy, w.joined(outer, count, inner))
    if axis != 0:
        rows = w.op("Transpose", rows, perm=[1, 0, 2])
    rows = w.reshape(rows, w.joined(count, w.op("Mul", outer, inner)))
    zeros = w.filled(w.joined(length, outer, inner), 0.0, w.element_type(dy))
    result = add_rows(w, zeros, index, rows, is_zero=True)
    if axis != 0:
        result = w.op("Transpose", result, perm=[1, 0, 2])
    return [w.cast(w.reshape(result, shape), element_type)]


def gather_nd_grad(w: TrainingOp) -> Outputs:
    """(shape, indices, dY; batch_dims = 0): zeros of that shape, dY added at the index tuples."""
    shape, indices, dy = w.inputs("shape", "indices", "dY")
    element_type = w.element_type(dy, w.node.outputs[0])
    dy = w.cast(dy, compute_type(element_type))
    batch_dims = w.attribute("batch_dims", 0)
    tuple_shape, shape_shape = w.static_shape(indices, "indices", -1), w.info(shape).shape
    rank = shape_shape[0] if shape_shape else None
    if not tuple_shape or batch_dims + tuple_shape[0] > (rank if isinstance(rank, int) else _LARGEST_RANK):
        w.refuse(
            f"its index tuples are {tuple_shape} long after {batch_dims} batch axes; the tensor has "
            f"{rank if isinstance(rank, int) else f'at most {_LARGEST_RANK}'} axes (correct indices or batch_dims)"
        )
    (depth,) = tuple_shape
    one = w.ints(1)
    batch = w.product(w.part(shape, 0, batch_dims)) if batch_dims else one
    # An index tuple as a position in the indexed axes, which are read as one.
    start = w.reshape(w.count_to(batch), w.joined(batch, one))
    tuples = w.op("Reshape", indices, w.joined(batch, w.ints(-1, depth)))
    index = w.flat(positions(w, tuples, w.part(shape, batch_dims, batch_dims + depth), depth, start))
    indexed = w.product(w.part(shape, 0, batch_dims + depth))
    inner = w.product(w.joined(one, w.part(shape, batch_dims + depth)))
    zeros = w.filled(w.joined(indexed, inner), 0.0, w.element_type(dy))
    result = add_rows(w, zeros, index, w.reshape(dy, w.joined(w.shape(index), inner)), is_zero=True)
    return [w.cast(w.reshape(result, shape), element_type)]


def gather_elements_grad(w: TrainingOp) -> Outputs:
    """(dY, shape, indices; axis = 0): zeros of that shape, dY added at the indices."""
    dy, shape, indices = w.inputs("dY", "shape", "indices")
    element_type, axis = w.element_type(dy, w.node.outputs[0]), w.attribute("axis", 0)
    dy = w.cast(dy, compute_type(element_type))
    if w.opset >= _SCATTER_ELEMENTS_ADDS_FROM:
        zeros = w.filled(shape, 0.0, w.element_type(dy))
        return [w.cast(w.op("ScatterElements", zeros, indices, dy, axis=axis, reduction="add"), element_type)]
    # The place of each element if its index were 0, from the places of all elements, of which there may be more.
    size, length, indices_shape, one = w.product(shape), _at(w, shape, axis), w.shape(indices), w.ints(1)
    ends = w.joined(w.part(indices_shape, 0, axis), one, _after(w, indices_shape, axis))
    starts = w.filled(w.shape(ends), 0, ir.DataType.INT64)
    first = w.op("Slice", w.reshape(w.count_to(size), shape), starts, ends)
    index = positions(w, w.unsqueeze(indices, -1), length, 1)
    stride = w.product(w.joined(one, _after(w, shape, axis)))
    index = w.flat(w.op("Add", w.op("Mul", index, stride), first))
    return [w.cast(w.reshape(added_elements(w, size, index, dy), shape), element_type)]


def added_elements(w: TrainingOp, size: ir.Value, index: ir.Value, values: ir.Value) -> ir.Value:
    """Return `size` zeros with values added at indices that may repeat and are not negative, all of them vectors."""
    values = w.flat(values)
    if w.opset >= _SCATTER_ELEMENTS_ADDS_FROM:
        zeros = w.filled(size, 0.0, w.element_type(values))
        return w.op("ScatterElements", zeros, index, values, axis=0, reduction="add")
    zeros = w.filled(w.joined(size, w.ints(1)), 0.0, w.element_type(values))
    return w.flat(add_rows(w, zeros, index, w.unsqueeze(values, 1), is_zero=True))


def _at(w: TrainingOp, shape: ir.Value, axis: int) -> ir.Value:
    return w.part(shape, axis, None if axis == -1 else axis + 1)


def _after(w: TrainingOp, shape: ir.Value, axis: int) -> ir.Value:
    """Return the lengths after an axis."""
    return w.part(shape, INT64_MAX if axis == -1 else axis + 1)


def slice_grad(w: TrainingOp) -> Outputs:
    """(dY, shape, starts, ends, axes, steps): zeros of that shape, dY where the slice is.

    The positions of the elements are sliced in the same way as the elements were.
    """
    dy, shape, starts, ends = w.inputs("dY", "shape", "starts", "ends")
    element_type = w.element_type(dy, w.node.outputs[0])
    dy = w.cast(dy, compute_type(element_type))
    size = w.product(shape)
    places = w.reshape(w.count_to(size), shape)
    places = w.op("Slice", places, starts, ends, w.optional_input(4), w.optional_input(5))
    zeros = w.filled(size, 0.0, w.element_type(dy))
    result = w.op("ScatterElements", zeros, w.flat(places), w.flat(dy), axis=0)
    return [w.cast(w.reshape(result, shape), element_type)]
