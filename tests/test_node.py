# SPDX-License-Identifier: Apache-2.0
"""Making nodes."""

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import lnbp_onnx


def test_default_outputs() -> None:
    node = lnbp_onnx.make_node("x", "dy", gamma="g", mean="m", variance="v")
    assert list(node.output) == ["input_delta", "gamma_delta", "beta_delta"]
    assert list(node.input) == ["x", "dy", "g", "", "m", "v"]
    assert (node.domain, node.op_type) == (lnbp_onnx.DOMAIN, lnbp_onnx.OP_TYPE)
    plain = lnbp_onnx.make_node("x", "dy", use_affine=False, use_stats=False, name="n")
    assert list(plain.output) == ["input_delta"]
    assert list(plain.input) == ["x", "dy"]
    assert plain.name == "n"


def test_attributes_are_written_out() -> None:
    node = lnbp_onnx.make_node("x", "dy", gamma="g", use_stats=False, begin_norm_axis=-2, epsilon=0.25)
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert values == {"begin_norm_axis": -2, "use_affine": 1, "epsilon": 0.25, "use_stats": 0}


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_gradient_of_a_layer_normalization(axis: int, bias: bool) -> None:
    """Forward node and gradient in one graph, against the gradient with computed statistics."""
    shape, norm = [4, 3, 5], [3, 5][axis % 3 - 1 :]
    forward = helper.make_node(
        "LayerNormalization",
        ["x", "g", *(["b"] if bias else [])],
        ["y", "mu", "rstd"],
        axis=axis,
        epsilon=0.01,
        name="ln",
    )
    nodes = lnbp_onnx.gradient_nodes(forward, "dy", outputs=["dx", "dg", "db"])
    assert nodes[-1].op_type == "LayerNormBackprop"
    inputs = {"x": shape, "g": norm, "b": norm, "dy": shape}
    graph = helper.make_graph(
        [forward, *nodes],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "dx", "dg", "db")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    rng = np.random.default_rng(0)
    feeds = {name: rng.normal(size=dims).astype(np.float32) for name, dims in inputs.items()}
    found = ReferenceEvaluator(model, new_ops=[lnbp_onnx.LayerNormBackprop]).run(["dx", "dg", "db"], feeds)
    doubles = [feeds[name].astype(np.float64) for name in ("x", "dy", "g")]
    expected = lnbp_onnx.layer_norm_backprop(*doubles, begin_norm_axis=axis, use_stats=False, epsilon=0.01)
    for a, b in zip(found, expected, strict=True):
        assert b is not None
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ln", ""])
@pytest.mark.parametrize("beta", [["b"], []])
def test_gradient_is_named_after_the_forward_node(name: str, beta: list[str]) -> None:
    """With the axis that LayerNormalization has by default, and the other name of the default domain."""
    forward = helper.make_node(
        "LayerNormalization", ["x", "g", *beta], ["y", "mu", "rstd"], name=name, domain="ai.onnx"
    )
    nodes = lnbp_onnx.gradient_nodes(forward, "dy")
    names = ["ln_grad_squared", "ln_grad_variance", "ln_grad"] if name else ["", "", ""]
    assert [node.name for node in nodes] == names
    assert list(nodes[-1].input) == ["x", "dy", "g", *(beta or [""]), "mu", "rstd_variance"]
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in nodes[-1].attribute}
    assert attributes["begin_norm_axis"] == -1
    assert attributes["epsilon"] == 0


def test_epsilon_by_default() -> None:
    node = lnbp_onnx.make_node("x", "dy", gamma="g", mean="m", variance="v")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes["epsilon"] == np.float32(1e-5)
    assert node.name == ""


def test_gradient_needs_the_statistics_and_the_axis() -> None:
    unnamed = helper.make_node("LayerNormalization", ["x", "g"], ["y"])
    with pytest.raises(lnbp_onnx.InvalidNodeError, match="node 'y': output 1 'Mean' is omitted"):
        lnbp_onnx.gradient_nodes(unnamed, "dy")
    forward = helper.make_node("LayerNormalization", ["x", "g"], ["y", "mu"], name="ln")
    with pytest.raises(lnbp_onnx.InvalidNodeError, match="'ln': output 2 'InvStdDev' is omitted"):
        lnbp_onnx.gradient_nodes(forward, "dy")
    of_function = helper.make_node("LayerNormalization", ["x", "g"], ["y", "mu", "rstd"], name="ln")
    of_function.attribute.add(name="axis", ref_attr_name="a", type=onnx.AttributeProto.INT)
    with pytest.raises(lnbp_onnx.InvalidNodeError, match="'ln': attribute 'axis' refers to 'a' of a function"):
        lnbp_onnx.gradient_nodes(of_function, "dy")
    other = helper.make_node("BatchNormalization", ["x"], ["y"], name="bn")
    with pytest.raises(lnbp_onnx.InvalidNodeError, match=r"this is ai\.onnx::BatchNormalization"):
        lnbp_onnx.gradient_nodes(other, "dy")


def test_nodes_pass_the_checker() -> None:
    context = onnx.checker.DEFAULT_CONTEXT
    context.opset_imports = {"": 17, "lnbp": 1}
    onnx.checker.check_node(lnbp_onnx.make_node("x", "dy", use_affine=False, use_stats=False), context)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": "dx"}, "outputs is 'dx'; it must be a list of different names"),
        ({"outputs": ["a", "a"]}, "it must be a list of different names"),
        ({"begin_norm_axis": None}, "attribute 'begin_norm_axis' is None; it must be an integer"),
        ({"begin_norm_axis": 1.5}, "attribute 'begin_norm_axis' is 1.5; it must be an integer"),
        ({"begin_norm_axis": 2**70}, "it must be an integer of 64 bits"),
        ({"epsilon": "small"}, "attribute 'epsilon' is 'small'; it must be a number"),
    ],
)
def test_arguments_that_no_node_can_have(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(lnbp_onnx.InvalidNodeError, match=re.escape(message)):
        lnbp_onnx.make_node("x", "dy", gamma="g", mean="m", variance="v", **arguments)


def test_gradient_of_a_forward_node_without_scale() -> None:
    forward = helper.make_node("LayerNormalization", ["x"], ["y", "mu", "rstd"], name="ln")
    with pytest.raises(lnbp_onnx.InvalidNodeError, match="'ln': input 1 'Scale' is missing"):
        lnbp_onnx.gradient_nodes(forward, "dy")


def test_compare_needs_a_run() -> None:
    with pytest.raises(ValueError, match="runs is 0"):
        lnbp_onnx.compare(onnx.ModelProto(), onnx.ModelProto(), runs=0)


def test_each_of_equal_nodes_is_refused_by_its_own_name() -> None:
    for name in ("first", "second"):
        with pytest.raises(lnbp_onnx.InvalidNodeError, match=f"node '{name}': input 'gamma' is missing"):
            lnbp_onnx.make_node("x", "dy", use_stats=False, name=name)
