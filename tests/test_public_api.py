# SPDX-License-Identifier: Apache-2.0
"""The names that users call are a contract."""

import inspect
import re
from pathlib import Path

import pytest
from command_line import command
from documentation import ROOT, python_blocks

import lnbp_onnx

NAMES = {
    "AdamW",
    "SGD",
    "Comparison",
    "__version__",
    "DOMAIN",
    "OP_TYPE",
    "OP_VERSION",
    "InvalidModelError",
    "InvalidNodeError",
    "KernelError",
    "LayerNormBackprop",
    "LnbpError",
    "compare",
    "decompose",
    "embed",
    "fuse",
    "get_library_path",
    "gradient",
    "gradient_nodes",
    "inference_session",
    "layer_norm_backprop",
    "make_node",
    "register_schema",
    "save_parameters",
    "training_step",
}


def test_names() -> None:
    assert set(lnbp_onnx.__all__) == NAMES
    assert (lnbp_onnx.DOMAIN, lnbp_onnx.OP_TYPE, lnbp_onnx.OP_VERSION) == ("lnbp", "LayerNormBackprop", 1)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_docstrings(name: str) -> None:
    value = getattr(lnbp_onnx, name)
    assert isinstance(value, str | int) or inspect.getdoc(value)


@pytest.mark.parametrize("error", [lnbp_onnx.InvalidModelError, lnbp_onnx.InvalidNodeError, lnbp_onnx.KernelError])
def test_errors_have_one_base(error: type[Exception]) -> None:
    assert issubclass(error, lnbp_onnx.LnbpError)


def test_readme_shows_what_the_command_line_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (block,) = re.findall(r"^```console\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    line, _, shown = block.partition("\n")
    run = command(*line.removeprefix("$ lnbp-onnx ").split())
    assert run.returncode == 0

    def without_seconds(text: str) -> list[str]:
        return [re.sub(r"[\d.]+ s\.$", "", each.rstrip()) for each in text.splitlines()]

    assert without_seconds(run.stdout) == without_seconds(shown)


@pytest.mark.parametrize("page", ["README.md", "docs/derivation.md"])
def test_examples_of_a_page_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    blocks = python_blocks(page)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, page, "exec"), namespace)
