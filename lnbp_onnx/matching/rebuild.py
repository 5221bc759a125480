# SPDX-License-Identifier: Apache-2.0
"""Recognising what this package itself wrote, by writing it again.

The standard operators that the operator becomes are read off around the reciprocal root to guess the operator's
inputs; then the body is built for them and its values are looked up in the graph by their numbers. That needs no
knowledge of shapes, where the algebra does: a body for shapes that are known only at run time is full of arithmetic on
shapes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.body import build_body
from lnbp_onnx.errors import LnbpError
from lnbp_onnx.matching.constants import constant_tensor
from lnbp_onnx.matching.gradient import Gradient, Statistic
from lnbp_onnx.matching.numbering import Numbering
from lnbp_onnx.matching.rules import Infos
from lnbp_onnx.node import attribute_protos, parse

Inputs: TypeAlias = tuple[ir.Value | None, ...]
"""The operator's inputs, in its order."""

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


def rebuilt(rstd: ir.Node, infos: Infos, opset: int, numbering: Numbering) -> Gradient | None:
    """Return the gradient whose body has the node `rstd` as its reciprocal root, None where there is none."""
    for parts in _parts(rstd):
        for x, axis in _rows_of(parts.x):
            for dy, _ in _rows_of(parts.dy):
                for gamma, mean, variance in itertools.product(
                    _stripped(parts.gamma, ("Reshape", "Expand", "Reshape", "Cast")),
                    _stripped(parts.mean, ("Reshape", "Cast")),
                    _stripped(parts.variance, ("Reshape", "Cast")),
                ):
                    inputs = (x, dy, gamma, None, mean, variance)
                    found = _look_up(inputs, axis, parts.epsilon, infos, opset, numbering)
                    if found is not None:
                        return found
    return None


def is_rstd(node: ir.Node) -> bool:
    """Return whether the node may be the reciprocal root of a body."""
    return _is(node, "Reciprocal") and _is(_source(node, 0), "Sqrt")


def _look_up(
    inputs: Inputs, axis: int, epsilon: float, infos: Infos, opset: int, numbering: Numbering
) -> Gradient | None:
    numbers, outputs = _follow_body(inputs, axis, epsilon, infos, opset, numbering)
    if not outputs["input_delta"]:
        return None
    x, dy, gamma, _, mean, variance = inputs
    assert x is not None
    assert dy is not None
    if gamma is not None and not outputs["beta_delta"]:
        for beta in _shaped_like(dy):
            shaped = (x, dy, gamma, beta, mean, variance)
            numbers, again = _follow_body(shaped, axis, epsilon, infos, opset, numbering)
            if again["beta_delta"]:
                outputs, inputs = again, shaped
                break
    statistic = None if variance is None else Statistic(variance, "variance")
    return Gradient(
        x, dy, gamma, mean, statistic, axis, epsilon, outputs, beta=inputs[3], is_shaped=True, region=numbers
    )


def _follow_body(
    inputs: Inputs, axis: int, epsilon: float, infos: Infos, opset: int, numbering: Numbering
) -> tuple[frozenset[int], dict[str, tuple[ir.Value, ...]]]:
    """Return the numbers of what the graph has of a body, and its values for each output."""
    affine, stats = inputs[2] is not None, inputs[4] is not None
    try:
        node = parse(
            "",
            attribute_protos(axis, affine, epsilon, stats),
            [None if value is None else infos[value] for value in inputs],
            (True, affine, affine),
        )
        placeholders = [
            None if value is None else ir.Value(name=name) for name, value in zip(spec.INPUT_NAMES, inputs, strict=True)
        ]
        counter = itertools.count()
        body = build_body(node, placeholders, opset, lambda name: f"{name}.{next(counter)}")
    except LnbpError:
        return frozenset(), dict.fromkeys(spec.OUTPUT_NAMES, ())
    numbers = {
        placeholder: numbering.number(value)
        for placeholder, value in zip(placeholders, inputs, strict=True)
        if placeholder is not None and value is not None
    }
    numbering.follow(body.nodes, numbers)
    return frozenset(numbers.values()), {
        name: numbering.values(numbers[value]) if value is not None and value in numbers else ()
        for name, value in zip(spec.OUTPUT_NAMES, body.outputs, strict=True)
    }


def _parts(rstd: ir.Node) -> Iterator[_Parts]:
    """Read the parts of a body off the factor c2 = rstd * (rstd * mean(g * d))."""
    root = rstd.outputs[0]
    radicand = _source(rstd, 0)
    assert radicand is not None
    variance, epsilon = radicand.inputs[0], 0.0
    addition = _source(radicand, 0)
    if _is(addition, "Add"):
        assert addition is not None
        number = None if addition.inputs[1] is None else constant_tensor(addition.inputs[1])
        if number is not None and number.size == 1:
            variance, epsilon = addition.inputs[0], float(number.numpy().reshape(-1)[0])
    for c2 in _users(root, "Mul", 0):
        inner = _source(c2, 1)
        projection = _source(inner, 1)
        if not _is(inner, "Mul") or inner is None or inner.inputs[0] is not root or projection is None:
            continue
        q = _source(projection, 0)
        for d_c2 in _users(c2.outputs[0], "Mul", 1):
            d, d_value = _source(d_c2, 0), d_c2.inputs[0]
            if not _is(d, "Sub") or d is None or not _is(q, "Mul") or q is None or q.inputs[1] is not d_value:
                continue
            gamma = None
            if _is(projection, "MatMul"):
                weights = _source(projection, 1)
                if weights is None or not _is(weights, "Div") or not _is(_source(weights, 0), "Reshape"):
                    continue
                gamma = weights.inputs[0].producer().inputs[0]  # type: ignore[union-attr]
            dy = q.inputs[0]
            assert dy is not None
            once = _source(d, 0)
            if _is(once, "Sub") and once is not None and once.inputs[0] is not None:
                yield _Parts(once.inputs[0], dy, gamma, None, None, epsilon)
            if d.inputs[0] is not None:
                yield _Parts(d.inputs[0], dy, gamma, d.inputs[1], variance, epsilon)


def _rows_of(value: ir.Value) -> Iterator[tuple[ir.Value, int]]:
    """Yield what a [rows, columns] view may be of, and the axis it is split at."""
    node = value.producer()
    if _is(node, "Flatten") and node is not None and node.inputs[0] is not None:
        attribute = node.attributes.get("axis")
        axis = 1 if attribute is None else attribute.as_int()
        for each in _stripped(node.inputs[0], ("Cast",)):
            assert each is not None
            yield each, axis
    for each in _stripped(value, ("Cast",)):
        assert each is not None
        yield each, 1


def _stripped(value: ir.Value | None, op_types: tuple[str, ...]) -> list[ir.Value | None]:
    """Return the value without some or all of the operators on it, in the given order, the barest first."""
    found = [value]
    for op_type in op_types:
        node = None if value is None else value.producer()
        if _is(node, op_type) and node is not None:
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


def _source(node: ir.Node | None, index: int) -> ir.Node | None:
    if node is None or index >= len(node.inputs):
        return None
    value = node.inputs[index]
    return None if value is None else value.producer()


def _is(node: ir.Node | None, op_type: str) -> bool:
    return node is not None and node.op_type == op_type and node.domain in ("", "ai.onnx")


def _users(value: ir.Value, op_type: str, index: int) -> list[ir.Node]:
    return [node for node in value.consumers() if _is(node, op_type) and node.inputs[index] is value]
