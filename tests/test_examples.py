# SPDX-License-Identifier: Apache-2.0
"""The examples run as they stand, and say what they lack."""

import errno
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import program
from program import NotInstalledError
from runtimes import RUNTIMES

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(path for path in EXAMPLES.glob("*.py") if '"__main__"' in path.read_text(encoding="utf-8"))
# What the tests' own dependencies lack; CI has it.
NEEDED = {"data_parallel": "mpi4py", "export_gpt": "torch"}
# It serves a page until it is told to end; a test of its own opens the page.
SERVER = "train_in_browser"


def run_here(name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run an example in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return end.value.code


@pytest.mark.parametrize("path", [path for path in PROGRAMS if path.stem != SERVER], ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    needed = NEEDED.get(path.stem)
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{path.name} needs {needed}")
    run = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not list(tmp_path.iterdir()), "it leaves files where it runs"


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_help(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for package in NEEDED.values():
        monkeypatch.setitem(sys.modules, package, None)
    assert run_here(path.stem, ["--help"], monkeypatch) == 0
    assert "--help" in capsys.readouterr().out


def test_missing_extensions_are_named() -> None:
    # In a process of its own: in this one the package may have been used before.
    program = (
        "import runpy, sys\n"
        "sys.modules['onnxruntime_extensions'] = None\n"
        f"sys.argv = ['run_with_kernels.py']; sys.path.insert(0, {str(EXAMPLES)!r})\n"
        f"runpy.run_path({str(EXAMPLES / 'run_with_kernels.py')!r}, run_name='__main__')\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert "pip install onnxruntime-extensions" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "package"),
    [
        ("data_parallel", [], "mpi4py"),
        ("export_gpt", [], "torch"),
        ("export_gpt", [], "onnxscript"),
        ("train_gpt", ["--picture", "loss.png"], "matplotlib"),
    ],
)
def test_a_missing_package_is_named(
    name: str,
    arguments: list[str],
    package: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    find_spec = importlib.util.find_spec
    others = set(NEEDED.values()) - {package}
    monkeypatch.setattr(importlib.util, "find_spec", lambda each: each in others or find_spec(each))
    monkeypatch.setitem(sys.modules, package, None)
    assert run_here(name, arguments, monkeypatch) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("Error: ")
    assert errors.count("\n") == 1
    assert package.replace("_", "-") in errors
    assert "pip install" in errors


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train_gpt", ["--model", str(EXAMPLES / "program.py")], "is no model that export_gpt.py wrote"),
        ("train_gpt", ["--model", str(EXAMPLES / "torch_encoder_training_lnbp.onnx")], "metadata lacks context"),
        ("train_in_any_runtime", ["--model", str(EXAMPLES / "program.py")], "is no model that export_gpt.py wrote"),
        ("train_gpt", ["--picture", "loss.xyz"], "ends in none of"),
        ("train_gpt", ["--picture", "loss"], "ends in none of"),
        ("train_gpt", ["--picture", "pictures/"], "'pictures/' is a folder"),
        ("data_parallel", ["--save", "."], "'.' is a folder"),
        ("export_gpt", ["."], "'.' is a folder"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(
    name: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(name, arguments, monkeypatch) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.out == ""
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "loss.png")

    with pytest.raises(SystemExit) as end:
        program.run(fail)
    assert end.value.code == 2
    assert capsys.readouterr().err == "Error: loss.png: No space left on device.\n"


@pytest.mark.parametrize(
    ("runtime", "module", "message"),
    [
        ("openvino", "openvino", "pip install openvino"),
        ("opencv", "cv2", "pip install opencv-python-headless"),
        ("tract", "tract", "pip install tract"),
        ("iree", "iree", "pip install iree-base-compiler iree-base-runtime"),
        ("onnxruntime-web", "", "node is"),
    ],
)
def test_a_missing_runtime_is_named(
    runtime: str, module: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(NotInstalledError, match=message), RUNTIMES[runtime](tmp_path):
        pass


def test_a_closed_pipe_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run_here("decompose_encoder", [], monkeypatch) == 141
    assert capsys.readouterr().err == ""
