# SPDX-License-Identifier: Apache-2.0
"""Tensors with given numbers, as tensors of the algebra."""

import math
from fractions import Fraction

import onnx_ir as ir

from lnbp_onnx.graphs.writer import FLOATS
from lnbp_onnx.matching.algebra import constant
from lnbp_onnx.matching.tensors import Lengths, Tensor, axis_of

_LARGEST_CONSTANT = 1 << 24
_LONGEST_VECTOR = 64


def read_tensor(tensor: ir.TensorProtocol) -> Tensor | Lengths | None:
    """Return a tensor of one number repeated, or a list of integers; None for any other."""
    shape = tuple(tensor.shape.numpy())
    size = math.prod(shape)
    if size == 0 or size > _LARGEST_CONSTANT or isinstance(tensor, ir.ExternalTensor):
        is_empty_vector = tensor.dtype == ir.DataType.INT64 and shape == (0,)
        return Lengths(()) if is_empty_vector else None
    if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32):
        if len(shape) > 1 or size > _LONGEST_VECTOR:
            return None
        return Lengths(tuple(map(int, tensor.numpy().reshape(-1))), is_scalar=not shape)
    if tensor.dtype not in FLOATS:
        return None
    array = tensor.numpy().reshape(-1)
    first = array[0]
    if not math.isfinite(float(first)) or array[-1] != first or not bool((array == first).all()):
        return None
    bits = 53 if tensor.dtype == ir.DataType.DOUBLE else 24
    return Tensor(constant(_rational(float(first), bits)), tuple(map(axis_of, shape)))


def _rational(value: float, bits: int) -> Fraction:
    """Return the number; 1 / k, for an integer k, for the float that is nearest to it."""
    if 0 < abs(value) < 1:
        k = round(1 / value)
        if abs(k) < 1 << (bits - 1) and abs(Fraction(value) * k - 1) <= Fraction(1, 1 << bits):
            return Fraction(1, k)
    return Fraction(value)
