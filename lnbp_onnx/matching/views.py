# SPDX-License-Identifier: Apache-2.0
"""Going back from a value to what it is a view or a conversion of."""

from collections.abc import Iterator, Set

import onnx_ir as ir

VIEWS = frozenset({"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"})
"""The operators whose result has the elements of their first operand, in the same order."""

MOST_VIEWS = 6
"""How many of them are looked through."""


def producer(value: ir.Value | None, op_types: Set[str]) -> ir.Node | None:
    """Return the node that computes a value where it is of one of these standard operators."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def roots(value: ir.Value | None) -> list[ir.Value]:
    """Return what a value is a view or a conversion of, the farthest first and the value itself last."""
    chain: list[ir.Value] = []
    while value is not None and len(chain) <= MOST_VIEWS:
        chain.append(value)
        node = producer(value, VIEWS)
        value = None if node is None else node.inputs[0]
    return chain[::-1]


def origins(value: ir.Value | None, order: tuple[int, ...] | None) -> Iterator[tuple[ir.Value, tuple[int, ...] | None]]:
    """Yield a value and what it is a view of or transposed from, with the order of their axes.

    Args:
        value: The value.
        order: Where each of its axes stands; None for axes in order, whose shape a view may change.
    """
    for _ in range(MOST_VIEWS):
        if value is None:
            return
        yield value, order
        node = producer(value, VIEWS | {"Transpose"})
        if node is None or (order is not None and node.op_type not in ("Identity", "Cast", "Transpose")):
            return
        value = node.inputs[0]
        if node.op_type == "Transpose":
            order = _before(node, order)
            if order is None:
                return
            if order == tuple(range(len(order))):
                order = None


def _before(transpose: ir.Node, order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the order of the axes of what is transposed, given the order of the result's."""
    attribute = transpose.attributes.get("perm")
    if attribute is None or attribute.is_ref():
        return None
    permutation = attribute.as_ints()
    before = [0] * len(permutation)
    for index, source in enumerate(permutation):
        before[source] = index if order is None else order[index]
    return tuple(before)
