# SPDX-License-Identifier: Apache-2.0
"""Models without gradients, for which those of onnxruntime-training are recorded, and their inputs."""

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper

Arrays = dict[str, np.ndarray[Any, Any]]

GRAPHS = {
    "mlp": """
mlp (float[rows, 6] x, float[rows, 2] target) => (float loss)
{
    a = Gemm <transB = 1> (x, w1, b1)
    n = LayerNormalization <epsilon = 0.00001> (a, gamma, beta)
    h = Gelu (n)
    y = MatMul (h, w2)
    e = Sub (y, target)
    s = Mul (e, e)
    loss = ReduceMean <keepdims = 0> (s)
}
""",
    "convolution": """
convolution (float[2, 3, 8, 8] x, int64[2] labels) => (float loss)
{
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, kernel, bias)
    n, new_mean, new_var = BatchNormalization <training_mode = 1> (c, scale, shift, mean, var)
    r = Relu (n)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    scores = Gemm (f, w, b)
    loss = SoftmaxCrossEntropyLoss (scores, labels)
}
""",
    "attention": """
attention (float[2, 5, 8] x, float[2, 5, 8] target) => (float loss)
{
    n = LayerNormalization <epsilon = 0.00001> (x, gamma, beta)
    projected = MatMul (n, wqkv)
    biased = Add (projected, bqkv)
    q, k, v = Split <axis = -1> (biased, widths)
    q1 = Reshape (q, heads)
    k1 = Reshape (k, heads)
    v1 = Reshape (v, heads)
    q2 = Transpose <perm = [0, 2, 1, 3]> (q1)
    k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    products = MatMul (q2, k2)
    scaled = Mul (products, scale)
    weights = Softmax <axis = -1> (scaled)
    mixed = MatMul (weights, v2)
    together = Transpose <perm = [0, 2, 1, 3]> (mixed)
    flat = Reshape (together, shape)
    o = MatMul (flat, wo)
    y = Add (x, o)
    e = Sub (y, target)
    s = Pow (e, two)
    loss = ReduceMean <keepdims = 0> (s)
}
""",
    "embedding": """
embedding (int64[2, 4] tokens, int64[8] labels) => (float loss)
{
    t = Gather (words, tokens)
    x = Add (t, positions)
    n = LayerNormalization <epsilon = 0.00001> (x, gamma, beta)
    flat = Reshape (n, rows)
    back = Transpose <perm = [1, 0]> (words)
    scores = MatMul (flat, back)
    loss = SoftmaxCrossEntropyLoss <ignore_index = -1> (scores, labels)
}
""",
    "sequence": """
sequence (float[2, 4, 9] x, float[2, 4] target) => (float loss)
{
    c = Conv <kernel_shape = [3], dilations = [2], pads = [4, 0]> (x, kernel, bias)
    value, gate = Split <axis = 1> (c, halves)
    t = Tanh (value)
    g = Sigmoid (gate)
    h = Mul (t, g)
    pooled = ReduceMean <keepdims = 0> (h, last)
    y = Mul (pooled, scale)
    e = Sub (y, target)
    s = Mul (e, e)
    each = ReduceSum <keepdims = 0> (s, last)
    root = Sqrt (each)
    loss = ReduceMean <keepdims = 0> (root)
}
""",
}

_SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {"w1": (8, 6), "b1": (8,), "gamma": (8,), "beta": (8,), "w2": (8, 2)},
    "convolution": {
        **{"kernel": (4, 3, 3, 3), "bias": (4,), "scale": (4,), "shift": (4,), "w": (4, 3), "b": (3,)},
    },
    "attention": {"gamma": (8,), "beta": (8,), "wqkv": (8, 24), "bqkv": (24,), "wo": (8, 8)},
    "embedding": {"words": (7, 6), "positions": (4, 6), "gamma": (6,), "beta": (6,)},
    "sequence": {"kernel": (8, 4, 3), "bias": (8,), "scale": (4,)},
}

_CONSTANTS: dict[str, Arrays] = {
    "mlp": {},
    "convolution": {
        "mean": np.array([0.1, -0.2, 0.3, 0.0], np.float32),
        "var": np.array([0.5, 1.0, 2.0, 1.5], np.float32),
    },
    "attention": {
        "widths": np.array([8, 8, 8]),
        "heads": np.array([2, 5, 2, 4]),
        "shape": np.array([2, 5, 8]),
        "scale": np.array(0.5, np.float32),
        "two": np.array(2, np.float32),
    },
    "embedding": {"rows": np.array([8, 6])},
    "sequence": {"halves": np.array([4, 4]), "last": np.array([-1])},
}

_LABELS: Arrays = {
    "convolution": np.array([2, 0]),
    "embedding": np.array([6, 1, -1, 0, 3, 3, 5, 2]),
    "tokens": np.array([[1, 4, 4, 0], [6, 2, 1, 1]]),
}


def parameters_of(name: str) -> list[str]:
    """The names of a model's parameters."""
    return list(_SHAPES[name])


def model_of(name: str) -> ModelProto:
    """A model with its parameters; the output is `loss`."""
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["": 20]>' + GRAPHS[name])
    rng = np.random.default_rng(17)
    drawn = {each: rng.normal(scale=0.5, size=shape).astype(np.float32) for each, shape in _SHAPES[name].items()}
    for each, value in (drawn | _CONSTANTS[name]).items():
        model.graph.initializer.append(numpy_helper.from_array(value, each))
    return model


def feeds_of(name: str) -> Arrays:
    """The inputs of a model."""
    rng = np.random.default_rng(18)
    feeds = {}
    for each in model_of(name).graph.input:
        shape = [dim.dim_value or 5 for dim in each.type.tensor_type.shape.dim]
        feeds[each.name] = rng.normal(size=shape).astype(np.float32)
    return feeds | {each: _LABELS[name if each == "labels" else each] for each in ("labels", "tokens") if each in feeds}
