# SPDX-License-Identifier: Apache-2.0
"""Names: for what is added to a graph, what has one, and those that a pattern stands for."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import onnx_ir as ir

from lnbp_onnx.errors import InvalidModelError

_NAMES_SHOWN = 10


def unique_names(taken: set[str | None]) -> Callable[[str], str]:
    """Return a function that makes names unique among those that are taken and those that it has given."""
    # Where to go on for a name that many ask for: beginning anew each time takes as long as all that were given.
    next_numbers: dict[str, int] = {}

    def unique_name(name: str) -> str:
        unused = name
        while unused in taken:
            number = next_numbers.get(name, 2)
            next_numbers[name] = number + 1
            unused = f"{name}_{number}"
        taken.add(unused)
        return unused

    return unique_name


def claim(name: str, unique_name: Callable[[str], str], refusal: str) -> str:
    """Return a name that what is added must have.

    Raises:
        InvalidModelError: Where something has it already; `refusal` is what it says.
    """
    if unique_name(name) != name:
        raise InvalidModelError(refusal)
    return name


def names_in(graph: ir.Graph) -> set[str | None]:
    """Return the names of the values and nodes of a graph and its subgraphs."""
    taken: set[str | None] = set()
    for each in (graph, *graph.subgraphs()):
        taken.update(value.name for value in (*each.inputs, *each.initializers.values()))
        for node in each:
            taken.add(node.name)
            taken.update(value.name for value in (*node.outputs, *node.inputs) if value is not None)
    return taken


def matches(name: str, pattern: str) -> bool:
    """Return whether a pattern of the shell's kind stands for a name; one that is the name itself does."""
    return name == pattern or fnmatchcase(name, pattern)


def listed(names: Sequence[str]) -> str:
    """Return names for a person to read, the first of them where they are many."""
    return ", ".join([*map(repr, names[:_NAMES_SHOWN]), *(["..."] if len(names) > _NAMES_SHOWN else [])]) or "none"


def computed_value(graph: ir.Graph, name: str, giver: str) -> ir.Value:
    """Return the value of a name that a node of a graph, not of its subgraphs, computes.

    Args:
        graph: The graph.
        name: The name.
        giver: What gave the name, for the refusal.

    Raises:
        InvalidModelError: Where there is none.
    """
    found = next((output for node in graph for output in node.outputs if name and output.name == name), None)
    if found is None:
        raise InvalidModelError(
            f"{giver}: no node of the graph computes {name!r} (give the name of one of its values; the model's "
            f"outputs are {listed([str(output.name) for output in graph.outputs])})."
        )
    return found
