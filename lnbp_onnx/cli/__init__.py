# SPDX-License-Identifier: Apache-2.0
"""The command line: ``lnbp-onnx``."""

import sys
from typing import NoReturn

from lnbp_onnx.cli.lazily import import_lazily

EXIT_INTERRUPTED = 128 + 2


def main() -> NoReturn:
    """Run the command line as a program."""
    import_lazily()
    try:
        from lnbp_onnx.cli import commands  # noqa: PLC0415 an interruption of the imports is one of the program
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    commands.main()
