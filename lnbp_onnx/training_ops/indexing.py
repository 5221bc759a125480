# SPDX-License-Identifier: Apache-2.0
"""Gradients of operators that pick elements: what was picked is added up where it came from."""

import onnx_ir as ir

from lnbp_onnx.training_ops.writer import Outputs, Writer, compute_type

_SCATTER_ADDS_FROM = 16


def gather_grad(w: Writer) -> Outputs:
    """(shape, indices, dY; axis = 0): zeros of that shape, dY added at the indices along the axis."""
    shape, indices, dy = w.inputs("shape", "indices", "dY")
    element_type = w.element_type(dy, w.node.outputs[0])
    dy = w.cast(dy, compute_type(element_type))
    axis = w.attribute("axis", 0)
    outer = w.product(w.part(shape, 0, axis)) if axis else w.ints(1)
    inner = w.ints(1) if axis == -1 else w.product(w.part(shape, axis + 1))
    length = w.part(shape, axis, None if axis == -1 else axis + 1)
    result = _added_up(w, dy, w.flat(indices), outer, length, inner)
    return [w.cast(w.reshape(result, shape), element_type)]


def gather_nd_grad(w: Writer) -> Outputs:
    """(shape, indices, dY; batch_dims = 0): zeros of that shape, dY added at the index tuples."""
    shape, indices, dy = w.inputs("shape", "indices", "dY")
    element_type = w.element_type(dy, w.node.outputs[0])
    dy = w.cast(dy, compute_type(element_type))
    batch_dims = w.attribute("batch_dims", 0)
    tuple_shape, shape_shape = w.static_shape(indices, "indices", -1), w.info(shape).shape
    rank = shape_shape[0] if shape_shape else None
    if not tuple_shape or (isinstance(rank, int) and batch_dims + tuple_shape[0] > rank):
        w.refuse(
            f"its index tuples are {tuple_shape} long after {batch_dims} batch axes; the tensor has "
            f"{'?' if rank is None else rank} axes (correct indices or batch_dims)"
        )
    (depth,) = tuple_shape
    one = w.ints(1)
    batch = w.product(w.part(shape, 0, batch_dims)) if batch_dims else one
    # An index tuple as a position in the indexed axes, which are read as one.
    scalar = w.squeeze(batch, 0)
    zero, step = w.constant(0, ir.DataType.INT64), w.constant(1, ir.DataType.INT64)
    position = w.op("Range", zero, scalar, step)
    position = w.reshape(position, w.joined(batch, one))
    tuples = w.op("Reshape", w.cast(indices, ir.DataType.INT64), w.joined(batch, w.ints(-1, depth)))
    for axis in range(depth):
        index = w.squeeze(w.op("Gather", tuples, w.ints(axis), axis=2), 2)
        length = w.part(shape, batch_dims + axis, batch_dims + axis + 1)
        negative = w.compare("Less", index, w.ints(0))
        index = w.where(negative, w.op("Add", index, length), index)
        position = w.op("Add", w.op("Mul", position, length), index)
    indexed = w.product(w.part(shape, 0, batch_dims + depth))
    inner = w.product(w.joined(one, w.part(shape, batch_dims + depth)))
    result = _added_up(w, dy, w.flat(position), one, indexed, inner)
    return [w.cast(w.reshape(result, shape), element_type)]


def _added_up(
    w: Writer, dy: ir.Value, indices: ir.Value, outer: ir.Value, length: ir.Value, inner: ir.Value
) -> ir.Value:
    """Return [outer, length, inner] with the rows of dY, read as [outer, number of indices, inner], added up."""
    element_type = w.element_type(dy)
    count = w.shape(indices)
    rows = w.reshape(dy, w.joined(outer, count, inner))
    if w.opset >= _SCATTER_ADDS_FROM:
        # Not ScatterND: its additions of equal indices are not in order where a runtime has several threads.
        columns = w.op("Reshape", indices, w.ints(1, -1, 1))
        columns = w.op("Expand", columns, w.joined(outer, count, inner))
        zeros = w.filled(w.joined(outer, length, inner), 0.0, element_type)
        return w.op("ScatterElements", zeros, columns, rows, axis=1, reduction="add")
    values = w.constant([0.0, 1.0], ir.DataType.FLOAT)
    depth = w.squeeze(length, 0)
    onehot = w.op("OneHot", w.cast(indices, ir.DataType.INT64), depth, values, axis=0, element_type=ir.DataType.FLOAT)
    return w.op("MatMul", w.cast(onehot, element_type), rows)


def gather_elements_grad(w: Writer) -> Outputs:
    """(dY, shape, indices; axis = 0): zeros of that shape, dY added at the indices; from opset 16 on."""
    dy, shape, indices = w.inputs("dY", "shape", "indices")
    if w.opset < _SCATTER_ADDS_FROM:
        w.refuse(
            f"the default-domain opset is {w.opset}; standard operators for it can be written from "
            f"{_SCATTER_ADDS_FROM} on (convert the model with onnx.version_converter)"
        )
    element_type = w.element_type(dy, w.node.outputs[0])
    dy = w.cast(dy, compute_type(element_type))
    zeros = w.filled(shape, 0.0, w.element_type(dy))
    result = w.op("ScatterElements", zeros, indices, dy, axis=w.attribute("axis", 0), reduction="add")
    return [w.cast(result, element_type)]


def slice_grad(w: Writer) -> Outputs:
    """(dY, shape, starts, ends, axes, steps): zeros of that shape, dY where the slice is.

    The positions of the elements are sliced in the same way as the elements were.
    """
    dy, shape, starts, ends = w.inputs("dY", "shape", "starts", "ends")
    element_type = w.element_type(dy, w.node.outputs[0])
    dy = w.cast(dy, compute_type(element_type))
    size = w.product(shape)
    zero, step = w.constant(0, ir.DataType.INT64), w.constant(1, ir.DataType.INT64)
    positions = w.op("Range", zero, w.squeeze(size, 0), step)
    positions = w.op("Slice", w.reshape(positions, shape), starts, ends, w.optional_input(4), w.optional_input(5))
    zeros = w.filled(size, 0.0, w.element_type(dy))
    result = w.op("ScatterElements", zeros, w.flat(positions), w.flat(dy), axis=0)
    return [w.cast(w.reshape(result, shape), element_type)]
