# SPDX-License-Identifier: Apache-2.0
"""An editable install: ``nox -s editable``, which builds the library twice, into a copy of the source folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import ROOT, python_blocks

README_BLOCK = python_blocks("README.md")[0]
# Of a message in node.cc.
OLD, NEW = "it must be 0 or 1", "it must be 0 or one"


def run(*command: object, folder: Path) -> str:
    process = subprocess.run([*map(str, command)], cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def install(source: Path, *options: str) -> None:
    command = ["pip", "install", "-q", "--no-build-isolation", "--no-deps", *options, "-e", source]
    run(sys.executable, "-m", *command, folder=source)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for name in ("lnbp_onnx", "ops"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_editable(source: Path, tmp_path: Path) -> None:
    install(source)
    program = f"{README_BLOCK}\nprint(lnbp_onnx.__file__, lnbp_onnx.get_library_path(), sep='\\n')"
    for folder in (tmp_path, source):
        module, library = run(sys.executable, "-c", program, folder=folder).splitlines()
        assert Path(module) == source / "lnbp_onnx" / "__init__.py"
        assert Path(library).is_file()


def test_rebuilt_on_import(source: Path, tmp_path: Path) -> None:
    install(source, "-Ceditable.rebuild=true")
    file = source / "ops" / "src" / "ort" / "node.cc"
    text = file.read_text()
    assert text.count(OLD) == 1
    file.write_text(text.replace(OLD, NEW))
    # Ninja and CMake go by the times of files, which a clock that is set meanwhile would mix up.
    (installed,) = source.glob("build/*/install/**/liblnbp_onnx_ops.so")
    os.utime(installed, (0, 0))
    later = file.stat().st_mtime + 3600
    os.utime(file, (later, later))
    program = "import lnbp_onnx; print(lnbp_onnx.get_library_path())"
    rebuilt = [sys.executable, "-c", program]
    environment = os.environ | {"SKBUILD_EDITABLE_VERBOSE": "1"}
    process = subprocess.run(rebuilt, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == str(installed)
    assert NEW.encode() in installed.read_bytes(), process.stderr
