# SPDX-License-Identifier: Apache-2.0
"""Proposing what may be a gradient: a depth-first search for operands, from the subtraction of a mean."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.matching.addends import Addends, addends_of
from lnbp_onnx.matching.algebra import Symbol
from lnbp_onnx.matching.choices import Choices
from lnbp_onnx.matching.definition import mean_of
from lnbp_onnx.matching.evaluation import Evaluation
from lnbp_onnx.matching.gradient import NearMiss
from lnbp_onnx.matching.known_graph import KnownGraph
from lnbp_onnx.matching.leaves import Leaves, leaf
from lnbp_onnx.matching.operands import Operands
from lnbp_onnx.matching.rows_and_columns import RowsAndColumns, split_axis
from lnbp_onnx.matching.tensors import Axis, SplitError, Tensor
from lnbp_onnx.matching.views import producer, roots
from lnbp_onnx.node import Dim

_MOST_SPLITS = 8
_MOST_EVALUATIONS = 48
_EVALUATIONS_EACH = 4


@dataclass(frozen=True, slots=True)
class Difference:
    """A column that is subtracted from a matrix, as a mean is."""

    matrix: ir.Value
    column: ir.Value


@dataclass(frozen=True, slots=True)
class Candidate:
    """Operands that may be those of a gradient, none missing.

    Attributes:
        layout: How rows and columns are indexed.
        operands: The operands.
        evaluation: What follows from them in the graph.
        addends: What is added to what follows from them, None where nothing is.
    """

    layout: RowsAndColumns
    operands: Operands
    evaluation: Evaluation
    addends: Addends | None = None


class Candidates:
    """The candidates at one anchor, and the near misses where one cannot be made.

    Whoever iterates counts up `matches` with each candidate that is a gradient: where there are any, other ways to
    index are not looked at.

    Args:
        differences: The anchor, as each operand that it may subtract from the other.
        graph: What is known of the graph.
        barren: Operands with which nothing was a gradient before; what is found to be barren is added. As the graph
            only loses nodes, what matches nothing never will.
    """

    def __init__(self, differences: list[Difference], graph: KnownGraph, barren: set[object]) -> None:
        self.matches = 0
        self._differences = differences
        self._graph = graph
        self._barren = barren
        self._evaluations_left = _MOST_EVALUATIONS

    def __iter__(self) -> Iterator[Candidate | NearMiss]:
        for difference in self._differences:
            for x in roots(difference.matrix):
                info = self._graph.infos[x]
                if info.shape and info.element_type in spec.ELEMENT_TYPES:
                    yield from self._of_x(x, info.shape, difference)
                if self.matches:
                    return

    def _of_x(self, x: ir.Value, shape: tuple[Dim, ...], difference: Difference) -> Iterator[Candidate | NearMiss]:
        """Index x by one symbol for each axis, by more where a view cuts through one."""
        labels: tuple[Axis, ...] = tuple(
            () if dim == 1 else (Symbol(str(index), dim if isinstance(dim, int) else None),)
            for index, dim in enumerate(shape)
        )
        # Equal names are equal lengths; where x has a name twice, either axis may be meant.
        names = {
            dim: axis for dim, axis in zip(shape, labels, strict=True) if isinstance(dim, str) and shape.count(dim) == 1
        }
        graph = replace(self._graph, constants=self._graph.constants.with_names(names))
        for _ in range(_MOST_SPLITS):
            try:
                evaluation = Evaluation({x: Tensor(leaf("x", labels), labels)}, graph)
                # Where many gradients share x, each is as worth looking for as one alone.
                self._evaluations_left += _EVALUATIONS_EACH * len(evaluation.blocked)
                for layout in self._layouts(evaluation, shape, labels, difference):
                    yield from self._with_mean(Candidate(layout, Operands(x), evaluation), difference.column)
                    if self.matches:
                        return
            except SplitError as split:
                labels = tuple(split_axis(axis, split) for axis in labels)
                continue
            break

    def _layouts(
        self, evaluation: Evaluation, shape: tuple[Dim, ...], labels: tuple[Axis, ...], difference: Difference
    ) -> Iterator[RowsAndColumns]:
        """Yield the axes that the difference allows; where axes have length 1 there are several."""
        found, column_shape = evaluation.tensor(difference.matrix), self._graph.infos[difference.column].shape
        if found is None or column_shape is None:
            return
        rank = len(found.axes)
        padded = (1,) * (rank - len(column_shape)) + tuple(column_shape)
        lead_rank = max((index + 1 for index, dim in enumerate(padded) if dim != 1), default=0)
        lead = tuple(symbol for axis in found.axes[:lead_rank] for symbol in axis)
        axes = [axis for axis in range(len(labels)) if tuple(s for each in labels[:axis] for s in each) == lead]
        if any(symbol.length == 0 for axis in labels for symbol in axis):
            return
        hint = _axis_hint(difference, len(labels))
        # Fewest normalised axes first, unless the graph names one.
        for axis in sorted(axes, key=lambda axis: (axis != hint, -axis)):
            layout = RowsAndColumns(shape, labels, axis)
            if layout.norm:
                yield layout

    def _with_mean(self, start: Candidate, column: ir.Value) -> Iterator[Candidate | NearMiss]:
        """Try the mean as computed and as given."""
        layout, x = start.layout, start.operands.x
        leaves = Leaves(start.evaluation.graph, layout)
        found, wanted = start.evaluation.tensor(column), mean_of(leaf("x", layout.labels), layout)
        if found is not None and found.element != wanted:
            if found.element.keys() == wanted.keys():
                yield NearMiss(0, f"{column.name!r} is the sum of {x.name!r} over each row, but not the mean")
            return
        if found is not None:
            yield from self._below(start, leaves)
        given = Choices(start.evaluation.graph, layout).given_mean(column)
        if given is not None:
            yield from self._below(_extended(start, Operands(x, mean=given), leaves), leaves)

    def _below(self, start: Candidate, leaves: Leaves) -> Iterator[Candidate | NearMiss]:
        """Yield what has more operands, depth first, and then, where none is missing, the candidate itself."""
        if self._evaluations_left <= 0 or self._graph.work.is_exhausted:
            return
        self._evaluations_left -= 1
        matches, operands = self.matches, start.operands
        choices = Choices(start.evaluation.graph, start.layout)
        for more in choices.extensions(start.evaluation, operands):
            if self._key(start.layout, more) not in self._barren:
                yield from self._below(_extended(start, more, leaves), leaves)
        if operands.is_complete:
            self._graph.work.spend(len(start.evaluation.known))
            yield replace(start, addends=addends_of(start.evaluation, operands, start.layout))
        elif operands.dy is None and (operands.mean is None or operands.statistic is not None):
            for doubt in choices.doubts(start.evaluation, operands.x):
                yield NearMiss(-1, doubt)
        if matches == self.matches and self._evaluations_left > 0 and not self._graph.work.is_exhausted:
            self._barren.add(self._key(start.layout, operands))

    def _key(self, layout: RowsAndColumns, operands: Operands) -> object:
        return (operands, layout.axis, layout.labels)


def _extended(start: Candidate, operands: Operands, leaves: Leaves) -> Candidate:
    known = leaves.tensors(start.operands)
    added = {value: tensor for value, tensor in leaves.tensors(operands).items() if value not in known}
    return Candidate(start.layout, operands, start.evaluation.extended(added))


def _axis_hint(difference: Difference, rank: int) -> int | None:
    """Return the first normalised axis as the graph names it."""
    flatten = producer(difference.matrix, {"Flatten"})
    forward = producer(difference.column, {"LayerNormalization"})
    for node, default in ((flatten, 1), (forward, -1)):
        if node is not None:
            attribute = node.attributes.get("axis")
            axis = default if attribute is None or attribute.is_ref() else attribute.as_int()
            return axis % rank if axis != rank else axis
    return None
