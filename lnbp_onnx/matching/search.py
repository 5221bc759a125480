# SPDX-License-Identifier: Apache-2.0
"""Looking for layer-norm gradients: candidates for the operator's inputs, and the check that they are.

A search begins at a subtraction of a column from a matrix, x - mean. Which tensors are the gradient, gamma and the
statistics is guessed from what the difference is combined with; whether a guess is right is decided by following
these leaves through the graph as polynomials and comparing with the operator's definition, term by term.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.matching.algebra import (
    Leaf,
    NotExpressibleError,
    Polynomial,
    Sum,
    Symbol,
    add,
    atom,
    constant,
    constant_value,
    divide,
    multiply,
    power,
    sum_over,
)
from lnbp_onnx.matching.evaluate import Constants, Evaluation
from lnbp_onnx.matching.tensors import Axis, SplitError, Tensor, lengths_product, static_length
from lnbp_onnx.node import Dim

VIEWS = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"})
_MOST_VIEWS = 6
_MOST_SPLITS = 8
_MOST_EVALUATIONS = 48
_COMBINING = frozenset({"Mul", "Div", "MatMul"})


@dataclass(frozen=True, slots=True)
class Statistic:
    """Where the variance comes from: `value` is it, or 1 / sqrt of it ("rstd"), or the root ("std")."""

    value: ir.Value
    kind: str


@dataclass(frozen=True, slots=True)
class Gradient:
    """A layer-norm gradient that the graph computes.

    Attributes:
        x: The operator's input_forward.
        dy: Its output_delta.
        gamma: Its gamma, None where it scales by nothing.
        mean: The given mean, None where the statistics are computed.
        statistic: The given variance or what it is had from, None where the statistics are computed.
        axis: begin_norm_axis.
        epsilon: epsilon, a float32 number.
        outputs: By the operator's output names, the values that are equal to it whatever their shape, in
            topological order.
        beta: What gives beta_delta its shape, None where that is gamma's.
        is_shaped: Whether the outputs are known to have the operator's shapes.
    """

    x: ir.Value
    dy: ir.Value
    gamma: ir.Value | None
    mean: ir.Value | None
    statistic: Statistic | None
    axis: int
    epsilon: float
    outputs: dict[str, tuple[ir.Value, ...]]
    beta: ir.Value | None = None
    is_shaped: bool = False


@dataclass(frozen=True, slots=True)
class NearMiss:
    """What looks like a gradient and is not taken: the node it was looked for at, and why."""

    node: ir.Node
    reason: str


@dataclass(slots=True)
class _Roles:
    """The leaves chosen so far."""

    x: ir.Value
    mean: ir.Value | None = None
    statistic: Statistic | None = None
    dy: ir.Value | None = None
    gamma: ir.Value | None = None


@dataclass(slots=True)
class _Frame:
    """How the rows and columns of a candidate are indexed.

    Attributes:
        dims: The shape of x.
        labels: The symbols of its axes.
        axis: The first normalised one.
    """

    dims: Sequence[Dim]
    labels: list[Axis]
    axis: int

    @property
    def lead(self) -> Axis:
        return tuple(symbol for axis in self.labels[: self.axis] for symbol in axis)

    @property
    def norm(self) -> Axis:
        return tuple(symbol for axis in self.labels[self.axis :] for symbol in axis)

    def matrix_axes(self, shape: Sequence[Dim]) -> tuple[Axis, ...] | None:
        return tuple(self.labels) if _same_dims(shape, self.dims) else None

    def column_axes(self, shape: Sequence[Dim]) -> tuple[Axis, ...] | None:
        """Return the axes of a statistic: the rows' shape, the same with kept axes, or flat."""
        lead = self.dims[: self.axis]
        if _same_dims(shape, lead):
            return tuple(self.labels[: self.axis])
        kept = len(self.dims) - self.axis
        if _same_dims(shape, (*lead, *([1] * kept))):
            return (*self.labels[: self.axis], *([()] * kept))
        return (self.lead,) if len(shape) == 1 and shape[0] == static_length(self.lead) else None

    def row_axes(self, shape: Sequence[Dim]) -> tuple[Axis, ...] | None:
        """Return the axes of a parameter that is broadcast to the normalised axes, or flat."""
        norm, labels = self.dims[self.axis :], self.labels[self.axis :]
        skipped = len(norm) - len(shape)
        if skipped >= 0:
            axes: list[Axis] = []
            for dim, wanted, axis in zip(shape, norm[skipped:], labels[skipped:], strict=True):
                if dim == 1:
                    axes.append(())
                elif dim is not None and dim == wanted:
                    axes.append(axis)
                else:
                    break
            else:
                return tuple(axes)
        return (self.norm,) if len(shape) == 1 and shape[0] == static_length(self.norm) else None


@dataclass(slots=True)
class _Progress:
    """What a search of one anchor has seen."""

    budget: int = _MOST_EVALUATIONS
    reasons: list[tuple[int, str]] = field(default_factory=list)


class Searcher:
    """The search in one graph."""

    def __init__(self, graph: ir.Graph, constants: Constants) -> None:
        self._graph = graph
        self._constants = constants
        self._infos = constants.infos

    def anchors(self) -> Iterator[tuple[ir.Node, ir.Value, ir.Value]]:
        """Yield the subtractions of a column from a matrix, with the two operands."""
        for node in self._graph:
            if node.op_type == "Sub" and node.domain in ("", "ai.onnx"):
                pairs = [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])]
            elif node.op_type == "Add" and node.domain in ("", "ai.onnx"):
                pairs = [
                    (node.inputs[i], node.inputs[1 - i]) for i in (0, 1) if _op_type(node.inputs[1 - i]) == "Neg"
                ]
            else:
                continue
            for matrix, column in pairs:
                if matrix is not None and column is not None and self._is_column_of(column, matrix):
                    yield node, matrix, column

    def find(self, node: ir.Node, matrix: ir.Value, column: ir.Value) -> Gradient | NearMiss | None:
        """Return the gradient at an anchor, or why there is none, or nothing where nothing looks like one."""
        progress = _Progress()
        for x in self._roots(matrix):
            shape, element_type = self._shape(x), self._infos[x].element_type
            if shape is None or element_type not in spec.ELEMENT_TYPES or not shape:
                continue
            gradient = self._find_with(x, shape, matrix, column, progress)
            if gradient is not None:
                return gradient
        if progress.reasons:
            return NearMiss(node, max(progress.reasons, key=lambda reason: reason[0])[1])
        return None

    def _find_with(
        self, x: ir.Value, shape: tuple[Dim, ...], matrix: ir.Value, column: ir.Value, progress: _Progress
    ) -> Gradient | None:
        labels: list[Axis] = [
            () if dim == 1 else (Symbol(str(index), dim if isinstance(dim, int) else None),)
            for index, dim in enumerate(shape)
        ]
        for _ in range(_MOST_SPLITS):
            try:
                for frame in self._frames(x, shape, labels, matrix, column):
                    gradient = self._search(_Roles(x), frame, column, progress)
                    if gradient is not None:
                        return gradient
            except SplitError as split:
                labels = [_split(axis, split) for axis in labels]
                continue
            break
        return None

    def _frames(
        self, x: ir.Value, shape: tuple[Dim, ...], labels: list[Axis], matrix: ir.Value, column: ir.Value
    ) -> Iterator[_Frame]:
        """Yield the axes that the anchor's operands allow; where axes have length 1 there are several."""
        evaluation = Evaluation({x: Tensor(_leaf("x", labels), tuple(labels))}, self._constants, self._graph)
        found, column_shape = evaluation.tensor(matrix), self._shape(column)
        if found is None or column_shape is None:
            return
        rank = len(found.axes)
        padded = (1,) * (rank - len(column_shape)) + tuple(column_shape)
        lead_rank = max((index + 1 for index, dim in enumerate(padded) if dim != 1), default=0)
        lead = tuple(symbol for axis in found.axes[:lead_rank] for symbol in axis)
        axes = [axis for axis in range(len(shape)) if tuple(s for each in labels[:axis] for s in each) == lead]
        if any(symbol.length == 0 for axis in labels for symbol in axis):
            return
        hint = _axis_hint(matrix, column, len(shape))
        # Fewest normalised axes first, unless the graph names one.
        for axis in sorted(axes, key=lambda axis: (axis != hint, -axis)):
            frame = _Frame(shape, labels, axis)
            if frame.norm:
                yield frame

    def _search(self, roles: _Roles, frame: _Frame, column: ir.Value, progress: _Progress) -> Gradient | None:
        evaluation = self._evaluate(roles, frame)
        found = evaluation.tensor(column)
        computed = [False]
        if found is not None:
            count = lengths_product([frame.norm])
            mean = divide(sum_over(_leaf("x", frame.labels), frame.norm), count)
            computed = [True, False] if found.element == mean else []
        for is_computed in computed:
            mean_value: ir.Value | None = None
            if not is_computed:
                mean_value = next((root for root in self._roots(column) if self._fits(root, frame.column_axes)), None)
                if mean_value is None:
                    continue
            chosen = _Roles(roles.x, mean=mean_value)
            gradient = self._extend(chosen, frame, progress)
            if gradient is not None:
                return gradient
        return None

    def _extend(self, roles: _Roles, frame: _Frame, progress: _Progress) -> Gradient | None:
        """Try the next leaf; depth first."""
        if progress.budget <= 0:
            return None
        progress.budget -= 1
        evaluation = self._evaluate(roles, frame)
        if roles.dy is not None and (roles.mean is None or roles.statistic is not None):
            if roles.gamma is None:
                for gamma in self._gammas(evaluation, roles, frame):
                    gradient = self._extend(_with(roles, gamma=gamma), frame, progress)
                    if gradient is not None:
                        return gradient
            return self._match(evaluation, roles, frame, progress)
        for extended in self._options(evaluation, roles, frame):
            gradient = self._extend(extended, frame, progress)
            if gradient is not None:
                return gradient
        return None

    def _options(self, evaluation: Evaluation, roles: _Roles, frame: _Frame) -> Iterator[_Roles]:
        """Yield the roles with one more leaf: an operand of what is known already."""
        operands = self._operands(evaluation)
        if roles.mean is not None and roles.statistic is None:
            for operand in operands:
                for statistic in self._statistics(operand, frame):
                    yield _with(roles, statistic=statistic)
        if roles.dy is None:
            for operand in operands:
                product = _producer(_deepest(operand, {"Mul"}), {"Mul"})
                if product is not None:
                    for index in (0, 1):
                        dy, gamma = self._matrix_root(product.inputs[index], roles.x, frame), product.inputs[1 - index]
                        for root in self._roots(gamma):
                            if dy is not None and self._fits(root, frame.row_axes):
                                yield _with(roles, dy=dy, gamma=root)
                dy = self._matrix_root(operand, roles.x, frame)
                if dy is not None:
                    yield _with(roles, dy=dy)
        elif roles.gamma is None:
            for gamma in self._gammas(evaluation, roles, frame):
                yield _with(roles, gamma=gamma)

    def _gammas(self, evaluation: Evaluation, roles: _Roles, frame: _Frame) -> Iterator[ir.Value]:
        seen = set()
        for operand in self._operands(evaluation):
            for root in self._roots(operand):
                is_number = _is_number(self._shape(root)) and self._constants.get(root) is not None
                if root not in seen and not is_number and self._fits(root, frame.row_axes):
                    seen.add(root)
                    yield root
        forward = None if roles.mean is None else _producer(roles.mean, {"LayerNormalization"})
        if forward is not None:
            scale = forward.inputs[1]
            if scale is not None and scale not in seen and self._fits(scale, frame.row_axes):
                yield scale

    def _operands(self, evaluation: Evaluation) -> list[ir.Value]:
        """Return what known values are multiplied with or divided by; what is constant comes last."""
        nodes = {**evaluation.blocked, **{value.producer(): None for value in evaluation.known}}
        unknown: dict[ir.Value, None] = {}
        for node in nodes:
            if node is None or node.op_type not in _COMBINING or node.domain not in ("", "ai.onnx"):
                continue
            for operand in node.inputs:
                if operand is not None and operand not in evaluation.known:
                    unknown[operand] = None
        return sorted(unknown, key=lambda value: self._constants.get(value) is not None)

    def _statistics(self, operand: ir.Value, frame: _Frame) -> Iterator[Statistic]:
        """Yield what the statistic behind a factor of the columns may be."""
        value = operand
        chain = [value]
        for _ in range(2 * _MOST_VIEWS):
            node = value.producer()
            if node is None or node.op_type not in VIEWS | {"Sqrt", "Reciprocal", "Div", "Mul", "Pow", "Neg"}:
                break
            others = [each for each in node.inputs if each is not None and self._constants.get(each) is None]
            if len(others) != 1:
                break
            [value] = others
            chain.append(value)
            if node.op_type in ("Sqrt", "Pow"):
                yield from self._variances(value, frame)
        for each in reversed(chain):
            if self._fits(each, frame.column_axes) and _may_be_positive(each):
                yield Statistic(each, "rstd")
                yield Statistic(each, "std")

    def _variances(self, value: ir.Value, frame: _Frame) -> Iterator[Statistic]:
        """Yield the variances in what a root is taken of: the variance itself, or with epsilon added."""
        node = _producer(value, {"Add"})
        for each in [*([] if node is None else node.inputs), value]:
            if each is None or self._constants.get(each) is not None:
                continue
            root = next((root for root in self._roots(each) if self._fits(root, frame.column_axes)), None)
            if root is not None:
                yield Statistic(root, "variance")

    def _match(self, evaluation: Evaluation, roles: _Roles, frame: _Frame, progress: _Progress) -> Gradient | None:
        """Compare what follows from the leaves with the operator's definition."""
        assert roles.dy is not None
        if self._loses_precision(evaluation, roles.x):
            return None
        x, dy = _leaf("x", frame.labels), _leaf("dy", frame.labels)
        gamma = self._leaf_of(roles.gamma, "gamma", frame.row_axes)
        count = lengths_product([frame.norm])

        def mean_of(values: Polynomial) -> Polynomial:
            return divide(sum_over(values, frame.norm), count)

        mean = mean_of(x) if roles.mean is None else self._element(roles.mean, "mean", frame.column_axes)
        d = add(x, mean, -1)
        variance = mean_of(multiply(d, d)) if roles.statistic is None else self._variance(roles.statistic, frame)
        given = roles.statistic is not None
        for epsilon in _epsilons(evaluation, variance, may_be_zero=given):
            try:
                rstd = power(add(variance, constant(epsilon)), Fraction(-1, 2))
                g = dy if gamma is None else multiply(dy, gamma.element)
                c = multiply(power(rstd, Fraction(3)), mean_of(multiply(g, d)))
                terms = (
                    multiply(rstd, g),
                    add({}, multiply(rstd, mean_of(g)), -1),
                    add({}, multiply(d, c), -1),
                )
                scaled = multiply(multiply(dy, d), rstd)
            except NotExpressibleError:
                continue
            expected = {"input_delta": (add(add(terms[0], terms[1]), terms[2]), (*frame.lead, *frame.norm))}
            if gamma is not None:
                kept = tuple(symbol for axis in gamma.axes for symbol in axis)
                summed = [symbol for symbol in (*frame.lead, *frame.norm) if symbol not in kept]
                expected["gamma_delta"] = (sum_over(scaled, summed), kept)
                expected["beta_delta"] = (sum_over(dy, summed), kept)
            outputs = {name: _equal(evaluation, *wanted) for name, wanted in expected.items()}
            if not outputs["input_delta"] and not outputs.get("gamma_delta"):
                _explain(evaluation, terms, frame, progress)
                continue
            number = float(np.float32(float(epsilon)))
            # What adds an epsilon that is no float32 number computes something else, by the difference.
            if abs(Fraction(number) - epsilon) > epsilon * Fraction(1, 1 << 24) or (
                self._computes_in_double(roles.x) and Fraction(number) != epsilon
            ):
                progress.reasons.append((3, f"epsilon is {float(epsilon)!r}, which is no float32 number"))
                continue
            exact = self._exact(roles, outputs)
            if exact is None:
                progress.reasons.append((2, "no value that is equal to input_delta has the type of input_forward"))
                continue
            return Gradient(
                roles.x, roles.dy, roles.gamma, roles.mean, roles.statistic, frame.axis, number, exact
            )
        if not given and not _epsilons(evaluation, variance, may_be_zero=False):
            return None
        return None

    def _exact(self, roles: _Roles, outputs: dict[str, tuple[ir.Value, ...]]) -> dict[str, tuple[ir.Value, ...]] | None:
        """Return the outputs without the values of another type; None where no gradient is left."""
        types = {"input_delta": self._infos[roles.x].element_type}
        if roles.gamma is not None:
            types["gamma_delta"] = types["beta_delta"] = self._infos[roles.gamma].element_type
        exact = {
            name: tuple(value for value in values if self._infos[value].element_type == types[name])
            for name, values in outputs.items()
        }
        lost = any(outputs[name] and not exact[name] for name in ("input_delta", "gamma_delta") if name in outputs)
        return None if lost else exact

    def _loses_precision(self, evaluation: Evaluation, x: ir.Value) -> bool:
        """Return whether the graph computes in double what the operator would compute in float."""
        if self._computes_in_double(x):
            return False
        double = ir.DataType.DOUBLE
        return any(self._infos[value].element_type == double for value in evaluation.known)

    def _computes_in_double(self, x: ir.Value) -> bool:
        element_type = self._infos[x].element_type
        return element_type is not None and spec.compute_type(element_type) == ir.DataType.DOUBLE

    # Leaves

    def _evaluate(self, roles: _Roles, frame: _Frame) -> Evaluation:
        leaves = {roles.x: Tensor(_leaf("x", frame.labels), tuple(frame.labels))}
        if roles.dy is not None:
            leaves[roles.dy] = Tensor(_leaf("dy", frame.labels), tuple(frame.labels))
        for value, name, axes_of in (
            (roles.gamma, "gamma", frame.row_axes),
            (roles.mean, "mean", frame.column_axes),
            (roles.statistic and roles.statistic.value, "statistic", frame.column_axes),
        ):
            leaf = self._leaf_of(value, name, axes_of)
            if value is not None and leaf is not None:
                leaves[value] = leaf
        return Evaluation(leaves, self._constants, self._graph)

    def _leaf_of(self, value, name, axes_of):  # noqa
        if value is None:
            return None
        shape = self._shape(value)
        axes = None if shape is None else axes_of(shape)
        assert axes is not None
        return Tensor(_leaf(name, axes, is_positive=name == "statistic"), axes)

    def _element(self, value, name, axes_of) -> Polynomial:  # noqa
        leaf = self._leaf_of(value, name, axes_of)
        return leaf.element

    def _variance(self, statistic: Statistic, frame: _Frame) -> Polynomial:
        element = self._element(statistic.value, "statistic", frame.column_axes)
        exponent = {"variance": 1, "rstd": -2, "std": 2}[statistic.kind]
        return power(element, Fraction(exponent))

    def _fits(self, value, axes_of) -> bool:  # noqa
        shape = self._shape(value)
        return shape is not None and axes_of(shape) is not None

    def _matrix_root(self, value: ir.Value | None, x: ir.Value, frame: _Frame) -> ir.Value | None:
        wanted = self._infos[x].element_type
        for root in self._roots(value):
            if root is not x and self._infos[root].element_type == wanted and self._fits(root, frame.matrix_axes):
                return root
        return None

    def _roots(self, value: ir.Value | None) -> list[ir.Value]:
        """Return what a value is a view or a conversion of, the farthest first."""
        chain: list[ir.Value] = []
        while value is not None and len(chain) <= _MOST_VIEWS:
            chain.append(value)
            node = _producer(value, VIEWS)
            value = None if node is None else node.inputs[0]
        return chain[::-1]

    def _shape(self, value: ir.Value) -> tuple[Dim, ...] | None:
        return self._infos[value].shape

    def _is_column_of(self, column: ir.Value, matrix: ir.Value) -> bool:
        shape, column_shape = self._shape(matrix), self._shape(column)
        if not shape or column_shape is None or len(column_shape) > len(shape) or shape[-1] == 1:
            return False
        padded = (1,) * (len(shape) - len(column_shape)) + column_shape
        return padded[-1] == 1 and self._constants.get(column) is None


def _with(roles: _Roles, **changes) -> _Roles:  # noqa
    import dataclasses

    return dataclasses.replace(roles, **changes)


def _leaf(name: str, axes: Sequence[Axis], *, is_positive: bool = False) -> Polynomial:
    return atom(Leaf(name, frozenset(symbol for axis in axes for symbol in axis), is_positive))


def _same_dims(shape: Sequence[Dim], wanted: Sequence[Dim]) -> bool:
    return len(shape) == len(wanted) and all(a is not None and a == b for a, b in zip(shape, wanted, strict=True))


def _is_number(shape: Sequence[Dim] | None) -> bool:
    return shape is not None and all(dim == 1 for dim in shape)


def _split(axis: Axis, split: SplitError) -> Axis:
    symbol, parts = split.symbol, []
    for each in axis:
        if each == symbol and each.length is not None:
            parts += [Symbol(f"{each.name}.0", each.length // split.inner), Symbol(f"{each.name}.1", split.inner)]
        else:
            parts.append(each)
    return tuple(parts)


def _producer(value: ir.Value | None, op_types: set[str] | frozenset[str]) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types else None


def _op_type(value: ir.Value | None) -> str | None:
    node = None if value is None else value.producer()
    return None if node is None else node.op_type


def _deepest(value: ir.Value | None, op_types: set[str]) -> ir.Value | None:
    """Return the value, or what it is a view of, that a node of `op_types` computes."""
    for _ in range(_MOST_VIEWS):
        if _producer(value, op_types) is not None:
            return value
        node = _producer(value, VIEWS)
        if node is None:
            return None
        value = node.inputs[0]
    return None


def _axis_hint(matrix: ir.Value, column: ir.Value, rank: int) -> int | None:
    """Return the first normalised axis as the graph names it."""
    flatten, forward = _producer(matrix, {"Flatten"}), _producer(column, {"LayerNormalization"})
    for node, default in ((flatten, 1), (forward, -1)):
        if node is not None:
            attribute = node.attributes.get("axis")
            axis = default if attribute is None or attribute.is_ref() else attribute.as_int()
            return axis % rank if axis != rank else axis
    return None


def _may_be_positive(value: ir.Value) -> bool:
    """Return whether a statistic is positive as far as its producers tell; one that is handed in is."""
    for _ in range(2 * _MOST_VIEWS):
        node = value.producer()
        if node is None or node.op_type in ("LayerNormalization", "Sqrt", "Exp"):
            return True
        if node.op_type not in VIEWS | {"Reciprocal"} or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


def _epsilons(evaluation: Evaluation, variance: Polynomial, *, may_be_zero: bool) -> list[Fraction]:
    """Return what is added to the variance somewhere."""
    found: dict[Fraction, None] = {}
    for value in evaluation.known:
        tensor = evaluation.tensor(value)
        added = None if tensor is None else constant_value(add(tensor.element, variance, -1))
        if added is not None and added > 0:
            found[added] = None
    return [*found, *([Fraction(0)] if may_be_zero else [])]


def _equal(evaluation: Evaluation, element: Polynomial, symbols: tuple[Symbol, ...]) -> tuple[ir.Value, ...]:
    """Return the known values with this element, whose axes are these symbols in this order."""
    found = []
    for value in evaluation.known:
        tensor = evaluation.tensor(value)
        if tensor is not None and tensor.element == element:
            if tuple(symbol for axis in tensor.axes for symbol in axis) == symbols:
                found.append(value)
    return tuple(found)


def _explain(evaluation: Evaluation, terms: tuple[Polynomial, ...], frame: _Frame, progress: _Progress) -> None:
    """Note what stops a value that is not far from the gradient."""
    names = ("rstd * g", "rstd * mean(g)", "rstd * xhat * mean(g * xhat)")
    for value in evaluation.known:
        tensor = evaluation.tensor(value)
        if tensor is None or not _looks_like(tensor.element):
            continue
        score = 1
        reason = f"{value.name!r} multiplies the input with a sum of its products with the gradient in another way"
        wrong = [
            name
            for name, term in zip(names, terms, strict=True)
            if any(tensor.element.get(monomial) != coefficient for monomial, coefficient in term.items())
        ]
        if len(wrong) < 3:
            score = 4 - len(wrong)
            reason = f"{value.name!r} is not the gradient: it differs in " + " and ".join(wrong)
            if not wrong:
                reason = f"{value.name!r} is the gradient and more: it has other terms"
        progress.reasons.append((score, reason))


def _looks_like(element: Polynomial) -> bool:
    """Return whether a term has x beside a sum of products of x and dy."""
    for monomial in element:
        factors = {each.name for each, _ in monomial if isinstance(each, Leaf)}
        for each, _ in monomial:
            if isinstance(each, Sum) and "x" in factors:
                inner = {leaf.name for leaf, _ in each.monomial if isinstance(leaf, Leaf)}
                if {"x", "dy"} <= inner:
                    return True
    return False
