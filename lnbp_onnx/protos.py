# SPDX-License-Identifier: Apache-2.0
"""Walking the nodes of a ModelProto."""

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto


def model_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield the nodes of a model, those of subgraphs and functions included."""
    yield from graph_nodes(model.graph.node)
    for function in model.functions:
        yield from graph_nodes(function.node)


def graph_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for graph in graphs_in(node):
            yield from graph_nodes(graph.node)


def graphs_in(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the subgraphs of a node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
