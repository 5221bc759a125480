# SPDX-License-Identifier: Apache-2.0
"""Looking for layer-norm gradients: candidates for the operator's inputs, and the check that they are.

A search begins at a subtraction of a column from a matrix, x - mean. Which tensors are the gradient, gamma and the
statistics is guessed from what the difference is combined with; whether a guess is right is decided by following
these leaves through the graph as polynomials and comparing with the operator's definition, term by term.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.matching.algebra import (
    Leaf,
    Monomial,
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
from lnbp_onnx.matching.gradient import Gradient, NearMiss, Statistic
from lnbp_onnx.matching.frame import Frame, split_axis
from lnbp_onnx.matching.tensors import Axis, SplitError, Tensor, lengths_product
from lnbp_onnx.node import Dim

VIEWS = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"})
_MOST_VIEWS = 6
_MOST_SPLITS = 8
_MOST_EVALUATIONS = 48
_COMBINING = frozenset({"Mul", "Div", "MatMul"})


@dataclass(slots=True)
class _Roles:
    """The leaves chosen so far.

    Attributes:
        x: input_forward.
        mean: The given mean.
        statistic: What the given variance is had from.
        dy: output_delta.
        dy_axes: Which of x's axes those of `dy` are, None where they are the same.
        gamma: gamma.
        gamma_is_number: Whether gamma enters as the one number that all its elements are, not by name: a simplifier
            has computed with it.
    """

    x: ir.Value
    mean: ir.Value | None = None
    statistic: Statistic | None = None
    dy: ir.Value | None = None
    dy_axes: tuple[int, ...] | None = None
    gamma: ir.Value | None = None
    gamma_is_number: bool = False


@dataclass(slots=True)
class _Progress:
    """What a search of one anchor has seen."""

    budget: int = _MOST_EVALUATIONS
    reasons: list[tuple[int, str]] = field(default_factory=list)
    region: set[ir.Value] = field(default_factory=set)
    best: Gradient | None = None
    score: int = 0


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
            elif node.op_type in ("Add", "Sum") and len(node.inputs) == 2 and node.domain in ("", "ai.onnx"):
                negations = [(index, _producer(node.inputs[1 - index], {"Neg"})) for index in (0, 1)]
                pairs = [(node.inputs[index], neg.inputs[0]) for index, neg in negations if neg is not None]
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
            self._find_with(x, shape, matrix, column, progress)
            if progress.best is not None:
                return progress.best
        if progress.reasons:
            return NearMiss(node, max(progress.reasons, key=lambda reason: reason[0])[1], frozenset(progress.region))
        return None

    def _find_with(
        self, x: ir.Value, shape: tuple[Dim, ...], matrix: ir.Value, column: ir.Value, progress: _Progress
    ) -> None:
        labels: list[Axis] = [
            () if dim == 1 else (Symbol(str(index), dim if isinstance(dim, int) else None),)
            for index, dim in enumerate(shape)
        ]
        for _ in range(_MOST_SPLITS):
            try:
                for frame in self._frames(x, shape, labels, matrix, column):
                    if self._search(_Roles(x), frame, column, progress) or progress.best is not None:
                        return
            except SplitError as split:
                labels = [split_axis(axis, split) for axis in labels]
                continue
            break

    def _frames(
        self, x: ir.Value, shape: tuple[Dim, ...], labels: list[Axis], matrix: ir.Value, column: ir.Value
    ) -> Iterator[Frame]:
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
            frame = Frame(shape, labels, axis)
            if frame.norm:
                yield frame

    def _search(self, roles: _Roles, frame: Frame, column: ir.Value, progress: _Progress) -> bool:
        """Try the mean as computed or as given; return whether a gradient was found that no other can better."""
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
            if self._extend(replace(roles, mean=mean_value), frame, progress):
                return True
        return False

    def _extend(self, roles: _Roles, frame: Frame, progress: _Progress) -> bool:
        """Try the next leaf, depth first; return whether a gradient was found that no other can better."""
        if progress.budget <= 0:
            return False
        progress.budget -= 1
        evaluation = self._evaluate(roles, frame)
        if roles.dy is not None and (roles.mean is None or roles.statistic is not None):
            if roles.gamma is None and any(
                self._extend(extended, frame, progress) for extended in self._gammas(evaluation, roles, frame)
            ):
                return True
            return self._match(evaluation, roles, frame, progress)
        return any(self._extend(extended, frame, progress) for extended in self._options(evaluation, roles, frame))

    def _options(self, evaluation: Evaluation, roles: _Roles, frame: Frame) -> Iterator[_Roles]:
        """Yield the roles with one more leaf: an operand of what is known already."""
        operands = self._operands(evaluation)
        if roles.mean is not None and roles.statistic is None:
            for operand in operands:
                for statistic in self._statistics(operand, frame):
                    yield replace(roles, statistic=statistic)
        if roles.dy is None:
            for operand in operands:
                yield from self._gradients(operand, roles, frame)
        elif roles.gamma is None:
            yield from self._gammas(evaluation, roles, frame)

    def _gradients(self, operand: ir.Value, roles: _Roles, frame: Frame) -> Iterator[_Roles]:
        """Yield the roles with dy, and with gamma where the operand is a product."""
        for value, order in self._origins(operand, None):
            product = _producer(value, {"Mul"})
            if product is None:
                continue
            for index in (0, 1):
                scales = [root for root in self._roots(product.inputs[1 - index]) if self._is_scale(root, frame)]
                for dy, axes in self._matrices(product.inputs[index], order, roles.x, frame):
                    for gamma in scales:
                        yield replace(roles, dy=dy, dy_axes=axes, gamma=gamma)
            break
        for dy, axes in self._matrices(operand, None, roles.x, frame):
            yield replace(roles, dy=dy, dy_axes=axes)

    def _gammas(self, evaluation: Evaluation, roles: _Roles, frame: Frame) -> Iterator[_Roles]:
        """Yield the roles with gamma: what known values are multiplied with, or what the forward operator has."""
        scales = [root for operand in self._operands(evaluation) for root in self._roots(operand)]
        forward = None if roles.mean is None else _producer(roles.mean, {"LayerNormalization"})
        if forward is not None and forward.inputs[1] is not None:
            scales.append(forward.inputs[1])
        for gamma in dict.fromkeys(scales):
            if self._is_scale(gamma, frame):
                yield replace(roles, gamma=gamma)
        if forward is not None and isinstance(self._constants.get(scales[-1]), Tensor):
            yield replace(roles, gamma=scales[-1], gamma_is_number=True)

    def _is_scale(self, value: ir.Value, frame: Frame) -> bool:
        """Return whether a value may be gamma; a single number is a constant factor."""
        is_number = _is_number(self._shape(value)) and self._constants.get(value) is not None
        return self._fits(value, frame.row_axes) and not is_number

    def _operands(self, evaluation: Evaluation) -> list[ir.Value]:
        """Return what known values are multiplied with or divided by; what is constant comes last."""
        nodes = dict.fromkeys([*evaluation.blocked, *(value.producer() for value in evaluation.known)])
        unknown: dict[ir.Value, None] = {}
        for node in nodes:
            if node is None or node.op_type not in _COMBINING or node.domain not in ("", "ai.onnx"):
                continue
            for operand in node.inputs:
                if operand is not None and operand not in evaluation.known:
                    unknown[operand] = None
        return sorted(unknown, key=lambda value: self._constants.get(value) is not None)

    def _statistics(self, operand: ir.Value, frame: Frame) -> Iterator[Statistic]:
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

    def _variances(self, value: ir.Value, frame: Frame) -> Iterator[Statistic]:
        """Yield the variances in what a root is taken of: the variance itself, or with epsilon added."""
        node = _producer(value, {"Add"})
        for each in [*([] if node is None else node.inputs), value]:
            if each is None or self._constants.get(each) is not None:
                continue
            root = next((root for root in self._roots(each) if self._fits(root, frame.column_axes)), None)
            if root is not None:
                yield Statistic(root, "variance")

    def _match(self, evaluation: Evaluation, roles: _Roles, frame: Frame, progress: _Progress) -> bool:
        """Compare what follows from the leaves with the operator's definition.

        Returns:
            Whether they are the gradient, and no other choice of leaves can give more of its outputs.
        """
        assert roles.dy is not None
        if self._loses_precision(evaluation, roles.x):
            return False
        x, dy = _leaf("x", frame.labels), _leaf("dy", frame.labels)
        gamma = self._gamma(roles, frame)
        count = lengths_product([frame.norm])

        def mean_of(values: Polynomial) -> Polynomial:
            return divide(sum_over(values, frame.norm), count)

        mean = mean_of(x) if roles.mean is None else self._column("mean", roles.mean, frame).element
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
            if not outputs["input_delta"]:
                _explain(evaluation, terms, frame, progress)
                if not outputs.get("gamma_delta") or not self._is_alone(evaluation, frame):
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
            self._note(roles, frame, number, exact, evaluation, progress)
            if outputs["input_delta"] and (
                outputs.get("gamma_delta") or (gamma is not None and not roles.gamma_is_number)
            ):
                return True
        return False

    def _note(
        self,
        roles: _Roles,
        frame: Frame,
        epsilon: float,
        outputs: dict[str, tuple[ir.Value, ...]],
        evaluation: Evaluation,
        progress: _Progress,
    ) -> None:
        """Keep a gradient if it is better than what was found before."""
        assert roles.dy is not None
        worth = {"input_delta": 4, "gamma_delta": 2, "beta_delta": 1}
        score = sum(worth[name] for name, values in outputs.items() if values)
        if score <= progress.score:
            return
        progress.score = score
        order = roles.dy_axes and tuple(roles.dy_axes.index(index) for index in range(len(roles.dy_axes)))
        shape = None if roles.gamma is None else self._shape(roles.gamma)
        extra = 0 if shape is None else len(shape) - (len(frame.dims) - frame.axis)
        progress.best = Gradient(
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

    def _is_alone(self, evaluation: Evaluation, frame: Frame) -> bool:
        """Return whether nothing hints at an input_delta beside a gamma_delta: a row's sum, or another gamma."""
        return _row_sum(evaluation, frame) is None and not any(
            self._is_scale(root, frame) for operand in self._operands(evaluation) for root in self._roots(operand)
        )

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

    def _evaluate(self, roles: _Roles, frame: Frame) -> Evaluation:
        leaves = {roles.x: Tensor(_leaf("x", frame.labels), tuple(frame.labels))}
        if roles.dy is not None:
            order = roles.dy_axes or range(len(frame.labels))
            leaves[roles.dy] = Tensor(_leaf("dy", frame.labels), tuple(frame.labels[index] for index in order))
        gamma = self._gamma(roles, frame)
        if roles.gamma is not None and gamma is not None:
            leaves[roles.gamma] = gamma
        if roles.mean is not None:
            leaves[roles.mean] = self._column("mean", roles.mean, frame)
        if roles.statistic is not None:
            leaves[roles.statistic.value] = self._column("statistic", roles.statistic.value, frame)
        return Evaluation(leaves, self._constants, self._graph)

    def _gamma(self, roles: _Roles, frame: Frame) -> Tensor | None:
        if roles.gamma is None:
            return None
        axes = frame.row_axes(self._shape(roles.gamma) or ())
        assert axes is not None
        number = self._constants.get(roles.gamma)
        if roles.gamma_is_number and isinstance(number, Tensor):
            return Tensor(number.element, axes)
        return Tensor(_leaf("gamma", axes), axes)

    def _column(self, name: str, value: ir.Value, frame: Frame) -> Tensor:
        axes = frame.column_axes(self._shape(value) or ())
        assert axes is not None
        return Tensor(_leaf(name, axes, is_positive=name == "statistic"), axes)

    def _variance(self, statistic: Statistic, frame: Frame) -> Polynomial:
        element = self._column("statistic", statistic.value, frame).element
        exponent = {"variance": 1, "rstd": -2, "std": 2}[statistic.kind]
        return power(element, Fraction(exponent))

    def _fits(self, value: ir.Value, axes_of: Callable[[Sequence[Dim]], tuple[Axis, ...] | None]) -> bool:
        shape = self._shape(value)
        return shape is not None and axes_of(shape) is not None

    def _matrices(
        self, value: ir.Value | None, order: tuple[int, ...] | None, x: ir.Value, frame: Frame
    ) -> list[tuple[ir.Value, tuple[int, ...] | None]]:
        """Return what may be dy behind a value, with which of x's axes its own are; in x's order first."""
        found: list[tuple[ir.Value, tuple[int, ...] | None]] = []
        for origin, axes in self._origins(value, order):
            info = self._infos[origin]
            if origin is x or info.element_type != self._infos[x].element_type or info.shape is None:
                continue
            if frame.matrix_axes(info.shape, axes) is not None:
                found.insert(0, (origin, axes))
        return sorted(found, key=lambda item: item[1] is not None)

    def _origins(
        self, value: ir.Value | None, order: tuple[int, ...] | None
    ) -> Iterator[tuple[ir.Value, tuple[int, ...] | None]]:
        """Yield a value and what it is a view of, with the order of their axes; `order` is the value's own."""
        for _ in range(_MOST_VIEWS):
            if value is None:
                return
            yield value, order
            node = _producer(value, VIEWS | {"Transpose"})
            if node is None or (order is not None and node.op_type not in ("Identity", "Cast", "Transpose")):
                return
            value = node.inputs[0]
            if node.op_type == "Transpose":
                order = _before(node, order)
                if order is None:
                    return
                if order == tuple(range(len(order))):
                    order = None

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


def _leaf(name: str, axes: Sequence[Axis], *, is_positive: bool = False) -> Polynomial:
    return atom(Leaf(name, frozenset(symbol for axis in axes for symbol in axis), is_positive))


def _is_number(shape: Sequence[Dim] | None) -> bool:
    return shape is not None and all(dim == 1 for dim in shape)


def _producer(value: ir.Value | None, op_types: set[str] | frozenset[str]) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types else None


def _before(transpose: ir.Node, order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the order of the axes of what is transposed, given the order of the result's."""
    attribute = transpose.attributes.get("perm")
    if attribute is None or attribute.is_ref():
        return None
    permutation = attribute.as_ints()
    before = [0] * len(permutation)
    for index, source in enumerate(permutation):
        before[source] = index if order is None else order[index]
    return tuple(before)


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
        if tensor is None or tensor.element != element:
            continue
        if tuple(symbol for axis in tensor.axes for symbol in axis) == symbols:
            found.append(value)
    return tuple(found)


def _explain(evaluation: Evaluation, terms: tuple[Polynomial, ...], frame: Frame, progress: _Progress) -> None:
    """Note what stops a value that is not far from the gradient."""
    names = ("rstd * g", "rstd * mean(g)", "rstd * xhat * mean(g * xhat)")
    row_sum = _row_sum(evaluation, frame)
    if row_sum is None:
        return
    progress.region.update(evaluation.known)
    reason = (
        f"{row_sum.name!r} sums products of input and gradient over each row, but nothing equal to input_delta follows"
    )
    progress.reasons.append((0, reason))
    for value in evaluation.known:
        tensor = evaluation.tensor(value)
        if tensor is None or not any(
            _row_sums(monomial, frame) and "x" in _leaves(monomial) for monomial in tensor.element
        ):
            continue
        wrong = [
            name
            for name, term in zip(names, terms, strict=True)
            if any(tensor.element.get(monomial) != coefficient for monomial, coefficient in term.items())
        ]
        if len(wrong) == len(names):
            continue
        found = "it differs in " + " and ".join(wrong) if wrong else "it has other terms beside it"
        progress.reasons.append((4 - len(wrong), f"{value.name!r} is not input_delta: {found}"))


def _row_sum(evaluation: Evaluation, frame: Frame) -> ir.Value | None:
    """Return a value with the sum of products of x and dy over each row, which input_delta needs and others do not."""
    for value in evaluation.known:
        tensor = evaluation.tensor(value)
        if tensor is not None and any(_row_sums(monomial, frame) for monomial in tensor.element):
            return value
    return None


def _row_sums(monomial: Monomial, frame: Frame) -> bool:
    return any(
        isinstance(each, Sum) and not each.symbols & set(frame.lead) and {"x", "dy"} <= _leaves(each.monomial)
        for each, _ in monomial
    )


def _leaves(monomial: Monomial) -> set[str]:
    return {each.name for each, _ in monomial if isinstance(each, Leaf)}
