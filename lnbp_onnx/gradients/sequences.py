# SPDX-License-Identifier: Apache-2.0
"""Operators on sequences of tensors of a known number, in operators on these tensors."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import onnx_ir as ir

from lnbp_onnx.graphs.inference import constant_tensor
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp


def split_to_sequence(w: TrainingOp) -> Outputs:
    """(X, lengths; axis, keepdims): the sequence of the parts that Split gives."""
    (x,) = w.inputs("input")
    shape, given = w.info(x).shape, w.optional_input(1)
    if shape is None:
        w.refuse(f"the rank of {x.name!r} is not known; it must be (add its value_info to the model)")
    axis = w.attribute("axis", 0) % len(shape)
    tensor = w.constant([1], ir.DataType.INT64) if given is None else given
    lengths = constant_tensor(tensor)
    whole = shape[axis]
    length = 0 if lengths is None or lengths.size != 1 else int(lengths.numpy().reshape(-1)[0])
    if lengths is not None and len(lengths.shape) == 1 and given is not None:
        parts = [int(each) for each in lengths.numpy()]
    elif length > 0 and isinstance(whole, int):
        parts = [min(length, whole - start) for start in range(0, whole, length)]
    else:
        w.refuse("into how many parts it splits is known at run time only (write it with Split)")
    if not parts or min(parts) < 0:
        w.refuse(f"its parts have the lengths {parts}; they must be 0 at least, and one part at least")
    values = w.ops("Split", x, w.ints(*parts), outputs=len(parts), axis=axis)
    if given is None and not w.attribute("keepdims", 1):
        values = [w.squeeze(value, axis) for value in values]
    sequence = w.op("SequenceConstruct", *values)
    sequence.type = ir.SequenceType(ir.TensorType(w.element_type(x)))
    return [sequence]


def sequence_at(w: TrainingOp) -> Outputs:
    """(sequence, position): the tensor there."""
    values = _tensors(w)
    position = constant_tensor(w.inputs("input_sequence", "position")[1])
    if position is None or position.size != 1:
        w.refuse("its position is computed at run time; it must be a constant (write it with Gather)")
    index = int(position.numpy().reshape(-1)[0])
    if not -len(values) <= index < len(values):
        w.refuse(f"its position is {index}, and the sequence has {len(values)} tensors")
    return [w.op("Identity", values[index])]


def concat_from_sequence(w: TrainingOp) -> Outputs:
    """(sequence; axis, new_axis): Concat of the tensors, with a new axis before that where it is asked for."""
    values, axis = _tensors(w), w.attribute("axis", 0)
    if w.attribute("new_axis", 0):
        values = [w.unsqueeze(value, axis) for value in values]
    return [w.op("Concat", *values, axis=axis)]


def _tensors(w: TrainingOp) -> list[ir.Value]:
    """Return the tensors of the node's sequence."""
    sequence = w.inputs("input_sequence")[0]
    node = sequence.producer()
    if node is None or node.domain != "" or node.op_type != "SequenceConstruct":
        w.refuse(
            f"its sequence {sequence.name!r} comes neither from SplitToSequence nor from SequenceConstruct, and no "
            "other is covered (write it with tensors)"
        )
    return [value for value in node.inputs if value is not None]


SEQUENCES: Mapping[str, Callable[[TrainingOp], Outputs]] = MappingProxyType(
    {
        "ConcatFromSequence": concat_from_sequence,
        "SequenceAt": sequence_at,
        "SplitToSequence": split_to_sequence,
    }
)
"""The operators on sequences that are written out."""
