# SPDX-License-Identifier: Apache-2.0
"""Chromium, driven by a script of playwright's in node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest


def drive(script: str, *arguments: str | Path, needs: tuple[str, ...] = ()) -> Any:
    """Run a script of this folder, which gets Chromium's path first, and return the JSON that it prints."""
    node, browser = shutil.which("node"), shutil.which("chromium")
    if node is None or browser is None:
        pytest.skip("node or Chromium is not installed")
    folder = Path(__file__).parent
    for package in ("playwright-core", *needs):
        ask = [node, "-e", f"require.resolve('{package}')"]
        if subprocess.run(ask, stderr=subprocess.DEVNULL, cwd=folder, check=False).returncode:
            pytest.skip(f"{package} is not installed for node")
    run = [node, folder / script, browser, *arguments]
    return json.loads(subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout)
