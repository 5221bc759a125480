# SPDX-License-Identifier: Apache-2.0
"""What is printed of the outcomes."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import timing
from contenders import DECOMPOSED, GRAPHS, OURS, PEERS, PRODUCT, PRODUCT_AND_COPIES
from measure import Configuration
from timing import Ratio

Column: TypeAlias = tuple[str, Callable[[Configuration], Ratio | None]]


def _versus(name: str, other: str) -> Column:
    return f"{name}/{other}", lambda configuration: configuration.ratio(name, other)


_PEER_COLUMNS: list[Column] = [
    (f"best/{OURS}", lambda configuration: configuration.ratio(configuration.best_peer, OURS)),
    *(_versus(name, OURS) for name in (*PEERS, DECOMPOSED, *GRAPHS)),
]
_GRAPH_COLUMNS: list[Column] = [_versus(name, DECOMPOSED) for name in GRAPHS]
COLUMNS: list[Column] = [
    *_PEER_COLUMNS,
    (f"{OURS}/limit", lambda configuration: configuration.ratio(OURS, configuration.limit)),
    _versus(OURS, PRODUCT),
    *_GRAPH_COLUMNS,
]
SMALL_COLUMNS: list[Column] = [*_PEER_COLUMNS, _versus(OURS, PRODUCT_AND_COPIES), *_GRAPH_COLUMNS]

_LABELS = ("shape", "type", "case", "threads", f"{OURS} us")
_LABEL_WIDTHS = (12, 9, 9, 7, 10)


def header(columns: Sequence[Column]) -> str:
    """Return the heads of the columns: a/b is the time of a in times of b."""
    return _line(_LABELS, [name for name, _ in columns], columns)


def row(configuration: Configuration, columns: Sequence[Column]) -> str:
    """Return a configuration's ratios, of minima and of medians."""
    ours = configuration.outcomes[OURS]
    labels = (
        f"{configuration.rows}x{configuration.columns}",
        configuration.element_type,
        configuration.case,
        str(configuration.threads),
        f"{ours.minimum * 1e6:.1f}" if ours.rounds else "-",
    )
    return _line(labels, [_format(ratio(configuration)) for _, ratio in columns], columns)


def geometric_means(configurations: Sequence[Configuration], columns: Sequence[Column]) -> list[str]:
    """Return a line for each type, case and thread count: the means over the shapes."""
    groups: dict[tuple[str, str, int], list[Configuration]] = {}
    for configuration in configurations:
        groups.setdefault((configuration.element_type, configuration.case, configuration.threads), []).append(
            configuration
        )
    lines = []
    for (element_type, case, threads), members in groups.items():
        cells = []
        for _, ratio in columns:
            ratios = [found for found in map(ratio, members) if found is not None]
            cells.append(_format(timing.geometric_mean(ratios) if ratios else None))
        lines.append(_line(("geom. mean", element_type, case, str(threads), ""), cells, columns))
    return lines


def remarks(configurations: Iterable[Configuration]) -> list[str]:
    """Return what is to be said of the contenders, each thing once."""
    found: dict[str, None] = {}
    for each in configurations:
        for name, outcome in each.outcomes.items():
            case = f"{name}, {each.element_type}"
            if outcome.note:
                found[f"{name}: {outcome.note}"] = None
            if outcome.missing:
                found[f"{case}: missing: {outcome.missing}"] = None
            for text in outcome.inaccuracies:
                found[f"{case}, {each.rows}x{each.columns}: {text}"] = None
            for text in outcome.faults:
                found[f"{case}, {each.rows}x{each.columns}: WRONG, not timed: {text}"] = None
    return list(found)


def _format(ratio: Ratio | None) -> str:
    return "-" if ratio is None else f"{ratio.of_minima:.2f} {ratio.of_medians:.2f}"


def _line(labels: Sequence[str], cells: Sequence[str], columns: Sequence[Column]) -> str:
    left = (label.ljust(width) for label, width in zip(labels, _LABEL_WIDTHS, strict=True))
    right = (cell.rjust(max(len(name), 11)) for cell, (name, _) in zip(cells, columns, strict=True))
    return "  ".join([*left, *right])
