# SPDX-License-Identifier: Apache-2.0
"""The command-line arguments that the training examples share."""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from gpt.training import JOINT_MODEL
from program import argument_parser


def training_parser(description: str, *, steps: int, rows: int) -> ArgumentParser:
    """Return a parser of ``--model``, ``--steps`` and ``--rows`` with these defaults."""
    parser = argument_parser(description)
    parser.add_argument("--model", type=existing_file, default=JOINT_MODEL, help="what export_gpt.py wrote")
    parser.add_argument("--steps", type=positive, default=steps, help=f"{steps} by default")
    parser.add_argument("--rows", type=positive, default=rows, help=f"of a batch; {rows} by default")
    return parser


def positive(text: str) -> int:
    """Read an integer above 0."""
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is not an integer above 0")
    return int(text)


def existing_file(text: str) -> Path:
    """Read the path of a file."""
    path = Path(text)
    if not path.is_file():
        raise ArgumentTypeError(f"{text!r} is not a file")
    return path
