# SPDX-License-Identifier: Apache-2.0
"""Every case of the table through every way of running the operator, against the oracle.

What ran is read from the graph that ONNX Runtime writes after its optimisations: equal numbers alone do not show it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import CASES, OUTPUTS, SMALL_CASES, Case
from onnx import TensorProto, helper
from sessions import session_options

import lnbp_onnx
from lnbp_onnx.running.runners import PlainRunner, ReferenceRunner, run_session
from lnbp_onnx.running.session import Kernel, inference_session

Outputs = dict[str, np.ndarray[Any, Any]]

OLDEST_OPSET = 11
# Where the forms of the operators that a body is made of change.
TURNING_POINTS = {11, 12, 13, 14, 18}


def newest_opset() -> int:
    """Return the newest opset that both onnx and ONNX Runtime, as installed, know."""
    for version in range(onnx.defs.onnx_opset_version(), 0, -1):
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
        try:
            PlainRunner(helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8))
        except lnbp_onnx.InvalidModelError:
            continue
        return version
    raise AssertionError("no opset is known")


def operators_that_ran(path: Path) -> list[str]:
    return [f"{node.domain}::{node.op_type}" for node in onnx.load(path).graph.node]


def in_onnxruntime(model: onnx.ModelProto, feeds: Outputs) -> Outputs:
    """Run a model of standard operators, first with ONNX Runtime's optimisations off, then on."""
    PlainRunner(model, session_options("ORT_DISABLE_ALL")).run(feeds)
    return PlainRunner(model, session_options()).run(feeds)


def run_function(case: Case, _: Path) -> Outputs:
    results = lnbp_onnx.layer_norm_backprop(
        **case.arrays(),
        begin_norm_axis=case.axis,
        use_affine=case.affine,
        epsilon=case.epsilon,
        use_stats=case.stats,
    )
    wanted = dict(zip(OUTPUTS, case.wanted, strict=False))
    return {name: value for name, value in zip(OUTPUTS, results, strict=True) if value is not None and wanted.get(name)}


def run_evaluator(case: Case, _: Path) -> Outputs:
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


def run_decomposed(case: Case, _: Path) -> Outputs:
    model = decomposed(case)
    # ConstantOfShape is not among them: of a constant it is how zeros are written.
    dynamic = {"Shape", "Size", "Gather", "Slice", "Range", "Concat", "Where"}
    assert dynamic.isdisjoint(node.op_type for node in model.graph.node)
    return in_onnxruntime(model, case.arrays())


def run_decomposed_in_evaluator(case: Case, _: Path) -> Outputs:
    return ReferenceRunner(decomposed(case)).run(case.arrays())


def run_kernel(case: Case, folder: Path, kernel: Kernel, operator: str) -> Outputs:
    options = session_options(optimized_model_filepath=str(folder / "ran.onnx"))
    results = run_session(inference_session(case.model(), kernel=kernel, sess_options=options), case.arrays())
    ran = operators_that_ran(folder / "ran.onnx")
    assert ran.count(operator) == 1
    assert set(ran) <= {operator, "::Cast", "::Constant"}
    return results


def run_embedded_with_library(case: Case, folder: Path) -> Outputs:
    options = session_options(optimized_model_filepath=str(folder / "ran.onnx"))
    options.register_custom_ops_library(lnbp_onnx.get_library_path())
    results = PlainRunner(lnbp_onnx.embed(case.model()), options).run(case.arrays())
    assert operators_that_ran(folder / "ran.onnx") == ["lnbp::LayerNormBackprop"]
    return results


def run_embedded(case: Case, folder: Path) -> Outputs:
    results = PlainRunner(
        lnbp_onnx.embed(case.model()), session_options(optimized_model_filepath=str(folder / "ran.onnx"))
    ).run(case.arrays())
    assert not [operator for operator in operators_that_ran(folder / "ran.onnx") if "LayerNormBackprop" in operator]
    return results


WAYS: dict[str, Callable[[Case, Path], Outputs]] = {
    "function": run_function,
    "evaluator": run_evaluator,
    "native": partial(run_kernel, kernel="native", operator="lnbp::LayerNormBackprop"),
    "extensions": partial(run_kernel, kernel="extensions", operator="ai.onnx.contrib::LayerNormBackprop"),
    "python": partial(run_kernel, kernel="python", operator="lnbp.python::LayerNormBackprop"),
    "decomposed": run_decomposed,
    "decomposed-evaluator": run_decomposed_in_evaluator,
    "embedded-with-library": run_embedded_with_library,
    "embedded": run_embedded,
}


@pytest.mark.product
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, way: str, tmp_path: Path) -> None:
    case.check(WAYS[way](case, tmp_path))


def varied_cases() -> Iterator[Case]:
    """Yield the cases that differ in what they become, not in values or types alone."""
    for case in SMALL_CASES:
        family = case.name.split("-")[0]
        if family in ("axes", "gamma", "stats", "empty", "attributes", "outputs"):
            yield case
        if family == "types" and case.t in ("double", "float16", "int64", "bfloat16"):
            yield case


@pytest.mark.product
@pytest.mark.parametrize("shapes", ["symbolic", "unknown"])
@pytest.mark.parametrize("case", list(varied_cases()), ids=lambda case: case.name)
def test_shapes_known_only_at_run_time(case: Case, shapes: str) -> None:
    model = decomposed(case, shapes=shapes)
    case.check(in_onnxruntime(model, case.feeds(shapes)))


def cases_of_opsets() -> Iterator[tuple[int, Case, str]]:
    """Yield the varied cases in each opset: all where something changes and in the newest, some in the others."""
    cases = list(varied_cases())
    for opset in range(OLDEST_OPSET, newest_opset() + 1):
        for case in cases if opset in TURNING_POINTS | {newest_opset()} else cases[::4]:
            if case.t == "bfloat16" and opset < 13:
                continue
            yield opset, case, "static"
            if opset >= (14 if 0 in case.shape else 13):
                yield opset, case, "symbolic"
                yield opset, case, "unknown"


@pytest.mark.product
@pytest.mark.parametrize(
    ("opset", "case", "shapes"),
    list(cases_of_opsets()),
    ids=lambda value: value.name if isinstance(value, Case) else None,
)
def test_every_opset(opset: int, case: Case, shapes: str) -> None:
    case.check(in_onnxruntime(decomposed(case, opset, shapes), case.feeds(shapes)))
