# SPDX-License-Identifier: Apache-2.0
"""Putting nodes in the place of others."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError
from lnbp_onnx.graphs.operators import name_of

_MOST_NODES = 100_000


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


class NodeCount:
    """Counts the nodes that a rewriting adds to a model: where each node becomes many, a small file has no end."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, replacement: Replacement) -> None:
        """Count the nodes of a replacement.

        Raises:
            InvalidModelError: Where they are too many, with those before.
        """
        self._count += len(replacement.nodes)
        if self._count > _MOST_NODES:
            node = replacement.node
            raise InvalidModelError(
                f"{node.op_type} node {name_of(node)!r}: with the operators before it, it would be written as "
                f"{self._count} nodes; at most {_MOST_NODES} are written (split the model, and rewrite its parts)."
            )


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
                    take_over(old, new)
                    renewed[old] = new
        for index, output in enumerate(graph.outputs):
            if output in renewed:
                graph.outputs[index] = renewed[output]
        graph.remove([replacement.node for replacement in group], safe=True)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Give a value's name, and its type and shape where it declares them, to another one, and its users."""
    new.name = old.name or new.name
    new.type = old.type or new.type
    new.shape = old.shape if old.shape is not None else new.shape
    for user, index in tuple(old.uses()):
        user.replace_input_with(index, new)


class Users:
    """Answers whether anything uses a value, in the same time however many do.

    onnx_ir copies the list of a value's users for each that asks, which is long where all gradients read it. Here
    it is asked for again only once the user that came last in it is none any more.
    """

    def __init__(self) -> None:
        self._last: dict[ir.Value, ir.Node] = {}

    def has(self, value: ir.Value) -> bool:
        """Return whether a node uses the value."""
        last = self._last.get(value)
        if last is None or all(each is not value for each in last.inputs):
            consumers = value.consumers()
            if not consumers:
                return False
            self._last[value] = consumers[-1]
        return True


def detach_unused(values: Iterable[ir.Value], users: Users) -> list[ir.Node]:
    """Cut off the nodes of values that nothing uses, and what only they used; remove initializers that only these used.

    Returns:
        The nodes, which use nothing any more and are still in their graphs.
    """
    pending = list(values)
    detached: dict[ir.Node, None] = {}
    while pending:
        value = pending.pop()
        # An input stays in any case.
        if value.is_graph_input() or value.is_graph_output() or users.has(value):
            continue
        node = value.producer()
        if node is None:
            if value.is_initializer() and value.graph is not None:
                value.graph.initializers.pop(value.name or "", None)
            continue
        if not isinstance(node.graph, ir.Graph) or any(
            users.has(each) or each.is_graph_output() for each in node.outputs
        ):
            continue
        pending += [source for source in node.inputs if source is not None]
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        detached[node] = None
    return list(detached)


def remove_nodes(nodes: Iterable[ir.Node]) -> None:
    """Remove nodes that nothing uses, all of a graph at once, as each removal looks at all of the graph's outputs."""
    removed: dict[ir.Graph, list[ir.Node]] = {}
    for node in nodes:
        if isinstance(node.graph, ir.Graph):
            removed.setdefault(node.graph, []).append(node)
    for graph, group in removed.items():
        graph.remove(group)
