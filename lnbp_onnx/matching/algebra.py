# SPDX-License-Identifier: Apache-2.0
"""Exact arithmetic on what a graph computes: sums of products of indexed quantities with rational coefficients.

A polynomial describes one element of a tensor. Its atoms are the elements of leaf tensors (`Leaf`), sums over index
symbols (`Sum`), lengths known only at run time (`Length`) and polynomials under a root or in a denominator (`Base`);
they have rational exponents. Two polynomials that are equal as objects describe equal elements; the converse holds
as far as the rules here go, which is enough to tell a gradient from what is none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import isqrt
from typing import TypeAlias, TypeVar

_MOST_TERMS = 256
# Exact coefficients grow with exponents, and with each product.
_LARGEST_EXPONENT = 64
_MOST_BITS = 1 << 12
# Of the atoms in a sum or a base, those in these included: comparing two may look at each of them.
_MOST_ATOMS = 512
# The same few monomials are asked about again and again.
_KEPT_ANSWERS = 1 << 12


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

    terms: frozenset[tuple["Monomial", "Rational"]]


Rational: TypeAlias = Fraction | int
"""A number; a Fraction equals the int that it may be, and is several times slower."""
Atom: TypeAlias = Leaf | Length | Sum | Base
Monomial: TypeAlias = frozenset[tuple[Atom, Rational]]
Polynomial: TypeAlias = dict[Monomial, Rational]

_ONE: Monomial = frozenset()


def constant(value: Rational) -> Polynomial:
    """Return a polynomial without atoms."""
    return {_ONE: _simple(value)} if value else {}


def atom(value: Atom) -> Polynomial:
    """Return an atom as a polynomial."""
    return {frozenset([(value, 1)]): 1}


def constant_value(polynomial: Polynomial) -> Rational | None:
    """Return the value of a polynomial without atoms, None for another."""
    if not polynomial:
        return 0
    return polynomial.get(_ONE) if len(polynomial) == 1 else None


def difference(a: Polynomial, b: Polynomial) -> Rational | None:
    """Return a - b where that is a number, None otherwise."""
    if a.keys() - {_ONE} != b.keys() - {_ONE} or any(a[each] != b[each] for each in b if each != _ONE):
        return None
    return a.get(_ONE, 0) - b.get(_ONE, 0)


def length(symbol: Symbol) -> Polynomial:
    """Return a symbol's length."""
    return atom(Length(symbol)) if symbol.length is None else constant(symbol.length)


@lru_cache(_KEPT_ANSWERS)
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


def add(a: Polynomial, b: Polynomial, factor: Rational = 1) -> Polynomial:
    """Return a + factor * b."""
    total = dict(a)
    _accumulate(total, b, factor)
    return total


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """Return a * b.

    Raises:
        NotExpressibleError: Where the product has too many terms, or too many atoms in one.
    """
    total: Polynomial = {}
    for monomial_a, coefficient_a in a.items():
        for monomial_b, coefficient_b in b.items():
            _accumulate(total, _product(monomial_a, monomial_b), coefficient_a * coefficient_b)
    return total


def _accumulate(total: Polynomial, terms: Polynomial, factor: Rational) -> None:
    """Add factor * terms to a total in its place."""
    for monomial, coefficient in terms.items():
        value = _simple(total.get(monomial, 0) + factor * coefficient)
        if value.numerator.bit_length() + value.denominator.bit_length() > _MOST_BITS:
            raise NotExpressibleError
        if value:
            total[monomial] = value
        else:
            total.pop(monomial, None)
    if len(total) > _MOST_TERMS:
        raise NotExpressibleError


def _is_small(exponent: Rational) -> bool:
    return -_LARGEST_EXPONENT <= exponent <= _LARGEST_EXPONENT


def _simple(value: Rational) -> Rational:
    return value.numerator if value.denominator == 1 else value


def divide(a: Polynomial, b: Polynomial) -> Polynomial:
    """Return a / b.

    Raises:
        NotExpressibleError: Where b is 0.
    """
    return multiply(a, power(b, -1))


def power(polynomial: Polynomial, exponent: Rational) -> Polynomial:
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
    if exponent == 0 or not _is_small(exponent) or not polynomial:
        raise NotExpressibleError
    if len(polynomial) > 1:
        base = _of_few_atoms(Base(frozenset(polynomial.items())))
        return _expanded({base: _simple(exponent)})
    [(monomial, coefficient)] = polynomial.items()
    if exponent.denominator != 1 and not _is_positive(monomial):
        raise NotExpressibleError
    raised = _expanded({each: _simple(own * exponent) for each, own in monomial})
    return multiply(raised, {_ONE: _number_power(coefficient, exponent)})


def sum_over(polynomial: Polynomial, symbols: Iterable[Symbol]) -> Polynomial:
    """Return the sum over all values of `symbols`."""
    total: Polynomial = {}
    wanted = frozenset(symbols)
    for monomial, coefficient in polynomial.items():
        _accumulate(total, _sum_of_monomial(monomial, wanted), coefficient)
    return total


def _sum_of_monomial(monomial: Monomial, symbols: frozenset[Symbol]) -> Polynomial:
    factor = constant(1)
    # A symbol that nothing varies with multiplies by its length.
    for symbol in symbols - depends_on(monomial):
        factor = multiply(factor, length(symbol))
    varying = symbols & depends_on(monomial)
    if not varying:
        return multiply({monomial: 1}, factor)
    outside = frozenset(item for item in monomial if not depends_on(item[0]) & varying)
    inside = monomial - outside
    if len(inside) == 1:
        [(only, exponent)] = inside
        if isinstance(only, Sum) and exponent == 1:
            return multiply({outside: 1}, multiply(factor, atom(Sum(only.symbols | varying, only.monomial))))
    return multiply({outside: 1}, multiply(factor, atom(_of_few_atoms(Sum(varying, inside)))))


def _product(a: Monomial, b: Monomial) -> Polynomial:
    if not a or not b:
        return {a or b: 1}
    exponents = dict(a)
    for each, exponent in b:
        exponents[each] = _simple(exponents.get(each, 0) + exponent)
    if len(exponents) > _MOST_ATOMS or not all(map(_is_small, exponents.values())):
        raise NotExpressibleError
    return _expanded(exponents)


def _expanded(exponents: Mapping[Atom, Rational]) -> Polynomial:
    """Return a product of powers, with the whole positive powers of sums multiplied out."""
    whole: list[tuple[Base, int]] = []
    others: list[tuple[Atom, Rational]] = []
    for each, exponent in exponents.items():
        if isinstance(each, Base) and isinstance(exponent, int) and exponent > 0:
            whole.append((each, exponent))
        elif exponent:
            others.append((each, exponent))
    product: Polynomial = {frozenset(others): 1}
    for base, exponent in whole:
        for _ in range(exponent):
            product = multiply(product, dict(base.terms))
    return product


_Nested = TypeVar("_Nested", Sum, Base)


def _of_few_atoms(nested: _Nested) -> _Nested:
    """Return an atom that holds others, where these are few."""
    pending: list[Atom] = [nested]
    count = 0
    while pending:
        count += 1
        if count > _MOST_ATOMS:
            raise NotExpressibleError
        match pending.pop():
            case Sum(monomial=monomial):
                pending += [each for each, _ in monomial]
            case Base(terms=terms):
                pending += [each for monomial, _ in terms for each, _ in monomial]
    return nested


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


def _number_power(value: Rational, exponent: Rational) -> Rational:
    if exponent.denominator == 1:
        if (value.numerator.bit_length() + value.denominator.bit_length()) * abs(exponent.numerator) > _MOST_BITS:
            raise NotExpressibleError
        return _simple(Fraction(value) ** exponent.numerator)
    if exponent.denominator == 2 and value > 0:
        roots = isqrt(value.numerator), isqrt(value.denominator)
        if roots[0] ** 2 == value.numerator and roots[1] ** 2 == value.denominator:
            return _simple(Fraction(*roots) ** exponent.numerator)
    raise NotExpressibleError
