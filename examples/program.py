# SPDX-License-Identifier: Apache-2.0
"""What makes a program of each example: its arguments, what it lacks, and how it ends."""

import importlib.util
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lnbp_onnx import LnbpError

OUTPUT_FOLDER = Path(__file__).parents[1] / "build"
"""Where examples write what no argument gives a place to; git ignores it."""

UNUSABLE, INTERRUPTED, CLOSED_PIPE = 2, 130, 141


class NotInstalledError(Exception):
    """Something that an example needs is missing; the message says how to install it."""


def argument_parser(description: str) -> ArgumentParser:
    """Return a parser that shows an example's docstring with ``--help``."""
    return ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)


def output_file(text: str) -> Path:
    """Read the path of a file to write; `make_folder_of` makes its folder, before anything takes its time."""
    path = Path(text)
    if text.endswith(os.sep) or not path.name or path.is_dir():
        raise ArgumentTypeError(f"{text!r} is a folder; give the name of a file")
    return path


def make_folder_of(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def require(package: str, install: str) -> None:
    """Check that a package is installed.

    Raises:
        NotInstalledError: Where it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise NotInstalledError(f"This needs the package {package}, which is not installed ({install}).")


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run an example and end with its exit code; what it lacks is a sentence, and a closed pipe is nothing."""
    try:
        code = main() or 0
        sys.stdout.flush()
    except (NotInstalledError, LnbpError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # Python writes the rest of the output once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(CLOSED_PIPE)
        is_of_file = isinstance(error, OSError) and error.strerror
        sentence = f"{error.filename or 'A file'}: {error.strerror}." if is_of_file else error
        print(f"Error: {sentence}", file=sys.stderr)
        code = UNUSABLE
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)
