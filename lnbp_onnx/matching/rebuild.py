# SPDX-License-Identifier: Apache-2.0
"""Recognising what this package itself wrote, by writing it again.

The standard operators that the operator becomes are read off around the reciprocal root to guess the operator's
inputs; then the body is built for them and its values are looked up in the graph by their numbers. That needs no
knowledge of shapes, where the algebra does: a body for shapes that are known only at run time is full of arithmetic on
shapes.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.body import Body, build_body
from lnbp_onnx.errors import LnbpError
from lnbp_onnx.graphs.inference import constant_tensor
from lnbp_onnx.matching.gradient import Gradient
from lnbp_onnx.matching.operands import Operands, Statistic
from lnbp_onnx.matching.semantics import Infos
from lnbp_onnx.matching.value_numbering import ValueNumbering
from lnbp_onnx.matching.views import producer
from lnbp_onnx.node import BackpropNode, Dim, attribute_protos, may_match, parse, static_size

_DEEPEST_SHAPE = 8


@dataclass(frozen=True, slots=True)
class _Parts:
    """The values of a body that the operator's inputs are read off."""

    x: ir.Value
    dy: ir.Value
    gamma: ir.Value | None
    mean: ir.Value | None
    variance: ir.Value | None
    epsilon: float


@dataclass(frozen=True, slots=True)
class _Template:
    """A body, and the values that stand for the operator's inputs in it."""

    inputs: tuple[ir.Value | None, ...]
    body: Body

    @classmethod
    def of(cls, node: BackpropNode, opset: int) -> "_Template":
        """Write the body of a node.

        Raises:
            LnbpError: Where the opset cannot express it.
        """
        inputs = tuple(
            None if info is None else ir.Value(name=name)
            for name, info in zip(spec.INPUT_NAMES, node.inputs, strict=True)
        )
        counter = itertools.count()
        return cls(inputs, build_body(node, inputs, opset, lambda name: f"{name}.{next(counter)}"))


class Rebuilder:
    """The search in one graph for what this package wrote.

    Args:
        infos: What is known of the graph's values.
        opset: The version of the default domain that they are written in.
        numbering: The graph's numbers.
        look_ups: How many bodies may be looked up.
    """

    def __init__(self, infos: Infos, opset: int, numbering: ValueNumbering, look_ups: int) -> None:
        self._infos = infos
        self._opset = opset
        self._numbering = numbering
        self._look_ups = look_ups
        self._bodies: dict[BackpropNode, _Template] = {}

    def find(self, rstd: ir.Node) -> Gradient | None:
        """Return the gradient whose body has the node `rstd` as its reciprocal root, None where there is none."""
        for guess in self._guesses(rstd):
            if not self._look_ups:
                return None
            self._look_ups -= 1
            found = self._look_up(guess)
            if found is not None:
                return found
        return None

    def _guesses(self, rstd: ir.Node) -> Iterator[Gradient]:
        """Yield what may be the gradient, without outputs; what is nearest to the graph's inputs comes first."""
        for parts in _parts(rstd):
            for (x, axis), (dy, _), gamma, mean, variance in itertools.product(
                _rows_of(parts.x),
                _rows_of(parts.dy),
                _stripped(parts.gamma, ("Reshape", "Expand", "Reshape", "Cast")),
                _stripped(parts.mean, ("Reshape", "Cast")),
                _stripped(parts.variance, ("Reshape", "Cast")),
            ):
                if self._fit(x, dy, (mean, variance), axis):
                    statistic = None if variance is None else Statistic(variance, "variance")
                    operands = Operands(x, dy, gamma, mean=mean, statistic=statistic)
                    yield Gradient(operands, axis, parts.epsilon, {}, is_shaped=True)

    def _fit(self, x: ir.Value, dy: ir.Value, statistics: Sequence[ir.Value | None], axis: int) -> bool:
        """Return whether operands have shapes that the operator is likely to take, as far as these are known.

        A length that is known at run time only may be 1. But where one of x and dy has it as 1, or a statistic where x
        has it, the body broadcasts; and where x is what the body makes of the operator's, so may the statistics be.
        """
        dims = self._infos[x].shape
        if dims is None:
            return True
        lead = dims[:axis]
        of_statistics = (lead, lead + (1,) * (len(dims) - len(lead)), (static_size(lead),))
        is_of_body = producer(x, {"Flatten"}) is not None

        def is_likely(value: ir.Value | None, allowed: Sequence[tuple[Dim, ...]], may_be_one: bool) -> bool:
            shape = None if value is None else self._infos[value].shape
            return shape is None or any(
                may_match(shape, wanted)
                and all(a == b or (a != 1 and (b != 1 or may_be_one)) for a, b in zip(shape, wanted, strict=True))
                for wanted in allowed
            )

        return is_likely(dy, (dims,), False) and all(
            is_likely(each, of_statistics, not is_of_body) for each in statistics
        )

    def _look_up(self, guess: Gradient) -> Gradient | None:
        """Return a guess with the outputs that the graph has; None where input_delta is not there."""
        found = self._follow_body(guess)
        if not found.outputs["input_delta"]:
            return None
        operands = guess.operands
        if operands.gamma is not None and operands.dy is not None and not found.outputs["beta_delta"]:
            for beta in _shaped_like(operands.dy):
                again = self._follow_body(replace(guess, operands=replace(operands, beta=beta)))
                if again.outputs["beta_delta"]:
                    return again
        return found

    def _follow_body(self, guess: Gradient) -> Gradient:
        """Return a guess with its outputs and region: what the graph has of its body."""
        inputs = guess.operands.inputs
        affine, stats = guess.operands.gamma is not None, guess.operands.mean is not None
        try:
            node = parse(
                "",
                attribute_protos(guess.axis, affine, guess.epsilon, stats),
                [None if value is None else self._infos[value] for value in inputs],
                (True, affine, affine),
            )
            template = self._bodies.get(node)
            if template is None:
                template = self._bodies[node] = _Template.of(node, self._opset)
        except LnbpError:
            return replace(guess, outputs=dict.fromkeys(spec.OUTPUT_NAMES, ()))
        numbering = self._numbering
        numbers = {
            operand: numbering.number(value)
            for operand, value in zip(template.inputs, inputs, strict=True)
            if operand is not None and value is not None
        }
        numbering.follow(template.body.nodes, numbers)
        outputs = {
            name: numbering.values(numbers[value]) if value is not None and value in numbers else ()
            for name, value in zip(spec.OUTPUT_NAMES, template.body.outputs, strict=True)
        }
        return replace(guess, outputs=outputs, region=frozenset(numbers.values()))


def is_rstd(node: ir.Node) -> bool:
    """Return whether the node may be the reciprocal root of a body."""
    return node.op_type == "Reciprocal" and node.domain == "" and producer(node.inputs[0], {"Sqrt"}) is not None


def _parts(rstd: ir.Node) -> Iterator[_Parts]:
    """Read the parts of a body off the factor c2 = rstd * (rstd * mean(g * d))."""
    root = rstd.outputs[0]
    radicand = producer(rstd.inputs[0], {"Sqrt"})
    if radicand is None:
        return
    variance, epsilon = radicand.inputs[0], 0.0
    addition = producer(variance, {"Add"})
    if addition is not None and addition.inputs[1] is not None:
        number = constant_tensor(addition.inputs[1])
        if number is not None and number.size == 1:
            variance, epsilon = addition.inputs[0], float(number.numpy().reshape(-1)[0])
    for c2 in _users(root, "Mul", 0):
        inner = producer(c2.inputs[1], {"Mul"})
        projection = None if inner is None or inner.inputs[0] is not root else inner.inputs[1]
        mean = None if projection is None else projection.producer()
        if mean is None or not mean.inputs:
            continue
        q = producer(mean.inputs[0], {"Mul"})
        for d_c2 in _users(c2.outputs[0], "Mul", 1):
            d = producer(d_c2.inputs[0], {"Sub"})
            if d is None or q is None or q.inputs[1] is not d.outputs[0]:
                continue
            gamma = None
            if (product := producer(projection, {"MatMul"})) is not None:
                weights = producer(product.inputs[1], {"Div"})
                row = None if weights is None else producer(weights.inputs[0], {"Reshape"})
                if row is None:
                    continue
                gamma = row.inputs[0]
            x, dy = d.inputs[0], q.inputs[0]
            if x is None or dy is None:
                continue
            once = producer(x, {"Sub"})
            if once is not None and once.inputs[0] is not None:
                yield _Parts(once.inputs[0], dy, gamma, None, None, epsilon)
            yield _Parts(x, dy, gamma, d.inputs[1], variance, epsilon)


def _rows_of(value: ir.Value) -> Iterator[tuple[ir.Value, int]]:
    """Yield what a [rows, columns] view may be of, and the axis it is split at."""
    flatten = producer(value, {"Flatten"})
    if flatten is not None:
        attribute = flatten.attributes.get("axis")
        axis = 1 if attribute is None else attribute.as_int()
        yield from ((each, axis) for each in _stripped(flatten.inputs[0], ("Cast",)) if each is not None)
    yield from ((each, 1) for each in _stripped(value, ("Cast",)) if each is not None)


def _stripped(value: ir.Value | None, op_types: tuple[str, ...]) -> list[ir.Value | None]:
    """Return the value without some or all of the operators on it, in the given order, the barest first."""
    found = [value]
    for op_type in op_types:
        node = producer(value, {op_type})
        if node is not None:
            value = node.inputs[0]
            found.insert(0, value)
    return found


def _shaped_like(dy: ir.Value) -> list[ir.Value]:
    """Return the values whose shapes shape sums of dy over the rows."""
    rows = [dy, *(node.outputs[0] for node in dy.consumers() if node.op_type in ("Flatten", "Cast"))]
    rows += [node.outputs[0] for value in rows[1:] for node in value.consumers() if node.op_type == "Flatten"]
    totals = [node for value in dict.fromkeys(rows) for node in _users(value, "MatMul", 1)]
    found: dict[ir.Value, None] = {}
    for total in totals:
        current = total
        for _ in range(_DEEPEST_SHAPE):
            if current.op_type == "Reshape":
                _add_shape_sources(current.inputs[1], found)
            users = list(current.outputs[0].consumers())
            if len(users) != 1 or users[0].op_type not in ("Reshape", "ReduceSum", "Cast"):
                break
            current = users[0]
    return list(found)


def _add_shape_sources(value: ir.Value | None, found: dict[ir.Value, None]) -> None:
    pending = [value]
    seen: set[ir.Node] = set()
    while pending and len(seen) < 8 * _DEEPEST_SHAPE:
        node = None if (current := pending.pop()) is None else current.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "Shape" and node.inputs[0] is not None:
            found[node.inputs[0]] = None
        else:
            pending += node.inputs


def _users(value: ir.Value, op_type: str, index: int) -> list[ir.Node]:
    return [
        node
        for node in value.consumers()
        if node.op_type == op_type and node.domain == "" and node.inputs[index] is value
    ]
