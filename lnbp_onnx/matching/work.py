# SPDX-License-Identifier: Apache-2.0
"""The work that a search may do: a graph can be made for which it would take as much as there are choices."""

_LEAST_WORK = 500_000
_WORK_FOR_A_VALUE = 300


class Work:
    """How many terms may still be combined, and values looked at, in searching a graph.

    Args:
        values: How many values the graph has; a search takes a few steps for each.
    """

    def __init__(self, values: int) -> None:
        self._left = max(_LEAST_WORK, _WORK_FOR_A_VALUE * values)

    def spend(self, amount: int) -> bool:
        """Count work; return whether there was as much left."""
        self._left -= amount
        return not self.is_exhausted

    @property
    def is_exhausted(self) -> bool:
        """Whether more was done than is allowed."""
        return self._left < 0
