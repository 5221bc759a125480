# SPDX-License-Identifier: Apache-2.0
"""The smoke set for other versions of ONNX Runtime: ``pytest tests/smoke.py``, which ``nox -s runtimes`` runs on each.

bfloat16 is left out where the runtime's Python interface cannot feed it.
"""

import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
from cases import CASES, Case

import lnbp_onnx
from lnbp_onnx.running.runners import PlainRunner, run_session

FEEDS_BFLOAT16 = hasattr(onnxruntime.OrtValue, "ortvalue_from_numpy_with_onnx_type")
RUN = [case for case in CASES if case.t != "bfloat16" or FEEDS_BFLOAT16]


@pytest.mark.parametrize("case", RUN, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path) -> None:
    """The kernels, the decomposed model and the embedded function; the runtime's own graph says which one ran."""
    model, arrays = case.model(), case.arrays()
    for kernel in ("native", "extensions"):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{kernel}.onnx")
        session = lnbp_onnx.inference_session(model, kernel=kernel, sess_options=options)
        case.check(run_session(session, arrays))
        graph = onnx.load(tmp_path / f"{kernel}.onnx").graph
        assert [node.op_type for node in graph.node].count("LayerNormBackprop") == 1
    case.check(PlainRunner(lnbp_onnx.decompose(model)).run(arrays))
    case.check(PlainRunner(lnbp_onnx.embed(model)).run(arrays))


def test_the_process_ends_well() -> None:
    """Some onnx let go of the schema's inference function after Python's end, and died of it."""
    subprocess.run([sys.executable, "-c", "import lnbp_onnx"], check=True)
