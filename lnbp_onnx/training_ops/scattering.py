# SPDX-License-Identifier: Apache-2.0
"""ScatterND with a reduction, in a form that is right on any number of threads."""

import numpy as np
import onnx_ir as ir

from lnbp_onnx.graphs.inference import constant_tensor
from lnbp_onnx.graphs.writer import compute_type
from lnbp_onnx.training_ops.row_sums import add_rows, positions
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp


def scatter_nd(w: TrainingOp) -> Outputs:
    """(data, indices, updates; reduction): data, updates added (multiplied, ...) where the index tuples point.

    Sums of floating types are computed in float or double and rounded once.
    """
    data, indices, updates = w.inputs("data", "indices", "updates")
    reduction, element_type = w.attribute("reduction", "none"), w.element_type(data, updates)
    depth = _depth(w, data, indices, updates)
    if reduction == "add" and _are_distinct(w, indices):
        before = w.op("GatherND", data, indices)
        given = (w.cast(value, compute_type(element_type), element_type) for value in (before, updates))
        return [w.op("ScatterND", data, indices, w.cast(w.op("Add", *given), element_type))]
    shape, one = w.shape(data), w.ints(1)
    indexed, width = w.part(shape, 0, depth), w.product(w.joined(one, w.part(shape, depth)))
    index = w.flat(positions(w, indices, indexed, depth))
    rows = w.reshape(updates, w.joined(w.shape(index), width))
    if reduction == "add" and compute_type(element_type) in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        rows = w.cast(rows, compute_type(element_type), element_type)
        is_zero = _is_zero(data)
        if depth == 1:
            return [add_rows(w, data, index, rows, is_zero=is_zero)]
        table = w.reshape(data, w.joined(w.product(indexed), w.part(shape, depth)))
        return [w.reshape(add_rows(w, table, index, rows, is_zero=is_zero), shape)]
    table = w.reshape(data, w.joined(w.product(indexed), width))
    # ONNX Runtime drops an Expand to a constant shape where that makes axes of length 0 out of ones of length 1.
    columns = w.op("Tile", w.unsqueeze(index, 1), w.joined(one, width))
    result = w.op("ScatterElements", table, columns, rows, axis=0, reduction=reduction, element_type=element_type)
    return [w.reshape(result, shape)]


def _depth(w: TrainingOp, data: ir.Value, indices: ir.Value, updates: ir.Value) -> int:
    """Return the length of the index tuples."""
    shapes = [w.info(value).shape for value in (data, indices, updates)]
    data_shape, index_shape, update_shape = shapes
    depth = index_shape[-1] if index_shape else None
    if not isinstance(depth, int) and None not in shapes:
        depth = len(index_shape or ()) - 1 + len(data_shape or ()) - len(update_shape or ())
    if not isinstance(depth, int):
        w.refuse(
            "the length of its index tuples, the last axis of indices, is not known; it must be (add the value_info of "
            "indices to the model)"
        )
    if depth < 1 or (data_shape is not None and depth > len(data_shape)):
        w.refuse(
            f"its index tuples have {depth} elements; there must be one at least, and not more than data has axes "
            "(correct indices)"
        )
    return depth


def _are_distinct(w: TrainingOp, indices: ir.Value) -> bool:
    """Return whether no two index tuples are known to point at one place: there is one, or they are constants."""
    shape = w.info(indices).shape
    if shape is not None and all(dim == 1 for dim in shape[:-1]):
        return True
    tensor = constant_tensor(indices)
    if tensor is None:
        return False
    tuples = tensor.numpy()
    tuples = tuples.reshape(-1, tuples.shape[-1])
    return bool(tuples.min(initial=0) >= 0) and len(np.unique(tuples, axis=0)) == len(tuples)


def _is_zero(value: ir.Value) -> bool:
    """Return whether a tensor is known to hold zeros."""
    while (node := value.producer()) is not None and node.domain == "":
        source = next(iter(node.inputs), None)
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            return fill is None or (not fill.is_ref() and not np.any(fill.as_tensor().numpy()))
        if node.op_type not in ("Expand", "Reshape", "Identity", "Cast") or source is None:
            break
        value = source
    tensor = constant_tensor(value)
    return tensor is not None and not np.any(tensor.numpy())
