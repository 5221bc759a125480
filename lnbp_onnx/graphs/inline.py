# SPDX-License-Identifier: Apache-2.0
"""Calls of functions written out, in a time that grows with what is written."""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs.inference import subgraphs_of
from lnbp_onnx.graphs.names import names_in, unique_names
from lnbp_onnx.graphs.onnx_calls import refuse_runaway, sizes_written_out
from lnbp_onnx.graphs.operators import name_of
from lnbp_onnx.graphs.replace import Replacement, replace_nodes

_MOST_WRITTEN = 20_000
"""How many nodes of calls are written out: with more a small file would take long."""


def inline_functions(model: ir.Model) -> None:
    """Write out the calls of a model's functions in its main graph, in place, and remove the functions.

    `onnx_ir`'s own pass takes a time that grows with the square of the nodes.

    Raises:
        InvalidModelError: Where a function imports other versions than the model, the calls have no end or too many
            nodes, or one has more inputs than its function.
    """
    functions = model.functions
    if not functions:
        return
    for function in functions.values():
        for domain, version in function.opset_imports.items():
            imported = model.opset_imports.setdefault(domain, version)
            if imported != version:
                raise InvalidModelError(
                    f"The function {function.domain}::{function.name} imports version {version} of domain "
                    f"{domain or 'ai.onnx'!r}, and the model {imported}; it cannot be inlined (convert one of them)."
                )
    calls = {key: [node.op_identifier() for node in function.all_nodes()] for key, function in functions.items()}
    called = [node.op_identifier() for node in model.graph.all_nodes()]
    refuse_runaway(calls, called)
    sizes = sizes_written_out(calls)
    count = sum(sizes.get(key, 0) for key in called)
    if count > _MOST_WRITTEN:
        raise InvalidModelError(
            f"The calls of the model's functions hold {count} nodes when they are written out; {_MOST_WRITTEN} are "
            "written out here (do it before, with onnx.inliner.inline_local_functions)."
        )
    unique_name = unique_names(names_in(model.graph))
    pending = list(model.graph.all_nodes())
    while pending:
        replacements = [
            written_out(node, functions[node.op_identifier()], unique_name)
            for node in pending
            if node.op_identifier() in functions
        ]
        replace_nodes(replacements)
        pending = list(nodes_in(node for replacement in replacements for node in replacement.nodes))
    functions.clear()


def nodes_in(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Yield nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for _, subgraphs in subgraphs_of(node):
            for subgraph in subgraphs:
                yield from subgraph.all_nodes()


def written_out(call: ir.Node, function: ir.Function, unique_name: Callable[[str], str]) -> Replacement:
    """Return a function's nodes with a call's inputs and attributes.

    Raises:
        InvalidModelError: Where the call has more inputs or outputs than the function.
    """
    described = f"{call.op_type} node {name_of(call)!r}: it calls {function.domain}::{function.name}"
    for group, given, taken in (
        ("inputs", call.inputs, function.inputs),
        ("outputs", call.outputs, function.outputs),
    ):
        if len(given) > len(taken):
            raise InvalidModelError(
                f"{described} with {len(given)} {group}; the function has {len(taken)} (remove the others)."
            )
    body = function.graph.clone()
    for node in body.all_nodes():
        resolve_references(node, {**function.attributes, **call.attributes})
        node.metadata_props.update({**call.metadata_props, **node.metadata_props})
    operands = dict(itertools.zip_longest(body.inputs, call.inputs))
    for formal, actual in operands.items():
        for user, index in tuple(formal.uses()):
            user.replace_input_with(index, actual)
    _rename_nodes(body, unique_name)
    nodes, results = list(body), list(body.outputs)
    body.outputs.clear()
    body.remove(nodes)
    outputs: list[ir.Value | None] = []
    for output, wanted in zip(results, call.outputs, strict=False):
        if not wanted.name:
            outputs.append(None)
            continue
        # A value that comes from outside, or is an output already, keeps its name.
        source = operands.get(output, output)
        if source is not None and (output in operands or source in outputs):
            name = unique_name(f"{name_of(call)}/Identity")
            nodes.append(ir.Node("", "Identity", [source], name=name))
            source = nodes[-1].outputs[0]
            source.name = name
        outputs.append(source)
    return Replacement(call, nodes, outputs)


def rename(graph: ir.Graph, unique_name: Callable[[str], str]) -> None:
    """Give all values and nodes of a graph, which is a copy of another one, names of their own."""
    for value in graph.inputs:
        value.name = unique_name(value.name or "value")
    for value in list(graph.initializers.values()):
        value.const_value = _renamable(value.const_value)
        value.name = unique_name(value.name or "value")
    _rename_nodes(graph, unique_name)


def _renamable(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """Return a tensor of the same data, which can be renamed without it."""
    if tensor is None or isinstance(tensor, ir.ExternalTensor):
        return copy.copy(tensor)
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)


def _rename_nodes(graph: ir.Graph, unique_name: Callable[[str], str]) -> None:
    for node in graph:
        node.name = unique_name(name_of(node))
        for output in node.outputs:
            if output.name:
                output.name = unique_name(output.name)
        for _, subgraphs in subgraphs_of(node):
            for subgraph in subgraphs:
                rename(subgraph, unique_name)


def resolve_references(node: ir.Node, attributes: Mapping[str, ir.Attr | None]) -> None:
    """Replace a node's references to its function's attributes by their values, or by nothing where they have none."""
    for name, attribute in list(node.attributes.items()):
        if not attribute.is_ref():
            continue
        value = attributes.get(attribute.ref_attr_name or "")
        if value is None or value.value is None:
            del node.attributes[name]
        else:
            node.attributes[name] = ir.Attr(name, value.type, value.value)
