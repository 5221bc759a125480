# SPDX-License-Identifier: Apache-2.0
"""The operands of a candidate as leaves of an evaluation, in one graph with rows and columns indexed in one way."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import onnx_ir as ir

from lnbp_onnx.matching.algebra import Leaf, Monomial, Polynomial, atom, power
from lnbp_onnx.matching.known_graph import KnownGraph
from lnbp_onnx.matching.operands import Operands
from lnbp_onnx.matching.rows_and_columns import RowsAndColumns
from lnbp_onnx.matching.tensors import Axis, Tensor


def leaf(name: str, axes: Sequence[Axis], *, is_positive: bool = False) -> Polynomial:
    """Return an element of a leaf tensor."""
    return atom(Leaf(name, frozenset(symbol for axis in axes for symbol in axis), is_positive))


def leaf_names(monomial: Monomial) -> set[str]:
    """Return the names of the leaf tensors whose elements are factors of a monomial, those in its sums left out."""
    return {each.name for each, _ in monomial if isinstance(each, Leaf)}


@dataclass(frozen=True, slots=True)
class Leaves:
    """What operands are as tensors of the algebra.

    Attributes:
        graph: What is known of the graph.
        layout: How rows and columns are indexed.
    """

    graph: KnownGraph
    layout: RowsAndColumns

    def tensors(self, operands: Operands) -> dict[ir.Value, Tensor]:
        """Return the chosen operands as leaves."""
        labels = self.layout.labels
        leaves = {operands.x: Tensor(leaf("x", labels), labels)}
        if operands.dy is not None:
            order = operands.dy_axes or range(len(labels))
            seeds: tuple[Axis, ...] = ((),) if operands.dy_has_seeds else ()
            leaves[operands.dy] = Tensor(self.dy(operands), (*(labels[index] for index in order), *seeds))
        gamma = self.gamma(operands)
        if operands.gamma is not None and gamma is not None:
            leaves[operands.gamma] = gamma
        if operands.mean is not None:
            leaves[operands.mean] = self._column("mean", operands.mean)
        if operands.statistic is not None:
            leaves[operands.statistic.value] = self._column("statistic", operands.statistic.value)
        return leaves

    def dy(self, operands: Operands) -> Polynomial:
        """Return an element of dy as it enters."""
        number = None if operands.dy is None else self.graph.constants.get(operands.dy)
        if operands.dy_is_number and isinstance(number, Tensor):
            return number.element
        return leaf("dy", self.layout.labels)

    def gamma(self, operands: Operands) -> Tensor | None:
        """Return gamma as it enters."""
        if operands.gamma is None:
            return None
        axes = self.layout.row_axes(self.graph.infos[operands.gamma].shape or ())
        assert axes is not None
        number = self.graph.constants.get(operands.gamma)
        if operands.gamma_is_number and isinstance(number, Tensor):
            return Tensor(number.element, axes)
        return Tensor(leaf("gamma", axes), axes)

    def mean(self, operands: Operands) -> Polynomial | None:
        """Return the given mean."""
        return None if operands.mean is None else self._column("mean", operands.mean).element

    def variance(self, operands: Operands) -> Polynomial | None:
        """Return the given variance."""
        if operands.statistic is None:
            return None
        element = self._column("statistic", operands.statistic.value).element
        exponent = {"variance": 1, "rstd": -2, "std": 2}[operands.statistic.kind]
        return power(element, Fraction(exponent))

    def _column(self, name: str, value: ir.Value) -> Tensor:
        axes = self.layout.column_axes(self.graph.infos[value].shape or ())
        assert axes is not None
        return Tensor(leaf(name, axes, is_positive=name == "statistic"), axes)
