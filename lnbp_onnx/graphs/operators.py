# SPDX-License-Identifier: Apache-2.0
"""Finding the LayerNormBackprop nodes of a model, wherever they are."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.graphs.inference import Functions, infer, info_of, known, subgraphs_of
from lnbp_onnx.node import BackpropNode, TensorInfo, describe, parse

OPERATOR_ID = (spec.DOMAIN, spec.OP_TYPE, "")
"""The identifier of the operator, and of a model-local function that stands for it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The main graph or a function's: what has names and operator sets of its own.

    Attributes:
        graph: The graph.
        place: How a person is told of it: "graph" or "function domain::Name".
        opset_imports: The operator sets of its nodes; a change is a change of the model.
    """

    graph: ir.Graph
    place: str
    opset_imports: dict[str, int]


@dataclass(frozen=True, slots=True)
class Operator:
    """A LayerNormBackprop node, where it stands, and what is known of it."""

    node: ir.Node
    place: str
    parsed: BackpropNode


def is_operator(node: ir.Node) -> bool:
    """Return whether the node is a LayerNormBackprop."""
    return node.domain == spec.DOMAIN and node.op_type == spec.OP_TYPE


def scopes(model: ir.Model) -> Iterator[Scope]:
    """Yield the main graph and the functions; not the one that stands for the operator itself."""
    yield Scope(model.graph, "graph", model.opset_imports)
    for identifier, function in model.functions.items():
        if identifier != OPERATOR_ID:
            yield Scope(function.graph, f"function {function.domain}::{function.name}", function.opset_imports)


def find_operators(scope: Scope, functions: Functions) -> list[Operator]:
    """Find the operator's nodes in a scope, subgraphs included.

    Args:
        scope: Where to look.
        functions: The model's, which the scope may call.

    Raises:
        InvalidNodeError: Where one of them is refused by the specification.
    """
    found = nodes_of(scope, is_operator)
    if not found:
        return []
    operands = {value for node, _ in found for value in node.inputs if value is not None}
    # Of a large model inference takes as long as all else, and here it would have nothing to add.
    is_known = all(info_of(value).is_complete for value in operands)
    infos = {} if is_known else infer(scope.graph, functions, scope.opset_imports)
    return [Operator(node, place, parse_node(node, infos)) for node, place in found]


def parse_node(node: ir.Node, infos: Mapping[ir.Value, TensorInfo]) -> BackpropNode:
    """Read a node, with what is known of its inputs.

    Raises:
        InvalidNodeError: Where the specification refuses it.
    """
    return parse(
        describe(node.name or "", [output.name or "" for output in node.outputs]),
        {attribute.name: _attribute_proto(attribute) for attribute in node.attributes.values()},
        [None if value is None else known(value, infos) for value in node.inputs],
        [output.name != "" for output in node.outputs],
    )


def _attribute_proto(attribute: ir.Attr) -> onnx.AttributeProto:
    serialize = ir.serde.serialize_reference_attribute if attribute.is_ref() else ir.serde.serialize_attribute
    return serialize(attribute)


def graphs_of(graph: ir.Graph, place: str) -> Iterator[tuple[ir.Graph, str]]:
    """Yield a graph and its subgraphs, each with how a person is told of its place."""
    yield graph, place
    for node in graph:
        for name, subgraphs in subgraphs_of(node):
            for subgraph in subgraphs:
                yield from graphs_of(subgraph, f"{place} / {node.op_type} {node.name or ''!r} {name}")


def nodes_of(scope: Scope, is_wanted: Callable[[ir.Node], bool]) -> list[tuple[ir.Node, str]]:
    """Return the wanted nodes of a scope, subgraphs included, each with how a person is told of its place."""
    return [(node, place) for graph, place in graphs_of(scope.graph, scope.place) for node in graph if is_wanted(node)]


def name_of(node: ir.Node) -> str:
    """Return what messages call a node: its name, or that of an output, or its operator."""
    return node.name or next((output.name for output in node.outputs if output.name), None) or node.op_type
