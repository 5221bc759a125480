# SPDX-License-Identifier: Apache-2.0
"""The command line, called as a user calls it."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from lnbp_onnx.cli import commands as cli

PROGRAM = Path(sys.executable).with_name("lnbp-onnx")


@dataclass(frozen=True)
class Result:
    """What a command came to."""

    returncode: int
    stdout: str
    stderr: str
    output: bytes


def command(*arguments: str | Path, cwd: Path | None = None, stdin: bytes = b"", columns: int = 120) -> Result:
    """Run a command in this process; whatever happens, neither a traceback nor an internal error reaches the user."""
    output = io.TextIOWrapper(io.BytesIO(), "utf-8")
    errors = io.StringIO()
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin))),
        mock.patch.dict(os.environ, COLUMNS=str(columns)),
    ):
        code = cli.run(list(map(str, arguments)))
    output.flush()
    written = output.buffer.getvalue()
    result = Result(code, written.decode("utf-8", "replace"), errors.getvalue(), written)
    check_sentences(result.stderr)
    return result


def shell(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in which ``lnbp-onnx`` is the program."""
    run = subprocess.run(
        ["bash", "-c", script.replace("lnbp-onnx", f"'{PROGRAM}'")],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    check_sentences(run.stderr)
    return run


def check_sentences(errors: str) -> None:
    assert "Traceback" not in errors, errors
    assert "Internal error" not in errors, errors


def names_in(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir())
