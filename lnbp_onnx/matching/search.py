# SPDX-License-Identifier: Apache-2.0
"""Looking for layer-norm gradients: a depth-first search for the operator's inputs, and the check that they are.

A search begins at a subtraction of a column from a matrix, x - mean. Which tensors are the gradient, gamma and the
statistics is guessed from what the difference is combined with; whether a guess is right is decided by following
these leaves through the graph as polynomials and comparing with the operator's definition, term by term.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.matching.algebra import (
    NotExpressibleError,
    Polynomial,
    Symbol,
    add,
    constant,
    constant_value,
    multiply,
)
from lnbp_onnx.matching.definition import centred, define, mean_of
from lnbp_onnx.matching.evaluate import Constants, Evaluation
from lnbp_onnx.matching.frame import Frame, split_axis
from lnbp_onnx.matching.gradient import Gradient, NearMiss, Statistic
from lnbp_onnx.matching.leaves import Leaves, Roles, leaf
from lnbp_onnx.matching.near_misses import explain, find_row_sum
from lnbp_onnx.matching.numbering import Numbering
from lnbp_onnx.matching.rules import Infos
from lnbp_onnx.matching.tensors import Axis, SplitError, Tensor
from lnbp_onnx.matching.views import producer, roots
from lnbp_onnx.node import Dim

_MOST_SPLITS = 8
_MOST_EVALUATIONS = 48
_EVALUATIONS_EACH = 4
_WORTH = {"input_delta": 4, "gamma_delta": 2, "beta_delta": 1}


@dataclass(slots=True)
class _Progress:
    """What a search of one anchor has seen.

    Attributes:
        budget: How many choices of leaves may still be looked at.
        reasons: What stopped near misses, each with how near they are.
        region: The numbers of the values that near misses follow from.
        matches: How many gradients were seen.
        best: The one with the most outputs.
        score: What its outputs are worth.
    """

    budget: int = _MOST_EVALUATIONS
    reasons: list[tuple[int, str]] = field(default_factory=list)
    region: set[int] = field(default_factory=set)
    matches: int = 0
    best: Gradient | None = None
    score: int = 0


class Searcher:
    """The search in one graph, from which nodes may be removed between one search and the next."""

    def __init__(self, graph: ir.Graph, infos: Infos, numbering: Numbering) -> None:
        self._graph = graph
        self._infos = infos
        self._constants = Constants(infos)
        self._numbering = numbering
        self._failed: set[object] = set()

    def anchors(self) -> list[int]:
        """Return the numbers of the subtractions of a column from a matrix."""
        nodes = (node for node in self._graph if any(True for _ in self._differences(node)))
        return list(dict.fromkeys(self._numbering.number(node.outputs[0]) for node in nodes))

    def find(self, anchor: ir.Node) -> Gradient | NearMiss | None:
        """Return the gradient at an anchor, or why there is none, or nothing where nothing looks like one."""
        progress = _Progress()
        for matrix, column in self._differences(anchor):
            for x in roots(matrix):
                info = self._infos[x]
                if info.shape and info.element_type in spec.ELEMENT_TYPES:
                    search = _Search(
                        x, info.shape, self._infos, self._constants, self._numbering, self._failed, progress
                    )
                    search.run(matrix, column)
                if progress.best is not None:
                    return progress.best
        if progress.reasons:
            return NearMiss(max(progress.reasons, key=lambda reason: reason[0])[1], frozenset(progress.region))
        return None

    def _differences(self, node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
        """Yield a node's two operands where it subtracts a column from a matrix."""
        pairs: list[tuple[ir.Value | None, ir.Value | None]] = []
        if node.domain in ("", "ai.onnx") and len(node.inputs) == 2:
            a, b = node.inputs
            if node.op_type == "Sub":
                pairs = [(a, b), (b, a)]
            elif node.op_type in ("Add", "Sum"):
                negations = [(value, producer(other, {"Neg"})) for value, other in ((a, b), (b, a))]
                pairs = [(value, negation.inputs[0]) for value, negation in negations if negation is not None]
        for matrix, column in pairs:
            if matrix is not None and column is not None and self._is_column_of(column, matrix):
                yield matrix, column

    def _is_column_of(self, column: ir.Value, matrix: ir.Value) -> bool:
        shape, column_shape = self._infos[matrix].shape, self._infos[column].shape
        if not shape or column_shape is None or len(column_shape) > len(shape) or shape[-1] == 1:
            return False
        padded = (1,) * (len(shape) - len(column_shape)) + column_shape
        return padded[-1] == 1 and self._constants.get(column) is None


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for gradients of one x."""

    x: ir.Value
    shape: tuple[Dim, ...]
    infos: Infos
    constants: Constants
    numbering: Numbering
    failed: set[object]
    progress: _Progress

    def run(self, matrix: ir.Value, column: ir.Value) -> None:
        """Search at the subtraction of a column from what is a view of x."""
        labels: list[Axis] = [
            () if dim == 1 else (Symbol(str(index), dim if isinstance(dim, int) else None),)
            for index, dim in enumerate(self.shape)
        ]
        for _ in range(_MOST_SPLITS):
            try:
                evaluation = Evaluation(
                    {self.x: Tensor(leaf("x", labels), tuple(labels))}, self.constants, self.numbering
                )
                # Where many gradients share x, each is as worth looking for as one alone.
                self.progress.budget += _EVALUATIONS_EACH * len(evaluation.blocked)
                for frame in self._frames(evaluation, labels, matrix, column):
                    if self._with_mean(evaluation, frame, column) or self.progress.best is not None:
                        return
            except SplitError as split:
                labels = [split_axis(axis, split) for axis in labels]
                continue
            break

    def _frames(
        self, evaluation: Evaluation, labels: list[Axis], matrix: ir.Value, column: ir.Value
    ) -> Iterator[Frame]:
        """Yield the axes that the anchor's operands allow; where axes have length 1 there are several."""
        found, column_shape = evaluation.tensor(matrix), self.infos[column].shape
        if found is None or column_shape is None:
            return
        rank = len(found.axes)
        padded = (1,) * (rank - len(column_shape)) + tuple(column_shape)
        lead_rank = max((index + 1 for index, dim in enumerate(padded) if dim != 1), default=0)
        lead = tuple(symbol for axis in found.axes[:lead_rank] for symbol in axis)
        axes = [axis for axis in range(len(labels)) if tuple(s for each in labels[:axis] for s in each) == lead]
        if any(symbol.length == 0 for axis in labels for symbol in axis):
            return
        hint = _axis_hint(matrix, column, len(labels))
        # Fewest normalised axes first, unless the graph names one.
        for axis in sorted(axes, key=lambda axis: (axis != hint, -axis)):
            frame = Frame(self.shape, labels, axis)
            if frame.norm:
                yield frame

    def _with_mean(self, evaluation: Evaluation, frame: Frame, column: ir.Value) -> bool:
        """Try the mean as computed or as given; return whether a gradient was found that no other can better."""
        leaves = Leaves(frame, self.constants, self.numbering)
        found, wanted = evaluation.tensor(column), mean_of(leaf("x", frame.labels), frame)
        means: list[ir.Value | None] = []
        if found is not None and found.element != wanted and found.element.keys() == wanted.keys():
            reason = f"{column.name!r} is the sum of {self.x.name!r} over each row, but not the mean"
            self.progress.reasons.append((0, reason))
        if found is None or found.element == wanted:
            given = leaves.given_mean(column)
            means = ([] if found is None else [None]) + ([] if given is None else [given])
        for mean in means:
            roles = Roles(self.x, mean=mean)
            extended = evaluation if mean is None else evaluation.extended({mean: leaves.tensors(roles)[mean]})
            if self._extend(extended, roles, frame, leaves):
                return True
        return False

    def _extend(self, evaluation: Evaluation, roles: Roles, frame: Frame, leaves: Leaves) -> bool:
        """Try the next leaf, depth first; return whether a gradient was found that no other can better."""
        if self.progress.budget <= 0:
            return False
        self.progress.budget -= 1
        matches = self.progress.matches
        if self._with_more(evaluation, roles, frame, leaves) or (
            roles.is_complete and self._match(evaluation, roles, frame, leaves)
        ):
            return True
        if roles.dy is None and (roles.mean is None or roles.statistic is not None):
            self.progress.reasons += [(-1, reason) for reason in leaves.doubts(evaluation, self.x)]
        if matches == self.progress.matches and self.progress.budget > 0:
            # As the graph only loses nodes, what matches nothing never will.
            self.failed.add((roles, frame.axis, tuple(frame.labels)))
        return False

    def _with_more(self, evaluation: Evaluation, roles: Roles, frame: Frame, leaves: Leaves) -> bool:
        if not roles.is_complete:
            extensions = leaves.extensions(evaluation, roles)
        elif roles.gamma is None:
            extensions = leaves.with_gamma(evaluation, roles)
        else:
            return False
        known = leaves.tensors(roles)
        for extended in extensions:
            if (extended, frame.axis, tuple(frame.labels)) in self.failed:
                continue
            added = {value: tensor for value, tensor in leaves.tensors(extended).items() if value not in known}
            if self._extend(evaluation.extended(added), extended, frame, leaves):
                return True
        return False

    def _match(self, evaluation: Evaluation, roles: Roles, frame: Frame, leaves: Leaves) -> bool:
        """Compare what follows from the leaves with the operator's definition.

        Returns:
            Whether they are the gradient, and no other choice of leaves can give more of its outputs.
        """
        if self._loses_precision(evaluation):
            return False
        gamma, given = leaves.gamma(roles), leaves.variance(roles)
        d = centred(frame, leaves.mean(roles))
        variance = mean_of(multiply(d, d), frame) if given is None else given
        for epsilon in _epsilons(evaluation, variance):
            try:
                definition = define(frame, d, gamma, variance, epsilon)
            except NotExpressibleError:
                continue
            outputs = {name: self._equal(evaluation, *wanted) for name, wanted in definition.outputs.items()}
            if not outputs["input_delta"]:
                reasons = explain(evaluation, definition, frame, self.numbering)
                self.progress.reasons += reasons
                if reasons:
                    self.progress.region.update(evaluation.known)
                # Without a sum of products over each row, and another gamma, nothing hints at an input_delta.
                is_alone = find_row_sum(evaluation, frame) is None and not any(True for _ in leaves.scales(evaluation))
                if not outputs.get("gamma_delta") or not is_alone:
                    continue
            exact = self._of_right_type(roles, outputs)
            if exact is None:
                self.progress.reasons.append((2, "no value that is equal to input_delta has the type of input_forward"))
                continue
            choice = self._with_epsilon(evaluation, roles, leaves, epsilon, add(variance, constant(epsilon)))
            if choice is None:
                self.progress.reasons.append(
                    (3, f"epsilon is {float(epsilon)!r}, and what it is added to has no shape of a statistic")
                )
                continue
            self._note(*choice, exact, evaluation, frame)
            if outputs["input_delta"] and (
                outputs.get("gamma_delta") or (gamma is not None and not roles.gamma_is_number)
            ):
                return True
        return False

    def _equal(self, evaluation: Evaluation, element: Polynomial, symbols: tuple[Symbol, ...]) -> tuple[ir.Value, ...]:
        """Return the graph's values with this element, whose axes are these symbols in this order."""
        return tuple(
            value
            for number, tensor in evaluation.tensors()
            if tensor.element == element and tuple(symbol for axis in tensor.axes for symbol in axis) == symbols
            for value in self.numbering.values(number)
        )

    def _of_right_type(
        self, roles: Roles, outputs: dict[str, tuple[ir.Value, ...]]
    ) -> dict[str, tuple[ir.Value, ...]] | None:
        """Return the outputs without the values of another type; None where no gradient is left."""
        types = {"input_delta": self.infos[roles.x].element_type}
        if roles.gamma is not None:
            types["gamma_delta"] = types["beta_delta"] = self.infos[roles.gamma].element_type
        exact = {
            name: tuple(value for value in values if self.infos[value].element_type == types[name])
            for name, values in outputs.items()
        }
        lost = any(outputs[name] and not exact[name] for name in ("input_delta", "gamma_delta") if name in outputs)
        return None if lost else exact

    def _with_epsilon(
        self, evaluation: Evaluation, roles: Roles, leaves: Leaves, epsilon: Fraction, radicand: Polynomial
    ) -> tuple[Roles, float] | None:
        """Return the roles and epsilon; where that is not allowed, with the sum with the variance in its place.

        An epsilon that is no float32 number matters in double, and 0 is allowed for given statistics only.
        """
        number = float(np.float32(float(epsilon)))
        is_exact = Fraction(number) == epsilon or not self._computes_in_double()
        if is_exact and (epsilon or roles.statistic is not None):
            return roles, number
        mean, lead = roles.mean, leaves.frame.lead
        if mean is None:
            computed = mean_of(leaf("x", leaves.frame.labels), leaves.frame)
            mean = next(filter(leaves.is_column, self._equal(evaluation, computed, lead)), None)
        variance = next(filter(leaves.is_column, self._equal(evaluation, radicand, lead)), None)
        if mean is None or variance is None:
            return None
        return replace(roles, mean=mean, statistic=Statistic(variance, "variance")), 0.0

    def _note(
        self,
        roles: Roles,
        epsilon: float,
        outputs: dict[str, tuple[ir.Value, ...]],
        evaluation: Evaluation,
        frame: Frame,
    ) -> None:
        """Keep a gradient if it is better than what was found before."""
        assert roles.dy is not None
        self.progress.matches += 1
        score = sum(_WORTH[name] for name, values in outputs.items() if values)
        if score <= self.progress.score:
            return
        self.progress.score = score
        order = roles.dy_axes and tuple(roles.dy_axes.index(index) for index in range(len(roles.dy_axes)))
        shape = None if roles.gamma is None else self.infos[roles.gamma].shape
        extra = 0 if shape is None else len(shape) - (len(frame.dims) - frame.axis)
        self.progress.best = Gradient(
            roles.x,
            roles.dy,
            roles.gamma,
            roles.mean,
            roles.statistic,
            frame.axis,
            epsilon,
            outputs,
            dy_order=order,
            gamma_shape=shape[extra:] if shape is not None and extra > 0 else None,
            region=frozenset(evaluation.known),
        )

    def _loses_precision(self, evaluation: Evaluation) -> bool:
        """Return whether the graph computes in double what the operator would compute in float."""
        if self._computes_in_double():
            return False
        nodes = (self.numbering.node(number) for number in evaluation.known)
        return any(
            self.infos[output].element_type == ir.DataType.DOUBLE
            for node in nodes
            if node is not None
            for output in node.outputs
        )

    def _computes_in_double(self) -> bool:
        element_type = self.infos[self.x].element_type
        return element_type is not None and spec.compute_type(element_type) == ir.DataType.DOUBLE


def _axis_hint(matrix: ir.Value, column: ir.Value, rank: int) -> int | None:
    """Return the first normalised axis as the graph names it."""
    flatten, forward = producer(matrix, {"Flatten"}), producer(column, {"LayerNormalization"})
    for node, default in ((flatten, 1), (forward, -1)):
        if node is not None:
            attribute = node.attributes.get("axis")
            axis = default if attribute is None or attribute.is_ref() else attribute.as_int()
            return axis % rank if axis != rank else axis
    return None


def _epsilons(evaluation: Evaluation, variance: Polynomial) -> list[Fraction]:
    """Return what is added to the variance somewhere, and 0."""
    added = (constant_value(add(tensor.element, variance, -1)) for _, tensor in evaluation.tensors())
    return [*dict.fromkeys(each for each in added if each is not None and each > 0), Fraction(0)]
