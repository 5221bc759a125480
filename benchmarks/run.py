# SPDX-License-Identifier: Apache-2.0
"""Times the operator against its peers and the memory limit; docs/performance.md says how and why so."""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import report
from contenders import BUILDERS, COMPUTING_BUILDERS, SMALL_BUILDERS, Builder
from measure import measure
from problem import TYPES, Case, Problem

SHAPES = "128x768,4096x768,8192x1024,2048x4096,512x16384,65536x64,32768x256,16x65536"

_BUILDERS: dict[Case, dict[str, Builder]] = {
    "plain": BUILDERS,
    "unaligned": BUILDERS,
    "computed": COMPUTING_BUILDERS,
}

# torch allocates its outputs at every call. By default glibc maps and unmaps large ones each time, in small pages, and
# torch would look up to twice as slow as it is; the arrays of all others are made once, by numpy, in huge pages.
_MALLOC = {
    "glibc.malloc.mmap_threshold": 4 << 30,
    "glibc.malloc.trim_threshold": 4 << 30,
    "glibc.malloc.top_pad": 256 << 20,
    "glibc.malloc.hugetlb": 1,
}

# An OpenMP contender whose second thread waits for a core takes a thousand times as long on a small shape.
_QUIET_LOAD = 0.5


def main() -> int:
    """Run what the command line asks for; 1 where a contender was wrong."""
    arguments = _parse()
    _use_malloc()
    if arguments.small:
        shapes, thread_counts, columns = [(1, 64)], [1], report.SMALL_COLUMNS
        cases = {"plain": SMALL_BUILDERS}
    else:
        shapes, thread_counts, columns = arguments.shapes, arguments.threads, report.COLUMNS
        cases = {case: _BUILDERS[case] for case in arguments.cases}
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > _QUIET_LOAD:
        print("The machine has other work: times at several threads say little.", file=sys.stderr)
    print("Each cell: ratio of the minima, median of the ratios by round.")
    print(report.header(columns))
    configurations = []
    for element_type in arguments.types:
        for shape, (case, builders) in itertools.product(shapes, cases.items()):
            problem = Problem(*shape, element_type, case)
            for threads in thread_counts:
                configuration = measure(problem, threads, builders, arguments.rounds)
                print(report.row(configuration, columns), flush=True)
                configurations.append(configuration)
    print(*report.geometric_means(configurations, columns), *report.remarks(configurations), sep="\n")
    if arguments.json is not None:
        content = {"machine": _machine(), "configurations": [dataclasses.asdict(each) for each in configurations]}
        arguments.json.write_text(json.dumps(content) + "\n")
    return int(any(outcome.faults for each in configurations for outcome in each.outcomes.values()))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", type=_shapes, default=SHAPES, metavar="MxN,...")
    parser.add_argument("--types", type=_types, default=",".join(TYPES), metavar="TYPE,...")
    parser.add_argument("--cases", type=_cases, default=",".join(_BUILDERS), metavar="CASE,...")
    parser.add_argument("--threads", type=_counts, default="1,2", metavar="COUNT,...")
    parser.add_argument("--rounds", type=_positive, default=15)
    parser.add_argument("--small", action="store_true", help="the cost of a call: 1x64 on one thread")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for plot.py")
    return parser.parse_args()


def _shapes(text: str) -> list[tuple[int, int]]:
    shapes = []
    for part in text.split(","):
        sizes = part.split("x")
        if len(sizes) != 2:
            raise argparse.ArgumentTypeError(f"{part!r} is not of the form ROWSxCOLUMNS")
        shapes.append((_positive(sizes[0]), _positive(sizes[1])))
    return shapes


def _types(text: str) -> list[str]:
    return _names(text, TYPES)


def _cases(text: str) -> list[str]:
    return _names(text, _BUILDERS)


def _names(text: str, known: Collection[str]) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
    return names


def _counts(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def _use_malloc() -> None:
    """Start anew where malloc has other settings, which it reads only then."""
    wanted = ":".join(f"{name}={value}" for name, value in _MALLOC.items())
    if platform.libc_ver()[0] == "glibc" and os.environ.get("GLIBC_TUNABLES") != wanted:
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "GLIBC_TUNABLES": wanted})


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    models = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {"processor": next(models, platform.machine()), "cores": os.cpu_count(), "system": platform.system()}


if __name__ == "__main__":
    sys.exit(main())
