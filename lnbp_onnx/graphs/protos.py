# SPDX-License-Identifier: Apache-2.0
"""Walking what a ModelProto holds: nodes, graphs, initializers."""

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto


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


def nested_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and its subgraphs."""
    yield graph
    for node in graph.node:
        for subgraph in graphs_in(node):
            yield from nested_graphs(subgraph)


def initializers(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield the initializers of a graph and its subgraphs."""
    for each in nested_graphs(graph):
        yield from each.initializer


def proto_name(node: NodeProto) -> str:
    """Return what messages call a node: its name, or that of its first output, or "" where it has neither."""
    return node.name or "".join(node.output[:1])
