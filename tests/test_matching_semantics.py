# SPDX-License-Identifier: Apache-2.0
"""What matching takes operators to mean, against ONNX's evaluator on random numbers; and the algebra beneath."""

import itertools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from lnbp_onnx.graphs.inference import Functions, infer
from lnbp_onnx.matching.algebra import (
    Atom,
    Base,
    Leaf,
    Length,
    Monomial,
    NotExpressibleError,
    Polynomial,
    Sum,
    Symbol,
    add,
    atom,
    constant,
    constant_value,
    difference,
    divide,
    multiply,
    power,
    sum_over,
)
from lnbp_onnx.matching.constants import Constants
from lnbp_onnx.matching.evaluation import Evaluation
from lnbp_onnx.matching.known_graph import KnownGraph
from lnbp_onnx.matching.leaves import leaf
from lnbp_onnx.matching.rows_and_columns import split_axis
from lnbp_onnx.matching.semantics import SEMANTICS, Known
from lnbp_onnx.matching.tensors import Axis, Lengths, SplitError, Tensor, broadcast, reshape, unify
from lnbp_onnx.matching.value_numbering import ValueNumbering
from lnbp_onnx.matching.work import Work

SHAPES = {"a": (2, 3), "b": (3,)}
CONSTANTS = {
    "half": np.array(0.5),
    "two": np.array([2]),
    "third": np.full((1, 3), 1 / 3),
    "zero": np.array([0]),
    "one": np.array([1]),
    "last": np.array([-1]),
    "first": np.array(0),
    "both": np.array([0, 1]),
    "flat": np.array([-1]),
    "kept": np.array([0, 1, -1]),
    "column": np.array([-1, 1]),
    "cut": np.array([3, 2]),
    "wide": np.array([4, 2, 3]),
}
ROWS = [
    "y = Identity(a)",
    "y = Cast<to: int = 11>(a)",
    "y = Add(a, b)",
    "y = Add(a, half)",
    "y = Sub(b, a)",
    "y = Mul(a, b)",
    "y = Mul(a, third)",
    "y = Div(b, a)",
    "y = Sum(a, b, a)",
    "y = Neg(a)",
    "y = Reciprocal(a)",
    "s = Add(a, b); y = Reciprocal(s)",
    "y = Sqrt(a)",
    "s = Sum(a, b); r = Sqrt(s); y = Div(b, r)",
    "y = Pow(a, two)",
    "y = Pow(a, half)",
    "y = ReduceSum<keepdims: int = 0>(a, one)",
    "y = ReduceSum(b)",
    "p = Mul(a, b); y = ReduceSum(p, both)",
    "y = ReduceMean(a, last)",
    "y = ReduceSumSquare<keepdims: int = 0>(a, zero)",
    "y = MatMul(a, b)",
    "r = Reshape(b, column); y = MatMul(a, r)",
    "y = Transpose<perm: ints = [1, 0]>(a)",
    "y = Reshape(a, flat)",
    "y = Reshape(a, kept)",
    "t = Transpose(a); s = Shape(t); y = Reshape(t, s)",
    "y = Flatten<axis: int = 0>(a)",
    "s = ReduceSum(a, one); y = Squeeze(s, one)",
    "y = Unsqueeze(a, both)",
    "y = Expand(b, wide)",
    "y = Shape(a)",
    "y = Shape<start: int = 1>(a)",
    "y = Size(a)",
    "s = Shape(a); y = Gather(s, first)",
    "s = Shape(a); y = Slice(s, one, two)",
    "s = Shape(a); y = Concat<axis: int = 0>(s, two)",
    "s = Shape(a); n = Gather(s, last); c = Cast<to: int = 11>(n); t = ReduceSum(a, last); y = Div(t, c)",
    "s = Shape(a); y = ConstantOfShape(s)",
]
STATIC = ["y = Expand(b, wide)", "y = Mul(a, third)"]
"""What has no meaning where lengths are known at run time only."""


def follow(text: str, is_static: bool) -> tuple[onnx.ModelProto, dict[str, Tensor], Known | None]:
    """Return a model, its inputs as leaves, and what y is."""
    symbols = {2: Symbol("i", 2 if is_static else None), 3: Symbol("j", 3 if is_static else None)}
    nodes = [onnx.parser.parse_node(each) for each in text.split(";")]
    used = {name for node in nodes for name in node.input}
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.DOUBLE, [dim if is_static else symbols[dim].name for dim in shape]
        )
        for name, shape in SHAPES.items()
    ]
    initializers = [onnx.numpy_helper.from_array(CONSTANTS[name], name) for name in CONSTANTS.keys() & used]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info("y")], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    read = ir.from_proto(model)
    infos = infer(read.graph, Functions(()), read.opset_imports)
    known = KnownGraph(infos, Constants(infos), ValueNumbering(read.graph), Work(len(infos)))
    leaves = {}
    for value in read.graph.inputs:
        axes = tuple((symbols[dim],) for dim in SHAPES[value.name or ""])
        leaves[value] = Tensor(leaf(value.name or "", axes, is_positive=True), axes)
    evaluation = Evaluation(leaves, known)
    [output] = read.graph.outputs
    found = evaluation.known.get(known.numbering.number(output)) or known.constants.get(output)
    return model, {value.name or "": tensor for value, tensor in leaves.items()}, found


class Numbers:
    """The numbers that leaves stand for."""

    def __init__(self, arrays: Mapping[str, Any], leaves: Mapping[str, Tensor]) -> None:
        self._arrays = arrays
        self._order = {name: [axis[0].name for axis in tensor.axes] for name, tensor in leaves.items()}

    def length(self, symbol: Symbol) -> int:
        return {"i": 2, "j": 3}[symbol.name] if symbol.length is None else symbol.length

    def of_lengths(self, lengths: Lengths) -> Any:
        values = [each if isinstance(each, int) else self._size(each) for each in lengths.values]
        return np.array(values[0] if lengths.is_scalar else values)

    def of_tensor(self, tensor: Tensor) -> Any:
        named = list(dict.fromkeys(symbol for axis in tensor.axes for symbol in axis if symbol.name))
        array = np.empty([self.length(symbol) for symbol in named])
        for index in np.ndindex(*array.shape):
            at = {symbol.name: each for symbol, each in zip(named, index, strict=True)}
            array[index] = self._polynomial(tensor.element, at)
        # An axis without a name is one along which nothing varies.
        kept = [dim for axis in tensor.axes for dim in ([self.length(s) if s.name else 1 for s in axis] or [1])]
        whole = [self.length(s) for axis in tensor.axes for s in (axis or [Symbol("", 1)])]
        return np.broadcast_to(array.reshape(kept), whole).reshape([self._size(axis) for axis in tensor.axes])

    def _size(self, axis: Axis) -> int:
        return math.prod(map(self.length, axis))

    def _polynomial(self, polynomial: Polynomial, at: Mapping[str, int]) -> float:
        return sum(float(factor) * self._monomial(monomial, at) for monomial, factor in polynomial.items())

    def _monomial(self, monomial: Monomial, at: Mapping[str, int]) -> float:
        return math.prod(self._atom(each, at) ** float(exponent) for each, exponent in monomial)

    def _atom(self, each: Atom, at: Mapping[str, int]) -> float:
        match each:
            case Leaf(name=name):
                return float(self._arrays[name][tuple(at[symbol] for symbol in self._order[name])])
            case Length(symbol=symbol):
                return self.length(symbol)
            case Sum(symbols=symbols, monomial=monomial):
                ranges = [range(self.length(symbol)) for symbol in symbols]
                names = [symbol.name for symbol in symbols]
                return sum(
                    self._monomial(monomial, {**at, **dict(zip(names, index, strict=True))})
                    for index in itertools.product(*ranges)
                )
            case Base(terms=terms):
                return self._polynomial(dict(terms), at)


@pytest.mark.parametrize("is_static", [True, False])
@pytest.mark.parametrize("text", ROWS)
def test_meaning(text: str, is_static: bool) -> None:
    model, leaves, found = follow(text, is_static)
    if not is_static and text in STATIC:
        assert found is None
        return
    assert found is not None
    rng = np.random.default_rng(1)
    arrays = {name: rng.uniform(0.5, 2, shape) for name, shape in SHAPES.items()}
    (expected,) = cast("list[np.ndarray]", ReferenceEvaluator(model).run(None, arrays))
    numbers = Numbers(arrays, leaves)
    result = numbers.of_lengths(found) if isinstance(found, Lengths) else numbers.of_tensor(found)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=1e-12)


def test_every_operator_has_a_row() -> None:
    rows = {onnx.parser.parse_node(each).op_type for text in ROWS for each in text.split(";")}
    assert rows == SEMANTICS.keys()


@pytest.mark.parametrize(
    "text",
    [
        "c = Cast<to: int = 7>(a); d = Cast<to: int = 11>(c); y = Add(d, b)",
        "t = Transpose(a); y = MatMul(a, t)",
        "y = Reshape(a, cut)",
        "y = Pow(a, b)",
        "y = Exp(a)",
    ],
)
def test_what_is_not_followed(text: str) -> None:
    """Truncated numbers, two axes with one index, a view across axes, a variable exponent, other functions."""
    assert follow(text, True)[2] is None


# The algebra

ROW, COLUMN, RUNTIME = Symbol("i", 2), Symbol("j", 3), Symbol("k", None)
A, B, C = (atom(Leaf(name, frozenset(symbols))) for name, symbols in (("a", [ROW]), ("b", [COLUMN]), ("c", [])))
POSITIVE = atom(Leaf("p", frozenset([ROW]), is_positive=True))


def test_products_are_multiplied_out() -> None:
    square = add(add(multiply(A, A), multiply(A, B), 2), multiply(B, B))
    assert multiply(add(A, B), add(A, B)) == square == power(add(A, B), Fraction(2))
    assert multiply(add(A, B), add(A, B, -1)) == add(multiply(A, A), multiply(B, B), -1)


def test_roots_and_reciprocals_of_sums() -> None:
    radicand = add(multiply(A, A), constant(Fraction(1, 4)))
    root = power(radicand, Fraction(1, 2))
    assert multiply(root, root) == radicand
    assert divide(root, radicand) == power(radicand, Fraction(-1, 2))
    assert multiply(root, power(radicand, Fraction(-1, 2))) == constant(1)
    assert power(power(radicand, Fraction(-1, 2)), Fraction(-2)) == radicand


def test_sums() -> None:
    assert sum_over(multiply(A, B), [ROW]) == multiply(B, sum_over(A, [ROW]))
    assert sum_over(C, [ROW, COLUMN]) == multiply(C, constant(6))
    assert sum_over(sum_over(multiply(power(add(A, B), Fraction(-1)), C), [ROW]), [COLUMN]) == multiply(
        C, sum_over(power(add(A, B), Fraction(-1)), [COLUMN, ROW])
    )
    assert sum_over(C, [RUNTIME]) == multiply(C, atom(Length(RUNTIME)))


def test_numbers_stay_exact() -> None:
    assert constant_value(power(constant(3), -1)) == Fraction(1, 3)
    assert constant_value(power(constant(Fraction(9, 4)), Fraction(-3, 2))) == Fraction(8, 27)
    assert constant_value(divide(multiply(constant(6), C), multiply(constant(4), C))) == Fraction(3, 2)
    assert difference(add(A, constant(Fraction(1, 3))), A) == Fraction(1, 3)
    assert difference(A, add(A, B)) is None
    assert difference(A, multiply(A, constant(2))) is None


@pytest.mark.parametrize(
    ("polynomial", "exponent"),
    [(A, Fraction(1, 2)), ({}, Fraction(-1)), (constant(2), Fraction(1, 2)), (A, Fraction(65)), (A, Fraction(0))],
)
def test_powers_without_a_form(polynomial: Polynomial, exponent: Fraction) -> None:
    with pytest.raises(NotExpressibleError):
        power(polynomial, exponent)


def test_root_of_what_is_positive() -> None:
    assert power(power(POSITIVE, Fraction(1, 2)), Fraction(2)) == POSITIVE


# Axes


def test_reshape_that_cuts_a_symbol_says_where() -> None:
    six = Symbol("n", 6)
    tensor = Tensor(leaf("a", [(six,)]), ((six,),))
    with pytest.raises(SplitError) as error:
        reshape(tensor, [2, 3])
    assert (error.value.symbol, error.value.inner) == (six, 3)
    axis = split_axis((six,), error.value)
    assert [symbol.length for symbol in axis] == [2, 3]
    split = reshape(Tensor(leaf("a", [axis]), (axis,)), [2, 3])
    assert split.axes == ((axis[0],), (axis[1],))
    assert reshape(split, [-1]).axes == (axis,)


def test_reshape_takes_the_rest() -> None:
    tensor = Tensor(leaf("a", [(RUNTIME,), (ROW,), (COLUMN,)]), ((RUNTIME,), (ROW,), (COLUMN,)))
    assert reshape(tensor, [-1, 3]).axes == ((RUNTIME, ROW), (COLUMN,))
    assert reshape(tensor, [-1, 1, 6]).axes == ((RUNTIME,), (), (ROW, COLUMN))
    with pytest.raises(NotExpressibleError):
        reshape(tensor, [-1, 4])
    with pytest.raises(NotExpressibleError):
        reshape(tensor, [-1, -1])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((ROW,), (ROW,), (ROW,)),
        ((ROW,), (), (ROW,)),
        ((ROW,), (Symbol("", 2),), (ROW,)),
        ((Symbol("", 6),), (ROW, COLUMN), (ROW, COLUMN)),
        ((ROW,), (COLUMN,), None),
        ((RUNTIME,), (Symbol("", 2),), None),
        ((Symbol("n", 2),), (ROW,), None),
    ],
)
def test_unify(a: Axis, b: Axis, expected: Axis | None) -> None:
    for pair in ((a, b), (b, a)):
        if expected is None:
            with pytest.raises(NotExpressibleError):
                unify(*pair)
        else:
            assert unify(*pair) == expected


def test_broadcast_pads_on_the_left() -> None:
    assert broadcast([(ROW,), (COLUMN,)], [(COLUMN,)]) == ((ROW,), (COLUMN,))
