# SPDX-License-Identifier: Apache-2.0
"""Following leaf tensors through a graph: what every value that depends on nothing else is, as a polynomial."""

import math
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from lnbp_onnx.matching.evaluate import evaluate
from lnbp_onnx.matching.known_graph import KnownGraph
from lnbp_onnx.matching.semantics import Known
from lnbp_onnx.matching.tensors import Tensor

_WORK_FOR_A_NODE = 8


class Evaluation:
    """What follows from some leaves.

    Attributes:
        graph: What is known of the graph.
        known: By number, the values that depend on the leaves and on constants only, in topological order.
        blocked: The nodes that have such a value among their inputs and could not be followed, by what they compute.
    """

    def __init__(self, leaves: Mapping[ir.Value, Tensor], graph: KnownGraph) -> None:
        self.graph = graph
        self.known: dict[int, Known] = {}
        self.blocked: dict[int, ir.Node] = {}
        self._leaves: dict[ir.Value, Tensor] = {}
        self._follow(leaves)

    def extended(self, leaves: Mapping[ir.Value, Tensor]) -> "Evaluation":
        """Return what follows from these leaves beside the others."""
        if any(self.graph.numbering.number(leaf) in self.known for leaf in leaves):
            return Evaluation({**self._leaves, **leaves}, self.graph)
        self.graph.work.spend(len(self.known))
        extended = Evaluation({}, self.graph)
        extended.known, extended.blocked, extended._leaves = dict(self.known), dict(self.blocked), dict(self._leaves)
        extended._follow(leaves)
        return extended

    def tensor(self, value: ir.Value) -> Tensor | None:
        """Return what is known of a value that is no list of lengths."""
        known = self.known.get(self.graph.numbering.number(value))
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
        nodes = (self.graph.numbering.node(number) for number in self.known)
        for node in (*(self.blocked[number] for number in blocked), *nodes):
            if node is not None:
                if not self.graph.work.spend(_WORK_FOR_A_NODE):
                    return
                yield node

    def _follow(self, leaves: Mapping[ir.Value, Tensor]) -> None:
        self._leaves.update(leaves)
        queue = [self.graph.numbering.number(leaf) for leaf in leaves]
        self.known.update(zip(queue, leaves.values(), strict=True))
        for number in queue:
            for user, node in self.graph.numbering.users(number):
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
                argument = self.known.get(self.graph.numbering.number(each)) or self.graph.constants.get(each)
                if argument is None:
                    return None
            arguments.append(argument)
        terms = math.prod(len(each.element) or 1 for each in arguments if isinstance(each, Tensor))
        return evaluate(node, arguments, self.graph.infos) if self.graph.work.spend(terms) else None
