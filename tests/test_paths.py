# SPDX-License-Identifier: Apache-2.0
"""LNBP_ISA names the path that is taken: in no two does a long row's sum round alike, and that shows in the bits."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import CASES

import lnbp_onnx

# What every machine of the kind that runs ONNX Runtime has beside the portable path.
VECTORS = {"x86_64": "avx2", "aarch64": "neon"}.get(platform.machine(), "")

# LNBP_ISA is read once in a process.
PROGRAM = """
import sys
import numpy as np
import onnxruntime
library, model, feeds = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(library)
session = onnxruntime.InferenceSession(model, options)
for output in session.run(None, dict(np.load(feeds))):
    sys.stdout.buffer.write(output.tobytes())
"""


@pytest.mark.skipif(not VECTORS, reason="the library has no vectors for this processor")
def test_the_variable_names_the_path(tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == "columns-4097")
    model, feeds = tmp_path / "model.onnx", tmp_path / "feeds.npz"
    model.write_bytes(case.model().SerializeToString())
    np.savez(feeds, **case.arrays())

    def bits(isa: str) -> bytes:
        command = [sys.executable, "-c", PROGRAM, lnbp_onnx.get_library_path(), str(model), str(feeds)]
        return subprocess.run(command, env={**os.environ, "LNBP_ISA": isa}, check=True, stdout=subprocess.PIPE).stdout

    portable = bits("portable")
    assert portable
    assert bits(VECTORS) != portable
    assert bits("") != portable
