# SPDX-License-Identifier: Apache-2.0
"""One configuration: contenders are built, verified, and timed together."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import timing
from compiled import MissingError
from contenders import LIMITS, PEERS, Builder, Contender
from problem import Problem
from timing import Ratio, Round


@dataclass(frozen=True)
class Outcome:
    """What became of a contender: its times, or why there are none."""

    rounds: tuple[Round, ...] = ()
    note: str = ""
    missing: str = ""
    inaccuracies: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def minimum(self) -> float:
        """The least seconds of all rounds."""
        return min(each.minimum for each in self.rounds)


@dataclass(frozen=True)
class Configuration:
    """The outcomes for one shape, type and thread count."""

    rows: int
    columns: int
    element_type: str
    case: str
    threads: int
    traffic: int
    outcomes: dict[str, Outcome]

    def ratio(self, name: str, other: str) -> Ratio | None:
        """Return how many times as long `name` takes as `other`; None where one was not timed."""
        found = [self.outcomes.get(each, Outcome()).rounds for each in (name, other)]
        return timing.ratio(*found) if all(found) else None

    def fastest(self, names: tuple[str, ...]) -> str:
        """Return which of these has the least minimum, "" where none was timed."""
        timed = [name for name in names if self.outcomes.get(name, Outcome()).rounds]
        return min(timed, key=lambda name: self.outcomes[name].minimum, default="")

    @property
    def best_peer(self) -> str:
        """The fastest of the other libraries."""
        return self.fastest(PEERS)

    @property
    def limit(self) -> str:
        """The faster triad."""
        return self.fastest(LIMITS)


def measure(problem: Problem, threads: int, builders: Mapping[str, Builder], rounds: int) -> Configuration:
    """Time those contenders that are available and right."""
    outcomes: dict[str, Outcome] = {}
    right: dict[str, Contender] = {}
    for name, build in builders.items():
        try:
            contender = build(problem, threads)
        except MissingError as error:
            outcomes[name] = Outcome(missing=str(error))
            continue
        contender.run(1)
        errors = problem.errors(contender.task, contender.outputs(), sums_in=contender.sums_in)
        known = tuple(error.text for error in errors if not error.is_fault)
        faults = tuple(error.text for error in errors if error.is_fault)
        outcomes[name] = Outcome(note=contender.note, inaccuracies=known, faults=faults)
        if not faults:
            right[name] = contender
    times = timing.interleave({name: each.run for name, each in right.items()}, rounds, threads=threads)
    for name, rounds_of_one in times.items():
        outcomes[name] = dataclasses.replace(outcomes[name], rounds=tuple(rounds_of_one))
    return Configuration(
        problem.rows, problem.columns, problem.element_type, problem.case, threads, problem.traffic, outcomes
    )
