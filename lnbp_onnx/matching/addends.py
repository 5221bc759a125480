# SPDX-License-Identifier: Apache-2.0
"""Sums of input_delta and other gradients: automatic differentiation may add its terms to them one by one."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx.matching.algebra import Monomial, Polynomial, Sum
from lnbp_onnx.matching.evaluation import Evaluation
from lnbp_onnx.matching.leaves import leaf, leaf_names
from lnbp_onnx.matching.near_misses import find_row_sum
from lnbp_onnx.matching.operands import Operands
from lnbp_onnx.matching.rows_and_columns import RowsAndColumns
from lnbp_onnx.matching.tensors import Tensor

_MOST_ADDENDS = 4


@dataclass(frozen=True, slots=True)
class Addends:
    """What is added to terms that may be those of an input_delta.

    Attributes:
        evaluation: What follows from a candidate's operands and the addends.
        elements: The addends, each with its element.
    """

    evaluation: Evaluation
    elements: dict[ir.Value, Polynomial]

    def total(self, delta: Polynomial) -> tuple[Polynomial, tuple[ir.Value, ...]]:
        """Return the element of a sum of input_delta and addends, as few as there are in one, and these, if any."""
        found: tuple[Polynomial, tuple[ir.Value, ...]] = ({}, ())
        for _, tensor in self.evaluation.tensors():
            terms = tensor.element.items()
            added = tuple(value for value, element in self.elements.items() if element.items() <= terms)
            is_sum = bool(added) and len(terms) == len(delta) + len(added) and delta.items() <= terms
            if is_sum and not 0 < len(found[1]) <= len(added):
                found = tensor.element, added
        return found


def addends_of(evaluation: Evaluation, operands: Operands, layout: RowsAndColumns) -> Addends | None:
    """Return what is added to what follows from operands; None where nothing is, or where no input_delta follows.

    Raises:
        SplitError: Where a view of a sum cuts through a symbol.
    """
    elements: dict[ir.Value, Polynomial] = {}
    if find_row_sum(evaluation, layout) is None:
        return None
    while len(elements) < _MOST_ADDENDS:
        value = next(_unknown_addends(evaluation, operands, layout), None)
        if value is None:
            break
        elements[value] = leaf(f"addend {len(elements)}", layout.labels)
        evaluation = evaluation.extended({value: Tensor(elements[value], layout.labels)})
    return Addends(evaluation, elements) if elements else None


def _unknown_addends(evaluation: Evaluation, operands: Operands, layout: RowsAndColumns) -> Iterator[ir.Value]:
    """Yield what is added to a part of a gradient, or to a sum of one, and is of x's shape and type."""
    infos, numbering = evaluation.graph.infos, evaluation.graph.numbering
    for number in sorted(evaluation.blocked):
        node = evaluation.blocked[number]
        if node.op_type not in ("Add", "Sum") or node.domain != "":
            continue
        terms = [value for value in node.inputs if value is not None]
        unknown = [value for value in terms if numbering.number(value) not in evaluation.known]
        known = [evaluation.tensor(value) for value in terms if value not in unknown]
        if len(unknown) != 1 or not all(tensor is not None and _is_gradient(tensor) for tensor in known):
            continue
        [value] = unknown
        info = infos[value]
        if info.element_type == infos[operands.x].element_type and layout.is_shaped_as_x(info.shape):
            yield value


def _is_gradient(tensor: Tensor) -> bool:
    """Return whether every term of an element has a gradient in it."""
    return bool(tensor.element) and all(map(_has_gradient, tensor.element))


def _has_gradient(monomial: Monomial) -> bool:
    names = leaf_names(monomial)
    return (
        "dy" in names
        or any(name.startswith("addend") for name in names)
        or any(isinstance(each, Sum) and _has_gradient(each.monomial) for each, _ in monomial)
    )
