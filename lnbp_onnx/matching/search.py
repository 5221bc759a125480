# SPDX-License-Identifier: Apache-2.0
"""Looking for layer-norm gradients, at each subtraction of a column from a matrix: x - mean.

Which tensors are the gradient, gamma and the statistics is guessed from what the difference is combined with; whether
a guess is right is decided by following them through the graph as polynomials and comparing with the operator's
definition, term by term.
"""

from collections.abc import Iterator

import onnx_ir as ir

from lnbp_onnx.matching.candidates import Candidates, Difference
from lnbp_onnx.matching.constants import Constants
from lnbp_onnx.matching.gradient import Gradient, NearMiss, nearest
from lnbp_onnx.matching.known_graph import KnownGraph
from lnbp_onnx.matching.match import match
from lnbp_onnx.matching.semantics import Infos
from lnbp_onnx.matching.value_numbering import ValueNumbering
from lnbp_onnx.matching.views import producer
from lnbp_onnx.matching.work import Work


class Searcher:
    """The search in one graph, from which nodes may be removed between one search and the next.

    Attributes:
        gave_up: Whether a search has said that it is the last one, as there is too much to look at.
    """

    def __init__(self, graph: ir.Graph, infos: Infos, numbering: ValueNumbering) -> None:
        self._nodes = graph
        self._graph = KnownGraph(infos, Constants(infos), numbering, Work(len(infos)))
        self._barren: set[object] = set()
        self.gave_up = False

    def anchors(self) -> list[int]:
        """Return the numbers of the subtractions of a column from a matrix."""
        nodes = (node for node in self._nodes if any(True for _ in self._differences(node)))
        return list(dict.fromkeys(self._graph.numbering.number(node.outputs[0]) for node in nodes))

    def candidates(self, anchor: ir.Node) -> Candidates:
        """Return what may be a gradient at an anchor."""
        return Candidates(list(self._differences(anchor)), self._graph, self._barren)

    def find(self, anchor: ir.Node) -> Gradient | NearMiss | None:
        """Return the gradient at an anchor, or why there is none, or nothing where nothing looks like one."""
        if self.gave_up:
            return None
        best: Gradient | None = None
        misses: list[NearMiss] = []
        candidates = self.candidates(anchor)
        for each in candidates:
            found = each if isinstance(each, NearMiss) else match(each)
            if isinstance(found, NearMiss):
                misses.append(found)
            elif found is not None:
                candidates.matches += 1
                if best is None or found.worth > best.worth:
                    best = found
                if found.is_best:
                    break
        if best is not None:
            return best
        if self._graph.work.is_exhausted:
            self.gave_up = True
            return NearMiss(0, "there are too many ways to look for gradients in this graph to go on")
        return nearest(misses)

    def _differences(self, node: ir.Node) -> Iterator[Difference]:
        """Yield a node's two operands where it subtracts a column from a matrix."""
        pairs: list[tuple[ir.Value | None, ir.Value | None]] = []
        if node.domain == "" and len(node.inputs) == 2:
            a, b = node.inputs
            if node.op_type == "Sub":
                pairs = [(a, b), (b, a)]
            elif node.op_type in ("Add", "Sum"):
                negations = [(value, producer(other, {"Neg"})) for value, other in ((a, b), (b, a))]
                pairs = [(value, negation.inputs[0]) for value, negation in negations if negation is not None]
        for matrix, column in pairs:
            if matrix is not None and column is not None and self._is_column_of(column, matrix):
                yield Difference(matrix, column)

    def _is_column_of(self, column: ir.Value, matrix: ir.Value) -> bool:
        shape, column_shape = self._graph.infos[matrix].shape, self._graph.infos[column].shape
        if not shape or column_shape is None or len(column_shape) > len(shape) or shape[-1] == 1:
            return False
        padded = (1,) * (len(shape) - len(column_shape)) + column_shape
        return padded[-1] == 1 and self._graph.constants.get(column) is None
