# SPDX-License-Identifier: Apache-2.0
"""Models with the operator in the graph, in subgraphs and in functions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

import lnbp_onnx

FLOAT, DOUBLE, INT64, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT64, TensorProto.BOOL

info = helper.make_tensor_value_info


def make_model(
    nodes: list[NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[Any]]],
    outputs: Mapping[str, tuple[int, Sequence[Any]]],
    *,
    opset: int | None = 17,
    ir_version: int = 8,
    **arguments: Any,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "main",
        [info(name, *of) for name, of in inputs.items()],
        [info(name, *of) for name, of in outputs.items()],
    )
    opsets = [helper.make_opsetid("lnbp", 1)]
    if opset is not None:
        opsets.append(helper.make_opsetid("", opset))
    opsets += [helper.make_opsetid(domain, 1) for domain in arguments.pop("domains", ())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version, **arguments)


def operator(x: str, dy: str, g: str, outputs: list[str], **attributes: Any) -> NodeProto:
    return lnbp_onnx.make_node(x, dy, gamma=g, outputs=outputs, use_stats=False, **attributes)


def draw(**shapes: list[int]) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(7)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def subgraph_model() -> ModelProto:
    """An If whose branch holds a Loop whose body holds the operator, on captured names of both outer scopes."""
    body = helper.make_graph(
        [
            operator("x", "scaled", "g", ["dx", "dg", ""], name="inner"),
            helper.make_node("Identity", ["keep"], ["again"]),
            helper.make_node("Add", ["sum", "dg"], ["next_sum"]),
            helper.make_node("ReduceSum", ["dx", "one"], ["slice"], keepdims=0),
        ],
        "body",
        [info("i", INT64, []), info("keep", BOOL, []), info("sum", FLOAT, [6])],
        [info("again", BOOL, []), info("next_sum", FLOAT, [6]), info("slice", FLOAT, [4])],
        [helper.make_tensor("one", INT64, [1], [1])],
    )
    then_branch = helper.make_graph(
        [
            helper.make_node("Mul", ["dy", "dy"], ["scaled"]),
            helper.make_node("Loop", ["n", "cond", "zero"], ["total", "slices"], body=body, name="repeat"),
        ],
        "then",
        [],
        [info("total", FLOAT, [6]), info("slices", FLOAT, [None, 4])],
    )
    else_branch = helper.make_graph(
        [
            operator("x", "dy", "g", ["dx", "dg_else"], name="inner"),
            helper.make_node("Slice", ["dx", "zeros", "ones", "axes"], ["rows"]),
            helper.make_node("Reshape", ["rows", "shape"], ["rows2"]),
        ],
        "else",
        [],
        [info("dg_else", FLOAT, [6]), info("rows2", FLOAT, [None, 4])],
        [
            helper.make_tensor(name, INT64, [len(values)], values)
            for name, values in (("zeros", [0]), ("ones", [4]), ("axes", [1]), ("shape", [-1, 4]))
        ],
    )
    choice = helper.make_node("If", ["cond"], ["y", "z"], then_branch=then_branch, else_branch=else_branch, name="if")
    return make_model(
        [choice, operator("x", "dy", "g", ["dx_main"], name="inner")],
        {
            "cond": (BOOL, []),
            "n": (INT64, []),
            "zero": (FLOAT, [6]),
            "x": (FLOAT, [4, 6]),
            "dy": (FLOAT, [4, 6]),
            "g": (FLOAT, [6]),
        },
        {"y": (FLOAT, [6]), "z": (FLOAT, [None, 4]), "dx_main": (FLOAT, [4, 6])},
    )


def function_model(ir_version: int) -> ModelProto:
    """Calls of G, which calls F, which holds the operator: two types, two epsilons, one of them a default."""
    node = operator("x", "dy", "g", ["dx", "dg", ""], name="op")
    epsilon = next(attribute for attribute in node.attribute if attribute.name == "epsilon")
    epsilon.ClearField("f")
    epsilon.ref_attr_name = "eps"
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("lnbp", 1), helper.make_opsetid("my", 1)]
    inner = helper.make_function("my", "F", ["x", "dy", "g"], ["dx", "dg"], [node], opsets[:2], attributes=["eps"])
    call = helper.make_node("F", ["a", "b", "c"], ["p", "q"], domain="my")
    call.attribute.add(name="eps", ref_attr_name="e", type=onnx.AttributeProto.FLOAT)
    negate = helper.make_node("Neg", ["q"], ["minus_q"])
    outer = helper.make_function(
        "my",
        "G",
        ["a", "b", "c"],
        ["p", "minus_q"],
        [call, negate],
        opsets,
        attribute_protos=[helper.make_attribute("e", 0.5)],
    )
    unused = helper.make_function("my", "Unused", ["x"], ["y"], [helper.make_node("Neg", ["x"], ["y"])], opsets[:1])
    calls = [
        helper.make_node("G", ["x", "dy", "g"], ["dx0", "dg0"], domain="my", name="first"),
        helper.make_node("G", ["x", "dy", "g"], ["dx1", "dg1"], domain="my", name="second"),
        helper.make_node("G", ["x", "dy", "g"], ["dx2", "dg2"], domain="my", name="other_epsilon", e=0.25),
        helper.make_node("G", ["xd", "dyd", "gd"], ["dx3", "dg3"], domain="my", name="double"),
        helper.make_node("F", ["x", "dy", "g"], ["dx4", "dg4"], domain="my", name="direct", eps=0.5),
    ]
    shapes = {"x": [4, 6], "dy": [4, 6], "g": [6]}
    inputs = {name: (FLOAT, shape) for name, shape in shapes.items()}
    inputs |= {f"{name}d": (DOUBLE, shape) for name, shape in shapes.items()}
    outputs = {f"dx{i}": (DOUBLE if i == 3 else FLOAT, [4, 6]) for i in range(5)}
    outputs |= {f"dg{i}": (DOUBLE if i == 3 else FLOAT, [6]) for i in range(5)}
    return make_model(calls, inputs, outputs, functions=[inner, outer, unused], domains=["my"], ir_version=ir_version)
