# SPDX-License-Identifier: Apache-2.0
"""What ``compare`` draws, what it refuses to draw, how it judges and what it measures."""

import itertools
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from command_line import command, shell
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

import lnbp_onnx
from lnbp_onnx.files.model_io import save_model
from lnbp_onnx.running import compare as verify
from lnbp_onnx.running import drawing
from lnbp_onnx.running.runners import Runner, Tensors


def identity(*inputs: ValueInfoProto, element_type: int = TensorProto.FLOAT) -> ModelProto:
    """A model that gives its inputs back."""
    nodes = [helper.make_node("Identity", [each.name], [f"{each.name}.out"]) for each in inputs]
    outputs = [helper.make_tensor_value_info(f"{each.name}.out", element_type, None) for each in inputs]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tensor(name: str, shape: Sequence[int | str] | None, element_type: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)


def constant(array: np.ndarray) -> ModelProto:
    """A model whose output ``y`` is an array."""
    node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(array))
    output = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
    graph = helper.make_graph([node], "g", [], [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_SECONDS", 0.0)


def test_a_length_of_minus_one_is_symbolic() -> None:
    model = identity(tensor("x", [-1, 3]), tensor("z", ["rows", -1]))
    assert lnbp_onnx.compare(model, model).ok
    assert lnbp_onnx.compare(model, model, input_shapes={"x": [5, 3], "z": [4, 7]}).ok


def test_what_a_model_may_be() -> None:
    model = identity(tensor("x", [3]))
    assert lnbp_onnx.compare(model.SerializeToString(), model).ok
    with pytest.raises(lnbp_onnx.InvalidModelError, match="The 3 bytes are not an ONNX model"):
        lnbp_onnx.compare(b"...", model)
    with pytest.raises(lnbp_onnx.InvalidModelError, match="is of type NoneType; it must be"):
        lnbp_onnx.compare(model, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"runs": 0}, "runs is 0; it must be at least 1"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"rtol": np.inf}, "rtol is inf; it must be finite"),
        ({"rtol": -1e-5}, "rtol is -1e-05; it must be finite and not negative"),
        ({"atol": np.nan}, "atol is nan; it must be finite"),
        ({"input_shapes": {"x": [-3]}}, "'x'. is .-3.; its lengths must be at least 0"),
    ],
)
def test_numbers_that_make_no_comparison(argument: dict[str, Any], message: str) -> None:
    model = identity(tensor("x", [3]))
    with pytest.raises(ValueError, match=message):
        lnbp_onnx.compare(model, model, **argument)


def test_models_of_more_than_2_gigabytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = identity(tensor("x", [3]))
    monkeypatch.setattr("lnbp_onnx.running.session.LARGEST_PROTO", model.ByteSize() - 1)
    for run in (lambda: lnbp_onnx.compare(model, model), lambda: lnbp_onnx.inference_session(model)):
        with pytest.raises(lnbp_onnx.InvalidModelError, match="more than 2 GB"):
            run()


LARGE = tensor("x", ["rows", 64])


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (LARGE, [99999999999, 64], "more than the memory has room for"),
        (LARGE, [10**24, 64], "more than the memory has room for"),
        (tensor("x", ["rows", "columns", "planes"]), [0, 2**62, 2**62], "more than the memory has room for"),
        (tensor("x", [2**40, 2**40]), None, "more than the memory has room for"),
        (tensor("x", ["n"] * 66), None, "66 axes, too many"),
        (tensor("x", None), None, "has no shape in the model.*input_shapes=\\{'x': \\[2, 3\\]\\}"),
        (LARGE, [64], r"is \[64\]; the model declares \[rows, 64\].*input_shapes=\{'x': \[2, 64\]\}"),
        (LARGE, [3, 65], r"is \[3, 65\]; the model declares \[rows, 64\]"),
        (tensor("x", [3], TensorProto.STRING), None, "element type string, which cannot be drawn"),
        (tensor("x", [3], TensorProto.FLOAT8E4M3FN), None, "element type float8e4m3fn, which cannot be drawn"),
        (tensor("x", [3], TensorProto.INT4), None, "element type int4, which cannot be drawn"),
        (tensor("x", [3], TensorProto.COMPLEX64), None, "element type complex64, which cannot be drawn"),
        (tensor("x", [3], 99), None, "element type 99, which cannot be drawn"),
        (helper.make_tensor_sequence_value_info("x", 1, [3]), None, "'x' has type sequence; only tensors"),
        (
            helper.make_value_info("x", helper.make_optional_type_proto(tensor("t", [3]).type)),
            None,
            "has type optional",
        ),
        (ValueInfoProto(name="x"), None, "'x' has no type"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_is_allocated(
    value: ValueInfoProto, shape: list[int] | None, message: str
) -> None:
    graph = identity(value).graph
    tracemalloc.start()
    try:
        with pytest.raises(lnbp_onnx.InvalidModelError, match=message):
            drawing.draw(graph, {} if shape is None else {"x": shape}, set(), np.random.default_rng(0))
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("not_timed")
@pytest.mark.parametrize("element_type", drawing._DRAWN_TYPES)
def test_all_other_types_are_compared(element_type: int) -> None:
    model = identity(tensor("x", [3, "n"], element_type), element_type=element_type)
    assert lnbp_onnx.compare(model, model).ok


def test_inputs_with_a_default_are_not_drawn() -> None:
    model = identity(tensor("x", [3]), tensor("w", [2]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    assert lnbp_onnx.compare(model, model).ok
    with pytest.raises(lnbp_onnx.InvalidModelError, match="'w', which has a default; the other inputs are x"):
        lnbp_onnx.compare(model, model, input_shapes={"w": [2]})


def test_models_without_outputs_are_refused() -> None:
    model = helper.make_model(helper.make_graph([], "g", [tensor("x", [3])], []))
    with pytest.raises(lnbp_onnx.InvalidModelError, match="no outputs"):
        lnbp_onnx.compare(model, model)


def test_names_that_go_in_a_circle_end_the_search_for_variances() -> None:
    nodes = [
        helper.make_node("Identity", ["b"], ["a"]),
        helper.make_node("Identity", ["a"], ["b"]),
        helper.make_node("Identity", [], ["c"]),
        *(
            helper.make_node("LayerNormBackprop", ["x", "x", "x", "", "x", each], [f"d{each}"], domain="lnbp")
            for each in "ac"
        ),
    ]
    graph = helper.make_graph(nodes, "g", [tensor("x", [3])], [])
    assert drawing.variance_inputs(graph) == set()


def test_a_run_that_fails_names_the_option_and_the_declared_shapes(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "y"], ["z"])
    inputs = [tensor("x", ["rows", "inner"]), tensor("y", [3, 4])]
    graph = helper.make_graph([node], "g", inputs, [tensor("z", ["rows", 4])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    run = command("compare", "m.onnx", "m.onnx", cwd=tmp_path)
    assert run.returncode == 2
    assert "'x' [2, 2] (declared [rows, inner])" in run.stderr
    assert "--input-shape x:2,2" in run.stderr
    assert command("compare", "m.onnx", "m.onnx", "--input-shape", "x:2,3", cwd=tmp_path).returncode == 0


@pytest.mark.usefixtures("not_timed")
@pytest.mark.parametrize(
    ("a", "b", "difference"),
    [
        (np.array([2**53], np.int64), np.array([2**53 + 1], np.int64), 1),
        (np.array([2**63], np.uint64), np.array([2**63 + 1], np.uint64), 1),
        (np.array([-(2**63), 3], np.int64), np.array([2**63 - 1, 3], np.int64), 2**64 - 1),
        (np.array([0], np.uint64), np.array([2**64 - 1], np.uint64), 2**64 - 1),
        (np.array([-128, 5], np.int8), np.array([127, 5], np.int8), 255),
        (np.array([True, False]), np.array([False, False]), 1),
        (np.array([10**6], np.int32), np.array([10**6 + 1], np.int32), 1),
        (np.array([1.0, np.nan]), np.array([1.0, 0.0]), np.inf),
        (np.array([np.inf]), np.array([-np.inf]), np.inf),
    ],
)
def test_what_differs(a: np.ndarray, b: np.ndarray, difference: float) -> None:
    for first, second in itertools.permutations((a, b)):
        [output] = lnbp_onnx.compare(constant(first), constant(second)).outputs
        assert not output.ok
        assert output.max_absolute_error == float(difference)
    for each in (a, b):
        assert lnbp_onnx.compare(constant(each), constant(each)).ok


class Clock:
    """A clock that only what runs moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.order: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def runner(self, name: str, seconds: Callable[[int], float]) -> Runner:
        clock = self

        class TimedRunner:
            runtime = name
            runs = 0

            def run(self, _: Tensors) -> dict[str, np.ndarray]:
                clock.now += seconds(self.runs)
                clock.order.append(name)
                self.runs += 1
                return {"x.out": np.zeros(3, np.float32)}

        return TimedRunner()


def timed(
    monkeypatch: pytest.MonkeyPatch, a: Callable[[int], float], b: Callable[[int], float]
) -> tuple[tuple[float, float], list[str]]:
    clock = Clock(monkeypatch)
    runners = iter([clock.runner("a", a), clock.runner("b", b)])
    monkeypatch.setattr(verify, "_runner", lambda *_: next(runners))
    model = identity(tensor("x", [3]))
    return lnbp_onnx.compare(model, model).seconds, clock.order


def test_times_are_medians_of_warm_runs_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def cold_kernel(run: int) -> float:
        return 1.0 if run == 0 else 0.01 if run % 4 else 0.1  # one in four is disturbed

    seconds, order = timed(monkeypatch, cold_kernel, lambda _: 0.02)
    assert seconds == pytest.approx((0.01, 0.02))
    assert order == ["a", "b"] * (len(order) // 2)
    assert len(order) >= 2 * 6


@pytest.mark.parametrize(("length", "runs"), [(100.0, 1), (0.6, 2), (0.1, 6), (1e-4, 1001)])
def test_a_slow_model_is_run_a_few_times(monkeypatch: pytest.MonkeyPatch, length: float, runs: int) -> None:
    seconds, order = timed(monkeypatch, lambda _: length, lambda _: length)
    assert seconds == pytest.approx((length, length))
    assert len(order) == pytest.approx(2 * runs, rel=0.01)


@pytest.mark.usefixtures("not_timed")
@pytest.mark.parametrize(
    ("name", "step"),
    [("float8_e4m3fn", 0.125), ("float8_e5m2", 0.25), ("int4", 1.0), ("uint4", 1.0)],
)
def test_types_that_numpy_lacks(name: str, step: float) -> None:
    """A step of the type is within the tolerance where it is a floating type; two are not."""
    dtype = np.dtype(getattr(ml_dtypes, name))
    models = [constant(np.array([1, 1 + steps * step, -0.0]).astype(dtype)) for steps in range(3)]
    for model, is_ok, error in zip(models, (True, step < 1, False), (0, step, 2 * step), strict=True):
        [output] = lnbp_onnx.compare(models[0], model, rtol=0.0, atol=1e-6).outputs
        assert (output.ok, output.max_absolute_error) == (is_ok, error)
    assert lnbp_onnx.compare(models[0], models[1], rtol=5.0).ok == (step < 1)


def test_an_optional_output_without_a_value_is_refused(tmp_path: Path) -> None:
    """Reading it would end the process."""
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    node = helper.make_node("Optional", [], ["y"], type=kind)
    graph = helper.make_graph([node], "g", [], [helper.make_value_info("y", helper.make_optional_type_proto(kind))])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    run = shell("lnbp-onnx compare m.onnx m.onnx", tmp_path)
    assert run.returncode == 2
    assert "'y' is an optional without a value" in run.stderr


@pytest.mark.usefixtures("not_timed")
@pytest.mark.parametrize("suffix", [".textproto", ".json"])
def test_text_with_external_data(tmp_path: Path, suffix: str) -> None:
    path = (tmp_path / "m").with_suffix(suffix)
    model = identity(tensor("w", [64]))
    model.graph.input.pop()
    model.graph.initializer.append(numpy_helper.from_array(np.arange(64, dtype=np.float32), "w"))
    save_model(model, path, path, size_threshold=0)
    [output] = lnbp_onnx.compare(path, path).outputs
    assert output.ok
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, f"{path.name}.data"]
