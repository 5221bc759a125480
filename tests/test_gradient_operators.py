# SPDX-License-Identifier: Apache-2.0
"""The gradient of each operator, against finite differences in double."""

from typing import Any

import numpy as np
import pytest
from documentation import ROOT
from finite_differences import DOUBLE, check, draw, ints, make_model, node
from onnx import NodeProto

from lnbp_onnx.gradients import CONSTANT, RULES

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
    "GlobalAveragePool": IMAGE,
    "GlobalMaxPool": IMAGE,
}

CASES: dict[str, tuple[NodeProto, dict[str, Any]]] = {
    **{
        f"{op_type} {form}": (node(op_type, "a b"), {"a": POSITIVE, "b": other})
        for op_type in ("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum")
        for form, other in (("same", POSITIVE[::-1] + 0.01), ("row", POSITIVE[0] * 1.1), ("more", draw(2, 3, 1) + 2.5))
    },
    "Mean": (node("Mean", "a b"), {"a": X, "b": draw(4)}),
    "Pow 2": (node("Pow", "a b"), {"a": X, "b": np.array(2, np.int64)}),
    "PRelu": (node("PRelu", "a b"), {"a": X, "b": draw(4)}),
    "Clip": (node("Clip", "a"), {"a": X}),
    "Where": (node("Where", "c a b"), {"c": X > 0.5, "a": X, "b": draw(4)}),
    "Gelu tanh": (node("Gelu", "a", approximate="tanh"), {"a": X}),
    **{
        f"MatMul {a} {b}": (node("MatMul", "a b"), {"a": draw(*a), "b": draw(*b)})
        for a, b in (
            [(3, 4), (4, 2)],
            [(2, 3, 4), (4, 2)],
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
    "Slice": (node("Slice", "a s e x t"), {"a": X, "s": ints(3), "e": ints(-9), "x": ints(1), "t": ints(-2)}),
    "Pad": (node("Pad", "a p"), {"a": X, "p": ints(1, 0, 2, 3)}),
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
    "LayerNormalization": (node("LayerNormalization", "a g b"), {"a": X, "g": draw(4), "b": draw(4)}),
    "LayerNormalization axis": (node("LayerNormalization", "a g", axis=1), {"a": draw(2, 3, 4), "g": draw(3, 4)}),
    "RMSNormalization": (node("RMSNormalization", "a g"), {"a": X, "g": draw(4)}),
    "InstanceNormalization": (node("InstanceNormalization", "a g b"), {"a": IMAGE, "g": draw(4), "b": draw(4)}),
    "GroupNormalization": (
        node("GroupNormalization", "a g b", num_groups=2, stash_type=DOUBLE),
        {"a": IMAGE, "g": draw(4), "b": draw(4)},
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
            "m": draw(4).astype(np.float32),
            "v": np.ones(4, np.float32),
        },
    ),
    "SoftmaxCrossEntropyLoss": (
        node("SoftmaxCrossEntropyLoss", "a l", ignore_index=1),
        {"a": X, "l": ints(3, 1, 0)},
    ),
    **{op_type: (node(op_type, "a"), {"a": array}) for op_type, array in UNARY.items()},
}
_OPSETS = {"GroupNormalization": 21, "RMSNormalization": 23, "Gelu tanh": 20}


@pytest.mark.parametrize("name", CASES)
def test_finite_differences(name: str) -> None:
    operator, given = CASES[name]
    opset = _OPSETS.get(name, 22 if operator.op_type == "HardSwish" else 13 if operator.op_type[:6] == "Reduce" else 18)
    check(make_model([operator], given, opset=opset), given)


@pytest.mark.parametrize(
    "name", ["Add row", "Mul more", "MatMul (2, 3, 4) (4, 2)", "Concat", "ReduceMean 0", "Where", "Tile", "Reshape"]
)
def test_dynamic_shapes(name: str) -> None:
    operator, given = CASES[name]
    opset = 13 if operator.op_type == "ReduceMean" else 18
    check(make_model([operator], given, opset=opset, dynamic=True), given)


def test_every_rule_is_tested() -> None:
    assert {operator.op_type for operator, _ in CASES.values()} == set(RULES) - {"Cast"}
    assert not CONSTANT & set(RULES)


def test_operators_are_listed() -> None:
    page = (ROOT / "docs/training.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {' '.join((rule.__doc__ or '').split())} |" for name, rule in sorted(RULES.items())]
