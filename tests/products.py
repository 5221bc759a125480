# SPDX-License-Identifier: Apache-2.0
"""How much of a cross product is run: the same sample every time, or all of it."""

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

Combination = TypeVar("Combination")
SHARES = ("cover", "tenth", "whole")


def sample(
    product: Sequence[Combination], share: str, values: Callable[[Combination], Iterable[Hashable]]
) -> list[Combination]:
    """Return combinations in the product's order: as few as have each value at least once, a tenth, or all."""
    taken: set[int] = set()
    if share == "whole":
        return list(product)
    if share == "tenth":
        taken.update(random.Random(1).sample(range(len(product)), -(-len(product) // 10)))
    else:
        seen: set[Hashable] = set()
        for index in random.Random(0).sample(range(len(product)), len(product)):
            if not seen.issuperset(values(product[index])):
                taken.add(index)
                seen.update(values(product[index]))
    return [product[index] for index in sorted(taken)]
