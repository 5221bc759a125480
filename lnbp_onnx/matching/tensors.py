# SPDX-License-Identifier: Apache-2.0
"""Tensors whose elements are polynomials, and the ways to view and combine them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from lnbp_onnx.matching.algebra import (
    NotExpressibleError,
    Polynomial,
    Symbol,
    constant,
    length,
    multiply,
    sum_over,
)

Axis: TypeAlias = tuple[Symbol, ...]
"""The symbols that index an axis, row-major; none for an axis of length 1."""


class SplitError(Exception):
    """A view that cuts through a symbol: it has to be two, of which the second has length `inner`."""

    def __init__(self, symbol: Symbol, inner: int) -> None:
        super().__init__()
        self.symbol = symbol
        self.inner = inner


@dataclass(frozen=True, slots=True)
class Tensor:
    """What one element is, and how the axes are indexed.

    Attributes:
        element: The element as a polynomial; it varies with symbols of the axes only.
        axes: The axes.
        is_exact: Whether the value is that polynomial; an integer type holds it truncated.
    """

    element: Polynomial
    axes: tuple[Axis, ...]
    is_exact: bool = True

    def __post_init__(self) -> None:
        labelled = [symbol for axis in self.axes for symbol in axis if symbol.name]
        if len(labelled) != len(set(labelled)):
            raise NotExpressibleError


@dataclass(frozen=True, slots=True)
class Lengths:
    """An integer scalar or vector that holds lengths of axes, or other numbers."""

    values: tuple[int | Axis, ...]
    is_scalar: bool = False


def axis_of(dim: int) -> Axis:
    """Return an axis of which only the length is known."""
    return () if dim == 1 else (Symbol("", dim),)


def static_length(axis: Iterable[Symbol]) -> int | None:
    """Return the length of an axis, None where it is not known."""
    product = 1
    for symbol in axis:
        if symbol.length is None:
            return None
        product *= symbol.length
    return product


def lengths_product(values: Iterable[int | Axis]) -> Polynomial:
    """Return the product of lengths."""
    product = constant(1)
    for value in values:
        for factor in [constant(value)] if isinstance(value, int) else map(length, value):
            product = multiply(product, factor)
    return product


def unify(a: Axis, b: Axis) -> Axis:
    """Return the axis that broadcasting two gives.

    Raises:
        NotExpressibleError: Where they are not known to be broadcast.
    """
    if a == b or not b:
        return a
    if not a:
        return b
    if len(a) == len(b) and all(
        x == y or ("" in (x.name, y.name) and x.length == y.length) for x, y in zip(a, b, strict=True)
    ):
        return tuple(x if x.name else y for x, y in zip(a, b, strict=True))
    for plain, other in ((a, b), (b, a)):
        if not any(symbol.name for symbol in plain) and static_length(plain) == static_length(other) is not None:
            return other
    raise NotExpressibleError


def broadcast(a: Sequence[Axis], b: Sequence[Axis]) -> tuple[Axis, ...]:
    """Return the axes that broadcasting two tensors gives."""
    rank = max(len(a), len(b))
    padded = [[()] * (rank - len(axes)) + list(axes) for axes in (a, b)]
    return tuple(unify(*pair) for pair in zip(*padded, strict=True))


def reduce(tensor: Tensor, axes: Iterable[int], keepdims: bool, mean: bool) -> Tensor:
    """Return the sum or mean over axes."""
    rank = len(tensor.axes)
    reduced = {axis % rank for axis in axes} if rank else set()
    symbols = [symbol for axis in reduced for symbol in tensor.axes[axis]]
    # Symbols without a name may be equal objects of two axes.
    element = sum_over(tensor.element, (symbol for symbol in symbols if symbol.name))
    for symbol in symbols:
        if not symbol.name:
            element = multiply(element, length(symbol))
    if mean:
        for symbol in symbols:
            if symbol.length == 0:
                raise NotExpressibleError
            element = multiply(element, _reciprocal_length(symbol))
    kept = [
        () if index in reduced else axis for index, axis in enumerate(tensor.axes) if keepdims or index not in reduced
    ]
    return Tensor(element, tuple(kept))


def _reciprocal_length(symbol: Symbol) -> Polynomial:
    if symbol.length is not None:
        return constant(Fraction(1, symbol.length))
    [(monomial, _)] = length(symbol).items()
    return {frozenset((each, -exponent) for each, exponent in monomial): 1}


def reshape(tensor: Tensor, target: Sequence[int | Axis]) -> Tensor:
    """Return the tensor with axes of the lengths in `target`, of which one may be -1: what is left.

    Raises:
        NotExpressibleError: Where it is not known which symbols an axis gets.
        SplitError: Where an axis gets a part of a symbol.
    """
    symbols = [symbol for axis in tensor.axes for symbol in axis]
    rest = [index for index, dim in enumerate(target) if dim == -1]
    if len(rest) > 1:
        raise NotExpressibleError
    cut = rest[0] if rest else len(target)
    axes: list[Axis] = []
    after: list[Axis] = []
    # Lengths are taken off the end where possible: a leading axis is the one that is often known at run time only.
    for dim in reversed(target[cut + 1 :]):
        axis = _take(symbols, dim, last=True)
        after.insert(0, axis)
    for dim in target[:cut]:
        axes.append(_take(symbols, dim, last=False))
    if rest:
        axes.append(tuple(symbols))
    elif symbols:
        raise NotExpressibleError
    return Tensor(tensor.element, (*axes, *after), tensor.is_exact)


def _take(symbols: list[Symbol], dim: int | Axis, *, last: bool) -> Axis:
    """Take the symbols of an axis of length `dim` off one end of a list."""
    taken: list[Symbol] = []
    if isinstance(dim, tuple):
        wanted = list(dim)
        found = symbols[len(symbols) - len(wanted) :] if last else symbols[: len(wanted)]
        if found == wanted:
            del symbols[len(symbols) - len(wanted) if last else 0 : len(symbols) if last else len(wanted)]
            return dim
        known = static_length(dim)
        if known is None:
            raise NotExpressibleError
        dim = known
    left = dim
    while left != 1:
        if not symbols:
            raise NotExpressibleError
        symbol = symbols[-1 if last else 0]
        if symbol.length is None or symbol.length == 0 or left == 0:
            raise NotExpressibleError
        if left % symbol.length:
            shared = math.gcd(left, symbol.length)
            inner = left if last else symbol.length // left
            if symbol.name and shared == left:
                raise SplitError(symbol, inner)
            raise NotExpressibleError
        symbols.pop(-1 if last else 0)
        taken.insert(0 if last else len(taken), symbol)
        left //= symbol.length
    return tuple(taken)
