# SPDX-License-Identifier: Apache-2.0
"""The gradient of each operator, against finite differences in double."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from documentation import ROOT
from finite_differences import (
    DOUBLE,
    FLOAT,
    check,
    check_linear,
    draw,
    ints,
    make_model,
    node,
    run,
    run_in_onnxruntime,
)
from onnx import ModelProto, NodeProto

import lnbp_onnx
from lnbp_onnx.gradients import CONSTANT, FIRST_INPUT_RULES, MICROSOFT_RULES, RULES
from lnbp_onnx.gradients.bodies import WRITTEN_OUT
from lnbp_onnx.gradients.fused import FUSED

X, POSITIVE, IMAGE = draw(3, 4), draw(3, 4, low=0.2, high=3.0), draw(2, 4, 7, 6)

UNARY = {
    **dict.fromkeys(["Abs", "Cos", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"], X),
    **dict.fromkeys(
        [
            "Atan",
            "Celu",
            "Cosh",
            "Sinh",
            "Mish",
            "Neg",
            "Reciprocal",
            "Relu",
            "Selu",
            "Sigmoid",
            "Sin",
            "Softplus",
            "Softsign",
        ],
        X,
    ),
    **dict.fromkeys(["Tanh", "Softmax", "LogSoftmax", "Flatten", "Transpose", "Trilu", "Dropout"], X),
    **dict.fromkeys(["Log", "Sqrt"], POSITIVE),
    **dict.fromkeys(["Acos", "Asin", "Asinh", "Atanh"], X / 3),
    "Acosh": POSITIVE + 1,
    "LpNormalization": X,
    "GlobalAveragePool": IMAGE,
    "GlobalMaxPool": IMAGE,
}

EQUATIONS: dict[str, list[tuple[int, ...]]] = {
    "ii->i": [(3, 3)],
    "iji->j": [(2, 3, 2)],
    "ij": [(2, 3)],
    "...ij,...jk": [(2, 1, 3, 4), (1, 3, 4, 2)],
    "i...->...": [(3, 2)],
    "ij,jk,kl->il": [(2, 3), (3, 2), (2, 4)],
    "ij,ij->i": [(2, 3), (2, 1)],
    "b...,bi->i...": [(2, 3), (1, 2)],
}

POOLS: list[dict[str, Any]] = [
    {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
    {"auto_pad": "SAME_LOWER", "count_include_pad": 1},
    {"auto_pad": "VALID", "strides": [2, 2]},
    {"ceil_mode": 1, "strides": [3, 4], "pads": [0, 1, 1, 0]},
    {"ceil_mode": 1, "strides": [2, 3], "count_include_pad": 1},
    {"dilations": [2, 2], "strides": [2, 2]},
]

CASES: dict[str, tuple[NodeProto, dict[str, Any]]] = {
    **{
        f"{op_type} {form}": (node(op_type, "a b"), {"a": POSITIVE, "b": other})
        for op_type in ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum")
        for form, other in (("same", POSITIVE[::-1] + 0.01), ("row", POSITIVE[0] * 1.1), ("more", draw(2, 3, 1) + 2.5))
    },
    "Mean": (node("Mean", "a b"), {"a": X, "b": draw(4)}),
    "Pow 2": (node("Pow", "a b"), {"a": X, "b": np.array(2, np.int64)}),
    "PRelu": (node("PRelu", "a b"), {"a": X, "b": draw(4)}),
    "Clip of bounds": (node("Clip", "a l h"), {"a": X, "l": np.array(-0.7), "h": np.array(1.1)}),
    "Clip of crossed bounds": (node("Clip", "a l h"), {"a": X, "l": np.array(1.1), "h": np.array(-0.7)}),
    "Clip": (node("Clip", "a"), {"a": X}),
    "Where": (node("Where", "c a b"), {"c": X > 0.5, "a": X, "b": draw(4)}),
    "Gelu tanh": (node("Gelu", "a", approximate="tanh"), {"a": X}),
    **{
        f"MatMul {a} {b}": (node("MatMul", "a b"), {"a": draw(*a), "b": draw(*b)})
        for a, b in (
            [(3, 4), (4, 2)],
            [(2, 3, 4), (4, 2)],
            [(2, 3, 0), (0, 2)],
            [(2, 3, 4), (2, 4, 5)],
            [(3, 4), (2, 4, 5)],
            [(2, 1, 3, 4), (5, 4, 2)],
            [(4,), (4,)],
            [(4,), (2, 4, 3)],
            [(2, 3, 4), (4,)],
            [(4,), (4, 3)],
        )
    },
    **{
        f"Gemm {a} {b}": (
            node("Gemm", "a b c", transA=a, transB=b, alpha=0.5, beta=2.0),
            {"a": draw(*(4, 3) if a else (3, 4)), "b": draw(*(2, 4) if b else (4, 2)), "c": draw(2)},
        )
        for a in (0, 1)
        for b in (0, 1)
    },
    "Einsum": (node("Einsum", "a b", equation="bij,bkj->bik"), {"a": draw(2, 3, 4), "b": draw(2, 5, 4)}),
    **{
        f"Einsum {equation}": (
            node("Einsum", " ".join("abc"[: len(shapes)]), equation=equation),
            {name: draw(*shape) + 0.01 for name, shape in zip("abc", shapes, strict=False)},
        )
        for equation, shapes in EQUATIONS.items()
    },
    "Einsum sum": (node("Einsum", "a b", equation="ijz,jk->ik"), {"a": draw(2, 3, 4), "b": draw(3, 5)}),
    **{
        f"{op_type} {keepdims}": (
            node(op_type, "a", axes=[-1, 0], keepdims=keepdims),
            {"a": draw(2, 3, 4)},
        )
        for op_type in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin")
        for keepdims in (0, 1)
    },
    "Tan": (node("Tan", "a"), {"a": draw(3, 4, low=-1.0, high=1.0)}),
    "ReduceLogSum": (node("ReduceLogSum", "a", axes=[1]), {"a": POSITIVE}),
    "ReduceProd": (node("ReduceProd", "a", axes=[1], keepdims=0), {"a": X * (np.arange(4) > 0) * (X > -1.5)}),
    "ReduceSumSquare": (node("ReduceSumSquare", "a"), {"a": X}),
    "ReduceSum": (node("ReduceSum", "a axes", keepdims=0), {"a": X, "axes": ints(1)}),
    "CumSum": (node("CumSum", "a axis", exclusive=1), {"a": X, "axis": np.array(1, np.int64)}),
    "Reshape": (node("Reshape", "a s"), {"a": X, "s": ints(2, -1)}),
    "Squeeze": (node("Squeeze", "a s"), {"a": draw(3, 1, 2), "s": ints(1)}),
    "Unsqueeze": (node("Unsqueeze", "a s"), {"a": X, "s": ints(1)}),
    "Transpose perm": (node("Transpose", "a", perm=[2, 0, 1]), {"a": draw(2, 3, 4)}),
    "Expand": (node("Expand", "a s"), {"a": draw(3, 1), "s": ints(2, 3, 4)}),
    "Tile": (node("Tile", "a s"), {"a": X, "s": ints(2, 3)}),
    "Concat": (node("Concat", "a b", axis=-1), {"a": X, "b": draw(3, 2)}),
    "Split": (node("Split", "a s", axis=1, outputs=["y", "z"]), {"a": X, "s": ints(1, 3)}),
    "Slice of a range": (node("Slice", "a s e"), {"a": X, "s": ints(-2, 1), "e": ints(9, 3)}),
    "Slice of the first axis": (node("Slice", "a s e"), {"a": X, "s": ints(1), "e": ints(3)}),
    "Slice": (node("Slice", "a s e x t"), {"a": X, "s": ints(3), "e": ints(-9), "x": ints(1), "t": ints(-2)}),
    **{
        f"Pad {mode}": (node("Pad", "a p", mode=mode), {"a": X, "p": ints(1, 2, 2, 3)})
        for mode in ("reflect", "edge", "wrap")
    },
    "Pad axes": (
        node("Pad", "a p  x", mode="edge"),
        {"a": X, "p": ints(3, 1), "x": ints(-1)},
    ),
    "Pad constant axes": (
        node("Pad", "a p  x"),
        {"a": X, "p": ints(3, 1), "x": ints(-1)},
    ),
    "Pad": (node("Pad", "a p"), {"a": X, "p": ints(1, 0, 2, 3)}),
    "DepthToSpace CRD": (node("DepthToSpace", "a", blocksize=2, mode="CRD"), {"a": IMAGE}),
    "DepthToSpace": (node("DepthToSpace", "a", blocksize=2), {"a": IMAGE}),
    "SpaceToDepth": (node("SpaceToDepth", "a", blocksize=2), {"a": draw(1, 2, 4, 6)}),
    "Gather": (node("Gather", "a i", axis=1), {"a": X, "i": ints(1, -1, 1)}),
    "GatherElements": (node("GatherElements", "a i", axis=1), {"a": X, "i": ints(1, 1, 2, 0, 0, 0).reshape(3, 2)}),
    "GatherND": (node("GatherND", "a i"), {"a": X, "i": ints(1, 1, 2, 0, 1, 1).reshape(3, 2)}),
    **{
        f"ScatterElements {reduction}": (
            node("ScatterElements", "a i u", axis=1, reduction=reduction),
            {"a": X, "i": ints(1, 3, 2).reshape(3, 1), "u": draw(3, 1)},
        )
        for reduction in ("none", "add")
    },
    **{
        f"ScatterND {reduction}": (
            node("ScatterND", "a i u", reduction=reduction),
            {"a": X, "i": ints(2, 0).reshape(2, 1), "u": draw(2, 4)},
        )
        for reduction in ("none", "add")
    },
    "Conv": (
        node("Conv", "a w b", strides=[2, 1], pads=[1, 0, 0, 2], dilations=[1, 2]),
        {"a": IMAGE, "w": draw(6, 4, 3, 2), "b": draw(6)},
    ),
    "ConvTranspose": (node("ConvTranspose", "a w", strides=[2, 2]), {"a": IMAGE, "w": draw(4, 3, 2, 3)}),
    "MaxPool": (node("MaxPool", "a", kernel_shape=[2, 2], strides=[2, 1]), {"a": IMAGE}),
    "AveragePool": (node("AveragePool", "a", kernel_shape=[3, 2], pads=[1, 0, 1, 1]), {"a": IMAGE}),
    **{
        f"AveragePool {index}": (node("AveragePool", "a", kernel_shape=[3, 2], **attributes), {"a": IMAGE})
        for index, attributes in enumerate(POOLS)
    },
    **{
        f"{op_type} {auto_pad}": (
            node(op_type, "a w", auto_pad=auto_pad, strides=[2, 1]),
            {"a": IMAGE, "w": draw(4, 4, 3, 2)},
        )
        for op_type in ("Conv", "ConvTranspose")
        for auto_pad in ("SAME_UPPER", "VALID")
    },
    "MaxPool ceil": (node("MaxPool", "a", kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1), {"a": IMAGE}),
    **{
        f"Resize {mode} {transformation}": (
            node("Resize", "a r s", mode=mode, coordinate_transformation_mode=transformation),
            {"a": IMAGE, "r": np.zeros(0, np.float32), "s": np.array([1, 1, 0.6, 2.1], np.float32)},
        )
        for mode, transformation in (
            ("nearest", "asymmetric"),
            ("linear", "half_pixel"),
            ("linear", "align_corners"),
            ("cubic", "pytorch_half_pixel"),
        )
    },
    "Resize sizes": (
        node("Resize", "a r s z", mode="linear"),
        {
            "a": draw(2, 3, 4),
            "r": np.zeros(0, np.float32),
            "s": np.zeros(0, np.float32),
            "z": ints(5, 3, 6),
        },
    ),
    "Resize axes": (
        node("Resize", "a r s", mode="linear", axes=[2, 0], antialias=1),
        {"a": draw(4, 3, 5), "r": np.zeros(0, np.float32), "s": np.array([0.5, 1.5], np.float32)},
    ),
    "Resize crop": (
        node("Resize", "a r s", mode="linear", coordinate_transformation_mode="tf_crop_and_resize"),
        {
            "a": draw(4, 5),
            "r": np.array([0.2, 0.1, 1.1, 0.9], np.float32),
            "s": np.array([1.5, 0.5], np.float32),
        },
    ),
    "LpNormalization 1": (node("LpNormalization", "a", p=1, axis=0), {"a": POSITIVE}),
    "ReverseSequence": (node("ReverseSequence", "a l", batch_axis=0, time_axis=1), {"a": X, "l": ints(2, 1, 4)}),
    "TopK": (node("TopK", "a k", axis=0, outputs=["y", "i"]), {"a": X, "k": ints(2)}),
    "LayerNormalization": (node("LayerNormalization", "a g b"), {"a": X, "g": draw(4), "b": draw(4)}),
    "LayerNormalization axis": (node("LayerNormalization", "a g", axis=1), {"a": draw(2, 3, 4), "g": draw(3, 4)}),
    "RMSNormalization": (node("RMSNormalization", "a g"), {"a": X, "g": draw(4)}),
    "InstanceNormalization": (node("InstanceNormalization", "a g b"), {"a": IMAGE, "g": draw(4), "b": draw(4)}),
    "GroupNormalization": (
        node("GroupNormalization", "a g b", num_groups=2, stash_type=DOUBLE),
        {"a": IMAGE, "g": draw(4), "b": draw(4)},
    ),
    "GroupNormalization groups": (
        node("GroupNormalization", "a g b", num_groups=2),
        {"a": IMAGE, "g": draw(2), "b": draw(2)},
    ),
    "BatchNormalization training": (
        node("BatchNormalization", "a g b m v", training_mode=1, outputs=["y", "new_m", "new_v"]),
        {"a": IMAGE, "g": draw(4), "b": draw(4), "m": np.zeros(4, np.float32), "v": np.ones(4, np.float32)},
    ),
    "BatchNormalization": (
        node("BatchNormalization", "a g b m v"),
        {
            "a": IMAGE,
            "g": draw(4),
            "b": draw(4),
            "m": draw(4),
            "v": draw(4, low=0.5, high=2.0),
        },
    ),
    "SoftmaxCrossEntropyLoss": (
        node("SoftmaxCrossEntropyLoss", "a l", ignore_index=1),
        {"a": X, "l": ints(3, 1, 0)},
    ),
    **{
        f"NegativeLogLikelihoodLoss {reduction}": (
            node("NegativeLogLikelihoodLoss", "a l w", ignore_index=1, reduction=reduction),
            {
                "a": draw(2, 3, 4),
                "l": ints(2, 1, 0, 2, 0, 2, 2, 1).reshape(2, 4),
                "w": np.array([0.2, 1, 2], np.float32),
            },
        )
        for reduction in ("mean", "sum", "none")
    },
    **{op_type: (node(op_type, "a"), {"a": array}) for op_type, array in UNARY.items()},
}
_OPSETS = {"Pad wrap": 19, "AveragePool 5": 19, "GroupNormalization": 21, "RMSNormalization": 23, "Gelu tanh": 20}


def opset_of(name: str) -> int:
    op_type = CASES[name][0].op_type
    return _OPSETS.get(name, 22 if op_type == "HardSwish" else 13 if op_type.startswith("Reduce") else 18)


@pytest.mark.parametrize("name", CASES)
def test_finite_differences(name: str) -> None:
    operator, given = CASES[name]
    # The oldest form of GroupNormalization is deprecated, which the checker does not take.
    is_checked = name != "GroupNormalization groups"
    check(make_model([operator], given, opset=opset_of(name)), given, is_checked=is_checked)


# ONNX Runtime resizes otherwise than ONNX's own evaluator, and has no deprecated operators.
OTHERWISE_IN_ONNXRUNTIME = {"GroupNormalization groups", "Resize crop", "Resize linear align_corners"}


@pytest.mark.parametrize("name", sorted(set(CASES) - OTHERWISE_IN_ONNXRUNTIME))
def test_onnxruntime_computes_the_same_in_float(name: str) -> None:
    operator, given = CASES[name]
    model = make_model([operator], given, opset=opset_of(name))
    feeds = {key: array.astype(np.float32) for key, array in given.items() if array.dtype == np.float64}
    in_float = ModelProto.FromString(model.SerializeToString())
    for value in (*in_float.graph.input, *in_float.graph.output):
        value.type.tensor_type.elem_type = FLOAT
    for attribute in in_float.graph.node[0].attribute:
        if attribute.name == "stash_type":
            attribute.i = FLOAT
    feeds["seed"] = draw(*(dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim)).astype(
        np.float32
    )
    wanted = [key for key in feeds if key != "seed"]
    exact = {key: array.astype(np.float64) for key, array in feeds.items()}
    expected = run(lnbp_onnx.gradient(model, of="y", wrt=wanted, seed="seed"), exact)
    found = run_in_onnxruntime(lnbp_onnx.gradient(in_float, of="y", wrt=wanted, seed="seed"), feeds)
    for key in wanted:
        array = expected[f"{key}.grad"]
        assert found[f"{key}.grad"].dtype == np.float32
        atol = 1e-4 * np.abs(array).max(initial=1)
        np.testing.assert_allclose(found[f"{key}.grad"], array, rtol=1e-4, atol=atol)


# What ONNX's own evaluator does not have.
LINEAR: dict[str, tuple[NodeProto, dict[str, Any]]] = {
    "Pad of negative lengths": (node("Pad", "a p"), {"a": X, "p": ints(-1, 2, 2, -1)}),
    "Pad, reflected and cut": (node("Pad", "a p", mode="reflect"), {"a": X, "p": ints(-1, 2, 1, -1)}),
    **{
        f"ConvTranspose of a shape {auto_pad}": (
            node("ConvTranspose", "a w", strides=[2, 2], output_shape=[12, 10], auto_pad=auto_pad),
            {"a": IMAGE, "w": draw(4, 4, 3, 3)},
        )
        for auto_pad in ("NOTSET", "SAME_UPPER")
    },
    **{
        f"{op_type} {auto_pad}": (
            node(op_type, "a w", auto_pad=auto_pad, strides=[2, 1]),
            {"a": IMAGE, "w": draw(4, 4, 3, 2)},
        )
        for op_type in ("Conv", "ConvTranspose")
        for auto_pad in ("SAME_UPPER", "SAME_LOWER")
    },
    "Resize cubic": (
        node("Resize", "a   z", mode="cubic"),
        {"a": IMAGE, "z": ints(2, 4, 4, 11)},
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_finite_differences_in_onnxruntime(name: str) -> None:
    operator, given = LINEAR[name]
    given = {key: array.astype(np.float32) if array.dtype == np.float64 else array for key, array in given.items()}
    check_linear(make_model([operator], given, dtype=np.float32), given)


@pytest.mark.parametrize(
    "name",
    [
        "Add row",
        "Mul more",
        "MatMul (2, 3, 4) (4, 2)",
        "MatMul (2, 3, 0) (0, 2)",
        "Concat",
        "ReduceMean 0",
        "Where",
        "Tile",
        "Reshape",
        "Slice of a range",
        "Slice of the first axis",
    ],
)
def test_dynamic_shapes(name: str) -> None:
    operator, given = CASES[name]
    opset = 13 if operator.op_type == "ReduceMean" else 18
    check(make_model([operator], given, opset=opset, dynamic=True), given)


OPERATORS = "\n## Operators\n"
STANDARD = {op_type: written for (domain, op_type), written in WRITTEN_OUT.items() if domain == ""}
# Against models of torch, and against what ONNX Runtime fuses them of.
ELSEWHERE = {"Cast", "SimplifiedLayerNormalization"}


def test_every_rule_is_tested() -> None:
    assert {operator.op_type for operator, _ in CASES.values()} == set(RULES) - ELSEWHERE
    assert not CONSTANT & set(RULES)


def test_operators_are_listed() -> None:
    _, tables = (ROOT / "docs/training.md").read_text("utf-8").split(OPERATORS)
    assert [line for line in tables.splitlines() if line.startswith("| `")] == rows()


def rows() -> list[str]:
    """The rows of the tables in docs/training.md; running this file writes them."""
    tables: list[Mapping[str, Callable[..., Any]]] = [
        {**RULES, **FIRST_INPUT_RULES},
        {f"com.microsoft::{name}": rule for name, rule in MICROSOFT_RULES.items()},
        {f"com.microsoft::{name}": written for name, written in FUSED.items()},
        STANDARD,
    ]
    return [
        f"| `{name}` | {' '.join((function.__doc__ or '').split())} |"
        for table in tables
        for name, function in sorted(table.items())
    ]


def write_rows() -> None:
    page = ROOT / "docs/training.md"
    before, tables = page.read_text("utf-8").split(OPERATORS)
    pending, lines = rows()[::-1], []
    sizes = [len(RULES) + len(FIRST_INPUT_RULES), len(MICROSOFT_RULES), len(FUSED), len(STANDARD)][::-1]
    for line in tables.splitlines():
        if not line.startswith("| `"):
            lines.append(line)
        elif lines[-1] == "|---|---|":
            lines += [pending.pop() for _ in range(sizes.pop())]
    page.write_text(before + OPERATORS + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    write_rows()
