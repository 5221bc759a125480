# SPDX-License-Identifier: Apache-2.0
"""Putting nodes in the place of others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class Replacement:
    """Nodes that take a node's place.

    Attributes:
        node: The node to remove.
        nodes: What to put in its place, in topological order.
        outputs: The value for each output of `node`, None for one that is omitted.
    """

    node: ir.Node
    nodes: Sequence[ir.Node]
    outputs: Sequence[ir.Value | None]


def replace_nodes(replacements: Iterable[Replacement]) -> None:
    """Replace nodes of one or several graphs, whose values keep their names and declared types and shapes.

    ``onnx_ir.convenience.replace_nodes_and_values`` does it for one node in a time that grows with the graph's
    outputs; here they are looked at once.
    """
    by_graph: dict[ir.Graph, list[Replacement]] = {}
    for replacement in replacements:
        graph = replacement.node.graph
        assert isinstance(graph, ir.Graph)
        by_graph.setdefault(graph, []).append(replacement)
    for graph, group in by_graph.items():
        renewed: dict[ir.Value, ir.Value] = {}
        for replacement in group:
            graph.insert_after(replacement.node, replacement.nodes)
            for old, new in zip(replacement.node.outputs, replacement.outputs, strict=False):
                if new is not None:
                    _take_over(old, new)
                    renewed[old] = new
        for index, output in enumerate(graph.outputs):
            if output in renewed:
                graph.outputs[index] = renewed[output]
        graph.remove([replacement.node for replacement in group], safe=True)


def _take_over(old: ir.Value, new: ir.Value) -> None:
    new.name = old.name or new.name
    new.type = old.type or new.type
    new.shape = old.shape if old.shape is not None else new.shape
    for user, index in old.uses():
        user.replace_input_with(index, new)
