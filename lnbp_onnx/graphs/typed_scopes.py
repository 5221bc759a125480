# SPDX-License-Identifier: Apache-2.0
"""What the calls of a model's functions tell of the tensors in them."""

from collections.abc import Callable, Iterator, Sequence

import onnx_ir as ir

from lnbp_onnx.graphs.dependencies import dependencies_first
from lnbp_onnx.graphs.inference import Functions, declare, infer, info_of
from lnbp_onnx.graphs.operators import Scope, scopes
from lnbp_onnx.node import Dim, TensorInfo


def typed_scopes(
    model: ir.Model, is_wanted: Callable[[ir.Node], bool]
) -> Iterator[tuple[Scope, dict[ir.Value, TensorInfo]]]:
    """Yield the main graph and the functions with what is known of their values, callers first.

    A function's inputs have the element types and dimensions that all calls of it agree on. What they declare
    themselves is not changed by it. Inference takes a while for each function; those are left out that have no wanted
    node and call none that has, the main graph likewise.
    """
    functions = Functions(model.functions.values())
    graphs = {function.graph: function for function in model.functions.values()}
    calls: dict[ir.OperatorIdentifier, list[list[TensorInfo]]] = {}
    for scope in _wanted(model, is_wanted):
        function = graphs.get(scope.graph)
        declared = [(value, info_of(value)) for value in scope.graph.inputs]
        if function is not None:
            for value, info in zip(scope.graph.inputs, _common(calls.get(function.identifier(), [])), strict=False):
                if info_of(value) == TensorInfo():
                    declare(value, info)
        infos = infer(scope.graph, functions, scope.opset_imports)
        for value, info in declared:
            declare(value, info)
        for node in scope.graph.all_nodes():
            if node.op_identifier() in model.functions:
                operands = [TensorInfo() if value is None else infos[value] for value in node.inputs]
                calls.setdefault(node.op_identifier(), []).append(operands)
        yield scope, infos


def _wanted(model: ir.Model, is_wanted: Callable[[ir.Node], bool]) -> list[Scope]:
    """Return the scopes that have a wanted node, or lead to one, callers first."""
    by_graph = {scope.graph: scope for scope in scopes(model)}
    called: dict[ir.Graph, list[ir.Graph]] = {}
    wanted: set[ir.Graph] = set()
    for graph in by_graph:
        called[graph] = []
        for node in graph.all_nodes():
            function = model.functions.get(node.op_identifier())
            if function is not None and function.graph in by_graph:
                called[graph].append(function.graph)
            elif graph not in wanted and is_wanted(node):
                wanted.add(graph)
    ordered = list(dependencies_first(by_graph, called.__getitem__))
    for graph in ordered:
        if not wanted.isdisjoint(called[graph]):
            wanted.add(graph)
    return [by_graph[graph] for graph in reversed(ordered) if graph in wanted]


def _common(calls: Sequence[Sequence[TensorInfo]]) -> list[TensorInfo]:
    if not calls:
        return []
    common = list(calls[0])
    for operands in calls[1:]:
        common = [_agreed(*pair) for pair in zip(common, operands, strict=False)]
    return common


def _agreed(a: TensorInfo, b: TensorInfo) -> TensorInfo:
    element_type = a.element_type if a.element_type == b.element_type else None
    shape: tuple[Dim, ...] | None = None
    if a.shape is not None and b.shape is not None and len(a.shape) == len(b.shape):
        shape = tuple(x if x == y else None for x, y in zip(a.shape, b.shape, strict=True))
    return TensorInfo(element_type, shape)
