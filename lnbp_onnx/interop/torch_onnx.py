# SPDX-License-Identifier: Apache-2.0
"""Traced torch programs as ONNX models with the names that users know."""

import itertools
import random
import re
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnx import ModelProto
from onnx_ir.passes import common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from lnbp_onnx import spec
from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.files.model_io import check_model
from lnbp_onnx.graphs.inference import subgraphs_of
from lnbp_onnx.interop.torch_program import Program
from lnbp_onnx.interop.torch_random import ONNX_OPS
from lnbp_onnx.interop.torch_terminal import quiet
from lnbp_onnx.interop.torch_translations import gradient_translations
from lnbp_onnx.passes import OrtTrainingPass, ScatterPass
from lnbp_onnx.training_ops import MICROSOFT_DOMAIN

_RULES = [
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.no_op_cast_rule,
    rules.cast_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.materialize_reshape_shape_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.unsqueeze_unsqueeze_rule,
]

_WIDENED = ("Add", "Div", "Expand", "Mul", "Neg", "Sub")
_MOVING = ("Cast", "Concat", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")

_WAY_OUT = "write that part of it otherwise, such as masked_select as torch.where; docs/pytorch.md says what is refused"


def to_onnx(
    program: Program, translations: Mapping[Callable[..., Any], Callable[..., Any]], seed: int | None
) -> ModelProto:
    """Return a program as a model whose inputs are those of the call and ``program.variable``.

    The latter have their values as initializers. The program's other parameters and buffers are constants. With a
    `seed` what is drawn is the same in each session.

    Raises:
        InvalidModelError: Where the exporter lacks an operator or writes a wrong one.
    """
    call = program.call
    try:
        with quiet():
            exported = torch.onnx.export(
                program.exported,
                dynamo=True,
                custom_translation_table={**translations, **gradient_translations()},
                verbose=False,
                optimize=False,
            )
            model = exported.model
            _tidy(model)
    except Exception as error:  # torch's exceptions have no common base but Exception
        reason = str(_innermost(error)).rstrip(".")
        missing = re.search(r"No ONNX function found for <OpOverload\(op='\w+\.(\w+)'", reason)
        found = f"has no ONNX for {missing[1]}, of its forward pass or of a gradient" if missing else None
        raise call.refusal(
            f"torch {torch.__version__} {found or f'cannot write it as ONNX: {reason}'}", _WAY_OUT
        ) from error
    passes.ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    _widen_bfloat16(graph)
    inputs = dict(zip(call.tensors, graph.inputs, strict=True))
    _rename(graph, {**inputs, **dict(zip(program.output_names, graph.outputs, strict=True))})
    _rename_dims(graph, program.dims)
    _drop_unused_outputs(graph)
    OrtTrainingPass()(model)
    if seed is not None:
        _set_seeds(graph, seed)
    graph.inputs[:] = [inputs[name] for name in (*call.inputs, *program.variable)]
    for name, tensor in {**call.constants, **call.trainable}.items():
        inputs[name].const_value = ir.tensor_adapters.TorchTensor(tensor.detach().cpu().contiguous(), name=name)
        if name in program.variable or inputs[name].uses():
            graph.register_initializer(inputs[name])
    ScatterPass()(model)  # gradients of what is indexed add where an index repeats
    _name_norms(graph, {**call.trainable, **call.constants})
    with quiet():
        _drop_repetitions(model)
    proto: ModelProto = ir.to_proto(model)
    try:
        check_model(proto)
    except InvalidModelError as error:
        raise call.refusal(
            f"torch {torch.__version__} writes it as ONNX that is not valid: {str(error).rstrip('.')}",
            f"where tensors of different types meet, give them one; or {_WAY_OUT}",
        ) from error
    return proto


def _tidy(model: ir.Model) -> None:
    """Leave out what a tracer writes and nobody needs.

    The exporter's own optimiser has rules besides, among them one whose time grows with the square of the graph.
    """
    passes.InlinePass()(model)
    for _ in range(2):
        optimizer.fold_constants(model, onnx_shape_inference=True)
        rewriter.RewritePass(_RULES)(model)
        passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    passes.OutputFixPass()(model)
    _drop_repetitions(model)
    passes.NameFixPass()(model)


def _drop_repetitions(model: ir.Model) -> None:
    for tidy in (
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedOpsetsPass(),
    ):
        tidy(model)


def _widen_bfloat16(graph: ir.Graph) -> None:
    """Compute in float, and round, what a graph computes in bfloat16 of a few numbers, such as distances of tokens.

    torch does the same, and ONNX Runtime has no such operator for bfloat16 on the CPU. A graph with others of that
    type, as a matrix product, stays as it is.
    """
    nodes = [node for node in graph if any(map(_is_bfloat16, (*node.inputs, *node.outputs)))]
    if not {node.op_type for node in nodes} <= {*_WIDENED, *_MOVING}:
        return
    for node in nodes:
        if node.op_type not in _WIDENED:
            continue
        casts = {each: ir.node("Cast", [each], {"to": ir.DataType.FLOAT}) for each in node.inputs if _is_bfloat16(each)}
        wide = ir.node(node.op_type, [casts[each].outputs[0] if each in casts else each for each in node.inputs])
        rounded = ir.node("Cast", wide.outputs, {"to": ir.DataType.BFLOAT16})
        new = [*casts.values(), wide, rounded]
        ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, rounded.outputs)


def _is_bfloat16(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.BFLOAT16


def _name_norms(graph: ir.Graph, parameters: Container[str]) -> None:
    """Give layer norms and their gradients the path of their module, which is in the name of their parameter."""
    names = {node.name for node in graph.all_nodes()}
    for node in graph:
        position = {"LayerNormalization": 1, spec.OP_TYPE: 2}.get(node.op_type)
        parameter = node.inputs[position] if position is not None and len(node.inputs) > position else None
        if parameter is None or parameter.name is None or parameter.name not in parameters:
            continue
        path = parameter.name.rpartition(".")[0]
        node.metadata_props["module"] = path
        wanted = f"{path}/{node.op_type}"
        node.name = next(
            name for count in itertools.count() if (name := f"{wanted}_{count}" if count else wanted) not in names
        )
        names.add(node.name)


def _set_seeds(graph: ir.Graph, seed: int) -> None:
    """Give each node that draws a seed of its own, far from the others' and one that a float holds.

    From seeds that are close to each other ONNX Runtime's generator makes numbers that are at first close, too.
    """
    nodes = [node for node in graph.all_nodes() if node.domain == "" and node.op_type in ONNX_OPS]
    for node, high_bits in zip(nodes, random.Random(seed).sample(range(1, 1 << 24), len(nodes)), strict=True):
        node.attributes["seed"] = ir.AttrFloat32("seed", float(high_bits << 7))


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
        if node.domain in (spec.DOMAIN, MICROSOFT_DOMAIN):
            for output in node.outputs[node.domain == spec.DOMAIN :]:  # LayerNormBackprop has its first one always
                if not output.uses() and not output.is_graph_output():
                    output.name = ""
