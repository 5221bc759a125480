# SPDX-License-Identifier: Apache-2.0
"""Refusing models that cannot be walked through to an end: what leads back to itself, or is not there."""

from collections.abc import Iterator

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs.dependencies import CircleError, dependencies_first
from lnbp_onnx.graphs.onnx_calls import refuse_runaway
from lnbp_onnx.graphs.operators import graphs_of, name_of


def refuse_unwalkable(model: ir.Model) -> None:
    """Refuse a model that cannot be walked through.

    Raises:
        InvalidModelError: Where a node reads what follows from it, or refers to a subgraph that is elsewhere, or
            nothing computes an output, or functions call each other in a circle, too deeply or too often.
    """
    functions = model.functions.values()
    _refuse_what_is_elsewhere(model.graph, "graph")
    for function in functions:
        _refuse_what_is_elsewhere(function.graph, f"function {function.domain}::{function.name}")
    for graph in (model.graph, *(function.graph for function in functions)):
        _refuse_circle(graph)
    if model.functions:
        calls = {
            identifier: [node.op_identifier() for node in function.all_nodes()]
            for identifier, function in model.functions.items()
        }
        refuse_runaway(calls, [node.op_identifier() for node in model.graph.all_nodes()])


def _refuse_what_is_elsewhere(graph: ir.Graph, place: str) -> None:
    for each, where in graphs_of(graph, place):
        for value in each.outputs:
            if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
                raise InvalidModelError(
                    f"No node in {where} computes the output {value.name!r} (add the node, or remove the output)."
                )
        for node in each:
            for attribute in node.attributes.values():
                if attribute.is_ref() and attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    raise InvalidModelError(
                        f"{node.op_type} node {name_of(node)!r} in {where}: attribute {attribute.name!r} refers to the "
                        f"attribute {attribute.ref_attr_name!r} of a function; a subgraph must be in the node itself "
                        "(write it there, and remove ref_attr_name)."
                    )


def _refuse_circle(graph: ir.Graph) -> None:
    try:
        for _ in dependencies_first(graph.all_nodes(), _sources):
            pass
    except CircleError as error:
        names = " -> ".join(repr(name_of(node)) for node in reversed(error.circle))
        raise InvalidModelError(
            f"The nodes of a graph read each other in a circle: {names} (break the circle)."
        ) from error


def _sources(node: ir.Node) -> Iterator[ir.Node]:
    return (source for value in node.inputs if value is not None and (source := value.producer()) is not None)
