# SPDX-License-Identifier: Apache-2.0
"""Whatever call the writing of a model ends at, OUT is the whole old model or the whole new one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from interrupted_runs import contents
from weighted_models import external, weighted_model, weights

import lnbp_onnx

pytestmark = [
    pytest.mark.product,
    pytest.mark.skipif(sys.platform != "linux", reason="preloads a library, and reads /proc"),
]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("library") / "failing_calls.so"
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no compiler {compiler}")
    options = ["-x", "c", "-shared", "-fPIC", "-O0", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *options, "-o", path, HERE / "failing_calls.c", "-ldl"], check=True)
    return path


def stopped_runs(library: Path, work: Path, arguments: list[str], share: str, hows: list[str]) -> list[dict[str, Any]]:
    (work / "arguments.json").write_text(json.dumps(arguments))
    program = [sys.executable, "-W", "ignore", str(HERE / "interrupted_runs.py"), str(work), share, *hows]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    run = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def check_runs(runs: list[dict[str, Any]], share: str, out: str, old: dict[str, str], old_data: str) -> None:
    """Each run leaves `out` with its data as they were before or as the run that nothing stopped leaves them."""
    complete, *stopped = runs
    assert complete["code"] == 0, complete["stderr"]
    new = complete["files"]
    written = {name for name in new if new[name] != old.get(name)}
    assert out in written
    assert len(written) == 2  # the model and a data file under a name that was free
    assert not written & set(old) - {out}
    states = set()
    for run in stopped:
        files, found = run["files"], f"{run['how']} at {run['call']}, call {run['at']}: {run['stderr']}"
        is_new = files[out] == new[out]
        states.add(is_new)
        expected = new if is_new else old
        assert {name: files.get(name) for name in expected} == expected, found
        left_over = set(files) - set(expected)
        # Where it is not known whether the new names are on the disk, the old data stays.
        left_over -= {old_data} if is_new else set()
        if run["how"] == "SIGKILL":
            left_over -= written
            assert not left_over or re.fullmatch(r"\w+/\.m\.onnx\.[0-9a-f]{16}\.tmp", *left_over), found
        else:
            assert not left_over, found
            assert "Traceback" not in run["stderr"], found
        assert run["code"] != 0 or is_new, found
        assert run["code"] in {"SIGKILL": {-9}, "SIGTERM": {-15}, "SIGINT": {130}}.get(run["how"], {0, 2}), found
    if share == "tenth":
        return
    assert states == {True, False}
    calls = {run["call"].removesuffix("64") for run in stopped}  # C libraries differ in which of both is called
    assert {"open", "read", "write", "fsync", "rename"} <= calls


def test_another_folder(library: Path, tmp_path: Path, share: str) -> None:
    """An OUT that is there, with data of its own, gets another graph and other data."""
    before, after = tmp_path / "before", tmp_path / "after"
    for seed, folder in enumerate(("in", "out")):
        path = before / folder / "m.onnx"
        path.parent.mkdir(parents=True)
        path.with_name("m.onnx.data").write_bytes(weights(seed).tobytes())
        path.write_bytes(weighted_model(external("gamma", [64], "m.onnx.data", 0, 256)).SerializeToString())
    arguments = ["decompose", f"{tmp_path}/now/in/m.onnx", f"{tmp_path}/now/out/m.onnx", "--force", "-q"]
    runs = stopped_runs(library, tmp_path, arguments, share, ["SIGKILL", "SIGTERM", "EIO"])
    check_runs(runs, share, "out/m.onnx", contents(before), "out/m.onnx.data")
    assert set(contents(after)) == {"in/m.onnx", "in/m.onnx.data", "out/m.onnx", "out/m.onnx.2.data"}
    assert lnbp_onnx.compare(before / "in/m.onnx", after / "out/m.onnx").ok
    assert not lnbp_onnx.compare(before / "out/m.onnx", after / "out/m.onnx").ok


def test_in_place(library: Path, tmp_path: Path, share: str) -> None:
    """The only model there is gets another graph, and new data beside the data that it has."""
    before, after = tmp_path / "before", tmp_path / "after"
    path = before / "model" / "m.onnx"
    path.parent.mkdir(parents=True)
    path.with_name("m.onnx.data").write_bytes(weights(0).tobytes())
    inside = onnx.numpy_helper.from_array(weights(1), "gamma")
    path.write_bytes(weighted_model(external("a", [64], "m.onnx.data", 0, 256), inside).SerializeToString())
    arguments = ["decompose", f"{tmp_path}/now/model/m.onnx", "--in-place", "--size-threshold", "0", "-q"]
    runs = stopped_runs(library, tmp_path, arguments, share, ["SIGKILL", "SIGINT", "ENOSPC"])
    check_runs(runs, share, "model/m.onnx", contents(before), "model/m.onnx.data")
    assert set(contents(after)) == {"model/m.onnx", "model/m.onnx.data", "model/m.onnx.2.data"}
    assert lnbp_onnx.compare(path, after / "model/m.onnx").ok
