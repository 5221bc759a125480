# SPDX-License-Identifier: Apache-2.0
"""Putting other values into a model's initializers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import ModelProto

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.node import format_shape


def put_values(model: ModelProto | ir.Model, values: Mapping[str, Any]) -> None:
    """Replace the values of initializers of the main graph, in place.

    Args:
        model: The model; of external tensors that get a value the data is not looked at any more.
        values: Arrays by the initializer's name, of its type and shape.

    Raises:
        InvalidModelError: Where the model has no such initializer, or one of another type or shape; all are named.
    """
    if isinstance(model, ir.Model):
        found = {name: value.const_value for name, value in model.graph.initializers.items()}
    else:
        found = {tensor.name: ir.serde.deserialize_tensor(tensor) for tensor in model.graph.initializer}
    tensors, faults = {}, []
    for name, value in values.items():
        try:
            array = np.asarray(value)
            if array.dtype.kind in "OUS":
                raise TypeError(f"it is of NumPy's type {array.dtype}")
            tensors[name] = ir.Tensor(array, name=name)
        except Exception as error:  # each kind of array has its own, as torch's for one that requires a gradient
            faults.append(f"The value of {name!r} is no array of numbers: {error} (give an array).")
            continue
        faults += _faults(name, tensors[name], found.get(name))
    if faults:
        raise InvalidModelError("\n".join(faults))
    if isinstance(model, ir.Model):
        for name, tensor in tensors.items():
            model.graph.initializers[name].const_value = tensor
        return
    for proto in model.graph.initializer:
        if proto.name in tensors:
            proto.ClearField("external_data")
            proto.ClearField("data_location")
            for field in ("float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
                proto.ClearField(field)
            proto.raw_data = tensors[proto.name].tobytes()


def _faults(name: str, value: ir.TensorProtocol, tensor: ir.TensorProtocol | None) -> list[str]:
    """Return what stops a value, as sentences."""
    if tensor is None:
        return [f"The model has no initializer {name!r} (leave the value out, or give the model that was trained)."]
    if value.dtype != tensor.dtype:
        return [f"The value of {name!r} is of type {value.dtype}, the initializer of type {tensor.dtype} (cast it)."]
    if value.shape != tensor.shape:
        found, needed = (format_shape(each.shape.numpy()) for each in (value, tensor))
        return [f"The value of {name!r} has shape {found}, the initializer {needed} (give values of this model)."]
    return []
