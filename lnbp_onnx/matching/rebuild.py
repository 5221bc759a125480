# SPDX-License-Identifier: Apache-2.0
"""Recognising what this package itself wrote, by writing it again.

The standard operators that the operator becomes are read off around the reciprocal root to guess the operator's
inputs; then the body is built for them and looked up in the graph, node by node. That needs no knowledge of shapes,
where the algebra does: a body for shapes that are known only at run time is full of arithmetic on shapes.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lnbp_onnx import spec
from lnbp_onnx.body import build_body
from lnbp_onnx.errors import LnbpError
from lnbp_onnx.matching.evaluate import Infos, constant_tensor
from lnbp_onnx.matching.search import Gradient, Statistic
from lnbp_onnx.node import BackpropNode, TensorInfo, attribute_protos, parse

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


def rebuilt(rstd: ir.Node, infos: Infos, opset: int) -> Gradient | None:
    """Return the gradient whose body has the node `rstd` as its reciprocal root, None where there is none."""
    for parts in _parts(rstd):
        for x, axis in _rows_of(parts.x):
            for dy, _ in _rows_of(parts.dy):
                for gamma, mean, variance in itertools.product(
                    _stripped(parts.gamma, ("Reshape", "Expand", "Reshape", "Cast")),
                    _stripped(parts.mean, ("Reshape", "Cast")),
                    _stripped(parts.variance, ("Reshape", "Cast")),
                ):
                    inputs = [x, dy, gamma, None, mean, variance]
                    found = _look_up(inputs, axis, parts.epsilon, infos, opset, rstd.graph)
                    if found is not None:
                        return found
    return None


def is_rstd(node: ir.Node) -> bool:
    """Return whether the node may be the reciprocal root of a body."""
    return _is(node, "Reciprocal") and _is(_source(node, 0), "Sqrt")


def _look_up(
    inputs: list[ir.Value | None],
    axis: int,
    epsilon: float,
    infos: Infos,
    opset: int,
    graph: ir.Graph | ir.Function | None,
) -> Gradient | None:
    x, dy, gamma, _, mean, variance = inputs
    assert x is not None
    assert dy is not None
    lookup = _Lookup(inputs, axis, epsilon, infos, opset, graph)
    found = lookup.outputs()
    if found is None or not found[0]:
        return None
    if gamma is not None and not found[2]:
        for beta in _shaped_like(dy):
            other = _Lookup([x, dy, gamma, beta, mean, variance], axis, epsilon, infos, opset, graph)
            again = other.outputs()
            if again is not None and again[2]:
                found, lookup, inputs = again, other, [x, dy, gamma, beta, mean, variance]
                break
    outputs = dict(zip(spec.OUTPUT_NAMES, found, strict=True))
    statistic = None if variance is None else Statistic(variance, "variance")
    return Gradient(
        x,
        dy,
        gamma,
        mean,
        statistic,
        axis,
        epsilon,
        outputs,
        beta=inputs[3],
        is_shaped=True,
        inner=lookup.inner(),
    )


class _Lookup:
    """A body built anew, and where its values are in the graph."""

    def __init__(
        self,
        inputs: Sequence[ir.Value | None],
        axis: int,
        epsilon: float,
        infos: Infos,
        opset: int,
        graph: ir.Graph | ir.Function | None,
    ) -> None:
        self._graph = graph
        self._inputs = inputs
        self._axis = axis
        self._epsilon = epsilon
        self._infos = infos
        self._opset = opset
        # A body computes some lengths more than once, so that a value may be in several places.
        self._places: dict[ir.Value, list[ir.Value]] = {}

    def outputs(self) -> list[tuple[ir.Value, ...]] | None:
        """Return the graph's values for each output; None where nothing can be built."""
        placeholders = [
            None if value is None else ir.Value(name=name)
            for name, value in zip(spec.INPUT_NAMES, self._inputs, strict=True)
        ]
        counter = itertools.count()
        try:
            body = build_body(self._parse(), placeholders, self._opset, lambda name: f"{name}.{next(counter)}")
        except LnbpError:
            return None
        for placeholder, value in zip(placeholders, self._inputs, strict=True):
            if placeholder is not None and value is not None:
                self._places[placeholder] = [value]
        for node in body.nodes:
            self._place(node)
        return [() if value is None else tuple(self._places.get(value, ())) for value in body.outputs]

    def inner(self) -> tuple[ir.Value, ...]:
        """Return the values of the graph that are the body's."""
        return tuple(value for values in self._places.values() for value in values if value not in self._inputs)

    def _parse(self) -> BackpropNode:
        affine = self._inputs[2] is not None
        attributes = attribute_protos(self._axis, affine, self._epsilon, self._inputs[4] is not None)
        infos: list[TensorInfo | None] = [None if value is None else self._infos[value] for value in self._inputs]
        return parse("", attributes, infos, (True, affine, affine))

    def _place(self, node: ir.Node) -> None:
        known = [self._places[value] for value in node.inputs if value in self._places]
        placed = min(known, key=lambda values: sum(len(value.uses()) for value in values), default=[])
        found = {
            candidate.outputs[0]: None
            for value in placed
            for candidate in value.consumers()
            if candidate.graph is self._graph and self._is_same_node(node, candidate)
        }
        if found:
            self._places[node.outputs[0]] = list(found)

    def _is_same_node(self, node: ir.Node, candidate: ir.Node) -> bool:
        return (
            node.op_type == candidate.op_type
            and candidate.domain in ("", "ai.onnx")
            and len(node.inputs) == len(candidate.inputs)
            and _attributes(node) == _attributes(candidate)
            and all(self._is_same(*pair) for pair in zip(node.inputs, candidate.inputs, strict=True))
        )

    def _is_same(self, value: ir.Value | None, candidate: ir.Value | None) -> bool:
        if value is None or candidate is None:
            return value is candidate
        if value in self._places:
            return candidate in self._places[value]
        tensor, other = constant_tensor(value), constant_tensor(candidate)
        if tensor is not None or other is not None:
            return (
                tensor is not None
                and other is not None
                and tensor.dtype == other.dtype
                and tensor.shape == other.shape
                and not isinstance(other, ir.ExternalTensor)
                and tensor.tobytes() == other.tobytes()
            )
        node, candidate_node = value.producer(), candidate.producer()
        return node is not None and candidate_node is not None and self._is_same_node(node, candidate_node)


def _attributes(node: ir.Node) -> dict[str, object]:
    values: dict[str, object] = {}
    for name, attribute in node.attributes.items():
        if attribute.is_ref():
            values[name] = attribute
        elif attribute.type == ir.AttributeType.TENSOR:
            values[name] = attribute.as_tensor().tobytes()
        else:
            values[name] = tuple(attribute.value) if isinstance(attribute.value, list | tuple) else attribute.value
    # Reading a model and writing it may add an attribute that has its default value.
    if values.get("allowzero") == 0:
        del values["allowzero"]
    return values


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
