# SPDX-License-Identifier: Apache-2.0
"""The text that the GPT learns: this project's own documentation, a token for each ASCII character."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
VOCABULARY = 128
HELD_OUT = 0.1  # the share of the text that is kept for evaluation

Batch = dict[str, np.ndarray]


def tokens() -> np.ndarray:
    """Return the text as int64 [characters]; what is not ASCII is a question mark."""
    files = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)


def batches(rows: int, context: int, *, held_out: bool = False, seed: int = 0) -> Iterator[Batch]:
    """Yield, without end, `rows` random places of the text, the same for the same seed.

    ``tokens`` and ``targets`` are int64 [rows, context]; a target is the character after its token.
    """
    text = tokens()
    split = round(len(text) * (1 - HELD_OUT))
    text = text[split:] if held_out else text[:split]
    generator = np.random.default_rng(seed)
    while True:
        starts = generator.integers(0, len(text) - context, rows)
        places = starts[:, None] + np.arange(context)
        yield {"tokens": text[places], "targets": text[places + 1]}
