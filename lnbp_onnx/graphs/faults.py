# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a model that something stumbled over.

Looking for it in every model would cost time, and refuse those of ONNX Runtime training, whose operators onnx does not
know. Many a model with a fault can be rewritten all the same.
"""

from collections.abc import Iterator
from typing import Any

from onnx import ModelProto, TensorProto, numpy_helper

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs import onnx_calls


def fault_of(model: ModelProto) -> str | None:
    """Return what is wrong with a model, as a part of a sentence, or None where nothing is found."""
    text = text_fault_of(model)
    if text is not None:
        return text
    for message in messages_in(model):
        if isinstance(message, TensorProto) and message.data_location != TensorProto.EXTERNAL:
            try:
                numpy_helper.to_array(message)
            except Exception as error:  # what NumPy raises for the wrong number of elements or an unknown type
                return f"the tensor {message.name!r} cannot be read: {error}"
    try:
        onnx_calls.check_model(model)
    except InvalidModelError as error:
        return str(error)
    return None


def text_fault_of(model: ModelProto) -> str | None:
    """Return which text of a model is not UTF-8: protobuf gives such text as bytes, and does not write it again."""
    for message in messages_in(model):
        for field, value in message.ListFields():
            if field.type == field.TYPE_STRING:
                for text in _items(value):
                    if isinstance(text, bytes):
                        return (
                            f"it holds text that is not UTF-8, as {field.name} of a {message.DESCRIPTOR.name}: {text!r}"
                        )
    return None


def messages_in(message: Any) -> Iterator[Any]:
    """Yield a message and those in it, to any depth."""
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in _items(value):
                yield from messages_in(item)


def _items(value: Any) -> Any:
    return [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
