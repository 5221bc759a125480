# SPDX-License-Identifier: Apache-2.0
"""Following leaf tensors through a graph: what every value that depends on nothing else is, as a polynomial."""

from collections.abc import Mapping

import onnx_ir as ir

from lnbp_onnx.matching.constants import constant_tensor, known_tensor
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
        known: The values that depend on the leaves and on constants only, in topological order.
        blocked: The nodes that have such a value among their inputs and could not be followed.
    """

    def __init__(self, leaves: Mapping[ir.Value, Tensor], constants: Constants, graph: ir.Graph) -> None:
        self.known: dict[ir.Value, Known] = dict(leaves)
        self.blocked: dict[ir.Node, None] = {}
        queue = [node for leaf in leaves for node in leaf.consumers()]
        for node in queue:
            if node.graph is not graph or len(node.outputs) != 1 or node.outputs[0] in self.known:
                continue
            arguments = [
                None if each is None else (self.known.get(each) or constants.get(each)) for each in node.inputs
            ]
            result = evaluate(node, arguments, constants.infos)
            if result is None:
                self.blocked[node] = None
                continue
            self.blocked.pop(node, None)
            self.known[node.outputs[0]] = result
            queue.extend(node.outputs[0].consumers())

    def tensor(self, value: ir.Value) -> Tensor | None:
        """Return what is known of a value that is no list of lengths."""
        known = self.known.get(value)
        return known if isinstance(known, Tensor) else None
