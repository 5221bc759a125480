# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of what users call."""

import doctest
import importlib
from pathlib import Path

import pytest

import lnbp_onnx

CALLED = sorted(name for name in lnbp_onnx.__all__ if callable(getattr(lnbp_onnx, name)) and "Error" not in name)


@pytest.mark.parametrize("name", [name for name in CALLED if name != "Comparison"])
def test_the_example_of_a_docstring_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_examples(getattr(lnbp_onnx, name), name)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("name", ["export", "export_joint"])
def test_the_example_of_an_export_runs(name: str) -> None:
    """With torch, which CI sees to."""
    pytest.importorskip("torch")
    run_examples(getattr(importlib.import_module("lnbp_onnx.interop.torch"), name), name)


def run_examples(value: object, name: str) -> None:
    (example,) = (found for found in doctest.DocTestFinder(recurse=False).find(value, name, globs={}))
    assert example.examples
    said: list[str] = []
    doctest.DocTestRunner().run(example, out=said.append)
    assert said == []
