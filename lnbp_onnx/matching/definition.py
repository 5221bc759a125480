# SPDX-License-Identifier: Apache-2.0
"""The operator's definition, as the polynomials that its outputs are of its operands."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from lnbp_onnx.matching.algebra import Polynomial, Symbol, add, constant, divide, multiply, power, sum_over
from lnbp_onnx.matching.frame import Frame
from lnbp_onnx.matching.leaves import leaf
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


def mean_of(values: Polynomial, frame: Frame) -> Polynomial:
    """Return the mean over each row."""
    return divide(sum_over(values, frame.norm), lengths_product([frame.norm]))


def centred(frame: Frame, mean: Polynomial | None) -> Polynomial:
    """Return x less its mean, which is computed where it is not given."""
    x = leaf("x", frame.labels)
    return add(x, mean_of(x, frame) if mean is None else mean, -1)


def define(frame: Frame, d: Polynomial, gamma: Tensor | None, variance: Polynomial, epsilon: Fraction) -> Definition:
    """Return the operator's definition.

    Args:
        frame: How rows and columns are indexed.
        d: x less its mean.
        gamma: gamma, None where it scales by nothing.
        variance: The variance, given or computed.
        epsilon: What is added to it.

    Raises:
        NotExpressibleError: Where a root cannot be taken.
    """
    rstd = power(add(variance, constant(epsilon)), Fraction(-1, 2))
    dy = leaf("dy", frame.labels)
    g = dy if gamma is None else multiply(dy, gamma.element)
    projection = multiply(power(rstd, Fraction(3)), mean_of(multiply(g, d), frame))
    terms = (
        multiply(rstd, g),
        add({}, multiply(rstd, mean_of(g, frame)), -1),
        add({}, multiply(d, projection), -1),
    )
    outputs = {"input_delta": (_total(terms), (*frame.lead, *frame.norm))}
    if gamma is not None:
        kept = tuple(symbol for axis in gamma.axes for symbol in axis)
        summed = [symbol for symbol in (*frame.lead, *frame.norm) if symbol not in kept]
        outputs["gamma_delta"] = (sum_over(multiply(multiply(dy, d), rstd), summed), kept)
        outputs["beta_delta"] = (sum_over(dy, summed), kept)
    return Definition(outputs, terms)


def _total(terms: Sequence[Polynomial]) -> Polynomial:
    total: Polynomial = {}
    for term in terms:
        total = add(total, term)
    return total
