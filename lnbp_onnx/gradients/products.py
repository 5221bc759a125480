# SPDX-License-Identifier: Apache-2.0
"""Products of matrices."""

import string
from collections.abc import Sequence

import onnx_ir as ir

from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients
from lnbp_onnx.node import Dim
from lnbp_onnx.training_ops.broadcasting import summed_to


def matmul(g: GradientOp) -> Gradients:
    """dA = dY B^T, dB = A^T dY, each summed over the axes along which its matrices were broadcast."""
    a, b, dy = g.input(0), g.input(1), g.dy
    ranks = [g.rank(a), g.rank(b)]
    if ranks == [2, 2]:
        return [
            g.op("Gemm", dy, b, transB=1) if g.wants(0) else None,
            g.op("Gemm", a, dy, transA=1) if g.wants(1) else None,
        ]
    if ranks[1] == 2 and ranks[0] > 2:
        flat = _matrix(g, dy, ranks[0])
        return [
            g.shaped_like(g.op("Gemm", flat, b, transB=1), a) if g.wants(0) else None,
            g.op("Gemm", _matrix(g, a, ranks[0]), flat, transA=1) if g.wants(1) else None,
        ]
    # A vector is a matrix of one row or column.
    left = g.unsqueeze(a, 0) if ranks[0] == 1 else a
    right = g.unsqueeze(b, -1) if ranks[1] == 1 else b
    if ranks[1] == 1:
        dy = g.unsqueeze(dy, -1)
    if ranks[0] == 1:
        dy = g.unsqueeze(dy, -2)
    # The lengths of the matrices are those of their gradients, known or not.
    shapes = [
        [f"unknown {axis}" if dim is None else dim for axis, dim in enumerate(g.info(value).shape or ())]
        for value in (a, b)
    ]
    batch = _batch(g, ranks)
    da = db = None
    if g.wants(0):
        da = g.op("MatMul", dy, _transposed(g, right, max(ranks[1], 2)))
        rows = shapes[0] if ranks[0] > 1 else [1, *shapes[0]]
        if ranks[0] == 1:
            da = summed_to(g, da, left, tuple(rows), None if batch is None else (*batch, *rows[-2:]))
            da = g.squeeze(da, 0)
        else:
            da = summed_to(g, da, a, tuple(rows), None if batch is None else (*batch, *rows[-2:]))
    if g.wants(1):
        columns = shapes[1] if ranks[1] > 1 else [*shapes[1], 1]
        if ranks[1] == 1 and ranks[0] > 2:
            db = g.op("Gemm", _matrix(g, a, ranks[0]), _matrix(g, dy, ranks[0]), transA=1)
        else:
            db = g.op("MatMul", _transposed(g, left, max(ranks[0], 2)), dy)
            db = summed_to(g, db, right, tuple(columns), None if batch is None else (*batch, *columns[-2:]))
        if ranks[1] == 1:
            db = g.squeeze(db, -1)
    return [da, db]


def _matrix(g: GradientOp, value: ir.Value, rank: int) -> ir.Value:
    """Return a value as a matrix of its last axis."""
    # Reshape could not find a length where another one is 0.
    return g.op("Flatten", value, axis=rank - 1)


def _batch(g: GradientOp, ranks: list[int]) -> list[int | str | None] | None:
    """Return the lengths of the result's axes before the matrices'."""
    shape = g.info(g.node.outputs[0]).shape
    if shape is None:
        return None
    return list(shape[: len(shape) - sum(rank > 1 for rank in ranks)])


def _transposed(g: GradientOp, value: ir.Value, rank: int) -> ir.Value:
    return g.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def gemm(g: GradientOp) -> Gradients:
    """For Y = alpha A' B' + beta C: dA' = alpha dY B'^T, dB' = alpha A'^T dY, dC = beta dY, summed as broadcast."""
    a, b, dy = g.input(0), g.input(1), g.dy
    alpha, beta = g.attribute("alpha", 1.0), g.attribute("beta", 1.0)
    flip_a, flip_b = g.attribute("transA", 0), g.attribute("transB", 0)
    da = db = dc = None
    if g.wants(0):
        if flip_a:
            da = g.op("Gemm", b, dy, alpha=alpha, transA=flip_b, transB=1)
        else:
            da = g.op("Gemm", dy, b, alpha=alpha, transB=1 - flip_b)
    if g.wants(1):
        if flip_b:
            db = g.op("Gemm", dy, a, alpha=alpha, transA=1, transB=flip_a)
        else:
            db = g.op("Gemm", a, dy, alpha=alpha, transA=1 - flip_a)
    if g.wants(2):
        dc = g.unbroadcast(dy, g.input(2))
        dc = dc if beta == 1.0 else g.op("Mul", dc, g.number(beta))
    return [da, db, dc]


def einsum(g: GradientOp) -> Gradients:
    """dY and the other operands, summed to the letters of the one; 0 off the diagonal of a letter that it repeats.

    The gradient is expanded along letters that only this operand has, and summed along those of which it has one.
    """
    equation = str(g.attribute("equation", "")).replace(" ", "")
    terms, result = _terms(g, equation)
    operands = [g.input(index) for index in range(len(terms))]
    gradients: list[ir.Value | None] = []
    for index, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        if not g.wants(index):
            gradients.append(None)
            continue
        others = [(terms[i], each) for i, each in enumerate(operands) if i != index]
        lengths = _lengths(g, [(result, g.node.outputs[0]), *others])
        letters, eyes = _distinct(g, equation, term, operand)
        factors = [(result, g.dy), *others, *eyes]
        kept = "".join(letter for letter in letters if any(letter in each for each, _ in factors))
        lefts = ",".join(each for each, _ in factors)
        value = g.op("Einsum", *(factor for _, factor in factors), equation=f"{lefts}->{kept}")
        for axis, letter in enumerate(letters):
            if letter not in kept:
                value = g.unsqueeze(value, axis)
        shape = g.info(operand).shape
        own: Sequence[Dim] = shape or [None] * len(letters)
        of_value = [lengths.get(letter, dim) for letter, dim in zip(letters, own, strict=True)]
        may_be_longer = any(
            dim != 1 and (dim is None or dim != length) for dim, length in zip(own, of_value, strict=True)
        )
        if kept != letters or may_be_longer:
            value = g.op("Expand", value, g.shape_of(operand))
            of_value = [dim if length == 1 else length for dim, length in zip(own, of_value, strict=True)]
        gradients.append(summed_to(g, value, operand, shape, of_value))
    return gradients


def _terms(g: GradientOp, equation: str) -> tuple[list[str], str]:
    """Return the letters of each operand and of the result, with letters of their own for the axes of an ellipsis."""
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    if len(terms) != len(g.node.inputs):
        g.refuse(f"its equation {equation!r} has {len(terms)} operands, and the node {len(g.node.inputs)}")
    unused = [letter for letter in string.ascii_letters if letter not in equation]
    ranks = {g.rank(g.input(index)) - len(term.replace("...", "")) for index, term in enumerate(terms) if "..." in term}
    longest = max(ranks, default=0)
    ellipsis = "".join(unused[:longest])
    if not arrow:
        letters = operands.replace(",", "").replace(".", "")
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        result = ("..." if ranks else "") + "".join(once)
    if len(set(result)) < len(result.replace("...", ".")):
        g.refuse(f"its equation {equation!r} repeats a letter in the result, which is not covered")
    written = []
    for index, term in enumerate(terms):
        axes = g.rank(g.input(index)) - len(term.replace("...", "")) if "..." in term else 0
        written.append(term.replace("...", ellipsis[longest - axes :]))
    return written, result.replace("...", ellipsis)


def _lengths(g: GradientOp, factors: Sequence[tuple[str, ir.Value]]) -> dict[str, Dim]:
    """Return how long the axis of each letter is where factors of one element are broadcast; None for what is open."""
    lengths: dict[str, Dim] = {}
    for term, value in factors:
        shape = g.info(value).shape
        for letter, dim in zip(term, [None] * len(term) if shape is None else shape, strict=False):
            known = lengths.get(letter, 1)
            if known == 1 or isinstance(dim, int):
                lengths[letter] = known if dim == 1 else dim
            elif not isinstance(known, int) and dim != known:
                lengths[letter] = None
    return lengths


def _distinct(g: GradientOp, equation: str, term: str, operand: ir.Value) -> tuple[str, list[tuple[str, ir.Value]]]:
    """Return a term without repeated letters, and the identity matrices that tie its new letters to the old ones."""
    unused = [letter for letter in reversed(string.ascii_letters) if letter not in equation]
    letters = ""
    eyes: list[tuple[str, ir.Value]] = []
    for axis, letter in enumerate(term):
        if letter not in letters:
            letters += letter
            continue
        other = unused[len(eyes)]
        length = g.part(g.shape_of(operand), axis, axis + 1)
        zeros = g.filled(g.joined(length, length), 0.0, ir.DataType.FLOAT)
        eyes.append((letter + other, g.cast(g.op("EyeLike", zeros), g.element_type(operand))))
        letters += other
    return letters, eyes
