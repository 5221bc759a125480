# SPDX-License-Identifier: Apache-2.0
"""Gradients of ONNX models, against finite differences in double and torch's autograd."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from command_line import command
from finite_differences import DOUBLE, FLOAT, check, draw, ints, run, run_in_onnxruntime
from onnx import ModelProto, helper

import lnbp_onnx

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


def test_constants_by_nature_are_not_differentiated_by_default() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]>
        m (float[2, 3, 4] x, bool t) => (float y)
        <float[3] g = {1, 2, 3}, float[3] b = {0, 1, 2}, float[3] mean = {0, 0, 0}, float[3] var = {1, 1, 1},
         float[3] scales = {1, 1, 2}, float ratio = {0.5}> {
            n, new_mean, new_var = BatchNormalization <training_mode = 1> (x, g, b, mean, var)
            r = Resize (n, , scales)
            f = Identity (r)
            d = Dropout (f, ratio)
            y = ReduceSum <keepdims = 0> (d)
        }"""
    )
    result = lnbp_onnx.gradient(model, of="y")
    assert [output.name for output in result.graph.output] == ["y", "g.grad", "b.grad"]


@pytest.mark.parametrize("training", ["true", "t"])
def test_dropout(training: str) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18]>
        m (float[50] a, bool t) => (float[50] y) <float ratio = {0.4}> {
            true = Constant <value = bool {1}> ()
            y = Dropout (a, ratio, TRAINING)
        }""".replace("TRAINING", training)
    )
    result = lnbp_onnx.gradient(model, of="y", wrt=["a"], seed="seed")
    a, seed = draw(50) + 3, draw(50)
    feeds = {"a": a.astype(np.float32), "seed": seed.astype(np.float32)}
    for value in (True, False):
        found = run_in_onnxruntime(result, {**feeds, "t": np.array(value)})
        # What was kept is known by the output.
        np.testing.assert_allclose(found["a.grad"], found["y"] / feeds["a"] * feeds["seed"], rtol=1e-5)
        assert (0 < np.count_nonzero(found["y"]) < 50) == (value or training == "true")


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
        (["--of", "loss", "--wrt", "z*"], "--wrt: 'z*' matches no input"),
        (["--of", "x2"], "--seed x2.seed"),
        (["x.onnx", "--of", "loss"], "--force"),
    ):
        refused = command("gradient", "m.onnx", *arguments, "--dry-run", cwd=tmp_path)
        assert refused.returncode == 2
        assert part in refused.stderr.replace("\n", " ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gradient.onnx", "m.onnx", "x.onnx"]


def test_a_large_graph() -> None:
    blocks = "".join(
        f"""
        n{i} = LayerNormalization (v{i}, g) m{i} = MatMul (n{i}, w) a{i} = Add (m{i}, g) e{i} = Gelu (a{i})
        s{i} = Softmax (e{i}) t{i} = Transpose (s{i}) p{i} = Mul (t{i}, m{i}) q{i} = Tanh (p{i}) r{i} = Div (q{i}, g)
        v{i + 1} = Add (v{i}, r{i})"""
        for i in range(500)
    )
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        main (double[3, 3] v0, double[3, 3] w, double[3] g) => (double[3, 3] v500) {{ {blocks} }}"""
    )
    start = time.process_time()
    result = lnbp_onnx.gradient(model, of="v500", wrt=["w", "g"], seed="seed")
    assert time.process_time() - start < 5
    assert [node.op_type for node in result.graph.node].count("LayerNormBackprop") == 500


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


def test_a_function_in_float_is_none_of_double() -> None:
    text = (
        "m ({type}[2, 3, 4, 4] a) => ({type} y) {{ b = MeanVarianceNormalization (a) y = ReduceL2 <keepdims = 0> (b) }}"
    )
    assert "MeanVarianceNormalization node 'b'" in refusal(text.format(type="double"))
    model = onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 18]>' + text.format(type="float"))
    onnx.checker.check_model(lnbp_onnx.gradient(model, of="y", wrt=["a"]), full_check=True)


def test_what_is_not_covered_is_listed_whole() -> None:
    text = refusal("m (float[3] a) => (float y) { b = Det (a) c = Hardmax (b) y = ReduceSum <keepdims = 0> (c) }")
    assert "Det node 'b'" in text
    assert "Hardmax node 'c'" in text


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
            "m (float[3] a) => (float y) { q = Cast <to = 17> (a) b = Cast <to = 1> (q) c = Add (a, b)"
            " y = ReduceSum <keepdims = 0> (c) }",
            {},
            "FLOAT8E4M3FN",
        ),
        (
            "m (float[3] a) => (float y) <float s = {0.1}, int8 z = {0}> { q = QuantizeLinear (a, s, z)"
            " i = Identity (q) d = DequantizeLinear (i, s, z) c = Add (a, d) y = ReduceSum <keepdims = 0> (c) }",
            {},
            "QuantizeLinear node 'q' (output 'q'); DequantizeLinear node 'd'",
        ),
    ],
)
def test_refusals(text: str, arguments: dict[str, Any], part: str) -> None:
    assert part in refusal(text, **arguments)
