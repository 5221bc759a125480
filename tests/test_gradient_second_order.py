# SPDX-License-Identifier: Apache-2.0
"""Gradients of gradients through layer norms, against finite differences in double and torch's double backward."""

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from finite_differences import check, draw, make_model, node, run_in_onnxruntime
from onnx import ModelProto

import lnbp_onnx


@pytest.mark.parametrize("has_statistics", [False, True], ids=["computed", "given"])
@pytest.mark.parametrize("output", ["input_delta", "gamma_delta"])
def test_layer_norm_backprop(output: str, has_statistics: bool) -> None:
    given: dict[str, Any] = {"x": draw(3, 4), "dy": draw(3, 4) * 0.9, "gamma": draw(4)}
    if has_statistics:
        given |= {"mean": draw(3), "variance": draw(3, low=0.5, high=2.0)}
    operator = lnbp_onnx.make_node(
        "x",
        "dy",
        gamma="gamma",
        mean="mean" if has_statistics else "",
        variance="variance" if has_statistics else "",
        use_stats=has_statistics,
        epsilon=0.1,
        outputs=["d" if name == output else name for name in ("input_delta", "gamma_delta")],
    )
    model = make_model([operator, node("Mul", "d gamma")], given)
    result = check(model, given)
    assert lnbp_onnx.OP_TYPE not in [each.op_type for each in result.graph.node]


@pytest.mark.parametrize("of", ["mean", "inv_std", "all"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_statistics_of_a_layer_norm(axis: int, of: str) -> None:
    """What is computed of Mean and InvStdDev has a gradient; in ONNX Runtime, for ONNX's evaluator has other types."""
    shape = (2, 3, 4)
    x, scale = draw(*shape), draw(*shape[axis:])
    outputs = {"mean": ["n", "y"], "inv_std": ["n", "", "y"], "all": ["n", "m", "r"]}[of]
    nodes = [node("LayerNormalization", "x g", outputs=outputs, axis=axis, epsilon=0.1)]
    if of == "all":
        nodes += [node("Mul", "n m", outputs=["p"]), node("Mul", "p r")]
    given = {name: value.astype(np.float32) for name, value in {"x": x, "g": scale}.items()}
    model = make_model(nodes, given, dtype=np.float32)
    seed = np.random.default_rng(3).normal(
        size=[dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim]
    )
    result = lnbp_onnx.gradient(model, of="y", wrt=["x"], seed="seed")
    found = run_in_onnxruntime(result, {**given, "seed": seed.astype(np.float32)})["x.grad"]

    def y(x: Any) -> Any:
        axes = tuple(range(axis % 3, 3))
        m = x.mean(axes, keepdims=True)
        r = 1 / np.sqrt(((x - m) ** 2).mean(axes, keepdims=True) + 0.1)
        return {"mean": m, "inv_std": r, "all": (x - m) * r * scale * m * r}[of]

    for place in np.ndindex(shape):
        step = np.zeros(shape)
        step[place] = 1e-5
        expected = np.sum(seed * (y(x + step) - y(x - step))) / 2e-5
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-5)


PENALTY = """<ir_version: 10, opset_import: ["": 18]>
    m (float[5, 6] x, float[5, 6] c) => (float loss)
    <float[6] g = {1.5, 1.0, 0.5, -1.0, 2.0, 0.7}, float[6] b, float[6, 6] w>
    {
        y = LayerNormalization <epsilon = 0.1> (x, g, b)
        s = Sigmoid (y)
        z = MatMul (s, w)
        n = LayerNormalization (z, g)
        t = Mul (n, c)
        q = Mul (t, t)
        loss = ReduceSum <keepdims = 0> (q)
    }"""


def penalised(forward: ModelProto) -> ModelProto:
    """The loss, and the squares of its gradient by x under the name `penalty`."""
    model = ir.from_proto(lnbp_onnx.gradient(forward, of="loss", wrt=["x"]))
    (gradient,) = (output for output in model.graph.outputs if output.name == "x.grad")
    model.graph.outputs.clear()
    gradient.name = "slope"
    squares = ir.node("ReduceSumSquare", [gradient], attributes={"keepdims": 0})
    model.graph.append(squares)
    squares.outputs[0].name, squares.outputs[0].shape = "penalty", ir.Shape([])
    squares.outputs[0].type = gradient.type
    model.graph.outputs.append(squares.outputs[0])
    return ir.to_proto(model)


@pytest.mark.parametrize("is_decomposed", [False, True], ids=["kernel", "decomposed"])
def test_gradient_penalty_is_torchs(is_decomposed: bool) -> None:
    torch = pytest.importorskip("torch")
    forward = onnx.parser.parse_model(PENALTY)
    rng = np.random.default_rng(7)
    values = {"b": (6,), "w": (6, 6), "x": (5, 6), "c": (5, 6)}
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in values.items()}
    feeds["g"] = onnx.numpy_helper.to_array(forward.graph.initializer[0])
    for name in ("b", "w"):
        forward.graph.initializer.append(onnx.numpy_helper.from_array(feeds[name], name))
    result = lnbp_onnx.gradient(penalised(forward), of="penalty", wrt=["x", "c", "g", "b", "w"])
    onnx.checker.check_model(result)
    model = lnbp_onnx.decompose(result) if is_decomposed else result
    found = run_in_onnxruntime(model, {name: feeds[name] for name in ("x", "c")})

    tensors = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in feeds.items()}
    x, c, g, b, w = (tensors[name] for name in "xcgbw")
    norm = torch.nn.functional.layer_norm
    n = norm(torch.sigmoid(norm(x, (6,), g, b, 0.1)) @ w, (6,), g)
    (slope,) = torch.autograd.grad((n * c).square().sum(), x, create_graph=True)
    penalty = slope.square().sum()
    penalty.backward()
    np.testing.assert_allclose(found["penalty"], penalty.item(), rtol=1e-5)
    for name, tensor in tensors.items():
        expected = tensor.grad.numpy()
        np.testing.assert_allclose(found[f"{name}.grad"], expected, atol=1e-5 * abs(expected).max(), err_msg=name)
