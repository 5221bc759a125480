# SPDX-License-Identifier: Apache-2.0
"""Makes docs/tour.ipynb of docs/tour.py: runs its cells and keeps what they print.

``--check`` writes nothing, and ends with 1 where the notebook is not what comes of the script now. It needs the
packages jupytext, nbclient and ipykernel.
"""

import argparse
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parent


def made() -> nbformat.NotebookNode:
    """Return the notebook, with nothing in it that differs from one run or one machine to another, but for numbers."""
    notebook = jupytext.read(FOLDER / "tour.py")
    del notebook.cells[0]  # the licence
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    # Over sockets of this machine alone, about which the kernel does not warn.
    config = Config({"KernelManager": {"transport": "ipc"}})
    # What one cell prints comes in one or more parts.
    NotebookClient(notebook, record_timing=False, coalesce_streams=True, config=config).execute()
    notebook.metadata.pop("language_info")
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index}", {}
    return notebook


def without_numbers(notebook: nbformat.NotebookNode) -> str:
    """Return a notebook as text: what is computed differs in its last digits between machines."""
    return re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "0", nbformat.writes(notebook))


def main() -> int:
    """Write the notebook, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    path, notebook = FOLDER / "tour.ipynb", made()
    if not parser.parse_args().check:
        nbformat.write(notebook, path)
    elif without_numbers(nbformat.read(path, nbformat.NO_CONVERT)) != without_numbers(notebook):
        print(f"{path} is not what {path.with_suffix('.py')} makes; run {__file__}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
