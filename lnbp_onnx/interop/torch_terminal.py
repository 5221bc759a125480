# SPDX-License-Identifier: Apache-2.0
"""What an export shows on the terminal: how far it is where that takes long, and nothing of what its tools say."""

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator

SECONDS = 2.0
"""How long an export takes without a word."""

_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def progress(label: str) -> Iterator[Callable[[str], None]]:
    """Give what is to be called with the name of each step: it says so on standard error, later than `SECONDS`."""
    step, late, lock = "", False, threading.Lock()

    def show() -> None:
        if sys.stderr is not None:
            print(f"Exporting {label}: {step}", file=sys.stderr, flush=True)

    def expired() -> None:
        nonlocal late
        with lock:
            late = True
            show()

    def begin(name: str) -> None:
        nonlocal step
        with lock:
            step = name
            if late:
                show()

    timer = threading.Timer(SECONDS, expired)
    timer.daemon = True
    timer.start()
    try:
        yield begin
    finally:
        timer.cancel()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings of torch's exporter, and what it logs, from the user, who can do nothing about them."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
