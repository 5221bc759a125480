# SPDX-License-Identifier: Apache-2.0
"""What is drawn of a model: a few nodes, and the nodes and values that they are joined to."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import onnx_ir as ir

from lnbp_onnx.graphs.inference import info_of
from lnbp_onnx.graphs.operators import graphs_of, is_operator, scopes
from lnbp_onnx.node import format_shape
from lnbp_onnx.spec import type_name

_MOST_USERS = 8
_MOST_ELEMENTS = 4


class Kind(StrEnum):
    """What a box stands for."""

    OPERATOR = "operator"
    NODE = "node"
    NEIGHBOUR = "neighbour"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Box:
    """A node, or a value that no node of the graph computes or that leaves it.

    Attributes:
        kind: What it stands for.
        title: Its operator, or what the value is.
        name: Its name.
    """

    kind: Kind
    title: str
    name: str


@dataclass(frozen=True, slots=True)
class Edge:
    """A value on its way from one box to another.

    Attributes:
        tail: The index of the box that it comes from.
        head: The index of the box that it goes to.
        name: The value's name.
        type: Its type and shape, as far as they are known.
    """

    tail: int
    head: int
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """Boxes and what joins them."""

    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]


class Places:
    """The values of a model by the place where they are, and by name."""

    def __init__(self, model: ir.Model) -> None:
        self._values: dict[str, dict[str, ir.Value]] = {}
        self._names: dict[str, set[str]] = {}
        for scope in scopes(model):
            names: set[str] = set()
            for graph, place in graphs_of(scope.graph, scope.place):
                values = [
                    *graph.inputs,
                    *graph.initializers.values(),
                    *(each for node in graph for each in node.outputs),
                ]
                self._values[place] = {value.name: value for value in values if value.name}
                self._names[place] = names
                names |= set(self._values[place])

    def value(self, place: str, name: str) -> ir.Value | None:
        """Return a value, or None where the model has none of this name there."""
        return self._values.get(place, {}).get(name)

    def names(self, place: str) -> set[str]:
        """Return the names of all values of the graph or the function that a place belongs to."""
        return self._names.get(place, set())


def region(results: Iterable[ir.Value], shared: set[str]) -> list[ir.Node]:
    """Return the nodes that compute values, up to the values whose names are shared with another model."""
    found: dict[ir.Node, None] = {}
    pending = [result.producer() for result in results]
    while pending:
        node = pending.pop()
        if node is not None and node not in found:
            found[node] = None
            pending += [each.producer() for each in node.inputs if each is not None and each.name not in shared]
    return [*reversed(found)]


def drawing(nodes: Sequence[ir.Node], results: Container[str | None]) -> Drawing:
    """Return a drawing of nodes, with what their operands come from and what uses their results.

    Args:
        nodes: The nodes.
        results: The names of the results. What else these nodes compute others may use, too: a constant, for one.
    """
    return _Surroundings(nodes, results).drawn()


class _Surroundings:
    def __init__(self, nodes: Sequence[ir.Node], results: Container[str | None]) -> None:
        self._nodes = nodes
        self._results = results
        self._boxes: dict[object, Box] = {}
        self._edges: dict[Edge, None] = {}

    def drawn(self) -> Drawing:
        for node in self._nodes:
            self._boxes[node] = Box(Kind.OPERATOR if is_operator(node) else Kind.NODE, _operator(node), _label(node))
        for node in self._nodes:
            for value in node.inputs:
                if value is not None and value.name:
                    self._join(self._source(value), node, value)
            for value in node.outputs:
                if value.name in self._results:
                    self._add_users(node, value)
        return Drawing(tuple(self._boxes.values()), tuple(self._edges))

    def _add_users(self, node: ir.Node, value: ir.Value) -> None:
        users = [user for user in dict.fromkeys(user for user, _ in value.uses()) if user not in self._nodes]
        for user in users[:_MOST_USERS]:
            self._boxes.setdefault(user, Box(Kind.NEIGHBOUR, _operator(user), _label(user)))
            self._join(node, user, value)
        if len(users) > _MOST_USERS:
            self._boxes["users", value] = Box(Kind.VALUE, "users", f"{len(users) - _MOST_USERS} more nodes")
            self._join(node, ("users", value), value)
        if value.is_graph_output():
            self._boxes["output", value] = Box(Kind.VALUE, "output", value.name or "")
            self._join(node, ("output", value), value)

    def _source(self, value: ir.Value) -> object:
        """Return the key of the box that a value comes from, which there is from now on."""
        producer = value.producer()
        if producer is not None:
            self._boxes.setdefault(producer, Box(Kind.NEIGHBOUR, _operator(producer), _label(producer)))
            return producer
        kind = "initializer" if value.is_initializer() and not value.is_graph_input() else "input"
        self._boxes.setdefault(value, Box(Kind.VALUE, kind, value.name or ""))
        return value

    def _join(self, tail: object, head: object, value: ir.Value) -> None:
        keys = list(self._boxes)
        self._edges[Edge(keys.index(tail), keys.index(head), value.name or "", _type(value))] = None


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _label(node: ir.Node) -> str:
    """Return the name of a node; of a small constant, what it holds."""
    tensor = node.attributes["value"].value if node.op_type == "Constant" and "value" in node.attributes else None
    if isinstance(tensor, ir.TensorProtocol) and not isinstance(tensor, ir.ExternalTensor):
        array = tensor.numpy()
        if array.size <= _MOST_ELEMENTS and array.dtype.kind in "bif":
            return str(array.tolist())
    return node.name or next((output.name for output in node.outputs if output.name), "") or ""


def _type(value: ir.Value) -> str:
    info = info_of(value)
    element_type = "" if info.element_type is None else type_name(info.element_type)
    return " ".join(filter(None, [element_type, "" if info.shape is None else format_shape(info.shape)]))
