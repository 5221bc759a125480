# SPDX-License-Identifier: Apache-2.0
"""Gradients of operators that are defined by others: by their ONNX function, or fused by ONNX Runtime."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from finite_differences import check, draw, ints, make_model, node, run_in_onnxruntime
from onnx import NodeProto

import lnbp_onnx

Q, K, V = draw(2, 4, 3, 6), draw(2, 2, 5, 6), draw(2, 2, 5, 4)
STATES = {"q": draw(2, 2, 3, 6), "k": draw(2, 2, 3, 6), "v": draw(2, 2, 3, 4)}

FUNCTIONS: dict[str, tuple[int, NodeProto, dict[str, Any]]] = {
    "Attention, grouped queries": (23, node("Attention", "q k v"), {"q": Q, "k": K, "v": V}),
    "Attention, causal": (24, node("Attention", "q k v", is_causal=1, softcap=2.0), STATES),
    "Attention of three axes": (
        25,
        node("Attention", "q k v m", q_num_heads=2, kv_num_heads=2, scale=0.3),
        {"q": draw(2, 3, 8), "k": draw(2, 5, 8), "v": draw(2, 5, 6), "m": draw(3, 5)},
    ),
    "Attention with a past": (
        23,
        node("Attention", "q k v  pk pv", outputs=["y", "present_k", "present_v"]),
        {**STATES, "pk": draw(2, 2, 2, 6), "pv": draw(2, 2, 2, 4)},
    ),
    "RotaryEmbedding": (
        23,
        node("RotaryEmbedding", "x c s"),
        {"x": draw(2, 3, 4, 8), "c": draw(2, 4, 4), "s": draw(2, 4, 4) * 0.9},
    ),
    "RotaryEmbedding at positions": (
        24,
        node("RotaryEmbedding", "x c s p", num_heads=2, interleaved=1, rotary_embedding_dim=2),
        {
            "x": draw(2, 4, 8),
            "c": draw(9, 1),
            "s": draw(9, 1) * 0.9,
            "p": ints(0, 1, 2, 3, 5, 6, 7, 8).reshape(2, 4),
        },
    ),
    "Swish": (24, node("Swish", "a", alpha=1.5), {"a": draw(3, 4)}),
    "ThresholdedRelu": (22, node("ThresholdedRelu", "a"), {"a": draw(3, 4)}),
    "Shrink": (18, node("Shrink", "a", bias=0.2), {"a": draw(3, 4)}),
    "CenterCropPad": (18, node("CenterCropPad", "a s", axes=[1]), {"a": draw(3, 4), "s": ints(2)}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    opset, operator, given = FUNCTIONS[name]
    result = check(make_model([operator], given, opset=opset), given)
    assert operator.op_type not in [each.op_type for each in result.graph.node]


IDS = "m (int32[2, 3] ids, int32[2, 3] segments, int32[2, 3] places, float[7, 4] w, float[5, 4] p, float[2, 4] s, {})"
NORM = "float[4] gamma, float[4] beta"

FUSED = {
    "EmbedLayerNormalization": (
        IDS.format(NORM) + "=> (float[2, 3, 4] y) "
        "{ y, index, total = com.microsoft.EmbedLayerNormalization <epsilon = 0.1>"
        " (ids, segments, w, p, s, gamma, beta, , places) }",
        IDS.format(NORM) + "=> (float[2, 3, 4] y) "
        "{ a = Gather (w, ids) b = Gather (p, places) c = Gather (s, segments) d = Add (a, b) e = Add (d, c)"
        " y = LayerNormalization <epsilon = 0.1> (e, gamma, beta) }",
    ),
    "EmbedLayerNormalization without segments": (
        "m (int32[2, 3] ids, int32[2, 3] mask, float[7, 4] w, float[5, 4] p, " + NORM + ") => (float[2, 3, 4] y) "
        "{ z, index, y = com.microsoft.EmbedLayerNormalization (ids, , w, p, , gamma, beta, mask) }",
        "m (int32[2, 3] ids, int32[2, 3] mask, float[7, 4] w, float[5, 4] p, " + NORM + ") => (float[2, 3, 4] y) "
        "{ i = Constant <value = int64[3] {0, 1, 2}> () a = Gather (w, ids) b = Gather (p, i) y = Add (a, b) }",
    ),
    "SkipLayerNormalization": (
        "m (float[2, 3, 4] x, float[2, 3, 4] s, float[4] b, " + NORM + ") => (float[2, 3, 4] y) "
        "{ u, m, v, t = com.microsoft.SkipLayerNormalization (x, s, gamma, beta, b) y = Mul (u, t) }",
        "m (float[2, 3, 4] x, float[2, 3, 4] s, float[4] b, " + NORM + ") => (float[2, 3, 4] y) "
        "{ r = Add (x, s) t = Add (r, b) u = LayerNormalization (t, gamma, beta) y = Mul (u, t) }",
    ),
    "SkipSimplifiedLayerNormalization": (
        "m (float[2, 3, 4] x, float[2, 3, 4] s, float[4] gamma) => (float[2, 3, 4] y) "
        "{ u, m, v, t = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 0.1> (x, s, gamma) y = Mul (u, t) }",
        "m (float[2, 3, 4] x, float[2, 3, 4] s, float[4] gamma) => (float[2, 3, 4] y) "
        "{ t = Add (x, s) u = RMSNormalization <epsilon = 0.1> (t, gamma) y = Mul (u, t) }",
    ),
    "FastGelu": (
        "m (float[3, 4] x) => (float[3, 4] y) { y = com.microsoft.FastGelu (x) }",
        'm (float[3, 4] x) => (float[3, 4] y) { y = Gelu <approximate = "tanh"> (x) }',
    ),
    "FusedMatMul": (
        "m (float[2, 4, 3] x, float[2, 5, 4] w) => (float[2, 3, 5] y) "
        "{ y = com.microsoft.FusedMatMul <transA = 1, transB = 1, alpha = 0.5> (x, w) }",
        'm (float[2, 4, 3] x, float[2, 5, 4] w) => (float[2, 3, 5] y) { z = Einsum <equation = "bki,bjk->bij"> (x, w)'
        " h = Constant <value_float = 0.5> () y = Mul (z, h) }",
    ),
    "FusedGemm": (
        "m (float[3, 4] x, float[4, 2] w) => (float[3, 2] y) "
        '{ y = com.microsoft.FusedGemm <activation = "LeakyRelu", activation_alpha = 0.2> (x, w) }',
        "m (float[3, 4] x, float[4, 2] w) => (float[3, 2] y) { z = MatMul (x, w) y = LeakyRelu <alpha = 0.2> (z) }",
    ),
    "FusedConv": (
        "m (float[1, 2, 5] x, float[3, 2, 2] w, float[3] b, float[1, 3, 4] z) => (float[1, 3, 4] y) "
        '{ y = com.microsoft.FusedConv <activation = "Clip", activation_params = [-1.0, 1.0]> (x, w, b, z) }',
        "m (float[1, 2, 5] x, float[3, 2, 2] w, float[3] b, float[1, 3, 4] z) => (float[1, 3, 4] y) "
        "{ c = Conv (x, w, b) d = Add (c, z) l = Constant <value_float = -1.0> () h = Constant <value_float = 1.0> ()"
        " y = Clip (d, l, h) }",
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators_have_the_gradients_of_what_they_are_fused_of(name: str) -> None:
    fused, written = (
        onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]> ' + text)
        for text in FUSED[name]
    )
    rng = np.random.default_rng(6)
    feeds, sources = {}, []
    for value in fused.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            feeds[value.name] = rng.normal(size=shape).astype(np.float32)
            sources.append(value.name)
        else:
            feeds[value.name] = rng.integers(0, 2, size=shape).astype(np.int32)
    if name == "EmbedLayerNormalization without segments":
        sources = ["w", "p"]
    seed = rng.normal(size=[dim.dim_value for dim in fused.graph.output[0].type.tensor_type.shape.dim])
    expected, found = (
        run_in_onnxruntime(
            lnbp_onnx.gradient(model, of="y", wrt=sources, seed="seed"), {**feeds, "seed": seed.astype(np.float32)}
        )
        for model in (written, fused)
    )
    assert set(found) == set(expected)
    for output, array in expected.items():
        np.testing.assert_allclose(found[output], array, rtol=1e-4, atol=1e-5, err_msg=output)


def test_a_rotation_is_turned_back() -> None:
    opset, operator, given = FUNCTIONS["RotaryEmbedding at positions"]
    given = {**given, "c": given["c"].astype(np.float32), "s": given["s"].astype(np.float32)}
    result = check(make_model([operator], given, opset=opset), given)
    assert [each.op_type for each in result.graph.node] == ["RotaryEmbedding", "Neg", "RotaryEmbedding"]


def test_an_output_that_has_no_other_is_refused() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 18, "com.microsoft": 1]>
        m (float[2, 4] x, float[2, 4] s, float[4] g) => (float[2, 4] y) {
            u, mean = com.microsoft.SkipSimplifiedLayerNormalization (x, s, g)
            y = Mul (u, mean)
        }"""
    )
    with pytest.raises(lnbp_onnx.InvalidModelError, match="its output 1, 'mean', is used"):
        lnbp_onnx.gradient(model, of="y", wrt=["x"], seed="seed")


def test_only_what_a_gradient_passes_is_written_out() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 24]>
        m (float[3] x, float[3] z) => (float[3] y) { a = Swish (x) b = Swish (z) y = Mul (a, b) }"""
    )
    result = lnbp_onnx.gradient(model, of="y", wrt=["x"], seed="seed")
    assert [each.input[0] for each in result.graph.node if each.op_type == "Swish"] == ["z"]


# Post-norm as BERT's, with each activation, an RMS norm as Llama's, and a convolution.
BLOCK = """
<ir_version: 10, opset_import: ["": 17]>
block (float[n, 5, 8] tokens, float[2, 3, 6, 6] image) => (float loss)
{
    one = Constant <value_float = 1.0> ()
    three = Constant <value_float = 3.0> ()
    two = Constant <value_float = 2.0> ()
    half = Constant <value_float = 0.5> ()
    root = Constant <value_float = 1.4142135> ()
    scale = Constant <value_float = 0.35> ()
    cube = Constant <value_float = 0.044715> ()
    tanh = Constant <value_float = 0.7978845608> ()
    steep = Constant <value_float = 1.702> ()
    tiny = Constant <value_float = 0.000001> ()

    q = MatMul (tokens, wq)
    k = MatMul (tokens, wk)
    v = MatMul (tokens, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    logits = MatMul (q, kt)
    scaled = Mul (logits, scale)
    p = Softmax <axis = -1> (scaled)
    mixed = MatMul (p, v)
    s1 = Add (mixed, tokens)
    h1 = LayerNormalization <axis = -1, epsilon = 0.00001> (s1, gamma1, beta1)

    m1 = MatMul (h1, w1)
    b1m = Add (m1, b1)
    d1 = Div (b1m, root)
    e1 = Erf (d1)
    f1 = Add (e1, one)
    g1 = Mul (b1m, f1)
    gelu = Mul (g1, half)
    m2 = MatMul (gelu, w2)
    s2 = Add (m2, h1)
    h2 = LayerNormalization <axis = -1, epsilon = 0.00001> (s2, gamma2, beta2)

    m3 = MatMul (h2, w3)
    x3 = Pow (m3, three)
    i1 = Mul (x3, cube)
    i2 = Add (m3, i1)
    i3 = Mul (i2, tanh)
    i4 = Tanh (i3)
    i5 = Add (i4, one)
    i6 = Mul (m3, half)
    fast = Mul (i6, i5)
    m4 = MatMul (fast, w4)
    z1 = Mul (m4, steep)
    z2 = Sigmoid (z1)
    quick = Mul (m4, z2)
    s3 = Add (quick, h2)
    r1 = Pow (s3, two)
    r2 = ReduceMean <axes = [-1]> (r1)
    r3 = Add (r2, tiny)
    r4 = Sqrt (r3)
    r5 = Div (s3, r4)
    h3 = Mul (r5, gamma3)

    convolved = Conv (image, kernel, bias)
    c1 = Relu (convolved)
    pooled = GlobalAveragePool (c1)
    rows = Flatten (pooled)
    c2 = Gemm (rows, wc, bc)
    c3 = Relu (c2)
    t1 = ReduceSum <keepdims = 0> (c3)
    t2 = Mul (h3, h3)
    t3 = Mul (t2, h3)
    t4 = ReduceSum <keepdims = 0> (t3)
    loss = Add (t1, t4)
}
"""


WRITTEN_NORM = r"""
    \1_m = ReduceMean <axes = [-1]> (\2)
    \1_c = Sub (\2, \1_m)
    \1_q = Pow (\1_c, two)
    \1_v = ReduceMean <axes = [-1]> (\1_q)
    \1_e = Add (\1_v, tiny)
    \1_s = Sqrt (\1_e)
    \1_n = Div (\1_c, \1_s)
    \1_g = Mul (\1_n, \3)
    \1 = Add (\1_g, \4)
"""


def block(opset: int) -> onnx.ModelProto:
    text = BLOCK.replace('"": 17', f'"": {opset}')
    if opset < 17:
        text = re.sub(r"(\w+) = LayerNormalization .* \((\w+), (\w+), (\w+)\)", WRITTEN_NORM, text)
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(2)
    shapes = {
        **dict.fromkeys(("gamma1", "beta1", "gamma2", "beta2", "gamma3"), (8,)),
        **dict.fromkeys(("wq", "wk", "wv", "w3", "w4"), (8, 8)),
        **{"w1": (8, 16), "b1": (16,), "w2": (16, 8), "kernel": (4, 3, 3, 3), "bias": (4,), "wc": (4, 2), "bc": (2,)},
    }
    for name, shape in shapes.items():
        array = (rng.normal(size=shape) / 2).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def optimised(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("opset", [13, 17])
def test_what_onnxruntime_optimised_has_the_gradients_of_the_original(tmp_path: Path, opset: int) -> None:
    model = block(opset)
    fused = optimised(model, tmp_path / "optimised.onnx")
    op_types = {each.op_type for each in fused.graph.node if each.domain == "com.microsoft"}
    assert op_types == {
        *("BiasGelu", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul", "QuickGelu", "SkipLayerNormalization"),
    }
    assert "SimplifiedLayerNormalization" in {each.op_type for each in fused.graph.node}
    weights = [each.name for each in model.graph.initializer]
    rng = np.random.default_rng(4)
    feeds = {
        "tokens": rng.normal(size=(2, 5, 8)).astype(np.float32),
        "image": rng.normal(size=(2, 3, 6, 6)).astype(np.float32),
    }
    results = [lnbp_onnx.gradient(each, of="loss", wrt=[*weights, *feeds]) for each in (model, fused)]
    norms = [each for each in results[1].graph.node if each.domain == lnbp_onnx.DOMAIN]
    assert [each.op_type for each in norms] == ["LayerNormBackprop"] * 2
    expected, found = (run_in_onnxruntime(result, feeds) for result in results)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=2e-5 * np.abs(array).max(), err_msg=name)
