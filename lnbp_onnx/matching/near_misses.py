# SPDX-License-Identifier: Apache-2.0
"""Telling a person why what looks like a layer-norm gradient is none."""

from lnbp_onnx.matching.algebra import Monomial, Sum
from lnbp_onnx.matching.definition import TERMS, Definition
from lnbp_onnx.matching.evaluation import Evaluation
from lnbp_onnx.matching.gradient import NearMiss
from lnbp_onnx.matching.leaves import leaf_names
from lnbp_onnx.matching.rows_and_columns import RowsAndColumns


def explain(evaluation: Evaluation, definition: Definition, layout: RowsAndColumns) -> list[NearMiss]:
    """Return what stops values that are not far from input_delta; none where nothing is."""
    row_sum = find_row_sum(evaluation, layout)
    if row_sum is None:
        return []
    reasons = [
        (
            0,
            f"{_name(evaluation, row_sum)!r} sums products of input and gradient over each row, but nothing equal "
            "to input_delta follows",
        )
    ]
    for number, tensor in evaluation.tensors():
        if not any(_is_row_sum(monomial, layout) and "x" in leaf_names(monomial) for monomial in tensor.element):
            continue
        wrong = [
            name
            for name, term in zip(TERMS, definition.terms, strict=True)
            if any(tensor.element.get(monomial) != coefficient for monomial, coefficient in term.items())
        ]
        if len(wrong) == len(TERMS):
            continue
        found = "it differs in " + " and ".join(wrong) if wrong else "it has other terms beside it"
        reasons.append((4 - len(wrong), f"{_name(evaluation, number)!r} is not input_delta: {found}"))
    region = frozenset(evaluation.known)
    return [NearMiss(closeness, reason, region) for closeness, reason in reasons]


def find_row_sum(evaluation: Evaluation, layout: RowsAndColumns) -> int | None:
    """Return a value with the sum of products of x and dy over each row, which input_delta needs and others do not."""
    for number, tensor in evaluation.tensors():
        if any(_is_row_sum(monomial, layout) for monomial in tensor.element):
            return number
    return None


def _name(evaluation: Evaluation, number: int) -> str:
    node = evaluation.graph.numbering.node(number)
    return "" if node is None else node.outputs[0].name or ""


def _is_row_sum(monomial: Monomial, layout: RowsAndColumns) -> bool:
    return any(
        isinstance(each, Sum) and not each.symbols & set(layout.lead) and {"x", "dy"} <= leaf_names(each.monomial)
        for each, _ in monomial
    )
