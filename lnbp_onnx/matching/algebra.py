# SPDX-License-Identifier: Apache-2.0
"""Exact arithmetic on what a graph computes: sums of products of indexed quantities with rational coefficients.

A polynomial describes one element of a tensor. Its atoms are the elements of leaf tensors (`Leaf`), sums over index
symbols (`Sum`), lengths known only at run time (`Length`) and polynomials under a root or in a denominator (`Base`);
they have rational exponents. Two polynomials that are equal as objects describe equal elements; the converse holds
as far as the rules here go, which is enough to tell a gradient from what is none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import TypeAlias

_MOST_TERMS = 256
# Exact coefficients grow with exponents.
_LARGEST_EXPONENT = 64


class NotExpressibleError(Exception):
    """A result that this arithmetic has no form for."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """The index of an axis, or of a factor of one.

    Attributes:
        name: Its identity; "" for an axis along which nothing varies and that is known by its length only.
        length: Its length, None where it is known at run time only.
    """

    name: str
    length: int | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """An element of a leaf tensor, which varies with `symbols`; `is_positive` allows roots of it."""

    name: str
    symbols: frozenset[Symbol]
    is_positive: bool = False


@dataclass(frozen=True, slots=True)
class Length:
    """The length of an axis that is known at run time only."""

    symbol: Symbol


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of a monomial over symbols that each of its atoms depends on in part."""

    symbols: frozenset[Symbol]
    monomial: "Monomial"


@dataclass(frozen=True, slots=True)
class Base:
    """A polynomial of several terms that is raised to a power."""

    terms: frozenset[tuple["Monomial", Fraction]]


Atom: TypeAlias = Leaf | Length | Sum | Base
Monomial: TypeAlias = frozenset[tuple[Atom, Fraction]]
Polynomial: TypeAlias = dict[Monomial, Fraction]

_ONE: Monomial = frozenset()


def constant(value: Fraction | int) -> Polynomial:
    """Return a polynomial without atoms."""
    return {_ONE: Fraction(value)} if value else {}


def atom(value: Atom) -> Polynomial:
    """Return an atom as a polynomial."""
    return {frozenset([(value, Fraction(1))]): Fraction(1)}


def constant_value(polynomial: Polynomial) -> Fraction | None:
    """Return the value of a polynomial without atoms, None for another."""
    if not polynomial:
        return Fraction(0)
    return polynomial[_ONE] if set(polynomial) == {_ONE} else None


def length(symbol: Symbol) -> Polynomial:
    """Return a symbol's length."""
    return atom(Length(symbol)) if symbol.length is None else constant(symbol.length)


def depends_on(value: Atom | Monomial) -> frozenset[Symbol]:
    """Return the symbols that an atom or a monomial varies with."""
    match value:
        case Leaf():
            return value.symbols
        case Length():
            return frozenset()
        case Sum():
            return depends_on(value.monomial) - value.symbols
        case Base():
            return frozenset().union(*(depends_on(monomial) for monomial, _ in value.terms))
        case _:
            return frozenset().union(*(depends_on(each) for each, _ in value))


def add(a: Polynomial, b: Polynomial, factor: Fraction | int = 1) -> Polynomial:
    """Return a + factor * b."""
    total = dict(a)
    for monomial, coefficient in b.items():
        value = total.get(monomial, Fraction(0)) + factor * coefficient
        if value:
            total[monomial] = value
        else:
            total.pop(monomial, None)
    return _limited(total)


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """Return a * b.

    Raises:
        NotExpressibleError: Where the product has too many terms.
    """
    total: Polynomial = {}
    for monomial_a, coefficient_a in a.items():
        for monomial_b, coefficient_b in b.items():
            product = _product(monomial_a, monomial_b)
            total = add(total, product, coefficient_a * coefficient_b)
    return total


def divide(a: Polynomial, b: Polynomial) -> Polynomial:
    """Return a / b.

    Raises:
        NotExpressibleError: Where b is 0.
    """
    return multiply(a, power(b, Fraction(-1)))


def power(polynomial: Polynomial, exponent: Fraction) -> Polynomial:
    """Return the polynomial to a power.

    Raises:
        NotExpressibleError: For a root of what may be negative, a large exponent, and 0 to a power that is not
            positive.
    """
    if exponent.denominator == 1 and 0 < exponent <= 8:
        result = polynomial
        for _ in range(exponent.numerator - 1):
            result = multiply(result, polynomial)
        return result
    if exponent == 0 or abs(exponent) > _LARGEST_EXPONENT or not polynomial:
        raise NotExpressibleError
    if len(polynomial) > 1:
        return {frozenset([(Base(frozenset(polynomial.items())), exponent)]): Fraction(1)}
    [(monomial, coefficient)] = polynomial.items()
    if exponent.denominator != 1 and not _is_positive(monomial):
        raise NotExpressibleError
    raised = frozenset((each, own * exponent) for each, own in monomial)
    return {raised: _number_power(coefficient, exponent)}


def sum_over(polynomial: Polynomial, symbols: Iterable[Symbol]) -> Polynomial:
    """Return the sum over all values of `symbols`."""
    total: Polynomial = {}
    wanted = frozenset(symbols)
    for monomial, coefficient in polynomial.items():
        total = add(total, _sum_of_monomial(monomial, wanted), coefficient)
    return total


def _sum_of_monomial(monomial: Monomial, symbols: frozenset[Symbol]) -> Polynomial:
    factor = constant(1)
    # A symbol that nothing varies with multiplies by its length.
    for symbol in symbols - depends_on(monomial):
        factor = multiply(factor, length(symbol))
    varying = symbols & depends_on(monomial)
    if not varying:
        return multiply({monomial: Fraction(1)}, factor)
    outside = frozenset(item for item in monomial if not depends_on(item[0]) & varying)
    inside = monomial - outside
    if len(inside) == 1:
        [(only, exponent)] = inside
        if isinstance(only, Sum) and exponent == 1:
            return multiply({outside: Fraction(1)}, multiply(factor, atom(Sum(only.symbols | varying, only.monomial))))
    return multiply({outside: Fraction(1)}, multiply(factor, atom(Sum(varying, inside))))


def _product(a: Monomial, b: Monomial) -> Polynomial:
    exponents = dict(a)
    for each, exponent in b:
        exponents[each] = exponents.get(each, Fraction(0)) + exponent
    if any(abs(exponent) > _LARGEST_EXPONENT for exponent in exponents.values()):
        raise NotExpressibleError
    whole = [
        (each, exponent)
        for each, exponent in exponents.items()
        if isinstance(each, Base) and exponent > 0 and exponent.denominator == 1
    ]
    product: Polynomial = {
        frozenset(item for item in exponents.items() if item[1] and item not in whole): Fraction(1),
    }
    for base, exponent in whole:
        assert isinstance(base, Base)
        for _ in range(exponent.numerator):
            product = multiply(product, dict(base.terms))
    return product


def _is_positive(monomial: Monomial) -> bool:
    """Return whether all atoms are positive where a graph that takes a root of the monomial works."""
    bases = [exponent for each, exponent in monomial if isinstance(each, Base)]
    others = [each for each, _ in monomial if not isinstance(each, Base)]
    # The root of (1 / d)^2 works where d is negative, and is 1 / |d|; so does that of a product of two.
    return (
        len(bases) <= 1
        and all(exponent.numerator % 2 for exponent in bases)
        and all(isinstance(each, Length) or (isinstance(each, Leaf) and each.is_positive) for each in others)
    )


def _number_power(value: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 1:
        return value**exponent.numerator
    if exponent.denominator == 2 and value > 0:
        roots = isqrt(value.numerator), isqrt(value.denominator)
        if roots[0] ** 2 == value.numerator and roots[1] ** 2 == value.denominator:
            return Fraction(*roots) ** exponent.numerator
    raise NotExpressibleError


def _limited(polynomial: Polynomial) -> Polynomial:
    if len(polynomial) > _MOST_TERMS:
        raise NotExpressibleError
    return polynomial
