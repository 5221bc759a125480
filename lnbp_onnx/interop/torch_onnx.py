# SPDX-License-Identifier: Apache-2.0
"""Traced torch programs as ONNX models with the names that users know."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx import ModelProto
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.inference import subgraphs_of
from lnbp_onnx.interop.torch_program import Program
from lnbp_onnx.model_io import check_model


def to_onnx(
    program: Program, translations: Mapping[Callable[..., Any], Callable[..., Any]], defaults: Sequence[str]
) -> ModelProto:
    """Return a program as a model whose inputs are its inputs and, with their values as initializers, `defaults`.

    The program's other parameters and buffers are constants.

    Raises:
        InvalidModelError: Where the exporter lacks an operator or writes a wrong one.
    """
    call = program.call
    try:
        exported = torch.onnx.export(
            program.exported, dynamo=True, custom_translation_table=dict(translations), verbose=False
        )
    except Exception as error:  # torch's exceptions have no common base but Exception
        raise call.refusal(f"torch {torch.__version__} cannot write it as ONNX: {_innermost(error)}") from error
    model = exported.model
    ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    inputs = dict(zip(call.tensors, graph.inputs, strict=True))
    _rename(graph, {**inputs, **dict(zip(program.output_names, graph.outputs, strict=True))})
    _rename_dims(graph, program.dims)
    _drop_unused_outputs(graph)
    graph.inputs[:] = [inputs[name] for name in (*call.inputs, *defaults)]
    for name, tensor in {**call.constants, **call.trainable}.items():
        inputs[name].const_value = ir.tensor_adapters.TorchTensor(tensor.detach().cpu().contiguous(), name=name)
        if name in defaults or inputs[name].uses():
            graph.register_initializer(inputs[name])
    proto: ModelProto = ir.to_proto(model)
    try:
        check_model(proto)
    except InvalidModelError as error:
        raise call.refusal(f"torch {torch.__version__} writes it as ONNX that is not valid: {error}") from error
    return proto


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs
        for _, subgraphs in subgraphs_of(node):
            for subgraph in subgraphs:
                yield from subgraph.inputs
                yield from subgraph.initializers.values()


def _rename(graph: ir.Graph, values: Mapping[str, ir.Value]) -> None:
    """Give values their names; what has one of these names already gets another."""
    taken = {value.name for value in _values(graph)} | values.keys()
    wanted = set(values.values())
    for value in list(_values(graph)):
        if value.name in values and value not in wanted:
            count = next(count for count in itertools.count(1) if f"{value.name}_{count}" not in taken)
            value.name = f"{value.name}_{count}"
            taken.add(value.name)
    for name, value in values.items():
        value.name = name


def _rename_dims(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Give the symbols in shapes the user's names, also within expressions."""
    for value in _values(graph):
        if value.shape is None:
            continue
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                value.shape[axis] = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.value)


def _drop_unused_outputs(graph: ir.Graph) -> None:
    """Leave out the parameter gradients that nothing uses; the kernels then need not compute them."""
    for node in graph.all_nodes():
        if node.op_identifier() == (spec.DOMAIN, spec.OP_TYPE, ""):
            for output in node.outputs[1:]:
                if not output.uses() and not output.is_graph_output():
                    output.name = ""
