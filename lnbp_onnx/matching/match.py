# SPDX-License-Identifier: Apache-2.0
"""Comparing what follows from a candidate's operands with the operator's definition."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.matching.algebra import NotExpressibleError, Polynomial, Symbol, add, constant, difference, multiply
from lnbp_onnx.matching.candidates import Candidate
from lnbp_onnx.matching.choices import Choices
from lnbp_onnx.matching.definition import Definition, centred, define, mean_of
from lnbp_onnx.matching.evaluation import Evaluation
from lnbp_onnx.matching.gradient import Gradient, NearMiss, nearest
from lnbp_onnx.matching.leaves import Leaves, leaf
from lnbp_onnx.matching.near_misses import explain, find_row_sum
from lnbp_onnx.matching.operands import Operands, Statistic


def match(candidate: Candidate) -> Gradient | NearMiss | None:
    """Return the gradient that a candidate is, or what stops it, or None where it does not look like one.

    Of several, with one epsilon or another, the one with the most outputs or the nearest.
    """
    evaluation, layout = candidate.evaluation, candidate.layout
    if _loses_precision(candidate):
        return None
    leaves = Leaves(evaluation.graph, layout)
    dy, gamma = leaves.dy(candidate.operands), leaves.gamma(candidate.operands)
    given = leaves.variance(candidate.operands)
    d = centred(layout, leaves.mean(candidate.operands))
    variance = mean_of(multiply(d, d), layout) if given is None else given
    gradients: list[Gradient] = []
    misses: list[NearMiss] = []
    for epsilon in _epsilons(evaluation, variance):
        try:
            definition = define(layout, d, dy, gamma, variance, epsilon)
            radicand = add(variance, constant(epsilon))
        except NotExpressibleError:
            continue
        found = _compare(candidate, definition, epsilon, radicand)
        if isinstance(found, Gradient):
            gradients.append(found)
            if found.is_best:
                break
        else:
            misses += found
    if gradients:
        return max(gradients, key=lambda gradient: gradient.worth)
    return nearest(misses)


def _compare(
    candidate: Candidate, definition: Definition, epsilon: Fraction, radicand: Polynomial
) -> Gradient | list[NearMiss]:
    evaluation, layout = candidate.evaluation, candidate.layout
    if not definition.outputs["input_delta"][0]:
        # Of a constant dy and computed statistics; much is 0.
        return []
    outputs = {name: _equal(evaluation, *wanted) for name, wanted in definition.outputs.items()}
    misses: list[NearMiss] = []
    added: tuple[ir.Value, ...] = ()
    if not outputs["input_delta"] and candidate.addends is not None:
        delta, symbols = definition.outputs["input_delta"]
        total, added = candidate.addends.total(delta)
        outputs["input_delta"] = _equal(candidate.addends.evaluation, total, symbols) if added else ()
    if not outputs["input_delta"]:
        misses = explain(evaluation, definition, layout)
        if not outputs.get("gamma_delta") or not _is_alone(candidate):
            return misses
    exact = _of_right_type(candidate, outputs)
    if exact is None:
        reason = "no value that is equal to input_delta has the type of input_forward"
        return [*misses, NearMiss(2, reason)]
    allowed = _with_epsilon(candidate, epsilon, radicand)
    if allowed is None:
        reason = f"epsilon is {float(epsilon)!r}, and what it is added to has no shape of a statistic"
        return [*misses, NearMiss(3, reason)]
    operands, number = allowed
    shape = None if operands.gamma is None else evaluation.graph.infos[operands.gamma].shape
    extra = 0 if shape is None else len(shape) - (len(layout.dims) - layout.axis)
    return Gradient(
        operands,
        layout.axis,
        number,
        exact,
        gamma_shape=shape[extra:] if shape is not None and extra > 0 else None,
        region=frozenset(evaluation.known),
        addends=added,
    )


def _is_alone(candidate: Candidate) -> bool:
    """Return whether nothing hints at an input_delta: neither a sum of products over each row nor another gamma."""
    if candidate.operands.dy_is_number:
        return False
    evaluation, choices = candidate.evaluation, Choices(candidate.evaluation.graph, candidate.layout)
    return find_row_sum(evaluation, candidate.layout) is None and not any(True for _ in choices.scales(evaluation))


def _equal(evaluation: Evaluation, element: Polynomial, symbols: tuple[Symbol, ...]) -> tuple[ir.Value, ...]:
    """Return the graph's values with this element, whose axes are these symbols in this order."""
    return tuple(
        value
        for number, tensor in evaluation.tensors()
        if tensor.element == element and tuple(symbol for axis in tensor.axes for symbol in axis) == symbols
        for value in evaluation.graph.numbering.values(number)
    )


def _of_right_type(
    candidate: Candidate, outputs: dict[str, tuple[ir.Value, ...]]
) -> dict[str, tuple[ir.Value, ...]] | None:
    """Return the outputs without the values of another type; None where no gradient is left."""
    infos, operands = candidate.evaluation.graph.infos, candidate.operands
    types = {"input_delta": infos[operands.x].element_type}
    if operands.gamma is not None:
        types["gamma_delta"] = types["beta_delta"] = infos[operands.gamma].element_type
    exact = {
        name: tuple(value for value in values if infos[value].element_type == types[name])
        for name, values in outputs.items()
    }
    lost = any(outputs[name] and not exact[name] for name in ("input_delta", "gamma_delta") if name in outputs)
    return None if lost else exact


def _with_epsilon(candidate: Candidate, epsilon: Fraction, radicand: Polynomial) -> tuple[Operands, float] | None:
    """Return the operands and epsilon; where that is not allowed, with the sum with the variance in its place.

    An epsilon that is no float32 number matters in double, and 0 is allowed for given statistics only.
    """
    evaluation, layout, operands = candidate.evaluation, candidate.layout, candidate.operands
    number = float(np.float32(float(epsilon)))
    is_exact = Fraction(number) == epsilon or not _computes_in_double(candidate)
    if is_exact and (epsilon or operands.statistic is not None):
        return operands, number
    is_column: Callable[[ir.Value], bool] = Choices(evaluation.graph, layout).is_column
    mean = operands.mean
    if mean is None:
        computed = mean_of(leaf("x", layout.labels), layout)
        mean = next(filter(is_column, _equal(evaluation, computed, layout.lead)), None)
    variance = next(filter(is_column, _equal(evaluation, radicand, layout.lead)), None)
    if mean is None or variance is None:
        return None
    return replace(operands, mean=mean, statistic=Statistic(variance, "variance")), 0.0


def _loses_precision(candidate: Candidate) -> bool:
    """Return whether the graph computes in double what the operator would compute in float."""
    if _computes_in_double(candidate):
        return False
    graph = candidate.evaluation.graph
    nodes = (graph.numbering.node(number) for number in candidate.evaluation.known)
    return any(
        graph.infos[output].element_type == ir.DataType.DOUBLE
        for node in nodes
        if node is not None
        for output in node.outputs
    )


def _computes_in_double(candidate: Candidate) -> bool:
    element_type = candidate.evaluation.graph.infos[candidate.operands.x].element_type
    return element_type is not None and spec.compute_type(element_type) == ir.DataType.DOUBLE


def _epsilons(evaluation: Evaluation, variance: Polynomial) -> list[Fraction]:
    """Return what is added to the variance somewhere, and 0."""
    added = (difference(tensor.element, variance) for _, tensor in evaluation.tensors())
    return [*dict.fromkeys(Fraction(each) for each in added if each is not None and each > 0), Fraction(0)]
