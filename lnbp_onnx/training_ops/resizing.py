# SPDX-License-Identifier: Apache-2.0
"""The gradient of Resize."""

import numpy as np
import onnx_ir as ir

from lnbp_onnx.graphs.inference import constant_tensor
from lnbp_onnx.training_ops.training_op import Outputs, TrainingOp

_CROPPING = "tf_crop_and_resize"


def resize_grad(w: TrainingOp) -> Outputs:
    """(dY, X, roi, scales; the attributes of Resize): the gradient of X.

    Resize is linear, an axis at a time: what it makes of the identity is its matrix for an axis.
    """
    given = w.inputs("dY", "X")
    element_type = w.element_type(*given)
    shapes = [w.info(value).shape for value in given]
    rank = next((len(shape) for shape in shapes[::-1] if shape is not None), None)
    if rank is None:
        w.refuse("the number of axes of X is not known; it must be (add its value_info)")
    if w.attribute("keep_aspect_ratio_policy", "stretch") != "stretch":
        w.refuse("its attribute keep_aspect_ratio_policy must be 'stretch'")
    matrices = _Matrices(w, rank, *w.computed(*given))
    result = matrices.dy
    for axis in matrices.resized(*shapes):
        if axis == rank - 1:
            result = w.op("MatMul", result, matrices.of_axis(axis))
        elif axis == rank - 2:
            result = w.op("MatMul", w.op("Transpose", matrices.of_axis(axis), perm=[1, 0]), result)
        else:
            swapped = list(range(rank))
            swapped[axis], swapped[-1] = rank - 1, axis
            result = w.op("MatMul", w.op("Transpose", result, perm=swapped), matrices.of_axis(axis))
            result = w.op("Transpose", result, perm=swapped)
    return [w.cast(result, element_type)]


class _Matrices:
    """For each axis the matrix by which it is resized, [new length, length]."""

    def __init__(self, w: TrainingOp, rank: int, dy: ir.Value, x: ir.Value) -> None:
        self.dy = dy
        self._w = w
        self._x = x
        self._attributes = {name: w.attribute(name, None) for name in w.node.attributes}
        self._axes = [axis % rank for axis in self._attributes.pop("axes", None) or range(rank)]
        self._crops = w.attribute("coordinate_transformation_mode", "half_pixel") == _CROPPING
        # A constant outside of X has no gradient.
        self._attributes.pop("extrapolation_value", None)
        self._roi, self._scales = w.optional_input(2), w.optional_input(3)
        if self._scales is not None and w.info(self._scales).shape == (0,):
            self._scales = None

    def resized(self, dy_shape: object, x_shape: object) -> list[int]:
        """Return the axes that may change, the last one first."""
        scales = None if self._scales is None else constant_tensor(self._scales)
        factors = None if scales is None else scales.numpy().reshape(-1)

        def stays(place: int, axis: int) -> bool:
            if self._crops:
                return False
            if self._scales is not None:
                return factors is not None and bool(factors[place] == 1)
            if not isinstance(dy_shape, tuple) or not isinstance(x_shape, tuple):
                return False
            return x_shape[axis] is not None and x_shape[axis] == dy_shape[axis]

        return sorted((axis for place, axis in enumerate(self._axes) if not stays(place, axis)), reverse=True)

    def of_axis(self, axis: int) -> ir.Value:
        w, floats = self._w, ir.DataType.FLOAT
        place, count = self._axes.index(axis), len(self._axes)
        length = self._length(self._x, axis)
        identity = w.op("EyeLike", w.filled(w.joined(length, length), 0.0, floats))
        none = w.constant(np.zeros(0), floats) if w.opset < 13 else None
        roi = none
        if self._crops and self._roi is not None:
            given = w.cast(self._roi, floats)
            start, end = w.part(given, place, place + 1), w.part(given, count + place, count + place + 1)
            roi = w.joined(start, w.constant([0.0], floats), end, w.constant([1.0], floats))
        if self._scales is None:
            operands = [roi, none, w.joined(self._length(self.dy, axis), length)]
        else:
            scale = w.part(w.cast(self._scales, floats), place, place + 1)
            operands = [roi, w.joined(scale, w.constant([1.0], floats))]
        return w.cast(w.op("Resize", identity, *operands, **self._attributes), w.element_type(self.dy))

    def _length(self, value: ir.Value, axis: int) -> ir.Value:
        shape = self._w.info(value).shape
        length = None if shape is None else shape[axis]
        return self._w.ints(length) if isinstance(length, int) else self._w.part(self._w.shape(value), axis, axis + 1)
