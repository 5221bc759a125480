# SPDX-License-Identifier: Apache-2.0
"""Every way refuses the table of bad inputs, and none ends the process."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bad_inputs
import onnx
import pytest
from bad_inputs import BAD_INPUTS, GOOD_INPUT, BadInput

import lnbp_onnx
from lnbp_onnx.node import TensorInfo, describe, parse
from lnbp_onnx.running.runners import ReferenceRunner

KERNELS = ("native", "plain", "extensions", "python")


def parse_it(bad: BadInput) -> None:
    node = bad.node()
    parse(
        describe(node.name, node.output),
        {attribute.name: attribute for attribute in node.attribute},
        [TensorInfo(*bad.present[name]) if name else None for name in node.input],
        [bool(name) for name in node.output],
    )


def make_it(bad: BadInput) -> None:
    names: dict[str, Any] = {name: name if name in bad.present else "" for name in bad_inputs.INPUTS}
    lnbp_onnx.make_node(**names, outputs=bad.outputs, name="norm_grad", **bad.attributes)


def check_it(bad: BadInput) -> None:
    onnx.checker.check_model(bad.model(), full_check=True)


def evaluate_it(bad: BadInput) -> None:
    ReferenceRunner(bad.model()).run(bad.feeds())


def decompose_it(bad: BadInput) -> None:
    lnbp_onnx.decompose(bad.model())


WAYS: dict[str, Callable[[BadInput], None]] = {
    "parse": parse_it,
    "checker": check_it,
    "evaluator": evaluate_it,
    "decompose": decompose_it,
}


def check_message(bad: BadInput, way: str, message: str) -> None:
    expected = bad.expected(way)
    assert expected is not None
    assert expected in message
    assert "norm_grad" in message


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: bad.name)
def test_refused(bad: BadInput, way: str) -> None:
    if bad.expected(way) is None:
        WAYS[way](bad)
        return
    with pytest.raises(Exception, match="norm_grad") as refusal:
        WAYS[way](bad)
    check_message(bad, way, str(refusal.value))
    if way not in bad.other:
        assert isinstance(refusal.value, lnbp_onnx.InvalidNodeError)


@pytest.mark.parametrize("bad", [bad for bad in BAD_INPUTS if bad.is_for_make_node], ids=lambda bad: bad.name)
def test_refused_by_make_node(bad: BadInput) -> None:
    with pytest.raises(lnbp_onnx.InvalidNodeError) as refusal:
        make_it(bad)
    check_message(bad, "make_node", str(refusal.value))


def test_no_kernel_ends_the_process() -> None:
    """Run the table through all of them in a process of its own, and see what came of each entry."""
    program = [sys.executable, bad_inputs.__file__, *KERNELS]
    process = subprocess.run(program, capture_output=True, text=True, check=False, timeout=600)
    lines = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, f"ended after {lines[-1:]}: {process.stderr[-2000:]}"
    found = {(kernel, name, shapes_known): outcome for kernel, name, shapes_known, outcome in lines}
    assert len(found) == 2 * len(KERNELS) * (len(BAD_INPUTS) + 1)
    for kernel, shapes_known in itertools.product(KERNELS, (True, False)):
        assert found[kernel, GOOD_INPUT.name, shapes_known] is None
        for bad in BAD_INPUTS:
            message = found[kernel, bad.name, shapes_known]
            if bad.expected(kernel) is None:
                assert message is None, (bad.name, message)
                continue
            assert message is not None, (kernel, bad.name)
            check_message(bad, kernel, message)
            # At run time the errors of the C++ kernel come from ONNX Runtime.
            allowed = {"python": {"InvalidNodeError"}}.get(kernel, {"InvalidNodeError", "InvalidArgument"})
            assert kernel == "plain" or message.partition(":")[0] in allowed, (kernel, bad.name, message)


def test_the_table_runs_where_the_package_is(tmp_path: Path) -> None:
    """The processes import what this one does."""
    program = "import lnbp_onnx; print(lnbp_onnx.__file__)"
    found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == lnbp_onnx.__file__
