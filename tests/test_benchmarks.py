# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' harness: what is wrong is refused, what is missing is named, what is right is timed."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import contenders
import numpy as np
import pytest
import report
from compiled import MissingError
from contenders import OURS, Contender
from measure import measure
from problem import TYPES, Problem
from timing import Ratio, Round, geometric_mean, ratio

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "oneDNN", "triad", "triad, streaming")
SESSIONS = [name for name in contenders.BUILDERS if name not in LIBRARIES]


def idle(count: int) -> None:
    pass


@pytest.mark.parametrize("element_type", TYPES)
def test_sessions_are_right_and_timed(element_type: str) -> None:
    builders = {name: contenders.BUILDERS[name] for name in SESSIONS}
    configuration = measure(Problem(3, 40, element_type), 1, builders, rounds=1)
    for name, outcome in configuration.outcomes.items():
        assert not outcome.faults, name
        # ONNX Runtime's Mul has no bfloat16.
        assert outcome.rounds or (name, element_type) == (contenders.PRODUCT, "bfloat16"), outcome.missing


@pytest.mark.parametrize("output", ["input_delta", "gamma_delta", "beta_delta"])
@pytest.mark.parametrize("spoil", [lambda a: a * 1.01, lambda a: a * np.nan, lambda a: a * 0], ids=["1%", "nan", "0"])
@pytest.mark.parametrize("element_type", ["float", "double"])
def test_a_wrong_contender_is_not_timed(
    element_type: str, spoil: Callable[[np.ndarray], np.ndarray], output: str
) -> None:
    def build_wrong(problem: Problem, threads: int) -> Contender:
        right = contenders.kernel(problem, threads)
        right.run(1)
        outputs = dict(right.outputs())
        outputs[output] = spoil(outputs[output])
        return Contender("wrong", "gradient", idle, lambda: outputs)

    builders = {OURS: contenders.kernel, "wrong": build_wrong}
    configuration = measure(Problem(7, 33, element_type), 1, builders, rounds=1)
    wrong = configuration.outcomes["wrong"]
    assert not wrong.rounds
    assert wrong.faults
    assert output in wrong.faults[0]
    assert configuration.outcomes[OURS].rounds
    assert any("WRONG" in line and output in line for line in report.remarks([configuration]))


def test_known_low_precision_is_told_but_zeros_are_wrong() -> None:
    problem = Problem(64, 33, "bfloat16")
    outputs = problem.new_outputs()
    for name, exact in problem._gradient.items():
        outputs[name][...] = exact
    assert not problem.errors("gradient", outputs)
    outputs["beta_delta"] *= np.float32(1.01)
    assert [e.is_fault for e in problem.errors("gradient", outputs)] == [True]
    assert [e.is_fault for e in problem.errors("gradient", outputs, sums_in=problem.dtype)] == [False]
    outputs["beta_delta"][...] = 0
    assert [e.is_fault for e in problem.errors("gradient", outputs, sums_in=problem.dtype)] == [True]


def test_an_output_left_out_is_a_fault() -> None:
    problem = Problem(2, 3, "float")
    assert problem.errors("gradient", {"input_delta": problem.inputs["input_forward"]})[0].is_fault


def test_a_missing_contender_is_named() -> None:
    def build_missing(*_: object) -> Contender:
        raise MissingError("it is not installed")

    configuration = measure(Problem(2, 3, "float"), 1, {OURS: contenders.kernel, "absent": build_missing}, rounds=1)
    assert "absent, float: missing: it is not installed" in report.remarks([configuration])
    assert configuration.ratio("absent", OURS) is None


def test_ratios() -> None:
    slow = [Round(2.0, 6.0), Round(4.0, 4.0), Round(3.0, 9.0)]
    fast = [Round(1.0, 2.0), Round(2.0, 4.0), Round(2.0, 2.0)]
    assert ratio(slow, fast) == Ratio(2.0, 3.0)
    mean = geometric_mean([Ratio(2.0, 1.0), Ratio(8.0, 1.0)])
    assert (mean.of_minima, mean.of_medians) == pytest.approx((4.0, 1.0))


def test_command_line(tmp_path: Path) -> None:
    """Whatever is installed: each contender is timed or said to be missing, and none is wrong."""
    results = tmp_path / "results.json"
    command = [sys.executable, "benchmarks/run.py", "--shapes", "5x24", "--types", "float", "--threads", "1"]
    done = subprocess.run(
        [*command, "--rounds", "1", "--json", str(results)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plain, unaligned, computed = json.loads(results.read_text())["configurations"]
    assert [each["case"] for each in (plain, unaligned, computed)] == ["plain", "unaligned", "computed"]
    assert set(plain["outcomes"]) == set(unaligned["outcomes"]) == set(contenders.BUILDERS)
    assert set(computed["outcomes"]) == set(contenders.COMPUTING_BUILDERS)
    for configuration in (plain, unaligned, computed):
        for name, outcome in configuration["outcomes"].items():
            assert bool(outcome["rounds"]) != bool(outcome["missing"]), name
            assert not outcome["missing"] or f"{name}, float: missing: " in done.stdout
