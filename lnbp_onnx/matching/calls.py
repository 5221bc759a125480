# SPDX-License-Identifier: Apache-2.0
"""What the calls of a model's functions tell of the tensors in them."""

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from lnbp_onnx.inference import declare, infer, info_of
from lnbp_onnx.node import Dim, TensorInfo
from lnbp_onnx.operators import Scope, scopes


def typed_scopes(model: ir.Model) -> Iterator[tuple[Scope, dict[ir.Value, TensorInfo]]]:
    """Yield the main graph and the functions with what is known of their values, callers first.

    A function's inputs have the element types and dimensions that all calls of it agree on. What they declare
    themselves is not changed by it.
    """
    functions = list(model.functions.values())
    graphs = {function.graph: function for function in functions}
    calls: dict[ir.OperatorIdentifier, list[list[TensorInfo]]] = {}
    for scope in _callers_first(model):
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


def _callers_first(model: ir.Model) -> list[Scope]:
    by_graph = {scope.graph: scope for scope in scopes(model)}
    ordered: list[Scope] = []
    visited: set[ir.Graph] = set()

    def visit(graph: ir.Graph) -> None:
        if graph in visited or graph not in by_graph:
            return
        visited.add(graph)
        for node in graph.all_nodes():
            called = model.functions.get(node.op_identifier())
            if called is not None:
                visit(called.graph)
        ordered.append(by_graph[graph])

    for graph in by_graph:
        visit(graph)
    return ordered[::-1]


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
