# SPDX-License-Identifier: Apache-2.0
"""The source folder beside an installed distribution: which library it takes.

An editable install, which has to be built, is in ``tests/editable.py``.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from documentation import ROOT, python_blocks

import lnbp_onnx
from lnbp_onnx.running import native

README_BLOCK = python_blocks("README.md")[0]


def install(folder: Path, version: str) -> Path:
    """Lay out what pip would install of the package, without the modules, and return where the library is."""
    information = folder / f"lnbp_onnx-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lnbp-onnx\nVersion: {version}\n")
    (folder / "lnbp_onnx" / "lib").mkdir(parents=True)
    return Path(shutil.copy(native.get_library_path(), folder / "lnbp_onnx" / "lib"))


def run_in_source_folder(program: str, installed: Path) -> subprocess.CompletedProcess[str]:
    """Run a program there; without site, nothing redirects imports as an editable install does."""
    places = [installed, *dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, "-S", "-c", program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_readme_in_the_source_folder(tmp_path: Path) -> None:
    library = install(tmp_path, importlib.metadata.version("lnbp-onnx"))
    where = "print(lnbp_onnx.__file__, lnbp_onnx.get_library_path(), sep='\\n')"
    process = run_in_source_folder(f"{README_BLOCK}\n{where}", tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [str(ROOT / "lnbp_onnx" / "__init__.py"), str(library)]


def test_another_version_is_installed(tmp_path: Path) -> None:
    library = install(tmp_path, "0.0.1")
    process = run_in_source_folder("import lnbp_onnx; lnbp_onnx.get_library_path()", tmp_path)
    version = importlib.metadata.version("lnbp-onnx")
    expected = (
        f"KernelError: The native library at {library} is of lnbp-onnx 0.0.1, and the package is imported from the "
        f"source folder {ROOT} of version {version}; they must be the same (run 'pip install .' in the source folder, "
        "or use kernel='python', which does not need it; docs/kernels.md has the ways)."
    )
    assert process.stderr.splitlines()[-1].removeprefix("lnbp_onnx.errors.") == expected


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(native, "_editable", None)
    monkeypatch.setattr(native, "_FOLDER", tmp_path / "lnbp_onnx")
    monkeypatch.setattr(native, "_DISTRIBUTION", "lnbp-onnx-is-not-installed")
    with pytest.raises(lnbp_onnx.KernelError, match=rf"native library is not at {tmp_path}/\S+;.*pip install \.'"):
        lnbp_onnx.get_library_path()
