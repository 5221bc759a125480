# SPDX-License-Identifier: Apache-2.0
"""Runs a command line again and again and stops it at one call after the other that concerns a file.

A program of its own, since failing_calls.c must be preloaded: ``interrupted_runs.py WORK SHARE HOW...`` runs the
command in WORK/arguments.json on copies, at WORK/now, of the folder WORK/before. It prints a line of JSON on each run:
first on one that nothing stops, which stays at WORK/after, then on those that are stopped, a sample (products.py) of
each HOW, the name of a signal or of an errno, at each call. Signals begin where the writing does: before, there is
nothing to lose. It forks, so that the imports are paid for once.
"""

import ctypes
import errno
import gc
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

from products import sample

from lnbp_onnx.cli import commands as cli

COUNT, SIGNAL, ERROR = range(3)


def run(library: ctypes.CDLL, work: Path, name: str, how: int, number: int, at: int) -> None:
    folder = work / "now"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "before", folder, symlinks=True)
    child = os.fork()
    if child == 0:
        with (work / "stderr").open("wb") as errors:
            os.dup2(errors.fileno(), 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        library.failing_calls_arm(os.fsencode(folder), how, number, at)
        os._exit(exit_code())
    _, status = os.waitpid(child, 0)
    found = {
        "how": name,
        "at": at,
        "call": library.failing_calls_last().decode(),
        "code": os.waitstatus_to_exitcode(status),
        "stderr": (work / "stderr").read_text(),
        "files": contents(folder),
    }
    print(json.dumps(found), flush=True)


def contents(folder: Path) -> dict[str, str]:
    """Return a hash for each file of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def exit_code() -> int:
    """Run the command line; libraries would wait at the process's usual end for threads that a fork does not have."""
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    return 99


def main(work: Path, share: str, hows: list[str]) -> None:
    library = ctypes.CDLL(None)
    library.failing_calls_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    library.failing_calls_seen.restype = library.failing_calls_first_write.restype = ctypes.c_long
    library.failing_calls_last.restype = ctypes.c_char_p
    sys.argv = ["lnbp-onnx", *json.loads((work / "arguments.json").read_text())]
    shutil.copytree(work / "before", work / "now")
    exit_code()  # what is imported late is imported now
    gc.freeze()
    run(library, work, "", COUNT, 0, 0)
    shutil.copytree(work / "now", work / "after")
    calls, first_write = library.failing_calls_seen(), library.failing_calls_first_write()
    stops = [(name, at) for at in range(1, calls + 1) for name in hows if not is_signal(name) or at >= first_write]
    for name, at in sample(stops, share, lambda stop: stop):
        number = getattr(signal if is_signal(name) else errno, name)
        run(library, work, name, SIGNAL if is_signal(name) else ERROR, number, at)


def is_signal(name: str) -> bool:
    return name.startswith("SIG")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
