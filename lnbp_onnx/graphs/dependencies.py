# SPDX-License-Identifier: Apache-2.0
"""Walking things in the order in which they need each other, to any depth."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

_T = TypeVar("_T", bound=Hashable)


class CircleError(Exception, Generic[_T]):
    """Something needs itself.

    Attributes:
        circle: The way round, each needing the next one; it ends with what it begins with.
    """

    def __init__(self, circle: list[_T]) -> None:
        super().__init__(circle)
        self.circle = circle


def dependencies_first(starts: Iterable[_T], needed_by: Callable[[_T], Iterable[_T]]) -> Iterator[_T]:
    """Yield the starts and all that they need, each once, after what it needs itself.

    Raises:
        CircleError: Where something needs itself.
    """
    done: set[_T] = set()
    for start in starts:
        active = {start: iter(needed_by(start))} if start not in done else {}
        while active:
            item, rest = next(reversed(active.items()))
            following = next((each for each in rest if each not in done), None)
            if following is None:
                done.add(item)
                del active[item]
                yield item
            elif following in active:
                raise CircleError([*[*active][[*active].index(following) :], following])
            else:
                active[following] = iter(needed_by(following))
