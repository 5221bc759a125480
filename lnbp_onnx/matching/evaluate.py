# SPDX-License-Identifier: Apache-2.0
"""Following leaf tensors through a graph: what every value that depends on nothing else is, as a polynomial."""

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from lnbp_onnx.matching.constants import constant_tensor, known_tensor
from lnbp_onnx.matching.numbering import Numbering
from lnbp_onnx.matching.rules import Infos, Known, evaluate, has_rule
from lnbp_onnx.matching.tensors import Tensor

_DEEPEST_CONSTANT = 16


class Constants:
    """The values of a graph that do not depend on its inputs, read once."""

    def __init__(self, infos: Infos) -> None:
        self.infos = infos
        self._known: dict[ir.Value, Known | None] = {}

    def get(self, value: ir.Value, depth: int = _DEEPEST_CONSTANT) -> Known | None:
        """Return a constant's value where it is one that this package computes with, None otherwise."""
        if value not in self._known:
            self._known[value] = self._read(value, depth)
        return self._known[value]

    def _read(self, value: ir.Value, depth: int) -> Known | None:
        tensor = constant_tensor(value)
        if tensor is not None:
            return known_tensor(tensor)
        node = value.producer()
        if node is None or not node.inputs or not depth or not has_rule(node):
            return None
        if node.op_type == "Shape":
            return evaluate(node, [None], self.infos)
        arguments = [None if each is None else self.get(each, depth - 1) for each in node.inputs]
        if any(argument is None and each is not None for argument, each in zip(arguments, node.inputs, strict=True)):
            return None
        return evaluate(node, arguments, self.infos)


class Evaluation:
    """What follows from some leaves.

    Attributes:
        known: By number, the values that depend on the leaves and on constants only, in topological order.
        blocked: The nodes that have such a value among their inputs and could not be followed, by what they compute.
    """

    def __init__(self, leaves: Mapping[ir.Value, Tensor], constants: Constants, numbering: Numbering) -> None:
        self.known: dict[int, Known] = {}
        self.blocked: dict[int, ir.Node] = {}
        self._leaves: dict[ir.Value, Tensor] = {}
        self._constants = constants
        self._numbering = numbering
        self._follow(leaves)

    def extended(self, leaves: Mapping[ir.Value, Tensor]) -> "Evaluation":
        """Return what follows from these leaves beside the others."""
        if any(self._numbering.number(leaf) in self.known for leaf in leaves):
            return Evaluation({**self._leaves, **leaves}, self._constants, self._numbering)
        extended = Evaluation({}, self._constants, self._numbering)
        extended.known, extended.blocked, extended._leaves = dict(self.known), dict(self.blocked), dict(self._leaves)
        extended._follow(leaves)
        return extended

    def tensor(self, value: ir.Value) -> Tensor | None:
        """Return what is known of a value that is no list of lengths."""
        known = self.known.get(self._numbering.number(value))
        return known if isinstance(known, Tensor) else None

    def tensors(self) -> Iterator[tuple[int, Tensor]]:
        """Yield the known values that are no lists of lengths."""
        for number, known in self.known.items():
            if isinstance(known, Tensor):
                yield number, known

    def nodes(self, *, newest_first: bool = False) -> Iterator[ir.Node]:
        """Yield the nodes that have known values among their inputs: those that are blocked first.

        Args:
            newest_first: Whether what the last leaves led to comes first, rather than what is first in the graph, where
                what belongs together is close together.
        """
        blocked = reversed(self.blocked) if newest_first else sorted(self.blocked)
        for number in blocked:
            yield self.blocked[number]
        for number in self.known:
            node = self._numbering.node(number)
            if node is not None:
                yield node

    def _follow(self, leaves: Mapping[ir.Value, Tensor]) -> None:
        self._leaves.update(leaves)
        queue = [self._numbering.number(leaf) for leaf in leaves]
        self.known.update(zip(queue, leaves.values(), strict=True))
        for number in queue:
            for user, node in self._numbering.users(number):
                if user in self.known:
                    continue
                result = self._evaluate(node)
                if result is None:
                    self.blocked[user] = node
                else:
                    self.blocked.pop(user, None)
                    self.known[user] = result
                    queue.append(user)

    def _evaluate(self, node: ir.Node) -> Known | None:
        arguments: list[Known | None] = []
        for each in node.inputs:
            argument = None
            if each is not None:
                argument = self.known.get(self._numbering.number(each)) or self._constants.get(each)
                if argument is None:
                    return None
            arguments.append(argument)
        return evaluate(node, arguments, self._constants.infos)
