# SPDX-License-Identifier: Apache-2.0
"""The operators of ONNX Runtime training, each rewritten and run in plain ONNX Runtime.

What is expected comes from `training_op_cases.py` (finite differences in float64) and from what onnxruntime-training
1.19.2 computed for the same nodes (`record_training_ops.py`).
"""

import re
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from training_op_cases import CASES, Array, Case

import lnbp_onnx
from lnbp_onnx.graphs.foreign import is_foreign
from lnbp_onnx.running.runners import PlainRunner
from lnbp_onnx.training_ops import MICROSOFT_DOMAIN, NOT_COVERED, REWRITINGS

ROOT = Path(__file__).parents[1]
RECORDED = np.load(ROOT / "tests" / "data" / "ort_training_ops.npz")
BY_NAME = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
# The operators that exist from an opset on: ReduceSum with axes at run time.
OLDEST = {"SoftmaxCrossEntropyLossInternal": 11}
NEEDS_13 = {"DivGrad_b", "DivGrad_a", "DivGrad_both", "DivGrad_scalar"}


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {""}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def compare(outputs: list[Array], expected: list[Array], tolerance: float) -> None:
    for output, wanted in zip(outputs, expected, strict=True):
        assert output.shape == wanted.shape
        assert output.dtype == wanted.dtype
        scale = max(float(np.abs(wanted).max(initial=0)), 1e-30) if wanted.dtype.kind == "f" else 1
        error = np.abs(output.astype(np.float64) - wanted.astype(np.float64)).max(initial=0) / scale
        assert error <= (tolerance if wanted.dtype.kind == "f" else 0)


@BY_NAME
def test_finite_differences(case: Case) -> None:
    outputs = run(lnbp_onnx.decompose(case.model(), training_ops=True), case.feeds())
    compare(outputs, case.wanted(), 2e-6)


@BY_NAME
def test_recorded(case: Case) -> None:
    """onnxruntime-training 1.19.2 computed the same."""
    names = [f"{case.name}/y{index}" for index in range(len(case.expected))]
    assert all((name in RECORDED) == case.is_recorded for name in names)
    if case.is_recorded:
        outputs = run(lnbp_onnx.decompose(case.model(), training_ops=True), case.feeds())
        compare(outputs, [RECORDED[name] for name in names], 2e-6)


@pytest.mark.product
@pytest.mark.parametrize("opset", [11, 13, 18, 23])
@BY_NAME
def test_opsets(case: Case, opset: int) -> None:
    model = case.model(opset)
    if opset < OLDEST.get(case.op_type, 13 if case.name in NEEDS_13 else 11):
        with pytest.raises(lnbp_onnx.InvalidModelError, match=r"from (opset )?1[36] on"):
            lnbp_onnx.decompose(model, training_ops=True)
        return
    outputs = run(lnbp_onnx.decompose(model, training_ops=True), case.feeds())
    compare(outputs, case.wanted(), 2e-6)


NEEDS_LENGTHS = ("ConvGrad", "ConvTransposeGrad", "AveragePoolGrad", "MaxPoolGrad", "GatherNDGrad")


@BY_NAME
def test_dynamic_shapes(case: Case) -> None:
    model = case.model(dynamic=True)
    if case.op_type in NEEDS_LENGTHS:
        with pytest.raises(lnbp_onnx.InvalidModelError, match=rf"{case.op_type} node 'node': the shape of .* must be"):
            lnbp_onnx.decompose(model, training_ops=True)
        return
    outputs = run(lnbp_onnx.decompose(model, training_ops=True), case.feeds())
    compare(outputs, case.wanted(), 2e-6)


ROUNDING = {"FLOAT16": (np.dtype(np.float16), 2.0**-10), "BFLOAT16": (np.dtype(ml_dtypes.bfloat16), 2.0**-7)}


# InvertibleLayerNormalizationGrad hands LayerNormBackprop an input that it computed, rounded to the half type.
ROUNDED_ONCE = [case for case in CASES if case.op_type != "InvertibleLayerNormalizationGrad"]


@pytest.mark.product
@pytest.mark.parametrize("element_type", ROUNDING)
@pytest.mark.parametrize("case", ROUNDED_ONCE, ids=lambda case: case.name)
def test_half_types(case: Case, element_type: str) -> None:
    """Computed in float: the result is that of the rounded inputs in float, rounded once."""
    dtype, ulp = ROUNDING[element_type]
    floats = {name for name, value in case.feeds().items() if value.dtype.kind == "f"}
    feeds = {name: value.astype(dtype) if name in floats else value for name, value in case.feeds().items()}
    wide = {name: feeds[name].astype(value.dtype) for name, value in case.feeds().items()}
    expected = run(lnbp_onnx.decompose(case.model(), training_ops=True), wide)
    model = lnbp_onnx.decompose(case.model(element_type=element_type), training_ops=True)
    onnx.checker.check_model(model, full_check=True)
    outputs = list(PlainRunner(model).run(feeds).values())
    for output, wanted in zip(outputs, expected, strict=True):
        assert np.asarray(output).dtype == (dtype if wanted.dtype.kind == "f" else wanted.dtype)
        difference = np.abs(np.asarray(output, np.float64) - wanted.astype(np.float64))
        assert (difference <= ulp * np.abs(wanted) + 1e-6 * np.abs(wanted).max(initial=0)).all()


def of(name: str) -> onnx.ModelProto:
    return next(case for case in CASES if case.name == name).model()


def conv_of_another_rank() -> onnx.ModelProto:
    model = of("ConvGrad_grouped")
    model.graph.input[1].type.tensor_type.shape.dim.add().dim_value = 2
    return model


def conv_without_a_stride() -> onnx.ModelProto:
    model = of("ConvGrad_grouped")
    strides = next(attribute for attribute in model.graph.node[0].attribute if attribute.name == "strides")
    del strides.ints[1:]
    return model


def conv_that_does_not_move() -> onnx.ModelProto:
    model = of("ConvGrad_grouped")
    strides = next(attribute for attribute in model.graph.node[0].attribute if attribute.name == "strides")
    strides.ints[0] = 0
    return model


def gather_of_endless_tuples() -> onnx.ModelProto:
    model = of("GatherNDGrad_batch")
    model.graph.input[1].type.tensor_type.shape.dim[-1].dim_value = 2**31 - 1
    return model


def gather_without_outputs() -> onnx.ModelProto:
    model = of("GatherNDGrad_batch")
    del model.graph.node[0].output[:]
    model.graph.node.append(helper.make_node("Identity", ["x2"], ["y0"]))
    return model


def gather_along_an_endless_axis() -> onnx.ModelProto:
    model = of("GatherGrad_int32")
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(helper.make_attribute("axis", 2**63 - 1))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (conv_of_another_rank, "X has 3 spatial axes, and the kernel 2"),
        (conv_without_a_stride, r"its strides \[2\], "),
        (conv_that_does_not_move, r"its strides \[0, 2\], "),
        (gather_of_endless_tuples, "its index tuples are "),
        (gather_without_outputs, "it has no outputs"),
        (gather_along_an_endless_axis, "an attribute leads to a number of more than 64 bits"),
    ],
)
def test_operators_that_contradict_themselves(make: Callable[[], onnx.ModelProto], message: str) -> None:
    """The fuzzer's: onnx's checker does not know these operators, and lets them pass."""
    with pytest.raises(lnbp_onnx.InvalidModelError, match=f"Grad node 'node': {message}"):
        lnbp_onnx.decompose(make(), training_ops=True)


def test_every_rewriting_has_a_case() -> None:
    assert {case.op_type for case in CASES} == set(REWRITINGS)
    assert not NOT_COVERED & {*REWRITINGS}
    foreign = {name for name in REWRITINGS if is_foreign(helper.make_node(name, [], [], domain=MICROSOFT_DOMAIN), 17)}
    assert {*REWRITINGS} - foreign == {"InPlaceAccumulatorV2"}


@pytest.mark.parametrize("op_type", sorted(REWRITINGS))
def test_documented(op_type: str) -> None:
    section = (ROOT / "docs" / "passes.md").read_text().split("## Training operators")[1].split("\n## ")[0]
    assert op_type in re.split(r"[ ,|]+", section)


@pytest.mark.parametrize("op_type", sorted(NOT_COVERED | {*REWRITINGS}))
def test_runtime_does_not_know(op_type: str) -> None:
    """The lists hold training operators only: the installed runtime has none of them."""
    node = helper.make_node(op_type, ["x"], ["y"], domain="com.microsoft")
    info = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "g", [info], [output]), opset_imports=opsets, ir_version=8)
    with pytest.raises(Exception, match="is not a registered function/op"):
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
