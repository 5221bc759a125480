# SPDX-License-Identifier: Apache-2.0
"""The values of a graph that do not depend on its inputs, and those that depend on their shapes only."""

from collections.abc import Mapping

import onnx_ir as ir

from lnbp_onnx.graphs.inference import constant_tensor
from lnbp_onnx.matching.evaluate import can_evaluate, evaluate
from lnbp_onnx.matching.literals import read_tensor
from lnbp_onnx.matching.semantics import Infos, Known
from lnbp_onnx.matching.tensors import Axis

_DEEPEST_CONSTANT = 16


class Constants:
    """The constants of a graph, each read once.

    Args:
        infos: What is known of the graph's values.
        names: The axes whose lengths symbolic dimensions are.
        others: The constants without `names`, which are read from there.
    """

    def __init__(
        self, infos: Infos, names: Mapping[str, Axis] | None = None, others: "Constants | None" = None
    ) -> None:
        self._infos = infos
        self._names = names or {}
        self._others = others
        self._known: dict[ir.Value, Known | None] = {}

    def with_names(self, names: Mapping[str, Axis]) -> "Constants":
        """Return the constants where these symbolic dimensions are the lengths of axes."""
        return Constants(self._infos, names, self) if names else self

    def get(self, value: ir.Value, depth: int = _DEEPEST_CONSTANT) -> Known | None:
        """Return a constant's value where it is one that this package computes with, None otherwise."""
        if value not in self._known:
            self._known[value] = self._read(value, depth)
        return self._known[value]

    def _read(self, value: ir.Value, depth: int) -> Known | None:
        if self._others is not None and (known := self._others.get(value, depth)) is not None:
            return known
        tensor = constant_tensor(value)
        if tensor is not None:
            return read_tensor(tensor)
        node = value.producer()
        if node is None or not node.inputs or not depth or not can_evaluate(node):
            return None
        if node.op_type == "Shape":
            return evaluate(node, [None], self._infos, self._names)
        arguments = [None if each is None else self.get(each, depth - 1) for each in node.inputs]
        if any(argument is None and each is not None for argument, each in zip(arguments, node.inputs, strict=True)):
            return None
        return evaluate(node, arguments, self._infos)
