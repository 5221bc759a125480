# SPDX-License-Identifier: Apache-2.0
"""Tables in the documentation with a row for each architecture of `support_table.py`, which scripts measure."""

import argparse
import contextlib
import logging
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table in a page, between two comments that name it; the last of its columns says what came of an architecture.

    Attributes:
        page: The page.
        name: What the comments call the table.
        columns: The heads of its columns; the first is that of the architectures' names.
    """

    page: Path
    name: str
    columns: Row

    def run(self, description: str | None, names: Sequence[str], row_of: Callable[[str], Row]) -> int:
        """Measure what the command line asks for, by default all of `names`, which are then written.

        Returns:
            Of how many something else came than the table says.
        """
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--part", type=int, default=1, help="run every so many-th architecture, and write nothing")
        parser.add_argument("names", nargs="*", help="run these alone, and write nothing")
        arguments = parser.parse_args()
        wanted = arguments.names or list(names)[:: arguments.part]
        rows = []
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            for row in pool.imap(row_of, wanted):
                print(*row, sep=" | ", flush=True)
                rows.append(row)
        begin, end = f"<!-- {self.name} -->\n", f"<!-- end of the {self.name} -->\n"
        before, _, rest = self.page.read_text().partition(begin)
        table, _, after = rest.partition(end)
        if wanted == list(names):
            lines = [" | ".join(row) for row in (self.columns, *rows)]
            lines.insert(1, "|".join(["---"] * len(self.columns)))
            self.page.write_text(before + begin + "".join(f"| {line} |\n" for line in lines) + end + after)
            return 0
        recorded = {line.split(" | ")[0]: line for line in table.splitlines()}
        return sum(not recorded.get(f"| {row[0]}", "").endswith(f"| {row[-1]} |") for row in rows)


def prepare_torch() -> None:
    """Have torch compute on one thread, say nothing, and import torchvision, in a process that measures."""
    import torch  # noqa: PLC0415 - the tables are read without it

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # torchvision's own operators, which no model here uses, are built for another torch than the CPU's.
    for operator in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # defined by an earlier one
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
