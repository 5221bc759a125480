# SPDX-License-Identifier: Apache-2.0
"""The examples in other languages against Python on the same inputs.

The environment variable LNBP_RUN_MODEL holds the command. ``nox -s cpp`` builds the C++ example from the installed
library and runs all of it. For C#, Java and Rust the library is part of the command, and what it takes is fewer:
``LNBP_RUN_MODEL="target/release/run_model $LIBRARY" pytest -k any_language tests/test_run_model.py``.
"""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import Case
from onnx import ModelProto, helper

import lnbp_onnx

PROGRAM = shlex.split(os.environ.get("LNBP_RUN_MODEL", ""))
ENCODER = Path(__file__).parents[1] / "examples/torch_encoder_training_lnbp.onnx"

pytestmark = pytest.mark.skipif(not PROGRAM, reason="LNBP_RUN_MODEL names no program")


def drawn(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    index = np.arange(np.prod(shape, dtype=int))
    values = index % 2 if dtype.kind in "biu" else np.float32(0.01) * (index + 1).astype(np.float32)
    return values.astype(dtype).reshape(shape)


def expected(model: ModelProto, length: int) -> dict[str, np.ndarray]:
    session = lnbp_onnx.inference_session(model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    feeds = {
        each.name: drawn(
            tuple(dim if isinstance(dim, int) else length for dim in each.shape),
            helper.tensor_dtype_to_np_dtype(types[each.name]),
        )
        for each in session.get_inputs()
    }
    if any(each.dtype.name == "bfloat16" for each in feeds.values()):
        outputs = onnx.reference.ReferenceEvaluator(model, new_ops=[lnbp_onnx.LayerNormBackprop]).run(None, feeds)
    else:
        outputs = session.run(None, feeds)
    return dict(zip([output.name for output in model.graph.output], outputs, strict=True))


def check(path: Path, length: int | None = None) -> None:
    arguments = [*PROGRAM, str(path), *([] if length is None else [str(length)])]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    found = dict(line.split(":", 1) for line in run.stdout.splitlines())
    wanted = expected(onnx.load(path), 2 if length is None else length)
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        printed = [float(word) for word in found[name].replace("...", "").split()]
        first = values.ravel()[:8].astype(np.float64)
        spacing = 2**-7 if values.dtype.name == "bfloat16" else 1e-6
        np.testing.assert_allclose(printed, first, rtol=spacing, atol=spacing * np.abs(first).max(initial=0))


@pytest.mark.parametrize("type_name", ["float", "double", "float16", "bfloat16", "int8", "uint64", "int32"])
def test_types(type_name: str, tmp_path: Path) -> None:
    onnx.save(Case("cpp", (4, 6), t=type_name).model(), tmp_path / "m.onnx")
    check(tmp_path / "m.onnx")


def test_any_language_runs_open_lengths(tmp_path: Path) -> None:
    onnx.save(Case("cpp", (4, 6)).model(shapes="symbolic"), tmp_path / "m.onnx")
    check(tmp_path / "m.onnx")


def test_any_language_runs_a_training_graph() -> None:
    check(ENCODER)


def test_any_language_says_what_is_wrong(tmp_path: Path) -> None:
    for arguments, code in (([], 2), ([str(tmp_path / "m.onnx")], 1)):
        check_refused(arguments, code)


def test_given_lengths(tmp_path: Path) -> None:
    onnx.save(Case("cpp", (4, 6)).model(shapes="symbolic"), tmp_path / "m.onnx")
    check(tmp_path / "m.onnx", 5)
    for length in ("x", "-1"):
        check_refused([str(tmp_path / "m.onnx"), length], 2)


def check_refused(arguments: list[str], code: int) -> None:
    run = subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == code
    assert run.stderr
