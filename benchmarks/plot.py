# SPDX-License-Identifier: Apache-2.0
"""Draws the outcomes that run.py wrote: speed against the peers, and memory traffic against the limit."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from contenders import DECOMPOSED, OURS, PEERS
from measure import Configuration, Outcome
from timing import Round

matplotlib.use("Agg")
# The same numbers give the same file.
matplotlib.rcParams["svg.hashsalt"] = "lnbp"
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot as plt  # noqa: E402 (after the choice of backend)

_IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="what run.py --json wrote")
    parser.add_argument("--folder", type=Path, default=_IMAGES)
    arguments = parser.parse_args()
    content = json.loads(arguments.results.read_text())
    configurations = [_read(each) for each in content["configurations"] if each["case"] == "plain"]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for draw, name in ((_draw_speed, "speed.svg"), (_draw_traffic, "roofline.svg")):
        figure = draw(configurations)
        figure.savefig(arguments.folder / name, metadata={"Date": None})
        plt.close(figure)


def _draw_speed(configurations: Sequence[Configuration]) -> Any:
    """Draw how many times as long each peer takes, a panel for each type and thread count."""
    figure, panels = _panels(configurations)
    for axes, members in panels:
        for place, name in enumerate((*PEERS, DECOMPOSED)):
            ratios = [each.ratio(name, OURS) for each in members]
            points = [(i + (place - 1) * 0.27, r.of_medians) for i, r in enumerate(ratios) if r is not None]
            if points:
                axes.bar(*zip(*points, strict=True), width=0.27, label=name, color=f"C{place}")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_ylabel(f"time / time of {OURS}")
        axes.legend(fontsize="small")
    return figure


def _draw_traffic(configurations: Sequence[Configuration]) -> Any:
    """Draw the bytes that must move, by the time that each takes."""
    figure, panels = _panels(configurations)
    for axes, members in panels:
        limits = [each.limit for each in members]
        for label, names, style in (
            ("limit (triad)", limits, "k_"),
            (OURS, [OURS] * len(members), "o"),
            *((name, [name] * len(members), "x") for name in PEERS),
        ):
            timed = [
                (i, each.traffic / each.outcomes[name].minimum / 1e9)
                for i, (each, name) in enumerate(zip(members, names, strict=True))
                if name and each.outcomes[name].rounds
            ]
            if timed:
                axes.plot(*zip(*timed, strict=True), style, label=label, markersize=6 if style != "k_" else 14)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("GB/s")
        axes.legend(fontsize="small")
    return figure


def _panels(configurations: Sequence[Configuration]) -> tuple[Any, list[tuple[Any, list[Configuration]]]]:
    types = list(dict.fromkeys(each.element_type for each in configurations))
    thread_counts = list(dict.fromkeys(each.threads for each in configurations))
    size = (5.5 * len(thread_counts), 3.2 * len(types))
    figure, grid = plt.subplots(len(types), len(thread_counts), figsize=size, squeeze=False, layout="constrained")
    panels = []
    for line, element_type in zip(grid, types, strict=True):
        for axes, threads in zip(line, thread_counts, strict=True):
            members = [each for each in configurations if (each.element_type, each.threads) == (element_type, threads)]
            axes.set_title(f"{element_type}, {threads} thread{'s' if threads > 1 else ''}")
            shapes = [f"{each.rows}x{each.columns}" for each in members]
            axes.set_xticks(range(len(members)), shapes, rotation=30, ha="right", fontsize="small")
            panels.append((axes, members))
    return figure, panels


def _read(entry: dict[str, Any]) -> Configuration:
    outcomes = {
        name: Outcome(**{**outcome, "rounds": tuple(Round(**each) for each in outcome["rounds"])})
        for name, outcome in entry["outcomes"].items()
    }
    return Configuration(**{**entry, "outcomes": outcomes})


if __name__ == "__main__":
    main()
