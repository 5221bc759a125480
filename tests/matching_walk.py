# SPDX-License-Identifier: Apache-2.0
"""What matching sees of a model's first gradient, from the anchor to the match; docs/matching.md explains it.

``python tests/matching_walk.py MODEL`` prints it.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from lnbp_onnx.graphs.typed_scopes import typed_scopes
from lnbp_onnx.matching.algebra import Atom, Base, Leaf, Length, Monomial, Polynomial, Rational, Sum, Symbol
from lnbp_onnx.matching.candidates import Candidate
from lnbp_onnx.matching.gradient import Gradient
from lnbp_onnx.matching.match import match
from lnbp_onnx.matching.operands import Operands
from lnbp_onnx.matching.search import Searcher
from lnbp_onnx.matching.value_numbering import ValueNumbering

INDICES = "ijklmnop"


def walk(path: Path) -> Iterator[str]:
    """Yield the lines."""
    model = ir.from_proto(onnx.load(path))
    scope, infos = next(iter(typed_scopes(model, lambda _: True)))
    numbering = ValueNumbering(scope.graph)
    searcher = Searcher(scope.graph, infos, numbering)
    anchors = filter(None, map(numbering.node, searcher.anchors()))
    anchor, candidate, gradient = next(
        (anchor, candidate, gradient)
        for anchor in anchors
        for candidate in searcher.candidates(anchor)
        if isinstance(candidate, Candidate) and isinstance(gradient := match(candidate), Gradient)
    )
    yield f"anchor: {anchor.op_type}({', '.join(value.name or '' for value in anchor.inputs if value is not None)})"
    for role, value in _named(gradient.operands):
        yield f"{role}: {value.name} {list(infos[value].shape or ())}"
    yield f"begin_norm_axis: {gradient.axis}"
    seen: list[Polynomial] = []
    for number, tensor in candidate.evaluation.tensors():
        values = numbering.values(number)
        if values and tensor.element not in seen:
            seen.append(tensor.element)
            axes = " ".join(_indices(axis) or "1" for axis in tensor.axes)
            lines = polynomial(tensor.element)
            yield f"{values[-1].name} [{axes}]"
            yield from (f"    {line}" for line in lines)
    for name, values in gradient.outputs.items():
        yield f"{name}: {', '.join(value.name or '' for value in values) or '-'}"


def _named(operands: Operands) -> Iterator[tuple[str, ir.Value]]:
    for role in ("x", "dy", "gamma", "mean"):
        value = getattr(operands, role)
        if value is not None:
            yield role, value
    if operands.statistic is not None:
        yield f"statistic ({operands.statistic.kind})", operands.statistic.value


def polynomial(terms: Polynomial) -> list[str]:
    """Write a polynomial, a line for each of its terms."""
    written = sorted((_monomial(monomial), factor) for monomial, factor in terms.items())
    return [f"{'-' if factor < 0 else '+'} {_times(factor, monomial)}" for monomial, factor in written]


def _times(factor: Rational, monomial: str) -> str:
    size = -factor if factor < 0 else factor
    return monomial if monomial and size == 1 else f"{size} {monomial}".rstrip()


def _monomial(monomial: Monomial) -> str:
    powers = sorted((_atom(each), exponent) for each, exponent in monomial)
    return " ".join(each if exponent == 1 else f"{each}^{exponent}" for each, exponent in powers)


def _atom(each: Atom) -> str:
    match each:
        case Leaf(name=name, symbols=symbols):
            return f"{name}[{_indices(symbols)}]"
        case Length(symbol=symbol):
            return f"length({_indices([symbol])})"
        case Sum(symbols=symbols, monomial=monomial):
            return f"sum_{_indices(symbols)}({_monomial(monomial)})"
        case Base(terms=terms):
            return f"({' '.join(polynomial(dict(terms)))})"


def _indices(symbols: Iterable[Symbol]) -> str:
    """Write symbols by one letter for each axis of x, and what is left of the name where that is split."""
    names = sorted(symbol.name for symbol in symbols if symbol.name)
    return "".join(INDICES[int(name.partition(".")[0])] + "".join(name.split(".")[1:]) for name in names)


if __name__ == "__main__":
    print("\n".join(walk(Path(sys.argv[1]))))
