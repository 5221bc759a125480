# SPDX-License-Identifier: Apache-2.0
"""The exceptions that this package raises on purpose, and how their messages call what a caller gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ON_COMMAND_LINE = ContextVar("on_command_line", default=False)


class LnbpError(Exception):
    """Base of every error that this package raises on purpose."""


class InvalidNodeError(LnbpError, ValueError):
    """A LayerNormBackprop node, or a call with its operands, that the specification refuses."""


class InvalidModelError(LnbpError, ValueError):
    """A file or a graph that cannot be used."""


class KernelError(LnbpError, RuntimeError):
    """A kernel that is not available, or that failed."""


@contextmanager
def on_command_line() -> Iterator[None]:
    """Have messages that are made meanwhile name options of the command line in the place of arguments."""
    token = _ON_COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _ON_COMMAND_LINE.reset(token)


def written(python: str, option: str) -> str:
    """Return the one of two ways to write an argument that the caller can use."""
    return option if _ON_COMMAND_LINE.get() else python


def argument(name: str) -> str:
    """Return what a caller calls an argument: ``class_axis`` in Python, ``--class-axis`` on the command line."""
    return written(name, f"--{name.replace('_', '-')}")
