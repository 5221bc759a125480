# SPDX-License-Identifier: Apache-2.0
"""ScatterND with a reduction: replaced by what is right on any number of threads, and a warning where it is left."""

import json
import warnings
from pathlib import Path
from typing import Any, cast
from unittest import mock

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from command_line import command
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import lnbp_onnx
from lnbp_onnx.graphs.protos import model_nodes
from lnbp_onnx.running.runners import PlainRunner

Array = np.ndarray
UFUNCS = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
RNG = np.random.default_rng(0)


def draw_indices(shape: tuple[int, ...], count: int, depth: int = 1) -> Array:
    return np.stack([RNG.integers(-length, length, count) for length in shape[:depth]], -1)


def scatter(
    data: Array, indices: Array, updates: Array, *, reduction: str = "add", opset: int = 18, dynamic: bool = True
) -> onnx.ModelProto:
    infos = []
    for name, value in (("data", data), ("indices", indices), ("updates", updates), ("y", data)):
        shape: list[Any] = [f"{name}{axis}" for axis in range(value.ndim)] if dynamic else list(value.shape)
        if name == "indices":
            shape[-1] = value.shape[-1]
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape))
    node = helper.make_node("ScatterND", ["data", "indices", "updates"], ["y"], name="scatter", reduction=reduction)
    return model_of([node], infos[:3], infos[3:], opset)


def model_of(nodes: list[Any], inputs: list[Any], outputs: list[Any], opset: int = 18, **others: Any) -> Any:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **others)


def with_threads(count: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = count, 4
    return options


def expected_of(data: Array, indices: Array, updates: Array, reduction: str) -> Array:
    result = data.astype(np.float64)
    with np.errstate(all="ignore"):
        UFUNCS[reduction].at(result, tuple(np.moveaxis(indices, -1, 0)), updates.astype(np.float64))
    return result


def check(data: Array, indices: Array, updates: Array, *, tolerance: float = 1e-6, **options: Any) -> onnx.ModelProto:
    """Compare what the replacement computes on one and two threads with NumPy's own, in float64."""
    model = lnbp_onnx.decompose(scatter(data, indices, updates, **options), scatter_reductions=True)
    onnx.checker.check_model(model, full_check=True)
    assert not any(attribute.name == "reduction" for node in model_nodes(model) if node.op_type == "ScatterND"
                   for attribute in node.attribute)  # fmt: skip
    feeds = {"data": data, "indices": indices, "updates": updates}
    results = [PlainRunner(model, with_threads(count)).run(feeds)["y"] for count in (1, 2, 2)]
    expected = expected_of(data, indices, updates, options.get("reduction", "add"))
    assert results[0].dtype == data.dtype
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=1)
    np.testing.assert_allclose(results[0].astype(np.float64), expected, rtol=0, atol=tolerance * scale)
    return model


def draw(*shape: int, dtype: Any = np.float32) -> Array:
    return (RNG.standard_normal(shape) * 4).astype(dtype)


@pytest.mark.product
@pytest.mark.parametrize("count", [0, 1, 2, 33, 300, 2000])
@pytest.mark.parametrize("length", [3, 40, 5000])
@pytest.mark.parametrize("dynamic", [False, True])
def test_rows(length: int, count: int, dynamic: bool) -> None:
    """Tables of few and of many rows, indices of which all, some and none repeat."""
    check(draw(length, 5), draw_indices((length,), count), draw(count, 5), dynamic=dynamic, tolerance=4e-6)


RUNS = [np.arange(100), np.full(8192, 3), np.repeat(np.arange(50), 2), np.arange(64) // 63,
        np.repeat(np.arange(100), np.arange(100))]  # fmt: skip


@pytest.mark.parametrize("indices", RUNS)
def test_runs(indices: Array) -> None:
    """No index repeats; one has all rows; pairs; runs of every length."""
    check(draw(100, 5), indices[:, None], draw(len(indices), 5), tolerance=4e-6)


@pytest.mark.parametrize("width", [0, 1, 5])
@pytest.mark.parametrize("indices", [np.arange(0), *RUNS])
def test_onto_zeros(indices: Array, width: int) -> None:
    """The zeros are not read; ONNX's evaluator, which has no loop without iterations, computes the same."""
    updates = draw(len(indices), width)
    model = scatter(np.zeros((100, width), np.float32), indices[:, None], updates)
    zeros = onnx.numpy_helper.from_array(np.zeros((100, width), np.float32), "data")
    model.graph.initializer.append(zeros)
    del model.graph.input[0]
    replaced = lnbp_onnx.decompose(model, scatter_reductions=True)
    feeds = {"indices": indices[:, None], "updates": updates}
    expected = expected_of(np.zeros((100, width)), indices[:, None], updates, "add")
    results = [PlainRunner(replaced, with_threads(count)).run(feeds)["y"] for count in (1, 2, 3)]
    for result in results:
        np.testing.assert_array_equal(result, results[0])
    (evaluated,) = cast("list[Array]", ReferenceEvaluator(replaced).run(None, feeds))
    for result in (results[0], evaluated):
        np.testing.assert_allclose(result, expected, rtol=0, atol=4e-6 * np.abs(expected).max(initial=1))


@pytest.mark.parametrize(
    ("shape", "index_shape"),
    [((6, 5, 4), (50, 2)), ((3, 2, 2), (40, 3)), ((7,), (30, 1)), ((9, 2, 3), (4, 5, 1)), ((9, 0), (20, 1))],
)
def test_tuples(shape: tuple[int, ...], index_shape: tuple[int, ...]) -> None:
    *batch, depth = index_shape
    indices = draw_indices(shape, int(np.prod(batch)), depth).reshape(index_shape)
    check(draw(*shape), indices, draw(*batch, *shape[depth:]))


@pytest.mark.parametrize("length", [4, 60])
def test_infinities_stay_in_their_rows(length: int) -> None:
    updates, indices = draw(500, 6), draw_indices((length,), 500)
    updates[3, 0], updates[7, 1], updates[9, 2] = np.inf, -np.inf, np.nan
    updates[:, 3], updates[:2, 4] = np.finfo(np.float32).max / 4, np.inf
    indices[:2] = 1
    with np.errstate(over="ignore"):
        expected = expected_of(np.zeros((length, 6), np.float32), indices, updates, "add").astype(np.float32)
    model = lnbp_onnx.decompose(
        scatter(np.zeros((length, 6), np.float32), indices, updates, dynamic=False), scatter_reductions=True
    )
    feeds = {"data": np.zeros((length, 6), np.float32), "indices": indices, "updates": updates}
    for count in (1, 2):
        result = PlainRunner(model, with_threads(count)).run(feeds)["y"]
        for of in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(of(result), of(expected))
        finite = np.isfinite(expected)
        np.testing.assert_allclose(result[finite], expected[finite], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-14), (np.float16, 2e-3), (ml_dtypes.bfloat16, 1e-2), (np.int64, 0), (np.int32, 0)],
)
def test_types(dtype: Any, tolerance: float) -> None:
    """Half types are summed in float: rounded once, not at each of 100 additions."""
    check(draw(8, 3, dtype=dtype), draw_indices((8,), 800), draw(800, 3, dtype=dtype), tolerance=tolerance)


@pytest.mark.parametrize("reduction", ["mul", "max", "min"])
def test_other_reductions(reduction: str) -> None:
    updates = 1 + 0.1 * draw(100, 3)
    check(draw(8, 3), draw_indices((8,), 100), updates, reduction=reduction, tolerance=1e-5)
    check(draw(8, 0), draw_indices((8,), 100), updates[:, :0], reduction=reduction, dynamic=False)


@pytest.mark.parametrize("opset", [16, 17, 21])
def test_opsets(opset: int) -> None:
    check(draw(40, 3), draw_indices((40,), 100), draw(100, 3), opset=opset)


def test_nothing_is_sorted_where_no_index_can_repeat() -> None:
    model = check(draw(40, 3), np.array([[-2]]), draw(1, 3), dynamic=False)
    assert "TopK" not in {node.op_type for node in model.graph.node}
    constant = scatter(draw(40, 3), np.array([[3], [1]]), draw(2, 3))
    constant.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[3], [1]]), "indices"))
    del constant.graph.input[1]
    model = lnbp_onnx.decompose(constant, scatter_reductions=True)
    assert "TopK" not in {node.op_type for node in model.graph.node}


def test_indices_that_a_caller_replaces_may_repeat() -> None:
    """An initializer that is a graph input, too, is only a default."""
    model = scatter(draw(4, 3), np.array([[3], [1]]), draw(2, 3), dynamic=False)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[3], [1]]), "indices"))
    replaced = lnbp_onnx.decompose(model, scatter_reductions=True)
    data, indices, updates = draw(4, 3), np.array([[2], [-2]]), draw(2, 3)
    result = PlainRunner(replaced, with_threads(1)).run({"data": data, "indices": indices, "updates": updates})["y"]
    np.testing.assert_allclose(result, expected_of(data, indices, updates, "add"), atol=1e-5)


@pytest.mark.parametrize(("shape", "bad"), [((4, 3), [4]), ((4, 3), [-5]), ((40, 3), [-41]), ((4, 5, 3), [1, 7])])
def test_an_index_outside_is_an_error(shape: tuple[int, ...], bad: list[int]) -> None:
    """Also where its parts would add up to a place that is there."""
    indices = np.array([[1] * len(bad), bad, bad])
    data, updates = draw(*shape), draw(3, *shape[len(bad) :])
    model = lnbp_onnx.decompose(scatter(data, indices, updates, dynamic=False), scatter_reductions=True)
    runner = PlainRunner(model, with_threads(1))
    with pytest.raises(lnbp_onnx.InvalidModelError, match="out of data bounds"):
        runner.run({"data": data, "indices": indices, "updates": updates})


def test_unknown_tuples_are_refused() -> None:
    model = scatter(draw(4, 3), np.array([[1]]), draw(1, 3))
    for index in (0, 1):
        model.graph.input[index].type.tensor_type.ClearField("shape")
    with pytest.raises(lnbp_onnx.InvalidModelError, match="ScatterND node 'scatter': the length of its index tuples"):
        lnbp_onnx.decompose(model, scatter_reductions=True)


def in_function(model: onnx.ModelProto, **attributes: str) -> onnx.ModelProto:
    node = model.graph.node[0]
    opsets = [helper.make_opsetid("", 18)]
    function = helper.make_function("own", "Scatter", list(node.input), ["y"], [node], opsets, list(attributes))
    call = helper.make_node("Scatter", list(node.input), ["y"], "call", domain="own", **attributes)
    result = model_of([call], model.graph.input, model.graph.output, functions=[function])
    result.opset_import.append(helper.make_opsetid("own", 1))
    return result


def in_branch(model: onnx.ModelProto) -> onnx.ModelProto:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    branches = {"then_branch": helper.make_graph(model.graph.node, "then", [], [y])}
    branches["else_branch"] = helper.make_graph([helper.make_node("Identity", ["data"], ["z"])], "else", [], [y])
    branches["else_branch"].output[0].name = "z"
    condition = helper.make_tensor_value_info("condition", TensorProto.BOOL, [])
    node = helper.make_node("If", ["condition"], ["y"], "choice", **branches)
    return model_of([node], [*model.graph.input, condition], model.graph.output)


@pytest.mark.parametrize("place", [in_function, in_branch])
def test_functions_and_subgraphs(place: Any) -> None:
    data, indices, updates = draw(40, 3), draw_indices((40,), 100), draw(100, 3)
    model = place(scatter(data, indices, updates))
    with pytest.warns(UserWarning, match="'scatter'.*scatter_reductions=True.*--scatter-reductions"):
        lnbp_onnx.inference_session(model, sess_options=with_threads(2))
    replaced = lnbp_onnx.decompose(model, scatter_reductions=True)
    onnx.checker.check_model(replaced, full_check=True)
    feeds = {"data": data, "indices": indices, "updates": updates}
    feeds |= {"condition": np.array(True)} if place is in_branch else {}
    result = lnbp_onnx.inference_session(replaced, sess_options=with_threads(2)).run(None, feeds)[0]
    np.testing.assert_allclose(result, expected_of(data, indices, updates, "add"), atol=1e-4)
    assert lnbp_onnx.decompose(replaced, scatter_reductions=True) == replaced


def test_a_reduction_that_the_caller_sets_is_refused() -> None:
    model = in_function(scatter(draw(4, 3), np.array([[1], [2]]), draw(2, 3)), reduction="add")
    attribute = model.functions[0].node[0].attribute[0]
    attribute.ClearField("s")
    attribute.ref_attr_name = "reduction"
    with pytest.raises(lnbp_onnx.InvalidModelError, match="its attribute reduction is the function's"):
        lnbp_onnx.decompose(model, scatter_reductions=True)


def test_warning(tmp_path: Path) -> None:
    """A warning of every kind of model, and none with one thread, without a reduction, and of what was replaced."""
    model = scatter(draw(4, 3), np.array([[1], [2]]), draw(2, 3))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    for given in (model, ir.from_proto(model), model.SerializeToString(), path, str(path)):
        with pytest.warns(UserWarning, match=r"ScatterND nodes with a reduction \(1, the first 'scatter'\)"):
            lnbp_onnx.inference_session(given, sess_options=with_threads(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lnbp_onnx.inference_session(path, sess_options=with_threads(1))
        without = scatter(draw(4, 3), np.array([[1], [2]]), draw(2, 3), reduction="none")
        lnbp_onnx.inference_session(without, sess_options=with_threads(2))
        lnbp_onnx.inference_session(lnbp_onnx.decompose(model, scatter_reductions=True))


def test_command(tmp_path: Path) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(scatter(draw(4, 3), np.array([[1], [2]]), draw(2, 3)), source)
    done = command("decompose", "--scatter-reductions", "--json", source, "-o", target)
    assert json.loads(done.stdout)["scattered"] == [{"node": "scatter", "place": "graph", "reduction": "add"}]
    again = command("decompose", "--scatter-reductions", target, "-o", tmp_path / "again.onnx")
    assert "and no ScatterND with a reduction" in again.stdout


def test_the_command_reads_the_model_once_for_all_passes(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    model = scatter(draw(4, 3), np.array([[1], [2]]), draw(2, 3))
    model.graph.node.append(helper.make_node("ReluGrad", ["updates", "updates"], ["g"], domain="com.microsoft"))
    model.opset_import.add(domain="com.microsoft", version=1)
    onnx.save(model, source)
    with mock.patch.object(ir, "from_proto", side_effect=ir.from_proto) as read:
        done = command("decompose", "--training-ops", "--scatter-reductions", "--json", source)
    assert read.call_count == 1
    data = json.loads(done.stdout)
    assert [len(data[key]) for key in ("training_ops", "scattered", "nodes")] == [1, 1, 0]
    assert onnx.load(tmp_path / "in.decomposed.onnx") == lnbp_onnx.decompose(
        model, training_ops=True, scatter_reductions=True
    )
