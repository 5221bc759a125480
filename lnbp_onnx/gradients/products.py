# SPDX-License-Identifier: Apache-2.0
"""Products of matrices."""

import onnx_ir as ir

from lnbp_onnx.gradients.gradient_op import GradientOp, Gradients
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
        if ranks[1] <= 2 and ranks[0] > 2:
            width = g.part(g.shape_of(right), 0, 1), g.part(g.shape_of(right), 1, 2)
            db = g.op(
                "Gemm",
                g.op("Reshape", left, g.joined(g.ints(-1), width[0])),
                g.op("Reshape", dy, g.joined(g.ints(-1), width[1])),
                transA=1,
            )
        else:
            db = g.op("MatMul", _transposed(g, left, max(ranks[0], 2)), dy)
            db = summed_to(g, db, right, tuple(columns), None if batch is None else (*batch, *columns[-2:]))
        if ranks[1] == 1:
            db = g.squeeze(db, -1)
    return [da, db]


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
    """Of one or two operands: dY and the other operand, summed to the letters of the one.

    The gradient is expanded along letters that only this operand has.
    """
    equation = str(g.attribute("equation", "")).replace(" ", "")
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    if not arrow:
        letters = operands.replace(",", "")
        result = "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    if len(terms) > 2 or "." in equation or any(len(set(term)) < len(term) for term in (*terms, result)):
        g.refuse(f"its equation is {equation!r}; one or two operands without ellipses and repeated letters are covered")
    _refuse_broadcast(g, terms)
    gradients: list[ir.Value | None] = []
    for index, term in enumerate(terms):
        if not g.wants(index):
            gradients.append(None)
            continue
        others = [(terms[1 - index], g.input(1 - index))] if len(terms) == 2 else []
        factors = [(result, g.dy), *others]
        kept = "".join(letter for letter in term if any(letter in letters for letters, _ in factors))
        lefts = ",".join(letters for letters, _ in factors)
        value = g.op("Einsum", *(factor for _, factor in factors), equation=f"{lefts}->{kept}")
        for axis, letter in enumerate(term):
            if letter not in kept:
                value = g.unsqueeze(value, axis)
        if kept != term:
            value = g.op("Expand", value, g.shape_of(g.input(index)))
        gradients.append(value)
    return gradients


def _refuse_broadcast(g: GradientOp, terms: list[str]) -> None:
    lengths: dict[str, int] = {}
    for index, term in enumerate(terms):
        for letter, dim in zip(term, g.info(g.input(index)).shape or (), strict=False):
            if isinstance(dim, int) and lengths.setdefault(letter, dim) != dim:
                g.refuse(f"its axes {letter!r} have the lengths {lengths[letter]} and {dim}; they must be equal")
