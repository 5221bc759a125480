# SPDX-License-Identifier: Apache-2.0
"""What onnx's inference is asked through this package is what it says itself, without what ends it."""

import time

import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper

import lnbp_onnx
from lnbp_onnx.graphs import onnx_calls
from lnbp_onnx.graphs.inference import Functions, infer
from lnbp_onnx.node import TensorInfo

LONG = 2**33


def model_that_computes_shapes(*, with_vectors: bool) -> ModelProto:
    """x [b, 4, 16] read as [b, 64] by its shape, in the graph and in a branch, beside sums of long vectors."""
    constants = [
        helper.make_tensor("first", TensorProto.INT64, [1], [0]),
        helper.make_tensor("columns", TensorProto.INT64, [1], [64]),
    ]
    branches = []
    for name in ("then", "else"):
        nodes = [
            helper.make_node("Reshape", ["x", "target"], [f"{name}_x"]),
            *([helper.make_node("Add", ["v", "v"], [f"{name}_v"])] if with_vectors else []),
        ]
        info = helper.make_tensor_value_info(f"{name}_x", TensorProto.FLOAT, None)
        branches.append(helper.make_graph(nodes, name, [], [info]))
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
        helper.make_node("Concat", ["rows", "columns"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
        helper.make_node("If", ["c"], ["z"], then_branch=branches[0], else_branch=branches[1]),
    ]
    infos: dict[str, tuple[int, list[int | str]]] = {
        "x": (TensorProto.FLOAT, ["b", 4, 16]),
        "c": (TensorProto.BOOL, []),
    }
    if with_vectors:
        nodes += [helper.make_node("Add", ["v", "v"], ["u"]), helper.make_node("Concat", ["u", "v"], ["w"], axis=0)]
        infos["v"] = (TensorProto.FLOAT, [LONG])
    inputs = [helper.make_tensor_value_info(name, *info) for name, info in infos.items()]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")]
    graph = helper.make_graph(nodes, "shapes", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def found(model: ModelProto) -> dict[str, TensorInfo]:
    graph = model.graph
    return {value.name: TensorInfo.from_type_proto(value.type) for value in (*graph.value_info, *graph.output)}


def test_vectors_do_not_hide_shapes() -> None:
    expected = found(onnx.shape_inference.infer_shapes(model_that_computes_shapes(with_vectors=False), data_prop=True))
    assert expected["y"].shape == expected["z"].shape == ("b", 64)
    shapes = found(onnx_calls.infer_shapes(model_that_computes_shapes(with_vectors=True)))
    assert shapes == {
        **expected,
        "u": TensorInfo(TensorProto.FLOAT, (LONG,)),
        "w": TensorInfo(TensorProto.FLOAT, (2 * LONG,)),
    }


@pytest.mark.parametrize("axis", [2**31, 2**32 - 1, -(2**31) - 1, 2**63 - 1])
def test_an_attribute_that_is_cut(axis: int) -> None:
    node = helper.make_node("LayerNormalization", ["x", "g"], ["y", "m"], name="n", axis=axis)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "g", "y", "m")]
    graph = helper.make_graph([node], "axis", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for call in (onnx_calls.check_model, onnx_calls.infer_shapes):
        with pytest.raises(lnbp_onnx.InvalidModelError, match=f"'n': attribute 'axis' is {axis}; it must be in "):
            call(model)


def model_with_calls(number: int, *, opset: int = 17) -> ModelProto:
    """Functions in fives, of which each calls the next twice, and calls of the first ones of x [2, 3]."""
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    functions = []
    for index in range(number):
        calls = [("x", "t"), ("t", "y")]
        nodes = [helper.make_node(f"f{index - 1}", [a], [b], domain="local") for a, b in calls]
        if index % 5 == 0:
            nodes = [helper.make_node("Transpose", ["x"], ["y"])]
        functions.append(helper.make_function("local", f"f{index}", ["x"], ["y"], nodes, opsets))
    nodes = [helper.make_node(f"f{index}", ["x"], [f"y{index}"], domain="local") for index in range(4, number, 5)]
    branch = helper.make_graph(
        [helper.make_node("f0", ["x"], ["t"], domain="local"), helper.make_node("f0", ["t"], ["b"], domain="local")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["a", "b"])],
    )
    nodes.append(helper.make_node("If", ["c"], ["end"], then_branch=branch, else_branch=branch))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])]
    inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    outputs = [helper.make_tensor_value_info("end", TensorProto.FLOAT, ["a", "b"])]
    opset_imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    graph = helper.make_graph(nodes, "calls", inputs, outputs)
    return helper.make_model(graph, opset_imports=opset_imports, ir_version=8, functions=functions)


@pytest.mark.parametrize("opset", [17, 16])
def test_what_comes_out_of_calls(opset: int) -> None:
    """Of functions of another operator set, too, as long as they are few."""
    model = ir.from_proto(model_with_calls(10, opset=opset))
    infos = infer(model.graph, Functions(model.functions.values()), model.opset_imports)
    shapes = {value.name: info.shape for value, info in infos.items()}
    assert shapes["y4"] == shapes["y9"] == shapes["b"] == shapes["end"] == (2, 3)
    assert shapes["t"] == (3, 2)
    assert shapes.keys() == {"x", "c", "y4", "y9", "t", "b", "end"}


@pytest.mark.parametrize("opset", [17, 16])
def test_calls_of_many_functions_take_linear_time(opset: int) -> None:
    seconds = {}
    for number in (400, 3200):
        model = model_with_calls(number, opset=opset)
        start = time.process_time()
        onnx_calls.infer_shapes(model)
        onnx_calls.check_model(model)
        seconds[number] = time.process_time() - start
    assert seconds[3200] < 24 * seconds[400]
