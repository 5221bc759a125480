# SPDX-License-Identifier: Apache-2.0
"""Every case of the table through every way of running the operator, against the oracle."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import CASES, OUTPUTS, SMALL_CASES, Case

import lnbp_onnx
from lnbp_onnx.runners import PlainRunner, ReferenceRunner

Outputs = dict[str, np.ndarray[Any, Any]]

OLDEST_OPSET = 11
NEWEST_OPSET = 26


def session_options(level: str) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    return options


def in_onnxruntime(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    """Run a model with ONNX Runtime's optimisations on and off; the two must be near each other."""
    results = [PlainRunner(model, session_options(level)).run(feeds) for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL")]
    return results[1]


def run_function(case: Case) -> Outputs:
    results = lnbp_onnx.layer_norm_backprop(
        **case.arrays(),
        begin_norm_axis=case.axis,
        use_affine=case.affine,
        epsilon=case.epsilon,
        use_stats=case.stats,
    )
    wanted = dict(zip(OUTPUTS, case.wanted, strict=False))
    return {name: value for name, value in zip(OUTPUTS, results, strict=True) if wanted.get(name)}


def run_evaluator(case: Case) -> Outputs:
    return ReferenceRunner(case.model()).run(case.arrays())


def decomposed(case: Case, opset: int = 17, shapes: str = "static") -> onnx.ModelProto:
    """Decompose a case's model and check what came of it."""
    model = case.model(opset, shapes)
    onnx.checker.check_model(model, full_check=True)
    result = lnbp_onnx.decompose(model)
    onnx.checker.check_model(result, full_check=True)
    onnx.shape_inference.infer_shapes(result, strict_mode=True, data_prop=True)
    assert all(node.domain == "" for node in result.graph.node)
    assert [opset.domain for opset in result.opset_import] == [""]
    return result


def run_decomposed(case: Case) -> Outputs:
    model = decomposed(case)
    dynamic = {"Shape", "Size", "Gather", "Slice", "Range", "ConstantOfShape", "Concat", "Where"}
    assert dynamic.isdisjoint(node.op_type for node in model.graph.node)
    return in_onnxruntime(model, case.arrays())


def run_decomposed_in_evaluator(case: Case) -> Outputs:
    return ReferenceRunner(decomposed(case)).run(case.arrays())


WAYS: dict[str, Callable[[Case], Outputs]] = {
    "function": run_function,
    "evaluator": run_evaluator,
    "decomposed": run_decomposed,
    "decomposed-evaluator": run_decomposed_in_evaluator,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, way: str) -> None:
    case.check(WAYS[way](case))


def varied_cases() -> Iterator[Case]:
    """Yield the cases that differ in what they become, not in values or types alone."""
    for case in SMALL_CASES:
        family = case.name.split("-")[0]
        if family in ("axes", "gamma", "stats", "empty", "attributes", "outputs"):
            yield case
        if family == "types" and case.t in ("double", "float16", "int64", "bfloat16"):
            yield case


@pytest.mark.parametrize("shapes", ["symbolic", "unknown"])
@pytest.mark.parametrize("case", list(varied_cases()), ids=lambda case: case.name)
def test_shapes_known_only_at_run_time(case: Case, shapes: str) -> None:
    model = decomposed(case, shapes=shapes)
    case.check(in_onnxruntime(model, case.feeds(shapes)))


@pytest.mark.parametrize("opset", [*range(OLDEST_OPSET, 17), *range(18, NEWEST_OPSET + 1)])
def test_every_opset(opset: int) -> None:
    for case in varied_cases():
        if case.t == "bfloat16" and opset < 13:
            continue
        for shapes in ("static", "symbolic", "unknown"):
            if shapes != "static" and (opset < 13 or (opset < 14 and 0 in case.shape)):
                continue
            case.check(in_onnxruntime(decomposed(case, opset, shapes), case.feeds(shapes)))
