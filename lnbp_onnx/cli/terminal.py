# SPDX-License-Identifier: Apache-2.0
"""The terminal: what is printed, where to, and what becomes of it where it cannot be written."""

import contextlib
import io
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBar

EXIT_CLOSED_PIPE = 128 + 13
"""What a shell reports of a program that SIGPIPE ended."""

# A shorter task is over before a progress bar can be read.
_SECONDS_BEFORE_PROGRESS = 1.0

_DESCRIPTION = TextColumn("{task.description}", markup=False)

# No line is as long: what a pipe or a file gets is not wrapped.
_UNBOUNDED = 1_000_000


def printable(text: str) -> str:
    """Return a text whose every character can be seen: the others are escaped as in a Python string.

    Names come out of models that anyone may have written. Without this one could move the cursor, set the window's
    title or make its text run from right to left, and so show what is not there.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def complain(sentence: str, kind: str = "Error", style: str = "red") -> None:
    """Print a sentence on standard error, on one line."""
    line = printable(re.sub(r"\s*\n\s*", " ", sentence.strip()))
    _console(stderr=True).print(f"{kind}: {line}", style=style, markup=False, highlight=False, soft_wrap=True)


def warn(sentence: str) -> None:
    """Print what does not stop a command but may stop its user."""
    complain(sentence, "Warning", "yellow")


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def _console(*, stderr: bool, quiet: bool = False) -> Console:
    """Return what prints tables and sentences, without wrapping them where the stream is no terminal."""
    width = None if _is_terminal(sys.stderr if stderr else sys.stdout) else _UNBOUNDED
    # Without colours alone rich would still write in bold and italics.
    color_system: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(stderr=stderr, quiet=quiet, emoji=False, width=width, color_system=color_system)


class Printer:
    """Prints findings as tables, as JSON, or not at all.

    Args:
        as_json: Whether to print JSON and nothing else.
        quiet: Whether to print nothing but JSON.
        verbose: Whether more is wanted.
        to_stderr: Whether standard output is for a model.
    """

    def __init__(self, as_json: bool, quiet: bool = False, verbose: bool = False, *, to_stderr: bool = False) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._to_stderr = to_stderr
        self._console = _console(stderr=to_stderr, quiet=quiet or as_json)
        self.verbose = verbose

    def data(self, data: Any) -> None:
        """Print findings where JSON is wanted."""
        if self._as_json:
            print(json.dumps(data, indent=2), file=sys.stderr if self._to_stderr else sys.stdout)

    def show(self, content: Any) -> None:
        """Print a table, whose cells are escaped already."""
        if not self._console.quiet:  # rich lays it out all the same, which for thousands of rows takes seconds
            self._console.print(content, highlight=False)

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        self._console.print(printable(sentence), highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def working(self, task: str) -> Iterator[None]:
        """Show that a task goes on, where it takes its time and standard error is a terminal."""
        with self._shown(task, SpinnerColumn(), _DESCRIPTION, TimeElapsedColumn()):
            yield

    @contextlib.contextmanager
    def progress(self, task: str) -> Iterator[Callable[[int, int], None]]:
        """Show how many bytes of a task are done, where it takes its time and standard error is a terminal."""
        columns = _DESCRIPTION, BarColumn(), DownloadColumn(), TimeRemainingColumn()
        with self._shown(task, *columns) as (bar, identifier):
            yield lambda done, total: bar.update(identifier, completed=done, total=total)

    @contextlib.contextmanager
    def _shown(self, task: str, *columns: ProgressColumn) -> Iterator[tuple[ProgressBar, TaskID]]:
        hidden = self._quiet or not _is_terminal(sys.stderr)
        bar = ProgressBar(*columns, console=_console(stderr=True), transient=True, disable=hidden)
        identifier = bar.add_task(printable(task), total=None)
        timer = threading.Timer(_SECONDS_BEFORE_PROGRESS, bar.start)
        timer.daemon = True
        timer.start()
        try:
            yield bar, identifier
        finally:
            timer.cancel()
            timer.join()  # what starts after it was stopped would stay
            bar.stop()


class Output:
    """Standard output, and what went wrong with it."""

    def __init__(self, stream: TextIO, file: "_Lossy | None") -> None:
        self._stream = stream
        self._file = file

    def error(self) -> OSError | None:
        """Return why something that was printed so far could not be written, if it could not."""
        if self._file is None:
            return None
        self._stream.flush()
        return self._file.error


@contextlib.contextmanager
def standard_streams() -> Iterator[Output]:
    """Make standard output and error take everything, so that what could not be written can be told at the end.

    An error in the middle of a table would be handled by whoever printed it, each in a way of its own, and by Python
    once more when it ends.
    """
    _open_closed_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, file = _lossy(sys.stdout)
    sys.stderr, _ = _lossy(sys.stderr)
    try:
        yield Output(sys.stdout, file)
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


class _Lossy(io.FileIO):
    """A file that forgets what it cannot write, and remembers why."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return super().write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def standard_output_failed() -> bool:
    """Return whether something that was written to standard output, past its buffer, is lost."""
    file = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(file, _Lossy) and file.error is not None


def _lossy(stream: TextIO) -> tuple[TextIO, _Lossy | None]:
    """Return a stream to the same file, and that file; a stream that is none, or closed, stays."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream, None
    stream.flush()
    file = _Lossy(stream.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(file), stream.encoding, "replace", line_buffering=file.isatty()), file


def _open_closed_descriptors() -> None:
    """Open the standard streams that are closed on nothing.

    Otherwise the next file that is opened, a model for one, takes the place of standard output or error, and gets what
    a library prints there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
