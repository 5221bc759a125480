# SPDX-License-Identifier: Apache-2.0
"""The Python blocks of the documentation, which the tests run."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def python_blocks(path: str) -> list[str]:
    """Return what the blocks marked ``python`` of a page hold."""
    return [block.split("```")[0] for block in (ROOT / path).read_text("utf-8").split("```python\n")[1:]]
