# SPDX-License-Identifier: Apache-2.0
"""Whatever a small file asks for, it ends soon and in little memory, with a result or a sentence."""

import json
import subprocess
import sys
import time

import hostile_models
import onnx_ir as ir
import pytest
from hostile_models import MODELS, REWRITINGS, WAYS, outcome

from lnbp_onnx.graphs.names import unique_names


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory, and reads /proc")
def test_none_ends_the_process_or_takes_long() -> None:
    program = [sys.executable, "-W", "ignore", hostile_models.__file__]
    process = subprocess.run(program, capture_output=True, text=True, check=False, timeout=600)
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, f"{lines[-1:]}: {process.stderr[-2000:]}"
    found = {(name, way): result for name, way, result, _ in lines if result != "started"}
    assert set(found) == {(name, way) for name in MODELS for way in WAYS}
    wrong = {key: result for key, result in found.items() if result.startswith(("raised", "refused: LnbpError"))}
    assert not wrong
    refused = {name for (name, way), result in found.items() if way in REWRITINGS and result.startswith("refused")}
    assert refused == {
        "a node reads itself",
        "nodes read each other",
        "calls in a line",
        "calls that double",
        "calls in many ways",
        "calls in a circle",
        "many axes",
        "names that repeat",
        "too many functions",
        "training operators",
        "scatterings",
        "index tuples",
    }


def test_a_name_that_many_nodes_have() -> None:
    unique_name = unique_names({"a_3"})
    start = time.process_time()
    assert [unique_name("a") for _ in range(4)] == ["a", "a_2", "a_4", "a_5"]
    assert len({unique_name("b") for _ in range(20000)}) == 20000
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", ["a node reads itself", "calls in a circle", "calls that double", "calls in a line"])
@pytest.mark.parametrize("way", REWRITINGS)
def test_both_kinds_of_models_are_refused_alike(name: str, way: str) -> None:
    model = MODELS[name]()
    assert outcome(ir.from_proto(model), way) == outcome(model, way)
