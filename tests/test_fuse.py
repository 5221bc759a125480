# SPDX-License-Identifier: Apache-2.0
"""fuse: what it finds, what it leaves alone, and that it changes no result."""

import cProfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from cases import CASES, SMALL_CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_norm_graphs import MISTAKES, Style, Writer, feeds, styles
from onnx import ModelProto, NodeProto, TensorProto, helper
from operator_models import draw, function_model, make_model, subgraph_model
from strategies import problems
from torch_exports import recorded

import lnbp_onnx
from lnbp_onnx.graphs.edit import apply, apply_in_place
from lnbp_onnx.matching import candidates
from lnbp_onnx.passes.fuse import FusePass, FuseResult
from lnbp_onnx.running.runners import PlainRunner, ReferenceRunner

DATA = Path(__file__).parent / "data"
EXAMPLES = Path(__file__).parents[1] / "examples"
FLOAT = TensorProto.FLOAT


def fuse(model: ModelProto) -> tuple[ModelProto, FuseResult]:
    """Fuse a model, check what came of it, and that it is left as it is the second time."""
    before = model.SerializeToString(deterministic=True)
    result = ModelProto()
    result.CopyFrom(model)
    outcome = apply_in_place(FusePass(), result)
    assert isinstance(outcome, FuseResult)
    again = ModelProto()
    again.CopyFrom(result)
    assert not apply_in_place(FusePass(), again).modified
    assert again == result
    assert model.SerializeToString(deterministic=True) == before
    assert [value.name for value in result.graph.output] == [value.name for value in model.graph.output]
    assert list(result.graph.input) == list(model.graph.input)
    return result, outcome


def operators(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.domain == "lnbp"]


def attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def assert_same(
    expected: dict[str, Any], found: dict[str, Any], tolerance: float = 2e-6, smallest: float = 1e-3
) -> None:
    assert expected.keys() == found.keys()
    for name, array in expected.items():
        wide = array.astype(np.float64)
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        finite = np.isfinite(wide)
        assert (np.isfinite(found[name]) == finite).all(), name
        error = np.abs(found[name].astype(np.float64)[finite] - wide[finite]).max(initial=0)
        assert error <= tolerance * max(np.abs(wide[finite]).max(initial=0), smallest), (name, error)


# Real graphs


def real_feeds(model: ModelProto) -> dict[str, Any]:
    rng = np.random.default_rng(3)
    values: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == FLOAT:
            values[value.name] = rng.normal(size=shape).astype(np.float32)
        else:
            values[value.name] = rng.integers(0, 12, shape)
    return values


def simplified(model: ModelProto, way: str, tmp_path: Path) -> ModelProto:
    if way == "as exported":
        return model
    if way == "onnxslim":
        onnxslim = pytest.importorskip("onnxslim")
        return onnxslim.slim(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, way)
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(tmp_path / "optimised.onnx")


@pytest.mark.parametrize("way", ["as exported", "ORT_ENABLE_BASIC", "onnxslim"])
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("torch_encoder_training_decomposed", 5),
        ("torch_layernorm_affine_decomposed", 1),
        ("torch_layernorm_nobias_decomposed", 1),
        ("jax_layernorm_vjp", 1),
    ],
)
def test_exported_graphs(name: str, count: int, way: str, tmp_path: Path) -> None:
    model = simplified(onnx.load(DATA / f"{name}.onnx"), way, tmp_path)
    result, outcome = fuse(model)
    onnx.checker.check_model(result)
    assert len(operators(result)) == count
    assert len(outcome.fused) == count
    assert outcome.missed == ()
    values = real_feeds(model)
    assert_same(PlainRunner(model).run(values), ReferenceRunner(result).run(values))


def test_recorded_torch_gradients() -> None:
    result, _ = fuse(onnx.load(DATA / "torch_encoder_training_decomposed.onnx"))
    reference = np.load(EXAMPLES / "torch_encoder_training_reference.npz")
    outputs = ReferenceRunner(result).run({"ids": reference["ids"], "tgt": reference["tgt"]})
    for name, output in outputs.items():
        assert np.abs(output - reference[name]).max() <= 5e-6 * np.abs(reference[name]).max(), name


def test_jax_becomes_one_node() -> None:
    result, _ = fuse(onnx.load(DATA / "jax_layernorm_vjp.onnx"))
    [node] = result.graph.node
    assert list(node.input) == ["in_0", "in_3", "in_1"]
    assert attributes(node)["use_stats"] == 0
    assert attributes(node)["epsilon"] == np.float32(1e-5)
    assert not result.graph.initializer


def test_nothing_to_do() -> None:
    model = onnx.load(EXAMPLES / "torch_encoder_training_lnbp.onnx")
    result, outcome = fuse(model)
    assert result == model
    assert not outcome.modified


# ONNX Runtime training


def test_ort_training_graph() -> None:
    model = onnx.load(DATA / "ort_training_gpt.onnx")
    result, outcome = fuse(model)
    assert len(operators(result)) == 5
    assert {fused.form for fused in outcome.fused} == {"LayerNormalizationGrad"}
    assert not [node for node in result.graph.node if node.op_type == "LayerNormalizationGrad"]
    # The others of the domain are still there.
    assert "com.microsoft" in {opset.domain for opset in result.opset_import}
    assert len({output for node in result.graph.node for output in node.output}) == sum(
        len(node.output) for node in result.graph.node
    )


def test_recorded_ort_gradient() -> None:
    result, _ = fuse(onnx.load(DATA / "ort_layernormgrad_0.onnx"))
    assert [opset.domain for opset in result.opset_import] == ["", "lnbp"]
    arrays = np.load(DATA / "ort_layernormgrad_0.npz")
    recorded = {name.partition("_")[2]: arrays[name] for name in arrays}
    values = {value.name: recorded[value.name] for value in result.graph.input}
    expected = {value.name: recorded[value.name] for value in result.graph.output}
    assert_same(expected, ReferenceRunner(result).run(values))


@pytest.mark.parametrize(
    ("t", "u"), [("float", "float"), ("float16", "float"), ("double", "float"), ("double", "double")]
)
def test_invertible_gradient(t: str, u: str) -> None:
    element_type, statistic_type = (TensorProto.DataType.Value(name.upper()) for name in (t, u))
    dtype = helper.tensor_dtype_to_np_dtype(element_type)
    node = helper.make_node(
        "InvertibleLayerNormalizationGrad",
        ["dy", "y", "gamma", "beta", "inv_std"],
        ["dx", "dgamma", "dbeta"],
        domain="com.microsoft",
        axis=-1,
    )
    model = make_model(
        [node],
        {
            "dy": (element_type, [4, 6]),
            "y": (element_type, [4, 6]),
            "gamma": (element_type, [6]),
            "beta": (element_type, [6]),
            "inv_std": (statistic_type, [4, 1]),
        },
        {"dx": (element_type, [4, 6]), "dgamma": (element_type, [6]), "dbeta": (element_type, [6])},
        domains=["com.microsoft"],
    )
    result, _ = fuse(model)
    onnx.checker.check_model(result, full_check=True)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(1, 2, (4, 6)), rng.normal(size=(4, 6)).astype(dtype)
    gamma, beta = rng.uniform(0.5, 1.5, 6).astype(dtype), rng.normal(size=6).astype(dtype)
    mean, variance = x.mean(axis=1), x.var(axis=1)
    inv_std = 1 / np.sqrt(variance + 1e-5)[:, None]
    y = ((x - mean[:, None]) * inv_std * gamma + beta).astype(dtype)
    values = {"dy": dy, "y": y, "gamma": gamma, "beta": beta, "inv_std": inv_std}
    values["inv_std"] = inv_std.astype(helper.tensor_dtype_to_np_dtype(statistic_type))
    found = ReferenceRunner(result).run(values)
    expected = lnbp_onnx.layer_norm_backprop(x, dy.astype(np.float64), gamma.astype(np.float64), use_stats=False)
    for name, array in zip(("dx", "dgamma", "dbeta"), expected, strict=True):
        assert array is not None
        np.testing.assert_allclose(found[name], array, atol=2e-2 if t == "float16" else 1e-5)


def test_ort_gradient_without_its_inputs_is_missed() -> None:
    model = onnx.load(DATA / "ort_layernormgrad_0.onnx")
    model.graph.node[0].input[3] = ""
    result, outcome = fuse(model)
    assert result == model
    assert "4 of its 5 inputs" in outcome.missed[0].reason


@pytest.mark.parametrize("op_type", ["LayerNormalizationGrad", "InvertibleLayerNormalizationGrad"])
def test_ort_gradient_of_a_type_that_the_operator_has_not_is_missed(op_type: str) -> None:
    shapes = {"dy": [4, 6], "x": [4, 6], "gamma": [6], "mean": [4, 1], "inv_std": [4, 1]}
    inputs = {name: (FLOAT, shape) for name, shape in shapes.items()}
    inputs["gamma"] = (TensorProto.FLOAT8E4M3FN, [6])
    node = helper.make_node(op_type, [*inputs], ["dx", "dgamma", "dbeta"], name="grad", domain="com.microsoft", axis=-1)
    model = make_model([node], inputs, {"dx": (FLOAT, [4, 6])}, domains=["com.microsoft"])
    result, outcome = fuse(model)
    assert result == model
    [missed] = outcome.missed
    assert missed.name == "grad"
    assert "input 'gamma' has type float8e4m3fn" in missed.reason


# What decompose and embed write


def assert_equivalent(case: Case, result: ModelProto) -> None:
    [node] = operators(result)
    wanted = {"epsilon": np.float32(case.epsilon), "use_affine": case.affine, "use_stats": case.stats}
    found = attributes(node)
    assert {name: found[name] for name in wanted} == wanted
    rank = len(case.shape)
    assert found["begin_norm_axis"] % rank == case.axis % rank
    inputs = [*node.input, "", "", "", ""][:6]
    assert inputs[:3] == ["input_forward", "output_delta", "gamma" if case.affine else ""]
    assert inputs[4:] == (["mean", "variance"] if case.stats else ["", ""])
    assert inputs[3] in ("", "beta")


ROUND_TRIP = [case for case in SMALL_CASES if not case.name.startswith("empty")]
FORMS = [
    (17, "static"),
    (17, "symbolic"),
    (11, "static"),
    (13, "static"),
    (14, "unknown"),
    (18, "symbolic"),
    (26, "static"),
]


def in_turn(cases: list[Case], number: int, share: str) -> list[Case]:
    """Return a part of the cases such that a few numbers in a row have each of them, or the whole."""
    turns = 1 if share == "whole" else 3
    return cases[number % turns :: turns]


@pytest.mark.product
@pytest.mark.parametrize("number", range(len(FORMS)))
def test_round_trip(number: int, share: str) -> None:
    opset, shapes = FORMS[number]
    for case in in_turn(ROUND_TRIP, number, share):
        if case.t == "bfloat16" and opset < 13:
            continue
        result, outcome = fuse(lnbp_onnx.decompose(case.model(opset, shapes)))
        assert_equivalent(case, result)
        assert outcome.missed == (), case.name
        if shapes != "static" or case.beta_shape is None:
            assert {node.op_type for node in result.graph.node} <= {"LayerNormBackprop", "Reshape"}, case.name
            outputs = {name for name in operators(result)[0].output if name}
            assert outputs == {value.name for value in result.graph.output}, case.name


def test_round_trip_results() -> None:
    for case in ROUND_TRIP[::7]:
        result, _ = fuse(lnbp_onnx.decompose(case.model()))
        case.check(ReferenceRunner(result).run(case.arrays()))


def test_empty_bodies_hold_nothing_of_the_operator() -> None:
    for case in CASES:
        if case.name.startswith("empty"):
            model = lnbp_onnx.decompose(case.model())
            assert fuse(model)[0] == model


@pytest.mark.product
@pytest.mark.parametrize(("number", "opset"), [(0, 11), (1, 17), (2, 26)])
def test_round_trip_through_embed(number: int, opset: int, share: str) -> None:
    for case in in_turn(ROUND_TRIP, number, share):
        if case.t == "bfloat16" and opset < 13:
            continue
        result, outcome = fuse(lnbp_onnx.embed(case.model(opset)))
        assert not result.functions, case.name
        assert_equivalent(case, result)
        assert outcome.missed == (), case.name


@settings(max_examples=60)
@given(
    problems(),
    st.sampled_from([11, 13, 17, 20, 26]),
    st.sampled_from(["static", "symbolic"]),
    st.lists(st.integers(0, 60), max_size=3),
)
def test_bodies_whose_inner_values_are_used(case: Case, opset: int, shapes: str, taps: list[int]) -> None:
    if 0 in case.shape or (case.t == "bfloat16" and opset < 13):
        return
    model = lnbp_onnx.decompose(case.model(opset, shapes))
    inner = [name for node in model.graph.node for name in node.output]
    outputs = {value.name for value in model.graph.output}
    for name in {inner[number % len(inner)] for number in taps} - outputs:
        model.graph.output.append(helper.make_empty_tensor_value_info(name))
    model = onnx.shape_inference.infer_shapes(model)
    result, outcome = fuse(model)
    # An inner value may be input_delta in another shape or type, which makes another node.
    assert [node.output[0] for node in operators(result)].count("input_delta") == 1
    assert outcome.missed == ()
    values = case.feeds(shapes)
    tolerance, smallest = {"double": (1e-9, 1e-3), "float": (2e-4, 1)}.get(case.t, (3e-2, 1))
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), tolerance, smallest)


def test_embedded_function_goes() -> None:
    case = next(case for case in CASES if case.name == "axes-3--1")
    embedded = lnbp_onnx.embed(case.model())
    assert embedded.functions
    result, outcome = fuse(embedded)
    assert not result.functions
    assert_equivalent(case, result)
    assert outcome.modified


@pytest.mark.parametrize("cond", [True, False])
def test_subgraphs(cond: bool) -> None:
    model = lnbp_onnx.decompose(subgraph_model())
    result, outcome = fuse(model)
    onnx.checker.check_model(result, full_check=True)
    assert len(outcome.fused) == 3
    assert sorted(fused.place.count("/") for fused in outcome.fused) == [0, 1, 2]
    values = draw(zero=[6], x=[4, 6], dy=[4, 6], g=[6]) | {"cond": np.array(cond), "n": np.array(3)}
    # One of the outputs sums the rows of input_delta, which gives 0.
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), smallest=1)


@pytest.mark.parametrize("ir_version", [8, 10])
def test_functions(ir_version: int) -> None:
    model = lnbp_onnx.decompose(function_model(ir_version))
    result, outcome = fuse(model)
    onnx.checker.check_model(result, full_check=True)
    assert {fused.place for fused in outcome.fused} == {"function my::F", "function my::F_2", "function my::F_3"}
    assert [function.name for function in result.functions] == [function.name for function in model.functions]
    values = draw(x=[4, 6], dy=[4, 6], g=[6])
    values |= {f"{name}d": array.astype(np.float64) for name, array in values.items()}
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


def test_onnx_ir_models() -> None:
    model = ir.load(DATA / "jax_layernorm_vjp.onnx")
    result = apply(model, FusePass())
    assert len(result.graph) == 1
    assert len(model.graph) == 59
    assert ir.to_proto(result).graph.node == fuse(onnx.load(DATA / "jax_layernorm_vjp.onnx"))[0].graph.node


# Other ways to write the formula


def assert_never_changes(style: Style) -> FuseResult:
    model = Writer(style).write()
    result, outcome = fuse(model)
    onnx.checker.check_model(result, full_check=True)
    values = feeds(style)
    tolerance = {"double": 1e-12, "float16": 2e-3, "bfloat16": 2e-2}.get(style.t, 1e-5)
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), tolerance)
    return outcome


@settings(max_examples=100)
@given(styles())
def test_any_form_is_fused(style: Style) -> None:
    outcome = assert_never_changes(style)
    # What is tapped before its conversion to half makes another node, of type float.
    assert len(outcome.fused) in ((1, 2) if style.t in ("float16", "bfloat16") and style.taps else (1,))
    assert outcome.missed == ()


@settings(max_examples=60)
@given(styles(mistaken=True))
def test_mistakes_are_not_fused(style: Style) -> None:
    outcome = assert_never_changes(style)
    assert outcome.fused == ()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_near_misses(mistake: str) -> None:
    _, outcome = fuse(Writer(Style(mistake=mistake)).write())
    assert outcome.fused == ()
    # The subtraction of mean(g) looks like one of a mean, too.
    missed = outcome.missed[0]
    assert missed.place == "graph"
    wrong = {
        "axis": "differs in rstd * mean(g)",
        "size": "differs in rstd * mean(g)",
        "epsilon": "differs in rstd * xhat * mean(g * xhat)",
        "swap": "differs in rstd * g and rstd * mean(g)",
        "other x": "sums products of input and gradient over each row, but",
        "sign": "differs in rstd * xhat * mean(g * xhat)",
        "missing mean": "differs in rstd * mean(g)",
        "missing projection": "but nothing equal to input_delta follows",
        "other dy": "but nothing equal to input_delta follows",
        "other mean": "differs in rstd * xhat * mean(g * xhat)",
        "variance": "but nothing equal to input_delta follows",
        "truncated": "but nothing equal to input_delta follows",
        "power": "differs in rstd * xhat * mean(g * xhat)",
        "offset": "has other terms beside it",
        "mean size": "is the sum of 'x' over each row, but not the mean",
    }
    assert wrong[mistake] in missed.reason


@pytest.mark.parametrize(
    ("t", "epsilon", "stats"),
    [
        ("double", 1e-5, "computed"),
        ("double", 1e-5, "variance"),
        ("float", 0.0, "computed"),
        ("double", 0.0, "computed"),
    ],
)
def test_epsilon_that_the_operator_cannot_have(t: str, epsilon: float, stats: str) -> None:
    """1e-5 in double is no float32 number, and 0 needs given statistics: the operator gets the sum as variance."""
    style = Style(t=t, epsilon=epsilon, stats=stats, choices=(1, 5, 2))
    outcome = assert_never_changes(style)
    [fused] = outcome.fused
    assert fused.node.attributes["epsilon"].as_float() == 0
    assert fused.node.attributes["use_stats"].as_int() == 1
    assert outcome.missed == ()


def test_wrong_gamma_gradient_stays() -> None:
    """A sum over other axes is no gamma_delta; input_delta beside it is what it is."""
    model = Writer(Style(shape=(3, 3, 4), norm_rank=1, choices=(1, 5, 2))).write()
    [total] = [node for node in model.graph.node if node.op_type == "ReduceSum" and _feeds(model, node, "dgamma")]
    axes = helper.make_node("Constant", [], ["wrong_axes"], value=onnx.numpy_helper.from_array(np.array([0, 2])))
    total.input[1] = "wrong_axes"
    model.graph.node.insert(0, axes)
    for value in (*model.graph.output, *model.graph.value_info):
        value.type.tensor_type.ClearField("shape")
    result, outcome = fuse(onnx.shape_inference.infer_shapes(model))
    [fused] = outcome.fused
    assert [output.name != "" for output in fused.node.outputs] == [True, False, True]
    values = feeds(Style(shape=(3, 3, 4)))
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


def _feeds(model: ModelProto, node: NodeProto, output: str) -> bool:
    return any(user.output[0] == output and node.output[0] in user.input for user in model.graph.node)


@pytest.mark.parametrize("axes", [[0], [0, 2], [1, 2]])
def test_wrong_gamma_gradient_alone_is_no_gradient(axes: list[int]) -> None:
    model, _ = recorded("gamma_only")
    assert len(fuse(model)[1].fused) == 1
    [total] = [node for node in model.graph.node if node.op_type == "ReduceSum"]
    [constant] = [each for each in model.graph.initializer if each.name == total.input[1]]
    constant.CopyFrom(onnx.numpy_helper.from_array(np.array(axes), constant.name))
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    result, outcome = fuse(model)
    assert not outcome.fused
    assert result == model


def decomposed() -> ModelProto:
    types = {"x": (FLOAT, [4, 6]), "dy": (FLOAT, [4, 6]), "gamma": (FLOAT, [6])}
    outputs = {"dx": (FLOAT, [4, 6]), "dgamma": (FLOAT, [6]), "dbeta": (FLOAT, [6])}
    node = lnbp_onnx.make_node("x", "dy", gamma="gamma", outputs=list(outputs), use_stats=False)
    return lnbp_onnx.decompose(make_model([node], types, outputs))


def calls(model: ModelProto, count: int) -> int:
    """Return how many calls fusing takes, which no load on the machine changes; `count` gradients are to be found."""
    profile = cProfile.Profile()
    profile.enable()
    outcome = apply_in_place(FusePass(), model)
    profile.disable()
    assert isinstance(outcome, FuseResult)
    assert len(outcome.fused) == count
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize("shared", [("x", "gamma"), ()])
@pytest.mark.parametrize("form", ["decomposed", "written out"])
def test_many_gradients_take_linear_time(form: str, shared: tuple[str, ...]) -> None:
    one = decomposed() if form == "decomposed" else Writer(Style(choices=(1, 5, 2))).write()
    few, more = (calls(many(count, one, shared), count) for count in (4, 16))
    assert more < 4.4 * few


def test_a_chain_takes_linear_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither calls nor what onnx_ir copies in them: the users of a value, which for shared constants are many."""
    copied = 0

    def counting(method: Callable[[ir.Value], Sequence[Any]]) -> Callable[[ir.Value], Sequence[Any]]:
        def counted(value: ir.Value) -> Sequence[Any]:
            nonlocal copied
            users = method(value)
            copied += len(users)
            return users

        return counted

    monkeypatch.setattr(ir.Value, "uses", counting(ir.Value.uses))  # type: ignore[arg-type]
    monkeypatch.setattr(ir.Value, "consumers", counting(ir.Value.consumers))
    costs = []
    for count in (8, 32):
        nodes = [
            lnbp_onnx.make_node("x", f"d{index}", gamma="gamma", use_stats=False, outputs=[f"d{index + 1}", "", ""])
            for index in range(count)
        ]
        types = {"x": (FLOAT, [4, 6]), "d0": (FLOAT, [4, 6]), "gamma": (FLOAT, [6])}
        model = lnbp_onnx.decompose(make_model(nodes, types, {f"d{count}": (FLOAT, [4, 6])}))
        copied = 0
        costs.append((calls(model, count), copied))
    few, more = costs
    assert more[0] < 4.4 * few[0]
    assert more[1] < 4.4 * few[1]


def test_a_gradient_takes_no_longer_where_there_are_many_outputs() -> None:
    one = decomposed()

    def calls_with_outputs(count: int, outputs: int) -> int:
        model = many(count, one, ())
        for index in range(outputs):
            model.graph.node.append(helper.make_node("Identity", ["dy_0"], [f"copy_{index}"]))
            model.graph.output.append(helper.make_tensor_value_info(f"copy_{index}", FLOAT, [4, 6]))
        return calls(model, count)

    alone, beside = (calls_with_outputs(12, outputs) - calls_with_outputs(2, outputs) for outputs in (0, 1000))
    assert beside < 1.05 * alone


def chain(count: int) -> ModelProto:
    """Return gradients with one x, each of which is the next one's output_delta."""
    model = many(count, Writer(Style(choices=(1, 5, 2))).write(), ("x", "gamma"))
    names = {f"dy_{index}": f"dx_{index - 1}" for index in range(1, count)}
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    inputs = [value for value in model.graph.input if value.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def test_polynomials_too_large_to_follow_are_no_error() -> None:
    model = chain(4)
    result, outcome = fuse(model)
    assert len(outcome.fused) == 4
    assert outcome.missed == ()
    values = feeds(Style())
    values["dy_0"] = values.pop("dy")
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 1e-4)


def test_giving_up_is_told_after_a_gradient_too() -> None:
    outcome = apply_in_place(FusePass(), chain(14))
    assert isinstance(outcome, FuseResult)
    assert 0 < len(outcome.fused) < 14
    [missed] = outcome.missed
    assert "too many ways" in missed.reason


def many(count: int, one: ModelProto, shared: tuple[str, ...], start: int = 0) -> ModelProto:
    """Return a model several times side by side, with some of its values in common."""
    graph = onnx.GraphProto(name="many")
    for index in range(start, start + count):

        def renamed(names: Iterable[str], index: int = index) -> list[str]:
            return [name if name in shared or not name else f"{name}_{index}" for name in names]

        copy = onnx.GraphProto()
        copy.CopyFrom(one.graph)
        for node in copy.node:
            node.input[:], node.output[:] = renamed(node.input), renamed(node.output)
            [node.name] = renamed([node.name])
        for value in (*copy.input, *copy.output, *copy.initializer):
            [value.name] = renamed([value.name])
        graph.node.extend(copy.node)
        graph.input.extend(value for value in copy.input if value not in graph.input)
        graph.output.extend(copy.output)
        graph.initializer.extend(copy.initializer)
    return helper.make_model(graph, opset_imports=one.opset_import, ir_version=9)


def test_transposed_output_stays_transposed() -> None:
    """It has the elements of input_delta, and here its shape."""
    model = Writer(Style(shape=(4, 4), choices=(1, 5, 2))).write()
    [last] = [node for node in model.graph.node if node.output[0] == "dx"]
    last.op_type = "Transpose"
    result, outcome = fuse(model)
    assert len(outcome.fused) == 1
    values = feeds(Style(shape=(4, 4)))
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


def test_float_tensors_computed_in_double_stay_in_double() -> None:
    style = Style(t="double", epsilon=0.25, choices=(1, 5, 2))
    model = Writer(style).write()
    values = feeds(style)
    for value in model.graph.input:
        value.type.tensor_type.elem_type = FLOAT
        for node in model.graph.node:
            node.input[:] = [f"{name}_wide" if name == value.name else name for name in node.input]
        cast = helper.make_node("Cast", [value.name], [f"{value.name}_wide"], to=TensorProto.DOUBLE)
        model.graph.node.insert(0, cast)
        values[value.name] = values[value.name].astype(np.float32)
    for value in model.graph.output:
        value.type.tensor_type.elem_type = FLOAT
        [node] = [node for node in model.graph.node if node.output[0] == value.name]
        node.CopyFrom(helper.make_node("Cast", list(node.input), [value.name], to=FLOAT))
    result, outcome = fuse(onnx.shape_inference.infer_shapes(model))
    [fused] = outcome.fused
    assert [value and value.dtype for value in fused.node.inputs[:2]] == [ir.DataType.DOUBLE] * 2
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 1e-7)


def test_length_counted_by_a_sum_of_ones() -> None:
    model = Writer(Style(affine=False, choices=(2, 3, 1, 7, 5))).write()
    size = onnx.numpy_helper.from_array(np.ones(10, np.float32), "ones")
    model.graph.initializer.append(size)
    tens = {each.name for each in model.graph.initializer if onnx.numpy_helper.to_array(each).tolist() == 10}
    tens |= {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "Constant" and onnx.numpy_helper.to_array(node.attribute[0].t).tolist() == 10
    }
    assert tens
    for node in model.graph.node:
        node.input[:] = ["count" if name in tens else name for name in node.input]
    axis = onnx.numpy_helper.from_array(np.array([0]), "axis")
    model.graph.initializer.append(axis)
    model.graph.node.insert(0, helper.make_node("ReduceSum", ["ones", "axis"], ["count"], keepdims=0))
    assert len(fuse(model)[1].fused) == 1


@pytest.mark.parametrize("target", [[0, 0, -1], [-1, 0, 10], [0, 3, 10]])
def test_views_that_keep_lengths(target: list[int]) -> None:
    model = Writer(Style(dynamic=True)).write()
    for node in model.graph.node:
        node.input[:] = ["dy_view" if name == "dy" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(target), "target"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["dy", "target"], ["dy_view"]))
    result, outcome = fuse(onnx.shape_inference.infer_shapes(model))
    [fused] = outcome.fused
    assert fused.node.inputs[1] is not None
    assert fused.node.inputs[1].name == "dy"
    values = feeds(Style())
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


@pytest.mark.parametrize("is_wide", [False, True])
def test_gamma_of_unknown_length_may_be_one_number(is_wide: bool) -> None:
    style = Style(shape=(3, 4), stats="rstd", choices=(0,) if is_wide else (1, 5, 2))
    model = Writer(style).write()
    for value in model.graph.input:
        last = value.type.tensor_type.shape.dim[-1]
        if value.name == "gamma":
            last.Clear()
        elif is_wide and value.name in ("x", "dy"):
            last.dim_param = "columns"
    del model.graph.value_info[:]
    result, _ = fuse(model)
    values = feeds(style)
    for length in (1, 4):
        values["gamma"] = values["gamma"][:length]
        values["gamma"] = np.resize(values["gamma"], length)
        assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


@pytest.mark.parametrize(("op_type", "alphas"), [("RandomNormalLike", []), ("LeakyRelu", [0.25, 0.5])])
def test_values_that_are_computed_alike_and_not_equal(op_type: str, alphas: list[float]) -> None:
    nodes = []
    for index in range(2):
        nodes.append(helper.make_node(op_type, ["x"], [f"dy{index}"]))
        nodes[-1].attribute.extend(helper.make_attribute("alpha", alpha) for alpha in alphas[index : index + 1])
        outputs = [f"{name}{index}" for name in ("dx", "dgamma", "dbeta")]
        nodes.append(lnbp_onnx.make_node("x", f"dy{index}", gamma="gamma", outputs=outputs, use_stats=False))
    model = make_model(
        nodes,
        {"x": (FLOAT, [4, 6]), "gamma": (FLOAT, [6])},
        {f"dx{index}": (FLOAT, [4, 6]) for index in range(2)},
    )
    result, _ = fuse(lnbp_onnx.decompose(model))
    assert [node.input[1] for node in operators(result)] == ["dy0", "dy1"]


def test_root_of_a_square_is_not_what_was_squared() -> None:
    """gamma_delta, which has none, is what it is."""
    outcome = assert_never_changes(Style(mistake="magnitude", choices=(1, 5, 2)))
    assert all(fused.node.outputs[1].name == "dgamma" for fused in outcome.fused)
    assert not assert_never_changes(Style(mistake="magnitude", affine=False)).fused


@pytest.mark.parametrize(("factor", "count"), [(1 / 3, 1), (0.3, 0), (0.3333, 0)])
def test_factor_near_one_over_the_length(factor: float, count: int) -> None:
    model = Writer(Style(shape=(5, 3), stats="rstd", choices=(2, 2, 2, 6))).write()
    thirds = [each for each in model.graph.initializer if np.float32(1 / 3) == onnx.numpy_helper.to_array(each)]
    thirds += [
        node.attribute[0].t
        for node in model.graph.node
        if node.op_type == "Constant" and (np.float32(1 / 3) == onnx.numpy_helper.to_array(node.attribute[0].t)).all()
    ]
    assert thirds
    for third in thirds:
        third.CopyFrom(onnx.numpy_helper.from_array(np.array(factor, np.float32), third.name))
    assert len(fuse(model)[1].fused) == count


def test_computed_mean_with_a_given_root() -> None:
    model = Writer(Style(stats="rstd", choices=(1, 5, 2))).write()
    [mean] = [value for value in model.graph.input if value.name == "mean"]
    model.graph.input.remove(mean)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), "last"))
    model.graph.node.insert(0, helper.make_node("ReduceMean", ["x", "last"], ["mean"]))
    result, outcome = fuse(onnx.shape_inference.infer_shapes(model))
    [fused] = outcome.fused
    assert fused.node.inputs[4] is not None
    assert fused.node.inputs[4].name == "mean"
    values = {name: array for name, array in feeds(Style(stats="rstd")).items() if name != "mean"}
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


def test_near_misses_do_not_hide_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "_MOST_EVALUATIONS", 6)
    wrong = many(8, Writer(Style(mistake="sign", choices=(1, 5, 2))).write(), ("x", "gamma"))
    right = many(1, Writer(Style(choices=(1, 5, 2))).write(), ("x", "gamma"), start=8)
    wrong.graph.node.extend(right.graph.node)
    wrong.graph.initializer.extend(right.graph.initializer)
    wrong.graph.input.extend(value for value in right.graph.input if value not in wrong.graph.input)
    wrong.graph.output.extend(right.graph.output)
    [fused] = fuse(wrong)[1].fused
    assert fused.node.outputs[0].name == "dx_8"


def test_output_used_before_the_operands_are_there_stays() -> None:
    """beta_delta needs dy alone, and may be used before x is computed."""
    model = Writer(Style(is_amid=True, choices=(1, 5, 2))).write()
    model.graph.node.append(helper.make_node("Exp", ["dbeta"], ["early"]))
    model.graph.output.append(helper.make_tensor_value_info("early", FLOAT, [10]))
    first = list(onnx.utils.Extractor(model).extract_model(["dy"], ["early"]).graph.node)
    names = {node.output[0] for node in first}
    rest = [node for node in model.graph.node if node.output[0] not in names]
    del model.graph.node[:]
    model.graph.node.extend([*first, *rest])
    onnx.checker.check_model(model)
    result, outcome = fuse(model)
    onnx.checker.check_model(result)
    [fused] = outcome.fused
    assert len(fused.node.outputs) == 2
    values = feeds(Style())
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


@pytest.mark.parametrize(("op_type", "domain"), [("Neg", ""), ("Sqrt", "my")])
def test_negative_root_is_not_taken(op_type: str, domain: str) -> None:
    """With -1 / std for 1 / std the gradient has the other sign, which no variance gives."""
    model = Writer(Style(stats="rstd")).write()
    model.graph.input[-1].name = "positive"
    model.graph.node.insert(0, helper.make_node(op_type, ["positive"], ["rstd"], domain=domain))
    model.opset_import.append(helper.make_opsetid("my", 1))
    model.graph.value_info.append(helper.make_tensor_value_info("rstd", FLOAT, [4, 3, 1]))
    result, outcome = fuse(model)
    assert not outcome.fused
    assert result == model


def test_mean_of_the_forward_norm_is_not_its_deviation() -> None:
    """With Mean and InvStdDev swapped the graph is no gradient, though both are columns of the same node."""
    model = onnx.load(DATA / "torch_layernorm_nobias_decomposed.onnx")
    (forward,) = (node for node in model.graph.node if node.op_type == "LayerNormalization")
    forward.output[1], forward.output[2] = forward.output[2], forward.output[1]
    result, outcome = fuse(model)
    assert not outcome.fused
    assert result == model


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, True)])
def test_gradients_not_asked_for(wanted: tuple[bool, ...]) -> None:
    """PyTorch's exporter computes only what is asked for; dy and gamma may be constants."""
    model = onnx.load(DATA / "torch_layernorm_affine_decomposed.onnx")
    kept = [["loss", "grad.pre.weight"], ["loss", "grad.ln.weight", "grad.ln.bias"]][wanted[1]]
    pruned = onnx.utils.Extractor(model).extract_model(["x"], kept)
    result, _ = fuse(pruned)
    [node] = operators(result)
    assert [bool(name) for name in node.output] == ([True] if wanted[0] else [True, True, True])
    values = real_feeds(pruned)
    assert_same(PlainRunner(pruned).run(values), ReferenceRunner(result).run(values))


def test_unused_initializers_go_and_used_ones_stay() -> None:
    model = onnx.load(DATA / "torch_layernorm_affine_decomposed.onnx")
    result, _ = fuse(model)
    names = {value.name for value in result.graph.initializer}
    assert "scalar_tensor_default" not in names
    assert {"ln.weight", "ln.bias", "val_9"} <= names


def test_unused_initializers_of_a_branch_go() -> None:
    """Where the graph around it changes, too."""
    model = onnx.load(DATA / "torch_layernorm_affine_decomposed.onnx")
    branch = onnx.GraphProto(name="branch", node=model.graph.node, initializer=model.graph.initializer)
    for value in branch.initializer:
        value.name = f"inner.{value.name}"
    for node in branch.node:
        node.input[:] = [name if name == "x" or not name else f"inner.{name}" for name in node.input]
        node.output[:] = [f"inner.{name}" for name in node.output]
    branch.output.extend(model.graph.output)
    for value in branch.output:
        value.name = f"inner.{value.name}"
    names = [value.name for value in model.graph.output]
    outputs = [f"chosen.{name}" for name in names]
    model.graph.node.append(helper.make_node("If", ["p"], outputs, then_branch=branch, else_branch=branch))
    model.graph.input.append(helper.make_tensor_value_info("p", TensorProto.BOOL, []))
    result, outcome = fuse(model)
    assert len(outcome.fused) == 3
    [choice] = [node for node in result.graph.node if node.op_type == "If"]
    for attribute in choice.attribute:
        kept = {value.name for value in attribute.g.initializer}
        assert "inner.scalar_tensor_default" not in kept
        assert {"inner.ln.weight", "inner.ln.bias", "inner.val_9"} <= kept


def test_wide_rows_are_not_computed() -> None:
    """Matching does arithmetic on expressions: sizes do not matter."""
    style = Style(shape=(1 << 20, 1 << 16))
    model = Writer(style).write()
    _, outcome = fuse(model)
    assert len(outcome.fused) == 1


def test_strings() -> None:
    model = Writer(Style()).write()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(["a", "b"], object), "words"))
    model.graph.node.append(helper.make_node("Identity", ["words"], ["copied"]))
    model.graph.output.append(helper.make_tensor_value_info("copied", TensorProto.STRING, [2]))
    assert len(fuse(model)[1].fused) == 1


def test_nodes_without_outputs() -> None:
    model = decomposed()
    model.graph.node.append(helper.make_node("Print", ["dx"], [], domain="my"))
    model.opset_import.append(helper.make_opsetid("my", 1))
    assert len(fuse(model)[1].fused) == 1


def test_constants_that_are_external_data_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decomposed(), path, save_as_external_data=True, size_threshold=0, convert_attribute=True)
    model = onnx.load(path, load_external_data=False)
    result, outcome = fuse(model)
    assert not outcome.fused
    assert result == model


def test_operands_that_come_from_nowhere() -> None:
    """onnx_ir knows no sparse initializers."""
    model = decomposed()
    gamma = next(value for value in model.graph.input if value.name == "gamma")
    model.graph.input.remove(gamma)
    ones = helper.make_tensor("gamma", FLOAT, [6], [1.0] * 6)
    places = helper.make_tensor("places", TensorProto.INT64, [6], range(6))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(ones, places, [6]))
    assert not fuse(model)[1].fused
    model.graph.value_info.append(gamma)
    assert len(fuse(model)[1].fused) == 1


def test_statistic_in_the_shape_of_the_body_is_not_the_operators() -> None:
    """[a * b, 1] might be [a, b] by all that is known of the lengths, and a gradient of one row that of all."""
    lead = ["a", "b"]
    types = {"x": (FLOAT, [*lead, "c"]), "dy": (FLOAT, [*lead, "c"]), "mean": (FLOAT, lead), "variance": (FLOAT, lead)}
    node = lnbp_onnx.make_node(
        "x", "dy", mean="mean", variance="variance", outputs=["dx"], begin_norm_axis=2, use_affine=False
    )
    model = lnbp_onnx.decompose(make_model([node], types, {"dx": (FLOAT, [*lead, "c"])}))
    assert len(fuse(model)[1].fused) == 1
    one_row = ModelProto()
    one_row.CopyFrom(model)
    one_row.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 1
    one_row.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 1
    del one_row.graph.value_info[:]
    assert not fuse(one_row)[1].fused
    node = lnbp_onnx.make_node("x", "dy", outputs=["dx"], begin_norm_axis=2, use_affine=False, use_stats=False)
    types = {"x": (FLOAT, [*lead, "c"]), "dy": (FLOAT, [*lead, "c"])}
    one_column = lnbp_onnx.decompose(make_model([node], types, {"dx": (FLOAT, [*lead, "c"])}))
    difference = next(node for node in one_column.graph.node if node.output[0].endswith("d_once"))
    difference.CopyFrom(helper.make_node("Identity", [difference.input[1]], difference.output))
    del one_column.graph.value_info[:]
    assert not fuse(one_column)[1].fused
    next(node for node in model.graph.node if node.output[0].endswith("epsilon")).op_type = "Div"
    values = draw(x=[2, 3, 5], dy=[2, 3, 5], mean=[2, 3]) | {"variance": np.ones([2, 3], np.float32)}
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(fuse(model)[0]).run(values))


def test_slice_of_no_axes() -> None:
    """A gradient in a shape that a Slice leaves as it is."""
    model = decomposed()
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "none", "none"], ["same"]),
    ]
    nodes.append(helper.make_node("Reshape", ["dx", "same"], ["shaped"]))
    model.graph.node.extend(nodes)
    model.graph.initializer.append(helper.make_tensor("none", TensorProto.INT64, [0], []))
    model.graph.output.append(helper.make_tensor_value_info("shaped", FLOAT, [4, 6]))
    assert len(fuse(model)[1].fused) == 1


def test_broadcasting_of_old_opsets_is_not_followed() -> None:
    """gamma scales the rows here, which the attribute of Mul alone tells."""
    model = onnx.parser.parse_model("""
        <ir_version: 3, opset_import: ["": 6]>
        old (float[4, 4] x, float[4, 4] dy, float[4] gamma) => (float[4, 4] dx) {
            epsilon = Constant <value: tensor = float[1] {1e-5}> ()
            mean = ReduceMean <axes = [1]> (x)
            d = Sub <broadcast = 1> (x, mean)
            g = Mul <broadcast = 1, axis = 0> (dy, gamma)
            squares = Mul (d, d)
            variance = ReduceMean <axes = [1]> (squares)
            radicand = Add <broadcast = 1> (variance, epsilon)
            std = Sqrt (radicand)
            xhat = Div <broadcast = 1> (d, std)
            mean_g = ReduceMean <axes = [1]> (g)
            product = Mul (g, xhat)
            projection = ReduceMean <axes = [1]> (product)
            centred = Sub <broadcast = 1> (g, mean_g)
            along = Mul <broadcast = 1> (xhat, projection)
            rest = Sub (centred, along)
            dx = Div <broadcast = 1> (rest, std)
        }
    """)
    result, outcome = fuse(model)
    assert not outcome.fused
    assert result == model


def test_power_with_several_integers() -> None:
    style = Style(stats="rstd")
    model = Writer(style).write()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(2, 12), "exponents"))
    model.graph.node.append(helper.make_node("Pow", ["x", "exponents"], ["powers"]))
    model.graph.output.append(helper.make_tensor_value_info("powers", FLOAT, style.shape))
    result, outcome = fuse(model)
    assert len(outcome.fused) == 1
    values = feeds(style)
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


def test_sum_over_no_axes_is_none() -> None:
    """Without axes, a reduction that is told to do nothing then does nothing."""
    style = Style(shape=(6,), affine=False, stats="rstd")
    model = Writer(style).write()
    assert len(fuse(model)[1].fused) == 1
    for node in model.graph.node:
        if node.op_type.startswith("Reduce"):
            del node.input[1:]
            node.attribute.append(helper.make_attribute("noop_with_empty_axes", 1))
    del model.graph.value_info[:]
    result, outcome = fuse(model)
    assert not outcome.fused
    assert result == model


@pytest.mark.parametrize("length", [1, 3])
def test_statistic_of_unknown_length_may_be_one_number(length: int) -> None:
    style = Style(shape=(3, 4), stats="rstd", dynamic=True)
    model = Writer(style).write()
    [mean] = [value for value in model.graph.input if value.name == "mean"]
    mean.CopyFrom(helper.make_tensor_value_info("means", FLOAT, [None]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 1]), "column"))
    model.graph.node.insert(0, helper.make_node("Reshape", ["means", "column"], ["mean"]))
    result, _ = fuse(model)
    values = feeds(style)
    values["means"] = values.pop("mean")[:length, 0]
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


def test_given_statistics_of_a_half_type() -> None:
    """1 / std in half is squared in float, and the operator's statistics have one type."""
    style = Style(t="float16", stats="rstd")
    model = Writer(style).write()
    values = feeds(style)
    for value in model.graph.input:
        if value.name in ("mean", "rstd"):
            for node in model.graph.node:
                node.input[:] = [f"{name}_wide" if name == value.name else name for name in node.input]
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            model.graph.node.insert(0, helper.make_node("Cast", [value.name], [f"{value.name}_wide"], to=FLOAT))
            values[value.name] = values[value.name].astype(np.float16)
    result, outcome = fuse(model)
    onnx.checker.check_model(result, full_check=True)
    [fused] = outcome.fused
    assert fused.node.inputs[1] is not None
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 2e-3)


def test_root_of_a_squared_reciprocal_is_positive() -> None:
    """As in the root of (1 / d)^2, which is no 1 / d where d is negative."""
    style = Style(stats="rstd", choices=(1, 5, 2))
    model = Writer(style).write()
    nodes = list(model.graph.node)
    [at] = [index for index, node in enumerate(nodes) if node.op_type == "Sub" and list(node.input) == ["x", "mean"]]
    [d] = nodes[at].output
    [xhat, *_] = [node for node in nodes if d in node.input and "rstd" in node.input]
    users = [node for node in nodes if xhat.output[0] in node.input]
    users[0].input[:] = ["magnitude" if name == xhat.output[0] else name for name in users[0].input]
    nodes[at + 1 : at + 1] = [
        helper.make_node("Reciprocal", [d], ["reciprocal"]),
        helper.make_node("Mul", ["reciprocal", "reciprocal"], ["square"]),
        helper.make_node("Sqrt", ["square"], ["root"]),
        helper.make_node("Div", ["rstd", "root"], ["magnitude"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    result, _ = fuse(onnx.shape_inference.infer_shapes(model))
    values = feeds(style)
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


@pytest.mark.parametrize("op_type", ["LayerNormalizationGrad", "InvertibleLayerNormalizationGrad"])
def test_function_named_as_an_ort_gradient_stays(op_type: str) -> None:
    body = [helper.make_node("Sub", ["dy", "x"], ["dx"])]
    opsets = [helper.make_opsetid("", 17)]
    names = ["dy", "x", "gamma", "mean", "inv_std"]
    function = helper.make_function("com.microsoft", op_type, names, ["dx"], body, opsets)
    node = helper.make_node(op_type, names, ["dx"], domain="com.microsoft")
    shapes = {"dy": [4, 6], "x": [4, 6], "gamma": [6], "mean": [4, 1], "inv_std": [4, 1]}
    inputs = {name: (FLOAT, shape) for name, shape in shapes.items()}
    model = make_model([node], inputs, {"dx": (FLOAT, [4, 6])}, domains=["com.microsoft"])
    model.functions.append(function)
    assert fuse(model)[0] == model


@pytest.mark.parametrize("shape", [(1, 6), (6,)])
def test_one_row_whose_gradient_the_graph_computes(shape: tuple[int, ...]) -> None:
    """There beta_delta is output_delta, which must not become what the operator itself returns."""
    style = Style(shape=shape, is_amid=True)
    model = Writer(style).write()
    result, outcome = fuse(model)
    onnx.checker.check_model(result, full_check=True)
    assert len(outcome.fused) == 1
    values = feeds(style)
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


@pytest.mark.parametrize("stats", ["computed", "rstd"])
def test_shapes_not_known_to_be_equal_are_near_misses(stats: str) -> None:
    model = Writer(Style(dynamic=True, stats=stats)).write()
    [dy] = [value for value in model.graph.input if value.name == "dy"]
    dy.type.tensor_type.shape.dim[0].dim_param = "C"
    del model.graph.value_info[:]
    _, outcome = fuse(onnx.shape_inference.infer_shapes(model))
    assert not outcome.fused
    assert "has shape [C, 3, 10], which is not known to be that of 'x', [B, 3, 10]" in outcome.missed[0].reason


def test_large_exponents_take_no_time() -> None:
    """Coefficients are exact: of 3.7 to the power of a million there would be 24 million bits."""
    style = Style(stats="rstd", choices=(1, 5, 2))
    model = Writer(style).write()
    for name, number in (("base", 3.7), ("exponent", 1e30)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number, np.float32), name))
    [d] = [node.output[0] for node in model.graph.node if list(node.input) == ["x", "mean"]]
    model.graph.node.append(helper.make_node("Pow", ["base", "exponent"], ["power"]))
    model.graph.node.append(helper.make_node("Mul", [d, "power"], ["product"]))
    squares = ["product"]
    for _ in range(40):
        squares.append(f"square_{len(squares)}")
        model.graph.node.append(helper.make_node("Mul", squares[-2:-1] * 2, squares[-1:]))
    model.graph.output.append(helper.make_tensor_value_info(squares[-1], FLOAT, style.shape))
    assert len(fuse(model)[1].fused) == 1


# Terms that are added to another gradient one by one

RESIDUAL = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[B, T, 6] x, float[B, T, 6] dy, float[B, T, 6] r, float[6] gamma) => (float[B, T, 6] dx, float[6] dgamma)
<float eps = {1e-5}, float n = {6}, float two = {2}, float three = {3}, float minus_half = {-0.5}, int64[1] last = {-1},
 int64[1] columns = {6}, int64[2] rows = {0, 1}>
{
    batch = Shape <start = 0, end = 1> (dy)
    length = Shape <start = 1, end = 2> (dy)
    shape = Concat <axis = 0> (batch, length, columns)
    mean = ReduceMean (x, last)
    d = Sub (x, mean)
    squares = Pow (d, two)
    variance = ReduceMean (squares, last)
    shifted = Add (variance, eps)
    root = Sqrt (shifted)
    rstd = Reciprocal (root)
    xhat = Mul (d, rstd)
    products = Mul (dy, xhat)
    dgamma = ReduceSum <keepdims = 0> (products, rows)
    g = Mul (dy, gamma)
    g_d = Mul (g, d)
    first = Mul (g, rstd)
    total = ReduceSum (g_d, last)
    cube = Pow (rstd, three)
    scaled = Mul (total, minus_half)
    dvariance = Mul (scaled, cube)
    negated = Neg (first)
    dmean = ReduceSum (negated, last)
    sum_1 = Add (r, first)
    wide = Expand (dvariance, shape)
    share = Div (wide, n)
    twice = Mul (d, two)
    second = Mul (share, twice)
    negated_2 = Neg (second)
    dmean_2 = ReduceSum (negated_2, last)
    sum_2 = Add (sum_1, second)
    dmean_3 = Add (dmean, dmean_2)
    wide_2 = Expand (dmean_3, shape)
    third = Div (wide_2, n)
    dx = Add (sum_2, third)
}
"""
RESIDUAL_SHAPES = {"x": (2, 3, 6), "dy": (2, 3, 6), "r": (2, 3, 6), "gamma": (6,)}


def residual(*changes: tuple[str, str]) -> ModelProto:
    """Return the gradient of a written-out layer norm with a residual, with parts of its text replaced."""
    text = RESIDUAL
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True)


def residual_feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {name: rng.normal(0.5, 1.5, shape).astype(np.float32) for name, shape in RESIDUAL_SHAPES.items()}


def uses_input_delta(model: ModelProto) -> bool:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    return any(node.output[0] in used for node in operators(model))


@pytest.mark.parametrize(
    ("changes", "addends"),
    [
        ((), 1),
        ((("B, T, 6", "2, 3, 6"),), 1),
        ((("Add (r, first)", "Identity (first)"),), 0),
        ((("Add (r, first)", "Sum (first, r)"),), 1),
        ((("dx = Add (sum_2, third)", "sum_3 = Add (sum_2, third)\n    s = Sin (dy)\n    dx = Add (s, sum_3)"),), 1),
        ((("Add (sum_1, second)", "Sum (sum_1, s, second)"), ("sum_1 =", "s = Sin (dy)\n    sum_1 =")), 2),
        ((("sum_1 = Add (r", "s = Sin (x)\n    sum_0 = Add (r, s)\n    sum_1 = Add (sum_0"),), 1),
        # A view of the sum that cuts through the columns.
        (
            (
                ("float[6] dgamma)", "float[6] dgamma, float[M, 2, 3] heads)"),
                ("int64[2] rows", "int64[3] cut = {-1, 2, 3}, int64[2] rows"),
                ("dx = Add (sum_2, third)", "dx = Add (sum_2, third)\n    heads = Reshape (dx, cut)"),
            ),
            1,
        ),
    ],
)
def test_terms_added_to_another_gradient(changes: tuple[tuple[str, str], ...], addends: int) -> None:
    model = residual(*changes)
    result, outcome = fuse(model)
    [operator] = operators(result)
    assert [name != "" for name in operator.output] == [True, True]
    assert outcome.missed == ()
    sums = [node for node in result.graph.node if node.op_type == "Add" and operator.output[0] in node.input]
    assert len(sums) == min(addends, 1)
    assert not {"Reciprocal", "Expand", "Shape"} & {node.op_type for node in result.graph.node}
    values = residual_feeds()
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("third = Div (wide_2, n)", "third = Div (wide_2, three)"),
        ("sum_2 = Add (sum_1, second)", "sum_2 = Add (sum_1, first)"),
        ("sum_2 = Add (sum_1, second)", "doubled = Mul (sum_1, two)\n    sum_2 = Add (doubled, second)"),
        ("sum_2 = Add (sum_1, second)", "again = Add (sum_1, r)\n    sum_2 = Add (again, second)"),
        ("sum_1 = Add (r, first)", "sum_1 = Sub (r, first)"),
        ("dmean = ReduceSum (negated, last)", "dmean = ReduceSum (negated, columns_)"),
        ("cube = Pow (rstd, three)", "cube = Pow (rstd, two)"),
        ("g_d = Mul (g, d)", "g_d = Mul (r, d)"),
        ("twice = Mul (d, two)", "twice = Mul (xhat, two)"),
        ("dx = Add (sum_2, third)", "dx = Sub (sum_2, third)"),
    ],
)
def test_other_terms_added_to_another_gradient_are_no_gradient(old: str, new: str) -> None:
    model = residual((old, new), ("int64[2] rows", "int64[1] columns_ = {1}, int64[2] rows"))
    result, outcome = fuse(model)
    assert not uses_input_delta(result)
    # A gamma_delta beside what is no input_delta may be one.
    assert outcome.missed or operators(result)
    values = residual_feeds()
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 1e-5)


def test_addend_that_is_broadcast_is_none() -> None:
    """r has one row, and the sum has the shape of x all the same."""
    model = residual(("float[B, T, 6] r", "float[6] r"))
    result, _ = fuse(model)
    assert not uses_input_delta(result)
    values = {**residual_feeds(), "r": np.ones(6, np.float32)}
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 1e-5)


def test_expansion_to_lengths_of_other_names_is_not_followed() -> None:
    model = residual(
        ("float[B, T, 6] r,", "float[B, T, 6] r, float[L, B, 6] other,"),
        ("Shape <start = 1, end = 2> (dy)", "Shape <start = 0, end = 1> (other)"),
    )
    result, _ = fuse(model)
    assert not uses_input_delta(result)


# What onnx-ad writes: gradients for several seeds at once, along an axis at the end


def of_seeds(name: str, count: int | None) -> ModelProto:
    """Return a recorded gradient for a number of seeds, None for one that is known at run time only."""
    model = onnx.load(DATA / "onnx_ad" / f"{name}.onnx")
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "nadj" and count is not None:
                dim.dim_value = count
    return model


def seeded_feeds(model: ModelProto, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    values = {}
    for value in model.graph.input:
        shape = [dim.dim_value or lengths[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        values[value.name] = rng.normal(0.5, 1.5, shape).astype(np.float32)
    return values


@pytest.mark.parametrize("name", ["static", "dynamic", "two_axes"])
def test_gradient_of_one_seed(name: str) -> None:
    model = of_seeds(name, 1)
    result, outcome = fuse(model)
    [operator] = operators(result)
    assert all(operator.output)
    assert outcome.missed == ()
    assert not {"ReduceMean", "Reciprocal"} & {node.op_type for node in result.graph.node}
    values = seeded_feeds(model, {"B": 4, "T": 5})
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 1e-5)


@pytest.mark.parametrize("count", [None, 2])
def test_gradient_of_several_seeds_is_a_near_miss(count: int | None) -> None:
    model = of_seeds("dynamic", count)
    result, outcome = fuse(model)
    assert result == model
    [missed] = outcome.missed
    assert "an axis more, along which there may be several gradients" in missed.reason


@pytest.mark.parametrize(
    ("op_type", "index", "change"),
    [
        ("Add", 0, lambda node: node.input.__setitem__(1, "other")),
        ("Sub", 1, lambda node: node.input.reverse()),
        ("Sub", 2, lambda node: node.input.__setitem__(0, "full")),
        ("ReduceMean", 2, lambda node: node.input.__setitem__(1, "rows")),
        ("ReduceMean", 3, lambda node: node.input.__setitem__(1, "rows")),
        ("Mul", 2, lambda node: node.input.__setitem__(1, "x")),
    ],
)
def test_wrong_gradient_of_one_seed_is_none(op_type: str, index: int, change: Callable[[NodeProto], None]) -> None:
    model = of_seeds("static", 1)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 1], np.int64), "rows"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([[[0.5]]], np.float32), "other"))
    change([node for node in model.graph.node if node.op_type == op_type][index])
    result, _ = fuse(model)
    values = seeded_feeds(model, {})
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 1e-5)
    if op_type != "Add":  # another epsilon, in all of the gradient, is the gradient with it
        assert not uses_input_delta(result)


# A gradient that is constant


CONSTANT_GRADIENT = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[B, 3, 10] x) => (float[B, 3, 10] dx)
<float[10] ones = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, float one = {1}, float n = {10}, float zero = {0},
 int64[2] columns = {3, 10}, int64[1] last = {2}>
{
    batch = Shape <start = 0, end = 1> (x)
    shape = Concat <axis = 0> (batch, columns)
    dy = Expand (one, shape)
    y, mean, rstd = LayerNormalization <axis = -1, epsilon = 1e-5> (x, ones)
    d = Sub (x, mean)
    xhat = Mul (d, rstd)
    scaled = Mul (dy, n)
    total = ReduceSum (dy, last)
    products = Mul (dy, xhat)
    projection = ReduceSum (products, last)
    third = Mul (xhat, projection)
    centred = Sub (scaled, total)
    rest = Sub (centred, third)
    share = Div (rstd, n)
    dx = Mul (share, rest)
}
"""


def constant_gradient(*changes: tuple[str, str]) -> ModelProto:
    text = CONSTANT_GRADIENT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text), data_prop=True)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        # What an exporter computes beforehand, where shapes are known and where they are not.
        (
            ("scaled = Mul (dy, n)", ""),
            ("total = ReduceSum (dy, last)", ""),
            ("Sub (scaled, total)", "Identity (zero)"),
        ),
        (("B, 3, 10", "4, 3, 10"),),
        (("float one = {1}", "float one = {0.5}"),),
    ],
)
def test_constant_gradient(changes: tuple[tuple[str, str], ...]) -> None:
    model = constant_gradient(*changes)
    result, outcome = fuse(model)
    [operator] = operators(result)
    assert operator.output[0] == "dx"
    assert outcome.missed == ()
    values = {"x": np.random.default_rng(2).normal(0.5, 1.5, (4, 3, 10)).astype(np.float32)}
    # What is left of a difference of equal terms is small.
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values), 1e-5, 0.1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("total = ReduceSum (dy, last)", "total = Identity (zero)"),
        ("third = Mul (xhat, projection)", "third = Mul (d, projection)"),
        ("share = Div (rstd, n)", "share = Sqrt (rstd)"),
        ("Sub (centred, third)", "Add (centred, third)"),
        ("products = Mul (dy, xhat)", "products = Mul (dy, x)"),
    ],
)
def test_other_constant_gradient_is_none(old: str, new: str) -> None:
    model = constant_gradient((old, new))
    result, outcome = fuse(model)
    assert result == model
    # What a statistic of the forward pass is used for is told.
    [missed] = outcome.missed
    assert missed.name == "y"
    assert "its Mean is used by the Sub 'd'" in missed.reason


def test_statistics_of_another_norm_whose_scale_is_constant() -> None:
    """The mean and deviation are of a tensor with more columns; what the others are scaled with is 1."""
    model = constant_gradient(
        ("(float[B, 3, 10] x)", "(float[B, 3, 10] x, float[B, 3, 10] z, float[B, 3, 12] wide)"),
        ("float[10] ones = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}", "float[12] ones = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}"),
        ("(x, ones)", "(wide, ones)"),
        ("dy = Expand (one, shape)", "dy = Mul (one, z)"),
    )
    result, outcome = fuse(model)
    assert len(outcome.fused) == 1
    shape = [2, 3, 10]
    values = draw(x=shape, z=shape, wide=[2, 3, 12])
    assert_same(ReferenceRunner(model).run(values), ReferenceRunner(result).run(values))


def test_nothing_is_no_constant_gradient() -> None:
    """Of computed statistics and a constant dy the gradient is 0: other zeros are left alone."""
    text = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[4, 6] x) => (float[4, 6] zeros, float[4, 6] xhat)
<float two = {2}, float eps = {1e-5}, int64[1] last = {1}, float[4, 6] ones = {
 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}>
{
    mean = ReduceMean (x, last)
    d = Sub (x, mean)
    squares = Pow (d, two)
    variance = ReduceMean (squares, last)
    shifted = Add (variance, eps)
    root = Sqrt (shifted)
    xhat = Div (d, root)
    same = Mul (xhat, ones)
    zeros = Sub (same, xhat)
}
"""
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    result, outcome = fuse(model)
    assert result == model
    assert outcome.fused == ()


# Statistics of the forward pass that are used for something


@pytest.mark.parametrize(
    ("use", "found"),
    [
        ("z = Mul (y, rstd)", "its InvStdDev is used by the Mul 'z'"),
        ("half = Mul (rstd, two)\n    wide = Expand (half, shape)\n    z = Div (x, wide)", "by the Div 'z'"),
        ("z = Sub (mean, x)", "its Mean is used by the Sub 'z'"),
        ("z = Reciprocal (rstd)", None),
        ("half = Mul (mean, two)\n    z = Concat <axis = 0> (half, mean)", None),
        (
            "square = Mul (rstd, rstd)\n    v = Reciprocal (square)\n"
            "    z = lnbp.LayerNormBackprop (x, x, g, , mean, v)",
            None,
        ),
    ],
)
def test_uses_of_statistics_that_are_no_gradient_are_near_misses(use: str, found: str | None) -> None:
    text = f"""
<ir_version: 9, opset_import: ["" : 18, "lnbp" : 1]>
g (float[4, 6] x, float[6] g, int64[2] shape) => (float[M, N] z)
<float two = {{2}}>
{{
    y, mean, rstd = LayerNormalization (x, g)
    {use}
}}
"""
    model = onnx.parser.parse_model(text)
    result, outcome = fuse(model)
    assert result == model
    assert [missed.name for missed in outcome.missed] == ([] if found is None else ["y"])
    if found is not None:
        assert found in outcome.missed[0].reason
