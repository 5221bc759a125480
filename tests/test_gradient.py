# SPDX-License-Identifier: Apache-2.0
"""Gradients of ONNX models, against finite differences in double and torch's autograd."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import command
from documentation import ROOT
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import lnbp_onnx
from lnbp_onnx.gradients import CONSTANT, RULES

Arrays = Mapping[str, np.ndarray[Any, Any]]
DOUBLE, FLOAT, INT64 = TensorProto.DOUBLE, TensorProto.FLOAT, TensorProto.INT64

_STEP = 1e-5


def make_model(nodes: Sequence[NodeProto], given: Arrays, *, opset: int = 18, dynamic: bool = False) -> ModelProto:
    """A model with arrays in double as inputs, all others as initializers; `y` is its output."""
    inputs = [
        helper.make_tensor_value_info(
            name, DOUBLE, [f"{name}{axis}" for axis in range(array.ndim)] if dynamic else array.shape
        )
        for name, array in given.items()
        if array.dtype == np.float64
    ]
    constants = [
        onnx.numpy_helper.from_array(array, name) for name, array in given.items() if array.dtype != np.float64
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", DOUBLE, None)], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    y = run(model, {name: array for name, array in given.items() if array.dtype == np.float64})["y"]
    shape = [None] * y.ndim if dynamic else y.shape
    graph.output[0].CopyFrom(helper.make_tensor_value_info("y", DOUBLE, shape))
    model.graph.CopyFrom(graph)
    return model


class Erf(OpRun):
    """In double: ONNX's own computes in float."""

    op_domain = ""

    def _run(self, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any]]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def run(model: ModelProto, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
    evaluator = ReferenceEvaluator(model, new_ops=[lnbp_onnx.LayerNormBackprop, Erf])
    return dict(zip([output.name for output in model.graph.output], evaluator.run(None, dict(feeds)), strict=True))


def check(model: ModelProto, given: Arrays) -> None:
    """Compare the products of gradients and a drawn direction with central differences along it."""
    feeds = {name: array for name, array in given.items() if array.dtype == np.float64}
    rng = np.random.default_rng(3)
    y = run(model, feeds)["y"]
    seed = rng.normal(size=np.shape(y))
    result = lnbp_onnx.gradient(model, of="y", wrt=list(feeds), seed="y.seed")
    onnx.checker.check_model(result)
    gradients = run(result, {**feeds, "y.seed": seed})
    for name, value in feeds.items():
        assert gradients[f"{name}.grad"].shape == value.shape
        assert gradients[f"{name}.grad"].dtype == np.float64
        direction = rng.normal(size=value.shape)
        high, low = (
            np.sum(seed * run(model, {**feeds, name: value + sign * _STEP * direction})["y"]) for sign in (1, -1)
        )
        expected = (high - low) / (2 * _STEP)
        found = np.sum(gradients[f"{name}.grad"] * direction)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7, err_msg=name)


def draw(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray[Any, Any]:
    """Numbers in double that are apart from each other and from bends of functions at whole numbers and halves."""
    count = int(np.prod(shape))
    rng = np.random.default_rng(count + 17 * len(shape))
    values = (np.linspace(low, high, count + 2)[1:-1] if count else np.zeros(0)) + 0.003
    return rng.permutation(values).reshape(shape)


def node(op_type: str, inputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(" "), attributes.pop("outputs", ["y"]), **attributes)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


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


ENCODER = """
<ir_version: 10, opset_import: ["": 20]>
encoder (int64[2, 5] tokens, int64[10] labels) => (float loss)
{
    x = Gather (embedding, tokens)
    h = LayerNormalization <epsilon = 0.00001> (x, gamma1, beta1)
    q = MatMul (h, wq)
    k = MatMul (h, wk)
    v = MatMul (h, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    logits = MatMul (q, kt)
    scaled = Mul (logits, scale)
    p = Softmax <axis = -1> (scaled)
    attention = MatMul (p, v)
    x1 = Add (x, attention)
    h1 = LayerNormalization <epsilon = 0.00001> (x1, gamma2, beta2)
    w1c = Cast <to = 1> (w1)
    a = MatMul (h1, w1c)
    ab = Add (a, b1)
    g = Gelu (ab)
    m = MatMul (g, w2)
    x2 = Add (x1, m)
    flat = Reshape (x2, rows)
    scores = Gemm <transB = 1> (flat, embedding)
    loss = SoftmaxCrossEntropyLoss (scores, labels)
}
"""


def encoder() -> ModelProto:
    rng = np.random.default_rng(5)
    model = onnx.parser.parse_model(ENCODER)
    shapes = {
        **{"embedding": (7, 8), "gamma1": (8,), "beta1": (8,), "gamma2": (8,), "beta2": (8,)},
        **{"wq": (8, 8), "wk": (8, 8), "wv": (8, 8), "w1": (8, 16), "b1": (16,), "w2": (16, 8)},
    }
    for name, shape in shapes.items():
        dtype = np.float64 if name == "w1" else np.float32
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(dtype), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(ints(10, 8), "rows"))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["scale"], value_float=8**-0.5))
    return model


TOKENS = {"tokens": ints(1, 4, 4, 0, 6, 2, 1, 1, 5, 3).reshape(2, 5), "labels": ints(3, 1, 0, 0, 2, 5, 6, 6, 4, 1)}


def torch_gradients(model: ModelProto) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    parameters = {
        each.name: torch.tensor(onnx.numpy_helper.to_array(each)).requires_grad_()
        for each in model.graph.initializer
        if each.data_type in (FLOAT, DOUBLE)
    }
    p = {name: value.float() for name, value in parameters.items()}
    x = p["embedding"][torch.tensor(TOKENS["tokens"])]
    h = functional.layer_norm(x, (8,), p["gamma1"], p["beta1"])
    logits = (h @ p["wq"]) @ (h @ p["wk"]).mT * 8**-0.5
    x = x + logits.softmax(-1) @ (h @ p["wv"])
    h = functional.layer_norm(x, (8,), p["gamma2"], p["beta2"])
    x = x + functional.gelu(h @ p["w1"] + p["b1"]) @ p["w2"]
    loss = functional.cross_entropy(x.reshape(10, 8) @ p["embedding"].T, torch.tensor(TOKENS["labels"]))
    loss.backward()
    return {f"{name}.grad": value.grad.numpy() for name, value in parameters.items()} | {"loss": loss.detach().numpy()}


def test_transformer_block_has_the_gradients_of_torch() -> None:
    model = encoder()
    expected = torch_gradients(model)
    result = lnbp_onnx.gradient(model, of="loss")
    onnx.checker.check_model(result)
    nodes = [each for each in result.graph.node if each.domain == lnbp_onnx.DOMAIN]
    assert [each.op_type for each in nodes] == ["LayerNormBackprop"] * 2
    decomposed = lnbp_onnx.decompose(result)
    assert not any(each.domain for each in decomposed.graph.node)
    for each in (result, decomposed):
        session = lnbp_onnx.inference_session(each)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, TOKENS), strict=True))
        assert set(found) == set(expected)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5, err_msg=name)


def test_forms_of_models() -> None:
    model = encoder()
    before = model.SerializeToString()
    result = lnbp_onnx.gradient(model, of="loss", wrt=["wk", "gamma1"])
    assert model.SerializeToString() == before
    assert [output.name for output in result.graph.output] == ["loss", "wk.grad", "gamma1.grad"]
    assert [value.name for value in result.graph.input] == ["tokens", "labels", "wk", "gamma1"]
    again = lnbp_onnx.gradient(ir.from_proto(model), of="loss", wrt=["wk", "gamma1"])
    assert [output.name for output in again.graph.outputs] == ["loss", "wk.grad", "gamma1.grad"]


def test_an_exponent_that_becomes_an_input_is_no_constant() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]>
        m (double[3] a) => (double[3] y) <double e = {2.0}> { y = Pow (a, e) }"""
    )
    result = lnbp_onnx.gradient(model, of="y", wrt=["a", "e"], seed="s")
    a = draw(3, low=1.0, high=2.0)
    found = run(result, {"a": a, "e": np.array(3.0), "s": np.ones(3)})
    np.testing.assert_allclose(found["a.grad"], 3 * a**2)
    np.testing.assert_allclose(found["e.grad"], np.sum(a**3 * np.log(a)))


def test_command(tmp_path: Path) -> None:
    onnx.save(encoder(), tmp_path / "m.onnx")
    result = command("gradient", "m.onnx", "--of", "loss", "--wrt", "w*", "--wrt", "gamma1", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = ["wq.grad", "wk.grad", "wv.grad", "w1.grad", "w2.grad", "gamma1.grad"]
    assert sorted(json.loads(result.stdout)["gradients"]) == sorted(names)
    written = onnx.load(tmp_path / "m.gradient.onnx")
    assert sorted(output.name for output in written.graph.output) == sorted(["loss", *names])
    onnx.checker.check_model(written)
    assert command("gradient", "m.onnx", "x.onnx", "--of", "loss", "-q", cwd=tmp_path).returncode == 0
    for arguments, part in (
        (["--of", "loss", "--wrt", "z*"], "'z*' matches no input"),
        (["--of", "x2"], "seed='x2.seed'"),
        (["x.onnx", "--of", "loss"], "--force"),
    ):
        refused = command("gradient", "m.onnx", *arguments, "--dry-run", cwd=tmp_path)
        assert refused.returncode == 2
        assert part in refused.stderr.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gradient.onnx", "m.onnx", "x.onnx"]


def test_functions_are_inlined() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "own": 1]>
        main (double[3] a) => (double[3] y) { y = own.Cube (a) }
        <opset_import: ["": 18], domain: "own"> Cube (x) => (z) { s = Mul (x, x) z = Mul (s, x) }"""
    )
    check(model, {"a": draw(3)})


def test_functions_of_another_opset_are_refused() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "own": 1]>
        main (double[3] a) => (double[3] y) { y = own.Cube (a) }
        <opset_import: ["": 17], domain: "own"> Cube (x) => (z) { s = Mul (x, x) z = Mul (s, x) }"""
    )
    with pytest.raises(lnbp_onnx.InvalidModelError, match="own::Cube imports version 17"):
        lnbp_onnx.gradient(model, of="y", wrt=["a"], seed="s")


def refusal(text: str, **arguments: Any) -> str:
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 18]>' + text)
    with pytest.raises(lnbp_onnx.InvalidModelError) as error:
        lnbp_onnx.gradient(model, **{"of": "y", "wrt": ["a"], **arguments})
    return str(error.value)


def test_what_is_not_covered_is_listed_whole() -> None:
    text = refusal("m (float[3] a) => (float y) { b = Acos (a) c = Asin (b) y = ReduceSum <keepdims = 0> (c) }")
    assert "Acos node 'b'" in text
    assert "Asin node 'c'" in text


@pytest.mark.parametrize(
    ("text", "arguments", "part"),
    [
        (
            "m (float[3] a, float b) => (float y) { c = ArgMax <keepdims=0> (a) d = Cast <to=1> (c) y = Mul (b, d) }",
            {},
            "does not depend on 'a'",
        ),
        ("m (float[3] a) => (float[3] y) { y = Neg (a) }", {}, "seed='y.seed'"),
        ("m (float[3] a) => (float y) { y = ReduceSum <keepdims=0> (a) }", {"wrt": ["z"]}, "neither an input nor"),
        ("m (float[3] a) => (float y) { y = ReduceSum <keepdims=0> (a) }", {"of": "z"}, "computes 'z'"),
        ("m (float[3] a) => (float y) { y = ReduceSum <keepdims=0> (a) }", {"wrt": []}, "it is empty"),
        ("m (float[3] a) => (float y) { y = ReduceSum <keepdims=0> (a) }", {"wrt": None}, "no initializer"),
        ("m (float[3] a) => (float[3] y) { y = Neg (a) }", {"seed": "a"}, "'a' already"),
        (
            "m (float[2, 3] a) => (float[4, 5] y) { p = Constant <value = int64[4] {1, 1, 1, 1}> ()"
            ' y = Pad <mode = "reflect"> (a, p) }',
            {"seed": "s"},
            "mode is 'reflect'",
        ),
        (
            "m (bool c, float a) => (float y) { y = If (c) <then_branch = t () => (float u) { u = Neg (a) },"
            " else_branch = e () => (float v) { v = Abs (a) }> }",
            {},
            "If node 'y'",
        ),
        (
            "m (float[3] a) => (float y) { q = Cast <to = 17> (a) b = Cast <to = 1> (q) c = Add (a, b)"
            " y = ReduceSum <keepdims = 0> (c) }",
            {},
            "FLOAT8E4M3FN",
        ),
        ("m (float[3] a) => (float[3] y) { y, mask = Dropout (a, r, t) }", {"seed": "s"}, "training_mode"),
    ],
)
def test_refusals(text: str, arguments: dict[str, Any], part: str) -> None:
    if "Dropout" in text:
        text = text.replace("(float[3] a)", "(float[3] a, float r, bool t)")
    assert part in refusal(text, **arguments)


def test_operators_are_listed() -> None:
    page = (ROOT / "docs/training.md").read_text("utf-8")
    rows = [line for line in page.split("## Operators")[1].splitlines() if line.startswith("| `")]
    assert rows == [f"| `{name}` | {' '.join((rule.__doc__ or '').split())} |" for name, rule in sorted(RULES.items())]
