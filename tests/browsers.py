# SPDX-License-Identifier: Apache-2.0
"""Chromium, driven by a script of playwright's in node."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parent


def need(*packages: str) -> tuple[str, str]:
    """Return the paths of node and Chromium; skip the test where one of them, or a package of node's, is missing."""
    node, browser = shutil.which("node"), shutil.which("chromium")
    if node is None or browser is None:
        pytest.skip("node or Chromium is not installed")
    for package in packages:
        ask = [node, "-e", f"require.resolve('{package}')"]
        if subprocess.run(ask, stderr=subprocess.DEVNULL, cwd=_FOLDER, check=False).returncode:
            pytest.skip(f"{package} is not installed for node")
    return node, browser


def drive(script: str, *arguments: str | Path) -> Any:
    """Run a script of this folder, which gets Chromium's path first, and return the JSON that it prints."""
    node, browser = need("playwright-core")
    run = [node, _FOLDER / script, browser, *arguments]
    return json.loads(subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout)
