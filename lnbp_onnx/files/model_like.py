# SPDX-License-Identifier: Apache-2.0
"""What is taken wherever a model is taken."""

from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir
from onnx import ModelProto

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.files.model_io import load_data, load_model, parsed

ModelLike: TypeAlias = ModelProto | ir.Model | str | Path | bytes


def read_model(model: ModelLike) -> tuple[ModelProto, Path | None]:
    """Return a ModelProto that may be changed, and a path in the folder of its external data.

    It is None where that is the current folder, as of a ModelProto and of bytes.

    Raises:
        InvalidModelError: Where there is no model.
    """
    if isinstance(model, str | Path):
        return load_model(Path(model)), Path(model)
    if isinstance(model, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(model)
        return copy, None
    if isinstance(model, ir.Model):
        return ir.to_proto(model), _source_of_tensors(model)
    if isinstance(model, bytes):
        try:
            return parsed(model, f"The {len(model)} bytes are not an ONNX model"), None
        except MemoryError as error:
            raise InvalidModelError("The model cannot be read: there is too little memory for it.") from error
    raise InvalidModelError(
        f"The model is of type {type(model).__name__}; it must be an onnx.ModelProto, an onnx_ir.Model, a path, "
        "or bytes."
    )


def read_whole_model(model: ModelLike) -> ModelProto | ir.Model:
    """Return what a function from model to model works on: a ModelProto or an ``onnx_ir.Model`` is itself.

    A path is read with its external data, as ``onnx.load`` does it: what is made of it then needs no file.

    Raises:
        InvalidModelError: Where there is no model, or not all of its data.
    """
    if isinstance(model, ModelProto | ir.Model):
        return model
    proto, source = read_model(model)
    if source is not None:
        load_data(proto, source)
    return proto


def _source_of_tensors(model: ir.Model) -> Path | None:
    """Return a path in the folder that the model's external tensors are relative to, or None where there are none."""
    outer = [model.graph, *(function.graph for function in model.functions.values())]
    graphs = [each for graph in outer for each in (graph, *graph.subgraphs())]
    tensors = [value.const_value for graph in graphs for value in graph.initializers.values()]
    tensors += [attribute.value for graph in graphs for node in graph for attribute in node.attributes.values()]
    folders = {Path(tensor.base_dir).resolve() for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    if len(folders) > 1:
        raise InvalidModelError(
            f"The model's external data is in {len(folders)} folders: {', '.join(map(str, sorted(folders)))}; "
            "it must be in one (save the model with onnx_ir.save, and give its path)."
        )
    return folders.pop() / "model.onnx" if folders else None
