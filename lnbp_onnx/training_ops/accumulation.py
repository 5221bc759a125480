# SPDX-License-Identifier: Apache-2.0
"""Accumulation of gradients.

Standard operators change nothing in place: what an accumulator left in its buffer is a graph output afterwards.
"""

import onnx_ir as ir

from lnbp_onnx.graphs.writer import compute_type
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp


def in_place_accumulator_v2(w: TrainingOp) -> Outputs:
    """(buffer, value, overwrite): a flag that is true, and buffer + value, or value where overwrite is true."""
    buffer, value = w.inputs("accumulation_buffer", "value")
    element_type = w.element_type(buffer)
    old, new = (w.cast(each, compute_type(element_type)) for each in (buffer, value))
    updated, overwrite = w.op("Add", old, new), w.optional_input(2)
    if overwrite is not None:
        updated = w.where(w.reshape(overwrite, w.ints()), new, updated)
    updated = w.cast(updated, element_type)
    w.updates.append((buffer, updated))
    return [w.constant([True], ir.DataType.BOOL), updated]


def in_place_accumulator(w: TrainingOp) -> Outputs:
    """(old_sum, value, update): old_sum + value, or old_sum where update is false."""
    given, value = w.inputs("old_sum", "value")
    element_type = w.element_type(given)
    old, new = (w.cast(each, compute_type(element_type)) for each in (given, value))
    updated, update = w.op("Add", old, new), w.optional_input(2)
    if update is not None:
        updated = w.where(w.reshape(update, w.ints()), updated, old)
    return [w.cast(updated, element_type)]


def zero_gradient(w: TrainingOp) -> Outputs:
    """(old_gradient, reset_signal): zeros of the gradient's shape."""
    (given,) = w.inputs("old_gradient")
    return [w.zeros(w.shape(given), w.element_type(given))]
