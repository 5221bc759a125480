# SPDX-License-Identifier: Apache-2.0
"""docs/matching.md shows what matching does."""

from pathlib import Path

from matching_walk import walk

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/matching.md").read_text("utf-8")


def test_the_page_shows_what_is_found() -> None:
    [shown] = [block.split("```")[0] for block in PAGE.split("```text\n")[1:]]
    assert shown.splitlines() == list(walk(ROOT / "tests/data/torch_layernorm_nobias_decomposed.onnx"))
