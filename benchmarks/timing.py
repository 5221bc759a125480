# SPDX-License-Identifier: Apache-2.0
"""Contenders by turns, so that what slows the machine slows all of them; and what their times say."""

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from contenders import Run

# Idle workers of an OpenMP pool spin for 7 ms (measured with libgomp, 2 threads) and would take a core from the next.
_SETTLE_SECONDS = 0.012
_TURN_SECONDS = 0.02
# The clock and the call of `run` cost about 0.3 us.
_SAMPLE_SECONDS = 2e-4


@dataclass(frozen=True)
class Round:
    """The seconds for one computation in one turn."""

    minimum: float
    median: float


@dataclass(frozen=True)
class Ratio:
    """How many times as long one contender takes as another.

    `of_medians` is the median over the rounds of the ratio of their medians, which compares neighbours in time.
    """

    of_minima: float
    of_medians: float


def ratio(a: Sequence[Round], b: Sequence[Round]) -> Ratio:
    """Compare the times of two contenders of the same run."""
    of_minima = min(each.minimum for each in a) / min(each.minimum for each in b)
    return Ratio(of_minima, statistics.median(x.median / y.median for x, y in zip(a, b, strict=True)))


def geometric_mean(ratios: Iterable[Ratio]) -> Ratio:
    """Return the geometric mean of both kinds."""
    listed = list(ratios)

    def mean(values: Iterable[float]) -> float:
        return math.exp(math.fsum(map(math.log, values)) / len(listed))

    return Ratio(mean(each.of_minima for each in listed), mean(each.of_medians for each in listed))


def interleave(runs: Mapping[str, Run], rounds: int, *, threads: int) -> dict[str, list[Round]]:
    """Time every run once a round; each round starts with another one."""
    names = list(runs)
    counts = {name: _count(run) for name, run in runs.items()}
    times: dict[str, list[Round]] = {name: [] for name in names}
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            if threads > 1:
                time.sleep(_SETTLE_SECONDS)
            times[name].append(_turn(runs[name], counts[name]))
    return times


def _count(run: Run) -> int:
    """Return how often to compute between two looks at the clock."""
    once = min(_timed(run, 1) for _ in range(3))
    return max(1, math.ceil(_SAMPLE_SECONDS / once))


def _turn(run: Run, count: int) -> Round:
    run(count)
    samples: list[float] = []
    end = time.perf_counter() + _TURN_SECONDS
    while not samples or time.perf_counter() < end:
        samples.append(_timed(run, count))
    return Round(min(samples), statistics.median(samples))


def _timed(run: Run, count: int) -> float:
    start = time.perf_counter()
    run(count)
    return (time.perf_counter() - start) / count
