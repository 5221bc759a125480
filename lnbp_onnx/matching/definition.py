# SPDX-License-Identifier: Apache-2.0
"""The operator's definition, as the polynomials that its outputs are of its operands."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lnbp_onnx.matching.algebra import Polynomial, Symbol, add, constant, divide, multiply, power, sum_over
from lnbp_onnx.matching.leaves import leaf
from lnbp_onnx.matching.rows_and_columns import RowsAndColumns
from lnbp_onnx.matching.tensors import Tensor, lengths_product

TERMS = ("rstd * g", "rstd * mean(g)", "rstd * xhat * mean(g * xhat)")
"""What input_delta is made of, as a person reads it."""


@dataclass(frozen=True, slots=True)
class Definition:
    """What the outputs are.

    Attributes:
        outputs: By name, an output's element and the symbols of its axes in order.
        terms: input_delta's terms, in the order of `TERMS`.
    """

    outputs: dict[str, tuple[Polynomial, tuple[Symbol, ...]]]
    terms: tuple[Polynomial, ...]


def mean_of(values: Polynomial, layout: RowsAndColumns) -> Polynomial:
    """Return the mean over each row."""
    return divide(sum_over(values, layout.norm), lengths_product([layout.norm]))


def centred(layout: RowsAndColumns, mean: Polynomial | None) -> Polynomial:
    """Return x less its mean, which is computed where it is not given."""
    x = leaf("x", layout.labels)
    return add(x, mean_of(x, layout) if mean is None else mean, -1)


def define(
    layout: RowsAndColumns,
    d: Polynomial,
    dy: Polynomial,
    gamma: Tensor | None,
    variance: Polynomial,
    epsilon: Fraction,
) -> Definition:
    """Return the operator's definition.

    Args:
        layout: How rows and columns are indexed.
        d: x less its mean.
        dy: The gradient of the normalised tensor.
        gamma: gamma, None where it scales by nothing.
        variance: The variance, given or computed.
        epsilon: What is added to it.

    Raises:
        NotExpressibleError: Where a root cannot be taken.
    """
    rstd = power(add(variance, constant(epsilon)), Fraction(-1, 2))
    g = dy if gamma is None else multiply(dy, gamma.element)
    projection = multiply(power(rstd, Fraction(3)), mean_of(multiply(g, d), layout))
    terms = (
        multiply(rstd, g),
        add({}, multiply(rstd, mean_of(g, layout)), -1),
        add({}, multiply(d, projection), -1),
    )
    outputs = {"input_delta": (_total(terms), (*layout.lead, *layout.norm))}
    if gamma is not None:
        kept = tuple(symbol for axis in gamma.axes for symbol in axis)
        summed = [symbol for symbol in (*layout.lead, *layout.norm) if symbol not in kept]
        outputs["gamma_delta"] = (sum_over(multiply(multiply(dy, d), rstd), summed), kept)
        outputs["beta_delta"] = (sum_over(dy, summed), kept)
    return Definition(outputs, terms)


def _total(terms: Sequence[Polynomial]) -> Polynomial:
    total: Polynomial = {}
    for term in terms:
        total = add(total, term)
    return total
