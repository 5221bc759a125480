# SPDX-License-Identifier: Apache-2.0
"""Numbers for the values of a graph, the same for those that are computed in the same way from the same values.

A graph may compute something once for each of its users. Matching works on numbers, so that it looks at it once.
"""

from collections.abc import Callable, Container, Hashable, Sequence

import onnx_ir as ir

from lnbp_onnx.graphs.inference import constant_tensor, subgraphs_of

_LARGEST_TENSOR = 1 << 16
_RANDOM = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"})


class ValueNumbering:
    """The numbers of one graph's values.

    They are kept by name, so that a value that takes another one's place and name has its number. Nodes may be added
    to the graph, which are not looked at.

    Args:
        graph: The graph.
        removed: Those of its nodes that are as good as removed.
    """

    def __init__(self, graph: ir.Graph, removed: Container[ir.Node] = ()) -> None:
        self._graph = graph
        self._removed = removed
        self._by_key: dict[Hashable, int] = {}
        self._by_name: dict[str | ir.Value, int] = {}
        self._values: dict[int, list[ir.Value]] = {}
        self._users: dict[int, dict[int, None]] = {}
        for node in graph:
            key = _node_key(node, self.number)
            for output in node.outputs:
                tensor = constant_tensor(output)
                number = self._assign(output, key if tensor is None else _tensor_key(tensor))
                self._values.setdefault(number, []).append(output)
                if len(node.outputs) == 1:
                    for value in node.inputs:
                        if value is not None:
                            self._users.setdefault(self.number(value), {})[number] = None

    def number(self, value: ir.Value) -> int:
        """Return a value's number; one that is not computed in the graph has its own, a constant its content's."""
        number = self._by_name.get(value.name or value)
        if number is None:
            tensor = constant_tensor(value)
            number = self._assign(value, None if tensor is None else _tensor_key(tensor))
        return number

    def node(self, number: int) -> ir.Node | None:
        """Return a node of the graph that computes values of this number."""
        values = self._values.get(number, [])
        while values:
            node = values[-1].producer()
            if node is not None and self.has(node):
                return node
            values.pop()
        return None

    def has(self, node: ir.Node) -> bool:
        """Return whether a node is in the graph, and to stay."""
        return node.graph is self._graph and node not in self._removed

    def values(self, number: int) -> tuple[ir.Value, ...]:
        """Return the values of this number that the graph's nodes compute, in topological order."""
        found = ((value, value.producer()) for value in self._values.get(number, ()))
        return tuple(value for value, node in found if node is not None and self.has(node))

    def users(self, number: int) -> list[tuple[int, ir.Node]]:
        """Return the numbers computed from this one in a single step, each with a node that does it."""
        users = self._users.get(number, {})
        found = [(user, node) for user in users if (node := self.node(user)) is not None]
        if len(found) < len(users):
            self._users[number] = {user: None for user, _ in found}
        return found

    def follow(self, nodes: Sequence[ir.Node], places: dict[ir.Value, int]) -> None:
        """Find out where in the graph values are that other nodes compute.

        Args:
            nodes: The nodes, which are not the graph's.
            places: The numbers of the graph's values that they begin with; those of what they compute are added
                where the graph computes it, too.
        """
        for node in nodes:
            tensor = constant_tensor(node.outputs[0])
            key = _tensor_key(tensor) if tensor is not None else _node_key(node, places.get)
            number = None if key is None else self._by_key.get(key)
            if number is not None:
                places[node.outputs[0]] = number

    def _assign(self, value: ir.Value, key: Hashable | None) -> int:
        name = value.name or value
        number = self._by_key.setdefault(("leaf", name) if key is None else key, len(self._by_key))
        self._by_name[name] = number
        return number


def _tensor_key(tensor: ir.TensorProtocol) -> Hashable | None:
    if isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING or tensor.nbytes > _LARGEST_TENSOR:
        return None
    return ("constant", tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes())


def _node_key(node: ir.Node, number: Callable[[ir.Value], int | None]) -> Hashable | None:
    """Return what tells a node's output from others; None where it is one of a kind, or an input has no number."""
    if node.domain != "" or node.op_type in _RANDOM or len(node.outputs) != 1 or not node.inputs:
        return None
    if any(True for _ in subgraphs_of(node)):
        return None
    inputs = tuple(None if value is None else number(value) for value in node.inputs)
    if any(each is None and value is not None for each, value in zip(inputs, node.inputs, strict=True)):
        return None
    attributes = ((name, _attribute_key(attribute)) for name, attribute in node.attributes.items())
    # Reading a model and writing it may add an attribute that has its default value.
    kept = frozenset(item for item in attributes if item != ("allowzero", 0))
    return (node.op_type, inputs, kept)


def _attribute_key(attribute: ir.Attr) -> Hashable:
    if attribute.is_ref():
        return ("reference", attribute.ref_attr_name)
    if attribute.type == ir.AttributeType.TENSOR:
        return _tensor_key(attribute.value) or attribute
    return tuple(attribute.value) if isinstance(attribute.value, list | tuple) else attribute.value
